"""The package as it is built, installed, imported and type-checked; nothing here compiles the kernels."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import BytesParser
from pathlib import Path

import pytest
import torch

import cw_ext
from cw_ext import extension

PACKAGE = Path(cw_ext.__file__).parent
# What a clean checkout holds, without the results of benchmarks.
TREE = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md", "Makefile", ".ci")
TREE += ("csrc", "cw_ext", "tests", "benchmarks", "examples")
BUILT = shutil.ignore_patterns("_C.*", "_cpu.*", "_cuda.*", "__pycache__", "results")

# What compiles in a second, in place of the kernels.
EMPTY_MODULE = """
#include <Python.h>
static PyModuleDef definition{PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr};
PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&definition); }
"""
EMPTY_LIBRARY = "void nothing() {}\n"


def run(*command: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


# --- import ---


def test_importing_brings_nothing_heavy(tmp_path: Path) -> None:
    """Beside torch, numpy and what Python comes with: only this package; and of torch, not what torch.compile needs."""
    script = """
import sys, numpy, torch
before = set(sys.modules)
import cw_ext
print(*(set(sys.modules) - before))
"""
    done = run("-c", script, cwd=tmp_path, PYTHONPATH=str(PACKAGE.parent))
    assert done.returncode == 0, done.stderr
    new = done.stdout.split()
    assert "cw_ext" in new and "cw_ext.functional" in new
    assert {name.partition(".")[0] for name in new} <= {"cw_ext", "numpy", "torch", *sys.stdlib_module_names}
    assert not [name for name in new if re.match(r"torch\.(_dynamo|_inductor)|cw_ext\.integrations", name)]


# --- without usable kernels ---

USE_WITHOUT_KERNELS = """
import sys, warnings
import torch

torch.__version__ = sys.argv[1]
warnings.simplefilter("error")
import cw_ext

assert not hasattr(torch.ops.cw_ext, "scores_forward")
pos, neg = torch.randn(4), torch.randn(4, 5, requires_grad=True)
queries, items = torch.randn(4, 3, requires_grad=True), torch.randn(9, 3, requires_grad=True)
ids = torch.arange(4)
known = cw_ext.Interactions(ids, ids, num_queries=4, num_items=9)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    losses = [
        cw_ext.cw_loss(pos, neg),
        cw_ext.cw_loss_from_embeddings(queries, items, ids, cw_ext.draw_negatives(ids, known, 5)),
        cw_ext.sampled_cw_loss(queries, items, ids, ids, known, 5, seed=1),
        cw_ext.cw_loss_in_batch(queries, items, ids, query_ids=ids, interactions=known),
        cw_ext.cw_loss_full(queries, items, ids),
    ]
    sum(losses).backward()
assert all(tensor.grad.isfinite().all() and tensor.grad.any() for tensor in (neg, queries, items))
assert torch.equal(losses[0], cw_ext.cw_loss(pos, neg, backend="reference"))
(warning,) = caught
assert "reference" in str(warning.message), warning.message
try:
    cw_ext.cw_loss(pos, neg, backend="fused")
except RuntimeError as error:
    reason = cw_ext.build_config()["reason"]
    assert reason in str(error) and reason in str(warning.message)
