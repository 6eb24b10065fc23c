"""What a take writes into a snapshot, and the take that a snapshot describes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from longtake.memory import parse_memory
from longtake.prompts import Script

if TYPE_CHECKING:
    import torch

    from longtake.pipeline import LongTakePipeline
    from longtake.take import Take


def state_of(take: Take) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """See :meth:`longtake.take.Take.state`."""
    memory_tensors, memory_data = take.memory.state_dict()
    decoder_tensors, decoder_data = take.decoder.state_dict()
    tensors = {f"memory.{k}": v for k, v in memory_tensors.items()}
    tensors |= {f"decoder.{k}": v for k, v in decoder_tensors.items()}
    tensors |= {f"last.{i}": v for i, v in enumerate(take.last)}
    tensors |= {} if take.given is None else {"given": take.given}
    data = {
        "model": take.pipe.fingerprint(),
        "dtype": str(take.memory.dtype),
        "policy": take.policy.spec(),
        **({"memory_weights": take.pipe.memory_fingerprint()} if take.policy.learned else {}),
        "seed": take.seed,
        "height": take.height,
        "width": take.width,
        "on_change": take.on_change,
        "script": take.script.to_dict(),
        "prompt": take.prompt,
        "index": take.index,
        "skip": take.skip,
        "memory": memory_data,
        "decoder": decoder_data,
    }
    return tensors, data


def take_of(
    kind: type[Take], pipe: LongTakePipeline, tensors: Mapping[str, torch.Tensor], data: Mapping[str, Any]
) -> Take:
    """See :meth:`longtake.take.Take.from_state`."""

    def part(prefix: str) -> dict[str, torch.Tensor]:
        return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}

    dtype = str(pipe.transformer.dtype)
    try:
        if data["dtype"] != dtype:
            raise ValueError(f"The snapshot was made in {data['dtype']}; load the model so, not in {dtype}.")
        if data["model"] != pipe.fingerprint():
            raise ValueError("The snapshot was made with another model or other weights than the one loaded.")
        policy = parse_memory(data["policy"], pipe.config.chunk_frames)
        if policy.learned and pipe.memory_encoder is not None and data["memory_weights"] != pipe.memory_fingerprint():
            raise ValueError("The snapshot was made with other memory weights than those that are loaded.")
        data = {"skip": 0, **data}  # takes were not given a past once
        for name in ("seed", "height", "width", "index", "skip"):
            if type(data[name]) is not int:
                raise ValueError(f"The snapshot's {name} must be a whole number, not {data[name]!r}.")
        take = kind(
            pipe,
            Script.from_dict(data["script"]),
            policy,
            data["seed"],
            data["height"],
            data["width"],
            data["on_change"],
        )
        take.memory.load_state_dict(part("memory."), data["memory"])
        take.decoder.load_state_dict(part("decoder."), data["decoder"])
        take.index, take.skip, take.prompt = data["index"], data["skip"], data["prompt"]
        if take.prompt is not None:
            take.embed(take.prompt)
        device = take.memory.device
        take.last.extend(x.to(device) for _, x in sorted(part("last.").items()))
        take.given = tensors["given"].to(device) if "given" in tensors else None
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"The snapshot lacks something that a take needs ({error}).") from None
    if not _fits_together(take):
        raise ValueError("The snapshot's parts do not belong to the same chunk of the same take.")
    return take


def _fits_together(take: Take) -> bool:
    index, skip, first = take.index, take.skip, take.decoder.frames_for(take.size)
    in_step = take.memory.frame == index * take.memory.chunk and take.decoder.latents == index * take.size
    assert take.last.maxlen is not None
    wanted = min(index, take.last.maxlen)
    # Once, only takes that recached kept their latents.
    kept = len(take.last) == wanted or (len(take.last) < wanted and take.on_change != "recache")
    chunks, rest = divmod(skip - first, take.size * take.decoder.temporal)
    after_video = rest == 0 and 0 <= chunks < index
    after_picture = skip == first - 1
    waiting = take.given is not None
    # With chunks of one frame nothing is skipped, and a picture that waits is all that tells.
    began = (after_picture and index == 0) if waiting else not (after_picture and skip > 0 and index == 0)
    latents = [*take.last] if take.given is None else [take.given, *take.last]
    return (
        index >= 0
        and in_step
        and not take.memory.open
        and kept
        and (skip == 0 or after_video or after_picture)
        and began
        and all(x.shape == take.shape for x in latents)
    )
