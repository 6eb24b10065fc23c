"""Names of weights: the published Wan layout and diffusers' ``WanTransformer3DModel``."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from longtake.checkpoints.layout import some

_TOP = {
    "patch_embedding": "patch_embedding",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "img_emb.proj.0": "condition_embedder.image_embedder.norm1",
    "img_emb.proj.1": "condition_embedder.image_embedder.ff.net.0.proj",
    "img_emb.proj.3": "condition_embedder.image_embedder.ff.net.2",
    "img_emb.proj.4": "condition_embedder.image_embedder.norm2",
    "head.head": "proj_out",
}
_ATTENTION = {
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "o": "to_out.0",
    "norm_q": "norm_q",
    "norm_k": "norm_k",
    "k_img": "add_k_proj",
    "v_img": "add_v_proj",
    "norm_k_img": "norm_added_k",
}
_BLOCK = {
    **{f"self_attn.{old}": f"attn1.{new}" for old, new in _ATTENTION.items() if "img" not in old},
    **{f"cross_attn.{old}": f"attn2.{new}" for old, new in _ATTENTION.items()},
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
    "norm3": "norm2",  # Wan numbers the norm of cross-attention last, diffusers in order of use
}
_WHOLE = {
    "head.modulation": "scale_shift_table",
    "img_emb.emb_pos": "condition_embedder.image_embedder.pos_embed",
}
_OLD_TOP, _OLD_BLOCK, _OLD_WHOLE = ({new: old for old, new in t.items()} for t in (_TOP, _BLOCK, _WHOLE))


def module_to_diffusers(name: str) -> str | None:
    """diffusers' name of a module, ``blocks.0.attn1.to_q`` for ``blocks.0.self_attn.q``; None if Wan has none such."""
    block = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
    if block is None:
        return _TOP.get(name)
    inner = _BLOCK.get(block[2])
    return f"blocks.{block[1]}.{inner}" if inner else None


def flat_to_diffusers(name: str) -> str | None:
    """diffusers' name of a module that is written with ``_`` for every dot, as kohya's tools do, in Wan's or diffusers'
    own names; None if there is no such module."""
    block = re.fullmatch(r"blocks_(\d+)_(.+)", name)
    table = _TOP if block is None else _BLOCK
    tail = name if block is None else block[2]
    for old, new in table.items():
        if tail in (old.replace(".", "_"), new.replace(".", "_")):
            return new if block is None else f"blocks.{block[1]}.{new}"
    return None


def to_diffusers(key: str) -> str | None:
    """diffusers' name of a weight of the published layout; None if it has no such weight."""
    if key in _WHOLE:
        return _WHOLE[key]
    stem, _, kind = key.rpartition(".")
    if kind in ("weight", "bias"):
        module = module_to_diffusers(stem)
        return f"{module}.{kind}" if module else None
    layer = re.fullmatch(r"blocks\.(\d+)\.modulation", key)
    return f"blocks.{layer[1]}.scale_shift_table" if layer else None


def to_wan(key: str) -> str:
    """The published name of a weight of ``WanTransformer3DModel``; the name itself if it has none."""
    if key in _OLD_WHOLE:
        return _OLD_WHOLE[key]
    layer = re.fullmatch(r"blocks\.(\d+)\.(.+)", key)
    if layer and layer[2] == "scale_shift_table":
        return f"blocks.{layer[1]}.modulation"
    stem, _, kind = (layer[2] if layer else key).rpartition(".")
    old = (_OLD_BLOCK if layer else _OLD_TOP).get(stem)
    if old is None:
        return key
    return f"blocks.{layer[1]}.{old}.{kind}" if layer else f"{old}.{kind}"


def wan_to_diffusers(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of a published Wan transformer (Wan, arXiv 2503.20314) to diffusers' names.

    Pure renaming: tensors are passed on as they are, every key is accounted for.

    Args:
        state_dict: keys such as ``blocks.0.self_attn.q.weight``, without prefix.

    Returns:
        The same tensors under names such as ``blocks.0.attn1.to_q.weight``.

    Raises:
        ValueError: if a key is not one of the layout; names the first few.
    """
    names = {key: to_diffusers(key) for key in state_dict}
    unknown = [key for key, name in names.items() if name is None]
    if unknown:
        raise ValueError(f"Not weights of a Wan transformer: {some(unknown)}.")
    return {name: state_dict[key] for key, name in names.items() if name is not None}
