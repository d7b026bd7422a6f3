"""The documentation site as a reader has it: on a screen and on a phone, light and dark, without a network."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from documentation.browser import SITE, chromium, served_site

# One worker serves and looks at the whole site.
pytestmark = pytest.mark.xdist_group("site")

PAGES = sorted(str(page.relative_to(SITE)) for page in SITE.rglob("*.html") if "_static" not in page.parts)
NOT_WRITTEN = ("genindex", "search")  # Sphinx makes these
SIZES = {"screen": (1280, 900), "phone": (390, 844)}

# What is wider than the window, but for what scrolls by itself or is hidden.
TOO_WIDE = """() => {
  const width = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth <= width) return [];
  const wide = [...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > width + 1);
  return wide.slice(0, 5).map(e => e.tagName + '.' + e.className + ' ' + e.textContent.trim().slice(0, 60))
    .concat(['the page is ' + document.documentElement.scrollWidth + ' wide']);
}"""

# Text whose contrast with the surface behind it is below WCAG's 4.5 (3 for large text).
TOO_PALE = """() => {
  const luminance = ([r, g, b]) => {
    const f = v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
    return .2126 * f(r) + .7152 * f(g) + .0722 * f(b);
  };
  const rgba = text => { const n = text.match(/[\\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n; };
  const behind = e => {
    for (; e; e = e.parentElement) {
      const style = getComputedStyle(e), color = rgba(style.backgroundColor);
      if (style.backgroundImage !== 'none') return null;
      if (color[3] === 1) return color;
      if (color[3] > 0) return null;
    }
    return [255, 255, 255, 1];
  };
  const pale = [];
  for (const e of document.querySelectorAll('article p, article li, article td, article th, article code span, ' +
      'article h1, article h2, article h3, article svg text')) {
    if (!e.textContent.trim() || !e.checkVisibility({visibilityProperty: true, opacityProperty: true})) continue;
    const style = getComputedStyle(e), svg = e instanceof SVGElement;
    const color = rgba(svg ? style.fill : style.color), ground = behind(svg ? e.ownerSVGElement : e);
    if (ground === null || color[3] < 1) continue;
    const [a, b] = [luminance(color), luminance(ground)].sort((x, y) => y - x);
    const large = parseFloat(style.fontSize) >= 24;
    if ((a + .05) / (b + .05) < (large ? 3 : 4.5)) pale.push(e.textContent.trim().slice(0, 40) + ' ' + style.color);
  }
  return [...new Set(pale)].slice(0, 5);
}"""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with served_site() as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module", params=[(s, c) for s in SIZES for c in ("light", "dark")], ids="-".join)
def window(browser: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    """A window of a size and colour scheme, with what went wrong in it as `window.problems`."""
    size, scheme = request.param
    width, height = SIZES[size]
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page = context.new_page()
    page.problems = []
    page.on("console", lambda m: page.problems.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    # What a page still loads when the next one is opened is aborted.
    page.on("requestfailed", lambda r: page.problems.append(f"{r.failure}: {r.url}") if not _aborted(r) else None)
    page.on("response", lambda r: page.problems.append(f"{r.status}: {r.url}") if r.status >= 400 else None)
    page.on("request", lambda r: page.problems.append(f"asks {r.url}") if _elsewhere(r.url) else None)
    yield page
    context.close()


def _aborted(request: Any) -> bool:
    return request.failure == "net::ERR_ABORTED"


def _elsewhere(url: str) -> bool:
    return not url.startswith(("http://127.0.0.1:", "data:", "blob:"))


def test_the_site_is_built() -> None:
    assert len(PAGES) > 30


@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_and_is_readable(name: str, window: Any, address: str) -> None:
    window.problems.clear()
    window.goto(f"{address}/{name}", wait_until="load")
    window.wait_for_function("!window.MathJax || !MathJax.startup || MathJax.startup.promise.then(() => true)")
    assert window.problems == []
    assert window.evaluate(TOO_WIDE) == []
    assert window.evaluate(TOO_PALE) == []
    broken = "[...document.images].filter(i => i.complete && !i.naturalWidth && i.checkVisibility()).map(i => i.src)"
    assert window.evaluate(broken) == []


def test_search_finds_a_word(window: Any, address: str) -> None:
    window.goto(f"{address}/search.html?q=temperature", wait_until="load")
    window.wait_for_selector("#search-results ul.search li a")
    titles = window.eval_on_selector_all("#search-results ul.search li > a", "links => links.map(a => a.textContent)")
    assert len(titles) > 5 and any("temperature" in title.lower() for title in titles)


def test_a_block_of_code_copies(browser: Any, address: str) -> None:
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.set_default_timeout(10_000)
    page.goto(f"{address}/get-started/tutorial.html", wait_until="load")
    block = page.locator("article div.highlight", has=page.locator("pre")).first
    block.hover()
    block.locator("button.copybtn").click()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.strip() == block.locator("pre").inner_text().strip()
    context.close()


def test_formulas_are_drawn(browser: Any, address: str) -> None:
    page = browser.new_page()
    page.goto(f"{address}/how-it-works/formula.html", wait_until="load")
    page.wait_for_selector("article mjx-container svg")
    assert page.locator("article mjx-merror").count() == 0


def test_the_front_page_opens_the_playground(browser: Any, address: str) -> None:
    page = browser.new_page()
    page.goto(address, wait_until="load")
    page.locator("article .sd-card", has=page.locator("a[href*='playground']")).click()
    page.wait_for_url("**/playground.html")


def test_every_page_is_two_clicks_from_the_front(browser: Any, address: str) -> None:
    page = browser.new_page()
    links = "[...document.querySelectorAll('a[href]')].map(a => a.href.split('#')[0])"

    def reached(url: str) -> set[str]:
        page.goto(url, wait_until="load")
        return {link for link in page.evaluate(links) if link.startswith(address) and link.endswith(".html")}

    first = reached(f"{address}/index.html")
    both = first.union(*(reached(link) for link in sorted(first)))
    written = {f"{address}/{name}" for name in PAGES if not name.startswith(NOT_WRITTEN)}
    assert written <= both | {f"{address}/index.html"}
