"""What is known of a model before it is loaded, and often before it is downloaded. Imports nothing heavy.

A plan, or the refusal of an impossible one, costs milliseconds: the facts of a folder are read from its JSON files,
those of a model known by name from the registry. Only a checkpoint file must be opened, for the shapes of its weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

from longtake.checkpoints.choice import Choice, info_for, place_of, transformer_config_of
from longtake.checkpoints.layout import is_diffusers, is_original, original_files, read_json
from longtake.checkpoints.memory_file import FILE, FOLDER, memory_path, saved_config
from longtake.checkpoints.registry import ModelInfo, bases
from longtake.checkpoints.sources import Sources
from longtake.pocket.first import words as first_words
from longtake.pocket.world import words as world_words

_SAMPLES, _SAMPLE_BYTES = 64, 4096
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")


@dataclass(frozen=True)
class ModelFacts:
    """What the files of a model, or the registry, say of it.

    Attributes:
        choice: what was asked for; ``info``: its entry in the registry, or one made for it.
        sources: where its parts are on this computer; None if they have to be downloaded first.
        transformer, vae, text_encoder: contents of their diffusers and transformers ``config.json``.
        size: default (height, width) in pixels.
        fps: frames per second; ``chunk``: latent frames per chunk.
        denoising_steps: timesteps of a chunk before ``shift`` warps them, the commit not counted.
    """

    choice: Choice
    info: ModelInfo
    sources: Sources | None
    transformer: Mapping[str, Any]
    vae: Mapping[str, Any]
    text_encoder: Mapping[str, Any]
    size: tuple[int, int]
    fps: int
    chunk: int
    denoising_steps: tuple[float, ...]
    shift: float

    @classmethod
    def read(cls, choice: str | Choice) -> ModelFacts:
        """Facts of a model.

        Raises:
            ValueError: if there is no such model, or it is not one of a Wan text-to-video model.
        """
        from longtake.checkpoints.hub import locate

        choice = Choice(choice) if isinstance(choice, str) else choice
        info = info_for(choice)
        found = locate(info)
        base = bases()[info.base] if info.base else None
        index: Mapping[str, Any] = {}
        where = info.folder or (info.transformer if isinstance(info.transformer, Path) else None)
        try:
            if where is None:
                assert base is not None
                transformer: Mapping[str, Any] = base.transformer
            else:
                transformer = transformer_config_of(where, info.key, info.components)
                index = _settings(where, info.components)
            vae, text = _parts(info, found)
            if vae.get("_class_name") != "AutoencoderKLWan":
                raise KeyError("vae")

            def setting(key: str, named: str, chosen: Any = None) -> Any:
                """What was asked for; what the registry's entry says itself; what the folder says; the usual."""
                usual = getattr(info, key)
                return chosen or (usual if key in info.said else index.get(named) or usual)

            height, width = setting("size", "default_size")
            facts = cls(
                choice,
                info,
                found,
                transformer,
                vae,
                text,
                (int(height), int(width)),
                int(setting("fps", "fps")),
                int(setting("chunk", "chunk_frames", choice.chunk)),
                tuple(float(t) for t in setting("denoising_steps", "denoising_steps", choice.denoising_steps)),
                float(setting("shift", "shift", choice.shift)),
            )
            facts._numbers  # noqa: B018 (read now, so that what is wrong with them is said here)
            facts._check_parts()
            return facts
        except (OSError, KeyError, TypeError, IndexError, AttributeError):
            raise ValueError(
                f"{where or info.name} is not a Wan text-to-video model as diffusers saves it "
                "(transformer: WanTransformer3DModel, vae: AutoencoderKLWan)."
            ) from None

    def _check_parts(self) -> None:
        """Refuses parts that are each in order, but not of one model, as far as their configurations tell."""
        for own, theirs, part, what in (
            (self.transformer.get("in_channels"), self.vae.get("z_dim"), "autoencoder", "latents of {} channels"),
            (
                self.transformer.get("text_dim"),
                self.text_encoder.get("d_model"),
                "text encoder",
                "{} numbers per token",
            ),
        ):
            if None not in (own, theirs) and own != theirs:
                raise ValueError(
                    f"The parts of {self.name} are not of one model: its transformer takes {what.format(own)}, its "
                    f"{part} gives {theirs}."
                )

    @property
    def name(self) -> str:
        """As it was asked for."""
        return self.choice.model

    @property
    def memory(self) -> str:
        """What is remembered unless something else is asked for."""
        return self.info.memory

    @property
    def may_have_memory(self) -> bool:
        """Whether there are, or may be, weights of a learned memory: only reading a checkpoint tells what is in it."""
        info = self.info
        bare = isinstance(info.transformer, Path) and not info.transformer.is_dir()
        return info.memory_weights is not None or bool(info.loras) or bare or self.memory_file is not None

    @cached_property
    def saved_memory(self) -> dict[str, Any] | None:
        """What the header of the memory weights says, see :func:`saved_config`; None if there are none here, or they
        are in another format.

        Raises:
            ValueError: if they are damaged.
        """
        return None if self.memory_file is None else saved_config(self.memory_file)

    @property
    def memory_file(self) -> Path | None:
        """Where the memory weights are, but for those within a checkpoint."""
        if self.sources is None:
            return None
        if self.sources.memory is not None:
            return memory_path(self.sources.memory)
        folders = [path for path in (self.sources.transformer, self.sources.components) if path.is_dir()]
        return next((path / FOLDER / FILE for path in folders if (path / FOLDER / FILE).is_file()), None)

    @property
    def place(self) -> str:
        """What finds this model again, from any folder: its name in the registry, or an absolute path."""
        return place_of(self.choice.model)

    def located(self) -> ModelFacts:
        """The same, after a download."""
        from longtake.checkpoints.hub import locate

        return replace(self, sources=locate(self.info))

    # Numbers

    @cached_property
    def _numbers(self) -> dict[str, int]:
        transformer, vae = self.transformer, self.vae
        return {
            "spatial": int(vae.get("scale_factor_spatial", 8)),
            "temporal": int(vae.get("scale_factor_temporal", 4)),
            "layers": int(transformer.get("num_layers", 40)),
            "heads": int(transformer.get("num_attention_heads", 40)),
            "head_dim": int(transformer.get("attention_head_dim", 128)),
            "ffn": int(transformer.get("ffn_dim", 13824)),
            "longest": int(transformer.get("rope_max_seq_len", 1024)),
            **{f"patch{i}": int(n) for i, n in enumerate(transformer.get("patch_size", (1, 2, 2)))},
        }

    @property
    def spatial(self) -> int:
        """Pixels per latent along height and width."""
        return self._numbers["spatial"]

    @property
    def temporal(self) -> int:
        """Frames per latent frame."""
        return self._numbers["temporal"]

    @property
    def patch(self) -> tuple[int, int, int]:
        """Latents per token along time, height and width."""
        return self._numbers["patch0"], self._numbers["patch1"], self._numbers["patch2"]

    @property
    def layers(self) -> int:
        """Blocks of the transformer."""
        return self._numbers["layers"]

    @property
    def heads(self) -> int:
        """Attention heads."""
        return self._numbers["heads"]

    @property
    def head_dim(self) -> int:
        """Channels per head."""
        return self._numbers["head_dim"]

    @property
    def ffn(self) -> int:
        """Width of the feed-forward layers."""
        return self._numbers["ffn"]

    @property
    def longest(self) -> int:
        """Most positions along any axis."""
        return self._numbers["longest"]

    @property
    def step(self) -> int:
        """Height and width must be multiples of this."""
        return self.spatial * self.patch[1]

    @cached_property
    def pocket_words(self) -> ModuleType | None:
        """The words of the pocket world that is all the model knows; None for any other model. Told by the tokenizer,
        which has one token per word."""
        if self.sources is None:
            return None
        try:
            model = read_json(self.sources.components / "tokenizer" / "tokenizer.json")["model"]
            known = set(model["vocab"]) if model["type"] == "WordLevel" else set()
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return next((words for words in (world_words, first_words) if set(words.vocabulary()) <= known), None)

    def check_prompt(self, prompt: str) -> list[str]:
        """What of a prompt will have no effect, in sentences; none if the model's words are not known.

        Raises:
            ValueError: if the model knows nothing of it.
        """
        words = self.pocket_words
        if words is None:
            return []
        if not words.content_words(prompt):
            raise ValueError(f"The model {self.name} knows nothing of {prompt!r}; it knows {words.what_it_knows()}.")
        warnings = []
        if unknown := words.unknown_words(prompt):
            warnings.append(
                f"The model {self.name} does not know {', '.join(unknown)}; it knows {words.what_it_knows()}."
            )
        if left_out := words.words_too_many(prompt):
            warnings.append(
                f"The model {self.name} reads {words.MAX_WORDS} words of a prompt at most: "
                f"the last {left_out} word{'s' * (left_out != 1)} of {prompt!r} will have no effect."
            )
        return warnings

    def signature(self) -> str | None:
        """Tells models apart by what is in their files, without loading them; None if they are not here yet.

        Settings, and the size and 64 samples of every file of weights: another training run differs in every sample.
        """
        if self.sources is None:
            return None
        digest = hashlib.sha256()
        for path in sorted(_files(self.sources)):
            _sample(path, digest, f"{path.parent.name}/{path.name}")
        if self.sources.transformer.is_file():  # wherever it lies
            _sample(self.sources.transformer, digest)
        for lora in self.sources.loras:
            digest.update(f"{lora.scale:g}".encode())
            _sample(lora.path, digest)
        return digest.hexdigest()[:32]


