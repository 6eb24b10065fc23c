"""From what was published to a folder that diffusers and Longtake load. Torch is loaded only when it begins."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longtake.checkpoints.layout import (
    LORA,
    check_components,
    file_kind,
    has_original_parts,
    is_diffusers,
    is_original,
    read_json,
    transformer_files,
    transformer_settings,
)
from longtake.checkpoints.memory_file import FOLDER
from longtake.checkpoints.sources import LoraFile
from longtake.lock import Lock

if TYPE_CHECKING:
    import torch

    from longtake.memory.echo_encoder import MemoryEncoder

PARTS = ("tokenizer", "text_encoder", "vae")
SETTINGS: dict[str, Any] = {  # of Self-Forcing (arXiv 2506.08009) and its descendants
    "denoising_steps": [1000.0, 750.0, 500.0, 250.0],
    "chunk_frames": 3,
    "fps": 16,
    "default_size": [480, 832],
    "shift": 5.0,
}
_SHARD = "5GB"
_SPARE = 64 << 20  # bytes, for all that is not weights


@dataclass(frozen=True)
class Converted:
    """What was written: where, how many numbers the transformer has and of which dtype, and the size of all weights in
    bytes. ``whole`` is whether tokenizer, text encoder and autoencoder are in it."""

    folder: Path
    parameters: int
    dtype: str
    whole: bool
    size: int


def components_of(source: Path, components: Path | None) -> Path | None:
    """Where the parts beside the transformer come from: as given, else the source itself if it has them."""
    if components is not None or not source.is_dir():
        return components
    whole = has_original_parts(source) or (source / "vae").is_dir()
    return source if whole else None


def check_conversion(
    source: Path,
    out: Path,
    *,
    components: Path | None = None,
    loras: Sequence[LoraFile] = (),
    settings: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Refuses what cannot be converted, as far as that can be told in no time. Arguments as of :func:`convert`.

    Raises:
        ValueError: in one sentence.
    """
    transformer_files(source)
    parts = components_of(source, components)
    if parts is not None:
        check_components(parts)
    for lora in loras:
        file_kind(lora.path, LORA)
    unknown = sorted(set(settings or {}) - set(SETTINGS))
    if unknown:
        raise ValueError(f"Unknown settings: {', '.join(unknown)}; accepted are {', '.join(SETTINGS)}.")
    inputs = [source, *([parts] if parts else []), *(lora.path for lora in loras)]
    target = out.resolve()
    if any(target == path.resolve() or target in path.resolve().parents for path in inputs):
        raise ValueError(f"{out} must not be, or hold, what is read.")
    if out.exists() or out.is_symlink():
        ours = out.is_dir() and not out.is_symlink() and (is_diffusers(out) or not any(out.iterdir()))
        if not overwrite:
            raise ValueError(f"{out} exists already; choose another name, or overwrite it (--overwrite).")
        if not ours:
            raise ValueError(f"{out} is no folder of a model, so it is not overwritten; choose another name.")
    parent = _existing_parent(out)
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ValueError(f"{out} cannot be made: {parent} is no folder that can be written to.")


