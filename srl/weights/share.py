"""Memory that another process beside this one can open: CUDA IPC on the same GPU, a mapped file on the same host."""

import fcntl
import os
import platform
import re
import shutil
import tempfile
from pathlib import Path

import torch
from torch.multiprocessing.reductions import rebuild_cuda_tensor, reduce_tensor

BEGUN, WHOLE = "srl-begun-", "srl-shared-"  # a folder of memory before it is locked, and after that
LEFT = re.compile(WHOLE + r"[a-z0-9_]{8}")
Handle = list  # of numbers, texts and bytes: opening one runs nothing that it brings
DEVICE_ARGUMENT = 6  # of torch's `rebuild_cuda_tensor`: what the opening process calls the GPU; what follows are plain values


def shared_memory() -> Path | None:
    """Where a file is memory; None if this host has no such place."""
    return folder if (folder := Path("/dev/shm")).is_dir() else None


class SharedFolder:
    """A folder for files that others map, in memory where there is such a place. `close` deletes it.

    Its maker holds a lock on it, which the kernel takes back when the process ends, however it ends and in whichever container:
    a folder without one is what a killed process left, and goes when the next is made.
    """

    def __init__(self) -> None:
        place = shared_memory() or Path(tempfile.gettempdir())
        delete_left(place)
        begun = Path(tempfile.mkdtemp(prefix=BEGUN, dir=place))
        self.lock = os.open(begun, os.O_RDONLY)
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        self.path = begun.rename(begun.with_name(begun.name.replace(BEGUN, WHOLE)))

    def close(self) -> None:
        """Who has opened a file keeps what it holds."""
        shutil.rmtree(self.path)
        os.close(self.lock)


def delete_left(place: Path) -> None:
    """Delete this user's folders whose makers are dead."""
    for folder in place.glob(f"{WHOLE}*"):
        if not LEFT.fullmatch(folder.name):
            continue
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:  # another process was faster, or it is another user's
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(lock).st_uid == os.geteuid():
                shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            pass  # in use
        finally:
            os.close(lock)


class Lent:
    """uint8 [size] that others open by `handle`, until `close`. Written by its maker only, before the handle is given away.

    Raises OSError where there is no room for it.
    """

    def __init__(self, size: int, device: torch.device):
        self.folder: SharedFolder | None = None
        if device.type == "cuda":
            self.flat = torch.empty(size, dtype=torch.uint8, device=device)
            return
        self.folder = SharedFolder()
        try:
            with self.file.open("wb") as made:
                os.posix_fallocate(made.fileno(), 0, size)  # writing to a map that there is no room for would kill the process
        except OSError as error:
            self.folder.close()
            where = str(self.folder.path.parent)
            raise OSError(error.errno, f"learner.transfer=ipc: no room for {size} bytes of weights", where) from None
        self.flat = torch.from_file(str(self.file), shared=True, size=size, dtype=torch.uint8)

    @property
    def file(self) -> Path | None:
        return self.folder.path / "part" if self.folder else None

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
        if self.folder is not None:
            self.folder.close()


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
