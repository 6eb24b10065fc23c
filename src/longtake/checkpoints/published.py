"""Transformers of the Wan family as they were published: which weights, of which model, and into diffusers' own class.

Read are Self-Forcing's, LongLive's, Causal-Forcing's and Krea Realtime's files, the original Wan folders, diffusers
folders, and whatever else holds the weights of a Wan text-to-video transformer under its own names or diffusers'.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights  # type: ignore[import-untyped]
from diffusers import WanTransformer3DModel
from torch import Tensor

from longtake.checkpoints.layout import some, transformer_files, transformer_settings
from longtake.checkpoints.lora import merged, read_all
from longtake.checkpoints.sources import LoraFile
from longtake.checkpoints.wan import to_diffusers, to_wan
from longtake.checkpoints.weights import bare, check_dtypes, choose, common_dtype, read_file

KEYS = ("generator_ema", "generator", "model", "state_dict")
_MEMORY = "query_memory_encoder."
HEAD_DIM = 128  # of every published Wan model
_TEXT_ONLY = "only text-to-video models of the Wan family are supported"
_IGNORED = ("freqs", "rope.freqs_cos", "rope.freqs_sin")  # tables of angles, which are computed here


def read_weights(path: Path, key: str | None = None) -> dict[str, Tensor]:
    """The weights of a checkpoint under bare names, in the published or diffusers' style, whichever the file has.

    Tensors are mapped from the file where that is possible, not read into memory.

    Args:
        path: a .pt, .pth or .safetensors file, or a diffusers or original Wan folder.
        key: which weights of a file with several sets of them; None: the first of :data:`KEYS`, else those at the top.

    Raises:
        ValueError: if there is nothing to read, or a name appears twice.
    """
    tensors: dict[str, Tensor] = {}
    for file in transformer_files(path):
        for name, x in choose(read_file(file)[0], key, KEYS, str(file)).items():
            if tensors.setdefault(name, x) is not x:
                raise ValueError(f"{path} holds {name} in more than one file.")
    return bare(tensors, str(path))


def read_transformer(path: Path, key: str | None = None) -> dict[str, Tensor]:
    """The weights of a Wan text-to-video transformer under diffusers' names. Names that are not Wan's stay as they are.

    Raises:
        ValueError: as :func:`read_weights`; if they are of another kind of model.
    """
    return _read(path, key)[0]


def _read(path: Path, key: str | None) -> tuple[dict[str, Tensor], bool]:
    """The weights, and whether the file has them under Wan's own names."""
    weights = {name: x for name, x in read_weights(path, key).items() if name not in _IGNORED}
    refuse_others(weights, str(path))
    # Of Echo-Infinity: the memory is a part of its own, see longtake.checkpoints.memory_weights.
    weights = {name: x for name, x in weights.items() if not name.startswith(_MEMORY)}
    check_dtypes(weights, str(path))
    if any(name.startswith("condition_embedder.") or ".attn1." in name for name in weights):
        return weights, False
    return {to_diffusers(name) or name: x for name, x in weights.items()}, True


def refuse_others(weights: Mapping[str, Tensor], source: str) -> None:
    """Refuses what is not the transformer of a Wan text-to-video model, saying what it is where that can be told.

    Args:
        weights: under bare names.
        source: for messages.

    Raises:
        ValueError: in one sentence.
    """

    def has(pattern: str) -> list[str]:
        return [name for name in weights if re.search(pattern, name)]

    if has(r"\.lora_|\.lora\.|^lora_"):
        raise ValueError(f"{source} is a LoRA and not a model; it can be added to one with --lora.")
    if has(r"^vace_"):
        raise ValueError(f"{source} is a Wan VACE model; {_TEXT_ONLY}.")
    if weights and len(has(r"^query_memory_encoder\.")) == len(weights):
        raise ValueError(f"{source} is a learned memory and not a model; it can be added to one with --memory-weights.")
    if has(r"^img_emb\.|_img\.|image_embedder\.|\.add_k_proj\."):
        raise ValueError(f"{source} is an image-to-video model; {_TEXT_ONLY}.")
    if has(r"^token_embedding\.|^(encoder\.)?block\.0\.layer\.0\.SelfAttention"):
        raise ValueError(f"{source} is a text encoder and not a transformer; {_TEXT_ONLY}.")
    if has(r"^(decoder|encoder)\.(conv1|conv_in|middle|mid_block)\."):
        raise ValueError(f"{source} is an autoencoder and not a transformer; {_TEXT_ONLY}.")
    if "patch_embedding.weight" not in weights and not has(r"^blocks\.\d+\.(self_attn|attn1)\."):
        raise ValueError(f"{source} holds no Wan transformer but, for example, {some(weights)}; {_TEXT_ONLY}.")
    patch, out = weights.get("patch_embedding.weight"), weights.get("head.head.weight", weights.get("proj_out.weight"))
    if patch is not None and out is not None and patch.ndim == 5 and out.ndim == 2:
        ins, outs = patch.shape[1], out.shape[0] / max(1, patch.shape[2:].numel())
        if ins != outs:
            raise ValueError(
                f"{source} takes {ins} channels and gives {outs:g}, so it is no text-to-video model; {_TEXT_ONLY}."
            )


