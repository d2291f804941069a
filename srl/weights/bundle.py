"""The weights of one version on their way from learner to rollout: buckets in Ray's object store.

Each node pulls every bucket once, however many tensors it holds and however many rollout actors share the node. An actor checks
the buckets where they lie in shared memory; its engine reads them there, each once it is checked.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field

import ray
import torch

from srl.weights.bucket import Bucket, Named, check_bucket, checksum, fill_buckets, pack

Lazy = Callable[[], Named]  # a bucket's tensors, under the names by which engines know them


@dataclass(frozen=True)
class Bundle:
    """`buckets` are (reference to a `Bucket`, checksum); `size` is their total in bytes.

    `seconds` says what making it took: `gather` (waiting for other ranks' shards) and `pack` (checksum, copying into the store),
    which overlap.
    """

    version: int
    buckets: list[tuple[ray.ObjectRef, str]]
    size: int
    seconds: dict[str, float] = field(default_factory=dict)


def send(version: int, buckets: Iterable[tuple[Lazy, ExitStack]], sender: bool) -> Bundle | None:
    """Put buckets into the object store; a bucket's tensors may change once its stack is closed.

    While one bucket is copied the next is gathered, and no more: two buckets are whole at a time. Ranks that are not the
    `sender` only take part in the gathering and get None.
    """
    started, waited = time.monotonic(), 0.0
    packed: list[tuple[ray.ObjectRef, str, int, float]] = []
    earlier: tuple[Future, ExitStack] | None = None

    def settle() -> None:
        nonlocal waited
        if earlier is not None:
            before = time.monotonic()
            with earlier[1]:
                packed.append(earlier[0].result())
            waited += time.monotonic() - before

    with ThreadPoolExecutor(1, "send-weights") as thread:
        for lazy, opened in buckets:
            settle()
            earlier = (thread.submit(lambda lazy=lazy: store(lazy())) if sender else done(), opened)
        settle()
    if not sender:
        return None
    seconds = {"gather": time.monotonic() - started - waited, "pack": sum(part[3] for part in packed)}
    return Bundle(version, [part[:2] for part in packed], sum(part[2] for part in packed), seconds)


def done() -> Future:
    future: Future = Future()
    future.set_result((None, "", 0, 0.0))
    return future


def store(named: Named) -> tuple[ray.ObjectRef, str, int, float]:
    """(reference, checksum, bytes, seconds) of one bucket."""
    started = time.monotonic()
    bucket = pack(named)
    with ThreadPoolExecutor(1, "checksum") as thread:
        digest = thread.submit(checksum, bucket)
        # The arrays go into the store as they lie in memory: this is the only copy.
        reference = ray.put(bucket)
    return reference, digest.result(), sum(tensor.nbytes for _, tensor in named), time.monotonic() - started


def put_bundle(version: int, tensors: Iterable[tuple[str, torch.Tensor]], bucket_mib: int) -> Bundle:
    """One copy of whole tensors in the object store. They may change afterwards."""
    parts = [store(bucket) for bucket in fill_buckets(tensors, bucket_mib * 2**20)]
    return Bundle(version, [part[:2] for part in parts], sum(part[2] for part in parts))


def receive(bundle: Bundle, timeout_s: float) -> Iterator[Bucket]:
    """Fetch every bucket, and hand each out once it is checked; a thread checks ahead of whoever takes them.

    They lie in this node's object store until they are dropped. Raises ray's GetTimeoutError when not all arrive in `timeout_s`,
    and where a bucket that arrived changed is taken, ValueError.
    """
    received = ray.get([reference for reference, _ in bundle.buckets], timeout=timeout_s)
    thread = ThreadPoolExecutor(1, "check-weights")
    checked = [
        thread.submit(check_bucket, bucket, expected, bundle.version, index)
        for index, (bucket, (_, expected)) in enumerate(zip(received, bundle.buckets, strict=True))
    ]
    thread.shutdown(wait=False)
    return (future.result() for future in checked)
