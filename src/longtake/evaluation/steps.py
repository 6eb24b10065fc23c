"""What happens from one frame to the next: flicker, seams, jumps. Looks at every frame, and keeps the last few."""

from __future__ import annotations

from collections import deque

import numpy as np

from longtake.evaluation.pictures import LUMA, block_means
from longtake.evaluation.settings import Boundaries
from longtake.evaluation.streams import Means

_JUMP = 0.5  # per cent of full scale
_TIMES = 4.0  # as large as what happens around it
_AROUND = 4  # steps before and after: a picture may be held for three frames without every new one being a jump
_LEAST = 0.05  # per cent: seams elsewhere count as at least this in ratios, as 8 bits show no less


class Steps:
    """Takes note of all frames of a video, in order.

    Args:
        chunk, decoder: where parts begin; None where that is not known.
    """

    def __init__(self, chunk: Boundaries | None, decoder: Boundaries | None) -> None:
        self._chunk, self._decoder = chunk, decoder
        self._frame: np.ndarray | None = None
        self._blocks: np.ndarray | None = None
        self._steps: deque[np.ndarray] = deque(maxlen=3)  # of block means
        self._sizes: deque[float] = deque(maxlen=2 * _AROUND + 1)  # of those steps
        self._means = Means(
            ("difference", "flicker", "seam_chunk", "elsewhere_chunk", "seam_decoder", "elsewhere_decoder")
        )
        self.frames = 0
        self.jumps = 0

    def add(self, frame: np.ndarray) -> dict[str, float]:
        """The next frame, uint8 RGB; returns what is now known of its ``frame_difference`` and ``flicker``, in per
        cent."""
        blocks = block_means(frame) / 2.55
        now: dict[str, float] = {}
        if self._frame is not None and self._blocks is not None:
            # |a - b| of unsigned numbers, without room for a sign
            difference = np.maximum(frame, self._frame) - np.minimum(frame, self._frame)
            now["frame_difference"] = float(difference.mean(dtype=np.float64)) / 2.55
            self._means.add({"difference": now["frame_difference"]})
            self._steps.append(blocks - self._blocks)
            self._sizes.append(float(np.abs(self._steps[-1]).mean()))
            if len(self._steps) > 1:
                bend = (self._steps[-1] - self._steps[-2]) @ LUMA
                now["flicker"] = float(np.median(np.abs(bend))) / 4
                self._means.add({"flicker": now["flicker"]})
            if len(self._steps) == 3:
                self._seam(self.frames - 1)
            if len(self._sizes) > _AROUND:
                self.jumps += self._is_jump(len(self._sizes) - 1 - _AROUND)
        self._frame, self._blocks = frame, blocks
        self.frames += 1
        return now

    def _seam(self, frame: int) -> None:
        """``frame`` is the one that the middle step leads to."""
        before, step, after = self._steps
        size = float(np.abs(step - (before + after) / 2).mean())
        chunk = self._chunk is not None and self._chunk.at(frame)
        for name, where in (("chunk", self._chunk), ("decoder", self._decoder)):
            if where is None:
                continue
            if where.at(frame):
                if name == "chunk" or not chunk:
                    self._means.add({f"seam_{name}": size})
            # beside a seam of either kind the step before or after is a seam, and spoils the comparison
            elif not any(w is not None and w.near(frame) for w in (self._chunk, self._decoder)):
                self._means.add({f"elsewhere_{name}": size})

    def _is_jump(self, middle: int) -> bool:
        size = self._sizes[middle]
        around = [s for i, s in enumerate(self._sizes) if i != middle and abs(i - middle) <= _AROUND]
        return bool(around) and size > _JUMP and size > _TIMES * max(around)

    def metrics(self, fps: float) -> dict[str, float]:
        """Of the whole video so far."""
        # nothing comes after the last ones
        last = range(max(0, len(self._sizes) - _AROUND), len(self._sizes))
        total = self.jumps + sum(self._is_jump(middle) for middle in last)
        means = self._means.values()
        found = {
            "frame_difference": means["difference"],
            "flicker": means["flicker"],
            "jumps": total / (self.frames / fps) * 60 if self.frames > 1 else float("nan"),
        }
        for name in ("chunk", "decoder"):
            seam, elsewhere = means[f"seam_{name}"], means[f"elsewhere_{name}"]
            found[f"seam_{name}"] = seam - elsewhere
            found[f"seam_{name}_ratio"] = seam / max(elsewhere, _LEAST) if elsewhere == elsewhere else elsewhere
        return found
