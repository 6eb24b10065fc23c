"""What lies in a file or folder of weights, told from names and first bytes. Imports nothing heavy."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ACCEPTED = "a .pt, .pth or .safetensors checkpoint, a diffusers folder, or an original Wan folder"
LORA = "a .pt, .pth or .safetensors file of LoRA weights"
_WEIGHTS = "diffusion_pytorch_model"  # diffusers' name for them, which the original Wan folders use too
_LARGEST_HEADER = 100 << 20  # bytes; the limit of the safetensors format


def some(names: Iterable[str], count: int = 3) -> str:
    """The first few names, and how many more there are, for a sentence."""
    known = sorted(names)
    return ", ".join(known[:count]) + (f" and {len(known) - count} more" if len(known) > count else "")


def file_kind(path: Path, accepted: str = ACCEPTED) -> str:
    """``zip`` (torch.save), ``pickle`` (torch.save before 1.6) or ``safetensors``, told from the first bytes.

    Args:
        path: the file.
        accepted: what is wanted, for messages.

    Raises:
        ValueError: if there is no file, or it is none of these; in one sentence.
    """
    try:
        if path.is_dir():
            raise ValueError(f"{path} is a folder without weights that are known; accepted is {accepted}.")
        with open(path, "rb") as file:
            head = file.read(64)
            size = file.seek(0, 2)
    except FileNotFoundError:
        raise ValueError(f"There is nothing at {path}; accepted is {accepted}.") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}).") from None
    if not head:
        raise ValueError(f"{path} is empty; accepted is {accepted}.")
    if head.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path} is a Git LFS pointer and not the weights; fetch them with `git lfs pull`.")
    if head.startswith(b"GGUF"):
        raise ValueError(f"{path} is a GGUF file, which is not supported; accepted is {accepted}.")
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    length = int.from_bytes(head[:8], "little")  # may begin with the byte that pickles begin with
    if head[8:9] == b"{" and length <= _LARGEST_HEADER:
        if 8 + length > size:
            raise ValueError(f"{path} is damaged or cut short.")
        return "safetensors"
    if head.startswith(b"\x80"):
        return "pickle"
    raise ValueError(f"{path} is not a checkpoint; accepted is {accepted}.")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        ValueError: if it cannot be read, or is something else.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}).") from None
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        raise ValueError(f"{path} is not a JSON object.")
    return data


def _class_of(folder: Path) -> str:
    config = folder / "config.json"
    return str(read_json(config).get("_class_name")) if config.is_file() else ""


def is_original(folder: Path) -> bool:
    """Whether this is a folder as Wan published it: with ``config.json`` of a ``WanModel``, ``models_t5_*.pth`` or
    ``Wan*_VAE.pth``."""
    if not folder.is_dir() or is_diffusers(folder):
        return False
    return has_original_parts(folder) or _class_of(folder).endswith("WanModel")


def has_original_parts(folder: Path) -> bool:
    """Whether a text encoder or an autoencoder lies here under the name that Wan gave it."""
    return any(next(folder.glob(pattern), None) is not None for pattern in ("models_t5_*.pth", "Wan*_VAE.pth"))


def is_diffusers(folder: Path) -> bool:
    """Whether this is a pipeline's folder as diffusers saves it."""
    return (folder / "model_index.json").is_file() or (folder / "transformer" / "config.json").is_file()


def _transformer_folder(path: Path) -> Path:
    return path / "transformer" if (path / "transformer").is_dir() else path


