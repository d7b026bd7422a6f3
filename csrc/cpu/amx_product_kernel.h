// A matrix product of bf16 pairs in AMX's tiles. Included by kernels_impl.h.
#pragma once

#include <cstring>

#include "amx_tiles.h"
#include "kernels.h"
#include "simd.h"

namespace cw_cpu {
namespace CW_ISA {

// A panel's columns are those of two tiles.
constexpr int kSumTile = 0, kATile = 2, kBTile = 3, kLastATile = 5, kLastBTile = 6;
static_assert(ProductTask<float, Pair>::kPanel == 2 * kAmxRows);

// The tiles for `rows` rows; the last ones of the depth have `last` pairs.
inline AmxShapes product_shapes(int64_t rows, int64_t last) {
  AmxShapes shapes;
  const auto set = [&](int tile, int64_t tile_rows, int64_t bytes) {
    shapes.rows[tile] = uint8_t(tile_rows);
    shapes.row_bytes[tile] = uint16_t(bytes);
  };
  for (int half = 0; half < 2; ++half) {
    set(kSumTile + half, rows, kAmxRowBytes);
    set(kBTile + half, kAmxRows, kAmxRowBytes);
    set(kLastBTile + half, last, kAmxRowBytes);
  }
  set(kATile, rows, kAmxRowBytes);
  set(kLastATile, rows, last * int64_t(sizeof(Pair)));
  return shapes;
}

// Rows [begin, end). The sums are in the order of k, independent of the range of rows. `Tiles`: AmxTiles, or their twin in a
// test.
template <typename Tiles>
void amx_product(const ProductTask<float, Pair>& task, int64_t begin, int64_t end) {
  constexpr int64_t kPanel = ProductTask<float, Pair>::kPanel, kStep = kAmxRows;
  constexpr int64_t kRowBytes = kPanel * int64_t(sizeof(Pair));
  const int64_t steps = (task.depth + kStep - 1) / kStep, last = task.depth - (steps - 1) * kStep;
  constexpr int64_t kStepsAtOnce = 16;
  Pair turned[kStepsAtOnce * kAmxRows * kStep];  // rows of `a` that are columns in memory
  int64_t configured = 0;
  for (int64_t first = begin; first < end; first += kAmxRows) {
    const int64_t rows = end - first < kAmxRows ? end - first : kAmxRows;
    if (rows != configured) Tiles::configure(product_shapes(rows, last));
    configured = rows;
    const Pair* const a = task.a + first * task.a_row_stride;
    for (int64_t begin_step = 0; begin_step < steps; begin_step += kStepsAtOnce) {
      const int64_t end_step = steps - begin_step < kStepsAtOnce ? steps : begin_step + kStepsAtOnce;
      for (int64_t s = begin_step; task.a_stride != 1 && s < end_step; ++s) {
        Pair* const to = turned + (s - begin_step) * kAmxRows * kStep;
        const int64_t pairs = s + 1 < steps ? kStep : last;
        for (int64_t r = 0; r < rows; ++r) {
          for (int64_t k = 0; k < pairs; ++k) {
            to[r * kStep + k] = a[r * task.a_row_stride + (s * kStep + k) * task.a_stride];
          }
        }
      }
      for (int64_t p = 0; p < task.panels; ++p) {
        const Pair* const panel = task.b + p * task.depth * kPanel;
        float* const c = task.c + first * task.c_stride + p * kPanel;
        const int64_t c_bytes = task.c_stride * int64_t(sizeof(float));
        if (task.accumulate || begin_step > 0) {
          Tiles::template load<kSumTile>(c, c_bytes);
          Tiles::template load<kSumTile + 1>(c + kAmxRows, c_bytes);
        } else {
          Tiles::template clear<kSumTile>();
          Tiles::template clear<kSumTile + 1>();
        }
        for (int64_t s = begin_step; s < end_step; ++s) {
          const bool in_place = task.a_stride == 1;
          const Pair* const x = in_place ? a + s * kStep : turned + (s - begin_step) * kAmxRows * kStep;
          const int64_t x_bytes = (in_place ? task.a_row_stride : kStep) * int64_t(sizeof(Pair));
          const Pair* const y = panel + s * kStep * kPanel;
          if (s + 1 < steps) {
            Tiles::template load<kATile>(x, x_bytes);
            Tiles::template load<kBTile>(y, kRowBytes);
            Tiles::template load<kBTile + 1>(y + kAmxRows, kRowBytes);
            Tiles::template multiply_add<kSumTile, kATile, kBTile>();
            Tiles::template multiply_add<kSumTile + 1, kATile, kBTile + 1>();
          } else {
            Tiles::template load<kLastATile>(x, x_bytes);
            Tiles::template load<kLastBTile>(y, kRowBytes);
            Tiles::template load<kLastBTile + 1>(y + kAmxRows, kRowBytes);
            Tiles::template multiply_add<kSumTile, kLastATile, kLastBTile>();
            Tiles::template multiply_add<kSumTile + 1, kLastATile, kLastBTile + 1>();
          }
        }
        Tiles::template store<kSumTile>(c, c_bytes);
        Tiles::template store<kSumTile + 1>(c + kAmxRows, c_bytes);
      }
    }
  }
  if (configured > 0) Tiles::release();
}

}  // namespace CW_ISA
}  // namespace cw_cpu
