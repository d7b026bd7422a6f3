"""Where a batch's negatives come from, as objects that training can swap: also negatives chosen by their scores.

    sampler = Scored(interactions, 10, num_candidates=100, log_weight=softmax(0.1))
    for step, (query_ids, pos_ids) in enumerate(batches):
        queries = users(query_ids)
        drawn = sampler.draw(queries, items, query_ids, pos_ids, seed=step)
        loss = cw_loss_from_embeddings(queries, items, pos_ids, drawn.ids, neg_log_weights=drawn.log_weights)
        ...
        sampler.update(queries, items, query_ids, pos_ids, epoch=epoch, seed=step)

`draw` and `update` belong outside a compiled step. A sampler is an nn.Module, so that state_dict(), load_state_dict()
and to(device) are those of a model; only `Memory` and `Chain` have a state. With queries spread over processes, each
keeps the state of its own.
"""

from cw_ext.samplers.chain import Chain
from cw_ext.samplers.log_weights import LogWeight, fne, softmax
from cw_ext.samplers.memory import Memory
from cw_ext.samplers.protocol import Negatives, Sampler
from cw_ext.samplers.scored import Scored
from cw_ext.samplers.uniform import Uniform

__all__ = ["Chain", "LogWeight", "Memory", "Negatives", "Sampler", "Scored", "Uniform", "fne", "softmax"]
