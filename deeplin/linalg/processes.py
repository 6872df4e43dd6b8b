"""The processes of torch.distributed: begun with the backend that fits a device."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist

__all__ = ["begin_processes", "check_backend"]

# gloo sends little of what is on a GPU, NCCL nothing else: what processes tell each other of their
# data is in the processor's memory.
_BACKENDS = {"cpu": "cpu:gloo", "cuda": "cpu:gloo,cuda:nccl"}


def begin_processes(device: str = "cpu", **options) -> torch.device:
    """Begin torch.distributed for tensors on the processor or on GPUs; the device of this process.

    Of the processes of a machine each has the GPU whose number is its own among them, LOCAL_RANK
    as torchrun says, which becomes torch's current one. The backend is gloo, on GPUs NCCL beside
    it. `options` are those of `torch.distributed.init_process_group`, such as `timeout`; without
    them it is torchrun's environment that tells of the others.

    >>> import torch.distributed as dist
    >>> begin_processes(store=dist.HashStore(), rank=0, world_size=1)
    device(type='cpu')
    >>> dist.destroy_process_group()

    Raises: ValueError for another device, and where a machine has more processes than GPUs.
    """
    if device not in _BACKENDS:
        raise ValueError(
            "processes compute on device='cpu', or on 'cuda', each on the GPU of its own number; "
            f"got {device!r}."
        )
    own = torch.device(device)
    if own.type == "cuda":
        own = torch.device("cuda", _own_gpu(options))
        torch.cuda.set_device(own)
    dist.init_process_group(_BACKENDS[device], **options)
    return own


def _own_gpu(options: dict) -> int:
    """The number of this process's GPU, with its number among the processes of this machine."""
    count = torch.cuda.device_count()
    rank = int(os.environ.get("LOCAL_RANK") or options.get("rank", 0))
    processes = int(os.environ.get("LOCAL_WORLD_SIZE") or options.get("world_size", 1))
    if processes > count:
        raise ValueError(
            "NCCL needs a GPU for each process of a machine; this one has "
            f"{processes} processes and {count} GPUs: begin as many as there are GPUs, as "
            "torchrun --nproc-per-node=gpu does, or take device='cpu'."
        )
    return rank


def check_backend(owner: str, device: torch.device, group: dist.ProcessGroup | None) -> None:
    """Raises: ValueError where the processes of a group can send nothing that is on a device."""
    if group is None:
        return
    backends = dist.get_backend_config(group)
    if device.type not in {pair.partition(":")[0] for pair in backends.split(",")}:
        raise ValueError(
            f"{owner}: the processes of the group send nothing that is on {device}, with the "
            f"backends {backends}: begin them with deeplin.problems.begin_processes"
            f"({device.type!r})."
        )
