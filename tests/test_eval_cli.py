"""``longtake eval`` as people use it: files, tables, JSON, curves, and what cannot be measured."""

from __future__ import annotations

import json
import struct
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from longtake.evaluation import METRICS, Settings
from longtake.evaluation.evaluate import evaluate
from longtake.evaluation.features import LEARNED, load_features
from longtake.evaluation.plots import chart
from longtake.evaluation.source import look
from longtake.lock import Lock
from tests.conftest import Cli
from tests.helpers_videos import FPS, clean, measure, minutes, to_bytes, write

SECONDS = 9


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean video, and the same one fading."""
    folder, good = tmp_path_factory.mktemp("videos"), clean(SECONDS)
    write(folder / "good.mp4", good)
    write(folder / "faded.mp4", (good - 120) * (1 - 0.6 * minutes(good)) + 120)
    return folder


def plain_mp4(path: Path, frames: np.ndarray, times: Sequence[int] | None = None, options: str = "") -> Path:
    """As other programs write them: one index of all frames, at the end or (faststart) in front."""
    with av.open(str(path), "w", format="mp4", options={"movflags": options} if options else {}) as container:
        stream: Any = container.add_stream("mpeg4", rate=FPS, width=frames.shape[2], height=frames.shape[1])
        stream.pix_fmt = "yuv420p"
        for index, rgb in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(rgb)
            if times is not None:
                frame.pts, frame.time_base = times[index], Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def only_sound(path: Path) -> Path:
    with av.open(str(path), "w", format="mp4") as container:
        stream: Any = container.add_stream("aac", rate=16000)
        stream.layout = "mono"
        for _ in range(8):
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            sound.sample_rate = 16000
            container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    return path


def bad_files(folder: Path) -> dict[str, str]:
    """Files that cannot be measured, and what is said of each."""
    frames = to_bytes(clean(2))
    (folder / "text.mp4").write_text("this is no video")
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "folder.mp4").mkdir()
    plain_mp4(folder / "one.mp4", frames[:1])
    plain_mp4(folder / "none.mp4", frames[:0])
    uneven = np.cumsum([1, 1, 1, 3] * 8).tolist()
    plain_mp4(folder / "uneven.mp4", frames, uneven)
    only_sound(folder / "sound.m4a")
    whole = plain_mp4(folder / "whole.mp4", frames).read_bytes()
    (folder / "noindex.mp4").write_bytes(whole[: len(whole) // 2])
    whole = plain_mp4(folder / "whole.mp4", frames, options="faststart").read_bytes()
    (folder / "half.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "whole.mp4").unlink()
    torn = write(folder / "torn.mp4", frames).read_bytes()
    (folder / "torn.mp4").write_bytes(torn[:-100])
    write(folder / "small.mp4", frames[:, :32, :48])
    write(folder / "tiny.mp4", frames[:, :8, :8])
    return {
        "text.mp4": "cannot be read as a video",
        "empty.mp4": "is empty",
        "folder.mp4": "is not a file",
        "missing.mp4": "There is no video",
        "one.mp4": "has 1 frame: a video has at least 3",
        "none.mp4": "",  # some writers make a file without a stream of it, others one without frames
        "uneven.mp4": "has a variable frame rate, from 5.33 to 16 frames per second",
        "sound.m4a": "has only sound in it",
        "noindex.mp4": "cannot be read as a video",
        "half.mp4": "is cut off",
        "torn.mp4": "is cut off",
        "small.mp4": "is 48x32 and",
        "tiny.mp4": "is 8x8: videos are measured from 16x16",
    }


def test_what_cannot_be_measured_is_left_out(cli: Cli, videos: Path, tmp_path: Path) -> None:
    """One sentence each, the others are measured, and the exit code says that something was left out."""
    bad = bad_files(tmp_path)
    made = cli("eval", videos / "good.mp4", *bad, "found.json", "--json", "-q")
    assert made.returncode == 3, made.stderr
    lines = made.stderr.splitlines()
    assert len(lines) == len(bad) + 1 and "Traceback" not in made.stderr
    for line, (name, sentence) in zip(lines, bad.items(), strict=False):
        assert line.startswith("Error: ") and line.endswith(".") and name in line and sentence in line, line
    assert lines[-1].startswith("1 video measured; left out: text.mp4, empty.mp4, ")
    report = json.loads((tmp_path / "found.json").read_text())
    assert [one["what"] for one in report["skipped"]] == list(bad) and len(report["videos"]) == 1
    assert report["skipped"][0]["reason"] == lines[0].removeprefix("Error: ")
    assert "good.mp4: 9 s, 96x64, 144 frames at 16 a second" in made.stdout
    # in a process of its own, of a file of H.264: what is measured here of the frames that were written
    found = measure(clean(SECONDS)).metrics
    for name, value in report["videos"][0]["metrics"].items():
        if name in ("brightness", "saturation", "contrast", "consistency_start", "jumps"):
            assert value == pytest.approx(found[name], rel=0.05), name


def test_nothing_can_be_measured(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("this is no video")
    made = cli("eval", "text.mp4", "missing.mp4")
    assert made.returncode == 2 and not made.stdout and len(made.stderr.splitlines()) == 2


def test_reports(cli: Cli, videos: Path, tmp_path: Path) -> None:
    """JSON with what is needed to do it again, curves, and a planted rate that survives H.264."""
    paths = [videos / "good.mp4", videos / "faded.mp4"]
    options = ["--window", "1.5s", "--chunk", "8,8", "--decoder", "none"]
    made = cli("eval", *paths, "--json", "--plots", "curves", *options)
    assert made.returncode == 0, made.stderr
    report = json.loads(made.stdout, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert report["command"].startswith("longtake eval ") and "--chunk 8,8" in report["command"]
    assert report["settings"]["window"] == 1.5 and report["settings"]["chunk"] == {"first": 8, "rest": 8}
    assert report["settings"]["decoder"] is None
    assert {"longtake", "python", "numpy", "pillow", "av", "libavcodec"} <= set(report["versions"])
    good, faded = report["videos"]
    assert good["frames"] == 144 and good["fps"] == 16 and good["seconds"] == 9 and len(good["sha256"]) == 64
    assert good["metrics"]["seam_decoder"] is None and len(good["windows"]["seconds"]) == 6
    assert set(good["metrics"]) == set(report["metrics"]) == {n for n in METRICS if not n.startswith("vbench")}
    assert faded["metrics"]["contrast_change"] == pytest.approx(
        good["metrics"]["contrast_change"] - 60 * 7.5 / 60, abs=1.5
    )
    for series in ("contrast", "sharpness", "consistency_start", "autocorrelation"):
        tree = ElementTree.fromstring((tmp_path / "curves" / f"{series}.svg").read_text())
        lines = [e for e in tree.iter("{http://www.w3.org/2000/svg}path") if e.get("fill") == "none"]
        assert len(lines) == 2 and all(len(e.get("d", "")) > 20 for e in lines)
    again = cli("eval", *paths, "--json", *options)
    other = json.loads(again.stdout)
    assert other["videos"] == report["videos"] and other["versions"] == report["versions"]


def test_listing(cli: Cli) -> None:
    made = cli("eval", "--list")
    assert made.returncode == 0
    for name, metric in METRICS.items():
        assert f"\n{name}" in "\n" + made.stdout and metric.formula in made.stdout and metric.source in made.stdout
    as_json = cli("eval", "--list", "--json")
    assert json.loads(as_json.stdout) == {name: metric.to_dict() for name, metric in METRICS.items()}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "Which videos"),
        (["a.mp4", "b.json"], "say --json b.json"),
        (["a.mp4", "b.json", "c.json", "--json"], "one file, not 2"),
        (["a.mp4", "--json", "no/such/folder.json"], "no place"),
        (["a.mp4", "--window", "0.1s"], "A window is from"),
        (["a.mp4", "--window", "x"], "not a duration"),
        (["a.mp4", "--chunk", "x"], "--chunk takes"),
        (["a.mp4", "--features", "x"], "--features takes fixed, dino, clip, dinov2, or a folder"),
        (["a.mp4", "--dimensions", "temporal_flickering"], "--dimensions is for --vbench"),
        (["a.mp4", "--clips", "3"], "--clips is for --vbench"),
        (["a.mp4", "--vbench", "--dimensions", "color"], "not 'color'"),
        (["a.mp4", "--vbench", "--clips", "0"], "1 or more"),
        (["a.mp4", "--vbench", "--clip", "0.1s"], "clip for VBench"),
        (["a.mp4", "--vbench", "--device", "tpu"], "--device must be"),
        (["a.mp4", "--plots", "file"], "--plots must be a folder"),
    ],
)
def test_refused(arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from longtake.cli import app

    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    made = CliRunner().invoke(app, ["eval", *arguments])
    assert made.exit_code == 2 and says in made.stderr and len(made.stderr.splitlines()) == 1, made.stderr


def test_evaluation_loads_no_torch(videos: Path) -> None:
    """Reading and measuring needs none, and starts without its seconds."""
    import sys

    code = (
        "import sys; from longtake.evaluation.evaluate import evaluate; import longtake.cli_eval; "
        f"evaluate({str(videos / 'good.mp4')!r}); assert 'torch' not in sys.modules"
    )
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr


def test_what_is_being_written_is_left_alone(videos: Path) -> None:
    lock = Lock(videos / "good.mp4")
    try:
        with pytest.raises(ValueError, match="is being written by another process"):
            look(videos / "good.mp4")
    finally:
        lock.release()
    assert look(videos / "good.mp4").frames == 144


def test_damage_further_on(tmp_path: Path) -> None:
    """The index is whole and the pictures are not."""
    path = plain_mp4(tmp_path / "a.mp4", to_bytes(clean(2)), options="faststart")
    content = bytearray(path.read_bytes())
    start = content.index(b"mdat") + 4
    middle = start + (len(content) - start) // 3
    content[middle:] = bytes(len(content) - middle)
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged"):
        evaluate(path)


def test_time_stamps_that_are_rounded_are_constant(tmp_path: Path) -> None:
    """Matroska rounds to milliseconds: 62 or 63 for a sixteenth of a second."""
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w", format="matroska") as container:
        stream: Any = container.add_stream("mpeg4", rate=FPS, width=96, height=64)
        for rgb in to_bytes(clean(2)):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb)))
        container.mux(stream.encode(None))
    source = look(path)
    assert source.fps == 16 and source.frames == 32 and sum(1 for _ in source) == 32
    content = path.read_bytes()
    (tmp_path / "cut.mkv").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"is cut off|is damaged|has no frames"):
        evaluate(tmp_path / "cut.mkv")


def test_a_turned_video_is_measured_as_it_is_shown(tmp_path: Path) -> None:
    """A camera's file that says "turn me by 90 degrees" is as wide as it was high."""
    path = plain_mp4(tmp_path / "a.mp4", to_bytes(clean(2)))
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 4 + 4 + 20 + 16  # version and flags, times, id, duration; layer, volume: its matrix
    assert struct.unpack(">9i", content[at : at + 36]) == (65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    content[at : at + 36] = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    source = look(path)
    assert (source.width, source.height) == (64, 96)
    assert next(iter(source)).shape == (96, 64, 3)


def test_features_of_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a folder; a name needs a download, and says so where there is none."""
    from transformers import ViTConfig, ViTModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    ViTModel(ViTConfig(**sizes, image_size=32, patch_size=8)).save_pretrained(tmp_path / "vit")
    extract = load_features(str(tmp_path / "vit"))
    frames = to_bytes(clean(1))
    found = np.stack([extract(frame) for frame in frames[:3]])
    assert found.shape == (3, 16) and np.square(found).sum(1) == pytest.approx(1, abs=1e-5)
    assert np.array_equal(found[0], extract(frames[0])) and not np.array_equal(found[0], found[1])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="343 MB that must be downloaded once") as refused:
        load_features("dino")
    assert LEARNED["dino"].repository in str(refused.value) and "--features fixed" in str(refused.value)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_features(str(tmp_path / "broken"))


def test_curves_with_gaps() -> None:
    x = np.arange(5.0)
    picture = chart([(x, np.array([1, 2, np.nan, 4, 3.0])), (x[:1], x[:1])], ["<a>", "b"], "title", "seconds")
    assert picture is not None
    tree = ElementTree.fromstring(picture)
    first, second = (e.get("d", "") for e in tree.iter("{http://www.w3.org/2000/svg}path") if e.get("fill") == "none")
    assert first.count("M") == 2 and first.count("L") == 2 and second.count("M") == 1
    assert "<a>" in [e.text for e in tree.iter("{http://www.w3.org/2000/svg}text")]
    assert chart([(x, np.full(5, np.nan))], ["a"], "title", "seconds") is None
    assert chart([(x, np.full(5, 3.0))], ["a"], "title", "seconds") is not None


def test_a_frozen_video_is_still_in_a_file(tmp_path: Path) -> None:
    """The encoder's key frames, one with every chunk, are no motion; nothing else is wrong with it."""
    found = evaluate(write(tmp_path / "frozen.mp4", np.repeat(clean(0.1)[:1], 96, 0))).metrics
    assert found["still_windows"] == 100 and found["jumps"] == 0 and found["flicker"] < 0.05
    assert found["loop_strength"] != found["loop_strength"]  # nothing changes, so nothing comes back
    assert abs(found["seam_chunk"]) < 0.3 and found["consistency_end"] > 0.99


def test_settings_reach_the_meter(videos: Path) -> None:
    found = evaluate(videos / "good.mp4", Settings(window=3, chunk=None))
    assert len(found.measured.seconds) == 3 and np.isnan(found.metrics["seam_chunk"])
    assert found.metrics["seam_decoder"] == pytest.approx(0, abs=0.3)