def _parts(info: ModelInfo, found: Sources | None) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Configurations of autoencoder and text encoder: from the folder they are in, or the registry."""
    folder = info.folder or info.components or (None if found is None else found.components)
    if folder is not None and is_original(folder):
        # Nothing but the weights says how large they are.
        from longtake.checkpoints.original import read_part, text_config, vae_config

        _, text, vae = original_files(folder)
        sizes = {"_class_name": "AutoencoderKLWan", **vae_config(read_part(vae), str(vae))}
        return sizes, text_config(read_part(text), str(text)).to_dict()
    if folder is not None:
        return read_json(folder / "vae" / "config.json"), read_json(folder / "text_encoder" / "config.json")
    base = info.parts_from
    assert base is not None
    return base.vae, base.text_encoder


def _settings(where: Path, components: Path | None) -> dict[str, Any]:
    """What a folder that Longtake wrote says of sampling and pictures; the components', if the model is a bare file.

    Not so other folders: the scheduler of the Wan that few-step models were made from is not theirs.
    """
    for folder in (where, components):
        if folder is None or not (folder / "model_index.json").is_file():
            continue
        index = read_json(folder / "model_index.json")
        if index.get("_class_name") != "LongTakePipeline":
            continue
        scheduler = folder / "scheduler" / "scheduler_config.json"
        config = read_json(scheduler) if scheduler.is_file() else {}
        return {**index, "shift": config.get("shift") or config.get("flow_shift")}
    return {}


def _files(sources: Sources) -> Iterable[Path]:
    """All that a model is read from, without its LoRAs."""
    whole = sources.transformer == sources.components
    yield from _files_in(sources.components, ["*"] if whole else ["vae", "text_encoder", "tokenizer"])
    if not whole:
        yield from _files_in(sources.transformer, ["transformer"])


def _files_in(folder: Path, parts: Iterable[str]) -> set[Path]:
    # An original Wan folder has its weights at the top.
    found = {p for p in folder.glob("*") if p.suffix in _WEIGHTS and not is_diffusers(folder)}
    return found | {p for part in parts for p in folder.glob(f"{part}/*") if p.suffix in (".json", *_WEIGHTS)}


def _sample(path: Path, digest: Any, name: str = "weights") -> None:
    if path.suffix == ".json":
        try:
            content = json.loads(path.read_text())
        except (OSError, ValueError):
            return
        if isinstance(content, dict):  # names beginning with "_" say who saved the file and from where
            content = {k: v for k, v in content.items() if not k.startswith("_")}
        digest.update(json.dumps(content, sort_keys=True).encode())
        return
    size = path.stat().st_size
    digest.update(f"{name} {size}".encode())
    with path.open("rb") as f:
        for index in range(_SAMPLES):
            f.seek(size * index // _SAMPLES)
            digest.update(f.read(_SAMPLE_BYTES))
