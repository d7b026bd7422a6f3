"""Samplers of negatives with a common interface, including samplers that choose negatives by their scores.

>>> import torch
>>> from cw_ext import Interactions, cw_loss_from_embeddings, samplers
>>> known = Interactions([0, 0, 1], [5, 2, 7], num_queries=2, num_items=300)
>>> users, items = torch.nn.Embedding(2, 16), torch.nn.Embedding(300, 16)
>>> optimizer = torch.optim.Adam([users.weight, items.weight])
>>> sampler = samplers.Scored(known, 10, num_candidates=100, log_weight=samplers.softmax(0.1))
>>> for step in range(3):
...     query_ids, pos_ids = torch.tensor([0, 0, 1]), torch.tensor([5, 2, 7])
...     queries = users(query_ids)
...     drawn = sampler.draw(queries, items, query_ids, pos_ids, seed=step)
...     loss = cw_loss_from_embeddings(queries, items, pos_ids, drawn.ids, neg_log_weights=drawn.log_weights)
...     optimizer.zero_grad()
...     loss.backward()
...     optimizer.step()
...     sampler.update(queries, items, query_ids, pos_ids, epoch=0, seed=step)  # only needed by Memory and Chain

Call `draw` and `update` outside of a compiled step. A sampler is an nn.Module, with the usual state_dict(),
load_state_dict() and to(device). Only `Memory` and `Chain` have a state. If the queries are split over processes, each
process keeps the state of its queries.
"""

from cw_ext.samplers.chain import Chain
from cw_ext.samplers.log_weights import LogWeight, fne, softmax
from cw_ext.samplers.memory import Memory
from cw_ext.samplers.protocol import Negatives, Sampler
from cw_ext.samplers.scored import Scored
from cw_ext.samplers.uniform import Uniform

__all__ = ["Chain", "LogWeight", "Memory", "Negatives", "Sampler", "Scored", "Uniform", "fne", "softmax"]
