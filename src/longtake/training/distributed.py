"""Processes: one, or several under torchrun; weights split between them (FSDP2) or in every one.

With FSDP2 (``torch.distributed.fsdp.fully_shard``) every transformer block is a unit of its own, and the rest of the
network one more: parameters, gradients, optimizer states and averages are ``DTensor`` of which a process holds its
part. It works over nccl on GPUs and over gloo on CPUs. Without it gradients are averaged by one all-reduce per network.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class World:
    """The processes that train together.

    Attributes:
        rank, size: this process, and how many there are.
        device: where this process trains.
        fsdp: whether networks are split; always false for one process.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    fsdp: bool = False

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.rank == 0

    @classmethod
    def start(cls, device: str = "auto", fsdp: bool = True) -> World:
        """Joins the processes that torchrun started, or is alone.

        Args:
            device: ``cpu``, ``cuda``, or ``auto`` for a GPU if there is one.
            fsdp: split networks if there are several processes.

        Raises:
            ValueError: if a GPU is asked for and there is none for this process.
        """
        size, rank, local = (int(os.environ.get(k, d)) for k, d in (("WORLD_SIZE", 1), ("RANK", 0), ("LOCAL_RANK", 0)))
        gpus = torch.cuda.device_count() if device != "cpu" else 0
        if device == "cuda" and local >= gpus:
            there = f"only {gpus} here, and {local + 1} or more processes" if gpus else "none here"
            raise ValueError(
                f"run.device is cuda, and there are {there}: use fewer processes, or --set run.device=cpu."
            )
        chosen = torch.device("cuda", local) if gpus > local else torch.device("cpu")
        if chosen.type == "cuda":
            torch.cuda.set_device(chosen)
        if size > 1 and not dist.is_initialized():
            # gloo beside nccl: a few numbers of the host are exchanged too
            dist.init_process_group("cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo")
        return cls(rank, size, chosen, fsdp and size > 1)

    def end(self) -> None:
        """Leaves the other processes."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def barrier(self) -> None:
        """Waits until all processes are here."""
        if self.size > 1:
            self.sum_host([0.0])

    def sum_host(self, values: Sequence[float]) -> list[float]:
        """The sums over all processes of numbers of the host."""
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(list(values), dtype=torch.float64)
        dist.all_reduce(tensor)
        made: list[float] = tensor.tolist()
        return made

    def gather_objects(self, value: Any) -> list[Any]:
        """The values of all processes, in all processes."""
        if self.size == 1:
            return [value]
        made: list[Any] = [None] * self.size
        dist.all_gather_object(made, value)
        return made

    def place(self, module: nn.Module, mixed: torch.dtype | None = None) -> nn.Module:
        """Moves a network to the device, split between the processes if they are to be split.

        Args:
            module: in every process with the same weights. One with a list ``blocks`` (a Wan transformer) is split
                block by block.
            mixed: on a GPU, the dtype in which split weights are gathered; gradients are summed in float32.
        """
        if not self.fsdp:
            return module.to(self.device)
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        # Inputs are not cast: a timestep of 937.5 in bfloat16 is another one. Autocast takes care of the rest.
        dtype = mixed if self.device.type == "cuda" else None
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
        mesh = init_device_mesh(self.device.type, (self.size,))
        # Wan's last operation is a view; nothing here changes it in place, which is what the warning is about.
        warnings.filterwarnings("ignore", message=".*returned a view tensor.*")
        blocks = getattr(module, "blocks", ())
        for unit in (*blocks, module):
            fully_shard(unit, mesh=mesh, mp_policy=policy)
        return module

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Without FSDP: the mean over the processes; one that has no gradient here counts as zero.

        FSDP does this itself, in the backward pass.
        """
        if self.size == 1 or self.fsdp:
            return
        chosen = [p for p in parameters if p.requires_grad]
        for p in chosen:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        grads = [p.grad for p in chosen if p.grad is not None]
        flat = torch.cat([g.flatten() for g in grads])
        dist.all_reduce(flat)
        flat /= self.size
        parts = [part.view_as(g) for part, g in zip(flat.split([g.numel() for g in grads]), grads, strict=True)]
        torch._foreach_copy_(grads, parts)


def whole(tensor: Tensor) -> Tensor:
    """A tensor as a whole, also if it is split; every process must ask."""
    full = getattr(tensor, "full_tensor", None)
    return tensor if full is None else full()


def gathered(tensor: Tensor, keep: bool) -> Tensor | None:
    """A tensor as a whole on the host; every process must ask, and only those that keep it get it."""
    full = whole(tensor.detach())
    return full.to("cpu", copy=True) if keep else None


def put(target: Tensor, full: Tensor) -> None:
    """Copies a whole tensor of the host into one that may be split. No process needs another for it.

    Raises:
        RuntimeError: if the shapes differ.
    """
    if target.shape != full.shape:
        raise RuntimeError(f"a tensor of {list(full.shape)} does not go into one of {list(target.shape)}")
    placements = getattr(target, "placements", None)
    if placements is None:
        target.copy_(full)
        return
    target.copy_(part_of(full.to(target.device, target.dtype), target))


def part_of(full: Tensor, like: Tensor) -> Tensor:
    """A whole tensor that every process has, split like another."""
    from torch.distributed.tensor import DTensor, Replicate

    assert isinstance(like, DTensor)
    same = DTensor.from_local(full, like.device_mesh, [Replicate()] * like.device_mesh.ndim, run_check=False)
    return same.redistribute(placements=like.placements)
