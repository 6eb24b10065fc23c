"""Debian's Chromium, driven by playwright, for tests of the live page."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PAGE = Path(__file__).parent.parent / "src/longtake/live/page"
PATIENCE = 120.0  # seconds; only a broken page needs them
NAMES = ("chromium", "chromium-browser", "google-chrome")


def find_chromium() -> str:
    """Where Chromium is. Skips the test if there is none, or nothing to drive it with."""
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip("there is no Chromium: apt-get install chromium, or name one in the variable CHROMIUM")
    return found


@contextmanager
def browsing() -> Iterator[Browser]:
    """A browser until the end of the block."""
    executable = find_chromium()
    from playwright.sync_api import sync_playwright

    # Without a sandbox as root, as in a container; and /dev/shm may be small there.
    arguments = ["--disable-dev-shm-usage"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        arguments.append("--no-sandbox")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=arguments, timeout=PATIENCE * 1000)
        try:
            yield browser
        finally:
            browser.close()


class Complaints:
    """What a browser finds wrong with a page: errors and warnings on its console, exceptions, answers that failed."""

    def __init__(self, page: Page) -> None:
        self.found: list[str] = []
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.found.append(f"exception: {error}"))

    def _console(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            where = (message.location or {}).get("url", "")
            self.found.append(f"{message.type}: {message.text} ({where})")

    def expected(self, *texts: str) -> None:
        """Takes out complaints that have one of these texts in them."""
        self.found = [text for text in self.found if not any(known in text for known in texts)]


def open_modules(browser: Browser) -> Page:
    """A page of an empty document that can import the live page's modules from `/page/`, without a server."""
    context = browser.new_context()
    types = {".js": "text/javascript", ".svg": "image/svg+xml"}

    def answer(route: Any) -> None:
        name = route.request.url.removeprefix("http://modules.test/").removeprefix("page/")
        if not name:
            route.fulfill(body="<!doctype html><title>Modules</title>", content_type="text/html")
        else:
            route.fulfill(path=PAGE / name, content_type=types.get(Path(name).suffix, "text/plain"))

    context.route("http://modules.test/**", answer)
    page = context.new_page()
    page.goto("http://modules.test/")
    return page
