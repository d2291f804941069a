"""From one process to all others of a group that is nobody's default one: NCCL between GPUs, gloo between CPU processes."""

import time
from datetime import timedelta

import torch
import torch.distributed as dist

POLL_S = 0.0005


def open_store(host: str, timeout_s: float) -> tuple[dist.TCPStore, tuple[str, int]]:
    """Where the members of one group meet; the sender keeps it, the others are given its address."""
    store = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=timeout_s))
    return store, (host, store.port)


class BroadcastGroup:
    """Rank 0 sends. Every wait ends after `timeout_s`, except that NCCL, while the members meet, waits for one that has died: who
    is stuck there is to be killed. After an error the group is of no more use.

    Other groups of a process may be at work beside it: what this one waits for never waits for them.
    """

    def __init__(self, rank: int, size: int, device: torch.device, timeout_s: float, meet: dist.Store | tuple[str, int]):
        """`meet` is the store for who has opened it, its address for the others.

        Returns when all are there and some bytes have come through. Raises TimeoutError when not all come.
        """
        self.rank, self.size, self.device, self.timeout_s = rank, size, device, timeout_s
        limit = timedelta(seconds=timeout_s)
        try:
            own = isinstance(meet, dist.Store)
            self.store = meet if own else dist.TCPStore(*meet, is_master=False, wait_for_workers=False, timeout=limit)
            meeting = dist.PrefixStore("weights", self.store)
            if device.type == "cuda":
                torch.cuda.set_device(device)
                options = dist.ProcessGroupNCCL.Options()
                # Its own watchdog ends the process; our deadline has passed long before.
                options._timeout = 4 * limit
                self.backend = dist.ProcessGroupNCCL(meeting, rank, size, options)
            else:
                self.backend = dist.ProcessGroupGloo(meeting, rank, size, limit)
        except (RuntimeError, dist.DistError) as error:
            who = f"rank {rank} waited for all {size} members of a weight transfer"
            raise TimeoutError(f"learner.transfer_timeout_s={timeout_s:g}: {who}: {error}") from error
        self.wait(self.begin(torch.zeros(16, dtype=torch.uint8, device=device)), "the first bytes of a weight transfer")

    def begin(self, flat: torch.Tensor) -> dist.Work:
        """Send, or receive into, uint8 [size]; keep it until `wait` has returned."""
        options = dist.BroadcastOptions()
        options.rootRank, options.rootTensor = 0, 0
        return self.backend.broadcast([flat], options)

    def wait(self, work: dist.Work, what: str) -> None:
        """Raises TimeoutError naming `what`, RuntimeError when another member is gone."""
        deadline = time.monotonic() + self.timeout_s
        while not work.is_completed():
            if time.monotonic() > deadline:
                self.close()
                raise TimeoutError(f"learner.transfer_timeout_s={self.timeout_s:g}: rank {self.rank} waited for {what}")
            time.sleep(POLL_S)
        try:
            work.wait()
        except RuntimeError as error:
            raise RuntimeError(f"rank {self.rank} lost the group that waited for {what}: {error}") from error

    def close(self) -> None:
        """Also with something under way."""
        self.backend.abort()
