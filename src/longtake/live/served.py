"""The model that a server serves: what it is, what it knows, and what can be asked of it. Loads no torch."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from longtake.facts import ModelFacts
from longtake.live.livetake import Asked
from longtake.live.trouble import Trouble
from longtake.memory import parse_memory
from longtake.plan import Plan, check_memory

_EXAMPLES = (
    "A red fox walks through a snowy forest in the morning, the camera follows it.",
    "Waves roll onto a beach at sunset, seen from above.",
    "A small boat drifts down a calm river between green hills.",
)


@dataclass(frozen=True)
class Served:
    """A model and how it is run.

    Attributes:
        facts: what is known of it.
        dtype: that it computes in, "float32" or "bfloat16".
        options: of ``longtake generate``, beside model, memory, seed and size, that make the same video: dtype,
            components, LoRAs and so on.
    """

    facts: ModelFacts
    dtype: str
    options: tuple[str, ...] = ()

    @property
    def chunk_frames(self) -> tuple[int, int]:
        """Frames of video in a take's first chunk, and in every other."""
        facts = self.facts
        return 1 + facts.temporal * (facts.chunk - 1), facts.temporal * facts.chunk

    def ask(
        self,
        prompt: str,
        *,
        memory: str | None = None,
        seed: int | None = None,
        on_change: str = "keep",
        width: int | None = None,
        height: int | None = None,
        max_seconds: float,
    ) -> Asked:
        """Settles what a take will be.

        Raises:
            Trouble: for what the model cannot do.
        """
        facts = self.facts
        height, width = height or facts.size[0], width or facts.size[1]
        try:
            policy = parse_memory(memory or facts.memory, facts.chunk)
            check_memory(Plan(facts, policy, max_seconds, height, width, self.dtype))
        except ValueError as error:
            raise Trouble("invalid", str(error)) from None
        self.check_prompt(prompt)
        first, more = self.chunk_frames
        return Asked(
            prompt=" ".join(prompt.split()),
            seed=random.SystemRandom().randrange(2**31) if seed is None else seed,
            memory=policy.spec(),
            on_change=on_change,
            width=width,
            height=height,
            fps=facts.fps,
            first_chunk_frames=first,
            chunk_frames=more,
            max_seconds=max_seconds,
            model=facts.place,
            signature=facts.signature(),
            dtype=self.dtype,
            created=time.time(),
        )

    def check_prompt(self, prompt: str) -> None:
        """Refuses a prompt that says nothing to the model.

        Raises:
            Trouble: in one sentence.
        """
        if not prompt.strip():
            raise Trouble("invalid", "A prompt must not be empty.")
        try:
            self.facts.check_prompt(" ".join(prompt.split()))
        except ValueError as error:
            raise Trouble("invalid", str(error)) from None

    def check_same(self, asked: Asked) -> None:
        """Refuses to continue a take of another model.

        Raises:
            Trouble: in one sentence.
        """
        if (asked.model, asked.signature, asked.dtype) != (self.facts.place, self.facts.signature(), self.dtype):
            raise Trouble(
                "conflict",
                f"The take was made with the model {asked.model} in {asked.dtype}; this server has {self.facts.name} "
                f"in {self.dtype}, or other weights.",
            )

    def describe(self) -> dict[str, Any]:
        """The ``models`` entry of ``/api/info``."""
        facts, (first, more) = self.facts, self.chunk_frames
        return {
            "name": facts.name,
            "width": facts.size[1],
            "height": facts.size[0],
            "fps": facts.fps,
            "size_step": facts.step,
            "first_chunk_frames": first,
            "chunk_frames": more,
            "license": facts.info.license or None,
            "knows": self._knows(),
            "examples": self._examples(),
        }

    def _knows(self) -> dict[str, Any] | None:
        words = self.facts.pocket_words
        if words is None:
            return None
        groups: Mapping[str, tuple[str, ...]] = words.groups()
        return {
            "summary": words.what_it_knows(),
            "groups": [{"name": name, "words": list(group)} for name, group in groups.items()],
            "max_words": words.MAX_WORDS,
        }

    def _examples(self) -> list[str]:
        words = self.facts.pocket_words
        if words is None:
            return list(_EXAMPLES)
        examples: list[str] = list(words.examples())
        return examples
