"""What the trainer is made of: sources, text, LoRA, Muon, the log."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel

from longtake.training.exporting import export
from longtake.training.log import Log, read_log
from longtake.training.models import Words, trained_transformer
from longtake.training.muon import Muon, orthogonalise
from longtake.training.network import load_weights
from longtake.training.plain import plain_attention
from longtake.training.sources import LatentFolder, PromptFile, SyntheticSource, write_clip
from longtake.training.teacher import TeacherStage, euler, flow_error
from tests.helpers_train import saved, tiny, train
from tests.helpers_training import draw

CPU = torch.device("cpu")


def test_synthetic_clips_follow_from_their_index_and_move_as_their_caption_says() -> None:
    source = SyntheticSource(5, 3, 8, 8, clips=40, held_out=6)
    latents, captions = source.batch(range(40), CPU)
    again, _ = SyntheticSource(5, 3, 8, 8, 40, 6).batch([7, 3], CPU)
    assert torch.equal(again[0], latents[7]) and torch.equal(again[1], latents[3])
    assert latents.shape == (40, 5, 3, 8, 8) and len(set(captions)) > 10
    for clip, caption in zip(latents, captions, strict=True):
        still = clip - clip.mean(dim=3, keepdim=True) if "left" in caption or "right" in caption else None
        if still is not None:  # all rows are alike
            assert torch.allclose(clip, clip[:, :, :1].expand_as(clip))
        else:
            assert torch.allclose(clip, clip[..., :1].expand_as(clip))
    held, _ = source.held_out(CPU)
    assert not any(torch.equal(h, c) for h in held for c in latents)


def test_a_folder_of_latents_gives_back_what_was_written_and_refuses_the_rest(tmp_path: Path) -> None:
    clips = draw(0, 5, 6, 4, 2, 2)
    for i, clip in enumerate(clips):
        write_clip(tmp_path / f"{i}.safetensors", clip, f"clip {i}")
    source = LatentFolder(tmp_path, (3, 4, 2, 2), held_out=2)
    latents, captions = source.batch([2, 0], CPU)
    assert source.count == 3 and captions == ["clip 2", "clip 0"] and torch.equal(latents, clips[[2, 0], :3])
    assert source.held_out(CPU)[1] == ["clip 3", "clip 4"]
    with pytest.raises(
        ValueError, match=r"has latents of \[6, 4, 2, 2\], and the configuration asks for \[3, 5, 2, 2\]"
    ):
        LatentFolder(tmp_path, (3, 5, 2, 2), 2).batch([0], CPU)
    with pytest.raises(ValueError, match=r"has 5 \.safetensors files of latents, and data.held_out keeps 5"):
        LatentFolder(tmp_path, (3, 4, 2, 2), 5)
    (tmp_path / "0.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"0\.safetensors has no latents that can be read"):
        source.batch([0], CPU)


def test_prompts_are_lines_and_the_last_are_held_out(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("one\n\ntwo\nthree\n")
    source = PromptFile(tmp_path / "p.txt", 1)
    assert (source.count, source.captions([1, 0]), source.held_out()) == (2, ["two", "one"], ["three"])
    with pytest.raises(ValueError, match=r"has 3 prompts, and data.held_out keeps 3"):
        PromptFile(tmp_path / "p.txt", 3)


def test_words_have_the_same_vectors_everywhere_and_no_text_is_zero() -> None:
    words = Words(16, 4)
    made = words(["a red wave", "Red", "", "one two three four five"])
    assert made.shape == (4, 4, 16) and torch.equal(made[0, 1], made[1, 0])
    assert torch.equal(made, Words(16, 4)(["a red wave", "Red", "", "one two three four five"]))
    assert not made[2].any() and not made[0, 3].any() and made[3].any(dim=1).all()


class Exact(torch.nn.Module):
    """The exact flow of data N(mean, deviation^2): affine in the input (a Gaussian's posterior)."""

    mean, deviation = 0.7, 0.4

    def forward(
        self, x: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor, return_dict: bool
    ) -> list[torch.Tensor]:
        s = (timestep / 1000).view(-1, 1, 1, 1, 1)
        total = (1 - s) ** 2 * self.deviation**2 + s**2
        clean = self.mean + (1 - s) * self.deviation**2 / total * (x - (1 - s) * self.mean)
        noise = s / total * (x - (1 - s) * self.mean)
        return [noise - clean]


def test_the_error_of_the_best_flow_is_the_posterior_variance_and_euler_samples_the_data() -> None:
    noise, text = draw(1, 64, 3, 2, 8, 8), torch.zeros(64, 1, 1)
    clean = 0.7 + 0.4 * draw(2, 64, 3, 2, 8, 8)
    for level in (0.2, 0.5, 0.9):
        error = flow_error(Exact(), clean, noise, torch.full((64,), level), text).mean()
        assert float(error) == pytest.approx(0.16 / (0.16 * (1 - level) ** 2 + level**2), rel=0.05)
    made = euler(Exact(), noise, text, text, guidance=3.0, shift=5.0, steps=200)
    assert float(made.mean()) == pytest.approx(0.7, abs=0.02) and float(made.std()) == pytest.approx(0.4, abs=0.02)


def test_muon_moves_a_matrix_by_an_orthogonal_one_of_the_promised_size() -> None:
    made = orthogonalise(draw(0, 3, 8, 32))
    values = torch.linalg.svdvals(made.float())
    assert bool(((values > 0.6) & (values < 1.3)).all())
    p = torch.nn.Parameter(draw(1, 64, 32))
    before, p.grad = p.detach().clone(), draw(2, 64, 32)
    Muon([p], lr=0.1, adam_lr=1.0).step()
    assert float((p.detach() - before).square().mean().sqrt()) == pytest.approx(0.2 * 0.1, rel=0.2)


def test_the_rest_of_muon_is_adamw() -> None:
    ours, theirs = (torch.nn.Parameter(draw(0, 50)) for _ in range(2))
    mine = Muon([ours], lr=9.0, adam_lr=0.01, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1)
    reference = torch.optim.AdamW([theirs], lr=0.01, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1)
    for step in range(10):
        ours.grad = draw(step + 1, 50)
        theirs.grad = ours.grad.clone()
        mine.step()
        reference.step()
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_lora_trains_and_saves_its_own_weights_alone_and_is_merged_in_the_export(tmp_path: Path) -> None:
    config = tiny("model.lora_rank=2", "model.lora_alpha=4", "teacher.steps=4", "teacher.lr=1e-2", "teacher.ema=0.5")
    run = train(TeacherStage(config), tmp_path / "run")
    names = saved(tmp_path / "run")["networks"]["transformer"]["weights"]
    assert names and all("lora" in name for name in names)
    module = run.networks["transformer"].module
    x, t, text = draw(0, 1, 4, 3, 4, 4), torch.tensor([500.0]), draw(1, 1, 8, 16)
    with torch.no_grad(), run.networks["transformer"].averaged():
        expected = module(x, t, text).sample
    export(tmp_path / "run", tmp_path / "out", dtype=torch.float32)
    loaded = WanTransformer3DModel.from_pretrained(tmp_path / "out" / "transformer")
    with torch.no_grad():
        assert torch.allclose(loaded(x, t, text).sample, expected, atol=1e-5)
        untrained = loaded(x, t, text).sample - trained_transformer(tiny().model)(x, t, text).sample
    assert float(untrained.abs().max()) > 1e-3


def test_training_begins_with_a_published_folder_or_says_what_does_not_fit(tmp_path: Path, tiny_folder: Path) -> None:
    config = tiny(f"model.checkpoint={tiny_folder}", "model.text=components", "teacher.steps=1", "teacher.lr=0")
    run = train(TeacherStage(config), tmp_path / "run")
    theirs = WanTransformer3DModel.from_pretrained(tiny_folder / "transformer").state_dict()
    assert all(torch.equal(p, theirs[name]) for name, p in run.networks["transformer"].parameters.items())
    with pytest.raises(ValueError, match=r"has channels 4, and the configuration has model\.channels 8"):
        train(TeacherStage(tiny(f"model.checkpoint={tiny_folder}", "model.channels=8")), tmp_path / "other")


def test_weights_that_do_not_fit_are_named() -> None:
    target = {"a": torch.zeros(2), "b": torch.zeros(3)}
    with pytest.raises(ValueError, match="b, no such weight in the checkpoint"):
        load_weights("it", target, {"a": torch.ones(2)})
    with pytest.raises(ValueError, match="c, no such weight in the network"):
        load_weights("it", target, {"a": torch.ones(2), "b": torch.ones(3), "c": torch.ones(1)})
    with pytest.raises(ValueError, match=r"a has \[4\] in the checkpoint and \[2\] in the network"):
        load_weights("it", target, {"a": torch.ones(4), "b": torch.ones(3)})
    assert not target["a"].any() and not target["b"].any()


def test_a_log_forgets_lines_after_the_checkpoint_and_torn_ones(tmp_path: Path) -> None:
    log = Log(tmp_path, "s", 0, tensorboard=False)
    for step in range(1, 6):
        log.write(step, {"loss": step / 10, **({"late": 1.0} if step == 4 else {})})
    with log.path.open("a") as file:
        file.write("6,0.")  # a kill in the middle
    again = Log(tmp_path, "s", 4, tensorboard=False)
    again.write(5, {"loss": 0.55})
    rows = read_log(again.path)
    assert [(r["step"], r["loss"], r["late"]) for r in rows] == [
        ("1", "0.1", ""), ("2", "0.2", ""), ("3", "0.3", ""), ("4", "0.4", "1"), ("5", "0.55", ""),
    ]  # fmt: skip


def test_plain_attention_is_attention_where_it_steps_in(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(5, 3, n, 8, dtype=torch.float64, requires_grad=True) for n in (7, 9, 9))
    mask = torch.ones(7, 9, dtype=torch.bool).tril()
    fused = F.scaled_dot_product_attention
    wanted = fused(q, k, v, scale=0.3), fused(q, k, v, attn_mask=mask), fused(q, k, v, is_causal=True)
    slopes = torch.autograd.grad(wanted[0].square().sum(), (q, k, v))
    monkeypatch.setattr("longtake.training.plain.SLICE", 2 * 3 * 7 * 9)  # two elements at a time, then one
    with plain_attention(torch.device("cpu")):
        found = fused(q, k, v, scale=0.3), fused(q, k, v, attn_mask=mask), fused(q, k, v, is_causal=True)
    assert found[0].grad_fn is not None and found[0].grad_fn.name() == "CatBackward0"  # it did step in
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.autograd.grad(found[0].square().sum(), (q, k, v)), slopes, rtol=1e-10, atol=1e-12)
    assert torch.equal(found[1], wanted[1]) and torch.equal(found[2], wanted[2])
