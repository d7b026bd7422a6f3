"""Tables that are too large for one process, on torch.distributed: `import cw_ext.distributed`."""

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
