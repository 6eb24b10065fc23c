"""Rotation by ids against diffusers' own table and against exact arithmetic."""

import math
from fractions import Fraction

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed

from longtake.rope import Rope, rotate

# 2 pi to 60 digits: enough to reduce an angle of 10 million radians exactly.
TAU = Fraction("6.28318530717958647692528676655900576839433879875021164194989")


@pytest.mark.parametrize("head_dim", [12, 24, 64, 128])
def test_tables_are_those_of_diffusers(head_dim: int) -> None:
    stock = WanRotaryPosEmbed(head_dim, (1, 2, 2), 64)
    cos, sin = stock(torch.empty(1, 16, 5, 6, 10))
    mine = Rope(head_dim, (3, 5)).frames(range(5))
    assert torch.allclose(mine[0].reshape(15 * 5, -1), cos[0, :, 0, 0::2], atol=1e-7, rtol=0)
    assert torch.allclose(mine[1].reshape(15 * 5, -1), sin[0, :, 0, 1::2], atol=1e-7, rtol=0)


def test_rotation_is_a_complex_product() -> None:
    rope = Rope(24, (2, 3))
    cos, sin = (x.flatten(0, 1) for x in rope.frames([4, 9]))
    x = torch.randn(2, 12, 3, 24)
    expected = torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * torch.complex(cos, sin)).flatten(-2)
    assert torch.allclose(rotate(x, cos, sin), expected, atol=1e-6)
    out = torch.empty_like(x)
    assert rotate(x, cos, sin, out=out) is out
    assert torch.equal(out, rotate(x, cos, sin))


@pytest.mark.parametrize("frame", [0, 1, 1023, 1024, 10_000_000])
def test_angles_are_exact_at_any_frame(frame: int) -> None:
    cos, sin = Rope(128, (1, 1)).time([frame])
    assert cos.dtype == torch.float32
    for i in range(22):
        angle = float(Fraction(1 / 10000.0 ** (2 * i / 44)) * frame % TAU)
        assert abs(cos[0, i].item() - math.cos(angle)) < 1e-7
        assert abs(sin[0, i].item() - math.sin(angle)) < 1e-7


def test_only_differences_of_ids_matter() -> None:
    rope = Rope(24, (1, 1))
    q, k = torch.randn(2, 1, 1, 24).double()

    def score(i: int, j: int) -> float:
        (ci, cj), (si, sj) = (table.double() for table in rope.frames([i, j]))
        return float((rotate(q, ci, si) * rotate(k, cj, sj)).sum())

    assert score(9_999_999, 9_999_991) == pytest.approx(score(8, 0), abs=1e-5)


def test_no_id_means_no_rotation() -> None:
    cos, sin = Rope(24, (2, 2)).frames([3, None])
    x = torch.randn(2, 4, 1, 24)
    assert torch.equal(rotate(x, cos, sin)[1], x[1])
    assert not torch.equal(rotate(x, cos, sin)[0], x[0])


def test_tables_do_not_pile_up() -> None:
    rope = Rope(12, (1, 1))
    for frame in range(500):
        rope.time([frame])
    assert len(rope._time) <= 64


def test_odd_head_dim_is_refused() -> None:
    with pytest.raises(ValueError, match="even"):
        Rope(13, (1, 1))