print(reason)
"""


@pytest.mark.parametrize(
    ("library", "version", "why"),
    [
        # Where the tests run on an installed copy, that one has them.
        (None, torch.__version__, r"are not in \S+, the copy that was imported(; in its .* with: pip|, but they are)"),
        ("here", "2.10.1+cu128", r"need torch >= 2\.11, but torch 2\.10\.1\+cu128 is running; .*: pip install"),
        ("here", "2.9.0a0+git1", r"need torch >= 2\.11, but torch 2\.9\.0a0\+git1 is running; "),
        ("broken", torch.__version__, r"do not load \(.*file too short\); .* rebuild with: pip install"),
        ("another", torch.__version__, r"are not in \S+_cpu\.abi3\.so; .* rebuild with: pip install"),
    ],
    ids=["none", "an older torch", "a much older torch", "broken", "another"],
)
def test_a_copy_without_usable_kernels_warns_once(
    tmp_path: Path, kernels: None, library: str | None, version: str, why: str
) -> None:
    copy = tmp_path / "cw_ext"
    shutil.copytree(PACKAGE, copy, ignore=BUILT)
    if library == "here":
        built = extension._library(PACKAGE, "_cpu")
        assert built is not None
        shutil.copy(built, copy)
    elif library == "broken":
        (copy / "_cpu.abi3.so").touch()
    elif library == "another":
        module = extension._library(PACKAGE, "_C")
        assert module is not None
        shutil.copy(module, copy / "_cpu.abi3.so")
    done = run("-c", USE_WITHOUT_KERNELS, version, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert re.search(f"^the compiled kernels of cw_ext .*{why}", done.stdout), done.stdout


USE_KERNELS = """
import torch, cw_ext
scores = torch.randn(4, 5, requires_grad=True)
cw_ext.cw_loss(torch.randn(4), scores, backend="fused").backward()
assert scores.grad.any()
print(cw_ext.build_config())
"""


@pytest.mark.parametrize("version", [torch.__version__, "2.11.0", "2.100.3a0+git12"])
def test_the_library_of_the_kernels_serves_any_python_and_later_torch(
    tmp_path: Path, kernels: None, version: str
) -> None:
    """Without _C, which is another for each Python, only that is missing which it tells."""
    copy = tmp_path / "cw_ext"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("_C.*", "__pycache__"))
    pretend = f"import torch; torch.__version__ = {version!r}"
    done = run("-c", pretend + USE_KERNELS, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    config = ast.literal_eval(done.stdout)
    assert config["available"] is True
    assert [config[name] for name in ("compiler", "cpu_capabilities", "cpu_capability", "torch")] == [None] * 4
    assert config["cuda"] is True or config["cuda_reason"]


# --- two copies ---


@pytest.fixture
def clone(tmp_path: Path, checkout: Path) -> Path:
    """A checkout whose cw_ext is not built."""
    copy = tmp_path / "clone"
    for name in ("cw_ext", "benchmarks"):
        shutil.copytree(checkout / name, copy / name, ignore=BUILT)
    shutil.copy(checkout / "pyproject.toml", copy)
    return copy


@pytest.fixture
def installed(tmp_path: Path, kernels: None) -> Path:
    """The folder of an installed copy, with kernels."""
    folder = tmp_path / "installed"
    shutil.copytree(PACKAGE, folder / "cw_ext", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


WHICH = "import benchmarks, cw_ext; print(cw_ext.build_config()['available'], cw_ext.__file__, cw_ext.presets.__file__)"


def test_benchmarks_use_the_copy_that_is_built(clone: Path, installed: Path) -> None:
    done = run("-c", WHICH, cwd=clone, PYTHONPATH=str(installed))
    package, module = installed / "cw_ext" / "__init__.py", installed / "cw_ext" / "presets.py"
    assert done.stdout.split() == ["True", str(package), str(module)], done.stderr
    line = f"using the installed cw_ext, in {installed / 'cw_ext'}: the one in {clone / 'cw_ext'} is not built\n"
    assert done.stderr == line
    # Nothing is reported, or done, where there is no choice.
    done = run("-c", WHICH, cwd=clone, PYTHONPATH="")
    assert done.stdout.startswith(f"False {clone}") and not done.stderr


def test_benchmarks_stop_at_a_built_copy_of_another_version(clone: Path, installed: Path) -> None:
    (installed / "cw_ext" / "version.py").write_text('__version__ = "9.9"\n')
    done = run("-m", "benchmarks.training", "--help", cwd=clone, PYTHONPATH=str(installed))
    assert done.returncode != 0 and not done.stdout
    assert re.fullmatch(r"cw_ext \S+ in \S+ is not built, and \S+ has version 9.9; .*: pip install.*\n", done.stderr)


def test_the_warning_tells_which_copy_and_which_one_is_built(clone: Path, installed: Path) -> None:
    script = "import cw_ext; print(cw_ext.build_config()['reason'])"
    done = run("-c", script, cwd=clone, PYTHONPATH=str(installed))
    assert f"not in {clone / 'cw_ext'}, the copy that was imported" in done.stdout
    assert f"they are in {installed / 'cw_ext'}: to use that copy" in done.stdout


# --- missing extras ---


@pytest.mark.parametrize(
    ("module", "package", "extra"),
    [
        ("benchmarks.training", "matplotlib", "benchmarks"),
        ("benchmarks.demo", "tqdm", "benchmarks"),
        ("benchmarks.study", "tqdm", "benchmarks"),
        ("examples.lightning_mf", "lightning", "examples"),
    ],
)
def test_a_missing_extra_is_told_in_a_line(
    tmp_path: Path, checkout: Path, module: str, package: str, extra: str
) -> None:
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules[{package!r}] = None\n")
    done = run("-m", module, "--help", cwd=checkout, PYTHONPATH=str(tmp_path))
    assert done.returncode == 1 and not done.stdout
    assert done.stderr == (
        f'benchmarks needs {package}, which is in the extra "{extra}"; in the source tree, run: '
        f"pip install --no-build-isolation -e '.[{extra}]'\n"
    )


# --- builds ---


@pytest.fixture
def tree(tmp_path: Path, checkout: Path) -> Path:
    """A copy of the checkout, as before any build."""
    pytest.importorskip("setuptools", reason="builds need setuptools")
    copy = tmp_path / "tree"
    copy.mkdir()
    for name in TREE:
        source = checkout / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=BUILT)
        else:
            shutil.copy(source, copy)
    return copy


@pytest.fixture
def small_tree(tree: Path) -> Path:
    """With a library in the kernels' place that compiles in a second."""
    pytest.importorskip("ninja", reason="builds need ninja")
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        pytest.skip("builds need a C++ compiler")
    shutil.rmtree(tree / "csrc")
    for source, text in {
        "python/module.cpp": EMPTY_MODULE,
        "ops.cpp": EMPTY_LIBRARY,
        "cpu/ops.cpp": "",
        "cuda/ops.cpp": "",
    }.items():
        file = tree / "csrc" / source
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tree


