"""Which model was asked for, and what is changed about it: from a name or a path to an entry of the registry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from longtake.checkpoints.layout import (
    LORA,
    check_components,
    file_kind,
    has_original_parts,
    is_diffusers,
    is_original,
    transformer_settings,
)
from longtake.checkpoints.memory_file import memory_path
from longtake.checkpoints.registry import BaseInfo, LoraInfo, ModelInfo, bases, load_registry
from longtake.checkpoints.sources import LoraFile

_MATTER = ("num_layers", "num_attention_heads", "attention_head_dim", "text_dim", "in_channels")


@dataclass(frozen=True)
class Choice:
    """A model, and what is to be different about it.

    Attributes:
        model: a name of the registry, a diffusers or original Wan folder, or a checkpoint file, which may be followed
            by ``#`` and the key of its weights.
        components: a folder for everything but the transformer; None for where the model itself has it from.
        loras: fused on top of the model's own.
        denoising_steps, shift, chunk: in place of the model's.
        memory: weights of a learned memory, a file or folder, in place of the model's.
    """

    model: str = "pocket"
    components: Path | None = None
    loras: tuple[LoraFile, ...] = ()
    denoising_steps: tuple[float, ...] | None = None
    shift: float | None = None
    chunk: int | None = None
    memory: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON, with absolute paths, so that it means the same anywhere on this computer."""
        data: dict[str, Any] = {"model": place_of(self.model)}
        if self.components is not None:
            data["components"] = str(self.components.expanduser().absolute())
        if self.loras:
            data["loras"] = [[str(x.path.absolute()), x.scale, x.key] for x in self.loras]
        if self.memory is not None:
            data["memory"] = str(self.memory.expanduser().absolute())
        if self.denoising_steps is not None:
            data["denoising_steps"] = list(self.denoising_steps)
        return data | {k: v for k, v in (("shift", self.shift), ("chunk", self.chunk)) if v is not None}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Choice:
        """What :meth:`to_dict` made this of.

        Raises:
            ValueError: if it did not.
        """
        try:
            steps = data.get("denoising_steps")
            components = data.get("components")
            return cls(
                str(data["model"]),
                None if components is None else Path(components),
                tuple(LoraFile(Path(path), float(scale), key) for path, scale, key in data.get("loras", ())),
                None if steps is None else tuple(float(t) for t in steps),
                None if data.get("shift") is None else float(data["shift"]),
                None if data.get("chunk") is None else int(data["chunk"]),
                None if data.get("memory") is None else Path(data["memory"]),
            )
        except (KeyError, TypeError, AttributeError, ValueError):
            raise ValueError("A saved choice of a model must have the model, and files and numbers with it.") from None


def place_of(model: str) -> str:
    """What finds a model again from any folder: its name in the registry, or its absolute path."""
    if model in load_registry():
        return model
    path, key = split_key(model)
    return str(path.absolute()) + (f"#{key}" if key else "")


def split_key(model: str) -> tuple[Path, str | None]:
    """``FILE#KEY`` as the file and the key; what exists as it is has no key."""
    whole = Path(model).expanduser()
    text, found, key = model.rpartition("#")
    if whole.exists() or not found:
        return whole, None
    return Path(text).expanduser(), key or None


def info_for(choice: Choice) -> ModelInfo:
    """The registry's entry for a choice, or one made for its folder or file. Checks what can be checked without a
    network and without reading weights.

    Raises:
        ValueError: if there is no such model or file, in one sentence.
    """
    known = load_registry()
    info = known.get(choice.model)
    if info is None:
        info = _info_of_path(choice.model, list(known))
    for lora in choice.loras:
        file_kind(lora.path, LORA)
    if choice.memory is not None:
        info = replace(info, memory_weights=memory_path(choice.memory))
    if choice.components is not None:
        components = choice.components.expanduser()
        check_components(components)
        transformer = info.folder if info.transformer is None else info.transformer
        info = replace(info, folder=None, transformer=transformer, components=components)
    if info.base is None and info.folder is None and info.components is None:
        info = _with_parts(info)
    loras = tuple(LoraInfo(x.path, x.key, x.scale) for x in choice.loras)
    return replace(
        info,
        loras=(*info.loras, *loras),
        denoising_steps=choice.denoising_steps or info.denoising_steps,
        shift=info.shift if choice.shift is None else choice.shift,
        chunk=choice.chunk or info.chunk,
    )


def _info_of_path(model: str, known: Sequence[str]) -> ModelInfo:
    path, key = split_key(model)
    if not model.strip() or not path.exists():
        near = get_close_matches(model.lower(), known, 1)
        hint = f", did you mean {near[0]}" if near else ""
        raise ValueError(
            f"There is no model {model!r}{hint}; accepted are {', '.join(known)}, a folder saved by diffusers, an "
            "original Wan folder, or a .pt or .safetensors file."
        )
    whole = is_diffusers(path) and all((path / part).is_dir() for part in ("vae", "text_encoder", "tokenizer"))
    bare = (path / "config.json").is_file()  # of a transformer by itself, or of something that is refused later
    if not whole and not bare and not is_diffusers(path) and not is_original(path):
        file_kind(path)
    return ModelInfo(
        name=model,
        description="",
        license="",
        source=str(path),
        parameters=None,
        size=(480, 832),
        fps=16,
        chunk=3,
        denoising_steps=(1000, 750, 500, 250),
        shift=5.0,
        memory="memrope",
        folder=path if whole else None,
        base=None,
        transformer=None if whole else path,
        key=key,
        loras=(),
        origin=path,
    )


def _with_parts(info: ModelInfo) -> ModelInfo:
    """Says where the rest of a model that is a transformer only comes from."""
    path = info.transformer
    assert isinstance(path, Path)
    if is_original(path) and has_original_parts(path):
        return replace(info, components=path)
    base = base_for(transformer_config_of(path, info.key))
    if base is None:
        raise ValueError(
            f"{path} has a transformer only, and it is not of the size of a published Wan model: say with --components "
            "where its autoencoder and text encoder are."
        )
    return replace(info, base=base.name)


def transformer_config_of(path: Path, key: str | None = None, components: Path | None = None) -> Mapping[str, Any]:
    """The arguments of ``WanTransformer3DModel``, from the configuration in a folder or the shapes in a file (the one
    thing here that loads torch).

    Raises:
        ValueError: if this is not the transformer of a Wan text-to-video model.
    """
    if path.is_dir() and (settings := transformer_settings(path)) is not None:
        return settings
    from longtake.checkpoints.published import read_transformer, transformer_config

    like = None if components is None else transformer_settings(components)
    return transformer_config(read_transformer(path, key), like=like)


def base_for(transformer: Mapping[str, Any]) -> BaseInfo | None:
    """The published Wan whose other parts go with a transformer of these sizes; None if there is none."""
    for base in bases().values():
        if all(base.transformer.get(key) == transformer.get(key) for key in _MATTER):
            return base
    return None
