"""Weights handed over part by part: both sides of it, without engines; then Ray actors in the place of learners and workers."""

import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import asdict

import pytest
import ray
import torch
from ray import cloudpickle

from srl.config import load_config
from srl.learner.group import LearnerGroup, LearnerLost
from srl.weights.broadcast import BroadcastGroup, open_store
from srl.weights.bucket import fill_buckets
from srl.weights.bundle import put_bundle
from srl.weights.feed import Feed
from srl.weights.share import Lent
from srl.weights.stream import Link, Outgoing, Stream, hand_over, receive_part

CPU = torch.device("cpu")
WAIT_S = 120.0


def weights(change: float = 0.0) -> dict[str, torch.Tensor]:
    """Six tensors of 4 KiB."""
    return {f"layer.{n}": torch.arange(1024.0) + n + change for n in range(6)}


class Gathering:
    """Buckets of two tensors, as a learner's engine gives them; says which are whole at the moment."""

    def __init__(self, change: float = 0.0):
        self.change, self.events = change, []

    def buckets(self) -> Iterator:
        for index, bucket in enumerate(fill_buckets(weights(self.change).items(), 2 * 4096)):
            opened = ExitStack()
            self.events.append(f"gather {index}")
            opened.callback(self.events.append, f"shard {index}")
            yield lambda bucket=bucket: bucket, opened


def test_a_lent_part_stays_until_the_one_after_the_next_is_asked_for():
    gathering = Gathering()
    outgoing = Outgoing(3, gathering.buckets(), CPU, sends=True, broadcast=False)
    parts = [outgoing.stage(None), outgoing.stage(None)]
    assert gathering.events == ["gather 0", "shard 0", "gather 1", "shard 1"]  # the copies are what is held
    files = [lent.file for _, lent, _ in outgoing.going]
    assert [file.exists() for file in files] == [True, True]
    found = {}
    for part in parts:
        found |= dict(receive_part({part.place: asdict(part)}, CPU, None)[0])
    parts.append(outgoing.stage(None))
    assert [file.exists() for file in files] == [False, True]
    found |= dict(receive_part({parts[2].place: asdict(parts[2])}, CPU, None)[0])
    assert outgoing.stage(None) is None
    outgoing.finish(None)
    assert not files[1].exists() and not outgoing.going
    assert list(found) == list(weights()) and all(torch.equal(found[name], tensor) for name, tensor in weights().items())
    assert [(part.version, part.index, part.size) for part in parts] == [(3, 0, 8192), (3, 1, 8192), (3, 2, 8192)]


def test_a_rank_that_does_not_send_takes_part_in_the_gathering_only():
    gathering = Gathering()
    outgoing = Outgoing(1, gathering.buckets(), CPU, sends=False, broadcast=True)
    assert [outgoing.stage(None) for _ in range(4)] == [None] * 4
    assert gathering.events == [f"{what} {index}" for index in range(3) for what in ("gather", "shard")]


def test_a_part_that_arrives_changed_or_at_another_place_is_refused():
    outgoing = Outgoing(4, Gathering().buckets(), CPU, sends=True, broadcast=False)
    part = outgoing.stage(None)
    outgoing.going[0][1].flat[8191] ^= 1  # one bit
    with pytest.raises(ValueError, match=f"weights version 4, part 0: checksum [0-9a-f]{{16}} instead of {part.digest}"):
        receive_part({part.place: asdict(part)}, CPU, None)
    with pytest.raises(ValueError, match=r"learner.transfer=ipc: this process is on .*, learners are on GPU-1, GPU-2"):
        receive_part({"GPU-2": asdict(part), "GPU-1": asdict(part)}, CPU, None)
    with pytest.raises(ValueError, match="part 0 is broadcast to a group that was not joined"):
        receive_part({"": {**asdict(part), "place": ""}}, CPU, None)
    outgoing.drop()
    assert not outgoing.going


def loading(feed: Feed, taken: list) -> Future:
    """A thread that loads what comes, as an engine does."""
    done: Future = Future()

    def load() -> None:
        try:
            for item in feed:
                if item == "bad":
                    raise ValueError("a bad part")
                taken.append(item)
        except Exception as error:
            done.set_exception(error)
        else:
            done.set_result(None)

    threading.Thread(target=load, daemon=True).start()
    return done


