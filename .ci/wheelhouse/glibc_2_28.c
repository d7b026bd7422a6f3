// Linked into what goes into a wheel, in the place of symbols that are newer than glibc 2.28 and GCC 8. Hidden, so that
// nobody else's calls come here.
#define CW_HERE __attribute__((visibility("hidden")))

// std::shared_ptr counts without atomics where this says that there is one thread.
CW_HERE char __libc_single_threaded = 0;

// std::__throw_bad_array_new_length(), which containers call, does what `new T[n]` does.
void __cxa_throw_bad_array_new_length(void);
CW_HERE void _ZSt28__throw_bad_array_new_lengthv(void) { __cxa_throw_bad_array_new_length(); }

// The copy constructor and the destructor of std::exception_ptr are inline since GCC 11, on these two functions. The ones
// before did the same, and are still there.
void cw_copy(void* to, const void* from);
void cw_destroy(void* pointer);
__asm__(".symver cw_copy, _ZNSt15__exception_ptr13exception_ptrC1ERKS0_@CXXABI_1.3.3");
__asm__(".symver cw_destroy, _ZNSt15__exception_ptr13exception_ptrD1Ev@CXXABI_1.3.3");
CW_HERE void _ZNSt15__exception_ptr13exception_ptr9_M_addrefEv(const void* self) {
  void* copy;
  cw_copy(&copy, self);
}
CW_HERE void _ZNSt15__exception_ptr13exception_ptr10_M_releaseEv(void* self) { cw_destroy(self); }
