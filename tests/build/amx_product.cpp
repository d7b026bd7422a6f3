// Compares the matrix product in AMX's tiles with a plain loop, on a twin of the tiles in software: what is wrong is printed,
// and the exit status is 1. Where the processor has AMX, its own tiles are compared too.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <vector>

#define CW_NAMESPACE cw_amx_test
#define CW_ISA amx_test
#define CW_VECTOR_BYTES 64
#include "cpu/amx_product_kernel.h"

namespace {

using namespace cw_cpu;

float from_bf16(uint32_t bits) {
  bits <<= 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// As Intel's manual has them; what would be an exception there ends the program.
struct SoftwareTiles {
  static inline AmxShapes shapes;
  static inline bool configured = false;
  static inline std::array<std::array<std::array<uint32_t, 16>, 16>, 8> tiles;

  static void require(bool holds, const char* what) {
    if (holds) return;
    std::printf("an exception: %s\n", what);
    std::exit(1);
  }
  static int rows(int tile) { return shapes.rows[tile]; }
  static int words(int tile) { return shapes.row_bytes[tile] / 4; }
  static void configure(const AmxShapes& x) {
    require(x.palette == 1 && x.start_row == 0, "palette and start row");
    for (int t = 0; t < 8; ++t) {
      require(x.rows[t] <= 16 && x.row_bytes[t] <= 64 && x.row_bytes[t] % 4 == 0, "a tile's shape");
      require((x.rows[t] == 0) == (x.row_bytes[t] == 0), "a tile without rows or columns");
    }
    for (int t = 8; t < 16; ++t) require(x.rows[t] == 0 && x.row_bytes[t] == 0, "a ninth tile");
    shapes = x;
    tiles = {};
    configured = true;
  }
  static void release() { configured = false; }
  template <int Tile>
  static void clear() {
    require(configured && rows(Tile) > 0, "a tile that is not configured");
    tiles[Tile] = {};
  }
  template <int Tile>
  static void load(const void* from, int64_t stride) {
    clear<Tile>();
    for (int r = 0; r < rows(Tile); ++r) {
      std::memcpy(tiles[Tile][r].data(), static_cast<const char*>(from) + r * stride, size_t(4 * words(Tile)));
    }
  }
  template <int Tile>
  static void store(void* to, int64_t stride) {
    require(configured && rows(Tile) > 0, "a tile that is not configured");
    for (int r = 0; r < rows(Tile); ++r) {
      std::memcpy(static_cast<char*>(to) + r * stride, tiles[Tile][r].data(), size_t(4 * words(Tile)));
    }
  }
  template <int Sum, int A, int B>
  static void multiply_add() {
    require(configured && rows(Sum) == rows(A) && words(Sum) == words(B) && words(A) == rows(B), "shapes of a product");
    for (int r = 0; r < rows(A); ++r) {
      for (int k = 0; k < words(A); ++k) {
        for (int c = 0; c < words(B); ++c) {
          float sum;
          std::memcpy(&sum, &tiles[Sum][r][c], sizeof(sum));
          const uint32_t x = tiles[A][r][k], y = tiles[B][k][c];
          sum += from_bf16(x & 0xFFFF) * from_bf16(y & 0xFFFF) + from_bf16(x >> 16) * from_bf16(y >> 16);
          std::memcpy(&tiles[Sum][r][c], &sum, sizeof(sum));
        }
      }
    }
  }
};

struct Shape {
  int64_t rows, depth, panels;
  bool accumulate, turned;
};

// Small whole numbers, whose sums fp32 holds exactly. What a product may not touch is NaN.
template <typename Tiles>
bool holds(const char* name, const Shape& x) {
  constexpr int64_t kPanel = ProductTask<float, Pair>::kPanel;
  const int64_t stride = x.depth + 3, rows = x.rows + 2, c_stride = x.panels * kPanel + 5;
  uint32_t state = 1;
  const auto next = [&state] {
    state = state * 1664525u + 1013904223u;
    const float value = float(int32_t(state >> 28) - 8);
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    return bits >> 16;
  };
  std::vector<Pair> a(size_t(rows * stride), Pair{0x7FC07FC0u}), b(size_t(x.panels * x.depth * kPanel + 64), Pair{0x7FC07FC0u});
  // Turned: a [depth, rows + 2].
  const int64_t row_stride = x.turned ? 1 : stride, depth_stride = x.turned ? rows : 1;
  std::vector<Pair> turned_a(size_t(rows * x.depth + 64), Pair{0x7FC07FC0u});
  std::vector<Pair>& left = x.turned ? turned_a : a;
  for (int64_t r = 0; r < x.rows; ++r) {
    for (int64_t k = 0; k < x.depth; ++k) left[size_t(r * row_stride + k * depth_stride)].bits = next() | next() << 16;
  }
  for (int64_t i = 0; i < x.panels * x.depth * kPanel; ++i) b[size_t(i)].bits = next() | next() << 16;
  std::vector<float> c(size_t(rows * c_stride), 3.0f);
  const std::vector<float> before = c;
  // In two parts, as threads have them.
  const ProductTask<float, Pair> task{left.data(), row_stride, depth_stride, x.depth, b.data(), x.panels, c.data(), c_stride,
                                      x.accumulate};
  const int64_t middle = std::min<int64_t>(x.rows, 19);
  amx_test::amx_product<Tiles>(task, 0, middle);
  amx_test::amx_product<Tiles>(task, middle, x.rows);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t j = 0; j < c_stride; ++j) {
      double expected = before[size_t(r * c_stride + j)];
      if (r < x.rows && j < x.panels * kPanel) {
        if (!x.accumulate) expected = 0;
        for (int64_t k = 0; k < x.depth; ++k) {
          const uint32_t left_bits = left[size_t(r * row_stride + k * depth_stride)].bits;
          const uint32_t right_bits = b[size_t((j / kPanel * x.depth + k) * kPanel + j % kPanel)].bits;
          expected += double(from_bf16(left_bits & 0xFFFF)) * from_bf16(right_bits & 0xFFFF);
          expected += double(from_bf16(left_bits >> 16)) * from_bf16(right_bits >> 16);
        }
      }
      const float found = c[size_t(r * c_stride + j)];
      if (found == expected) continue;
      std::printf("%s: %lld rows, depth %lld, %lld panels%s%s: expected %g in row %lld, column %lld, got %g\n", name,
                  static_cast<long long>(x.rows), static_cast<long long>(x.depth), static_cast<long long>(x.panels),
                  x.accumulate ? ", added" : "", x.turned ? ", turned" : "", expected, static_cast<long long>(r),
                  static_cast<long long>(j), found);
      return false;
    }
  }
  return true;
}

template <typename Tiles>
int failures(const char* name) {
  int failed = 0, tried = 0;
  for (const int64_t rows : {1, 5, 16, 17, 48, 50}) {
    for (const int64_t depth : {1, 15, 16, 17, 32, 100, 256, 257, 300}) {
      for (const int64_t panels : {1, 3}) {
        for (const bool accumulate : {false, true}) {
          for (const bool turned : {false, true}) {
            failed += !holds<Tiles>(name, {rows, depth, panels, accumulate, turned});
            ++tried;
          }
        }
      }
    }
  }
  std::printf("%s: %d products, %d wrong\n", name, tried, failed);
  return failed;
}

}  // namespace

int main() {
  int failed = failures<SoftwareTiles>("tiles in software");
  if (has_amx()) failed += failures<AmxTiles>("the processor's tiles");
  return failed > 0;
}
