"""The schedule's formulas, and noise that depends on its number alone."""

import pytest
import torch

from longtake.sampling import FewStepSchedule, _noise_seed, chunk_noise, warp


def test_warp() -> None:
    assert warp((1000, 750, 500, 250), 5).tolist() == pytest.approx([1000, 937.5, 833.33333, 625])
    assert warp((1000, 750, 500, 250), 1).tolist() == [1000, 750, 500, 250]


@pytest.mark.parametrize(("steps", "shift"), [((1001,), 5), ((-1,), 5), ((), 5), ((500,), 0)])
def test_warp_refuses(steps: tuple[int, ...], shift: float) -> None:
    with pytest.raises(ValueError, match=r"must be"):
        warp(steps, shift)


def test_steps_undo_and_redo_noise() -> None:
    schedule = FewStepSchedule.from_steps()
    assert len(schedule) == 4
    clean, noise = torch.randn(2, 1, 4, 3, 2, 2)
    for index in range(4):
        x = schedule.renoise(clean, noise, index)
        sigma = schedule.timesteps[index] / 1000
        assert torch.allclose(x, (1 - sigma) * clean + sigma * noise, atol=1e-6)
        # The flow of a straight path is noise - clean: its x0 is the clean latent again.
        assert torch.allclose(schedule.x0(x, noise - clean, index), clean, atol=1e-6)
    assert schedule.x0(x.bfloat16(), noise, 0).dtype == torch.bfloat16


@pytest.mark.parametrize("steps", [[], [500, 500], [250, 500], [1200, 500], [500, 0]])
def test_bad_schedules_are_refused(steps: list[float]) -> None:
    with pytest.raises(ValueError, match="timesteps must fall"):
        FewStepSchedule(torch.tensor(steps))


def test_noise_is_a_function_of_its_number() -> None:
    shape = (1, 16, 3, 4, 6)
    first = chunk_noise(7, 5, 2, shape)
    chunk_noise(7, 6, 0, shape)
    torch.randn(10)
    assert torch.equal(first, chunk_noise(7, 5, 2, shape))
    others = [chunk_noise(*number, shape) for number in [(8, 5, 2), (7, 6, 2), (7, 5, 3), (7, 2, 5), (-7, 5, 2)]]
    for other in others:
        assert abs((first * other).mean()) < 0.1
    assert chunk_noise(7, 5, 2, shape, dtype=torch.bfloat16).equal(first.bfloat16())
    many = torch.stack([chunk_noise(0, chunk, 0, (64,)) for chunk in range(500)])
    assert abs(many.mean()) < 0.03
    assert abs(many.std() - 1) < 0.03
    assert (many.T @ many / 500 - torch.eye(64)).abs().max() < 0.3


def test_noise_never_repeats_within_a_take() -> None:
    # A day of video: 115,200 chunks of 4 draws. Seeds are 32 bits, so a plain hash would collide about 25 times.
    seeds = [_noise_seed(42, chunk, step) for chunk in range(115_200) for step in range(4)]
    assert len(set(seeds)) == len(seeds)
    assert max(seeds) < 2**32


def test_noise_refuses_bad_numbers() -> None:
    with pytest.raises(ValueError, match="chunk_index"):
        chunk_noise(0, -1, 0, (1,))
    with pytest.raises(ValueError, match="step"):
        chunk_noise(0, 0, 64, (1,))
