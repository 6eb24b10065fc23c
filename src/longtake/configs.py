"""Configuration files of MemRoPE, LongLive and Self-Forcing, in Longtake's terms. Imports nothing heavy.

The three projects share a family of YAML keys; which code reads them differs. A file whose ``model_kwargs`` have
``compression_method``, ``recent_size``, ``use_block_rope`` or ``ema_*`` is read as MemRoPE's inference does
(repository YoungRaeKimm/MemRoPE), any other as those of LongLive (NVlabs/LongLive) and Self-Forcing
(guandeh17/Self-Forcing) do. What each key becomes, and where Longtake differs: ``docs/from-memrope.md``.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from longtake.checkpoints.sources import LoraFile, Sources
from longtake.confignotes import without_meaning
from longtake.memory import MemoryPolicy, MemRoPE, Sliding
from longtake.promptfiles import Item, items, read_lines, read_prompts
from longtake.yamlfile import Keys, read_yaml, resolve

FPS = 16  # of every published model
LATENTS_OF_THE_WHOLE = 21  # what the released code attends to at most when local_attn_size is -1
_TEMPORAL, _SPATIAL = 4, 8  # frames per latent frame, pixels per latent pixel, of Wan's autoencoder
_MOST_LATENTS = 126_489_600  # 366 days
_RELEASED_SHIFT = 8.0  # default of WanDiffusionWrapper
_MEMROPE_KEYS = {"compression_method", "recent_size", "use_block_rope", "ema_alpha_long", "ema_alpha_short"}
_MEMROPE_KEYS |= {"ema_adaptive"}
# The published files of models that have a name here: file, key, and file and scale of LoRA weights.
_NAMED = {
    ("self_forcing_dmd.pt", "generator_ema", None): "self-forcing",
    ("longlive_base.pt", "generator", ("lora.pt", 1.0)): "longlive",
}
_WAN_FOLDERS = ("checkpoints", "wan_models")  # of MemRoPE, and of LongLive and Self-Forcing


@dataclass(frozen=True)
class Config:
    """What a configuration file asks for.

    Attributes:
        path: of the file.
        memory: for `longtake.memory.parse_memory`.
        steps: timesteps before the shift; ``shift``: 1 if they are used as they are listed.
        chunk: latent frames per chunk.
        latents: latent frames in all; see `frames` and `seconds`.
        seed: of the first sample of every prompt; ``samples``: videos per prompt.
        height, width: in pixels; None where the file leaves them to the model.
        checkpoint: of the transformer, existing or not, and ``key`` in it; None: the Wan model as it is.
        lora: to be fused, if any.
        components: the folder of the original Wan model, if there is one.
        model_name: of the Wan model, e.g. ``Wan2.1-T2V-1.3B``.
        named: the name under which Longtake knows the very model, if it does; for when the files are not here.
        prompts_file: what is said; ``titles_file``: what videos are named after, if that is another file.
        limit: prompts that are made are those of lines below it, if there is one.
        output_folder: where videos go, from the current folder; None: not said.
        kind: of the published file names: lora, ema or regular; ``by_index``: whether they have the line's number.
        notes: (key, sentence) for every key that is there and means nothing here, or not what it seems.
    """

    path: Path
    memory: str
    steps: tuple[float, ...]
    shift: float
    chunk: int
    latents: int
    seed: int
    samples: int
    height: int | None
    width: int | None
    checkpoint: Path | None
    key: str | None
    lora: LoraFile | None
    components: Path | None
    model_name: str
    named: str | None
    prompts_file: Path | None
    titles_file: Path | None
    limit: int | None
    output_folder: Path | None
    kind: str
    by_index: bool
    notes: tuple[tuple[str, str], ...]

    @property
    def frames(self) -> int:
        """Frames of each video: the first latent gives one, every other four."""
        return 1 + _TEMPORAL * (self.latents - 1)

    @property
    def seconds(self) -> float:
        """Length of each video at 16 frames per second."""
        return self.frames / FPS

    def check_files(self) -> None:
        """Refuses a checkpoint or LoRA weights that are not there.

        Raises:
            ValueError: in one sentence that says under which name Longtake would fetch the model, if it knows it.
        """
        lora = None if self.lora is None else self.lora.path
        for key, path in (("generator_ckpt", self.checkpoint), ("lora_ckpt", lora)):
            if path is not None and not _exists(path):
                hint = f"give --model {self.named}, which is this model" if self.named else "give --model"
                raise ValueError(f"{self.path}: {key} is {path}, and there is no such file: put it there, or {hint}.")

    def sources(self, components: Path | None = None) -> Sources:
        """The files to load; ``components`` (text encoder, tokenizer and autoencoder) in place of those here.

        Raises:
            ValueError: in one sentence, if one of them is not there.
        """
        self.check_files()
        components = components or self.components
        if components is None:
            where = " or ".join(f"{folder}/{self.model_name}" for folder in _WAN_FOLDERS)
            raise ValueError(
                f"{self.path} needs the original {self.model_name} for text encoder and autoencoder: a folder {where}, "
                "or any other with --components."
            )
        key, loras = (self.key if self.checkpoint else None), (() if self.lora is None else (self.lora,))
        return Sources(self.checkpoint or components, components, key, loras)

    def items(
        self,
        start: int = 0,
        end: int | None = None,
        *,
        prompts_file: Path | None = None,
        folder: Path | None = None,
    ) -> list[Item]:
        """The videos to make, with the published file names.

        Args:
            start, end: lines, see `longtake.promptfiles.select`.
            prompts_file: in place of the configuration's. The configuration's own is read as its project does, a plain
                prompt per line; this one may have scripts.
            folder: in place of the configuration's.

        Raises:
            ValueError: in one sentence, if there are no prompts, no folder or no such lines.
        """
        folder = folder or self.output_folder
        if folder is None:
            raise ValueError(f"{self.path} has no output_folder: say with --out where the videos go.")
        titles = None
        if prompts_file is not None:
            prompts = read_prompts(prompts_file)
            titles = read_lines(prompts_file)
        elif self.prompts_file is None:
            raise ValueError(f"{self.path} has no data_path: give a file of prompts with --prompts.")
        else:
            prompts = read_prompts(self.prompts_file, scripts=False)
            titles = read_lines(self.titles_file or self.prompts_file)
            if len(titles) != len(prompts):
                raise ValueError(
                    f"{self.prompts_file} has {len(prompts)} lines and {self.titles_file} has {len(titles)}: "
                    "extended_prompt_path and data_path must have as many lines as each other."
                )
            if self.limit is not None:
                limit = max(self.limit, start + 1)  # the original looks at its limit after a video, not before
                end = limit if end is None or end == -1 else min(end, limit)
        return items(
            prompts,
            folder,
            start=start,
            end=end,
            seed=self.seed,
            samples=self.samples,
            titles=titles,
            published=(self.kind, self.by_index),
        )


def told(config: Config) -> list[str]:
    """The notes of a configuration as lines, keys with the same sentence together."""
    together: dict[str, list[str]] = {}
    for key, sentence in config.notes:
        together.setdefault(sentence, []).append(key)
    return [f"{', '.join(keys)}: {sentence}" for sentence, keys in together.items()]


def read_config(path: str | os.PathLike[str]) -> Config:
    """Reads a configuration file of MemRoPE, LongLive or Self-Forcing.

    Files that it names need not be there: see `Config.sources` and `Config.items`.

    Raises:
        ValueError: in one sentence, if it cannot be read (see `longtake.yamlfile.read_yaml`), or a key that means
            something has a value that cannot be; names the key, its value and what would be accepted.
    """
    keys = Keys(read_yaml(path), Path(path))
    if not keys.data.keys() & {"denoising_step_list", "model_kwargs", "num_output_frames", "generator_ckpt"}:
        raise ValueError(
            f"{keys.path} is no configuration of MemRoPE, LongLive or Self-Forcing: it has none of their keys."
        )
    chunk = keys.whole("num_frame_per_block", 1, 1, 1000)
    latents = keys.whole("num_output_frames", LATENTS_OF_THE_WHOLE, 1, _MOST_LATENTS)
    if keys.value("num_output_frames") is None:
        keys.note("num_output_frames", f"Not there: {latents}, as in Self-Forcing, unless --seconds says otherwise.")
    steps, shift = _schedule(keys)
    policy = _policy(keys, chunk)
    _must_be(keys)
    lora = _lora(keys)
    key = "generator_ema" if keys.flag("use_ema", False) else "generator"
    name = keys.text("generator_ckpt")
    checkpoint = None if name is None else _find(keys, name)
    if checkpoint is None:
        keys.note("generator_ckpt", "Not there: the Wan model as it was published, which is not made for few steps.")
    published = ("" if name is None else Path(name).name, key, None if lora is None else (lora.path.name, lora.scale))
    prompts = _file(keys, "data_path")
    extended = _file(keys, "extended_prompt_path")
    inference_iter = keys.whole("inference_iter", -1, -1, 10**9)
    output = keys.text("output_folder")
    model_name = keys.text("model_kwargs.model_name") or keys.text("model_name") or "Wan2.1-T2V-1.3B"
    keys.read.add("model_name")
    folders = [_find(keys, f"{folder}/{model_name}") for folder in _WAN_FOLDERS]
    return Config(
        path=keys.path,
        memory=policy.spec(),
        steps=steps,
        shift=shift,
        chunk=chunk,
        latents=latents,
        seed=keys.whole("seed", 0, -(2**63), 2**63 - 1),
        samples=keys.whole("num_samples", 1, 1, 10_000),
        height=_pixels(keys, "latent_h"),
        width=_pixels(keys, "latent_w"),
        checkpoint=checkpoint,
        key=key,
        lora=lora,
        components=next((folder for folder in folders if folder.is_dir()), None),
        model_name=model_name,
        named=_NAMED.get(published),
        prompts_file=extended or prompts,
        titles_file=prompts if extended else None,
        # The original stops after the prompt of this number, which it counts from 0.
        limit=None if inference_iter == -1 else inference_iter + 1,
        output_folder=None if output is None else Path(output),
        kind="lora" if keys.group("adapter") else "ema" if key == "generator_ema" else "regular",
        by_index=keys.flag("save_with_index", True),
        notes=(*keys.notes, *without_meaning(keys)),
    )


def _schedule(keys: Keys) -> tuple[tuple[float, ...], float]:
    """Timesteps before the shift, and the shift.

    With ``warp_denoising_step`` the released code takes ``timesteps[1000 - step]`` of its shifted schedule, which is
    what `longtake.sampling.warp` computes. Without, the steps are timesteps as they are: a shift of 1.
    """
    listed = keys.value("denoising_step_list")
    accepted = "a list of whole numbers that fall from at most 1000 to at least 1, like [1000, 750, 500, 250]"
    if listed is None:
        raise ValueError(f"{keys.path} has no denoising_step_list, and needs {accepted}.")
    if not isinstance(listed, list) or not 1 <= len(listed) <= 64:
        raise keys.wrong("denoising_step_list", accepted, listed)
    try:
        steps = [resolve(step, keys.data) for step in listed]
    except ValueError as error:
        raise ValueError(f"{keys.path}: denoising_step_list has {error}.") from None
    if any(type(step) not in (int, float) or not math.isfinite(step) or step != int(step) for step in steps):
        raise keys.wrong("denoising_step_list", accepted, steps)
    if len(steps) > 1 and steps[-1] == 0:
        steps.pop()
        keys.note("denoising_step_list", "The last step, 0, is left out: it changes nothing.")
    if steps[0] > 1000 or steps[-1] < 1 or not all(a > b for a, b in pairwise(steps)) or len(steps) > 63:
        raise keys.wrong("denoising_step_list", accepted, listed)
    if keys.value("warp_denoising_step") is None:
        raise ValueError(
            f"{keys.path} has no warp_denoising_step, and needs true (the listed steps are shifted) "
            "or false (they are used as they are)."
        )
    shift = keys.number("model_kwargs.timestep_shift", _RELEASED_SHIFT, 100)
    if not keys.flag("warp_denoising_step", True):
        shift = 1.0
    elif keys.value("model_kwargs.timestep_shift") is None:
        keys.note(
            "model_kwargs.timestep_shift",
            f"Not there: {_RELEASED_SHIFT:g}, as in the original; the published models were made with 5.",
        )
    return tuple(float(step) for step in steps), shift


def _policy(keys: Keys, chunk: int) -> MemoryPolicy:
    """What is remembered, as the released code does."""
    given = {key for key, value in keys.group("model_kwargs").items() if value is not None}
    sink = keys.whole("model_kwargs.sink_size", 0, 0, 10_000)
    size = keys.value("model_kwargs.local_attn_size")
    if size is not None and (type(size) is not int or (size != -1 and not 1 <= size <= 100_000)):
        raise keys.wrong("model_kwargs.local_attn_size", "a whole number of latent frames, or -1", size)
    method = keys.text("model_kwargs.compression_method", "eviction")
    if method not in ("ema", "eviction"):
        raise keys.wrong("model_kwargs.compression_method", "ema or eviction", method)
    long = keys.number("model_kwargs.ema_alpha_long", 0.01, 1)
    short = keys.number("model_kwargs.ema_alpha_short", 0.1, 1)
    adaptive = keys.flag("model_kwargs.ema_adaptive", False)
    recent_size = keys.whole("model_kwargs.recent_size", -1, 0, 100_000)
    is_memrope = bool(given & _MEMROPE_KEYS)
    relative = keys.flag("model_kwargs.use_block_rope", is_memrope)
    relative |= keys.flag("model_kwargs.use_infinite_attention", False)
    ids = "relative" if relative else "absolute"
    if method == "ema" and size is None:
        raise ValueError(
            f"{keys.path} has no model_kwargs.local_attn_size, and with compression_method ema needs sink_size + 2 + "
            f"recent frames + num_frame_per_block, as in 3 + 2 + 4 + 3 = 12."
        )
    if size is None or size == -1:
        return _whole_video(keys, chunk, sink, method)
    least = sink + chunk + 2 * (method == "ema")
    if size < least:
        parts = f"sink_size {sink} + " + "two averages + " * (method == "ema") + f"num_frame_per_block {chunk}"
        raise keys.wrong("model_kwargs.local_attn_size", f"at least {least} ({parts})", size)
    if is_memrope and not relative:
        keys.note(
            "model_kwargs.use_block_rope",
            "False: frames keep their absolute ids, as the name says; in the released code it changes nothing.",
        )
    if method == "eviction":
        for key in sorted(given & _MEMROPE_KEYS - {"compression_method", "use_block_rope"}):
            keys.note(f"model_kwargs.{key}", "Without a meaning for compression_method eviction.")
        return Sliding(size, sink, ids)
    recent = size - least
    if recent_size not in (-1, recent):
        keys.note(
            "model_kwargs.recent_size",
            f"{recent}, not {recent_size}: what the others leave of local_attn_size, as in the released code.",
        )
    # The point of a published configuration is what was published: --memory memrope folds the first frames, too.
    return MemRoPE(sink, recent, long, short, adaptive=adaptive, ids=ids, first_eviction="released")


def _whole_video(keys: Keys, chunk: int, sink: int, method: str) -> MemoryPolicy:
    """``local_attn_size: -1``. The released code then keeps all frames, attends to the sinks and the newest, 21 in all
    (``max_attention_size`` 32760 tokens), at absolute ids, and never folds any."""
    if sink + chunk > LATENTS_OF_THE_WHOLE:
        raise keys.wrong(
            "model_kwargs.local_attn_size",
            f"{sink + chunk} or more (sink_size {sink} + num_frame_per_block {chunk})",
            -1,
        )
    if keys.value("model_kwargs.local_attn_size") == -1:
        folds = ", and no averages are made" if method == "ema" else ""
        keys.note(
            "model_kwargs.local_attn_size",
            f"-1: {LATENTS_OF_THE_WHOLE} frames at absolute ids are attended to, as in the released code{folds}.",
        )
    return Sliding(LATENTS_OF_THE_WHOLE, sink, "absolute")


def _must_be(keys: Keys) -> None:
    """Refuses what Longtake cannot do, so that no video is quietly another one."""
    if keys.whole("latent_channels", 16, 1, 10**6) != 16:
        raise keys.wrong("latent_channels", "16", keys.value("latent_channels"))
    if keys.flag("independent_first_frame", False):
        raise keys.wrong("independent_first_frame", "false (all chunks are equally long here)", True)
    noise = keys.value("context_noise")
    if noise is not None and (type(noise) not in (int, float) or noise != 0):
        raise keys.wrong("context_noise", "0 (chunks are committed at t = 0)", noise)


def _lora(keys: Keys) -> LoraFile | None:
    rank = keys.whole("adapter.rank", 16, 1, 100_000)
    alpha = keys.number("adapter.alpha", float(rank), 1e6)
    kind = keys.text("adapter.type", "lora")
    if kind != "lora":
        raise keys.wrong("adapter.type", "lora", kind)
    path = _file(keys, "lora_ckpt")
    if path is not None and not keys.group("adapter"):
        keys.note("lora_ckpt", "Not used: as in the original, LoRA weights are only read where there is an adapter.")
        return None
    if path is None and keys.group("adapter"):
        keys.note("adapter", "Without effect, as there is no lora_ckpt.")
    return None if path is None else LoraFile(path, alpha / rank)


def _pixels(keys: Keys, key: str) -> int | None:
    latents = keys.whole(key, 0, 2, 10_000)
    if latents % 2:
        raise keys.wrong(key, "even (the transformer takes two by two)", latents)
    return latents * _SPATIAL or None


def _find(keys: Keys, text: str) -> Path:
    """A path of the file: from the current folder, as the original scripts have it; else from the file's folder or one
    of the two above it, so that ``configs/longlive/memrope_60s.yaml`` works from anywhere."""
    path, above = Path(text), keys.path.absolute().parent
    return next((made for folder in (Path(), above, *above.parents[:2]) if _exists(made := folder / path)), path)


def _file(keys: Keys, key: str) -> Path | None:
    text = keys.text(key)
    return None if text is None else _find(keys, text)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is too long to be one
        return False
