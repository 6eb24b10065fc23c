"""The live page in Chromium, on `longtake serve` with the pocket model: what a person would do with it and see.

Screenshots are kept where the variable LONGTAKE_SCREENSHOTS says, else in pytest's own temporary folder.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.pocket_quality import read, truth_of

from longtake.live.pictures import Header
from longtake.memory import parse_memory
from longtake.pocket.first.words import COLORS, PLACES
from longtake.video import read_frames
from tests.helpers_browser import Server, Visit, browsing

FIRST = ("a red ball rolls over a meadow", "red", "ball", "rolls", "meadow")
SECOND = ("a purple ball swings on a beach", "purple", "ball", "swings", "beach")
PHONE = {"width": 360, "height": 740}


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
    visit.wait_for_seconds(1.5)
    before = visit.pictures(6)
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
    assert visit.seconds >= change["seconds"] - 0.1
    assert "cut" in entry.locator(".how").inner_text()
    visit.page.wait_for_function(
        "() => document.querySelector('[data-figure=latency] .value').textContent.endsWith(' s')"
    )
    visit.wait_for_seconds(change["seconds"] + 1.25)
    assert place_and_colour(visit.pictures(6), SECOND) == ("beach", "purple")

    # and back to what was before
    visit.page.click("[aria-label='0:00, play from 0 seconds']")
    visit.pause_at(0)
    visit.page.wait_for_selector("#play[aria-label=Play]")
    assert visit.seconds < change["seconds"]
    assert place_and_colour(visit.still(), FIRST)[0] == "meadow"
    assert visit.page.get_attribute("#live", "aria-pressed") == "false"
    visit.page.click("#live")
    visit.wait_for_prompt(1)
    visit.page.wait_for_selector("#live[aria-pressed=true]")

    visit.wait_for_seconds(31 if "LONGTAKE_SCREENSHOTS" in os.environ else 4.75)  # more to look at
    visit.page.wait_for_function("() => document.querySelectorAll('#memory [data-role=recent] img').length === 4")
    roles = visit.page.eval_on_selector_all("#memory li", "items => items.map((item) => item.dataset.role)")
    assert roles == ["sink", "long", "short", "recent", "current"]
    visit.page.wait_for_function(
        "() => [...document.querySelectorAll('#memory img')].every((image) => image.naturalWidth)"
    )
    visit.page.mouse.move(5, 5)
    visit.shot(screenshots / "desktop-dark.png")
    visit.page.emulate_media(color_scheme="light", reduced_motion="reduce")  # no colours on their way
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

    visit.note_positions()
    page.keyboard.press("Space")
    page.wait_for_selector("#play[aria-label=Pause]")
    assert 0 < visit.first_position() - shown < 1.5  # it goes on where it was
    visit.wait_for_seconds(shown + 1.5)

    page.reload()
    visit.wait_for_seconds(shown + 1.5)
    assert page.evaluate("location.hash.slice(1)") == take
    assert page.input_value("#prompt") == FIRST[0]

    page.click("#stop")
    page.wait_for_selector("#veil:not([hidden]) >> text=Paused")
    page.reload()  # a take that stands still shows its last picture
    page.wait_for_selector("#veil:not([hidden]) >> text=Paused")
    visit.wait_for_seconds(shown + 1)
    stopped = visit.seconds
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
    for _ in range(80):
        page.keyboard.press("Tab")
        found = page.evaluate(
            """() => {
                const here = document.activeElement, around = getComputedStyle(here.parentElement);
                const seen = getComputedStyle(here).outlineStyle !== "none" || around.boxShadow !== "none";
                return [here.id || here.className || here.tagName, seen];
            }"""
        )
        if found[0] == "BODY" and reached:
            break  # once around
        reached.add(found[0])
        assert found[1], f"the focus on {found[0]} cannot be seen"
    wanted = {"brand", "new-take", "theme", "help", "play", "stop", "live", "sharpness", "repeat", "download", "full"}
    assert wanted | {"prompt", "change", "chip", "when", "strip-picture"} <= reached

    page.keyboard.press("Escape")
    page.evaluate("document.activeElement.blur()")
    theme = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.keyboard.press("t")
    page.wait_for_function("was => getComputedStyle(document.body).backgroundColor !== was", arg=theme)
    page.keyboard.press("n")
    page.wait_for_selector("#home:not([hidden])")


def test_a_new_take_is_what_was_chosen_and_the_figures_are_the_servers(visit: Visit) -> None:
    visit.start()
    page = visit.page
    page.click("text=Memory, seed and size")
    assert page.input_value("#memory-choice") == "memrope"
    page.select_option("#memory-choice", "longlive")
    drawn = page.get_attribute(".drawn-slots", "aria-label")
    page.click("text=Its settings")
    page.fill("[data-setting=sink]", "2")
    page.get_by_label("Seed").fill("7")
    page.get_by_label("Width in pixels").fill("80")
    page.get_by_label("Ends after").fill("6")
    page.get_by_label("A new prompt").select_option("recache")
    id = visit.create(FIRST[0])
    take = visit.server.ask(f"api/takes/{id}")
    assert take["memory"] == parse_memory("longlive:sink=2", 3).spec()
    assert (take["seed"], take["width"], take["height"], take["max_seconds"]) == (7, 80, 64, 6.0)
    assert take["on_change"] == "recache"
    for fact in (take["memory"], "seed 7", "80×64"):
        assert fact in page.inner_text("#facts")
    shape = page.evaluate("(({ width, height }) => width / height)(document.querySelector('#screen'))")
    assert abs(shape - 80 / 64) < 0.02

    page.wait_for_selector("#veil:not([hidden]) >> text=This take has its full length")
    take = visit.server.ask(f"api/takes/{id}")
    assert take["state"] == "finished" and page.inner_text("#position") == "0:05.9"
    page.wait_for_function("() => document.querySelector('#made').textContent === '0:06'")
    figures = {
        name: page.inner_text(f"[data-figure={name}] .value") for name in ("speed", "realTime", "shown", "latency")
    }
    rate = take["speed"]["frames_per_second"]
    assert abs(float(figures["speed"]) - rate) <= (0.05 if rate < 9.95 else 0.5) + 1e-6
    assert figures["realTime"].endswith("×") and abs(float(figures["realTime"][:-1]) - rate / 16) <= 0.5
    assert (figures["shown"], figures["latency"]) == ("0:05", "–")
    # The slots of the last chunk, role by role, and what was drawn of the usual setting before.
    slots = take["memory_state"]["slots"]
    tiles = page.eval_on_selector_all(
        "#memory li:not([data-role=free])",
        "items => items.flatMap((item) => [...item.querySelectorAll('.tile')].map(() => item.dataset.role))",
    )
    assert tiles == [slot["role"] for slot in slots] and tiles.count("sink") == 2
    assert drawn.startswith("12 slots: 3 sink")
    assert page.locator("#strip .strip-picture").count() == take["thumbnails"] == 2


def test_prompts_are_text_wherever_they_stand(visit: Visit) -> None:
    prompt = 'a red ball <img src=x onerror="document.body.id=1"> <b class=bold>rolls</b> & over a meadow'
    visit.start()
    page = visit.page
    page.set_viewport_size({"width": 1400, "height": 900})
    visit.create("a blue box in a room")
    page.fill("#prompt", prompt)
    page.press("#prompt", "Enter")
    visit.wait_for_prompt(1)
    page.wait_for_function("prompt => document.title === `${prompt} – Longtake`", arg=prompt)
    assert page.inner_text("#said [data-id='1'] .what") == prompt
    assert page.get_attribute("#screen", "aria-label") == f"The video: {prompt}"
    page.click("#steer >> text=Said before")
    assert page.inner_text("#steer .before .line >> nth=0") == prompt
    page.keyboard.press("Escape")
    page.click("#stop")
    page.wait_for_selector("#veil:not([hidden]) >> text=Paused")
    page.click("#repeat")
    page.wait_for_selector("#repeat-dialog[open]")
    assert "onerror=" in page.inner_text("#repeat-command")
    page.keyboard.press("Escape")
    page.click("#new-take")
    page.wait_for_selector("#takes .card-prompt")
    assert page.inner_text("#takes .card-prompt") == prompt
    page.click("#takes [title=Delete]")
    page.wait_for_selector("#delete-dialog[open]")
    assert prompt in page.inner_text("#delete-text")
    assert page.locator("b, .bold, img[src=x], [onerror]").count() == 0
    assert page.evaluate("document.body.id") == ""
    page.keyboard.press("Escape")


def test_a_pause_is_for_oneself_while_others_watch(visit: Visit) -> None:
    visit.start()
    take = visit.create(FIRST[0])
    other = visit.context.new_page()
    other.goto(visit.server.url + "#" + take)
    other.wait_for_function("() => document.querySelector('#position').textContent >= '0:00.2'")
    visit.page.wait_for_function(
        "async (url) => (await (await fetch(url)).json()).viewers === 2", arg=f"api/takes/{take}"
    )
    visit.page.wait_for_timeout(1100)  # the page hears it once a second
    visit.page.keyboard.press("Escape")
    visit.page.keyboard.press("Space")
    visit.page.wait_for_selector("#play[aria-label=Play]")
    shown = visit.seconds
    later = f"() => document.querySelector('#position').textContent >= '0:{shown + 1.5:04.1f}'"
    other.wait_for_function(later)
    assert visit.seconds == shown
    assert visit.server.ask(f"api/takes/{take}")["state"] == "running"
    visit.page.keyboard.press("Space")
    visit.page.wait_for_function(
        "was => document.querySelector('#position').textContent !== was", arg=f"0:{shown:04.1f}"
    )
    other.close()


def test_who_waits_is_told_the_place(visit: Visit) -> None:
    visit.start()
    first = visit.create(FIRST[0])
    second = visit.server.ask("api/takes", "POST", {"prompt": SECOND[0]})["id"]
    visit.page.click("#new-take")
    visit.page.wait_for_selector(f"#takes .card:has([data-focus='{second}']) >> text=Next in the queue")
    visit.page.click(f"[data-focus='{second}']")
    visit.page.wait_for_selector("#veil:not([hidden]) >> text=Next in the queue")
    visit.page.go_back()
    visit.page.click(f"[data-focus='{first}-delete']")
    visit.page.wait_for_selector("#delete-dialog[open]")
    visit.page.click("#delete-dialog >> text=Delete >> nth=-1")
    visit.page.wait_for_selector(f"[data-focus='{first}']", state="detached")
    visit.page.go_forward()
    visit.wait_for_seconds(0.2)
    assert [take["id"] for take in visit.server.ask("api/takes")["takes"]] == [second]


def test_who_leaves_before_the_connection_is_there_leaves_quietly(visit: Visit) -> None:
    visit.start()
    take = visit.create(FIRST[0])
    visit.page.click("#new-take")
    visit.page.evaluate(
        """async (take) => {
            const view = document.querySelector("#watch");
            for (let i = 0; i < 3; i++) {
                const seen = new Promise((done) => {
                    new MutationObserver((_, observer) => {
                        if (view.hidden) return;
                        observer.disconnect();
                        done();
                    }).observe(view, { attributes: true });
                });
                location.hash = take;
                await seen;
                location.hash = "";
                await new Promise((done) => setTimeout(done, 300));
            }
        }""",
        take,
    )
    visit.page.wait_for_selector("#home:not([hidden])")
    assert visit.server.ask(f"api/takes/{take}")["viewers"] == 0
    assert visit.complaints.found == []


def test_everything_has_a_name_for_screen_readers(visit: Visit) -> None:
    visit.start()

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
    assert visit.nameless() == []
    structure()
    visit.create(FIRST[0])
    visit.page.wait_for_selector("#memory img")
    assert visit.nameless() == []
    structure()
    for scheme in ("dark", "light"):
        visit.page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        assert visit.faint() == []


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
    visit.wait_for_seconds(1.5)
    visit.server.stop(signal.SIGKILL)
    visit.page.wait_for_selector("#veil:not([hidden]) >> text=Connecting")
    visit.server.start()
    visit.page.wait_for_selector("#veil:not([hidden]) >> text=The server was restarted")
    visit.page.click("#new-take")
    visit.page.wait_for_selector(f"#takes [data-focus='{take}-continue']")
    visit.page.click(f"#takes [data-focus='{take}-continue']")
    visit.wait_for_seconds(3)
    assert visit.page.evaluate("location.hash.slice(1)") == take
    assert place_and_colour(visit.pictures(4), FIRST) == ("meadow", "red")
    visit.complaints.expected("ERR_CONNECTION", "WebSocket")


def test_a_hidden_tab_takes_nothing_and_comes_back_live(visit: Visit) -> None:
    visit.start()
    visit.create(FIRST[0])
    page = visit.page
    hide = """hidden => {
        Object.defineProperty(document, "hidden", { get: () => hidden, configurable: true });
        document.dispatchEvent(new Event("visibilitychange"));
    }"""
    page.evaluate(hide, True)
    hidden = visit.seconds
    made = "least => Number(document.querySelector('#made').textContent.split(':')[1]) >= least"
    page.wait_for_function(made, arg=hidden + 6)
    assert visit.seconds < hidden + 3  # what it had allowed before: 32 frames, two seconds
    page.evaluate(hide, False)
    visit.wait_for_seconds(hidden + 5)
    assert page.get_attribute("#live", "aria-pressed") == "true"


def test_a_broken_connection_goes_on_at_the_next_frame(visit: Visit) -> None:
    connections: list[Any] = []
    broken: list[Any] = []
    frames: list[list[int]] = []

    def forward(route: Any) -> None:
        server = route.connect_to_server()
        connections.append(route)
        frames.append([])

        def pass_on(message: str | bytes) -> None:
            if route in broken:
                return
            if isinstance(message, bytes):
                frames[-1].append(Header.unpack(message).frame)
            route.send(message)

        server.on_message(pass_on)

    visit.page.route_web_socket("**/watch*", forward)
    visit.start()
    visit.create(FIRST[0])
    visit.wait_for_seconds(1)
    broken.append(connections[0])
    connections[0].close(code=1011, reason="a test")
    visit.wait_for_seconds(3)
    assert len(connections) == 2
    assert connections[1].url.endswith(f"from={frames[0][-1] + 1}")
    assert frames[0] + frames[1] == list(range(frames[0][0], frames[1][-1] + 1))
