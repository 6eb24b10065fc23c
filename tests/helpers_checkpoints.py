"""Small files in exactly the layouts that Wan-family models are published in, written from a small transformer.

The names are written down here once more, from the published files: the tests would say nothing if they used the
package's own tables.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import UMT5Config, UMT5EncoderModel

HEAD_DIM = 12  # of the transformer in helpers_pipeline

_TRANSFORMER_RULES = [
    (r"^condition_embedder\.text_embedder\.linear_1\.", "text_embedding.0."),
    (r"^condition_embedder\.text_embedder\.linear_2\.", "text_embedding.2."),
    (r"^condition_embedder\.time_embedder\.linear_1\.", "time_embedding.0."),
    (r"^condition_embedder\.time_embedder\.linear_2\.", "time_embedding.2."),
    (r"^condition_embedder\.time_proj\.", "time_projection.1."),
    (r"^scale_shift_table$", "head.modulation"),
    (r"^proj_out\.", "head.head."),
    (r"\.scale_shift_table$", ".modulation"),
    (r"\.attn1\.", ".self_attn."),
    (r"\.attn2\.", ".cross_attn."),
    (r"\.to_(q|k|v)\.", r".\1."),
    (r"\.to_out\.0\.", ".o."),
    (r"\.ffn\.net\.0\.proj\.", ".ffn.0."),
    (r"\.ffn\.net\.2\.", ".ffn.2."),
    (r"\.norm2\.", ".norm3."),
]
_T5_RULES = [
    (r"^shared\.", "token_embedding."),
    (r"^encoder\.final_layer_norm\.", "norm."),
    (r"^encoder\.block\.", "blocks."),
    (r"\.layer\.0\.SelfAttention\.relative_attention_bias\.", ".pos_embedding.embedding."),
    (r"\.layer\.0\.SelfAttention\.", ".attn."),
    (r"\.layer\.0\.layer_norm\.", ".norm1."),
    (r"\.layer\.1\.DenseReluDense\.wi_0\.", ".ffn.gate.0."),
    (r"\.layer\.1\.DenseReluDense\.wi_1\.", ".ffn.fc1."),
    (r"\.layer\.1\.DenseReluDense\.wo\.", ".ffn.fc2."),
    (r"\.layer\.1\.layer_norm\.", ".norm2."),
]
_RESIDUAL = {"norm1": "residual.0", "conv1": "residual.2", "norm2": "residual.3", "conv2": "residual.6"}


def published(name: str, rules: list[tuple[str, str]] = _TRANSFORMER_RULES) -> str:
    for pattern, new in rules:
        name = re.sub(pattern, new, name)
    return name


def published_vae(name: str) -> str:
    """Wan's autoencoder numbers all blocks of the decoder in one list: three residual ones and an upsampler a level."""
    side, _, rest = name.partition(".")
    if side in ("quant_conv", "post_quant_conv"):
        return {"quant_conv": "conv1.", "post_quant_conv": "conv2."}[side] + rest
    rest = re.sub(r"^conv_in\.", "conv1.", rest)
    rest = re.sub(r"^norm_out\.", "head.0.", rest)
    rest = re.sub(r"^conv_out\.", "head.2.", rest)
    rest = re.sub(r"^mid_block\.attentions\.0\.", "middle.1.", rest)
    rest = re.sub(r"^mid_block\.resnets\.([01])\.", lambda m: f"middle.{2 * int(m[1])}.", rest)
    rest = re.sub(r"^down_blocks\.", "downsamples.", rest)
    rest = re.sub(r"^up_blocks\.(\d)\.resnets\.(\d)\.", lambda m: f"upsamples.{4 * int(m[1]) + int(m[2])}.", rest)
    rest = re.sub(r"^up_blocks\.(\d)\.upsamplers\.0\.", lambda m: f"upsamples.{4 * int(m[1]) + 3}.", rest)
    rest = re.sub(r"\.(norm[12]|conv[12])\.", lambda m: f".{_RESIDUAL[m[1]]}.", rest)
    return f"{side}.{rest.replace('.conv_shortcut.', '.shortcut.')}"


def wan_weights(transformer: WanTransformer3DModel) -> dict[str, Tensor]:
    """The weights under published names."""
    return {published(name): x.clone() for name, x in transformer.state_dict().items()}


