"""The networks that a configuration asks for: new ones, or published ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from longtake.training.config import Config
from longtake.training.keyed import generator
from longtake.training.lora import add_lora
from longtake.training.sections import Model

if TYPE_CHECKING:
    from longtake.training.run import Run


def new_transformer(model: Model) -> WanTransformer3DModel:
    """A transformer of the configured sizes; random weights from the global random state."""
    return WanTransformer3DModel(
        patch_size=(1, model.patch, model.patch),
        num_attention_heads=model.heads,
        attention_head_dim=model.head_dim,
        in_channels=model.channels,
        out_channels=model.channels,
        text_dim=model.text_dim,
        freq_dim=256,
        ffn_dim=model.ffn,
        num_layers=model.layers,
    )


def published_transformer(name: str, model: Model, dtype: torch.dtype = torch.float32) -> WanTransformer3DModel:
    """A transformer from a diffusers folder, a published checkpoint, or by a name of ``longtake models``.

    Raises:
        ValueError: if there is none, or it is made for other latents or text than the configuration says.
    """
    from longtake.checkpoints.choice import Choice
    from longtake.checkpoints.hub import download
    from longtake.checkpoints.layout import transformer_settings
    from longtake.checkpoints.published import load_transformer
    from longtake.checkpoints.sources import Sources
    from longtake.facts import ModelFacts

    sources: Sources
    if Path(name).is_dir():
        loaded = load_transformer(Path(name), dtype=dtype)
    else:
        sources = download(ModelFacts.read(Choice(name)).info)
        like = transformer_settings(sources.components)
        loaded = load_transformer(sources.transformer, sources.key, dtype, like=like, loras=sources.loras)
    found = {
        "channels": loaded.config.in_channels,
        "text_dim": loaded.config.text_dim,
        "patch": loaded.config.patch_size[1],
    }
    for key, value in found.items():
        if value != getattr(model, key):
            raise ValueError(f"{name} has {key} {value}, and the configuration has model.{key} {getattr(model, key)}.")
    for p in loaded.parameters():
        p.data = p.data.clone()  # what is mapped from a file is not for training
    return loaded


def trained_transformer(model: Model) -> WanTransformer3DModel:
    """The transformer that is trained: the checkpoint's or a new one, with LoRA weights if they are asked for.

    With LoRA only those require gradients. See :func:`published_transformer` for what is raised.
    """
    made = published_transformer(model.checkpoint, model) if model.checkpoint else new_transformer(model)
    made.requires_grad_(True)
    if model.lora_rank:
        add_lora(made, model.lora_rank, model.lora_alpha)
    return made


def without_lora(transformer: WanTransformer3DModel) -> WanTransformer3DModel:
    """The same transformer with its LoRA weights, if it has any, added to the others."""
    if getattr(transformer, "peft_config", None):
        transformer.fuse_lora()
        transformer.unload_lora()
    return transformer


class Words:
    """Text embeddings without a text encoder: a fixed random vector per word, the same on every machine.

    Args:
        dim: of the vectors, which are normal.
        tokens: words per caption; more are cut off, and what is missing is zero.
    """

    def __init__(self, dim: int, tokens: int) -> None:
        self.dim, self.tokens = dim, tokens
        self._known: dict[str, Tensor] = {}

    def __call__(self, captions: Sequence[str], device: torch.device | str = "cpu") -> Tensor:
        """Embeddings ``[captions, tokens, dim]``, float32; of no text, zeros."""
        made = torch.zeros(len(captions), self.tokens, self.dim)
        for row, caption in zip(made, captions, strict=True):
            for place, word in enumerate(caption.lower().split()[: self.tokens]):
                if word not in self._known:
                    self._known[word] = torch.randn(self.dim, generator=generator(0, "word", word))
                row[place] = self._known[word]
        return made.to(device)


class Encoded:
    """Text embeddings of a pipeline's text encoder, as Wan's pipelines make them.

    Args:
        tokenizer, text_encoder: the latter is used in evaluation mode, without gradients.
    """

    def __init__(self, tokenizer: Any, text_encoder: Any) -> None:
        self.tokenizer, self.text_encoder = tokenizer, text_encoder.eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, captions: Sequence[str], device: torch.device | str = "cpu") -> Tensor:
        """Embeddings ``[captions, tokens, dim]``, float32."""
        from longtake.text import encode_text

        place = next(self.text_encoder.parameters()).device
        return encode_text(self.tokenizer, self.text_encoder, captions, place).float().to(device)


def components_folder(model: Model) -> Path | None:
    """Where tokenizer, text encoder and autoencoder are: ``model.components``, or what the checkpoint comes with, which
    may be downloaded; None if there is neither.

    Raises:
        ValueError: if a named checkpoint cannot be had.
    """
    if model.components is not None:
        return Path(model.components)
    if model.checkpoint is None or Path(model.checkpoint).is_dir():
        return None if model.checkpoint is None else Path(model.checkpoint)
    from longtake.checkpoints.hub import download
    from longtake.facts import ModelFacts

    return Path(download(ModelFacts.read(model.checkpoint).info).components)


def text_embedder(config: Config, run: Run) -> Words | Encoded:
    """What turns captions into embeddings on the run's device, as ``model.text`` says.

    Raises:
        ValueError: if the stage that trains it is not finished; if the components are no diffusers folder with
            tokenizer and text encoder, or of another width.
    """
    model, device = config.model, run.device
    if model.text == "words":
        return Words(model.text_dim, model.text_tokens)
    if model.text == "stage":
        from longtake.training.text_stage import trained_text

        return Encoded(*trained_text(run, config))
    from transformers import AutoTokenizer, UMT5EncoderModel

    folder = components_folder(model)
    if folder is None or not (folder / "text_encoder").is_dir() or not (folder / "tokenizer").is_dir():
        raise ValueError(f"{folder} has no tokenizer and text_encoder: model.components must be a diffusers folder.")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    encoder = UMT5EncoderModel.from_pretrained(folder / "text_encoder", dtype=dtype).to(device)
    if encoder.config.d_model != model.text_dim:
        width = encoder.config.d_model
        raise ValueError(f"The text encoder in {folder} has width {width}, and model.text_dim is {model.text_dim}.")
    return Encoded(AutoTokenizer.from_pretrained(folder / "tokenizer"), encoder)
