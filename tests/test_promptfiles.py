"""Files of prompts: what is read, which lines are made, and what their videos are called."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longtake import LongTakePipeline
from longtake.promptfiles import (
    as_script,
    items,
    output_name,
    plain,
    published_name,
    read_lines,
    read_prompts,
    select,
    status,
)
from longtake.prompts import parse_script
from longtake.record import Recording, snapshot_path

PROMPT = "a red ball rolls over a meadow"


def write(folder: Path, content: str | bytes, name: str = "prompts.txt") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


texts = st.text(
    st.one_of(
        st.sampled_from("ab |[]\\\n\r\t\v\f\x1c\u2028\u0085\u00a0é犬"),
        st.characters(exclude_categories=["Cs"], exclude_characters="\0\ufeff"),
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(texts)
def test_lines_are_those_of_the_published_dataset(text: str) -> None:
    """There, a file in UTF-8 is iterated over line by line, and every line loses the white space at its end."""
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), text)
        with open(path, encoding="utf-8") as file:
            expected = [line.rstrip() for line in file]
        if any(expected):
            assert read_lines(path) == expected
        else:
            with pytest.raises(ValueError, match=r"no prompts.*\.$"):
                read_lines(path)


def test_byte_order_mark(tmp_path: Path) -> None:
    assert read_prompts(write(tmp_path, b"\xef\xbb\xbfa dog\r\na cat\r\n")) == ["a dog", "a cat"]


@settings(max_examples=500, deadline=None)
@given(texts.filter(str.strip))
def test_a_plain_prompt_stays_what_it_is(prompt: str) -> None:
    (segment,) = parse_script(plain(prompt)).segments
    assert (segment.prompt, segment.start, segment.end) == (" ".join(prompt.split()), 0, None)


@pytest.mark.parametrize(
    "line",
    [
        "a dog | a cat",
        "a cat [sad]",
        "[wide shot] a street [2]",
        "a street [1]",
        "logs | grep [x|y] ||",
        r"a path C:\|x\[y",
        "[10] cats",
        "[cut] a hen",
        "[] empty [ ]",
        "ends with a slash \\",
        "35mm [f/2.8] | 8k",
        "[10s",
    ],
)
def test_no_script(tmp_path: Path, line: str) -> None:
    """Bars and brackets are nothing special in a prompt without durations."""
    for scripts in (True, False):
        (text,) = read_prompts(write(tmp_path, line + "\n"), scripts)
        (segment,) = parse_script(text, 30).segments
        assert segment.prompt == line and segment.end == 30


@pytest.mark.parametrize(
    ("line", "prompts"),
    [
        ("a dog [10s] | a cat [5s]", [("a dog", 10), ("a cat", 15)]),
        ("a dog [1m30s] | a cat", [("a dog", 90), ("a cat", 100)]),
        ("a dog [2 s]", [("a dog", 2)]),
        ("a dog [500ms] | a cat [3]", [("a dog", 0.5), ("a cat", 3.5)]),
        (r"a sign \[10s]", [("a sign [10s]", 100)]),
        (r"a \| b [2s] | c [2s]", [("a | b", 2), ("c", 4)]),
    ],
)
def test_script(tmp_path: Path, line: str, prompts: list[tuple[str, float]]) -> None:
    path = write(tmp_path, line)
    (text,) = read_prompts(path)
    whole = None if prompts[-1][1] < 100 else 100
    assert [(s.prompt, s.end) for s in parse_script(text, whole).segments] == prompts
    (text,) = read_prompts(path, scripts=False)
    assert [s.prompt for s in parse_script(text).segments] == [line]


@pytest.mark.parametrize(
    "line",
    ["a dog [10s] runs", "a dog [-5s]", "[5s] a dog", "a dog [10s] | | a cat [5s]", "a dog | a cat [5s]", "[0s]"],
)
def test_neither(tmp_path: Path, line: str) -> None:
    """A duration where none can be is a slip, and hours of the wrong video; without scripts it is a prompt."""
    path = write(tmp_path, f"a dog\n\n{line}\na cat\n")
    with pytest.raises(ValueError) as caught:
        read_prompts(path)
    text = str(caught.value)
    assert text.startswith(f"{path}, line 3: ") and text.endswith(".") and "\n" not in text
    assert parse_script(read_prompts(path, scripts=False)[2]).segments[0].prompt == line


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "no prompts"),
        (b"\n \n\t\n", "no prompts"),
        (b"caf\xe9\n", "UTF-8"),
        ("a dog\n".encode("utf-16"), "UTF-8"),
        (b"PK\x03\x04\0\0abc", "binary"),
    ],
)
def test_no_prompts(tmp_path: Path, content: bytes, says: str) -> None:
    with pytest.raises(ValueError, match=rf"prompts\.txt.*{says}.*\.$"):
        read_prompts(write(tmp_path, content))


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no file of prompts .*nowhere\.txt\.$"):
        read_prompts(tmp_path / "nowhere.txt")
    with pytest.raises(ValueError, match=r"not a file.*one per line\.$"):
        read_prompts(tmp_path)


LINES = ["a", "", "b", "c", "", ""]


@pytest.mark.parametrize(
    ("start", "end", "chosen"),
    [
        (0, None, [0, 2, 3]),
        (0, -1, [0, 2, 3]),
        (1, None, [2, 3]),
        (1, 3, [2]),
        (2, 3, [2]),
        (3, 1000, [3]),
        (0, 1, [0]),
    ],
)
def test_select(start: int, end: int | None, chosen: list[int]) -> None:
    assert select(LINES, start, end) == [(index, LINES[index]) for index in chosen]


@pytest.mark.parametrize(
    ("start", "end", "says"),
    [
        (-1, None, "from 0 to 5, not -1"),
        (6, None, "from 0 to 5, not 6"),
        (3, 3, "above --start, which is 3"),
        (3, 2, "not 2"),
        (0, -2, "not -2"),
        (4, None, "from 4 to 5 are blank"),
        (1, 2, "from 1 to 1 are blank"),
    ],
)
def test_select_refuses(start: int, end: int | None, says: str) -> None:
    with pytest.raises(ValueError, match=rf"{says}.*\.$"):
        select(LINES, start, end)


def test_names() -> None:
    assert output_name(7, "A red ball, rolling!") == "007-a-red-ball-rolling.mp4"
    assert output_name(7, "a ball [10s] | a box [5s]", 1, 3) == "007-a-ball-a-box-1.mp4"
    assert output_name(1234, "...") == "1234.mp4"
    assert output_name(0, "犬が走る") == "000-犬が走る.mp4"
    # as inference.py names them
    assert published_name(3, PROMPT, 0, "lora") == "rank0-3-0_lora.mp4"
    assert published_name(3, PROMPT, 1, "ema", by_index=False) == f"rank0-{PROMPT}-1.mp4"
    assert published_name(0, 200 * "x", 0, "ema", by_index=False) == f"rank0-{100 * 'x'}-0.mp4"


@settings(max_examples=200, deadline=None)
@given(texts.filter(str.strip), st.integers(0, 10**6), st.integers(0, 99))
def test_every_name_is_a_file(prompt: str, index: int, sample: int) -> None:
    """In this very folder, with its snapshot beside it."""
    with tempfile.TemporaryDirectory() as folder:
        for name in (output_name(index, prompt, sample, 100), published_name(index, prompt, sample, "ema", False)):
            for path in (Path(folder) / name, snapshot_path(Path(folder) / name)):
                path.touch()
                assert path.parent == Path(folder)
            assert name.endswith(f"-{sample}.mp4")
        assert len(os.listdir(folder)) == 4


def test_long_names_are_cut_between_characters() -> None:
    for prompt in (300 * "犬", "x" + 300 * "犬", 300 * "é"):
        for name in (output_name(0, prompt), published_name(0, prompt, 0, "ema", by_index=False)):
            assert len(name.encode()) <= 220 and "�" not in name


def test_items_have_files_of_their_own() -> None:
    """Prompts with the same beginning, the same prompt twice, and names that only differ in case."""
    shared, wide = 100 * "long ", 64 * "犬"
    prompts = [
        *(wide, wide + "a", wide[:-1] + "x", wide),
        shared + "a",
        shared + "b",
        "A dog",
        "a dog",
        "a dog",
        "a dog-2",
        "x/y",
        "x?y",
        "a dog-0",
        "a dog-1-4",
        "a dog-0-3",
    ]
    for published in (None, ("ema", False), ("ema", True)):
        made = items(prompts, "out", samples=5, published=published)
        names = [item.path.name.casefold() for item in made]
        assert len(names) == 5 * len(prompts) == len(set(names))
        by_key = {(item.index, item.sample): item for item in made}
        for start in range(len(prompts)):
            for item in items(prompts, "out", start=start, end=start + 2, samples=5, published=published):
                assert item == by_key[item.index, item.sample]


def test_items() -> None:
    made = items(["a", "", "b [2s]"], "out", seed=7, samples=2, titles=["x", "", "y"])
    assert [(i.index, i.sample, i.script, i.seed, str(i.path)) for i in made] == [
        (0, 0, "a", 7, "out/000-x-0.mp4"),
        (0, 1, "a", 8, "out/000-x-1.mp4"),
        (2, 0, "b [2s]", 7, "out/002-y-0.mp4"),
        (2, 1, "b [2s]", 8, "out/002-y-1.mp4"),
    ]
    with pytest.raises(ValueError, match="--start"):
        items(["a"], "out", start=1)


def test_as_script_of_nothing() -> None:
    assert as_script("  ") == ""


def record(pipe: LongTakePipeline, path: Path, seconds: float, stop_after: int | None = None) -> Path:
    """A video of ``seconds``, or of ``stop_after`` chunks of it."""
    chunks = 0

    def stop() -> bool:
        nonlocal chunks
        chunks += 1
        return stop_after is not None and chunks > stop_after

    finished = Recording.start(pipe.start(PROMPT, "sliding:window=6", 3), path).run(seconds, should_stop=stop)
    assert finished is (stop_after is None)
    return path


def test_status(tiny: LongTakePipeline, tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    assert status(path, 32) == "new" and not os.listdir(tmp_path)
    record(tiny, path, 2, stop_after=0)  # before its first frame
    assert status(path, 32) == "new"
    record(tiny, path, 2, stop_after=1)
    assert status(path, 32) == status(path, 9) == "continue"
    assert Recording.resume(tiny, path).run(2)
    assert status(path, 32) == status(path, 31) == "done"
    assert status(path, 33) == "continue"
    with path.open("ab") as file:
        file.write(b"torn")
    assert status(path, 32) == "continue"  # somebody wrote on; a resume cuts it off


def test_status_without_snapshot(tiny: LongTakePipeline, tmp_path: Path) -> None:
    """Snapshots of large models are large: whoever removes that of a finished video shall not lose the video."""
    path = record(tiny, tmp_path / "a.mp4", 2)
    snapshot_path(path).unlink()
    assert status(path, 32) == status(path, 10) == "done"
    with pytest.raises(ValueError, match=r"32 of 33 frames and no snapshot.*--overwrite.*\.$"):
        status(path, 33)
    write(tmp_path, b"no video", "a.mp4")
    with pytest.raises(ValueError, match=r"no video that can be read.*--overwrite.*\.$"):
        status(path, 33)


def test_status_of_another_video(tiny: LongTakePipeline, tmp_path: Path) -> None:
    """A video that was made with something else is neither skipped nor continued."""
    path = record(tiny, tmp_path / "a.mp4", 1)
    script, same = parse_script(PROMPT, 1), "sliding:sink=0,window=6"
    assert status(path, 16, script, 3, same) == "done"
    assert status(path, 99, parse_script(PROMPT), 3, same) == "continue"
    for arguments, says in (
        ((parse_script("a blue box", 1), 3, same), "the prompt 'a red ball rolls"),
        ((parse_script(PROMPT + " [0.5s] | a box", 1), 3, same), "the prompt"),
        ((script, 4, same), "the seed 3"),
        ((script, 3, "memrope"), "the memory 'sliding:window=6'"),
    ):
        with pytest.raises(ValueError, match=rf"{says}.*--overwrite.*\.$") as caught:
            status(path, 16, *arguments)
        assert "\n" not in str(caught.value)


def test_status_refuses(tiny: LongTakePipeline, tmp_path: Path) -> None:
    (tmp_path / "folder.mp4").mkdir()
    path = record(tiny, tmp_path / "a.mp4", 1)
    lost = tmp_path / "lost.mp4"
    shutil.copy(snapshot_path(path), snapshot_path(lost))
    broken = tmp_path / "broken.mp4"
    shutil.copy(path, broken)
    snapshot_path(broken).write_bytes(snapshot_path(path).read_bytes()[:100])
    for bad in (tmp_path / "folder.mp4", lost, broken):
        with pytest.raises(ValueError) as caught:
            status(bad, 16, None, 3)
        assert str(caught.value).endswith(".") and "\n" not in str(caught.value) and bad.stem in str(caught.value)