def _other(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What must not be taken."""
    return {name: torch.full_like(x, 0.5) for name, x in weights.items()}


def _wrapped(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As FSDP leaves them: the whole wrapped, every block again."""
    return {
        "model._fsdp_wrapped_module." + re.sub(r"^(blocks\.\d+\.)", r"\1_fsdp_wrapped_module.", name): x
        for name, x in weights.items()
    }


def _model(weights: Mapping[str, Tensor], prefix: str = "model.") -> dict[str, Tensor]:
    return {prefix + name: x for name, x in weights.items()}


def self_forcing(transformer: WanTransformer3DModel, folder: Path) -> Path:
    weights = wan_weights(transformer)
    path = folder / "self_forcing_dmd.pt"
    torch.save(
        {"generator": _model(_other(weights)), "critic": _model(_other(weights)), "generator_ema": _wrapped(weights)},
        path,
    )
    return path


def longlive(transformer: WanTransformer3DModel, folder: Path) -> Path:
    path = folder / "longlive_base.pt"
    torch.save({"generator": _model(wan_weights(transformer)), "step": 700}, path)
    return path


def causal_forcing(transformer: WanTransformer3DModel, folder: Path) -> Path:
    path = folder / "causal_forcing.pt"
    weights = wan_weights(transformer)
    torch.save({"generator": _model(weights, "model._fsdp_wrapped_module._checkpoint_wrapped_module.")}, path)
    return path


def krea(transformer: WanTransformer3DModel, folder: Path) -> Path:
    path = folder / "krea-realtime-video-14b.safetensors"
    save_file(_model(wan_weights(transformer)), path)
    return path


def under_model(transformer: WanTransformer3DModel, folder: Path) -> Path:
    path = folder / "under_model.pth"
    torch.save({"model": wan_weights(transformer), "optimizer": {}}, path)
    return path


def bare(transformer: WanTransformer3DModel, folder: Path) -> Path:
    path = folder / "bare.pt"
    torch.save({**wan_weights(transformer), "freqs": torch.ones(4, 6, dtype=torch.complex64)}, path)
    return path


def compiled(transformer: WanTransformer3DModel, folder: Path) -> Path:
    path = folder / "compiled.pt"
    torch.save(_model(wan_weights(transformer), "_orig_mod.module."), path)
    return path


def old_pickle(transformer: WanTransformer3DModel, folder: Path) -> Path:
    path = folder / "old.pth"
    torch.save({"generator": wan_weights(transformer)}, path, _use_new_zipfile_serialization=False)
    return path


def comfy(transformer: WanTransformer3DModel, folder: Path) -> Path:
    path = folder / "comfy.safetensors"
    save_file(_model(wan_weights(transformer), "model.diffusion_model."), path)
    return path


def diffusers_names(transformer: WanTransformer3DModel, folder: Path) -> Path:
    path = folder / "diffusers.safetensors"
    save_file({name: x.clone() for name, x in transformer.state_dict().items()}, path)
    return path


def diffusers_folder(transformer: WanTransformer3DModel, folder: Path) -> Path:
    path = folder / "diffusers"
    transformer.save_pretrained(path / "transformer", max_shard_size="20kB")
    assert len(list((path / "transformer").glob("*.safetensors"))) > 1
    return path


def wan_folder(transformer: WanTransformer3DModel, folder: Path) -> Path:
    """An original Wan folder, in two shards as the 14B's; without the other parts (see :func:`add_parts`)."""
    path = folder / "Wan2.1-T2V"
    path.mkdir()
    c = transformer.config
    config = {
        "_class_name": "WanModel",
        "_diffusers_version": "0.30.0",
        "dim": c.num_attention_heads * c.attention_head_dim,
        "eps": c.eps,
        "ffn_dim": c.ffn_dim,
        "freq_dim": c.freq_dim,
        "in_dim": c.in_channels,
        "model_type": "t2v",
        "num_heads": c.num_attention_heads,
        "num_layers": c.num_layers,
        "out_dim": c.out_channels,
        "text_len": 512,
    }
    (path / "config.json").write_text(json.dumps(config))
    weights = wan_weights(transformer)
    names = sorted(weights)
    where = {}
    for i, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"diffusion_pytorch_model-0000{i}-of-00002.safetensors"
        save_file({name: weights[name] for name in part}, path / file)
        where.update(dict.fromkeys(part, file))
    index = {"metadata": {"total_size": 0}, "weight_map": where}
    (path / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    return path


LAYOUTS: dict[str, Callable[[WanTransformer3DModel, Path], Path]] = {
    f.__name__: f
    for f in (
        self_forcing,
        longlive,
        causal_forcing,
        krea,
        under_model,
        bare,
        compiled,
        old_pickle,
        comfy,
        diffusers_names,
        diffusers_folder,
        wan_folder,
    )
}


def small_text_encoder(vocabulary: int, width: int = 16) -> UMT5EncoderModel:
    """UMT5 as Wan has it, but for the sizes."""
    torch.manual_seed(3)
    config = UMT5Config(
        vocab_size=vocabulary,
        d_model=width,
        d_kv=4,
        d_ff=24,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        is_encoder_decoder=False,
    )
    return UMT5EncoderModel(config).eval()


def small_vae() -> AutoencoderKLWan:
    """Wan2.1's autoencoder, but narrower."""
    torch.manual_seed(4)
    return AutoencoderKLWan(base_dim=4).eval()


def add_parts(folder: Path, tokenizer: Any, text_encoder: UMT5EncoderModel, vae: AutoencoderKLWan) -> None:
    """The rest of an original Wan folder."""
    tokenizer.save_pretrained(folder / "google" / "umt5-xxl")
    text = {n: x for n, x in text_encoder.state_dict().items() if n != "encoder.embed_tokens.weight"}
    torch.save({published(n, _T5_RULES): x for n, x in text.items()}, folder / "models_t5_umt5-xxl-enc-bf16.pth")
    torch.save({published_vae(n): x for n, x in vae.state_dict().items()}, folder / "Wan2.1_VAE.pth")


class Payload:
    """Makes a folder when it is unpickled: proof that code ran."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.mkdir, (self.proof,))


def lora_pairs(
    transformer: WanTransformer3DModel, rank: int = 3, seed: int = 0, only: str = r"blocks\.\d+\..*"
) -> dict[str, tuple[Tensor, Tensor]]:
    """Random A [rank, in] and B [out, rank] for every linear layer of the blocks, under diffusers' names."""
    generator = torch.Generator().manual_seed(seed)
    pairs = {}
    for name, module in transformer.named_modules():
        if isinstance(module, torch.nn.Linear) and re.fullmatch(only, name):
            down = torch.randn(rank, module.in_features, generator=generator) / 3
            pairs[name] = down, torch.randn(module.out_features, rank, generator=generator) / 3
    return pairs


def published_module(name: str) -> str:
    """Wan's name of a module."""
    return published(f"{name}.weight").removesuffix(".weight")
