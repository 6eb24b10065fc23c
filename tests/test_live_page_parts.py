"""The parts of the live page that need no document, each in Chromium and held against something else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from longtake.live.pictures import Header
from longtake.memory import parse_memory
from tests.helpers_browser import browsing, open_modules


@pytest.fixture(scope="module")
def page() -> Iterator[Any]:
    with browsing() as browser:
        yield open_modules(browser)


def run(page: Any, body: str, argument: Any = None) -> Any:
    """Runs the body of an asynchronous function; `argument` is in ``given``."""
    return page.evaluate(f"async (given) => {{ {body} }}", argument)


def test_headers_are_read_as_the_server_writes_them(page: Any) -> None:
    header = Header("webp", "00ff1234567890ab", 4_000_000_000, 7, 3, 12.0625, 1760000000.25)
    read = "const { parseFrame } = await import('/page/protocol.js');"
    body = f"""{read}
        const frame = parseFrame(Uint8Array.from(given).buffer);
        return {{ ...frame, picture: [...frame.picture] }};"""
    assert run(page, body, [*header.pack(), 1, 2, 3]) == {
        "take": header.take,
        "frame": header.frame,
        "chunk": header.chunk,
        "prompt": header.prompt,
        "time": header.time,
        "made": header.made,
        "type": "image/webp",
        "picture": [1, 2, 3],
    }
    refused = f"{read} try {{ parseFrame(Uint8Array.from(given).buffer) }} catch (error) {{ return error.message }}"
    good = header.pack()
    assert "without a picture" in run(page, refused, [*good])
    assert "no frame" in run(page, refused, [*(b"XX" + good[2:]), 1])
    assert "version 2" in run(page, refused, [*(good[:2] + b"\2" + good[3:]), 1])
    assert "kind 9" in run(page, refused, [*(good[:3] + b"\x09" + good[4:]), 1])


PLAY = """
    const { JitterBuffer } = await import('/page/buffer.js');
    const dropped = [], shown = [];
    const buffer = new JitterBuffer({ fps: 16, drop: (frame) => dropped.push(frame.frame) });
    if (given.realTime) buffer.realTime = given.realTime;
    buffer.late = given.late ?? false;
    let next = 0, frame = 0;
    const [asleep, awake] = given.asleep ?? [Infinity, Infinity];
    for (let now = 0; now < given.until; now += now >= asleep && now < awake ? 1000 : 1000 / 60) {
        while (next < given.arrivals.length && given.arrivals[next] <= now) {
            buffer.push({ frame: frame++ }, now);
            next += 1;
        }
        const got = buffer.take(now);
        if (got) shown.push([now, got.frame]);
    }
    return { shown, dropped, starved: buffer.starved };
