"""Debian's Chromium, driven by playwright, for tests of the live page."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ENVIRONMENT, cli_command

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PAGE = Path(__file__).parent.parent / "src/longtake/live/page"
PATIENCE = 120.0  # seconds; only a broken page needs them
DESKTOP = {"width": 1280, "height": 820}
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


class Server:
    """`longtake serve` as a user starts it."""

    def __init__(self, data: Path) -> None:
        self.data, self.port, self.process = data, 0, None

    def start(self) -> None:
        """Starts it, at the same address as before."""
        options = ["--data", self.data, "--port", str(self.port), "--threads", "1", "--idle-pause", "never"]
        command = cli_command("serve", *options)
        self.process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("http://127.0.0.1:"), line
        self.port = int(re.findall(r":(\d+)", line)[0])

    def stop(self, how: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(how)
        self.process.wait(PATIENCE)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def ask(self, path: str, method: str = "GET", body: Any = None) -> Any:
        """What the API answers, the body of an error included."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, data=data, headers=headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            return json.load(error)


NAMED = {"button", "link", "textbox", "combobox", "checkbox", "spinbutton", "image", "dialog", "region", "form"}

# Text against what is behind it, as WCAG 2 computes it; nothing but the veil lies over a picture.
CONTRAST = """() => {
    const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
    const rgba = (color) => {
        canvas.clearRect(0, 0, 1, 1);
        canvas.fillStyle = color;
        canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data];
    };
    const linear = (value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
    const light = (color) => [0.2126, 0.7152, 0.0722].reduce((sum, part, i) => sum + part * linear(color[i] / 255), 0);
    const behind = (element) => {
        const color = rgba(getComputedStyle(element).backgroundColor);
        return color[3] === 255 || !element.parentElement ? color : behind(element.parentElement);
    };
    const other = ".veil, .unseen, .skip, :disabled, [aria-disabled], dialog:not([open])";
    const poor = [];
    for (const element of document.querySelectorAll("body *")) {
        const texts = [...element.childNodes].filter((node) => node.nodeType === Node.TEXT_NODE);
        const text = texts.map((node) => node.textContent.trim()).join("");
        if (!text || !element.checkVisibility() || element.closest(other)) continue;
        const both = [light(rgba(getComputedStyle(element).color)), light(behind(element))].sort((a, b) => b - a);
        const ratio = (both[0] + 0.05) / (both[1] + 0.05);
        if (ratio < 4.5) poor.push(`${text.slice(0, 30)}: ${ratio.toFixed(2)}`);
    }
    return poor;
}"""


def _small(url: str) -> np.ndarray:
    image = Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).convert("RGB")
    return np.asarray(image.resize((64, 64), Image.Resampling.BOX))


def _seconds(position: str) -> float:
    minutes, seconds = position.split(":")
    return 0.0 if "–" in minutes else int(minutes) * 60 + float(seconds)


class Visit:
    """A page that somebody has open."""

    def __init__(self, browser: Any, server: Server, **context: Any) -> None:
        self.server = server
        self.context = browser.new_context(**{"viewport": DESKTOP, "color_scheme": "dark", **context})
        self.context.set_default_timeout(PATIENCE * 1000)
        self.page = self.context.new_page()
        self.complaints = Complaints(self.page)

    def start(self, *path: str) -> None:
        self.page.goto(self.server.url + "".join(path))
        self.page.wait_for_selector("#home:not([hidden]), #watch:not([hidden])")

    def create(self, prompt: str) -> str:
        """A new take, once it plays; returns its id."""
        if self.page.locator("#watch").is_visible():
            self.page.click("#new-take")
        self.page.fill("#new-prompt", prompt)
        self.page.keyboard.press("Enter")
        self.page.wait_for_selector("#watch:not([hidden])")
        self.wait_for_seconds(0.2)
        return str(self.page.evaluate("location.hash.slice(1)"))

    @property
    def seconds(self) -> float:
        """Of video, on the screen."""
        return _seconds(self.page.inner_text("#position"))

    def wait_for_seconds(self, least: float) -> None:
        self.page.wait_for_function(
            "least => { const [m, s] = document.querySelector('#position').textContent.split(':');"
            " return 60 * m + Number(s) >= least }",
            arg=least,
        )

    def wait_for_prompt(self, id: int) -> None:
        """Until the picture is one of this entry of the timeline."""
        self.page.wait_for_selector(f"#said [data-id='{id}'][aria-current]", state="attached")

    def pause_at(self, id: int) -> None:
        """Pauses as soon as the picture is one of this entry of the timeline, not a moment later."""
        self.page.evaluate(
            """(id) => new Promise((done) => {
                const check = () => {
                    if (!document.querySelector(`#said [data-id="${id}"][aria-current]`)) return false;
                    document.querySelector("#play").click();
                    done();
                    return true;
                };
                if (check()) return;
                new MutationObserver((_, observer) => check() && observer.disconnect())
                    .observe(document.querySelector("#said"), { attributes: true, subtree: true });
            })""",
            id,
        )

    def note_positions(self) -> None:
        """From now on the first position that is drawn is kept, for `first_position`."""
        self.page.evaluate(
            """() => {
                const position = document.querySelector("#position");
                window.firstPosition = new Promise((done) => {
                    new MutationObserver((_, observer) => {
                        observer.disconnect();
                        done(position.textContent);
                    }).observe(position, { childList: true, characterData: true, subtree: true });
                });
            }"""
        )

    def first_position(self) -> float:
        """In seconds of video, waited for."""
        return _seconds(self.page.evaluate("window.firstPosition"))

    def pictures(self, count: int) -> np.ndarray:
        """The next frames that are drawn, as they are on the canvas, made as small as the model makes them."""
        found = self.page.evaluate(
            """async (count) => {
                const canvas = document.querySelector("#screen"), position = document.querySelector("#position");
                const found = [];
                let last = "";
                while (found.length < count) {
                    await new Promise(requestAnimationFrame);
                    if (position.textContent === last) continue;
                    last = position.textContent;
                    found.push(canvas.toDataURL());
                }
                return found;
            }""",
            count,
        )
        return np.stack([_small(url) for url in found])

    def still(self) -> np.ndarray:
        """What is on the canvas, as a video of two frames."""
        return np.stack([_small(self.canvas())] * 2)

    def canvas(self) -> str:
        return str(self.page.evaluate("document.querySelector('#screen').toDataURL()"))

    def shot(self, path: Path, **options: Any) -> None:
        self.page.screenshot(path=path, **options)

    def no_sideways(self) -> None:
        """Nothing is wider than the screen."""
        assert self.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")

    def nameless(self) -> list[str]:
        """What a screen reader finds and has no name for."""
        session = self.context.new_cdp_session(self.page)
        nodes = session.send("Accessibility.getFullAXTree")["nodes"]
        shown = [node for node in nodes if not node.get("ignored") and node.get("role", {}).get("value") in NAMED]
        assert len(shown) > 10
        found = [node["backendDOMNodeId"] for node in shown if not node.get("name", {}).get("value")]
        return [session.send("DOM.getOuterHTML", {"backendNodeId": node})["outerHTML"][:200] for node in found]

    def faint(self) -> list[str]:
        """Texts with too little contrast."""
        return list(self.page.evaluate(CONTRAST))

    def close(self) -> None:
        self.context.close()
        for take in self.server.ask("api/takes")["takes"]:  # the next test wants the device for itself
            self.server.ask(f"api/takes/{take['id']}", "DELETE")
        assert self.complaints.found == []
