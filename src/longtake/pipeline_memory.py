"""Learned memories of a pipeline: loaded and saved like adapters, beside the model's weights."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longtake.checkpoints.memory_file import FILE, FOLDER
from longtake.checkpoints.memory_weights import load_memory, model_card, save_memory
from longtake.memory import MemoryPolicy
from longtake.memory.echo_encoder import MemoryEncoder
from longtake.placement import groups_of

if TYPE_CHECKING:
    import torch


class MemoryLoaderMixin:
    """What a pipeline does with the weights of a learned memory (``echo``).

    Attributes:
        memory_encoder: they; None if there are none. Replace it by one that is being trained to try it in a take.
    """

    memory_encoder: MemoryEncoder | None = None
    if TYPE_CHECKING:
        transformer: Any
        config: Any
        vae_scale_factor_spatial: int
        device_of: Callable[[str], torch.device]

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str] | None, **settings: Any) -> Any:
        """As diffusers does; with the learned memory, if the folder has one beside the other parts."""
        pipe = super().from_pretrained(path, **settings)  # type: ignore[misc]
        folder = Path(path or "") / FOLDER
        if path is not None and (folder / FILE).is_file():
            pipe.load_memory(folder)
        return pipe

    def save_pretrained(self, folder: str | os.PathLike[str], **settings: Any) -> None:
        """As diffusers does; with the learned memory, if there is one."""
        super().save_pretrained(folder, **settings)  # type: ignore[misc]
        if self.memory_encoder is not None:
            self.save_memory(Path(folder) / FOLDER)

    def load_memory(self, source: str | os.PathLike[str], dtype: torch.dtype | None = None) -> MemoryEncoder:
        """Loads the weights of a learned memory, in place of others.

        Args:
            source: a folder or file of :meth:`save_memory`; or a published checkpoint that has a
                ``query_memory_encoder``: among the generator's weights, or beside a LoRA.
            dtype: the transformer's by default; the state is float32 in any case.

        Raises:
            ValueError: if they are not the weights of a memory, or of one for another model; in one sentence.
        """
        config = self.transformer.config
        step = self.vae_scale_factor_spatial * config.patch_size[1]
        height, width = self.config.default_size
        encoder = load_memory(
            Path(source),
            config.num_attention_heads,
            (height // step, width // step),
            self.transformer.dtype if dtype is None else dtype,
        )
        encoder.check_model(config.num_attention_heads, config.attention_head_dim, config.num_layers)
        self.memory_encoder = encoder
        return encoder

    def save_memory(self, folder: str | os.PathLike[str], name: str = "this model", notes: str = "") -> Path:
        """Writes the weights of the learned memory as an adapter, with a model card.

        Args:
            folder: to be made, or with older weights in it.
            name: of the model that the memory was trained with; ``notes``: how, and how good it is; for the card.

        Returns:
            The file of weights, which :meth:`load_memory` takes (or the folder).

        Raises:
            ValueError: if there is no learned memory.
            OSError: if the disk does not take it.
        """
        if self.memory_encoder is None:
            raise ValueError("There is no learned memory to save: load_memory, or set memory_encoder.")
        return save_memory(self.memory_encoder, Path(folder), model_card(self.memory_encoder, name, notes))

    def encoder_for(self, policy: MemoryPolicy) -> MemoryEncoder | None:
        """The weights for a take with this policy, on the device of the last layer; None if it needs none.

        Raises:
            ValueError: if it needs weights, and there are none, or they have not learned anything.
        """
        if not policy.learned:
            return None
        encoder = self.memory_encoder
        if encoder is None:
            raise ValueError(
                f"The memory {policy.name} is learned and needs trained weights for this model: load some "
                "(load_memory, --memory-weights), or take another memory."
            )
        if not encoder.trained:
            raise ValueError(
                f"The weights of the memory {policy.name} are untrained and can make no video: train them, or load "
                "some that are (load_memory, --memory-weights)."
            )
        groups = groups_of(self.transformer)
        return encoder.to(groups[-1][1] if groups else self.device_of("transformer"))

    def memory_fingerprint(self) -> str | None:
        """Identifies the weights of the learned memory; None if there are none."""
        if self.memory_encoder is None:
            return None
        digest = hashlib.sha256(json.dumps(self.memory_encoder.config, sort_keys=True).encode())
        for name, x in sorted(self.memory_encoder.state_dict().items()):
            sample = x.flatten()[:: max(1, x.numel() // 8)][:8].float().cpu()
            digest.update(name.encode() + sample.numpy().tobytes())
        return digest.hexdigest()[:32]
