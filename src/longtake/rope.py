"""Rotary position embedding addressed by (t, h, w) ids, for any integer frame index.

The formula and the interleaved pairs are those of diffusers' ``WanRotaryPosEmbed`` (Wan, arXiv 2503.20314): the head
dimension is split in three, time first, and each part is rotated by its own id. That class reads a table of 1,024
rows, which a long take leaves after four minutes; here the angles are computed for the ids that are asked for.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

from longtake.transfer import send

# Id patterns repeat once a memory is full (a ring of slots): this many covers every period met in practice.
_CACHED_PATTERNS = 64


class Rope:
    """Rotation tables for one grid of tokens.

    Args:
        head_dim: channels per attention head, even.
        grid: tokens per frame as (height, width).
        theta: base of the frequencies.
        device: where the tables are handed out. They are computed on the host in float64 and handed out as float32,
            so no float64 reaches the device and the angle at frame 10,000,000 is as good as the one at frame 1.

    Raises:
        ValueError: if ``head_dim`` is odd.
    """

    def __init__(
        self,
        head_dim: int,
        grid: tuple[int, int],
        theta: float = 10000.0,
        device: torch.device | str = "cpu",
    ) -> None:
        if head_dim % 2:
            raise ValueError(f"head_dim must be even to be rotated in pairs, not {head_dim}.")
        side = 2 * (head_dim // 6)
        self.dims = (head_dim - 2 * side, side, side)
        self.grid = grid
        self.theta = theta
        self.device = torch.device(device)
        self._time: OrderedDict[tuple[int | None, ...], tuple[Tensor, Tensor]] = OrderedDict()

        height, width = grid
        rows, columns = (self._angles(dim, range(count)) for dim, count in zip(self.dims[1:], grid, strict=True))
        self._sides = (self._to_device(rows), self._to_device(columns))
        both = [
            rows.view(height, 1, -1).expand(height, width, -1),
            columns.view(1, width, -1).expand(height, width, -1),
        ]
        self._space = self._to_device(torch.cat(both, dim=-1).reshape(height * width, -1))

    def _angles(self, dim: int, ids: Sequence[int]) -> Tensor:
        """Angles in radians as float64 on the host: [len(ids), dim / 2]."""
        frequencies = [1.0 / self.theta ** (2 * i / dim) for i in range(dim // 2)]
        # Python floats: an id times a frequency is right to 2**-53, and cos and sin are taken before float32 sees it.
        rows = [[index * f for f in frequencies] for index in ids]
        return torch.tensor(rows, dtype=torch.float64).view(len(rows), dim // 2)

    def _to_device(self, angles: Tensor) -> tuple[Tensor, Tensor]:
        return send(angles.cos().float(), self.device), send(angles.sin().float(), self.device)

    def time(self, ids: Sequence[int | None]) -> tuple[Tensor, Tensor]:
        """Cosine and sine of the time part, float32: two tensors [len(ids), t_dim / 2]."""
        key = tuple(ids)
        if key in self._time:
            self._time.move_to_end(key)
        else:
            angles = self._angles(self.dims[0], [index or 0 for index in key])
            self._time[key] = self._to_device(angles)
            if len(self._time) > _CACHED_PATTERNS:
                self._time.popitem(last=False)
        return self._time[key]

    def sides(self, turned: bool = True) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Cosine and sine of the rows and of the columns of a frame, float32: twice [height, h_dim / 2] and twice
        [width, w_dim / 2]. Those of an unrotated frame unless ``turned``."""
        if turned:
            return self._sides
        rows, columns = ((torch.ones_like(cos), torch.zeros_like(sin)) for cos, sin in self._sides)
        return rows, columns

    def moments(self, ids: Sequence[int | None]) -> tuple[Tensor, Tensor]:
        """Cosine and sine that rotate in time and not in space: two float32 tensors [len(ids), 1, head_dim / 2], ready
        to broadcast over heads. An id of None does not rotate at all."""
        (cos, sin), (row, _) = self.time(ids), self._space
        more = (len(ids), row.shape[1])
        cos, sin = torch.cat([cos, cos.new_ones(more)], 1), torch.cat([sin, sin.new_zeros(more)], 1)
        for position, index in enumerate(ids):
            if index is None:
                cos[position], sin[position] = 1.0, 0.0
        return cos.unsqueeze(1), sin.unsqueeze(1)

    @property
    def space(self) -> tuple[Tensor, Tensor]:
        """Cosine and sine that rotate a frame in space and not in time: [height * width, 1, head_dim / 2]."""
        cos, sin = self.frames([0])
        return cos[0], sin[0]

    def frames(self, ids: Sequence[int | None], in_space: Sequence[bool] = ()) -> tuple[Tensor, Tensor]:
        """Cosine and sine for whole frames.

        Args:
            ids: one time id per frame; None leaves that frame unrotated in time and in space.
            in_space: which frames are rotated in space already and are to be in time only; none by default.

        Returns:
            Two float32 tensors [len(ids), height * width, 1, head_dim / 2], ready to broadcast over heads.
        """
        tables = []
        for time, space, identity in zip(self.time(ids), self._space, (1.0, 0.0), strict=True):
            count, tokens = time.shape[0], space.shape[0]
            table = torch.cat(
                [time[:, None].expand(count, tokens, -1), space[None].expand(count, tokens, -1)], dim=-1
            ).unsqueeze(2)
            for position, index in enumerate(ids):
                if index is None:
                    table[position] = identity
            for position, done in enumerate(in_space):
                if done:
                    table[position, ..., time.shape[1] :] = identity
            tables.append(table)
        return tables[0], tables[1]


def rotate(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor | None = None) -> Tensor:
    """Rotate interleaved channel pairs.

    Args:
        x: [..., head_dim], any float dtype; the arithmetic is done in the dtype of the tables (float32).
        cos, sin: broadcastable to [..., head_dim / 2].
        out: where to write, like ``x``; not for use under autograd. None makes a new tensor.

    Returns:
        The rotated tensor in the dtype of ``x`` (or ``out`` itself).
    """
    x1, x2 = x.unflatten(-1, (-1, 2)).unbind(-1)
    # Separate products and sums, no fused multiply-add: a key gives the same bits alone and in a batch.
    first = x1 * cos - x2 * sin
    second = x1 * sin + x2 * cos
    if out is None:
        return torch.stack((first, second), dim=-1).flatten(-2).type_as(x)
    pairs = out.unflatten(-1, (-1, 2))
    pairs[..., 0].copy_(first)
    pairs[..., 1].copy_(second)
    return out
