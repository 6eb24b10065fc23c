"""The parts of an original Wan folder beside the transformer: tokenizer, text encoder and autoencoder.

    models_t5_umt5-xxl-enc-bf16.pth    UMT5's encoder (arXiv 2304.09151) under Wan's own names
    Wan2.1_VAE.pth                     the autoencoder (Wan, arXiv 2503.20314)
    google/umt5-xxl/                   the tokenizer

Configurations are told from the shapes of the weights.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights  # type: ignore[import-untyped]
from diffusers import AutoencoderKLWan
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
from diffusers.pipelines import pipeline_utils
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase, UMT5Config, UMT5EncoderModel

from longtake.checkpoints.layout import is_original, original_files, some
from longtake.checkpoints.published import check_complete
from longtake.checkpoints.weights import bare, check_dtypes, choose, common_dtype, read_file

__all__ = [
    "is_original",
    "load_components",
    "load_original_components",
    "load_text_encoder",
    "load_tokenizer",
    "load_vae",
    "original_files",
    "text_config",
    "vae_config",
]

_KEYS = ("model", "state_dict")
_T5_TOP = {"token_embedding.weight": "shared.weight", "norm.weight": "encoder.final_layer_norm.weight"}
_T5_BLOCK = {
    "attn.q": "layer.0.SelfAttention.q",
    "attn.k": "layer.0.SelfAttention.k",
    "attn.v": "layer.0.SelfAttention.v",
    "attn.o": "layer.0.SelfAttention.o",
    "pos_embedding.embedding": "layer.0.SelfAttention.relative_attention_bias",
    "norm1": "layer.0.layer_norm",
    "ffn.gate.0": "layer.1.DenseReluDense.wi_0",  # through the activation
    "ffn.fc1": "layer.1.DenseReluDense.wi_1",
    "ffn.fc2": "layer.1.DenseReluDense.wo",
    "norm2": "layer.1.layer_norm",
}
_OLD_T5_TOP, _OLD_T5_BLOCK = ({new: old for old, new in table.items()} for table in (_T5_TOP, _T5_BLOCK))
_MAX_DISTANCE = 128  # of Wan's relative positions; no shape tells it
_LEVEL = 3  # entries per level of the autoencoder's list of downsampling blocks: two residual ones, one that resamples


def _t5_name(key: str) -> str | None:
    block = re.fullmatch(r"blocks\.(\d+)\.(.+)\.weight", key)
    if block is None:
        return _T5_TOP.get(key)
    inner = _T5_BLOCK.get(block[2])
    return f"encoder.block.{block[1]}.{inner}.weight" if inner else None


def _old_t5_name(name: str) -> str:
    block = re.fullmatch(r"encoder\.block\.(\d+)\.(.+)\.weight", name)
    if block is None:
        return _OLD_T5_TOP.get(name, name)
    inner = _OLD_T5_BLOCK.get(block[2])
    return f"blocks.{block[1]}.{inner}.weight" if inner else name


def read_part(path: Path) -> dict[str, Tensor]:
    """The weights in a file of an original Wan folder, under bare names. Raises ValueError if it has none."""
    weights = bare(choose(read_file(path)[0], None, _KEYS, str(path)), str(path))
    check_dtypes(weights, str(path))
    return weights


def _sizes(weights: Mapping[str, Tensor], name: str, dims: int, source: str) -> tuple[int, ...]:
    found = tuple(weights[name].shape) if name in weights else ()
    if len(found) != dims or 0 in found:
        raise ValueError(f"{source} is not complete: {name} is missing or has the sizes {list(found)}.")
    return found


def text_config(weights: Mapping[str, Tensor], source: str = "The file") -> UMT5Config:
    """UMT5's configuration, told from weights under Wan's names.

    Raises:
        ValueError: if they are not those of a text encoder of Wan.
    """
    layers = {int(m[1]) for name in weights if (m := re.match(r"blocks\.(\d+)\.attn\.", name))}
    if not layers or "token_embedding.weight" not in weights:
        raise ValueError(f"{source} is not the text encoder of a Wan model, but has {some(weights)}.")
    vocabulary, width = _sizes(weights, "token_embedding.weight", 2, source)
    buckets, heads = _sizes(weights, "blocks.0.pos_embedding.embedding.weight", 2, source)
    inner = _sizes(weights, "blocks.0.attn.q.weight", 2, source)[0]
    return UMT5Config(
        vocab_size=vocabulary,
        d_model=width,
        d_kv=inner // heads,
        d_ff=_sizes(weights, "blocks.0.ffn.fc1.weight", 2, source)[0],
        num_layers=max(layers) + 1,
        num_decoder_layers=max(layers) + 1,
        num_heads=heads,
        relative_attention_num_buckets=buckets,
        relative_attention_max_distance=_MAX_DISTANCE,
        feed_forward_proj="gated-gelu",
        layer_norm_epsilon=1e-6,
        tie_word_embeddings=False,
        tokenizer_class="T5Tokenizer",
    )


@torch.no_grad()
def load_text_encoder(path: Path, dtype: torch.dtype | None = None) -> UMT5EncoderModel:
    """Wan's text encoder in transformers' class, in eval mode, every weight accounted for.

    Args:
        path: ``models_t5_umt5-xxl-enc-bf16.pth``.
        dtype: of the weights; None: as in the file.

    Raises:
        ValueError: if it is none, or not whole.
    """
    weights = read_part(path)
    config = text_config(weights, str(path))
    dtype = dtype or common_dtype(weights)
    names = {_t5_name(key) or key: key for key in weights}
    with init_empty_weights(include_buffers=False):
        model = UMT5EncoderModel(config)
    shapes = {name: tuple(x.shape) for name, x in model.state_dict().items() if name != "encoder.embed_tokens.weight"}
    check_complete({name: weights[key] for name, key in names.items()}, shapes, str(path), _old_t5_name)
    kept = set(UMT5EncoderModel._keep_in_fp32_modules or ()) if dtype is torch.float16 else set()
    ready = {}
    for name, key in names.items():  # as transformers does when it loads a folder
        ready[name] = weights.pop(key).to(torch.float32 if kept & set(name.split(".")) else dtype).contiguous()
    ready["encoder.embed_tokens.weight"] = ready["shared.weight"]  # one and the same
    model.load_state_dict(ready, strict=True, assign=True)
    model.tie_weights()
    return model.eval()


def vae_config(weights: Mapping[str, Tensor], source: str = "The file") -> dict[str, Any]:
    """Arguments of ``AutoencoderKLWan``, told from weights under Wan's names. The means and deviations of the latents
    are in no weight; they are those of Wan2.1, which diffusers has as its defaults.

    Raises:
        ValueError: if they are not those of Wan2.1's autoencoder.
    """
    if "encoder.conv1.weight" not in weights or "decoder.conv1.weight" not in weights:
        raise ValueError(f"{source} is not the autoencoder of a Wan model, but has {some(weights)}.")
    base, channels = _sizes(weights, "encoder.conv1.weight", 5, source)[:2]
    latents = _sizes(weights, "conv2.weight", 5, source)[0]
    defaults = inspect.signature(AutoencoderKLWan.__init__).parameters
    if latents != defaults["z_dim"].default:
        raise ValueError(
            f"{source} has latents of {latents} channels; only the autoencoder of Wan2.1, which has "
            f"{defaults['z_dim'].default}, is supported."
        )
    widths: list[int] = []
    while (name := f"encoder.downsamples.{_LEVEL * len(widths)}.residual.2.weight") in weights:
        widths.append(_sizes(weights, name, 5, source)[0])
    out, last = _sizes(weights, "decoder.head.2.weight", 5, source)[:2]
    if not widths or any(width % base for width in widths) or last * base % widths[0]:
        raise ValueError(f"{source} is not the autoencoder of Wan2.1: its blocks have widths {widths}.")
    steps = [f"encoder.downsamples.{_LEVEL * i + 2}.time_conv.weight" in weights for i in range(len(widths) - 1)]
    decoder = last * base // widths[0]
    return {
        "base_dim": base,
        **({} if decoder == base else {"decoder_base_dim": decoder}),
        "z_dim": latents,
        "dim_mult": [width // base for width in widths],
        "temperal_downsample": steps,
        "in_channels": channels,
        "out_channels": out,
        "scale_factor_temporal": 2 ** sum(steps),
        "scale_factor_spatial": 2 ** len(steps),
    }


@torch.no_grad()
def load_vae(path: Path, dtype: torch.dtype | None = None) -> AutoencoderKLWan:
    """Wan2.1's autoencoder in diffusers' class, in eval mode, every weight accounted for.

    Args:
        path: ``Wan2.1_VAE.pth``.
        dtype: of the weights; None: as in the file.

    Raises:
        ValueError: if it is none, or not whole.
    """
    weights = read_part(path)
    settings = vae_config(weights, str(path))
    dtype = dtype or common_dtype(weights)
    found = {}
    for key, x in weights.items():
        (name,) = convert_wan_vae_to_diffusers({key: x})  # one by one: several could become one and the same
        if name in found:
            raise ValueError(f"{path} holds {name} twice.")
        found[name] = x
    try:
        with init_empty_weights(include_buffers=False):
            vae = AutoencoderKLWan(**settings)
    except (ValueError, TypeError, RuntimeError, ArithmeticError):
        raise ValueError(f"No autoencoder can be made with the settings {settings} of {path}.") from None
    shapes = {name: tuple(x.shape) for name, x in vae.state_dict().items()}
    check_complete(found, shapes, str(path))
    vae.load_state_dict({name: x.to(dtype).contiguous() for name, x in found.items()}, strict=True, assign=True)
    return vae.eval()


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """A tokenizer from a folder, without network.

    Raises:
        ValueError: if it cannot be loaded.
    """
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # of many kinds, depending on what is missing or broken
        reason = next(iter(str(error).splitlines()), "").rstrip(".")
        raise ValueError(f"The tokenizer in {folder} cannot be loaded: {reason}.") from None


def load_original_components(
    folder: Path, dtype: torch.dtype | None = None
) -> tuple[PreTrainedTokenizerBase, UMT5EncoderModel, AutoencoderKLWan]:
    """Tokenizer, text encoder and autoencoder of an original Wan folder.

    Args:
        folder: see this module's description.
        dtype: of text encoder and autoencoder; None: as in the files.

    Raises:
        ValueError: if a part is not there, or not whole.
    """
    words, text, pictures = original_files(folder)
    return load_tokenizer(words), load_text_encoder(text, dtype), load_vae(pictures, dtype)


def load_components(
    folder: Path, dtype: torch.dtype | None = None
) -> tuple[PreTrainedTokenizerBase, UMT5EncoderModel, AutoencoderKLWan]:
    """The same of a folder in either layout, the original one or diffusers'.

    Args:
        folder: of a model.
        dtype: of text encoder and autoencoder; None: as in the original files, or float32.

    Raises:
        ValueError: if a part is not there, or its weights are not exactly those it needs; names them.
    """
    if is_original(folder):
        return load_original_components(folder, dtype)
    dtype = dtype or torch.float32
    words = load_tokenizer(folder / "tokenizer")
    # Newer versions of diffusers warn about `torch_dtype`, older ones do not know `dtype`.
    name = "dtype" if hasattr(pipeline_utils, "_resolve_dtype") else "torch_dtype"
    vae = _load_part(AutoencoderKLWan, folder, "vae", **{name: dtype})
    return words, _load_part(UMT5EncoderModel, folder, "text_encoder", dtype=dtype), vae


def _load_part(kind: Any, folder: Path, part: str, **options: Any) -> Any:
    try:
        model, info = kind.from_pretrained(folder, subfolder=part, output_loading_info=True, **options)
    except (OSError, ValueError, RuntimeError) as error:
        reason = next(iter(str(error).splitlines()), "").rstrip(".")
        raise ValueError(f"The {part} in {folder} cannot be loaded: {reason}.") from None
    for fault in ("missing", "unexpected", "mismatched"):
        if names := [str(name) for name in info.get(f"{fault}_keys") or ()]:
            raise ValueError(f"The {part} in {folder} has {fault} weights: {some(names)}.")
    return model