def convert(
    source: Path,
    out: Path,
    *,
    key: str | None = None,
    components: Path | None = None,
    loras: Sequence[LoraFile] = (),
    dtype: torch.dtype | None = None,
    settings: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    on_step: Callable[[str], None] | None = None,
) -> Converted:
    """Writes a published model as a diffusers folder, which is there whole or not at all.

    Args:
        source: a checkpoint file, a diffusers folder or an original Wan folder.
        out: the folder to make. It is written under another name beside, and renamed when it is whole.
        key: see :func:`longtake.checkpoints.published.read_weights`.
        components: a diffusers or original Wan folder to take tokenizer, text encoder and autoencoder from; None: the
            source itself if it has them, else the folder gets none (and must be loaded beside one that has them).
        loras: fused in this order.
        dtype: of all weights; None: as in the files.
        settings: of the sampler, any of :data:`SETTINGS`; the rest is what source or components say if Longtake
            wrote them, else Self-Forcing's.
        overwrite: whether ``out`` may be replaced if it is the folder of a model.
        on_step: called with what is done next, a few words.

    Raises:
        ValueError: for anything that cannot be read, does not fit together, or cannot be written for want of room;
            nothing is left behind, and an old ``out`` is as it was.
    """
    check_conversion(source, out, components=components, loras=loras, settings=settings, overwrite=overwrite)
    from safetensors import SafetensorError

    from longtake.checkpoints.memory_weights import model_card, save_memory
    from longtake.checkpoints.published import load_transformer

    tell = on_step or (lambda text: None)
    parts = components_of(source, components)
    like = transformer_settings(parts) if parts is not None and parts != source else None
    tell("reading the transformer")
    transformer = load_transformer(source, key, dtype, like=like, loras=loras)
    numbers = sum(p.numel() for p in transformer.parameters())
    size = sum(p.numel() * p.element_size() for p in transformer.parameters())
    memory = _memory(transformer, source, parts, loras, dtype)
    if memory is not None:
        size += sum(p.numel() * p.element_size() for p in memory.parameters())
    loaded = _components(parts, dtype, tell)
    if parts is not None:
        _check_fit(transformer, parts, loaded)
    size += _size_of(parts, loaded)
    try:
        free = shutil.disk_usage(_existing_parent(out)).free
        if free < size + _SPARE:
            raise ValueError(f"{out} needs {_gigabytes(size + _SPARE)} of disk, and {_gigabytes(free)} are free.")
        out.parent.mkdir(parents=True, exist_ok=True)
        lock = Lock(out)
        try:
            _sweep(out)
            folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
            try:
                tell("writing the transformer")
                transformer.save_pretrained(folder / "transformer", max_shard_size=_SHARD)
                if parts is not None:
                    tell("writing the other parts")
                    _write_components(parts, loaded, folder)
                _write_settings(
                    folder,
                    {**SETTINGS, **_settings_of(parts or source), **_settings_of(source), **(settings or {})},
                    parts,
                    loaded,
                )
                if memory is not None:
                    save_memory(memory, folder / FOLDER, model_card(memory, source.name))
                _open_to_others(folder)
                _flush(folder)
                _put_in_place(folder, out)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            lock.release()
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise ValueError(f"{out} could not be written ({reason}); nothing is left of it.") from None
    kind = str(transformer.patch_embedding.weight.dtype).removeprefix("torch.")
    return Converted(out, numbers, kind, parts is not None, size)


def _memory(
    transformer: Any,
    source: Path,
    parts: Path | None,
    loras: Sequence[LoraFile],
    dtype: torch.dtype | None,
) -> MemoryEncoder | None:
    """The weights of a learned memory that come with the model; None if there are none."""
    from longtake.checkpoints.memory_weights import load_memory, memory_of

    path = memory_of(None, source, parts or source, loras)
    if path is None:
        return None
    config = transformer.config
    encoder = load_memory(path, config.num_attention_heads, dtype=dtype)
    encoder.check_model(config.num_attention_heads, config.attention_head_dim, config.num_layers)
    return encoder


def _components(parts: Path | None, dtype: torch.dtype | None, tell: Callable[[str], None]) -> dict[str, Any]:
    """The parts beside the transformer, by name, if they must be changed; empty if files are copied as they are."""
    if parts is None or (dtype is None and not is_original(parts)):
        return {}
    tell("reading the other parts")
    from longtake.checkpoints.original import load_components

    return dict(zip(PARTS, load_components(parts, dtype), strict=True))


def _check_fit(transformer: Any, parts: Path, loaded: Mapping[str, Any]) -> None:
    """Refuses a text encoder or autoencoder of another kind of model."""

    def config(part: str) -> Mapping[str, Any]:
        return loaded[part].config.to_dict() if part == "text_encoder" else loaded[part].config

    text = config("text_encoder") if loaded else read_json(parts / "text_encoder" / "config.json")
    vae = config("vae") if loaded else read_json(parts / "vae" / "config.json")
    for needed, found, what in (
        (transformer.config.text_dim, text.get("d_model"), "text encoder"),
        (transformer.config.in_channels, vae.get("z_dim"), "autoencoder"),
    ):
        if needed != found:
            raise ValueError(
                f"The {what} in {parts} is of another model: it gives {found} channels, the transformer takes {needed}."
            )


