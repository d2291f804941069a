"""The embedded task: its arithmetic, its splits, its texts and the tokenizer that writes them."""

import random
import re
from itertools import islice, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from srl.config import PretrainConfig, PromptsConfig
from srl.driver.pretrain import encode, new_model
from srl.tasks import chains as task
from srl.tasks.chains import Chain
from srl.tasks.tokenizer import PIECES, build_tokenizer

TOKENIZER = build_tokenizer()
KINDS = ["solve", "check", "revise", "reask"]
EXAMPLE = Chain(47, (38, -19))  # 47, 85, 66
WORK = "Start at 47 (1) +38: 7 + 8 = 15, 4 + 3 + 1 = 8, a is 85 (2) -19: 15 - 9 = 6, 8 - 1 - 1 = 6, b is 66"
RANDOMS = st.integers(0, 2**32).map(random.Random)
CHAINS = st.builds(task.sample_chain, RANDOMS, st.integers(1, 8))


def ids_of(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize(
    ("left", "operand", "text", "value"),
    [
        (42, 31, "2 + 1 = 3, 4 + 3 = 7", 73),
        (47, 38, "7 + 8 = 15, 4 + 3 + 1 = 8", 85),  # 15 carries 1
        (87, -25, "7 - 5 = 2, 8 - 2 = 6", 62),
        (85, -19, "15 - 9 = 6, 8 - 1 - 1 = 6", 66),  # 5 < 9 borrows 1
        (20, 10, "0 + 0 = 0, 2 + 1 = 3", 30),
        (30, -20, "0 - 0 = 0, 3 - 2 = 1", 10),
    ],
)
def test_columns_carry_and_borrow(left: int, operand: int, text: str, value: int) -> None:
    assert task.columns(left, operand) == (text, value)


@given(st.integers(10, 99), st.integers(10, 99))
def test_every_equation_of_the_columns_is_true_and_its_digits_are_the_value(left: int, right: int) -> None:
    for operand in [right] * (left + right <= 99) + [-right] * (left - right >= 10):
        text, value = task.columns(left, operand)
        ones, tens = (equation.split(" = ") for equation in text.split(", "))
        assert eval(ones[0]) == int(ones[1]) and eval(tens[0]) == int(tens[1])
        assert value == left + operand == 10 * int(tens[1]) + int(ones[1]) % 10


def test_question_and_solution_read_as_the_docstrings_show() -> None:
    assert task.question(EXAMPLE) == "Start at 47: (1) +38 (2) -19 = ?"
    assert task.question(EXAMPLE) in task.__doc__ and task.question(EXAMPLE) in task.question.__doc__
    assert task.solution(EXAMPLE, [85, 66]) == "Start at 47 (1) +38 a = 85 (2) -19 b = 66. The answer is \\boxed{66}"
    assert "(1) +38 a = 85 (2) -19 b = 66" in task.__doc__


@pytest.mark.parametrize("values", [[85, 66, 86], [66], []])
def test_one_value_per_operation_or_an_error(values: list[int]) -> None:
    with pytest.raises(ValueError):
        task.solution(EXAMPLE, values)


def test_a_check_works_everything_out_and_then_compares_the_answers() -> None:
    assert task.check(EXAMPLE, [85, 66]) == (f"{WORK} against 66: 6 - 6 = 0, 6 - 6 = 0 yes", True)
    assert task.check(EXAMPLE, [75, 56]) == (f"{WORK} against 56: 6 - 6 = 0, 6 - 5 = 1 no", False)
    assert task.check(EXAMPLE, [85, 67]) == (f"{WORK} against 67: 16 - 7 = 9 no", False)  # the tens are not looked at
    assert task.check(EXAMPLE, [75, 66]) == (f"{WORK} against 66: 6 - 6 = 0, 6 - 6 = 0 yes", True)  # only the answer counts
    assert f"{WORK} against 56: 6 - 6 = 0, 6 - 5 = 1 no" in " ".join(task.check.__doc__.split())


@given(CHAINS)
def test_operands_and_values_have_two_digits(chain: Chain) -> None:
    assert all(10 <= number <= 99 for number in [chain.start, *map(abs, chain.operands), *chain.values()])
    assert chain.values() == [chain.start + sum(chain.operands[: end + 1]) for end in range(len(chain.operands))]


@given(CHAINS, RANDOMS)
def test_corrupt_stays_within_two_digits_and_has_a_wrong_answer_that_the_check_finds(chain: Chain, rng: random.Random) -> None:
    claimed, values = task.corrupt(rng, chain), chain.values()
    assert all(10 <= value <= 99 for value in claimed) and len(claimed) == len(chain.operands)
    assert claimed[-1] != values[-1]
    work, right = task.check(chain, claimed)
    assert right is False and f" is {values[-1]} against {claimed[-1]}: " in work and work.endswith(" no")


def test_slips_are_sometimes_two_and_never_cancel() -> None:
    # From 50, +10 -10 +10. A step is wrong when it does not add its operand to what was claimed before it. Only claims that stay
    # in 20..89 count: a step that would lead out of two digits may claim anything.
    chain, rng = Chain(50, (10, -10, 10)), random.Random(0)
    slips = []
    for _ in range(2000):
        claimed = task.corrupt(rng, chain)
        assert claimed[-1] != 60
        if all(20 <= value <= 89 for value in claimed):
            steps = zip(pairwise([50, *claimed]), chain.operands, strict=True)
            slips.append(sum(after - before != operand for (before, after), operand in steps))
    assert set(slips) == {1, 2}
    # A quarter has two slips, less the tenth of them that cancels and some that leave 20..89: about 0.22, and the standard
    # deviation of the share is 0.01.
    assert 0.17 <= slips.count(2) / len(slips) <= 0.27


def test_eight_operations_have_a_name_for_each_value() -> None:
    chain = Chain(50, (10, -10) * 4)
    assert re.findall(r"(\w) = [56]0", task.solution(chain, chain.values())) == list("abcdefgh")


@given(CHAINS)
def test_the_check_of_the_true_values_is_right(chain: Chain) -> None:
    assert task.check(chain, chain.values())[1] is True


def test_splits_are_disjoint_whatever_the_seeds() -> None:
    splits = [
        {task.question(chain) for seed in (0, 1) for chain in islice(task.chains(split, seed, 1, 2), 300)}
        for split in ("train", "validation", "test")
    ]
    assert not splits[0] & splits[1] and not splits[0] & splits[2] and not splits[1] & splits[2]


def test_the_question_alone_decides_its_split() -> None:
    # The shipped model was trained on one of these splits: another hash would put its training questions into the test.
    # printf 'Start at 47: (1) +38 (2) -19 = ?' | b2sum -l 32: 0x1cb921ed = 481894893, 93 of 100: validation.
    assert task.split_of(task.question(EXAMPLE)) == "validation"
    assert all(task.split_of(task.question(chain)) == "test" for chain in islice(task.chains("test", 5, 2, 5), 50))


def test_shares_of_the_splits_are_90_4_and_6_per_cent() -> None:
    rng = random.Random(0)
    found = [task.split_of(task.question(task.sample_chain(rng, 4))) for _ in range(5000)]
    # Standard deviation of the largest: sqrt(0.9 * 0.1 / 5000) = 0.4 points.
    for split, share in {"train": 0.90, "validation": 0.04, "test": 0.06}.items():
        assert found.count(split) / 5000 == pytest.approx(share, abs=0.015)


def test_the_same_seed_gives_the_same_stream_and_another_seed_another() -> None:
    first, again, other = (list(islice(task.chains("train", seed, 3, 5), 50)) for seed in (7, 7, 8))
    assert first == again != other
    assert len(set(first)) == 50
    assert {len(chain.operands) for chain in first} == {3, 4, 5}


@pytest.mark.parametrize("kind", KINDS)
def test_documents_of_every_kind_survive_the_tokenizer(kind: str) -> None:
    rng = random.Random(kind)
    for chain in islice(task.chains("train", 1, 1, 8), 100):
        for part in task.document(rng, chain, kind, own_line=False):
            ids = ids_of(part.text)
            assert TOKENIZER.unk_token_id not in ids
            assert TOKENIZER.decode(ids) == part.text


@given(st.lists(st.sampled_from(PIECES), max_size=30))
def test_decoding_is_joining(pieces: list[str]) -> None:
    vocabulary = TOKENIZER.get_vocab()
    assert TOKENIZER.decode([vocabulary[piece] for piece in pieces]) == "".join(pieces)


def test_a_number_is_one_token() -> None:
    assert all(len(ids_of(str(number))) == 1 for number in range(100))


def test_wordings_of_the_configuration_are_those_of_the_training_corpus() -> None:
    prompts = PromptsConfig()
    assert (prompts.verify, prompts.revise, prompts.reask) == (task.CHECK_PROMPT, task.REVISE_PROMPT, task.REASK_PROMPT)


def test_the_chat_template_is_concatenation() -> None:
    messages = [{"role": "user", "content": "Check"}, {"role": "assistant", "content": "85 yes"}]
    text = "<|user|>Check<|end|><|assistant|>85 yes<|end|>"
    assert TOKENIZER.apply_chat_template(messages, tokenize=False) == text
    assert TOKENIZER.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == text + "<|assistant|>"
    parts = ["<|user|>", "Check", "<|end|>", "<|assistant|>", "85 yes", "<|end|>"]
    assert ids_of(text) == [token for part in parts for token in ids_of(part)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_document_of_messages_is_what_the_chat_template_makes_of_them(kind: str) -> None:
    parts = task.document(random.Random(3), EXAMPLE, kind, own_line=False)
    ids, _ = encode(TOKENIZER, parts)
    messages = [{"role": part.role, "content": part.text} for part in parts]
    assert TOKENIZER.decode(ids) == TOKENIZER.apply_chat_template(messages, tokenize=False)


@pytest.mark.parametrize("own_line", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_trained_are_the_trained_parts_and_the_end_token_behind_them_but_never_a_line_break(kind: str, own_line: bool) -> None:
    parts = task.document(random.Random(3), EXAMPLE, kind, own_line)
    ids, trained = encode(TOKENIZER, parts)
    expected = ""
    for part, following in zip(parts, [*parts[1:], None], strict=True):
        ends = following is None or following.role != part.role
        expected += part.text * part.trained + "<|end|>" * (part.trained and ends)
    assert TOKENIZER.decode([token for token, used in zip(ids, trained, strict=True) if used]) == expected
    assert "\n" not in expected and expected.endswith("<|end|>")


def test_checks_and_revisions_stand_behind_a_request_or_on_the_next_line() -> None:
    roles = {
        own_line: [part.role[0] for part in task.document(random.Random(3), EXAMPLE, "revise", own_line)]
        for own_line in (False, True)
    }
    assert roles == {False: list("uauaua"), True: list("uaaa")}
    text = TOKENIZER.decode(encode(TOKENIZER, task.document(random.Random(3), EXAMPLE, "revise", own_line=True))[0])
    attempt, check, revision = text.removesuffix("<|end|>").split("<|assistant|>")[1].split("\n")
    assert attempt.endswith("}") and check.endswith("[VERIFY] wrong") and revision.endswith("\\boxed{66}")


@settings(max_examples=50)
@given(CHAINS, RANDOMS, st.booleans())
def test_what_is_trained_is_right_whatever_stands_before_it(chain: Chain, rng: random.Random, own_line: bool) -> None:
    right = task.solution(chain, chain.values())
    for kind in ("solve", "revise"):
        last = task.document(rng, chain, kind, own_line)[-1]
        assert last == task.Part("assistant", right, trained=True)
    parts = task.document(rng, chain, "check", own_line)
    attempt, verdict = parts[1], parts[-1]
    claimed = [int(value) for value in re.findall(r" [a-h] = (\d+)", attempt.text)]
    assert attempt == task.Part("assistant", task.solution(chain, claimed), trained=False)
    work, is_right = task.check(chain, claimed)
    assert verdict == task.Part("assistant", f"{work}. [VERIFY] {'correct' if is_right else 'wrong'}", trained=True)


def test_revise_always_and_the_others_in_half_of_the_documents_start_from_a_wrong_attempt() -> None:
    rng, right = random.Random(0), task.solution(EXAMPLE, EXAMPLE.values())
    wrong = {kind: sum(task.document(rng, EXAMPLE, kind, False)[1].text != right for _ in range(400)) for kind in KINDS[1:]}
    assert wrong["revise"] == 400
    # Standard deviation: sqrt(400 * 0.5 * 0.5) = 10.
    assert 160 <= wrong["check"] <= 240 and 160 <= wrong["reask"] <= 240


def test_who_is_asked_again_without_a_verdict_repeats_corrects_or_spoils() -> None:
    # Only here does the corpus train answers that are wrong: 1/2 repeat the attempt, 1/4 are right, 1/4 are wrong.
    rng, right, claimed = random.Random(0), EXAMPLE.values(), [75, 57]  # 75 - 19 = 56: no corrupt attempt has two such slips
    found = [task.guess_again(rng, EXAMPLE, claimed) for _ in range(2000)]
    repeated, corrected = found.count(claimed), found.count(right)
    # Standard deviations: sqrt(2000 * 0.5 * 0.5) = 22, sqrt(2000 * 0.25 * 0.75) = 19.
    assert 910 <= repeated <= 1090 and 424 <= corrected <= 576
    assert all(values[-1] != right[-1] for values in found if values not in (claimed, right))


@settings(max_examples=50)
@given(CHAINS, RANDOMS)
def test_a_second_answer_has_the_form_of_a_solution_to_the_same_question(chain: Chain, rng: random.Random) -> None:
    ask, attempt, again, second = task.document(rng, chain, "reask", own_line=False)
    assert (ask, again) == (task.Part("user", task.question(chain)), task.Part("user", task.REASK_PROMPT))
    for part in (attempt, second):
        values = [int(value) for value in re.findall(r" [a-h] = (\d+)", part.text)]
        assert part.role == "assistant" and part.text == task.solution(chain, values)


def test_heads_of_a_new_model_look_back_one_two_and_three_tokens() -> None:
    model = new_model(PretrainConfig(), TOKENIZER)
    model.set_attn_implementation("eager")
    weights = model(torch.randint(5, 200, (1, 40)), output_attentions=True).attentions[0][0]
    for head in (1, 2, 3):
        shares = weights[head, 30]
        assert shares.argmax() == 30 - head and shares[30 - head] > 0.8
    assert weights[0, 30].max() < 0.1
