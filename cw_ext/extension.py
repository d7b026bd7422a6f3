"""Finds the compiled kernels, or the reason why they cannot be used.

There are three files. ``_cpu`` has the ops with their CPU kernels, and ``_cuda`` their CUDA kernels; both are built on
LibTorch's stable ABI and work with every supported torch and Python. ``_C``, one per Python, tells how they were built.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

# The oldest torch that the libraries load under: setup.py's MINIMUM_TORCH.
MINIMUM_TORCH = (2, 11)
# The path of a library to load instead of ``_cpu``: the project's own tests use other builds.
ANOTHER_LIBRARY = "CW_EXT_TEST_LIBRARY"
PACKAGE = Path(__file__).resolve().parent
BUILD = "pip install --no-build-isolation " + ("." if "site-packages" in PACKAGE.parts else "-e .")
_warned = False


def _library(folder: Path, name: str) -> Path | None:
    return next((path for path in sorted(folder.glob(f"{name}.*")) if path.suffix in (".so", ".pyd")), None)


def built_elsewhere() -> Path | None:
    """The folder of another copy of the package, further down Python's path, that has compiled kernels."""
    for entry in sys.path:
        folder = Path(entry, "cw_ext").resolve()
        if folder != PACKAGE and _library(folder, "_cpu"):
            return folder
    return None


def _why_no_cpu() -> str:
    """Loads the CPU library. Returns why that failed, or an empty string."""
    library = Path(another) if (another := os.environ.get(ANOTHER_LIBRARY)) else _library(PACKAGE, "_cpu")
    if library is None:
        why_not = f"the compiled kernels of cw_ext are not in {PACKAGE}, the copy that was imported"
        if other := built_elsewhere():
            return f"{why_not}, but they are in {other}: to use that copy, start Python in another folder"
        return f"{why_not}; in its source tree, build them with: {BUILD}"
    # Before loading: with an older torch that fails with a missing symbol.
    version = re.match(r"(\d+)\.(\d+)", torch.__version__)
    if version is not None and (int(version[1]), int(version[2])) < MINIMUM_TORCH:
        return (
            f"the compiled kernels of cw_ext need torch >= {'.'.join(map(str, MINIMUM_TORCH))}, but torch "
            f"{torch.__version__} is running; upgrade it with: pip install --upgrade torch"
        )
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        # torch's own message only says that it failed.
        return (
            f"the compiled kernels of cw_ext do not load ({error.__cause__ or error}); reinstall the wheel, or in its "
            f"source tree rebuild with: {BUILD}"
        )
    if not hasattr(torch.ops.cw_ext, "scores_forward"):
        return f"the compiled kernels of cw_ext are not in {library}; in its source tree, rebuild with: {BUILD}"
    return ""


def _why_no_cuda() -> str:
    """Loads the CUDA library if torch has CUDA. Returns why that failed, or an empty string."""
    if hasattr(torch.ops.cw_ext, "cuda_build"):
        return ""  # it is part of a library that the tests use
    if torch.version.cuda is None:
        return "this torch has no CUDA"
    library = _library(PACKAGE, "_cuda")
    if library is None:
        return (
            "cw_ext was installed without its CUDA kernels; install a wheel that has them (+cu13), or in its source "
            f"tree rebuild with: USE_CUDA=1 {BUILD}"
        )
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        return (
            f"cw_ext's CUDA kernels do not load with torch {torch.__version__} for CUDA {torch.version.cuda} "
            f"({error.__cause__ or error}); those in a wheel are for CUDA 13"
        )
    return ""


_no_cpu = _why_no_cpu()
_no_cuda = _no_cpu or _why_no_cuda()


def available() -> bool:
    """Whether the compiled kernels are loaded."""
    return not _no_cpu


def build_config() -> dict[str, Any]:
    """How the kernels were built and what they run on, or why they do not run.

    Returns:
        A dict. "available" (bool) says whether the kernels run. If not, "reason" says why; everything then uses the
        plain PyTorch reference. If they do, it has

        - "compiler", "cpu_capabilities" (the instruction sets in the build), "cpu_capability" (the one in use here) and
          "torch" (the version in the build; every version from 2.11 on works). These four are None if the kernels were
          built with another Python. The environment variable ATEN_CPU_CAPABILITY lowers the instruction set: "default",
          "avx2" or "avx512".
        - "cuda" (bool, whether the CUDA kernels are loaded), "cuda_reason" (why not, or None), "cuda_version" and
          "cuda_archs" (what they were built for, or None).

    Example:
        >>> from cw_ext import build_config
        >>> config = build_config()
        >>> print("kernels:", config["available"] or config["reason"])
        kernels: ...
    """
    if _no_cpu:
        return {"available": False, "reason": _no_cpu}
    config: dict[str, Any] = dict.fromkeys(("compiler", "cpu_capabilities", "cpu_capability", "torch"))
    with suppress(ImportError):
        config |= importlib.import_module("cw_ext._C").build_config()
    version, archs = (None, None) if _no_cuda else torch.ops.cw_ext.cuda_build()
    cuda = {"cuda": not _no_cuda, "cuda_reason": _no_cuda or None, "cuda_version": version, "cuda_archs": archs}
    return {"available": True, **config, **cuda}


def use_kernels(backend: str, device_type: str) -> bool:
    """Whether a call with this backend on this type of device runs on the kernels.

    Raises:
        RuntimeError: backend="fused" where they cannot run.
    """
    global _warned
    if backend == "reference":
        return False
    if _no_cpu:
        reason = _no_cpu
    elif device_type == "cpu" or (device_type == "cuda" and not _no_cuda):
        return True
    elif device_type == "cuda":
        reason = _no_cuda
    else:
        reason = f"the compiled kernels of cw_ext do not cover the device type {device_type!r}"
    if backend == "fused":
        raise RuntimeError(f"backend='fused': {reason}")
    if not _warned and not torch.compiler.is_compiling():
        _warned = True
        warnings.warn(
            f"{reason} (falling back to the reference backend, which is slower and needs far more memory)",
            stacklevel=3,
        )
    return False
