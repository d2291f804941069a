"""Which group goes where: pure bookkeeping, by hand and by property."""

from hypothesis import given
from hypothesis import strategies as st

from srl.rollout.backlog import Backlog, Lengths, Order
from srl.rollout.thread import Job
from srl.trajectory import Trajectory, Turn, TurnKind


def order(name: str, tokens: float = 0.0, size: int = 1, failures: int = 0, ticket: int = 0) -> Order:
    group = [Trajectory(f"{name}/{n}", name, "", "", [0]) for n in range(size)]
    return Order(Job(name, "attempt", group, 1.0), ticket, (tokens, 1), failures)


def dealt(backlog: Backlog, running: dict[int, list[Order]]) -> list[tuple[int, str]]:
    return [(worker, order.job.id) for worker, order in backlog.deal(running)]


def filled(*orders: Order, retries: int = 2, most: int = 4) -> Backlog:
    backlog = Backlog(retries, most)
    for given_order in orders:
        backlog.put(given_order)
    return backlog


def test_the_longest_is_begun_first_and_always_where_least_runs():
    backlog = filled(order("short", 10), order("long", 90), order("middle", 50))
    assert dealt(backlog, {0: [order("x")], 1: []}) == [(1, "long"), (0, "middle"), (1, "short")]
    assert dealt(backlog, {0: [], 1: []}) == []


def test_no_worker_is_given_more_once_it_has_enough():
    backlog = filled(*[order(f"{n}", size=3) for n in range(5)])
    assert dealt(backlog, {0: [], 1: [order("x", size=4)]}) == [(0, "0"), (0, "1")]  # 3, then 6, of 4
    assert [left.job.id for left in backlog.orders] == ["2", "3", "4"]


def test_a_last_try_runs_alone():
    backlog = filled(order("a"), order("suspect", failures=2), order("b"))
    assert dealt(backlog, {0: [], 1: []}) == [(0, "suspect"), (1, "a"), (1, "b")]
    assert dealt(filled(order("a")), {0: [order("suspect", failures=2)]}) == []


def test_which_try_is_the_last():
    for retries, failures, alone in ((1, 1, True), (1, 0, False), (0, 0, False), (0, 1, True), (3, 2, False)):
        backlog = filled(order("suspect", failures=failures), order("other"), retries=retries)
        assert dealt(backlog, {0: []}) == [(0, "suspect")] + [(0, "other")] * (not alone)


def test_of_equally_long_answers_the_longest_prompt_is_begun_first():
    short, long = order("short"), order("long")
    long.length = (0.0, 9)
    assert dealt(filled(short, long), {0: []}) == [(0, "long"), (0, "short")]


def test_a_worker_is_left_to_run_empty_for_a_last_try():
    backlog = filled(order("a"), order("suspect", failures=2))
    running = {0: [order("x")], 1: [order("y"), order("z")]}
    assert dealt(backlog, running) == [(1, "a")]
    assert dealt(backlog, {0: [], 1: running[1]}) == [(0, "suspect")]


def test_dropped_tickets_leave_the_others():
    backlog = filled(order("a", ticket=1), order("b", ticket=2), order("c", ticket=1))
    assert [gone.job.id for gone in backlog.forget(1)] == ["a", "c"]
    assert [left.job.id for left in backlog.orders] == ["b"]


@given(
    orders=st.lists(st.tuples(st.integers(0, 9), st.integers(1, 5), st.integers(0, 3)), max_size=12),
    workers=st.integers(0, 4),
)
def test_every_order_is_dealt_once_in_the_end(orders, workers):
    backlog = filled(*[order(str(n), tokens, size, failures) for n, (tokens, size, failures) in enumerate(orders)])
    seen = []
    for _ in range(2 * len(orders)):
        found = backlog.deal({worker: [] for worker in range(workers)})
        alone = [worker for worker, given_order in found if given_order.failures >= 2]
        assert all([worker for worker, _ in found].count(worker) == 1 for worker in alone)
        seen += [given_order.job.id for _, given_order in found]
    assert sorted(seen, key=int) == ([str(n) for n in range(len(orders))] if workers else [])


def test_a_prompt_is_expected_to_take_what_it_took_before_and_others_the_mean():
    def group(name: str, tokens: int, prompt: int = 1) -> list[Trajectory]:
        turn = Turn(TurnKind.ATTEMPT, [0] * tokens, logprobs=[-1.0] * tokens)
        return [Trajectory(f"{name}/{n}", name, "", "", [0] * prompt, [turn]) for n in range(2)]

    lengths = Lengths()
    assert lengths.expected(group("a", 0, prompt=7)) == (0.0, 7)
    lengths.seen(group("a", 10))
    lengths.seen(group("b", 40))
    assert lengths.expected(group("a", 0)) == (10.0, 1)
    assert lengths.expected(group("new", 0, prompt=3)) == (25.0, 3)
    judged = group("a+verify", 2)
    for trajectory in judged:
        trajectory.turns.insert(0, Turn(TurnKind.ATTEMPT, [0] * 30))
    lengths.seen(judged)
    assert list(lengths.by_prompt) == ["a", "b"] and lengths.expected(group("new", 0)) == (25.0, 1)


def test_only_what_a_group_was_given_first_makes_its_length_one_to_forget():
    def sampled(kind: TurnKind, tokens: int) -> Turn:
        return Turn(kind, [0] * tokens, logprobs=[-1.0] * tokens)

    told = [sampled(TurnKind.ATTEMPT, 3), Turn(TurnKind.INSTRUCTION, [0] * 5), sampled(TurnKind.REVISION, 4)]
    skipped = [Turn(TurnKind.ATTEMPT, []), sampled(TurnKind.VERDICT, 2)]  # a message that began with its verdict
    lengths = Lengths()
    for name, turns in (("told", told), ("skipped", skipped)):
        lengths.seen([Trajectory(name, name, "", "", [0], turns)])
    assert lengths.by_prompt == {"told": 7.0, "skipped": 2.0}
