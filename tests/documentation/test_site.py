"""The documentation site as a reader has it: on a screen and on a phone, light and dark, without a network."""

from __future__ import annotations

import functools
import html
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from documentation.browser import SITE, chromium, served_site

# One worker serves and looks at the whole site.
pytestmark = pytest.mark.xdist_group("site")

PAGES = sorted(str(page.relative_to(SITE)) for page in SITE.rglob("*.html") if "_static" not in page.parts)
NOT_WRITTEN = ("genindex", "search")  # Sphinx makes these
SIZES = {"screen": (1280, 900), "phone": (390, 844)}

# What makes the page or its text scroll sideways, and what is cut off. Code, tables, formulas and large pictures scroll
# by themselves. The theme lets the whole article scroll too, which hides what is too wide from the page's own width.
TOO_WIDE = """() => {
  const scrollers = [document.documentElement, ...document.querySelectorAll('.bd-article-container')];
  const found = [...document.querySelectorAll('.prev-next-area a')].filter(e => e.scrollWidth > e.clientWidth + 1);
  for (const scroller of scrollers.filter(e => e.scrollWidth > e.clientWidth)) {
    const right = scroller.getBoundingClientRect().left + scroller.clientWidth;
    const wide = [...scroller.querySelectorAll('*')].filter(e => e.getBoundingClientRect().right > right + 1);
    found.push(scroller, ...wide.slice(0, 5));
  }
  return found.map(e => e.tagName + '.' + e.className + ' ' + e.textContent.trim().slice(0, 60));
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
      'article h1, article h2, article h3, article svg text, article mjx-container')) {
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


# Pictures that did not load, and in dark pages those with a see-through corner and no light ground behind them: plots
# have dark text.
UNREADABLE_PICTURES = """() => [...document.querySelectorAll('article img')].filter(i => {
  if (!i.checkVisibility() || !i.complete) return false;
  if (!i.naturalWidth) return true;
  const dark = document.documentElement.dataset.theme === 'dark' && !i.matches('.only-dark, .dark-light');
  if (!dark || getComputedStyle(i).backgroundColor === 'rgb(255, 255, 255)') return false;
  const context = new OffscreenCanvas(1, 1).getContext('2d');
  context.drawImage(i, 0, 0);
  return context.getImageData(0, 0, 1, 1).data.some(value => value < 240);
}).map(i => i.src)"""


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
    assert window.evaluate(UNREADABLE_PICTURES) == []


# Among the first three results.
SEARCHES = {
    "temperature": "choose/temperature.html",
    "prior": "choose/prior.html",
    "faiss": "get-started/serving.html",
    "DDP": "guides/processes.html",
    "CUDA": "guides/gpu.html",
    "known positives": "api/guarantees.html#known-positives",
    "cosine": "choose/temperature.html",
    "recbole": "guides/other-libraries.html",
    "sparse": "guides/pytorch.html",
    "negative": "choose/negatives.html",
    "cw_loss": "api/scores-and-embeddings.html#cw_ext.cw_loss",
}


@pytest.mark.parametrize("query", SEARCHES)
def test_search_finds(query: str, browser: Any, address: str) -> None:
    page = browser.new_page()
    page.goto(f"{address}/search.html?q={query}", wait_until="load")
    page.wait_for_selector("#search-results ul.search li a")
    page.wait_for_function("document.querySelector('#search-results .search-summary')?.textContent.includes('found')")
    links = page.eval_on_selector_all(
        "#search-results ul.search > li > a:first-child", "links => links.map(a => a.getAttribute('href'))"
    )
    page.close()
    assert any(link.endswith(SEARCHES[query]) for link in links[:3]), links[:5]


def copied(page: Any, block: Any) -> str:
    block.hover()
    block.locator("button.copybtn").click()
    page.wait_for_selector("button.copybtn.success")
    return page.evaluate("navigator.clipboard.readText()").strip()


def test_code_copies(browser: Any, address: str) -> None:
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.set_default_timeout(10_000)
    page.goto(f"{address}/get-started/tutorial.html", wait_until="load")
    for block in page.locator("article div.highlight", has=page.locator("pre")).all()[:2]:
        assert copied(page, block) == block.locator("pre").inner_text().strip()
    # An example of a docstring: the program, without the prompts and what it prints.
    page.goto(f"{address}/api/scores-and-embeddings.html", wait_until="load")
    block = page.locator("article div.highlight", has=page.locator("pre .go")).first
    program = copied(page, block)
    assert ">>>" not in program
    shown = [line[4:] for line in block.locator("pre").inner_text().splitlines() if line.startswith((">>> ", "... "))]
    assert program.splitlines() == shown
    context.close()


def test_it_works_without_a_server(browser: Any) -> None:
    page = browser.new_page()
    problems: list[str] = []
    page.on("console", lambda m: problems.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto((SITE / "how-it-works" / "formula.html").as_uri(), wait_until="load")
    page.wait_for_selector("article mjx-container svg")
    page.goto((SITE / "how-it-works" / "playground.html").as_uri(), wait_until="load")
    page.wait_for_selector("#cw-playground output.number")
    assert problems == []
    # The browser forbids the search to fetch the lines around the word, and says so. The results come without them.
    page.goto((SITE / "search.html").as_uri() + "?q=temperature", wait_until="load")
    page.wait_for_selector("#search-results ul.search li a")
    page.close()


def test_a_dark_page_prints_in_light_colours(browser: Any, address: str) -> None:
    context = browser.new_context(color_scheme="dark")
    page = context.new_page()
    page.goto(f"{address}/get-started/tutorial.html", wait_until="load")
    theme = "document.documentElement.dataset.theme"
    page.evaluate(f"addEventListener('beforeprint', () => {{ window.printedIn = {theme}; }})")
    assert page.evaluate(theme) == "dark"
    page.pdf()
    assert (page.evaluate("window.printedIn"), page.evaluate(theme)) == ("light", "dark")
    context.close()


# ---- what the files say ---------------------------------------------------------------------------------------------


@functools.cache
def source(name: str) -> str:
    return (SITE / name).read_text(encoding="utf-8")


@functools.cache
def anchors(name: str) -> Counter[str]:
    return Counter(html.unescape(found) for found in re.findall(r'\sid="([^"]+)"', source(name)))


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    folder = (SITE / name).parent
    assert [anchor for anchor, count in anchors(name).items() if count > 1] == []
    for link in set(re.findall(r'\s(?:href|src)="([^"]*)"', source(name))):
        parts = urlsplit(html.unescape(link))
        if parts.scheme:
            assert parts.scheme in ("https", "data"), link
            continue
        file = (folder / unquote(parts.path)).resolve() if parts.path else SITE / name
        assert file.is_file(), link
        if parts.fragment and file.suffix == ".html":
            assert unquote(parts.fragment) in anchors(str(file.relative_to(SITE))), link


@pytest.mark.parametrize("name", [name for name in PAGES if not name.startswith(NOT_WRITTEN)])
def test_headings_and_pictures_are_described(name: str) -> None:
    article = re.search(r"<article.*?</article>", source(name), re.DOTALL)
    assert article is not None
    levels = [int(level) for level in re.findall(r"<h([1-6])\b", article[0])]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False)), levels
    for image in re.findall(r"<img\b[^>]*>", article[0]):
        described = re.search(r'alt="([^"]*)"', image)
        assert described is not None and " " in described[1], image


def test_no_two_pages_have_the_same_title() -> None:
    titles = Counter(re.search(r"<title>(.*?)</title>", source(name), re.DOTALL)[1] for name in PAGES)  # type: ignore[index]
    assert max(titles.values()) == 1


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
