"""The numbers in docs/models.md are those that the code works out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from longtake.checkpoints import load_registry
from longtake.checkpoints.hub import plan
from longtake.facts import ModelFacts
from longtake.fit import Fit
from longtake.memory import parse_memory

PAGE = (Path(__file__).parent.parent / "docs" / "models.md").read_text()


def row(name: str) -> list[str]:
    """The cells of the table row that begins with a name."""
    (line,) = (line for line in PAGE.splitlines() if line.startswith(f"| {name} |"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def gigabytes(fit: Fit, device: str) -> float:
    return fit.needed(device).total / 1e9


@pytest.mark.parametrize(("size", "name"), [("1.3B", "self-forcing"), ("1.3B", "longlive"), ("14B", "krea-realtime")])
def test_what_models_need(size: str, name: str) -> None:
    facts = ModelFacts.read(name)

    def fit(devices: tuple[str, ...] = ("cuda:0",), offload: str = "text", quantize: str | None = None) -> Fit:
        free = dict.fromkeys((*devices, "cpu"))
        policy = parse_memory(facts.memory)
        return Fit.of(
            facts, policy, *facts.size, dtype="bfloat16", devices=devices, offload=offload, quantize=quantize, free=free
        )

    two = fit(("cuda:0", "cuda:1"))
    expected = [
        [gigabytes(fit(), "cuda:0")],
        [gigabytes(fit(quantize="fp8"), "cuda:0")],
        [gigabytes(fit(offload="group"), "cuda:0")],
        [gigabytes(two, "cuda:0"), gigabytes(two, "cuda:1")],
        [gigabytes(fit(), "cpu"), gigabytes(fit(offload="group"), "cpu")],
    ]
    for cell, numbers in zip(row(size), expected, strict=True):
        assert [float(n) for n in re.findall(r"\d+\.\d", cell)] == [round(n, 1) for n in numbers], cell


def test_downloads_and_licences(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of every model by name, in an empty cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for name, info in load_registry().items():
        cells = row(f"`{name}`")
        assert cells[2] == info.license
        total = plan(info, ask=False).missing
        assert cells[3] == (f"{total / 1e9:.1f} GB" if total else "nothing"), name
