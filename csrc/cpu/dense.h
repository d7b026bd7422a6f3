// Embeddings and sampled, where the items are few (dense_rule.h).
#pragma once

#include "../calls.h"

namespace cw_cpu {

void dense_embeddings(const cw_ext::EmbeddingsCall& call);
void dense_item_gradient(const cw_ext::ItemGradientCall& call);
void dense_sampled(const cw_ext::SampledCall& call);
void dense_sampled_item_gradient(const cw_ext::SampledItemGradientCall& call);

}  // namespace cw_cpu