@pytest.fixture
def without_torch(tmp_path: Path) -> str:
    """A PYTHONPATH on which torch cannot be imported."""
    folder = tmp_path / "without_torch"
    folder.mkdir()
    (folder / "torch.py").write_text("raise ImportError('hidden')")
    return str(folder)


def build_wheel(tree: Path, **environment: str) -> tuple[Path, set[str]]:
    """By the hook that pip calls: the wheel and the names of its files, without those of its metadata."""
    hook = "from setuptools import build_meta; build_meta.build_wheel('dist')"
    done = run("-c", hook, cwd=tree, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = (tree / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return wheel, {name for name in archive.namelist() if ".dist-info/" not in name}


def modules(tree: Path) -> set[str]:
    found = {str(file.relative_to(tree)) for file in (tree / "cw_ext").rglob("*.py")}
    return found | {"cw_ext/py.typed"}


def test_the_source_distribution_builds_and_tests_itself(tree: Path) -> None:
    wanted = {str(file.relative_to(tree)) for file in tree.rglob("*") if file.is_file()}
    for built in ("cw_ext/_C.cpython-311-x86_64-linux-gnu.so", "cw_ext/_cpu.abi3.so", "csrc/ops.o"):
        (tree / built).touch()
    (tree / "benchmarks" / "results").mkdir()
    (tree / "benchmarks" / "results" / "run.json").touch()
    # It compiles nothing, so it needs no compiler.
    done = run("setup.py", "-q", "sdist", cwd=tree, CXX="no-such-compiler")
    assert done.returncode == 0, done.stderr
    (file,) = (tree / "dist").glob("*.tar.gz")
    with tarfile.open(file) as archive:
        found = {member.name.partition("/")[2] for member in archive if member.isfile()}
    made = {"PKG-INFO", "setup.cfg"}
    assert {name for name in found if not name.startswith("cw_ext.egg-info/")} - made == wanted


def test_the_wheel_holds_the_libraries(small_tree: Path) -> None:
    expected = modules(small_tree)
    wheel, found = build_wheel(small_tree, USE_CUDA="0")
    module, library = sorted(found - expected)
    assert re.fullmatch(r"cw_ext/_C\..*\.(so|pyd)", module) and expected < found
    assert re.fullmatch(r"cw_ext/_cpu(\.abi3)?\.(so|pyd)", library)
    assert not wheel.name.endswith("none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        fields = BytesParser().parsebytes(archive.read(metadata))
    assert fields["Version"] == cw_ext.__version__
    needs = {re.split(r"[^\w]", need)[0]: need for need in fields.get_all("Requires-Dist")}
    assert needs["torch"] == "torch>=" + ".".join(map(str, extension.MINIMUM_TORCH))


def test_a_build_in_place(small_tree: Path) -> None:
    done = run("setup.py", "-q", "build_ext", "--inplace", cwd=small_tree, USE_CUDA="0")
    assert done.returncode == 0, done.stderr
    assert [file.name.partition(".")[0] for file in sorted((small_tree / "cw_ext").glob("_*.so"))] == ["_C", "_cpu"]


def test_the_build_and_the_loader_name_the_same_torch(checkout: Path) -> None:
    (line,) = re.findall(r"(?m)^MINIMUM_TORCH = \((\d+), (\d+)\)$", (checkout / "setup.py").read_text(encoding="utf-8"))
    assert tuple(map(int, line)) == extension.MINIMUM_TORCH


def test_a_wheel_without_kernels_needs_neither_torch_nor_a_compiler(tree: Path, without_torch: str) -> None:
    expected = modules(tree)
    environment = {"USE_KERNELS": "0", "CXX": "no-such-compiler", "PYTHONPATH": without_torch}
    wheel, found = build_wheel(tree, **environment)
    assert found == expected
    assert wheel.name.endswith("-py3-none-any.whl")


def test_an_editable_install_is_found_from_the_folder_that_holds_the_clone(tree: Path, without_torch: str) -> None:
    """There the clone's own folder has the package's name."""
    clone = tree.rename(tree.parent / "cw_ext")
    hook = "from setuptools import build_meta; build_meta.build_editable('dist')"
    done = run("-c", hook, cwd=clone, USE_KERNELS="0", PYTHONPATH=without_torch)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = (clone / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(clone.parent / "site")
    code = "import site; site.addsitedir('site'); import cw_ext; print(cw_ext.presets.__file__)"
    done = run("-W", "ignore", "-c", code, cwd=clone.parent)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == clone / "cw_ext" / "presets.py"


NO_TOOLKIT = "/no/toolkit"
# What the process that builds finds.
OLD_SETUPTOOLS = "import setuptools; setuptools.__version__ = '65.5.0'"
OLD_TORCH = "import torch; torch.__version__ = '2.10.1+cu128'"
NO_PYBIND11 = "import sys; sys.modules['pybind11'] = None"
CUDA_TORCH = """
import torch
torch.version.cuda, torch.cuda._is_compiled, torch.cuda.is_available = "13.0", lambda: True, lambda: True
"""
CPU_TORCH = "import torch; torch.version.cuda = None"


@pytest.mark.parametrize(
    ("environment", "found", "message"),
    [
        ({"CXX": "no-such-compiler"}, "", "needs a C.. compiler, and 'no-such-compiler' is not here: .*USE_KERNELS=0"),
        ({"USE_KERNELS": "no"}, "", "USE_KERNELS must be 0 or 1, got 'no'"),
        ({"USE_CUDA": "yes"}, "", "USE_CUDA must be 0 or 1, got 'yes'"),
        ({}, OLD_SETUPTOOLS, "needs setuptools >= 77, found 65.5.0: run `pip install "),
        ({"USE_KERNELS": "0"}, OLD_SETUPTOOLS, "needs setuptools >= 77, found 65.5.0: run `pip install "),
        ({}, OLD_TORCH, r"needs torch >= 2\.11, found 2\.10\.1\+cu128"),
        ({}, NO_PYBIND11, "pybind11 is not here: install torch >= 2.11 and pybind11, .*USE_KERNELS=0"),
        (
            {"USE_CUDA": "1", "CUDA_HOME": NO_TOOLKIT},
            CUDA_TORCH,
            f"toolkit is missing: set CUDA_HOME to the folder with its include/cuda_runtime.h, got {NO_TOOLKIT}",
        ),
        ({"USE_CUDA": "1"}, CPU_TORCH, r"but torch \S+ has no CUDA: install a CUDA build of torch"),
    ],
)
def test_a_build_that_cannot_be_says_why(
    tree: Path, tmp_path: Path, environment: dict[str, str], found: str, message: str
) -> None:
    """In one line, and compiles nothing."""
    (tmp_path / "sitecustomize.py").write_text(found)
    done = run("setup.py", "-q", "build_ext", cwd=tree, PYTHONPATH=str(tmp_path), **environment)
    assert done.returncode == 1 and not done.stdout
    assert re.fullmatch(f".*{message}.*\n", done.stderr), done.stderr
    assert not list((tree).glob("build/**/*.o"))


@pytest.mark.parametrize("environment", [{"CUDA_HOME": NO_TOOLKIT}, {"USE_CUDA": "0"}], ids=["none", "USE_CUDA=0"])
def test_a_cuda_torch_without_a_toolkit_builds_for_the_cpu(
    small_tree: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    (tmp_path / "sitecustomize.py").write_text(CUDA_TORCH)
    in_place = ("setup.py", "-q", "build_ext", "--inplace")
    done = run(*in_place, cwd=small_tree, PYTHONPATH=str(tmp_path), **environment)
    assert done.returncode == 0, done.stderr
    assert "CUDA" not in done.stdout + done.stderr
    assert [file.name.partition(".")[0] for file in sorted((small_tree / "cw_ext").glob("_*.so"))] == ["_C", "_cpu"]


def test_a_build_without_torch_says_so(tree: Path, without_torch: str) -> None:
    done = run("setup.py", "-q", "build_ext", cwd=tree, PYTHONPATH=without_torch)
    assert done.returncode != 0
    assert "install torch >= " in done.stderr and "USE_KERNELS=0" in done.stderr and "Traceback" not in done.stderr


# --- types ---

RIGHT = """
import numpy as np
import torch
from torch import Tensor

import cw_ext
from cw_ext import (
    Candidates, CWEmbeddingLoss, CWFullLoss, CWInBatchLoss, CWLoss, CWSampledLoss, FalseNegatives, Interactions,
    LikelyPositives, ScoreCurve, TopKThreshold, build_config, candidate_scores, cw_loss, cw_loss_from_embeddings,
    cw_loss_full, cw_loss_in_batch, draw_negatives, encode_in_micro_batches, presets, prior, sampled_cw_loss, samplers,
)
from cw_ext.false_negatives import cvir_log_weights, delayed_weights

version: str = cw_ext.__version__
capability = build_config()["available"]
pos, neg = torch.randn(4), torch.randn(4, 5)
queries, items, ids = torch.randn(4, 3), torch.randn(9, 3), torch.arange(4)


def learned(thresholds: TopKThreshold) -> Tensor:
    beta = thresholds.threshold(ids)
    loss: Tensor
    loss, above = cw_loss(pos, neg, confidence_threshold=beta, return_above=True)
    thresholds.update(ids, above, num_negatives=5)
    return loss


def encoded() -> list[Tensor]:
    module, function = torch.nn.Linear(3, 2), torch.nn.functional.linear
    return [
        encode_in_micro_batches(module, queries, 2),
        encode_in_micro_batches(function, (queries, queries), micro_batch_size=2),
        encode_in_micro_batches(lambda **x: module(x["input"]), {"input": queries}, 2),
    ]


def likely(known: Interactions) -> Tensor:
    return LikelyPositives.by_walks(known, 20, power=2).draw(ids, 5, seed=1)


def on_scores(beta: Tensor) -> list[Tensor]:
    return [
        cw_loss(pos, neg),
        cw_loss(pos, neg, extra_pos_scores=neg, neg_log_weights=neg, row_weights=pos, temperature=1, prior=pos),
        cw_loss(pos, neg, weighting="linear", weight_temperature=None, detach_weights=False, normalize_weights=True),
        cw_loss(pos, neg, floor=0.5, min_margin=-1.0, confidence_temperature=2.0, confidence_threshold=beta),
        cw_loss(pos, neg, include_positive=True, surrogate="tanh", reduction="sum", backend="auto"),
        cw_loss(pos, neg, temperature=pos, positive_temperature=0.2, score_curve=ScoreCurve(0, 1, pos, on="margin")),
        cw_loss(pos, neg, score_curve=FalseNegatives.fit(pos, [0.1, 0.2], 0.1, family="isotonic").curve(knots=9)),
        cw_loss(pos, neg, neg_log_weights=FalseNegatives.fit(pos, neg, 0.1).log_weights(neg, strength=2)),
        cw_loss(pos, neg, neg_log_weights=cvir_log_weights(neg, 0.1), row_weights=delayed_weights(ids, pos)),
        cw_loss(pos, neg, **presets.sl(0.1)),
        cw_loss(pos, neg, **presets.sl(), reduction="sum", prior=0.1),
        cw_loss(pos, neg, **presets.infonce(temperature=0.1), backend="reference"),
        cw_loss(pos, neg, **presets.dcl(0.1, prior=0.05)),
        cw_loss(pos, neg, **presets.pucl(label_frequency=0.2), floor=0.1),
        cw_loss(pos, neg, **presets.hcl(concentration=2.0)),
        cw_loss(pos, neg, **presets.psl(surrogate="relu")),
        cw_loss(pos, neg, **presets.bsl(0.2)),
        cw_loss(pos, neg, **presets.slk(), confidence_threshold=beta),
        cw_loss(pos, neg, **presets.cw(confidence_temperature=None), reduction="none"),
    ]


def on_ids(seed: Tensor) -> list[Tensor]:
    known = Interactions([0, 1], np.array([1, 2]), num_queries=4, num_items=9).to("cpu")
    drawn = draw_negatives(ids, known, 5, seed=3, distribution="popularity", popularity_exponent=1)
    draws = (queries, items, ids, ids, known, 5)
    in_stock: Candidates = known.candidates(torch.tensor([1, 5]))
    return [
        cw_loss_from_embeddings(queries, items, ids, drawn, similarity="dot", sparse_grad=True, prior=0.1),
        cw_loss_from_embeddings(queries, torch.nn.Embedding(9, 3), ids, drawn, **presets.sl(5.0, similarity="dot")),
        sampled_cw_loss(*draws, seed=seed, shared=True, recompute=False, **presets.cw(prior=0.02)),
        sampled_cw_loss(*draws, seed=1, first_row=4, popularity_smoothing=1, candidates=in_stock),
        cw_loss_in_batch(queries, items, ids, query_ids=ids, interactions=known, num_negatives=3),
        cw_loss_full(queries, items, ids, extra_pos_ids=None, weighting="none", include_positive=True),
        candidate_scores(queries, torch.nn.Embedding(9, 3), drawn, similarity="dot", backend="fused"),
    ]


def by_score(sampler: samplers.Sampler) -> Tensor:
    drawn: samplers.Negatives = sampler.draw(queries, items, ids, ids, seed=1)
    sampler.update(queries, items, ids, ids, epoch=2)
    return cw_loss_from_embeddings(queries, items, ids, drawn.ids, neg_log_weights=drawn.log_weights)


def all_by_score(known: Interactions) -> list[Tensor]:
    weights: list[samplers.LogWeight] = [
        samplers.softmax(0.1), samplers.fne((0.6, 0.1, 0.3, 0.1), margin=0.2), lambda scores, pos_scores: scores
    ]
    drawn = [by_score(samplers.Scored(known, 5, log_weight=weight, num_candidates=None)) for weight in weights]
    chain = samplers.Chain(known, 5, temperature=0.1)
    return [*drawn, by_score(samplers.Uniform(known, 5)), by_score(samplers.Memory(known, size=9)), by_score(chain)]


def as_modules(beta: Tensor) -> list[Tensor]:
    known = Interactions.from_file("train.tsv", num_queries=4)
    return [
        CWLoss(**presets.dcl(temperature=0.1, prior=0.05), reduction="sum")(pos, neg, row_weights=pos),
        CWLoss(prior=0.1)(pos, neg, prior=0.2, confidence_threshold=beta),
        CWEmbeddingLoss(similarity="cosine", **presets.sl())(queries, items, ids, ids),
        CWSampledLoss(known, num_negatives=5, distribution="uniform", floor=0.2)(queries, items, ids, ids, seed=1),
        CWInBatchLoss(known, log_q_correction=False)(queries, items, ids, query_ids=ids),
        CWFullLoss(temperature=0.2)(queries, items, ids, query_ids=None),
    ]


estimate = prior.estimate_prior(pos, np.zeros(3), confidence=0.9)
loss = cw_loss(pos, neg, prior=min(estimate.prior, 0.99))
"""

# Each line is one mistake.
WRONG_START = """
import torch
from cw_ext import CWLoss, CWSampledLoss, Interactions, candidate_scores, cw_loss, cw_loss_from_embeddings
from cw_ext import draw_negatives, encode_in_micro_batches, presets, samplers
x, ids = torch.randn(4), torch.arange(4)
known = Interactions(ids, ids, num_queries=4, num_items=9)
"""
WRONG = """
cw_loss(x, x, temprature=0.1)
cw_loss(x, x, temperature="hot")
cw_loss(x, x, score_curve=x)
cw_loss(x, x, weighting="sigmoidal")
cw_loss(x, x, reduction=None)
cw_loss(x, [0.1])
cw_loss(x, x, **presets.sl(0.1), temperature=0.2)
cw_loss(x, x, **presets.dcl(prior="0.1"))
cw_loss_from_embeddings(x, x, ids, ids, similarity="euclidean")
candidate_scores(x, x, ids, similarity="euclidean")
draw_negatives(ids, known, 5, distribution="zipf")
encode_in_micro_batches(CWLoss(), "text", 2)
samplers.Memory(known, 1, similarity="euclidean")
samplers.Scored(known, 5, log_weight=0.1)
CWLoss(detach_weights="no")
CWLoss()(x, x, priors=0.1)
CWSampledLoss(None, 5)
presets.psl(surrogate="exponential")
presets.sl(similarity="euclidean")
cw_loss_from_embeddings(x, torch.nn.Linear(3, 9), ids, ids)
int(cw_loss(x, x).mean)
""".strip().splitlines()


def test_a_users_code_is_checked(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """What is right passes mypy --strict; of what is wrong, each line is refused."""
    pytest.importorskip("mypy", reason="types are checked with mypy: pip install mypy")
    assert all(re.search(rf"\b{name}\b", RIGHT) for name in cw_ext.__all__)
    (tmp_path / "right.py").write_text(RIGHT)
    (tmp_path / "wrong.py").write_text(WRONG_START + "\n".join(WRONG) + "\n")
    assert request.config.cache is not None
    cache = request.config.cache.mkdir("mypy")  # torch's own types take half a minute
    # An installed package is found as that, by its py.typed; one in a checkout by its path.
    installed = "site-packages" in PACKAGE.parts
    environment = {} if installed else {"MYPYPATH": str(PACKAGE.parent)}
    options = ("--strict", "--follow-imports=silent", f"--cache-dir={cache}", "--hide-error-context")
    done = run("-m", "mypy", *options, "right.py", "wrong.py", cwd=tmp_path, **environment)
    errors = re.findall(r"(?m)^(\w+)\.py:(\d+): error: .*$", done.stdout)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "right" not in {file for file, _ in errors}, done.stdout
    first = 1 + len(WRONG_START.splitlines())
    missed = {text for n, text in enumerate(WRONG, first) if ("wrong", str(n)) not in errors}
    assert not missed, done.stdout
    assert all(int(line) >= first for _, line in errors), done.stdout
