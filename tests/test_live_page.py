"""The live page in Chromium, on `longtake serve` with the pocket model: what a person would do with it and see.

Screenshots are kept where the variable LONGTAKE_SCREENSHOTS says, else in pytest's own temporary folder.
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.pocket_quality import read, truth_of
from PIL import Image

from longtake.pocket.first.words import COLORS, PLACES
from longtake.video import read_frames
from tests.conftest import ENVIRONMENT, cli_command
from tests.helpers_browser import PATIENCE, Complaints, browsing

FIRST = ("a red ball rolls over a meadow", "red", "ball", "rolls", "meadow")
SECOND = ("a blue box bounces at night", "blue", "box", "bounces", "night")
DESKTOP = {"width": 1280, "height": 800}
PHONE = {"width": 360, "height": 740}


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


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with browsing() as found:
        yield found


@pytest.fixture(scope="module")
def server(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("live"))
    server.start()
    yield server
    server.stop(signal.SIGTERM)


@pytest.fixture(scope="module")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(os.environ.get("LONGTAKE_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


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
        minutes, seconds = self.page.inner_text("#position").split(":")
        return 0.0 if "–" in minutes else int(minutes) * 60 + float(seconds)

    def wait_for_seconds(self, least: float) -> None:
        self.page.wait_for_function(
            "least => { const [m, s] = document.querySelector('#position').textContent.split(':');"
            " return 60 * m + Number(s) >= least }",
            arg=least,
        )

    def wait_for_prompt(self, id: int) -> None:
        """Until the picture is one of this entry of the timeline."""
        self.page.wait_for_selector(f"#said [data-id='{id}'][aria-current]", state="attached")

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
        images = [Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).convert("RGB") for url in found]
        return np.stack([np.asarray(image.resize((64, 64), Image.Resampling.BOX)) for image in images])

    def canvas(self) -> str:
        return str(self.page.evaluate("document.querySelector('#screen').toDataURL()"))

    def shot(self, path: Path, **options: Any) -> None:
        self.page.screenshot(path=path, **options)

    def no_sideways(self) -> None:
        """Nothing is wider than the screen."""
        assert self.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")

    def close(self) -> None:
        self.context.close()
        for take in self.server.ask("api/takes")["takes"]:  # the next test wants the device for itself
            self.server.ask(f"api/takes/{take['id']}", "DELETE")
        assert self.complaints.found == []


@pytest.fixture
def visit(browser: Any, server: Server) -> Iterator[Visit]:
    visit = Visit(browser, server)
    yield visit
    visit.close()


def place_and_colour(video: np.ndarray, scene: tuple[str, str, str, str, str]) -> tuple[str, str]:
    """What the world's reader finds in the pictures, wherever a subject as the scene's does not come."""
    untouched = truth_of(*scene[1:]).untouched
    places = {place: read(video, scene[1], place, untouched)["place"] for place in PLACES}
    place = max(places, key=lambda name: places[name])
    colours = {color: read(video, color, place, untouched)["colour"] for color in COLORS}
    return place, max(colours, key=lambda name: colours[name])


def test_a_take_is_started_watched_and_steered(visit: Visit, screenshots: Path) -> None:
    visit.start()
    visit.shot(screenshots / "start-dark.png")
    visit.create(FIRST[0])
    visit.wait_for_seconds(3)
    before = visit.pictures(8)
    assert np.abs(before[0].astype(int) - before[-1]).mean() > 0.5  # it moves
    assert place_and_colour(before, FIRST) == ("meadow", "red")
    assert visit.page.locator("#said li").count() == 1

    visit.page.select_option("#change", "cut")
    visit.page.fill("#prompt", SECOND[0])
    visit.page.press("#prompt", "Enter")
    entry = visit.page.locator("#said [data-id='1']")
    entry.wait_for()
    assert SECOND[0] in entry.inner_text()
    visit.wait_for_prompt(1)
    change = visit.server.ask(f"api/takes/{visit.page.evaluate('location.hash.slice(1)')}/timeline")["entries"][1]
    assert entry.get_attribute("data-state") == "holds" == change["state"]
    minutes, seconds = entry.locator(".when").inner_text().split(":")
    assert abs(int(minutes) * 60 + float(seconds) - change["seconds"]) < 0.11
    assert 0 <= visit.seconds - change["seconds"] < 2
    assert "cut" in entry.locator(".how").inner_text()
    visit.page.wait_for_function("document.querySelector('[data-figure=latency] .value').textContent.endsWith(' s')")
    visit.wait_for_seconds(change["seconds"] + 1.5)
    assert place_and_colour(visit.pictures(8), SECOND) == ("night", "blue")

    # and back to what was before
    visit.page.click("[aria-label='0:00, play from 0 seconds']")
    visit.wait_for_prompt(0)
    assert visit.seconds < 3
    visit.wait_for_seconds(1)
    assert place_and_colour(visit.pictures(4), FIRST)[0] == "meadow"
    assert visit.page.get_attribute("#live", "aria-pressed") == "false"
    visit.page.click("#live")
    visit.wait_for_prompt(1)
    visit.page.wait_for_selector("#live[aria-pressed=true]")

    visit.wait_for_seconds(31 if "LONGTAKE_SCREENSHOTS" in os.environ else 6)  # more to look at
    visit.page.wait_for_function("document.querySelectorAll('#memory [data-role=recent] img').length === 4")
    roles = visit.page.eval_on_selector_all("#memory li", "items => items.map((item) => item.dataset.role)")
    assert roles == ["sink", "long", "short", "recent", "current"]
    visit.page.wait_for_function("[...document.querySelectorAll('#memory img')].every((image) => image.naturalWidth)")
    visit.page.mouse.move(5, 5)
    visit.shot(screenshots / "desktop-dark.png")
    visit.page.emulate_media(color_scheme="light")
    visit.shot(screenshots / "desktop-light.png")


def test_pause_resume_stop_and_reload(visit: Visit) -> None:
    visit.start()
    take = visit.create(FIRST[0])
    page = visit.page
    visit.wait_for_seconds(1)
    page.keyboard.press("Escape")
    page.keyboard.press("Space")
    page.wait_for_selector("#play[aria-label=Play]")
    shown, picture = visit.seconds, visit.canvas()
    page.wait_for_function(
        "id => fetch('/api/takes/' + id).then((a) => a.json()).then((t) => t.state === 'paused')", arg=take
    )
    page.wait_for_timeout(1000)
    assert (visit.seconds, visit.canvas()) == (shown, picture)

    page.keyboard.press("Space")
    page.wait_for_selector("#play[aria-label=Pause]")
    visit.pictures(2)
    assert 0 < visit.seconds - shown < 1.5  # it goes on where it was
    visit.wait_for_seconds(shown + 3)

    page.reload()
    visit.wait_for_seconds(shown + 3)
    assert page.evaluate("location.hash.slice(1)") == take
    assert page.input_value("#prompt") == FIRST[0]

    page.click("#stop")
    page.wait_for_selector("#veil:not([hidden]) >> text=Paused")
    page.reload()  # a take that stands still shows its last picture
    page.wait_for_selector("#veil:not([hidden]) >> text=Paused")
    stopped = visit.seconds
    assert stopped > shown + 2.5
    page.click(".veil-action")
    visit.wait_for_seconds(stopped + 1)

    page.click("#stop")
    page.wait_for_selector("#veil:not([hidden]) >> text=Paused")
    page.click("#repeat")
    page.wait_for_selector("#repeat-dialog[open]")
    assert page.inner_text("#repeat-command") == visit.server.ask(f"api/takes/{take}/repeat")["command"]
    page.keyboard.press("Escape")
    with page.expect_download() as found:
        page.keyboard.press("d")
    recorded = len(list(read_frames(found.value.path()))) / 16
    assert visit.seconds < recorded < visit.seconds + 1  # whole chunks


def test_a_phone(browser: Any, server: Server, screenshots: Path) -> None:
    visit = Visit(browser, server, viewport=PHONE, has_touch=True, is_mobile=True, color_scheme="light")
    visit.start("#")
    page = visit.page
    if page.locator("#watch").is_visible():
        page.tap("#new-take")
    page.wait_for_selector("#home:not([hidden])")
    visit.no_sideways()
    page.tap("text=Memory, seed and size")
    visit.no_sideways()
    page.tap("#create .chip >> text=blue box")
    assert not page.evaluate("document.activeElement.matches('textarea')")  # no keyboard over half the screen
    page.tap("#create .chip >> text=/^purple$/")
    page.tap("#create .send")
    visit.wait_for_seconds(2)
    assert page.input_value("#prompt") == "a purple box bounces in a room"
    visit.no_sideways()
    box = page.locator("#screen").bounding_box()
    assert box["width"] > 300 and box["x"] >= 0
    small = page.evaluate(
        """[...document.querySelectorAll("button, a[href], select, summary, input")]
            .filter((element) => element.checkVisibility() && !element.closest("[hidden], dialog:not([open])"))
            .map((element) => [element.outerHTML.slice(0, 80), element.getBoundingClientRect()])
            .filter(([, box]) => box.width > 1 && (box.width < 24 || box.height < 24)).map(([html]) => html)"""
    )
    assert [html for html in small if 'class="when"' not in html] == []  # of the timeline: text among text
    visit.shot(screenshots / "phone-light.png", full_page=True)
    visit.close()


def test_the_keyboard_is_enough(visit: Visit) -> None:
    visit.start()
    visit.create(FIRST[0])
    page = visit.page
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    page.wait_for_selector("#keys-dialog[open]")
    page.keyboard.press("Escape")
    page.wait_for_selector("#keys-dialog:not([open])", state="attached")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "prompt"
    page.keyboard.press("Space")  # in a text it is a space
    assert page.get_attribute("#play", "aria-label") == "Pause"
    page.keyboard.press("Control+a")
    page.keyboard.type("a green star")
    page.keyboard.press("Enter")
    page.wait_for_selector("#said [data-id='1']")
    page.keyboard.press("ArrowUp")
    assert page.input_value("#prompt") == FIRST[0]
    page.keyboard.press("ArrowDown")
    assert page.input_value("#prompt") == "a green star"

    # Tab comes by everything that can be used, and one sees where it is
    page.keyboard.press("Escape")
    page.evaluate("document.body.tabIndex = -1; document.body.focus(); document.body.removeAttribute('tabindex')")
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        found = page.evaluate(
            """(() => { const e = document.activeElement, s = getComputedStyle(e), b = getComputedStyle(e.parentElement);
                return [e.id || e.className || e.tagName, s.outlineStyle !== 'none' || b.boxShadow !== 'none'] })()"""
        )
        reached.add(found[0])
        assert found[1] or found[0] == "BODY", f"the focus on {found[0]} cannot be seen"
    wanted = {"brand", "new-take", "theme", "help", "play", "stop", "live", "sharpness", "repeat", "download", "full"}
    assert wanted | {"prompt", "change", "chip", "when", "strip-picture"} <= reached

    page.keyboard.press("Escape")
    page.evaluate("document.activeElement.blur()")
    theme = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.keyboard.press("t")
    page.wait_for_function("was => getComputedStyle(document.body).backgroundColor !== was", arg=theme)
    page.keyboard.press("n")
    page.wait_for_selector("#home:not([hidden])")


NAMED = {"button", "link", "textbox", "combobox", "checkbox", "spinbutton", "image", "dialog", "region", "form"}


def test_everything_has_a_name_for_screen_readers(visit: Visit) -> None:
    visit.start()
    session = visit.context.new_cdp_session(visit.page)

    def unnamed() -> list[str]:
        nodes = session.send("Accessibility.getFullAXTree")["nodes"]
        shown = [node for node in nodes if not node.get("ignored") and node.get("role", {}).get("value") in NAMED]
        assert len(shown) > 10
        nameless = [node["backendDOMNodeId"] for node in shown if not node.get("name", {}).get("value")]
        return [session.send("DOM.getOuterHTML", {"backendNodeId": node})["outerHTML"][:200] for node in nameless]

    def structure() -> None:
        page = visit.page
        ids = page.eval_on_selector_all("[id]", "elements => elements.map((element) => element.id)")
        assert len(ids) == len(set(ids))
        visible = "elements => elements.filter((element) => element.checkVisibility()).length"
        assert page.eval_on_selector_all("main", visible) == 1
        assert page.eval_on_selector_all("h1", visible) == 1
        assert page.locator("[role=status][aria-live=polite]").count() == 1
        assert page.get_attribute("html", "lang") == "en"

    if visit.page.locator("#watch").is_visible():
        visit.page.click("#new-take")
    visit.page.click("text=Memory, seed and size")
    visit.page.click("text=Its settings")
    assert unnamed() == []
    structure()
    visit.create(FIRST[0])
    visit.page.wait_for_selector("#memory img")
    assert unnamed() == []
    structure()
    scheme: Any
    for scheme in ("dark", "light"):
        visit.page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        assert visit.page.evaluate(CONTRAST) == []


# Text against what is behind it: WCAG 2, 4.5 to 1. Nothing here lies over a gradient or a picture but the veil.
CONTRAST = """(() => {
    const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
    const rgba = (color) => {
        canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data];
    };
    const light = ([r, g, b]) => [r, g, b].map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const behind = (element) => {
        for (let e = element; e; e = e.parentElement) {
            const color = rgba(getComputedStyle(e).backgroundColor);
            if (color[3] === 255) return color;
        }
        return rgba(getComputedStyle(document.body).backgroundColor);
    };
    const poor = [];
    for (const element of document.querySelectorAll("body *")) {
        const text = [...element.childNodes].filter((node) => node.nodeType === 3).map((node) => node.textContent.trim()).join("");
        if (!text || !element.checkVisibility() || element.closest(".veil, .unseen, .skip, :disabled, [aria-disabled], dialog:not([open]), [data-role=free]")) continue;
        const [a, b] = [light(rgba(getComputedStyle(element).color)), light(behind(element))].sort((x, y) => y - x);
        const ratio = (a + 0.05) / (b + 0.05);
        if (ratio < 4.5) poor.push(`${text.slice(0, 30)}: ${ratio.toFixed(2)}`);
    }
    return poor;
})()"""


def test_what_the_server_refuses_is_said_in_its_words(visit: Visit) -> None:
    visit.start()
    take = visit.create(FIRST[0])
    visit.page.fill("#prompt", "quantum zebra")
    visit.page.press("#prompt", "Enter")
    wrong = visit.page.locator("#prompt-wrong")
    wrong.wait_for()
    told = visit.server.ask(f"api/takes/{take}/steer", "POST", {"prompt": "quantum zebra"})
    assert wrong.inner_text() == told["error"]["message"]
    assert visit.page.get_attribute("#prompt", "aria-invalid") == "true"
    assert visit.page.locator("#said li").count() == 1
    visit.page.goto(visit.server.url + "#00112233445566aa")
    visit.page.wait_for_selector("#notices >> text=no such take")
    visit.page.wait_for_selector("#home:not([hidden])")
    visit.complaints.expected("422", "404")


def test_a_killed_server_comes_back_and_the_take_goes_on(visit: Visit) -> None:
    visit.start()
    take = visit.create(FIRST[0])
    visit.wait_for_seconds(4)
    visit.server.stop(signal.SIGKILL)
    visit.page.wait_for_selector("#veil:not([hidden]) >> text=Connecting")
    visit.server.start()
    visit.page.wait_for_selector("#veil:not([hidden]) >> text=The server was restarted")
    visit.page.click("#new-take")
    visit.page.wait_for_selector(f"#takes [data-focus='{take}-continue']")
    visit.page.click(f"#takes [data-focus='{take}-continue']")
    visit.wait_for_seconds(6)
    assert visit.page.evaluate("location.hash.slice(1)") == take
    assert place_and_colour(visit.pictures(8), FIRST) == ("meadow", "red")
    visit.complaints.expected("ERR_CONNECTION", "WebSocket")
