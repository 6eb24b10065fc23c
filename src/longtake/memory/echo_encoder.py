"""The learned part of Echo-Infinity's memory: how evicted frames change the state, and what attention sees of it.

Names of parameters are the published ones (arXiv 2606.04527, released code, ``query_memory_encoder``), so that weights
move both ways.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longtake.memory.echo import check_model

EPS = 1e-6
GATE_BIAS = 2.0
"""A gate is born mostly shut: it retains sigmoid(2) = 88 % of the state."""
INITIAL_STD = 0.014


class MemoryAttention(nn.Module):
    """One layer: memory queries attend to the evicted keys and values as they are cached, without positions.

    There are no projections of keys and values: they are the transformer's own, of its last block.

    Args:
        heads, head_dim: of the transformer.
    """

    def __init__(self, heads: int, head_dim: int) -> None:
        super().__init__()
        width = heads * head_dim
        self.heads = heads
        self.norm1, self.norm2 = nn.RMSNorm(width, EPS), nn.RMSNorm(width, EPS)
        self.q, self.o = nn.Linear(width, width), nn.Linear(width, width)
        self.norm_q = nn.RMSNorm(width, EPS)
        self.ffn = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Memory tokens ``[batch, tokens, width]``; keys and values ``[batch, evicted tokens, heads, head_dim]``."""
        query = self.norm_q(self.q(self.norm1(x))).unflatten(2, (self.heads, -1)).transpose(1, 2)
        found = F.scaled_dot_product_attention(query, keys.transpose(1, 2), values.transpose(1, 2))
        x = x + self.o(found.transpose(1, 2).flatten(2))
        out: Tensor = x + self.ffn(self.norm2(x))
        return out


def _connector(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.GELU("tanh"), nn.Linear(width, width), nn.RMSNorm(width, EPS))


