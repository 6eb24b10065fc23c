"""The example memory in CONTRIBUTING.md, taken from the page and used as it says."""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from longtake.memory import MemoryPolicy
from tests.helpers_pipeline import PROMPT, build, run

PAGE = Path(__file__).parent.parent / "CONTRIBUTING.md"


@pytest.fixture
def thinning(monkeypatch: pytest.MonkeyPatch) -> type[MemoryPolicy]:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (code,) = [block for block in blocks if "class Thinning" in block]
    module = ModuleType("contributed")
    monkeypatch.setitem(sys.modules, "contributed", module)  # dataclasses look their module up
    exec(compile(code, str(PAGE), "exec"), module.__dict__)
    policy: type[MemoryPolicy] = module.Thinning
    return policy


def test_the_example_memory_keeps_what_the_page_says(thinning: type[MemoryPolicy]) -> None:
    pipe = build()
    take = pipe.start(PROMPT, memory=thinning())
    chunks = run(take, 12)
    assert all(chunk.video.isfinite().all() for chunk in chunks)
    take.begin()
    kept = [place.frame for place in take.memory.layout()]
    # the sinks, of six frames the last of their chunk, and the chunk that is being made
    assert kept == [0, 1, 2, 20, 23, 26, 29, 32, 35, 36, 37, 38]
    assert "three times as far" in " ".join(PAGE.read_text(encoding="utf-8").split())
    plain = run(pipe.start(PROMPT, memory="longlive"), 12)
    assert not torch.equal(chunks[-1].latents, plain[-1].latents)


def test_the_example_checks_its_settings(thinning: type[MemoryPolicy]) -> None:
    with pytest.raises(ValueError, match="window"):
        thinning(window=0)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="window must be at least 6"):
        build().start(PROMPT, memory=thinning(window=5))  # type: ignore[call-arg]
