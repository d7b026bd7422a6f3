// Sorting pairs by their items: CUB's radix sort, over no more bits than the ids have.
#include <cub/device/device_radix_sort.cuh>

#include "kernels.h"

namespace cw_cuda {

cudaError_t sort_pairs(void* temporary, size_t* temporary_bytes, const SortedPairs& pairs, cudaStream_t stream) {
  int bits = 1;
  while (bits < 32 && (pairs.num_items >> bits) != 0) ++bits;
  return cub::DeviceRadixSort::SortPairs(temporary, *temporary_bytes, pairs.unsorted_keys, pairs.keys,
                                         pairs.unsorted_places, pairs.places, int(pairs.count), 0, bits, stream);
}

}  // namespace cw_cuda
