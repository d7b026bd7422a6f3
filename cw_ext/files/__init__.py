"""Read interactions from files in the formats of public data sets."""

from cw_ext.files.ids import Ids
from cw_ext.files.numbering import Rows, number
from cw_ext.files.options import FORMATS, Format, Reading
from cw_ext.files.reader import SPLITS, InteractionTable, read_interactions

__all__ = [
    "FORMATS",
    "SPLITS",
    "Format",
    "Ids",
    "InteractionTable",
    "Reading",
    "Rows",
    "number",
    "read_interactions",
]
