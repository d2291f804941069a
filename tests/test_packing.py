"""Packed rows: what goes together, and that sequences in one row do not see each other."""

from dataclasses import fields

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, Qwen2Config

from srl.learner import model as learner_model
from srl.learner import packing
from srl.learner.batch import Example, collate, policy_example, weighted_example
from srl.learner.losses import sft_loss
from srl.learner.model import TokenLogprobs, TokenValues
from srl.learner.packing import ATTENTION, fill, pack
from srl.trajectory import Trajectory, Turn, TurnKind


@given(st.lists(st.integers(1, 100), max_size=40), st.integers(1, 150), st.integers(1, 4), st.booleans())
def test_rows_hold_every_sequence_once_within_the_budget_and_equally_often_per_rank(lengths, budget, ranks, paired):
    units = [str(index // 2) if paired else "" for index in range(len(lengths))]
    plan = pack(lengths, budget, ranks, units)
    assert len(plan) == ranks and len({len(rows) for rows in plan}) == 1
    rows = [row for rank in plan for row in rank]
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    for row in rows:
        assert sum(lengths[index] for index in row) <= budget or len({units[index] or index for index in row}) == 1
    if paired:
        row_of = {index: number for number, row in enumerate(rows) for index in row}
        assert all(row_of[index] == row_of[index - 1] for index in range(1, len(lengths), 2))


def test_rows_are_filled_evenly():
    # 24 tokens, budget 12, two ranks: two rows. Largest first: 9 | 6, then 5 joins 6, then 4 joins 9: 13 is too much,
    # so four rows: 9 | 6 | 5 | 4.
    assert pack([9, 6, 5, 4], budget=12, ranks=2) == [[[0], [2]], [[1], [3]]]
    assert pack([9, 6, 5, 3], budget=12, ranks=2) == [[[0, 3]], [[1, 2]]]


def test_no_rows_stay_empty_for_what_is_longer_than_the_budget():
    assert pack([30, 30, 4], budget=10, ranks=1) == [[[0], [1], [2]]]


@given(st.lists(st.integers(1, 100), max_size=40), st.integers(100, 150), st.integers(1, 4))
def test_there_are_as_few_rows_as_hold_all(lengths, budget, ranks):
    sizes = sorted(((length, [index]) for index, length in enumerate(lengths)), key=lambda item: -item[0])
    fewest = next(
        rows
        for rows in range(max(1, -(-sum(lengths) // (budget * ranks))), 50)
        if all(sum(lengths[index] for index in row) <= budget for row, _ in fill(sizes, rows * ranks))
    )
    assert {len(rows) for rows in pack(lengths, budget, ranks)} == {fewest}


def test_thousands_of_sequences_of_which_no_two_share_a_row_take_few_tries(monkeypatch: pytest.MonkeyPatch):
    tries = []
    monkeypatch.setattr(packing, "fill", lambda sizes, count: tries.append(count) or fill(sizes, count))
    assert [len(rows) for rows in pack([60] * 4000, budget=100, ranks=8)] == [500] * 8
    assert len(tries) <= 20


def small_model(heads: int = 4, shared: int = 2) -> torch.nn.Module:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=heads,
        num_key_value_heads=shared, tie_word_embeddings=True,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager")


EXAMPLES = [
    Example(str(n), [(7 * n + 3 * i) % 64 for i in range(length)], [0.0] + [0.5 + n / 4] * (length - 1))
    for n, length in enumerate((5, 11, 2, 8))
]


def gradients(module: torch.nn.Module, rows: list[list[Example]]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    module.zero_grad()
    total = sum(sft_loss(module(batch)[0], batch)[0] for batch in (collate(row, 0) for row in rows))
    total.backward()
    return total.detach(), [parameter.grad.clone() for parameter in module.parameters()]


@pytest.mark.parametrize("kind", [TokenLogprobs, TokenValues])
def test_packed_equals_unpacked_in_loss_and_gradients(kind):
    model = small_model()
    model.set_attn_implementation(ATTENTION)
    module = kind(model)
    if kind is TokenValues:
        torch.nn.init.normal_(module.value_head.weight)
    for packed, alone in zip(gradients(module, [EXAMPLES]), gradients(module, [[e] for e in EXAMPLES]), strict=True):
        torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-5)


def test_log_probabilities_are_those_of_the_plain_model():
    model = small_model()
    with torch.no_grad():
        logits = [model(torch.tensor([example.token_ids])).logits[0, :-1].log_softmax(-1) for example in EXAMPLES]
    expected = [
        row.gather(-1, torch.tensor(e.token_ids[1:])[:, None]).squeeze(-1) for row, e in zip(logits, EXAMPLES, strict=True)
    ]
    model.set_attn_implementation(ATTENTION)
    found, entropy = TokenLogprobs(model)(collate(EXAMPLES, 0))
    torch.testing.assert_close(found, torch.cat(expected), rtol=1e-5, atol=1e-5)
    by_hand = torch.cat([-(row.exp() * row).sum(-1) for row in logits])
    torch.testing.assert_close(entropy, by_hand, rtol=1e-5, atol=1e-5)


def test_a_change_in_one_sequence_leaves_the_others_alone():
    model = small_model()
    model.set_attn_implementation(ATTENTION)
    before = TokenLogprobs(model)(collate(EXAMPLES, 0))[0]
    changed = Example("1", [63] * 11, EXAMPLES[1].weights)
    batch = collate([EXAMPLES[0], changed, *EXAMPLES[2:]], 0)
    after = TokenLogprobs(model)(batch)[0]
    same = after == before
    assert same[batch.sequence != 1].all() and not same[batch.sequence == 1].any()


def test_logits_in_parts_give_the_same_gradients(monkeypatch):
    model = small_model()
    model.set_attn_implementation(ATTENTION)
    whole = gradients(TokenLogprobs(model), [EXAMPLES])
    monkeypatch.setattr(learner_model, "LOGITS_AT_ONCE", 64 * 5)
    parts = gradients(TokenLogprobs(model), [EXAMPLES])
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-6)


def test_parts_as_many_as_the_rank_with_most_has_may_be_empty_and_change_nothing(monkeypatch):
    model = small_model()
    model.set_attn_implementation(ATTENTION)
    whole = gradients(TokenLogprobs(model), [EXAMPLES[:1], []])
    monkeypatch.setattr(learner_model, "LOGITS_AT_ONCE", 64 * 3)
    asked, calls = [], []
    model.get_output_embeddings().register_forward_hook(lambda *_: calls.append(1))
    parts = gradients(TokenLogprobs(model, lambda own: asked.append(own) or 7), [EXAMPLES[:1], []])
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-6)
    assert asked == [2, 1], "four trained tokens in parts of three; none"
    assert len(calls) == 2 * 2 * 7, "each part forward, and again in the backward pass"


def test_gradient_checkpointing_changes_no_gradient():
    model = small_model()
    model.set_attn_implementation(ATTENTION)
    module = TokenLogprobs(model.train())
    whole = gradients(module, [EXAMPLES])
    model.gradient_checkpointing_enable({"use_reentrant": False})
    torch.testing.assert_close(gradients(module, [EXAMPLES]), whole)


def test_a_sequence_beyond_the_models_window_is_refused():
    def windowed(window: int) -> TokenLogprobs:
        config = Qwen2Config(
            vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=2, use_sliding_window=True, sliding_window=window, max_window_layers=0,
        )  # fmt: skip
        return TokenLogprobs(AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION))

    with pytest.raises(ValueError, match="a sequence of 11 tokens exceeds the model's attention window of 10"):
        windowed(10)(collate(EXAMPLES, 0))
    assert windowed(11)(collate(EXAMPLES, 0))[0].isfinite().all()  # it sees all before it, as without a window


def test_neither_the_first_token_of_a_sequence_nor_one_without_weight_is_trained():
    rows = [Example(name, [5, 6, 7], [0.5, 1.0, 0.0], returns=returns) for name, returns in (("a", [1.0, 2.0, 3.0]), ("b", []))]
    batch = collate(rows, pad_id=0)
    assert batch.trained.tolist() == [[False, True, False] * 2]
    assert batch.returns.tolist() == [2.0, 0.0] and batch.old_logprobs.tolist() == [0.0, 0.0]


def test_a_batch_goes_to_its_device_with_all_of_its_tensors():
    batch = collate(EXAMPLES, pad_id=0).to(torch.device("meta"))
    tensors = [value for item in fields(batch) if isinstance(value := getattr(batch, item.name), torch.Tensor)]
    assert len(tensors) == 11 and all(tensor.is_meta for tensor in tensors) and batch.reference_logprobs is None


def test_sequences_without_a_unit_are_units_of_their_own():
    examples = [Example(str(n), [5, 6], [0.0, 1.0], unit=unit) for n, unit in enumerate(("", "pair", "", "pair"))]
    assert collate(examples, pad_id=0).unit.tolist() == [0, 1, 2, 1]


def test_said_tokens_have_no_column_and_a_column_of_another_length_is_refused():
    said = Turn(TurnKind.INSTRUCTION, [5, 6])
    turns = [Turn(TurnKind.ATTEMPT, [2, 3], logprobs=[-1.0, -2.0]), said, Turn(TurnKind.REVISION, [7], logprobs=[-3.0])]
    trajectory = Trajectory("t", "p", "", "", [1], turns)
    example = policy_example(trajectory, [0.1, 0.2, 0.3], weight=0.5, kl=[1.0, 2.0, 3.0])
    assert example.weights == [0.0, 0.5, 0.5, 0.0, 0.0, 0.5] and example.old_logprobs == [0.0, -1.0, -2.0, 0.0, 0.0, -3.0]
    assert example.advantages == [0.0, 0.1, 0.2, 0.0, 0.0, 0.3] and example.kl == [0.0, 1.0, 2.0, 0.0, 0.0, 3.0]
    with pytest.raises(ValueError, match=r"trajectory t: \['kl'\] do not have one value for each of 3 sampled tokens"):
        policy_example(trajectory, 1.0, kl=[1.0, 2.0, 3.0, 4.0])
    turns[0].loss_weight = 0.25
    assert weighted_example(trajectory) == Example("t", [1, 2, 3, 5, 6, 7], [0.0, 0.25, 0.25, 0.0, 0.0, 0.0])
