"""Buckets in one piece: laid out, checked, opened by another process, broadcast between real processes."""

import inspect
import multiprocessing
import os
import re
import signal
import socket
import tempfile
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.multiprocessing.reductions import rebuild_cuda_tensor

from srl.weights import share
from srl.weights.broadcast import BroadcastGroup, open_store
from srl.weights.flat import CHUNK, MASK, STEP, cut, digest, fill, lay_out
from srl.weights.share import DEVICE_ARGUMENT, Lent, open_lent, place, shared_memory

CPU = torch.device("cpu")
SEVERAL = {
    "bf16": torch.randn(3, 5).bfloat16(),
    "turned": torch.randn(4, 2).t(),
    "scalar": torch.tensor(2.5),
    "half": torch.ones(1).half(),
    "none": torch.empty(0, 3),
}


def flattened(named: list) -> tuple[torch.Tensor, list]:
    entries, size = lay_out(named)
    flat = torch.zeros(size, dtype=torch.uint8)
    fill(flat, named, entries)
    return flat, entries


def test_tensors_of_mixed_types_come_back_from_one_piece_of_memory_bit_by_bit():
    flat, entries = flattened(list(SEVERAL.items()))
    # 30, 32, 4, 2 and 0 bytes, each on a multiple of 16
    assert [offset for *_, offset in entries] == [0, 32, 64, 80, 96] and flat.numel() == 96
    for name, tensor in cut(flat, entries):
        assert tensor.dtype == SEVERAL[name].dtype and torch.equal(tensor, SEVERAL[name])


def reference_digest(data: bytes) -> str:
    """The definition, in whole numbers."""
    words = [int.from_bytes(data[i : i + 8], "little") for i in range(0, len(data), 8)]
    total = 0
    for start in range(0, len(words), CHUNK):
        chunk = sum(word * ((index * STEP | 1) & MASK) for index, word in enumerate(words[start : start + CHUNK], 1))
        total = (total * STEP + chunk) & MASK
    return f"{total:016x}"


@given(st.binary(max_size=400))
def test_the_digest_is_what_its_definition_says(data):
    data = data[: len(data) // 8 * 8]
    flat = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
    assert digest(flat) == reference_digest(data)


@settings(max_examples=20)
@given(st.integers(0, 8 * (2 * CHUNK + 24) - 1), st.integers(0, 7))
def test_any_one_bit_changes_the_digest(byte, bit):
    flat = torch.zeros(8 * (2 * CHUNK + 24), dtype=torch.uint8)
    flat[::1001] = 7
    before = digest(flat)
    flat[byte] ^= 1 << bit
    assert digest(flat) != before


def test_words_and_chunks_that_change_places_change_the_digest():
    flat = torch.arange(2 * CHUNK, dtype=torch.int64)
    words = flat.clone()
    words[[3, 9]] = words[[9, 3]]
    turned = flat.roll(CHUNK)
    assert len({digest(t.view(torch.uint8)) for t in (flat, words, turned)}) == 3


def reader(handle: list, answer) -> None:
    flat = open_lent(handle, CPU)
    answer.send((digest(flat), place(CPU)))
    answer.recv()  # the maker has closed it
    answer.send(digest(flat))


def test_lent_memory_is_opened_by_another_process_without_a_copy_and_leaves_no_file():
    lent = Lent(4096, CPU)
    lent.flat.copy_(torch.arange(4096) % 251)
    expected, file = digest(lent.flat), lent.file
    here, there = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=reader, args=(lent.handle(), there))
    process.start()
    assert here.recv() == (expected, place(CPU))
    lent.close()
    assert not file.exists() and file.parent.parent == shared_memory() and not file.parent.exists()
    here.send("closed")
    assert here.recv() == expected
    process.join()


def lend_and_die(answer) -> None:
    lent = Lent(4096, CPU)
    answer.send(lent.file)
    os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_killed_process_lent_is_deleted_when_the_next_part_is_lent_and_what_is_in_use_or_not_ours_is_not():
    living = Lent(16, CPU)
    here, there = multiprocessing.get_context("fork").Pipe()
    process = multiprocessing.get_context("fork").Process(target=lend_and_die, args=(there,))
    process.start()
    left = here.recv()
    process.join()
    other = left.parent.with_name(f"{left.parent.name}-other")
    other.mkdir()
    assert left.exists()
    again = Lent(16, CPU)
    assert not left.parent.exists() and living.file.exists() and again.file.exists() and other.exists()
    living.flat.fill_(3)
    assert open_lent(living.handle(), CPU).tolist() == [3] * 16
    other.rmdir()
    living.close()
    again.close()
    assert not living.file.exists() and not again.file.exists()


