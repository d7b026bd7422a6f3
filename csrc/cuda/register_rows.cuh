// Rows of the item table in a warp's registers: read once, used for their scores and for a weighted sum.
#pragma once

#include "warp.cuh"

namespace cw_cuda {

// A warp is divided into groups of kLanes lanes; each holds kRows rows at a time, kChunks chunks of 16 bytes of each per lane.
// Every pair of a row and a query has kShare owners, lanes next to each other, which get its products and give its weight.
template <typename In, int kLanes, int kChunks>
struct RegisterRows {
  static constexpr int kVec = kVectorBytes / int(sizeof(In));
  static constexpr int kRows = 8 / kChunks;
  static constexpr int kGroups = kWarp / kLanes;
  static constexpr int kPairs = kRows * kGroups;
  static constexpr int kShare = kLanes / kRows;
  static constexpr int kWidth = kLanes * kChunks * kVec;  // elements of a row, at most
  using Slice = float[kChunks][kVec];                     // a lane's part of a vector of the row's length

  Chunk<In, kVec> x[kRows][kChunks];

  __device__ __forceinline__ static int rank() { return int(threadIdx.x) % kLanes; }
  __device__ __forceinline__ static int group() { return int(threadIdx.x) % kWarp / kLanes; }
  __device__ __forceinline__ static int own_pair() { return group() * kRows + rank() / kShare; }
  // Each pair is counted by one of its owners.
  __device__ __forceinline__ static bool counts() { return rank() % kShare == 0; }
  __device__ __forceinline__ static int start(int chunk) { return (chunk * kLanes + rank()) * kVec; }

  // The lane's slice of a vector [dim]; zeros beyond.
  template <typename E>
  __device__ __forceinline__ static void load_slice(const E* from, int64_t dim, Slice& to) {
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      if (start(c) < dim) {
        load<kVec>(from + start(c), to[c]);
      } else {
#pragma unroll
        for (int v = 0; v < kVec; ++v) to[c][v] = 0;
      }
    }
  }

  __device__ __forceinline__ static void store_slice(const Slice& from, int64_t dim, float* to) {
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      if (start(c) < dim) store<kVec>(from[c], to + start(c));
    }
  }

  __device__ __forceinline__ static float dot(const Slice& a, const Slice& b) {
    float sum = 0;
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
#pragma unroll
      for (int v = 0; v < kVec; ++v) sum += a[c][v] * b[c][v];
    }
#pragma unroll
    for (int offset = kLanes / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(kAllLanes, sum, offset);
    return sum;
  }

  // The value of the owner of row r of this lane's group.
  template <typename X>
  __device__ __forceinline__ static X from_owner(X value, int r) {
    return __shfl_sync(kAllLanes, value, group() * kLanes + r * kShare);
  }

  // Where a lane's chunks of row 0 of a table are, and how far apart rows are.
  struct Table {
    const unsigned char* chunks[kChunks];
    uint32_t row_bytes;
    bool whole;  // rows fill all lanes

    __device__ __forceinline__ Table(const In* items, int64_t dim) {
      row_bytes = uint32_t(dim) * uint32_t(sizeof(In));
      whole = dim == kWidth;
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        chunks[c] = reinterpret_cast<const unsigned char*>(items + (start(c) < dim ? start(c) : 0));
      }
    }
  };

  // The rows of the ids that the owners give; of a negative id row 0, for its owner to give no weight. There is no
  // condition around a load: with one, the compiler makes each wait for the one before.
  __device__ __forceinline__ void read(const Table& table, int64_t dim, int id) {
    const int row_or_0 = id < 0 ? 0 : id;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const uint64_t offset = uint64_t(uint32_t(from_owner(row_or_0, r))) * table.row_bytes;
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        x[r][c] = load_chunk<kVec>(reinterpret_cast<const In*>(table.chunks[c] + offset));
      }
    }
    if (table.whole) return;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        if (start(c) >= dim) x[r][c] = Chunk<In, kVec>{};
      }
    }
  }

  // To the owners of each pair: q·x and x·x.
  __device__ __forceinline__ void products(const Slice& q, float& dot, float& squared) const {
    float dots[kRows], squares[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      dots[r] = squares[r] = 0;
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
#pragma unroll
        for (int v = 0; v < kVec; ++v) {
          const float value = to_compute(x[r][c].x[v]);
          dots[r] += q[c][v] * value;
          squares[r] += value * value;
        }
      }
    }
    dot = sum_to_owner(dots);
    squared = sum_to_owner(squares);
  }

  // Between two uses of the rows: half-precision elements stay as they are, two to a register, and are converted again.
  // Otherwise the compiler would keep them converted, in twice the registers.
  __device__ __forceinline__ void keep_packed() {
#if defined(__CUDA_ARCH__)
    if constexpr (sizeof(In) == 2) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
#pragma unroll
        for (int c = 0; c < kChunks; ++c) {
          uint4 words;
          memcpy(&words, &x[r][c], sizeof(words));
          asm volatile("" : "+r"(words.x), "+r"(words.y), "+r"(words.z), "+r"(words.w));
          memcpy(&x[r][c], &words, sizeof(words));
        }
      }
    }
#endif
  }

  // sum += Σ_r weight_r·x_r over the group's rows, with the weights of the owners.
  __device__ __forceinline__ void add_weighted(float weight, Slice& sum) const {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const float w = from_owner(weight, r);
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
#pragma unroll
        for (int v = 0; v < kVec; ++v) sum[c][v] += w * to_compute(x[r][c].x[v]);
      }
    }
  }

  // Zeros instead of rows without weight, which may hold anything.
  __device__ __forceinline__ void drop_weightless(float weight) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (from_owner(weight, r) != 0) continue;
#pragma unroll
      for (int c = 0; c < kChunks; ++c) x[r][c] = Chunk<In, kVec>{};
    }
  }

  // Σ over the groups, lane rank by lane rank.
  __device__ __forceinline__ static void sum_over_groups(Slice& sum) {
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
#pragma unroll
      for (int v = 0; v < kVec; ++v) {
#pragma unroll
        for (int offset = kLanes; offset < kWarp; offset *= 2) {
          sum[c][v] += __shfl_xor_sync(kAllLanes, sum[c][v], offset);
        }
      }
    }
  }

 private:
  // Σ of x[r] over the group, to the owners of row r. Each step halves the rows that a lane still adds up.
  __device__ __forceinline__ static float sum_to_owner(float (&x)[kRows]) {
#pragma unroll
    for (int step = 1; step < kRows; step *= 2) {
      const int half = kRows / (2 * step), offset = kLanes / (2 * step);
      const bool upper = (rank() & offset) != 0;
#pragma unroll
      for (int i = 0; i < half; ++i) {
        const float kept = upper ? x[i + half] : x[i];
        const float given = upper ? x[i] : x[i + half];
        x[i] = kept + __shfl_xor_sync(kAllLanes, given, offset);
      }
    }
#pragma unroll
    for (int offset = kShare / 2; offset > 0; offset /= 2) x[0] += __shfl_xor_sync(kAllLanes, x[0], offset);
    return x[0];
  }
};

}  // namespace cw_cuda
