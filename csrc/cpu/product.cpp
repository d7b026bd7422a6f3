// Sums over rows by a matrix product, for negatives that all rows share. Our own, since MKL uses only half of the vector width
// on processors other than Intel's, and splits its sums by the number of threads.
#include "dispatch.h"

namespace cw_cpu {

namespace {

// x [depth, dim] times factor, packed as ProductTask's b, with 0 instead of NaN and ±∞: if such a row counts, its coefficients
// are NaN (spoilt()); if not, their 0 would not be enough, as 0 · NaN is NaN.
template <typename T>
void pack(const T* x, int64_t depth, int64_t dim, T factor, T* out) {
  constexpr int64_t kPanel = ProductTask<T>::kPanel;
  parallel_for(0, depth, grain(dim, 1), [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      for (int64_t first = 0; first < dim; first += kPanel) {
        T* const to = out + first * depth + k * kPanel;
        const int64_t count = std::min(kPanel, dim - first);
        for (int64_t i = 0; i < count; ++i) {
          const T value = x[k * dim + first + i] * factor;
          to[i] = value - value == T(0) ? value : T(0);
        }
        std::fill(to + count, to + kPanel, T(0));
      }
    }
  });
}

// The coefficients [rows, n] in `room`, those of rows of x that are not finite NaN unless they are 0; or as they are if there
// is no such row. One that is not finite is a query, whose coefficients are NaN anyway, or was multiplied by such a gradient.
template <typename T>
const T* spoilt(const T* coefficients, int64_t rows, int64_t n, const T* x, int64_t dim, Scratch<T>& room) {
  for (int64_t b = 0; b < rows; ++b) {
    T differences = 0;
    for (int64_t i = 0; i < dim; ++i) differences += x[b * dim + i] - x[b * dim + i];
    if (differences == T(0)) continue;
    if (!room) {
      room = scratch<T>(rows * n);
      std::copy_n(coefficients, rows * n, room.get());
    }
    for (T* c = room.get() + b * n; c != room.get() + (b + 1) * n; ++c) *c = *c == T(0) ? T(0) : *c + differences;
  }
  return room ? room.get() : coefficients;
}

}  // namespace

template <typename T>
void weighted_sums(const T* coefficients, int64_t rows, int64_t n, const T* x, int64_t dim, T factor, T* out,
                   int64_t stride, bool accumulate) {
  constexpr int64_t kPanel = ProductTask<T>::kPanel;
  const int64_t panels = (dim + kPanel - 1) / kPanel;
  const auto packed = scratch<T>(panels * rows * kPanel);
  Scratch<T> room;
  coefficients = spoilt(coefficients, rows, n, x, dim, room);
  pack(x, rows, dim, factor, packed.get());
  const ProductTask<T> task{coefficients, 1, n, rows, packed.get(), panels, out, stride, accumulate};
  const int64_t steps = (n + kRowStep - 1) / kRowStep;
  parallel_for(0, steps, grain(kRowStep * rows * panels), [&](int64_t first, int64_t last) {
    CW_WITH_ISA(product<T>(task, first * kRowStep, std::min(n, last * kRowStep)));
  });
}

template void weighted_sums<float>(const float*, int64_t, int64_t, const float*, int64_t, float, float*, int64_t, bool);
template void weighted_sums<double>(const double*, int64_t, int64_t, const double*, int64_t, double, double*, int64_t,
                                    bool);

}  // namespace cw_cpu
