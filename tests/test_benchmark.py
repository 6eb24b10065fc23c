"""The benchmark runs, and what it writes can be read."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from benchmarks import chunk, compare
from benchmarks.endurance import PROMPT, Endurance

from longtake import load
from tests.conftest import warm

ROOT = Path(__file__).parent.parent


def run(*arguments: str | Path, name: str = "cost") -> subprocess.CompletedProcess[str]:
    return warm.run(f"benchmarks.{name}", *arguments, cwd=ROOT)


def test_quick(tiny_folder: Path, tmp_path: Path) -> None:
    made = run(
        "--quick",
        "--model",
        tiny_folder,
        "--memories",
        "memrope;sliding:window=6",
        "--dtype",
        "float32",
        "--json",
        tmp_path / "new" / "x",
    )
    assert made.returncode == 0, made.stderr
    assert "memrope" in made.stdout and "sliding:window=6" in made.stdout
    report = json.loads((tmp_path / "new" / "x").read_text())
    assert report["machine"]["threads"] == 1 and report["machine"]["torch"]
    assert [(row["memory"], row["chunk"]) for row in report["rows"]] == [
        (memory, chunk) for memory in ("memrope", "sliding:window=6") for chunk in (5, 10)
    ]
    for row in report["rows"]:
        assert set(row["stages"]) == {"memory", "denoise", "commit", "decode", "transfer", "write"}
        assert row["measured"] == 4
        assert row["total_ms"] > 0 and row["frames_per_second"] > 0


def test_refuses() -> None:
    for arguments in (("--memories", "nothing"), ("--chunks", "x"), ("--dtype", "int8")):
        made = run(*arguments)
        assert made.returncode == 2 and "error:" in made.stderr


def test_soak(tmp_path: Path) -> None:
    made = run("--tiny", "--chunks", "60", "--memory", "memrope;longlive", "--json", tmp_path / "x", name="soak")
    assert made.returncode == 0, made.stderr
    report = json.loads((tmp_path / "x").read_text())
    marks = [(row["memory"], row["chunk"]) for row in report["rows"]]
    assert marks == [(memory, chunk) for memory in ("memrope", "longlive") for chunk in (50, 60)]
    assert all(f"{row['rss_mb']:.1f} MB" in made.stdout and row["rss_mb"] > 50 for row in report["rows"])


def test_a_day_goes_on_where_it_was_stopped(tiny_folder: Path, tmp_path: Path) -> None:
    def rows(out: str, *seconds: int) -> list[dict[str, float]]:
        for end in seconds:
            settings = {"prompt": PROMPT, "memory": "memrope", "seed": 0}
            day = Endurance(load(str(tiny_folder)), tmp_path / out, settings, 6 * 16)
            day.run(end * 16, {})
        day.draw()
        found: list[dict[str, float]] = json.loads((tmp_path / out / "rows.json").read_text())["rows"]
        return found

    whole, parts = rows("whole", 19), rows("parts", 12, 19)
    assert [round(row["minutes"], 1) for row in whole] == [0.1, 0.2, 0.3, 0.3]
    ours = ("ms", "rss_mb")  # not the video's
    for a, b in zip(whole, parts, strict=True):
        assert {k: v for k, v in a.items() if k not in ours} == {k: v for k, v in b.items() if k not in ours}
    assert whole[0]["colours"] == 0 < whole[1]["colours"] and whole[0]["largest"] > 0
    assert len(list((tmp_path / "whole" / "frames").iterdir())) == 4
    assert (tmp_path / "whole" / "sheet.png").exists() and (tmp_path / "whole" / "curves" / "ms.svg").exists()


def test_others_refuse() -> None:
    for name, *arguments in (
        ("soak", "--memory", "nothing"),
        ("soak", "--chunks", "0"),
        ("endurance", "--out", "nowhere", "--every", "0.01"),
        ("pocket_quality", "--seeds", "x"),
        ("pocket_quality", "--memories", "memrope,sliding"),
    ):
        made = run(*arguments, name=name)
        assert made.returncode == 2 and "error:" in made.stderr and "Traceback" not in made.stderr


def test_large(tmp_path: Path) -> None:
    """Two blocks of the 1.3B model with the real autoencoder, split in the way that several GPUs would be."""
    options = ("--size", "32x32", "--chunks", "8", "--layers", "2", "--devices", "cpu,cpu", "--quantize", "fp8")
    made = run(*options, "--json", tmp_path / "large.json", name="large")
    assert made.returncode == 0, made.stderr
    report = json.loads((tmp_path / "large.json").read_text())
    assert report["rows"][0]["chunk"] == 8 and report["machine"]["arithmetic_bytes"]["cpu"] > 0.2e9
    assert run("--chunks", "3", name="large").returncode == 2


def test_chunk_and_compare(tmp_path: Path) -> None:
    """Both ways in one run; what was measured is consistent with itself and with the plan's arithmetic."""
    from longtake.facts import ModelFacts
    from longtake.memory import parse_memory
    from longtake.operations import decoder_operations, forward_operations

    options = ("--config", "pocket", "--chunks", "2", "--dtype", "float32", "--own-time")
    made = run(*options, "--naive", "--json", tmp_path / "a.json", name="chunk")
    assert made.returncode == 0, made.stderr
    rows = json.loads((tmp_path / "a.json").read_text())["rows"]
    assert [row["way"] for row in rows][-1] == "naive" and f"times as fast as {rows[-1]['way']}" in made.stdout
    facts = ModelFacts.read("pocket")
    frame = (facts.size[0] // facts.step) * (facts.size[1] // facts.step)
    sizes = (facts.transformer, 3 * frame, parse_memory("memrope").capacity(3) * frame, 24)
    needed = 4 * forward_operations(*sizes).total + forward_operations(*sizes, commit=True).total
    for row in rows:
        assert row["operations"] == needed + decoder_operations(facts.vae, *facts.size, 3)
        assert set(row["stages"]) == {"memory", "denoise", "commit", "decode", "transfer", "write"}
        assert 0 < row["share"] < 1.5 and row["syncs"] is None and row["measured"] == 2
        assert row["real_time"] == pytest.approx(row["frames_per_second"] / facts.fps, abs=0.01)
        assert row["share"] == pytest.approx(
            row["operations"] * row["frames_per_second"] / 12 / row["rate"], rel=0.02, abs=1e-3
        )

    faster = [dict(row, stages={n: [m / 2, 0.0] for n, (m, _) in row["stages"].items()}) for row in rows]
    machine = {"torch": "another"}
    (tmp_path / "b.json").write_text(json.dumps({"machine": machine, "rows": faster}))
    compared = run(tmp_path / "a.json", tmp_path / "b.json", name="compare")
    assert compared.returncode == 0, compared.stderr
    assert "2.00" in compared.stdout and "Not the same torch" in compared.stdout
    assert "within the spread" in compared.stdout  # what is the same all in all is


def test_rows_that_belong_together() -> None:
    one = [{"memory": m, "way": "plain", "stages": {}, "settings": {"x": 1}} for m in ("memrope", "sliding")]
    other = [dict(row, way="naive") for row in reversed(one)]
    assert [(a["memory"], b["memory"]) for a, b in compare.pairs(one, other)] == [("memrope",) * 2, ("sliding",) * 2]
    assert compare.pairs(one, [*other, one[1]]) == [(one[1], one[1])]  # the same way, if there is one
    with pytest.raises(ValueError, match="no rows in common"):
        compare.pairs(one, [{"memory": "echo", "stages": {}}])


def test_chunk_and_compare_refuse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "no.json").write_text('{"machine": {}, "rows": [{}]}')
    for name, *arguments in (
        ("chunk", "--config", "nothing"),
        ("chunk", "--size", "48"),
        ("chunk", "--chunks", "1"),
        ("chunk", "--memory", "echo"),
        ("chunk", "--device", "cuda:9"),
        ("chunk", "--config", "pocket", "--layers", "1"),
        ("chunk", "--json", tmp_path / "none" / "x.json"),
        ("compare", tmp_path / "missing.json", tmp_path / "no.json"),
        ("compare", tmp_path / "no.json", tmp_path / "no.json"),
    ):
        with pytest.raises(SystemExit) as error:
            {"chunk": chunk, "compare": compare}[name].main([str(a) for a in arguments])
        assert error.value.code == 2 and "error: " in capsys.readouterr().err, arguments


def test_the_published_way_makes_the_same_pictures() -> None:
    """What ours is measured against must do the same, or the ratio says nothing."""
    import torch
    from benchmarks.naive import naive_memory, unfused_lora

    from tests.helpers_pipeline import PROMPT, build
    from tests.helpers_pipeline import run as make

    pipe = build()
    for memory in ("memrope", "longlive", "infinity-rope"):
        expected = make(pipe.start(PROMPT, memory), 7)
        with unfused_lora(pipe.transformer):
            take = pipe.start(PROMPT, memory)
            take.memory = naive_memory(take)
            made = make(take, 7)
        assert all(torch.allclose(a.latents, b.latents, atol=1e-4) for a, b in zip(made, expected, strict=True))
    assert not any("lora" in name for name, _ in pipe.transformer.named_parameters())
