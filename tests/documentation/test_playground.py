"""The playground of the documentation, in headless Chromium: its numbers are cw_ext's, and it works by keyboard."""

from __future__ import annotations

import contextlib
import io
import math
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cw_ext import cw_loss, presets
from cw_ext.parameters import DEFAULTS, SURROGATES, WEIGHTINGS, Weighting

sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")

CHECKOUT = Path(__file__).parents[2]
PAGE = CHECKOUT / "docs" / "how-it-works" / "playground.md"
CHROMIUM = Path("/usr/bin/chromium")
SETTINGS = 200

pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason="needs chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page's own HTML, without the site around it."""
    raw = re.search(r"```\{raw\} html\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert raw is not None
    body = raw[1].replace("../_static/", (CHECKOUT / "docs" / "_static").as_uri() + "/")
    page = tmp_path_factory.mktemp("playground") / "page.html"
    page.write_text(f'<!doctype html><meta charset="utf-8"><title>playground</title><h1>playground</h1>{body}')
    return page.as_uri()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """Opened. It must not raise, print, or ask for anything but the project's files."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: request.url.startswith("file:") or complaints.append(request.url))
    page.goto(address)
    yield page
    page.close()
    assert not complaints


# ---- the formula ----------------------------------------------------------------------------------------------------


def random_settings(seed: int) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Rows, and the arguments of the loss: first each weighting with and without a floor that binds, then anything."""
    r = random.Random(seed)
    for k in range(SETTINGS):
        weighting = WEIGHTINGS[k % len(WEIGHTINGS)]
        loss: dict[str, Any] = {
            "weighting": weighting,
            "temperature": 10 ** r.uniform(-1.7, 0.3),
            "prior": r.choice([0.0, r.uniform(0, 0.3), r.uniform(0.3, 0.95)]),
            "floor": r.uniform(0.02, 1),
            "weight_temperature": r.choice([None, 10 ** r.uniform(-1.5, 0.5)]),
            "positive_temperature": r.choice([None, 10 ** r.uniform(-1.5, 0.5)]),
        }
        if weighting == "exponential" and r.random() < 0.3:
            loss["weight_temperature"] = -(10 ** r.uniform(-1, 0.5))
        if k >= SETTINGS // 2:
            loss |= {
                "detach_weights": r.random() < 0.5,
                "normalize_weights": r.random() < 0.5,
                "min_margin": r.choice([None, r.uniform(-1, 0.5)]),
                "confidence_temperature": r.choice([None, 10 ** r.uniform(-1, 0.7)]),
                "confidence_threshold": r.uniform(-0.5, 0.5),
                "include_positive": r.random() < 0.5,
                "surrogate": r.choice(SURROGATES),
            }
        spread, n = r.choice([0.1, 0.3, 1.0, 3.0]), r.randint(1, 60)
        scores: dict[str, Any] = {
            "pos": r.gauss(0.1, spread),
            "negatives": [r.gauss(-0.1, spread) for _ in range(n)],
            "extras": [r.gauss(0.0, spread) for _ in range(r.choice([0, 1, 5, 20]))],
        }
        if k % 3 == 0:
            scores["logWeights"] = [r.choice([-math.inf, r.gauss(0, 1), r.gauss(0, 1)]) for _ in range(n)]
        yield scores, loss


def by_reference(scores: dict[str, Any], loss: dict[str, Any]) -> tuple[Tensor, list[Tensor]]:
    """The loss, and the gradients of the positive, the negatives and the extra positives."""
    names = ("pos", "negatives", "extras")
    leaves = [torch.tensor(scores[name], dtype=torch.float64).requires_grad_() for name in names]
    weights = torch.tensor(scores["logWeights"], dtype=torch.float64) if "logWeights" in scores else None
    value = cw_loss(
        leaves[0], leaves[1], extra_pos_scores=leaves[2], neg_log_weights=weights, backend="reference", **loss
    )
    gradients = torch.autograd.grad(value, leaves, materialize_grads=True, allow_unused=True)
    return value.detach(), list(gradients)


def assert_near(got: Any, expected: Tensor, about: Any) -> None:
    error = (torch.tensor(got, dtype=torch.float64) - expected).abs() / expected.abs().clamp(min=1)
    assert error.numel() == 0 or error.max() <= 1e-6, (about, got, expected)


def test_numbers_are_those_of_the_reference(page: Any) -> None:
    settings = list(random_settings(seed=0))
    rows = page.evaluate("given => given.map(([scores, loss]) => CwRow.row(scores, loss))", settings)
    bound = {weighting: [0, 0] for weighting in WEIGHTINGS}
    for (scores, loss), row in zip(settings, rows, strict=True):
        value, gradients = by_reference(scores, loss)
        about = (scores, loss)
        assert_near(row["loss"], value, about)
        for name, expected in zip(("pos", "negatives", "extras"), gradients, strict=True):
            assert_near(row["gradients"][name], expected, (name, *about))
        bound[loss["weighting"]][row["binds"]] += 1
    assert min(min(counts) for counts in bound.values()) >= 5, bound


def test_the_floor_binds_where_the_extra_positives_get_no_gradient(page: Any) -> None:
    rows = [(scores, loss) for scores, loss in random_settings(seed=1) if scores["extras"] and loss["prior"] > 0]
    binds = page.evaluate("given => given.map(([scores, loss]) => CwRow.row(scores, loss).binds)", rows)
    for (scores, loss), bound in zip(rows, binds, strict=True):
        of_extras = by_reference(scores, loss)[1][2]
        assert not bound or not of_extras.any(), (scores, loss)


def test_defaults_are_those_of_the_package(page: Any) -> None:
    defaults = page.evaluate("() => CwRow.DEFAULTS")
    assert defaults == {name: DEFAULTS[name] for name in defaults}  # type: ignore[literal-required]


def test_a_row_without_negative_mass(page: Any) -> None:
    masked = {"pos": 0.1, "negatives": [0.2, 0.3], "extras": [0.1], "logWeights": [-math.inf, -math.inf]}
    for scores, loss in ((masked, {}), ({"pos": 0.0, "negatives": [1.5]}, {"weighting": "linear"})):
        row = page.evaluate("([scores, loss]) => CwRow.row(scores, loss)", [scores, loss])
        assert (
            row["loss"] == 0 and not row["live"] and row["gradients"]["negatives"] == [0.0] * len(scores["negatives"])
        )


# ---- the page -------------------------------------------------------------------------------------------------------


def printed_by_python(page: Any) -> float:
    """The loss that the Python program on the page prints."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(page.locator("pre.code").text_content(), {})
    return float(re.search(r"tensor\((.*?),", printed.getvalue())[1])  # type: ignore[index]


def shown_loss(page: Any) -> float:
    return float(page.locator("output.number").text_content().replace("−", "-"))


def test_sliders_move_by_keyboard_and_show_what_python_computes(page: Any) -> None:
    assert shown_loss(page) == pytest.approx(printed_by_python(page), abs=1e-3)
    seen = {shown_loss(page)}
    for name, key, times in (
        ("temperature", "ArrowRight", 8),
        ("prior", "ArrowRight", 12),
        ("extras", "ArrowRight", 10),
        ("floor", "End", 1),
        ("pos", "ArrowLeft", 5),
        ("margin", "Home", 1),
        ("number", "PageUp", 2),
    ):
        page.focus(f"#playground-{name}")
        for _ in range(times):
            page.keyboard.press(key)
        seen.add(shown_loss(page))
        assert shown_loss(page) == pytest.approx(printed_by_python(page), abs=1e-3), name
    assert len(seen) == 8  # each of them changed the loss
    page.get_by_label("Set Temperature of the positive τ⁺").focus()
    page.keyboard.press("Space")
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    assert shown_loss(page) == pytest.approx(printed_by_python(page), abs=1e-3)
    assert "positive_temperature=" in page.locator("pre.code").text_content()


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_every_weighting_can_be_chosen(page: Any, weighting: Weighting) -> None:
    page.select_option("#playground-weighting", weighting)
    assert shown_loss(page) == pytest.approx(printed_by_python(page), abs=1e-3)
    assert page.locator("svg .dot.cw").count() == 40  # 39 other negatives, and the place in the second plot


def test_presets_are_those_of_the_package(page: Any) -> None:
    given: dict[str, Any] = {
        "cw": presets.cw(),
        "likely": {"weighting": "none", "prior": 0.1},  # the recipe of presets.cw's documentation
        "sl": presets.sl(),
        "infonce": presets.infonce(),
        "dcl": presets.dcl(),
        "slk": presets.slk(),
        "psl": presets.psl(),
    }
    options = page.locator("#playground-preset option").evaluate_all("all => all.map(x => x.value).filter(x => x)")
    assert sorted(options) == sorted(given)
    for name, loss in given.items():
        page.select_option("#playground-preset", name)
        names: dict[str, Any] = {}
        code = page.locator("pre.code").text_content().replace("print(loss)", "")
        exec(code, names)
        extra = names.get("extra")
        assert (extra is not None) == (name == "likely")
        assert names["loss"] == cw_loss(names["pos"], names["neg"], extra_pos_scores=extra, **loss), name
        assert shown_loss(page) == pytest.approx(names["loss"].item(), abs=1e-3)
    page.get_by_role("button", name="Reset").press("Enter")
    assert page.input_value("#playground-preset") == "cw"


def test_it_says_where_the_floor_binds(page: Any) -> None:
    assert page.locator("svg .bound").count() == 0
    page.select_option("#playground-preset", "likely")
    page.focus("#playground-prior")
    page.keyboard.press("End")
    assert "the floor leaves 30.0 %" in page.locator(".reading").text_content()
    assert page.locator("svg .bound").count() > 0


def test_dragging_moves_the_negative(page: Any) -> None:
    margin = page.locator("output[for=playground-margin]")
    box = page.locator(".drag svg").bounding_box()
    page.mouse.move(box["x"] + 60, box["y"] + 100)
    page.mouse.down()
    assert float(margin.text_content().replace("−", "-")) < -0.6
    page.mouse.move(box["x"] + box["width"] - 60, box["y"] + 100, steps=4)
    page.mouse.up()
    assert float(margin.text_content()) > 0.6
    page.mouse.move(box["x"] + 60, box["y"] + 100)
    assert float(margin.text_content()) > 0.6


def test_the_address_keeps_the_settings(page: Any, address: str) -> None:
    page.select_option("#playground-weighting", "linear")
    page.focus("#playground-prior")
    page.keyboard.press("PageUp")
    page.wait_for_function("location.search.includes('prior')")
    before = shown_loss(page)
    page.reload()
    assert shown_loss(page) == before and page.input_value("#playground-weighting") == "linear"
    page.goto(address + "?temperature=nan&prior=7&weighting=other&extras=3.4&nothing=1&min_margin=")
    assert page.locator("output[for=playground-prior]").text_content() == "0.900"
    assert page.locator("output[for=playground-extras]").text_content() == "3"
    assert math.isfinite(shown_loss(page))


def test_any_settings_show_what_python_computes(page: Any, address: str) -> None:
    r = random.Random(2)
    for _ in range(15):
        settings = {
            "weighting": r.choice(WEIGHTINGS),
            "temperature": r.choice([0.02, 0.1, 1]),
            "weight_temperature": r.choice(["", 0.02, 2]),
            "prior": r.choice([0, 0.1, 0.9]),
            "extras": r.choice([0, 1, 40]),
            "floor": r.choice([0.05, 0.3, 1]),
            "positive_temperature": r.choice(["", 0.02, 1]),
            "pos": r.choice([-0.4, 0, 0.4]),
            "margin": r.choice([-0.7, 0, 0.7]),
            "number": r.choice([2, 40, 200]),
            "include_positive": r.choice(["true", "false"]),
            "detach_weights": r.choice(["true", "false"]),
            "normalize_weights": r.choice(["true", "false"]),
            "min_margin": r.choice(["", -1, 0.5]),
            "confidence_temperature": r.choice(["", 0.05, 5]),
            "surrogate": r.choice(SURROGATES),
        }
        page.goto(f"{address}?{'&'.join(f'{name}={value}' for name, value in settings.items())}")
        assert shown_loss(page) == pytest.approx(printed_by_python(page), rel=1e-3, abs=1e-4), settings
        assert not re.search("NaN|Infinity", page.locator("#cw-playground").inner_html()), settings


@pytest.mark.parametrize("width", [360, 390, 768, 1280])
def test_it_fits(page: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    page.locator("details").evaluate_all("all => all.forEach(x => { x.open = true; })")
    page.wait_for_timeout(100)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
