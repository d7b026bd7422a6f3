"""Tables that are too large for one process, on torch.distributed: `import cw_ext.distributed`."""

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