def transformer_files(path: Path) -> list[Path]:
    """The files that hold a transformer's weights: a file itself, or what lies in a diffusers or original Wan folder.

    Raises:
        ValueError: if there are none, or a part is missing; names it.
    """
    if not path.is_dir():
        file_kind(path)
        return [path]
    folder = _transformer_folder(path)
    single = folder / f"{_WEIGHTS}.safetensors"
    index = folder / f"{_WEIGHTS}.safetensors.index.json"
    if index.is_file() and not single.is_file():
        where = read_json(index).get("weight_map")
        if not isinstance(where, dict) or not where:
            raise ValueError(f"{index} has no weight_map.")
        names = sorted({str(name) for name in where.values()})
        if any(Path(name).name != name for name in names):
            raise ValueError(f"{index} names files outside its folder.")
        files = [folder / name for name in names]
    else:
        files = [single] if single.is_file() else sorted(folder.glob(f"{_WEIGHTS}-*.safetensors"))
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ValueError(f"{folder} lacks {some(missing)}, which {index.name} names.")
    if not files:
        raise ValueError(f"{path} is a folder without weights of a transformer; accepted is {ACCEPTED}.")
    for file in files:
        file_kind(file)
    return files


def transformer_settings(folder: Path) -> dict[str, Any] | None:
    """Arguments of ``WanTransformer3DModel`` from the ``config.json`` of a diffusers or original Wan folder.

    Returns:
        None if there is no such file.

    Raises:
        ValueError: if it is of another kind of model.
    """
    path = _transformer_folder(folder) / "config.json"
    if not path.is_file():
        return None
    config = read_json(path)
    name = config.get("_class_name")
    if name == "WanTransformer3DModel":
        return config
    if not str(name).endswith("WanModel"):  # Wan's own, or a causal fork's
        raise ValueError(f"{path} is of a {name} and not of a Wan transformer.")
    kind = config.get("model_type", "t2v")
    if kind != "t2v":
        raise ValueError(f"{path} is of a Wan model of type {kind!r}; only text-to-video models (t2v) are supported.")
    return _from_original(config, path)


def _from_original(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    names = {
        "in_dim": "in_channels",
        "out_dim": "out_channels",
        "ffn_dim": "ffn_dim",
        "freq_dim": "freq_dim",
        "text_dim": "text_dim",
        "num_layers": "num_layers",
        "patch_size": "patch_size",
        "eps": "eps",
    }
    settings = {new: config[old] for old, new in names.items() if old in config}
    width, heads = config.get("dim"), config.get("num_heads")
    if type(width) is not int or type(heads) is not int or heads < 1 or width % heads:
        raise ValueError(f"{path} must have dim and num_heads, and dim a multiple of num_heads.")
    return {**settings, "num_attention_heads": heads, "attention_head_dim": width // heads}


def _one(folder: Path, pattern: str, what: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        names = f"it has {some(f.name for f in found)}" if found else f"there is no {pattern}"
        raise ValueError(f"{folder} must have one {what}, but {names}.")
    return found[0]


def original_files(folder: Path) -> tuple[Path, Path, Path]:
    """Where the tokenizer (a folder), the text encoder and the autoencoder of an original Wan folder lie.

    Raises:
        ValueError: if one is not there.
    """
    tokenizer = folder / "google" / "umt5-xxl"
    if not tokenizer.is_dir():
        raise ValueError(f"{folder} must have a tokenizer in google/umt5-xxl.")
    found = tokenizer, _one(folder, "models_t5_*.pth", "text encoder"), _one(folder, "Wan*_VAE.pth", "autoencoder")
    for path in found[1:]:
        file_kind(path)
    return found


def check_components(folder: Path) -> None:
    """Refuses a folder that has no tokenizer, text encoder and autoencoder, in diffusers' or the original layout.

    Raises:
        ValueError: names what is missing.
    """
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder} with the other parts of a model.")
    if is_original(folder):
        original_files(folder)
        return
    missing = [
        f"{part}/config.json" for part in ("text_encoder", "vae") if not (folder / part / "config.json").is_file()
    ]
    if not (folder / "tokenizer").is_dir():
        missing.append("tokenizer/")
    if missing:
        raise ValueError(
            f"{folder} lacks {some(missing)}; accepted is a diffusers folder of a Wan model, or an original Wan folder."
        )
