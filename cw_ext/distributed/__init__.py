"""Training over many processes, on torch.distributed. docs/guides/processes.md has a program for each step.

For encoders and in-batch negatives, beside `process_group=` of :func:`cw_ext.cw_loss_in_batch`:
    row_numbers: `item_ids` for rows that have no id in a catalogue.
    gather_rows: the rows of all processes, with gradients.

For tables that are too large for one process:
    RowShardedTable: an embedding table of which each process holds a part.
    sampled_cw_loss: the loss on it with drawn negatives.
    save_checkpoint, load_checkpoint: it and its optimizer, for any number of processes.
    distinct_ids, ShardedTable: for tables of other libraries.
"""

import torch

if not torch.distributed.is_available():
    raise ImportError(
        f"cw_ext.distributed needs a torch with torch.distributed, which torch {torch.__version__} has not"
    )

from cw_ext.collectives import gather_rows, row_numbers
from cw_ext.distributed.checkpoint import load_checkpoint, save_checkpoint
from cw_ext.distributed.sampled_loss import ShardedTable, sampled_cw_loss
from cw_ext.distributed.table import RowShardedTable, distinct_ids

__all__ = [
    "RowShardedTable",
    "ShardedTable",
    "distinct_ids",
    "gather_rows",
    "load_checkpoint",
    "row_numbers",
    "sampled_cw_loss",
    "save_checkpoint",
]