class MemoryEncoder(nn.Module):
    """Echo-Infinity's memory encoder (arXiv 2606.04527; "memory queries", "gate" and "merge" in its figure).

    It holds no state: that of a take is in its ``Memory``, and is passed in and out.

    Args:
        heads, head_dim: of the transformer; the memory is as wide as it.
        frames: memory frames.
        grid: tokens per frame as (rows, columns); one number where only their product is known.
        groups: of consecutive transformer layers, each with a state, keys and values of its own; the attention layers
            are shared by all. The released models have one.
        normalize_keys: whether keys are normalised over the whole width (released: in the first stage of training and
            its configuration, not in the second).
        num_layers: of the transformer; None if that is not known.
        depth: attention layers.

    Attributes:
        trained: whether these weights have learned anything. False for a new encoder; a take refuses such a one.

    Raises:
        ValueError: if a size is not positive, or there are more groups than layers.
    """

    def __init__(
        self,
        heads: int,
        head_dim: int,
        *,
        frames: int = 3,
        grid: tuple[int, int] | int = (30, 52),
        groups: int = 1,
        normalize_keys: bool = True,
        num_layers: int | None = None,
        depth: int = 2,
    ) -> None:
        super().__init__()
        tokens = grid if isinstance(grid, int) else grid[0] * grid[1]
        if min(heads, head_dim, frames, tokens, groups, depth) < 1:
            raise ValueError("A memory encoder needs at least one head, channel, frame, token, group and layer.")
        if num_layers is not None and groups > num_layers:
            raise ValueError(f"{num_layers} layers cannot be cut into {groups} groups.")
        self.heads, self.head_dim, self.frames, self.grid = heads, head_dim, frames, grid
        self.tokens, self.groups, self.normalize_keys, self.num_layers = tokens, groups, normalize_keys, num_layers
        self.trained = False
        width = self.width
        self.layers = nn.ModuleList(MemoryAttention(heads, head_dim) for _ in range(depth))

        def queries() -> nn.Parameter:
            return nn.Parameter(INITIAL_STD * torch.randn(1, frames * tokens, width))

        if groups == 1:
            self.query_init = queries()
            self.connector_proj = _connector(width)
            self.gate_linear = nn.Linear(2 * width, width)
            self.to_k, self.to_v = nn.Linear(width, width), nn.Linear(width, width)
            if normalize_keys:
                self.norm_k_out = nn.RMSNorm(width, EPS)
        else:
            self.query_inits = nn.ParameterList(queries() for _ in range(groups))
            self.connector_projs = nn.ModuleList(_connector(width) for _ in range(groups))
            self.gate_linears = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(groups))
            self.to_k_groups = nn.ModuleList(nn.Linear(width, width) for _ in range(groups))
            self.to_v_groups = nn.ModuleList(nn.Linear(width, width) for _ in range(groups))
            if normalize_keys:
                self.norm_k_out_groups = nn.ModuleList(nn.RMSNorm(width, EPS) for _ in range(groups))
        for gate in self._each("gate_linear"):
            nn.init.constant_(gate.bias, GATE_BIAS)

    @property
    def width(self) -> int:
        """Channels of a memory token."""
        return self.heads * self.head_dim

    @property
    def config(self) -> dict[str, Any]:
        """Arguments that make an encoder of this shape, for JSON."""
        names = ("heads", "head_dim", "frames", "grid", "groups", "normalize_keys", "num_layers")
        return {**{name: getattr(self, name) for name in names}, "depth": len(self.layers)}

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, in which updates are computed."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def check_model(self, heads: int, head_dim: int, num_layers: int) -> None:
        """Refuses another transformer than the one it was made for.

        Raises:
            ValueError: if width, heads or number of layers differ, in one sentence.
        """
        check_model(self.config, heads, head_dim, num_layers)

    def _each(self, name: str) -> list[Any]:
        """A part of every group."""
        if self.groups == 1:
            return [getattr(self, name)]
        plural = f"{name}s" if name in ("query_init", "connector_proj", "gate_linear") else f"{name}_groups"
        return list(getattr(self, plural))

    def group_of(self, layer: int, num_layers: int) -> int:
        """The group that a layer of the transformer belongs to."""
        return layer * self.groups // num_layers

    def initial(self, batch: int = 1) -> Tensor:
        """The state before anything was taken in: ``[groups, batch, frames * tokens, width]``, at least float32."""
        dtype = torch.promote_types(self.dtype, torch.float32)
        return torch.stack([init.to(dtype).expand(batch, -1, -1) for init in self._each("query_init")])

    def forward(self, state: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Takes evicted frames in: one update, for all groups and takes at once where they share weights.

        Args:
            state: ``[groups, batch, frames * tokens, width]``, at least float32: in bfloat16, a gate near 1 would add
                nothing.
            keys, values: of the transformer's last layer, keys after their norm and not rotated, ``[batch, evicted
                tokens, heads, head_dim]``.

        Returns:
            The new state: ``gate * state + (1 - gate) * candidate``, per token and channel.
        """
        pair = [y.to(self.dtype).expand(self.groups, *y.shape).flatten(0, 1) for y in (keys, values)]
        x = state.to(self.dtype)
        read = x.flatten(0, 1)
        for layer in self.layers:
            read = layer(read, *pair)
        read = read.unflatten(0, state.shape[:2])
        merged = []
        for own, old, now, connector, gate in zip(
            state, x, read, self._each("connector_proj"), self._each("gate_linear"), strict=True
        ):
            candidate = connector(now)
            retain = gate(torch.cat([old, candidate], -1)).to(state.dtype).sigmoid()
            merged.append(retain * own + (1 - retain) * candidate)
        return torch.stack(merged)

    def keys_values(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """What attention sees of a state: keys, to be rotated, and values, ``[groups, batch, frames * tokens, heads,
        head_dim]`` each, in the dtype of the weights."""
        norms = self._each("norm_k_out") if self.normalize_keys else [nn.Identity()] * self.groups
        keys, values = [], []
        for own, to_k, to_v, norm in zip(
            state.to(self.dtype), self._each("to_k"), self._each("to_v"), norms, strict=True
        ):
            keys.append(norm(to_k(own)))
            values.append(to_v(own))
        shape = (self.heads, self.head_dim)
        return torch.stack(keys).unflatten(-1, shape), torch.stack(values).unflatten(-1, shape)