def test_memory_that_there_is_no_room_for_is_refused_before_anything_is_written_to_it(monkeypatch):
    with tempfile.TemporaryDirectory(dir=shared_memory()) as folder:
        monkeypatch.setattr(share, "shared_memory", lambda: Path(folder))
        with pytest.raises(OSError, match=f"learner.transfer=ipc: no room for {2**50} bytes of weights: '{folder}'"):
            Lent(2**50, CPU)
        assert not list(Path(folder).iterdir())


def test_the_memory_of_a_gpu_is_opened_under_the_number_that_the_opening_process_gives_that_gpu(monkeypatch):
    names = list(inspect.signature(rebuild_cuda_tensor).parameters)
    assert names[DEVICE_ARGUMENT : DEVICE_ARGUMENT + 2] == ["storage_device", "storage_handle"]
    sent = [4096, *names[DEVICE_ARGUMENT + 1 :]]  # as `handle` gives them: bytes, then what stands in these places
    monkeypatch.setattr(share, "rebuild_cuda_tensor", lambda *arguments: dict(zip(names, arguments, strict=True)))
    found = open_lent(sent, torch.device("cuda", 3))
    assert found["storage_device"] == 3 and found["tensor_size"] == (4096,) and found["dtype"] is torch.uint8
    assert all(found[name] == name for name in names[DEVICE_ARGUMENT + 1 :])


def member(rank: int, size: int, address: tuple, answer, last: bool) -> None:
    torch.set_num_threads(1)
    group = BroadcastGroup(rank, size, CPU, 60, address)
    flat = torch.empty(2**20, dtype=torch.uint8)
    group.wait(group.begin(flat), "a bucket")
    answer.send(digest(flat))
    answer.recv()
    if last:
        os._exit(9)
    try:
        group.wait(group.begin(flat), "bucket 1")
    except RuntimeError as error:
        answer.send(str(error))
    os._exit(0)


def test_what_rank_0_sends_reaches_real_processes_and_one_that_dies_ends_the_wait_of_the_others():
    context = multiprocessing.get_context("spawn")
    store, address = open_store("127.0.0.1", 60)
    pipes = [context.Pipe() for _ in range(2)]
    processes = [
        context.Process(target=member, args=(rank, 3, address, there, rank == 2)) for rank, (_, there) in enumerate(pipes, 1)
    ]
    for process in processes:
        process.start()
    group = BroadcastGroup(0, 3, CPU, 60, store)
    flat = (torch.arange(2**20) % 251).to(torch.uint8)
    work = group.begin(flat)
    assert [here.recv() for here, _ in pipes] == [digest(flat)] * 2
    group.wait(work, "a bucket")
    for here, _ in pipes:
        here.send("die or go on")
    processes[1].join()
    with pytest.raises(RuntimeError, match="rank 0 lost the group that waited for bucket 1"):
        group.wait(group.begin(flat), "bucket 1")
    group.close()
    for process in processes:
        process.join(60)


def test_a_member_that_does_not_come_is_waited_for_no_longer_than_the_deadline():
    store, _ = open_store("127.0.0.1", 0.5)
    started = time.monotonic()
    with pytest.raises(TimeoutError, match=re.escape("learner.transfer_timeout_s=0.5: rank 0 waited for all 2 members")):
        BroadcastGroup(0, 2, CPU, 0.5, store)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        nobody = ("127.0.0.1", probe.getsockname()[1])
    with pytest.raises(TimeoutError, match="rank 1 waited for all 2 members"):
        BroadcastGroup(1, 2, CPU, 0.5, nobody)
    assert time.monotonic() - started < 30


def test_a_part_that_does_not_come_is_waited_for_no_longer_than_the_deadline():
    context = multiprocessing.get_context("spawn")
    store, address = open_store("127.0.0.1", 60)
    here, there = context.Pipe()
    process = context.Process(target=member, args=(1, 2, address, there, False))
    process.start()
    group = BroadcastGroup(0, 2, CPU, 60, store)
    flat = torch.zeros(2**20, dtype=torch.uint8)
    group.wait(group.begin(flat), "a bucket")
    here.recv()
    group.timeout_s = 0.3  # the other one waits for a word from us before it takes part again
    with pytest.raises(TimeoutError, match="learner.transfer_timeout_s=0.3: rank 0 waited for bucket 1"):
        group.wait(group.begin(torch.zeros(2**26, dtype=torch.uint8)), "bucket 1")
    process.kill()
    process.join()