def _size_of(parts: Path | None, loaded: Mapping[str, Any]) -> int:
    if parts is None:
        return 0
    if not loaded:
        return sum(f.stat().st_size for part in PARTS for f in (parts / part).rglob("*") if f.is_file())
    models = (loaded["text_encoder"], loaded["vae"])
    return sum(p.numel() * p.element_size() for model in models for p in model.parameters())


def _write_components(parts: Path, loaded: Mapping[str, Any], folder: Path) -> None:
    for part in PARTS:
        if loaded:
            loaded[part].save_pretrained(folder / part)
        else:
            for file in (parts / part).rglob("*"):
                if file.is_file():
                    target = folder / file.relative_to(parts)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(file, target)


def _tokenizer_class(parts: Path, loaded: Mapping[str, Any]) -> str:
    if loaded:
        return type(loaded["tokenizer"]).__name__
    index = parts / "model_index.json"
    named = read_json(index).get("tokenizer") if index.is_file() else None
    if isinstance(named, list) and len(named) == 2 and isinstance(named[1], str):
        return named[1]
    return "AutoTokenizer"


def _write_settings(folder: Path, settings: dict[str, Any], parts: Path | None, loaded: Mapping[str, Any]) -> None:
    import diffusers

    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=float(settings.pop("shift")))
    scheduler.save_pretrained(folder / "scheduler")
    index: dict[str, Any] = {
        "_class_name": "LongTakePipeline",
        "_diffusers_version": diffusers.__version__,
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", _tokenizer_class(parts, loaded) if parts is not None else None],
        "transformer": ["diffusers", "WanTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLWan"],
        **settings,
    }
    if parts is None:
        index.update({part: [None, None] for part in PARTS})
    text = json.dumps(index, indent=2, sort_keys=True)
    (folder / "model_index.json").write_text(text + "\n", encoding="utf-8")


def _settings_of(source: Path) -> dict[str, Any]:
    """The sampler's settings in a folder that Longtake wrote."""
    index = source / "model_index.json"
    if not index.is_file():
        return {}
    found = read_json(index)
    if found.get("_class_name") != "LongTakePipeline":
        return {}
    scheduler = source / "scheduler" / "scheduler_config.json"
    if scheduler.is_file():
        found = {**read_json(scheduler), **found}
    return {name: found[name] for name in SETTINGS if found.get(name) is not None}


def _put_in_place(folder: Path, out: Path) -> None:
    """Renames. An old folder first steps aside, to a name that :func:`_sweep` spares, and comes back if that fails."""
    if not out.exists():
        folder.rename(out)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".old", dir=out.parent)) / out.name
    out.rename(aside)
    try:
        folder.rename(out)
    except BaseException:
        aside.rename(out)
        aside.parent.rmdir()
        raise
    shutil.rmtree(aside.parent, ignore_errors=True)


def _sweep(out: Path) -> None:
    """Removes what a killed process left. Whoever holds the lock is the only one."""
    for left in out.parent.glob(f".{_escaped(out.name)}.*.partial"):
        shutil.rmtree(left, ignore_errors=True)


def _escaped(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _flush(folder: Path) -> None:
    """To the disk itself: a name must not outlive a power cut that its content does not."""
    for path in [*folder.rglob("*"), folder]:
        with contextlib.suppress(PermissionError):  # folders cannot be opened everywhere
            number = os.open(path, os.O_RDONLY)
            try:
                os.fsync(number)
            finally:
                os.close(number)


def _open_to_others(folder: Path) -> None:
    """Permissions as of any new file; temporary folders, and files of safetensors, are for their owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    for path in [*folder.rglob("*"), folder]:
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


def _existing_parent(out: Path) -> Path:
    return next(p for p in out.absolute().parents if p.exists())


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
