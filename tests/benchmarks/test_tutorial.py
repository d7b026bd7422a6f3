"""The tutorial runs as a program: on MovieLens, whose results its text describes, and on another file."""

from __future__ import annotations

import importlib.util
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cases import child_environment

CHECKOUT = Path(__file__).parents[2]
PLOTS = {"data.png", "training.png", "push.png", "titles.png"}


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(CHECKOUT / "examples" / "movielens.py"), *arguments],
        cwd=folder,
        env=child_environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def numbers_of(printed: str, start: str) -> list[float]:
    """Those of the one line that begins so, after the beginning."""
    [line] = re.findall(rf"^ *{re.escape(start)}(.*)$", printed, re.MULTILINE)
    return [float(number) for number in re.findall(r"\d+(?:\.\d+)?", line)]


@pytest.mark.thorough
@pytest.mark.cpu_kernels
def test_the_text_describes_what_is_printed(tmp_path: Path) -> None:
    if importlib.util.find_spec("recbole") is None:
        pytest.skip("MovieLens-100K is not installed")
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    assert {plot.name for plot in (tmp_path / "runs" / "movielens").iterdir()} == PLOTS

    printed = done.stdout[done.stdout.index("training.png") :]
    sl, cw = (re.findall(rf"^{name}: NDCG@20 (\S+) .* (\S+) ± (\S+) ", printed, re.MULTILINE) for name in ("SL", "CW"))
    (sl_early, sl_end, sl_spread), (cw_early, cw_end, cw_spread) = ([float(x) for x in found[0]] for found in (sl, cw))
    assert cw_early > 1.3 * sl_early, "far ahead after one epoch"
    assert abs(cw_end - sl_end) < 2 * max(sl_spread, cw_spread), "level at the end"

    printed = printed[printed.index("push.png") :]
    [share] = numbers_of(printed, "hidden items are")
    of_sl, weighted, of_cw = (
        numbers_of(printed, f"{name}: ") for name in ("SL", "CW's weights only", "CW with likely positives")
    )
    assert min(of_sl) > 3 * share, "several times their share"
    assert of_cw[0] < share / 2, "nearly all removed after one epoch"
    assert all(less < more for less, more in zip(weighted, of_sl, strict=True)), "less in every epoch"
    assert numbers_of(printed, "pairs with the same gradient for SL and CW: ")[-1] > 90
    assert printed.count("✓") >= 3, "hidden items among the recommended"


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    rng = random.Random(0)
    rows = [f"c{user},sku{int(rng.paretovariate(0.7)) % 90}" for user in range(150) for _ in range(30)]
    (tmp_path / "orders.csv").write_text("\n".join(["customer,sku", *rows]), encoding="utf-8")
    done = run(tmp_path, "orders.csv")
    assert done.returncode == 0, done.stderr
    assert {plot.name for plot in (tmp_path / "runs" / "movielens").iterdir()} == PLOTS
    assert "for user c" in done.stdout and " sku" in done.stdout


def test_a_missing_file(tmp_path: Path) -> None:
    done = run(tmp_path, "nothing.csv")
    assert done.returncode == 1 and done.stderr.startswith("error: ") and "nothing.csv" in done.stderr
