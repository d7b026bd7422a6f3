"""Training with several processes, on torch.distributed. The guide docs/guides/processes.md has complete programs.

For encoders and in-batch negatives, together with the `process_group` argument of :func:`cw_ext.cw_loss_in_batch`:

- row_numbers: `item_ids` for rows without an id in a catalogue;
- gather_rows: the rows of all processes, with gradients.

For tables that are too large for one process:

- RowShardedTable: an embedding table with a part of the rows on each process;
- sampled_cw_loss: the loss with drawn negatives on such a table;
- save_checkpoint, load_checkpoint: checkpoints of tables and optimizers, for any number of processes;
- distinct_ids, ShardedTable: for tables of other libraries.
"""

import torch

if not torch.distributed.is_available():
    raise ImportError(
        f"cw_ext.distributed needs a torch with torch.distributed, but torch {torch.__version__} was built without it"
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
