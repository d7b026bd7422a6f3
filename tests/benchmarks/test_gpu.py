"""What the benchmarks report of a GPU, and the command that runs all that needs one, played through without one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks.common import gpu, reporting, timing
from benchmarks.epoch import __main__ as epoch
from benchmarks.item_sums import __main__ as item_sums
from benchmarks.throughput import __main__ as throughput
from benchmarks.training import __main__ as training

# --- benchmarks/common/gpu.py ---


def test_the_bandwidth_of_a_copy_counts_what_is_read_and_what_is_written(monkeypatch):
    seconds = iter([100.0, *([1.0, 2.0, 3.0] * gpu.COPIES)])  # the first one warms up
    monkeypatch.setattr(timing, "seconds_of", lambda step, synchronize: step() is not None and next(seconds))
    assert gpu.copy_bytes_per_second("cpu", size=1000) == 2 * 1000 / 2.0


def test_a_result_names_its_gpu(monkeypatch):
    found = SimpleNamespace(name="Some GPU", multi_processor_count=7, L2_cache_size=8, total_memory=9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: found)
    environment = reporting.environment("cuda")
    assert [environment[name] for name in ("gpu", "multiprocessors", "l2_bytes", "gpu_memory_bytes")] == [
        "Some GPU",
        7,
        8,
        9,
    ]
    assert environment["cuda"] == torch.version.cuda
    assert "gpu" not in reporting.environment()


@pytest.mark.parametrize("benchmark", [throughput, item_sums, epoch, training])
def test_a_gpu_that_is_not_there_is_one_line(benchmark, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert benchmark.main(["--device", "cuda", "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --device cuda: expected a GPU that torch can use, got none")
    assert not (tmp_path / "out").exists()


# --- benchmarks/item_sums/__main__.py ---


def test_both_ways_to_sum_are_timed_on_the_same_pairs(monkeypatch):
    seen = {}

    def stand_in(
        sources, factor, coefficients, shared, keys, ends, table, pos_ids, neg_ids, extra_ids, similarity, way
    ):
        seen.setdefault(way, (sources, coefficients, table, pos_ids, neg_ids))
        assert all(a is b for a, b in zip(seen[way], next(iter(seen.values()))))
        return table

    monkeypatch.setattr(item_sums, "item_gradient", stand_in)
    result = item_sums.measure(3, 7, 4, 50, device="cpu")
    assert set(seen) == {"atomic", "sorted"}
    sources, coefficients, table, pos_ids, neg_ids = seen["sorted"]
    assert [tuple(t.shape) for t in seen["sorted"]] == [(3, 4), (3, 8), (50, 4), (3,), (3, 7)]
    assert neg_ids.min() >= 0 and neg_ids.max() < 50
    medians = {way: quantiles["median"] for way, quantiles in result["seconds"].items()}
    assert result["pairs"] == coefficients.numel()
    assert result["speedup_sorted"] == medians["atomic"] / medians["sorted"]
    assert f"{result['speedup_sorted']:.2f}" in item_sums.describe([result])


# --- .ci/gpu ---


@pytest.fixture
def script(checkout) -> Path:
    return checkout / ".ci" / "gpu"


def run_script(script: Path, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command, root = ["bash", str(script), *map(str, arguments)], script.parent.parent
    environment = {**os.environ, **environment}
    return subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=120)


def test_without_a_gpu_it_says_so_and_does_nothing(script, tmp_path):
    out = tmp_path / "out"
    done = run_script(script, out, PYTHON=sys.executable, CUDA_VISIBLE_DEVICES="")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f".ci/gpu: no GPU: torch {torch.__version__} finds none\n"
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "expected OUT, a directory for logs and results, got nothing"),
        (["out", "--data", "no/such/directory"], "--data: expected a directory, got 'no/such/directory'"),
        (["out", "--cce"], "--cce: expected a directory, got ''"),
        (["out", "--prebuilt", "csrc"], "--prebuilt: expected _cpu.abi3.so in "),
        (["out", "--fast"], "expected OUT [--prebuilt DIR] [--data DIR] [--cce DIR], got '--fast'"),
        (["one", "two"], "expected one OUT, got "),
    ],
)
def test_bad_arguments_are_one_line(script, arguments, complaint):
    done = run_script(script, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f".ci/gpu: {complaint}")


class Machine:
    """A tree with a copy of the script, and programs that stand in for those of a machine with a GPU.

    Attributes:
        script: the copy.
        package: where the libraries belong.
        out: where it is to write.
    """

    def __init__(self, directory: Path, script: Path) -> None:
        self.script = directory / "tree" / ".ci" / "gpu"
        self.script.parent.mkdir(parents=True)
        shutil.copy(script, self.script)
        self.package = directory / "tree" / "cw_ext"
        self.package.mkdir()
        self.out = directory / "out"
        self._calls = directory / "calls"
        self._programs = directory / "bin"
        self._programs.mkdir()
        self.program("python3", "")
        self.program("compute-sanitizer", 'while [[ $1 != */python3 ]]; do shift; done\n"$@"')
        self.program("nvidia-smi", "echo Some GPU")
        self.program("nvcc", "echo release 0.0")

    def program(self, name: str, body: str) -> None:
        """Make a program that notes how it was called; python3 also knows the GPU."""
        path = self._programs / name
        head = "#!/usr/bin/env bash\n[[ $* == *get_device_capability* ]] && echo 9.0 && exit\n"
        note = f"echo {name} \"$@\" ${{TORCH_CUDA_ARCH_LIST:-}} >>'{self._calls}'\n"
        path.write_text(f"{head}{note}{body}\n", encoding="utf-8")
        path.chmod(0o755)

    def run(self, *arguments: object) -> tuple[subprocess.CompletedProcess[str], dict[str, str], list[str]]:
        """Run the script; return what came of it, its summary by step, and the calls of python3 that ran a step."""
        path = f"{self._programs}:{os.environ['PATH']}"
        done = run_script(self.script, self.out, *arguments, PYTHON=str(self._programs / "python3"), PATH=path)
        header, *rows = (self.out / "summary.log").read_text(encoding="utf-8").splitlines()
        assert header.split() == ["step", "seconds", "result"]
        assert done.stdout.endswith("\n".join([header, *rows]) + "\n")
        results = {name: " ".join(rest) for name, _, *rest in map(str.split, rows)}
        calls = self._calls.read_text(encoding="utf-8").splitlines()
        return done, results, [call for call in calls if re.match(r"python3 (-m|setup)", call)]


@pytest.fixture
def machine(tmp_path, script) -> Machine:
    return Machine(tmp_path, script)


def test_every_step_runs_on_the_gpu_that_is_there(machine, tmp_path):
    done, results, calls = machine.run("--data", tmp_path, "--cce", machine.out.parent / "bin")
    assert done.returncode == 0
    steps = ["build", "tests", "main", "cce", "memcheck", "racecheck", "item_sums", "rest", "epoch", "training"]
    assert results == dict.fromkeys(steps, "ok")
    assert calls[0] == "python3 setup.py build_ext --inplace 9.0"
    assert [call.split()[2] for call in calls[1:]] == [
        "pytest",
        "benchmarks.throughput",
        "benchmarks.throughput",
        "pytest",
        "pytest",
        "benchmarks.item_sums",
        "benchmarks.throughput",
        "benchmarks.epoch",
        "benchmarks.training",
    ]
    assert all("--device cuda" in call for call in calls if "benchmarks." in call)
    found = re.search(rf"--out {machine.out}/main --budget (\d+) --shapes main", calls[2])
    assert found and 300 < int(found[1]) <= 360  # less the seconds that have passed
    assert calls[3].endswith(f"--shapes cce --cce {tmp_path}/bin")
    assert "--shapes rest" in calls[7]
    assert all(f"--data {tmp_path} " in call for call in calls[8:])
    logs = {path.stem for path in machine.out.glob("*.log")}
    assert logs == {*steps, "machine", "summary"}


def test_a_failed_step_does_not_keep_the_next_ones_from_running(machine):
    machine.program("python3", '[[ $* == *setup.py* ]] && echo no compiler && exit 3\n[[ $* != *"-rf"* ]]')
    done, results, calls = machine.run()
    assert done.returncode == 1
    assert results == {
        "build": "failed (3)",
        "tests": "failed (1)",
        "main": "ok",
        "memcheck": "ok",
        "racecheck": "ok",
        "item_sums": "ok",
        "rest": "ok",
    }
    assert len(calls) == 7
    assert (machine.out / "build.log").read_text(encoding="utf-8") == "no compiler\n"
    assert "no compiler\n" in done.stdout


def test_steps_end_by_their_time(machine):
    text = machine.script.read_text(encoding="utf-8")
    machine.script.write_text(text.replace("step build 110", "step build 5").replace("step tests 240", "step tests 6"))
    machine.program("python3", '[[ $* != *"-rf"* ]] || sleep 30')
    done, results, calls = machine.run()
    assert done.returncode == 1
    assert (results["build"], results["tests"], results["main"]) == ("no time left", "timed out", "ok")
    assert not any("setup.py" in call for call in calls)


@pytest.fixture
def prebuilt(tmp_path) -> Path:
    """Libraries that were built beforehand, the module of two Pythons among them, and what is none of them."""
    directory = tmp_path / "prebuilt"
    directory.mkdir()
    for name in ("_cpu.abi3.so", "_cuda.abi3.so", "_C.one.so", "_C.two.so", "notes.txt"):
        (directory / name).write_text(name, encoding="utf-8")
    return directory


def test_libraries_that_were_built_beforehand_are_taken(machine, prebuilt):
    done, results, calls = machine.run("--prebuilt", prebuilt)
    assert done.returncode == 0
    assert list(results)[:2] == ["prebuilt", "tests"]
    assert not any("setup.py" in call for call in calls)
    taken = {path.name: path.read_text(encoding="utf-8") for path in machine.package.iterdir()}
    assert taken == {name: name for name in ("_cpu.abi3.so", "_cuda.abi3.so", "_C.one.so", "_C.two.so")}


def test_libraries_that_do_not_run_are_built_after_all(machine, prebuilt):
    machine.program("python3", '[[ $* != *"import sys, torch, cw_ext"* ]]')
    done, results, calls = machine.run("--prebuilt", prebuilt)
    assert done.returncode == 1
    assert list(results.items())[:3] == [("prebuilt", "failed (1)"), ("build", "ok"), ("tests", "ok")]
    assert "setup.py build_ext" in calls[0]


def test_the_times_are_those_that_the_header_tells(script):
    text = script.read_text(encoding="utf-8")
    told = re.search(r"^#     (prebuilt .*\n#     .*)$", text, flags=re.MULTILINE)[1].replace("\n#    ", "").split(", ")
    steps = re.findall(r"^ *(?:\[\[.*\]\] \|\| )?(?:step|sanitize|throughput) (\w+ \d+)", text, flags=re.MULTILINE)
    assert steps == told
    ends = [int(step.split()[1]) for step in steps]
    assert ends == sorted(set(ends))
    assert ends[-1] <= 600


def test_the_sanitized_tests_exist(script):
    text = script.read_text(encoding="utf-8")
    names = "".join(re.findall(r"^SANITIZED\+?='(.*)'$", text, flags=re.MULTILINE)).split(" or ")
    sources = [(script.parents[1] / file).read_text() for file in set(re.findall(r"tests/test_\w+\.py", text))]
    assert all(any(f"def {name}" in source for source in sources) for name in names)
