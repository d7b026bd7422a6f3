"""The built site in headless Chromium."""

from __future__ import annotations

import contextlib
import functools
import http.server
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

SITE = Path(__file__).parents[2] / "docs" / "_build" / "html"
CHROMIUM = shutil.which("chromium")


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


class _Server(http.server.ThreadingHTTPServer):
    def handle_error(self, *arguments: object) -> None:
        pass  # the browser left a page before it had all of it


@contextlib.contextmanager
def served_site() -> Iterator[str]:
    """The address of a server for docs/_build/html, which `make docs` has built."""
    if not (SITE / "index.html").exists():
        pytest.fail("docs/_build/html is not here: run make docs", pytrace=False)
    handler = functools.partial(_Quiet, directory=str(SITE))
    with _Server(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def chromium() -> Iterator[object]:
    """A playwright Browser: Debian's chromium."""
    api = pytest.importorskip("playwright.sync_api", reason='playwright is of the extra "docs"')
    if CHROMIUM is None:
        pytest.fail("chromium is not on PATH (Debian: apt-get install chromium)", pytrace=False)
    # As root, as in a container, Chromium needs --no-sandbox.
    options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        try:
            yield browser
        finally:
            browser.close()