def test_each_put_returns_when_its_part_is_loaded_and_an_error_of_the_load_is_its_own():
    feed, taken = Feed(1, WAIT_S, WAIT_S), []
    done = loading(feed, taken)
    assert feed.opened.wait(WAIT_S)
    for part in ("a", "b"):
        feed.put(part, done)
        assert taken[-1] == part
    with pytest.raises(ValueError, match="a bad part"):
        feed.put("bad", done)
    feed, taken = Feed(2, WAIT_S, WAIT_S), []
    done = loading(feed, taken)
    feed.put("c", done)
    feed.close()
    done.result(WAIT_S)
    assert taken == ["c"]


def test_both_sides_of_a_feed_give_up_after_the_deadline_and_name_the_part():
    feed, taken = Feed(7, 0.2, WAIT_S), []
    done = loading(feed, taken)
    feed.put("a", done)
    with pytest.raises(TimeoutError, match=re.escape("learner.transfer_timeout_s=0.2: waited for part 1 of weights 7")):
        done.result(WAIT_S)
    with pytest.raises(TimeoutError, match=re.escape("learner.transfer_timeout_s=0.2: part 0 of weights 8 did not load")):
        Feed(8, 0.2, WAIT_S).put("a", Future())
    with pytest.raises(TimeoutError, match=re.escape("rollout.timeout_s=0.1: waited for part 0 of weights 9")):
        loading(Feed(9, WAIT_S, 0.1), []).result(WAIT_S)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # actors cannot import a test
    ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False, object_store_memory=80 * 2**20)
    yield
    ray.shutdown()


@ray.remote(num_cpus=0)
class Sender:
    """A learner rank."""

    def __init__(self, rank: int, broadcast: bool):
        self.rank, self.broadcast, self.group = rank, broadcast, None

    def open_link(self) -> tuple[str, int]:
        self.store, address = open_store("127.0.0.1", WAIT_S)
        return address

    def join_link(self, size: int) -> None:
        self.group = BroadcastGroup(0, size, CPU, WAIT_S, self.store)

    def begin(self, version: int) -> None:
        buckets = Gathering(float(version)).buckets()
        self.outgoing = Outgoing(version, buckets, CPU, self.rank == 0 or not self.broadcast, self.broadcast)

    def stage(self):
        return self.outgoing.stage(self.group)

    def finish(self) -> None:
        self.outgoing.finish(self.group)

    def break_off(self) -> None:
        self.outgoing.drop()
        self.group = None

    def whole(self, version: int):
        return put_bundle(version, weights(float(version)).items(), 1)


class Senders:
    """What a learner group does, in ten lines."""

    def __init__(self, broadcast: bool):
        self.ranks = [Sender.remote(rank, broadcast) for rank in range(2)]
        self.linked, self.links, self.broadcast = frozenset(), 0, broadcast

    def all(self, name: str, *arguments) -> list:
        return ray.get([getattr(rank, name).remote(*arguments) for rank in self.ranks], timeout=WAIT_S)

    def stream(self, version: int) -> Stream:
        self.all("begin", version)
        return Stream(version, self, self.broadcast)

    def open_link(self):
        self.links += 1
        return ray.get(self.ranks[0].open_link.remote())

    def join_link(self, size: int):
        return self.ranks[0].join_link.remote(size)

    def stage(self):
        return [rank.stage.remote() for rank in self.ranks]

    def staged(self, references):
        return ray.get(references, timeout=WAIT_S)

    def finish(self) -> None:
        self.all("finish")

    def break_off(self) -> None:
        self.linked = frozenset()
        self.all("break_off")

    def whole(self, version: int):
        return ray.get(self.ranks[0].whole.remote(version))


