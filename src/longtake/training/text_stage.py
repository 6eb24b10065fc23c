"""The pocket model's text encoder: learns to tell what a caption of the world says."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, UMT5EncoderModel

from longtake.pocket.model import build_text_encoder, build_tokenizer
from longtake.pocket.world import names
from longtake.pocket.world.captions import caption_and_told
from longtake.pocket.world.scenes import sample_scenes
from longtake.pocket.world.words import MAX_WORDS, vocabulary
from longtake.training.config import Config
from longtake.training.keyed import generator
from longtake.training.run import Run
from longtake.training.stage import Figure, Stage

TEXT_TOKENS = MAX_WORDS + 1
_SUBJECT = {
    "shape": names.SHAPES,
    "color": names.COLORS,
    "pattern": names.PATTERNS,
    "size": names.SIZES,
    "motion": names.MOTIONS,
}
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "place": names.PLACES,
    "light": names.LIGHTS,
    "camera": names.CAMERAS,
    **_SUBJECT,
    **{name + "2": values for name, values in _SUBJECT.items() if name != "size"},
}
"""What a caption may name, and the values it may have. Keys as in ``longtake.pocket.world.words.understand``."""
_HELD_OUT = 512


def world_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word of the world's vocabulary."""
    return build_tokenizer(vocabulary(), TEXT_TOKENS)


def new_text_encoder(config: Config) -> UMT5EncoderModel:
    """The text encoder, untrained.

    Raises:
        ValueError: if its width is not that of the model's text, or does not divide into its heads.
    """
    width, heads = config.text_encoder.width, config.text_encoder.heads
    if width != config.model.text_dim:
        raise ValueError(f"text_encoder.width is {width} and must be model.text_dim, {config.model.text_dim}.")
    if width % heads:
        raise ValueError(f"text_encoder.width must be a multiple of text_encoder.heads, {heads}; {width} is not.")
    layers = config.text_encoder.layers
    return build_text_encoder(
        world_tokenizer(), d_model=width, d_kv=width // heads, d_ff=2 * width, num_heads=heads, num_layers=layers
    )


class Reader(nn.Module):
    """Tells from a text encoder's output what the caption says: for every attribute, attention with a query of its own,
    and a linear layer over its values and "not told". Only for training.

    Args:
        width: of the embeddings.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(len(ATTRIBUTES), width) * width**-0.5)
        self.values = nn.ModuleList(nn.Linear(width, 1 + len(v)) for v in ATTRIBUTES.values())

    def forward(self, text: Tensor, mask: Tensor) -> list[Tensor]:
        """Logits [n, 1 + values] per attribute.

        Args:
            text: [n, tokens, width].
            mask: 1 where there is a token, [n, tokens].
        """
        scores = text @ self.queries.T * text.shape[-1] ** -0.5
        share = scores.float().masked_fill(mask[..., None] == 0, -1e9).softmax(1).to(text.dtype)
        pooled = share.transpose(1, 2) @ text
        return [layer(pooled[:, i]) for i, layer in enumerate(self.values)]


class TextWithReader(nn.Module):
    """The text encoder and its :class:`Reader`, trained together."""

    def __init__(self, encoder: UMT5EncoderModel) -> None:
        super().__init__()
        self.encoder = encoder
        self.reader = Reader(encoder.config.d_model)

    def forward(self, ids: Tensor, mask: Tensor) -> list[Tensor]:
        """See :class:`Reader`."""
        return list(self.reader(self.encoder(ids, attention_mask=mask).last_hidden_state, mask))


class TextEncoderStage(Stage):
    """A text encoder learns to hold what a caption tells of which subject, and what it does not tell."""

    name = "text_encoder"
    title = "the pocket model's text encoder, by what captions of the world tell"

    def check_config(self) -> None:
        if self.config.data.source != "world":
            raise ValueError("The stage 'text_encoder' reads captions of the pocket world: set data.source to world.")
        new_text_encoder(self.config)

    def build(self, run: Run) -> None:
        self.tokenizer = world_tokenizer()
        self.network = run.network("text_encoder", TextWithReader(new_text_encoder(self.config)))

    def step(self, run: Run, step: int) -> Mapping[str, Tensor]:
        total = torch.zeros((), device=run.device)
        for samples in run.parts(step):
            logits, told = self._read(self.network.module, [f"train {run.config.run.seed} {s}" for s in samples], run)
            losses = [F.cross_entropy(x.float(), y) for x, y in zip(logits, told.T, strict=True)]
            loss = torch.stack(losses).mean()
            run.backward(loss)
            total += loss.detach() / self.config.run.accumulate
        return {"told": total}

    def _read(self, module: nn.Module, keys: Sequence[str], run: Run) -> tuple[list[Tensor], Tensor]:
        """Logits per attribute, and what is true: int64 [n, attributes], 0 where nothing is told."""
        captions, told = zip(*(captioned(key, self.config.data.level) for key in keys), strict=True)
        batch = self.tokenizer(list(captions), padding=True, truncation=True, return_tensors="pt").to(run.device)
        with run.autocast():
            logits = module(batch["input_ids"], batch["attention_mask"])
        rows = [[1 + v.index(t[k]) if k in t else 0 for k, v in ATTRIBUTES.items()] for t in told]
        return logits, torch.tensor(rows, device=run.device)

    @torch.no_grad()
    def check(self, run: Run) -> Mapping[str, Figure]:
        """How often captions that training never saw are read right, the worst attribute too."""
        with self.network.averaged() as module:
            logits, told = self._read(module, [f"held out {i}" for i in range(_HELD_OUT)], run)
        right = torch.stack([x.argmax(-1) == y for x, y in zip(logits, told.T, strict=True)]).float()
        return {
            "right": Figure(float(right.mean()), 0.98, "higher", "share of attributes read right in unseen captions"),
            "worst": Figure(float(right.mean(1).min()), 0.95, "higher", "the same of the worst attribute"),
        }

    def outputs(self, run: Run) -> Mapping[str, Any]:
        with self.network.averaged() as module:
            weights = {n: t.clone() for n, t in module.state_dict().items()}
        module = self.network.module
        assert isinstance(module, TextWithReader)
        module.load_state_dict(weights)
        return {"text_encoder": module.encoder, "tokenizer": self.tokenizer}


def captioned(key: str, level: str) -> tuple[str, dict[str, str]]:
    """A caption of a scene of the world, and what it tells; both follow from the key."""
    scene = sample_scenes(1, int(generator(0, "caption", key).initial_seed() % 2**31), level)
    return caption_and_told(scene, 0, random.Random(key))


def trained_text(run: Run, config: Config) -> tuple[PreTrainedTokenizerFast, UMT5EncoderModel]:
    """Tokenizer and text encoder of the finished stage, on the run's device.

    Raises:
        ValueError: if that stage is not finished here.
    """
    module = TextWithReader(new_text_encoder(config))
    run.load_previous("text_encoder", "text_encoder", module)
    return world_tokenizer(), module.encoder.eval().to(run.device)
