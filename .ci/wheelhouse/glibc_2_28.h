// Included before all else in what goes into a wheel. String streams have members that are newer than the libstdc++ of
// GCC 8, which goes with glibc 2.28: they are compiled into the library instead. The rest is in glibc_2_28.c.
#pragma once

#include <iostream>
#undef _GLIBCXX_EXTERN_TEMPLATE
#define _GLIBCXX_EXTERN_TEMPLATE 0
#include <sstream>
#undef _GLIBCXX_EXTERN_TEMPLATE
#define _GLIBCXX_EXTERN_TEMPLATE 1