"""


def bursts(count: int, every: float, size: int = 12) -> list[float]:
    """When frames come that are sent in chunks, in milliseconds."""
    return [chunk * every for chunk in range(count // size) for _ in range(size)]


def test_bursts_become_an_even_stream(page: Any) -> None:
    found = run(page, PLAY, {"arrivals": bursts(480, 750), "until": 29_000})
    frames = [frame for _, frame in found["shown"]]
    assert frames == list(range(len(frames))) and len(frames) > 420
    assert found["starved"] <= 1 and not found["dropped"]
    gaps = [b - a for (a, _), (b, _) in zip(found["shown"][60:], found["shown"][61:], strict=False)]
    assert max(gaps) < 90  # 62.5 ms and what the 60 Hz of the screen adds


def test_a_slow_device_is_shown_slowly_and_evenly(page: Any) -> None:
    found = run(page, PLAY, {"arrivals": bursts(120, 1500), "until": 15_000, "realTime": 0.5})
    assert [frame for _, frame in found["shown"]] == list(range(len(found["shown"])))
    gaps = [b - a for (a, _), (b, _) in zip(found["shown"], found["shown"][1:], strict=False)]
    assert max(gaps) < 300  # 125 ms each; at full speed it would stand for 750 ms after every chunk


def test_who_is_late_catches_up(page: Any) -> None:
    arrivals = [n * 1000 / 17.6 for n in range(480)]  # a tenth faster than it plays, as long as it is late
    late = run(page, PLAY, {"arrivals": arrivals, "until": 20_000, "late": True})["shown"]
    assert len(late) == pytest.approx(20 * 17.6, abs=24)
    assert [frame for _, frame in late] == list(range(len(late)))


def test_what_could_not_be_drawn_in_time_is_passed_over(page: Any) -> None:
    found = run(page, PLAY, {"arrivals": bursts(480, 750), "until": 29_000, "asleep": [10_000, 12_900]})
    frames = [frame for _, frame in found["shown"]]
    assert frames == sorted(set(frames)) and found["dropped"]
    before = next(frame - now / 62.5 for now, frame in reversed(found["shown"]) if now < 10_000)
    after = next(frame - now / 62.5 for now, frame in found["shown"] if now > 20_000)
    assert abs(after - before) < 8  # half a second: the video kept its time


def test_the_last_frames_are_shown_although_the_buffer_does_not_fill(page: Any) -> None:
    found = run(page, PLAY, {"arrivals": [0, 0, 0], "until": 2000})
    assert [frame for _, frame in found["shown"]] == [0, 1, 2]


def test_credit_keeps_to_its_window_and_stops_in_a_hidden_tab(page: Any) -> None:
    body = """
        const { Credit, creditWindow } = await import('/page/buffer.js');
        const window_ = creditWindow(16, 12, 1, 256);
        const credit = new Credit(window_);
        let open = 0, waiting = 0, sent = 0, most = 0, given_ = 0;
        for (let step = 0; step < 2000; step += 1) {
            if (step === 1000) credit.open = false;
            if (step === 1500) credit.open = true;
            const due = credit.due(waiting);
            open += due;
            given_ += step >= 1000 && step < 1500 ? due : 0;
            if (open && step % 2) { open -= 1; sent += 1; waiting += 1; credit.received(); }
            if (waiting && step % 3 === 0) waiting -= 1;  // slower than they come
            most = Math.max(most, open + waiting);
        }
        return { window: window_, most, sent, hidden: given_ };
    """
    found = run(page, body)
    assert 32 <= found["window"] <= 64
    assert found["most"] <= found["window"]
    assert found["hidden"] == 0
    assert found["sent"] > 450  # of 666 that could be shown, had nobody been away


@pytest.mark.parametrize(
    ("call", "text"),
    [
        ("clock(0)", "0:00"),
        ("clock(8.8125, true)", "0:08.8"),
        ("clock(59.99, true)", "0:59.9"),
        ("clock(723)", "12:03"),
        ("clock(3723.5, true)", "1:02:03.5"),
        ("clock(null)", "–:––"),
        ("span(0.834)", "0.83 s"),
        ("span(4.94)", "4.9 s"),
        ("span(9.97)", "10 s"),
        ("span(14.2)", "14 s"),
        ("span(150)", "2.5 min"),
        ("span(36000)", "10 h"),
        ("span(null)", "–"),
        ("spoken(65)", "1 minute 5 seconds"),
        ("spoken(0)", "0 seconds"),
        ("ago(100, 110)", "just now"),
        ("ago(0, 600)", "10 min ago"),
        ("ago(0, 90000)", "yesterday"),
        ("bytes(999)", "999 B"),
        ("bytes(1234567)", "1.2 MB"),
    ],
)
def test_numbers_for_people(page: Any, call: str, text: str) -> None:
    assert (
        run(page, f"const {{ clock, span, spoken, ago, bytes }} = await import('/page/format.js'); return {call};")
        == text
    )


GROUPS = [
    {"name": "colours", "words": ["red", "orange", "blue"]},
    {"name": "places", "words": ["over a meadow", "in the snow", "in"]},
]


@pytest.mark.parametrize(
    ("text", "word", "caret", "expected"),
    [
        ("a red ball rolls over a meadow", "blue", 0, "a blue ball rolls over a meadow"),
        ("a red ball", "orange", 10, "an orange ball"),
        ("an orange ball", "red", 0, "a red ball"),
        ("A red ball", "orange", 0, "An orange ball"),
        ("a red ball in the snow", "over a meadow", 0, "a red ball over a meadow"),
        ("a ball", "red", 1, "a red ball"),
        ("a ball", "in the snow", 6, "a ball in the snow"),
        ("a ball, please", "red", 6, "a ball red, please"),
        ("", "red", 0, "red"),
        ("hundred balls", "red", 13, "hundred balls red"),
    ],
)
def test_a_word_takes_the_place_of_one_of_its_kind(page: Any, text: str, word: str, caret: int, expected: str) -> None:
    body = "const { putWord } = await import('/page/words.js'); return putWord(...given);"
    found = run(page, body, [text, word, GROUPS, caret])
    assert found["text"] == expected
    assert expected[found["start"] : found["end"]] == word


def test_history_goes_back_and_forth_and_keeps_the_draft(page: Any) -> None:
    body = """
        const { PromptHistory } = await import('/page/history.js');
        const kept = new Map();
        const storage = { getItem: (key) => kept.get(key) ?? null, setItem: (key, value) => kept.set(key, value) };
        const first = new PromptHistory(storage, "prompts", 3);
        for (const prompt of ["one", "two", "three", "two", "four"]) first.add(prompt);
        const history = new PromptHistory(storage, "prompts", 3);
        const steps = [history.older("draft"), history.older("four"), history.older("two"), history.older("three"),
                       history.newer(), history.newer(), history.newer(), history.newer()];
        const sent = [history.older("four"), new PromptHistory({ getItem: () => "{", setItem() {} }).prompts.length,
                      new PromptHistory(null).older("")];
        return { steps, sent };
    """
    found = run(page, body)
    assert found["steps"] == ["four", "two", "three", None, "two", "four", "draft", None]
    assert found["sent"] == ["two", 0, None]  # what stands in the box already is no step


def veil(page: Any, take: dict[str, Any], **now: Any) -> Any:
    whole = {"state": "running", "reason": None, "message": None, "place": None, "can_continue": False, "frames": 9}
    state = {"connected": True, "trouble": None, "playing": True, "atEnd": False, "waiting": False, **now}
    body = "const { veilOf } = await import('/page/status.js'); return veilOf(given);"
    return run(page, body, {"take": {**whole, **take}, **state})


def test_what_lies_over_the_picture(page: Any) -> None:
    assert veil(page, {}) is None
    assert veil(page, {}, waiting=True)["title"] == "Waiting for frames"
    assert veil(page, {"state": "queued", "place": 1}, atEnd=True)["title"] == "Next in the queue"
    assert veil(page, {"state": "queued", "place": 3}, atEnd=True)["title"] == "Place 3 in the queue"
    paused = {"state": "paused", "can_continue": True}
    assert veil(page, {**paused, "reason": "user"}) is None  # there is something left to show
    assert veil(page, {**paused, "reason": "user"}, atEnd=True)["action"] == "continue"
    assert veil(page, {**paused, "reason": "restart"}, atEnd=True)["action"] == "continue"
    lost = {"state": "paused", "reason": "restart", "message": "The snapshot is damaged."}
    assert veil(page, lost, atEnd=True)["text"] == lost["message"]
    failed = veil(page, {"state": "failed", "message": "Out of memory."}, atEnd=True)
    assert failed["text"] == "Out of memory."
    assert veil(page, {}, trouble="The take was deleted.")["text"] == "The take was deleted."
    assert "answer" in veil(page, {}, connected=False, atEnd=True)["text"]


def test_settings_of_a_memory_are_what_the_command_line_reads(page: Any) -> None:
    usual = parse_memory("memrope", 3)
    body = "const { memorySpec } = await import('/page/status.js'); return memorySpec(given.memory, given.chosen);"
    memory = {"name": "memrope", "settings": usual.settings()}
    as_is = {s["name"]: str(s["value"]).lower() if s["type"] == "bool" else str(s["value"]) for s in memory["settings"]}
    assert run(page, body, {"memory": memory, "chosen": as_is}) == "memrope"
    assert run(page, body, {"memory": memory, "chosen": {}}) == "memrope"
    spec = run(page, body, {"memory": memory, "chosen": {**as_is, "recent": "5", "long": "0.02"}})
    changed = parse_memory(spec, 3)
    assert (changed.recent, changed.long, changed.sink) == (5, 0.02, usual.sink)


def test_a_strip_of_any_length_holds_what_is_in_sight(page: Any) -> None:
    body = "const { inSight } = await import('/page/strip.js'); return inSight(...given);"
    assert run(page, body, [0, 600, 47, 17_280])[0] == 0
    first, end = run(page, body, [47 * 9000, 600, 47, 17_280])
    assert first <= 9000 and end >= 9000 + 600 // 47 and end - first < 30
    assert run(page, body, [0, 600, 47, 2]) == [0, 2]
    assert run(page, body, [47 * 17_280, 600, 47, 17_280])[1] == 17_280


def test_a_running_average_fades_as_its_rate_says(page: Any) -> None:
    body = "const { weights } = await import('/page/memory.js'); return weights(...given);"
    assert run(page, body, [0.1, 3, 2]) == pytest.approx([1, 0.9, 0.81])


def test_waiting_to_connect_again_grows_and_ends(page: Any) -> None:
    read = "const { reconnectDelay, readClose } = await import('/page/protocol.js');"
    delays = f"{read} return given.map((failures) => reconnectDelay(failures, 0.5));"
    assert run(page, delays, [1, 2, 3, 9, 1000]) == [500, 1000, 2000, 10_000, 10_000]
    again = f"{read} return given.map((code) => readClose(code, '').retry);"
    assert run(page, again, [1000, 1001, 1006, 1008, 4404, 4429]) == [False, True, True, False, False, True]
