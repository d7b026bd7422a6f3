"""Reading interactions from files of the kinds that public data sets come in."""

from cw_ext.files.ids import Ids, places
from cw_ext.files.numbering import Rows, is_sparse, number
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
    "is_sparse",
    "number",
    "places",
    "read_interactions",
]