def transformer_config(
    weights: Mapping[str, Tensor], head_dim: int | None = None, like: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Arguments of ``WanTransformer3DModel`` that fit weights, told from their shapes.

    Args:
        weights: under diffusers' names.
        head_dim: size of the attention heads, which shapes do not tell; None: that of ``like``, else 128.
        like: the configuration of a similar model. What shapes do not tell is taken from it if its width is the same.

    Raises:
        ValueError: if these cannot be the weights of one.
    """

    def shape(name: str, dims: int) -> tuple[int, ...]:
        if name not in weights:
            raise ValueError(f"The weights are incomplete: {to_wan(name)} is missing.")
        found = tuple(weights[name].shape)
        if len(found) != dims or 0 in found:
            raise ValueError(f"The weight {to_wan(name)} must have {dims} dimensions, not the sizes {list(found)}.")
        return found

    if missing := [to_wan(name) for name in _TELLING if name not in weights]:
        raise ValueError(f"The weights are incomplete: {some(missing)} {'is' if len(missing) == 1 else 'are'} missing.")
    width, channels, *patch = shape("patch_embedding.weight", 5)
    layers = {int(name.split(".")[1]) for name in weights if _OF_BLOCK.match(name)}
    if not layers or max(layers) >= 2 * len(layers) + 1:  # single gaps are named as missing weights later
        raise ValueError(
            f"The weights are incomplete: of {max(layers, default=0) + 1} layers, {len(layers)} are there."
        )
    same = like is not None and like.get("num_attention_heads", 0) * like.get("attention_head_dim", 0) == width
    rest = {k: v for k, v in (like or {}).items() if same and k in _UNSEEN}
    if head_dim is None:
        head_dim = like["attention_head_dim"] if like is not None and same else HEAD_DIM
    if head_dim < 2 or head_dim % 2 or width % head_dim:
        raise ValueError(
            f"A width of {width} does not divide into attention heads of {head_dim}; the configuration of the model "
            "must say how many there are."
        )
    return {
        **rest,
        "patch_size": tuple(patch),
        "num_attention_heads": width // head_dim,
        "attention_head_dim": head_dim,
        "in_channels": channels,
        "out_channels": shape("proj_out.weight", 2)[0] // math.prod(patch),
        "text_dim": shape("condition_embedder.text_embedder.linear_1.weight", 2)[1],
        "freq_dim": shape("condition_embedder.time_embedder.linear_1.weight", 2)[1],
        "ffn_dim": shape(f"blocks.{min(layers)}.ffn.net.0.proj.weight", 2)[0],
        "num_layers": max(layers) + 1,
        "cross_attn_norm": any(re.fullmatch(r"blocks\.\d+\.norm2\.weight", name) for name in weights),
        "qk_norm": "rms_norm_across_heads",
    }


_TELLING = (  # the weights outside of the blocks whose shapes tell what the model is
    "patch_embedding.weight",
    "proj_out.weight",
    "condition_embedder.text_embedder.linear_1.weight",
    "condition_embedder.time_embedder.linear_1.weight",
)
_OF_BLOCK = re.compile(r"blocks\.\d+\.(attn[12]|ffn|norm[123]|scale_shift_table)\b")
_UNSEEN = ("eps", "rope_max_seq_len")  # what no shape tells
_NONE = ("image_dim", "added_kv_proj_dim", "pos_embed_seq_len")  # set in image-to-video models


def _checked(config: Mapping[str, Any], weights: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """The model's own configuration, which must say what its weights do."""
    known = set(inspect.signature(WanTransformer3DModel.__init__).parameters) - {"self"}
    settings = {k: v for k, v in config.items() if k in known and v is not None}
    if others := [k for k in _NONE if k in settings]:
        raise ValueError(f"The configuration of {source} is of an image-to-video model ({some(others)}); {_TEXT_ONLY}.")
    eps, longest = settings.get("eps", 1e-6), settings.get("rope_max_seq_len", 1024)
    if type(eps) not in (int, float) or not 0 <= eps < 1:
        raise ValueError(f"The configuration of {source} must have a small number as eps, not {eps!r}.")
    if type(longest) is not int or longest < 1:
        raise ValueError(f"The configuration of {source} must have a whole rope_max_seq_len, not {longest!r}.")
    head_dim = settings.get("attention_head_dim", HEAD_DIM)
    if type(head_dim) is not int:
        raise ValueError(f"The configuration of {source} must have a whole attention_head_dim, not {head_dim!r}.")
    told = transformer_config(weights, head_dim)
    differ = []
    for name, value in told.items():
        said = settings.get(name, value)
        if (tuple(said) if isinstance(said, list) else said) != value:
            differ.append(f"{name} ({said!r}, in the weights {value!r})")
    if differ:
        raise ValueError(f"The weights in {source} are not of the configured model: {some(differ, 4)}.")
    return {**settings, **told}


def load_transformer(
    path: Path,
    key: str | None = None,
    dtype: torch.dtype | None = None,
    *,
    config: Mapping[str, Any] | None = None,
    like: Mapping[str, Any] | None = None,
    head_dim: int | None = None,
    loras: Sequence[LoraFile] = (),
) -> WanTransformer3DModel:
    """A published transformer in diffusers' own class, in eval mode, every weight accounted for.

    Weights whose dtype stays stay mapped from the file. As when diffusers loads a folder, the modules that it keeps in
    float32 (time embedding, norms and modulation) are float32 in every case.

    Args:
        path, key: see :func:`read_weights`.
        dtype: of the weights; None: as in the file (the smallest that holds all of them).
        config: the model's own configuration (diffusers' ``config.json``), checked against the weights; None: that of
            the folder, if ``path`` is one with a configuration.
        like, head_dim: see :func:`transformer_config`; for files that come without a configuration.
        loras: fused in this order: added in float32, before the one rounding to ``dtype``.

    Raises:
        ValueError: if these are not, one for one, the weights of a Wan text-to-video transformer, or a LoRA is of
            another model; names the first few.
    """
    weights, published = _read(path, key)
    if config is None and head_dim is None and path.is_dir():
        config = transformer_settings(path)
    settings = transformer_config(weights, head_dim, like) if config is None else _checked(config, weights, str(path))
    try:
        with init_empty_weights(include_buffers=False):  # no second copy, but the tables of angles are real
            transformer = WanTransformer3DModel(**settings)
    except (ValueError, TypeError, RuntimeError, ArithmeticError, AssertionError, MemoryError):
        raise ValueError(f"No transformer can be made with the settings {settings} of {path}.") from None
    shapes = {name: tuple(x.shape) for name, x in transformer.state_dict().items()}
    check_complete(weights, shapes, str(path), to_wan if published else str)
    adding = read_all(loras, shapes)
    dtype = dtype or common_dtype(weights)
    kept = set(WanTransformer3DModel._keep_in_fp32_modules or ())
    ready = {}
    for name in shapes:
        target = torch.float32 if kept & set(name.split(".")) else dtype
        ready[name] = merged(name, weights.pop(name), adding).to(target).contiguous()
    transformer.load_state_dict(ready, strict=True, assign=True)
    return transformer.eval()


def check_complete(
    weights: Mapping[str, Tensor],
    shapes: Mapping[str, Sequence[int]],
    source: str,
    called: Callable[[str], str] = str,
) -> None:
    """Refuses weights that are not exactly those of a model.

    Args:
        weights: under the model's names.
        shapes: what the model has.
        source: for messages.
        called: a weight's name as the file has it, for messages.

    Raises:
        ValueError: names what is missing, unexpected or of another size.
    """
    missing = [called(name) for name in shapes if name not in weights]
    unexpected = [called(name) for name in weights if name not in shapes]
    wrong = [
        f"{called(name)} {list(x.shape)} instead of {list(shapes[name])}"
        for name, x in weights.items()
        if name in shapes and tuple(x.shape) != tuple(shapes[name])
    ]
    faults = []
    if missing:
        faults.append(f"lacks {some(missing)}")
    if unexpected:
        faults.append(f"has unexpected {some(unexpected)}")
    if wrong:
        faults.append(f"has {some(wrong)}")
    if faults:
        raise ValueError(f"{source} does not hold the weights of this model: it {', '.join(faults)}.")
