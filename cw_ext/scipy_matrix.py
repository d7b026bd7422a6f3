"""Pairs from sparse matrices of scipy, in memory or in an .npz file. scipy is only imported for files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


def nonzeros(matrix: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[int, int]]:
    """(query ids, item ids, values, shape) of a scipy.sparse matrix."""
    if not hasattr(matrix, "tocsr"):
        raise TypeError(f"matrix must be a scipy.sparse matrix or array, got {type(matrix).__name__}")
    if len(matrix.shape) != 2:
        raise ValueError(f"matrix must have shape [num_queries, num_items], got {tuple(matrix.shape)}")
    csr = matrix.tocsr(copy=True)
    csr.sum_duplicates()
    csr.eliminate_zeros()
    num_queries, num_items = map(int, csr.shape)
    query_ids = np.repeat(np.arange(num_queries), np.diff(csr.indptr))
    return query_ids, csr.indices, csr.data, (num_queries, num_items)


def load_npz(path: Path) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """(query ids, item ids, shape) of the matrix in the file."""
    try:
        from scipy.sparse import load_npz as load
    except ImportError:
        raise ImportError(f"{path}: reading an .npz needs scipy, which is not installed") from None
    try:
        matrix = load(path)
        if hasattr(matrix, "check_format"):
            # Without this, scipy hardly checks the indices, and then reads and writes wherever they point.
            matrix.check_format(full_check=True)
        query_ids, item_ids, _, shape = nonzeros(matrix)
        return query_ids, item_ids, shape
    except Exception as error:  # a damaged file raises many types
        if isinstance(error, OSError) and error.filename is not None:  # not readable at all
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path}: expected an .npz that scipy.sparse.save_npz wrote, got: {reason}") from None
