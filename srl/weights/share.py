"""Memory that another process beside this one can open: CUDA IPC on the same GPU, a mapped file on the same host."""

import os
import platform
import tempfile
from pathlib import Path

import torch
from torch.multiprocessing.reductions import rebuild_cuda_tensor, reduce_tensor

Handle = list  # of numbers, texts and bytes: opening one runs nothing that it brings
DEVICE_ARGUMENT = 6  # of torch's `rebuild_cuda_tensor`: what the opening process calls the GPU; what follows are plain values


def shared_memory() -> Path | None:
    """Where a file is memory; None if this host has no such place."""
    return folder if (folder := Path("/dev/shm")).is_dir() else None


class Lent:
    """uint8 [size] that others open by `handle`, until `close`. Written by its maker only, before the handle is given away."""

    def __init__(self, size: int, device: torch.device):
        self.file: Path | None = None
        if device.type == "cuda":
            self.flat = torch.empty(size, dtype=torch.uint8, device=device)
            return
        handle, name = tempfile.mkstemp(prefix="srl-weights-", dir=shared_memory())
        os.close(handle)
        self.file = Path(name)
        self.flat = torch.from_file(name, shared=True, size=size, dtype=torch.uint8)

    def handle(self) -> Handle:
        """For one opening; ask again for another."""
        if self.file is not None:
            return [str(self.file), self.flat.numel()]
        torch.cuda.current_stream(self.flat.device).synchronize()
        _, arguments = reduce_tensor(self.flat)
        return [self.flat.numel(), *arguments[DEVICE_ARGUMENT + 1 :]]

    def close(self) -> None:
        """Who has opened it keeps what it holds; on a GPU it must have let go."""
        del self.flat
        if self.file is not None:
            self.file.unlink()


def open_lent(handle: Handle, device: torch.device) -> torch.Tensor:
    """The memory itself: copy what is to be kept."""
    if device.type != "cuda":
        name, size = handle
        return torch.from_file(name, shared=True, size=size, dtype=torch.uint8)
    size, *rest = handle
    shape = (torch.Tensor, torch.Size([size]), (1,), 0, torch.storage.TypedStorage, torch.uint8)
    return rebuild_cuda_tensor(*shape, device.index, *rest)


def place(device: torch.device) -> str:
    """What processes have in common that can open each other's memory: the physical GPU, or the host."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_properties(device).uuid)
    return platform.node()
