"""Finds the compiled kernels, and tells why they cannot be used."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

PACKAGE = Path(__file__).resolve().parent
BUILD = "pip install --no-build-isolation " + ("." if "site-packages" in PACKAGE.parts else "-e .")
_warned = False


def built_elsewhere() -> Path | None:
    """Another copy of the package with compiled kernels, further down Python's path: its folder."""
    for entry in sys.path:
        folder = Path(entry, "cw_ext").resolve()
        if folder != PACKAGE and any(folder.glob("_C.*")):
            return folder
    return None


def _load() -> tuple[Any, str]:
    """(the extension module or None, why not)."""
    if importlib.util.find_spec("cw_ext._C") is None:
        why_not = f"the compiled kernels of cw_ext are not in {PACKAGE}, the copy that was imported"
        if other := built_elsewhere():
            return None, f"{why_not}, but they are in {other}: to use that copy, start Python in another folder"
        return None, f"{why_not}; in its source tree, build them with: {BUILD}"
    # Checked before loading: a library built for another torch may crash instead of raising an error.
    try:
        built_for = importlib.import_module("cw_ext._built_for").TORCH_VERSION
    except ImportError:
        built_for = "unknown"
    if built_for != torch.__version__:
        return None, (
            f"the compiled kernels of cw_ext were built for torch {built_for}, but torch {torch.__version__} is "
            f"running; in the source tree, rebuild them with: {BUILD}"
        )
    try:
        return importlib.import_module("cw_ext._C"), ""
    except ImportError as error:
        return (
            None,
            f"the compiled kernels of cw_ext do not load ({error}); in its source tree, rebuild with: {BUILD}",
        )


_module, _why_not = _load()


def available() -> bool:
    """Whether the compiled kernels are loaded."""
    return _module is not None


def build_config() -> dict[str, Any]:
    """How the kernels were built and what they run on.

    Returns:
        A dict with "available" (bool); where it is False, "reason"; where it is True, "compiler", "cpu_capabilities"
        (the instruction sets built), "cpu_capability" (the one this machine uses; ATEN_CPU_CAPABILITY=default|avx2|
        avx512 in the environment lowers it), "cuda" (bool), "cuda_version", "cuda_archs" and "torch" (the version
        built for).
    """
    if _module is None:
        return {"available": False, "reason": _why_not}
    return {"available": True, **_module.build_config()}


def use_kernels(backend: str, device_type: str) -> bool:
    """Whether a call with this backend on this type of device runs on the kernels.

    Raises:
        RuntimeError: backend="fused" where they cannot run.
    """
    global _warned
    if backend == "reference":
        return False
    if _module is None:
        reason = _why_not
    elif device_type == "cpu" or (device_type == "cuda" and _module.build_config()["cuda"]):
        return True
    else:
        reason = f"the compiled kernels of cw_ext do not cover the device type {device_type!r} in this build"
    if backend == "fused":
        raise RuntimeError(f"backend='fused': {reason}")
    if not _warned and not torch.compiler.is_compiling():
        _warned = True
        warnings.warn(
            f"{reason}. Falling back to the reference backend, which is slow and needs far more memory.",
            stacklevel=3,
        )
    return False