@ray.remote(num_cpus=0, max_concurrency=2)
class Receiver:
    """A rollout worker; dies in the given part, or receives it with one bit changed."""

    def __init__(self, dies_in: int = -1, changes: int = -1):
        self.found, self.group, self.dies_in, self.changes = {}, None, dies_in, changes

    def load_part(self, item) -> None:
        if isinstance(item, Link):
            self.group = BroadcastGroup(item.first_rank, item.size, CPU, item.timeout_s, item.address)
            return
        (index,) = {part["index"] for part in item.values()}
        if index == self.dies_in:
            os._exit(9)
        if index == self.changes:
            item = {name: {**part, "digest": "0" * 16} for name, part in item.items()}
        self.found |= {name: tensor.clone() for name, tensor in receive_part(item, CPU, self.group)[0]}

    def sums(self) -> list[float]:
        return [float(tensor.sum()) for tensor in self.found.values()]


def expected(version: int) -> list[float]:
    return [float(tensor.sum()) for tensor in weights(float(version)).values()]


@pytest.mark.parametrize("broadcast", [True, False])
def test_every_part_reaches_every_receiver_and_what_one_of_them_costs_by_dying(cluster, broadcast):
    source = Senders(broadcast)
    receivers = {"a": Receiver.remote(), "b": Receiver.remote()}
    for version in (1, 2):
        stream = source.stream(version)
        assert hand_over(stream, receivers, 1, WAIT_S) == {}
        assert ray.get([worker.sums.remote() for worker in receivers.values()]) == [expected(version)] * 2
        assert stream.size == 6 * 4096 and set(stream.seconds) == {"gather", "pack"}
    assert source.links == int(broadcast) and source.linked == (frozenset("ab") if broadcast else frozenset())

    receivers = {"a": receivers["a"], "b again": Receiver.remote(dies_in=1)}
    lost = hand_over(source.stream(3), receivers, 1, WAIT_S)
    # A broadcast is for all or for nobody, lent memory for who opens it.
    assert set(lost) == ({"a", "b again"} if broadcast else {"b again"}) and not source.linked
    if not broadcast:
        assert ray.get(receivers["a"].sums.remote()) == expected(3)

    receivers = {"a": Receiver.remote(), "c": Receiver.remote()}
    stream = source.stream(4)
    assert hand_over(stream, receivers, 1, WAIT_S) == {}
    assert ray.get([worker.sums.remote() for worker in receivers.values()]) == [expected(4)] * 2
    assert source.links == 3 * int(broadcast)
    late = stream.bundle()
    assert (late.version, late.size) == (4, stream.size) and stream.bundle() is late


def test_a_part_that_arrives_changed_ends_the_hand_over_with_its_version(cluster):
    source = Senders(False)
    with pytest.raises(ValueError, match="weights version 5, part 2: checksum [0-9a-f]{16} instead of 0{16}"):
        hand_over(source.stream(5), {"a": Receiver.remote(changes=2)}, 1, WAIT_S)
    source.break_off()


def test_lent_memory_that_is_dropped_leaves_no_file():
    outgoing = Outgoing(6, Gathering().buckets(), CPU, sends=True, broadcast=False)
    outgoing.stage(None)
    (_, lent, _) = outgoing.going[0]
    assert isinstance(lent, Lent) and lent.file.exists()
    outgoing.drop()
    assert not lent.file.exists()


@ray.remote(num_cpus=0)
class Stuck:
    """A learner that waits, in a call nobody can end, for members of a broadcast that will not come."""

    def open_link(self) -> tuple[str, int]:
        return "127.0.0.1", 1

    def join_link(self, size: int) -> None:
        time.sleep(3600)

    def break_off(self) -> None: ...


@ray.remote(num_cpus=0)
class NeverJoins:
    def load_part(self, item) -> None:
        os._exit(9)


def test_a_learner_that_is_stuck_while_a_broadcast_is_set_up_counts_as_lost(cluster):
    learners = LearnerGroup.__new__(LearnerGroup)
    config = load_config(None, ["learner.transfer=broadcast"])
    learner = config.learner.model_copy(update={"transfer_timeout_s": 1.0})
    learners.config, learners.linked, learners.ranks = (
        config.model_copy(update={"learner": learner}),
        frozenset(),
        [Stuck.remote()],
    )
    with pytest.raises(LearnerLost, match="learner.transfer_timeout_s=1: waited for learners to break a transfer off"):
        hand_over(Stream(1, learners, broadcast=True), {"a": NeverJoins.remote()}, 1, 1.0)
    ray.kill(learners.ranks[0])
