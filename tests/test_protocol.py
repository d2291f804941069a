"""Protocols against generations written by hand, which a scripted engine hands out one after the other."""

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from srl.config import Config, ConfigError, PromptsConfig, load_config
from srl.driver.pretrain import encode
from srl.pipelines.restarts import given as as_given
from srl.protocols.action import Sampled
from srl.protocols.chat import Chat
from srl.protocols.protocol import build_protocol
from srl.protocols.receive import append_chain
from srl.rollout.engine import Completion, Sampling
from srl.rollout.loop import Limits, run_trajectories
from srl.tasks.chains import Chain, check, document, question, solution, verdict_line
from srl.tasks.tokenizer import ASSISTANT, END, PIECES, USER
from srl.trajectory import StopReason, Trajectory, Turn, TurnKind, Verdict

A, V, R, I = TurnKind.ATTEMPT, TurnKind.VERDICT, TurnKind.REVISION, TurnKind.INSTRUCTION  # noqa: E741
CHAIN = Chain(52, (-30, 25, 38, -19))  # 52, 22, 47, 85, 66
TRUE, FALSE = CHAIN.values(), [value - 10 for value in CHAIN.values()]  # end in 66 and 56
RIGHT = solution(CHAIN, TRUE)
SLIP = solution(CHAIN, FALSE)
CHECKED_RIGHT = check(CHAIN, TRUE)[0] + verdict_line(True)
CHECKED_WRONG = check(CHAIN, FALSE)[0] + verdict_line(False)


@dataclass
class ScriptedEngine:
    """Completes each request with the next text; a text that ends in "…" was cut by the token limit."""

    chat: Chat
    texts: list[str]
    prompts: list[list[int]] = field(default_factory=list)
    generations: list[list[int]] = field(default_factory=list)
    limits: list[int] = field(default_factory=list)
    running: list[str] = field(default_factory=list)

    def submit(self, request_id: str, token_ids: list[int], sampling: Sampling) -> None:
        self.prompts.append(token_ids)
        self.limits.append(sampling.max_tokens)
        self.running.append(request_id)

    def step(self) -> list[Completion]:
        text = self.texts.pop(0)
        cut = text.endswith("…")
        ids = ids_of(self.chat, text.removesuffix("…")) + [self.chat.end_id] * (not cut)
        self.generations.append(ids)
        return [Completion(self.running.pop(), ids, [-0.5 - index for index in range(len(ids))], cut, weight_version=3)]

    def abort(self, request_ids: list[str]) -> None:
        raise AssertionError(request_ids)


def ids_of(chat: Chat, text: str) -> list[int]:
    return chat.tokenizer(text, add_special_tokens=False).input_ids


def play(chat: Chat, name: str, *texts: str, config: Config | None = None, start: Trajectory | None = None, judges=None):
    """One trajectory under a protocol; every text must be asked for."""
    trajectory = start or Trajectory("t", "p", question(CHAIN), "66", chat.opening(question(CHAIN)))
    engine = ScriptedEngine(chat, list(texts))
    protocol = build_protocol(name, config or Config(), chat)
    settings = {"temperature": 1.0, "limits": Limits(512), "timeout_s": 10}
    run_trajectories(engine, protocol, chat, [trajectory], judges=judges, **settings)
    assert not engine.texts
    return trajectory, engine


def kinds(trajectory: Trajectory) -> list[TurnKind]:
    return [turn.kind for turn in trajectory.turns]


LONG_CHAINS = [
    ((f"{RIGHT}\n{CHECKED_RIGHT}",), [A, V], StopReason.VERIFIED, "66"),
    ((f"{SLIP}\n{CHECKED_WRONG}\n{RIGHT}",), [A, V, R], StopReason.ROUNDS, "66"),
    ((f"{SLIP}\n{CHECKED_WRONG}\n{RIGHT}\n{CHECKED_RIGHT}",), [A, V, R, V], StopReason.VERIFIED, "66"),
    ((f"{SLIP}\n{CHECKED_WRONG}",), [A, V], StopReason.NO_REVISION, "56"),
    ((RIGHT,), [A], StopReason.NO_VERDICT, "66"),
    (("",), [A], StopReason.NO_VERDICT, None),
    ((f"{SLIP}\n{CHECKED_WRONG}\nThe solution…",), [A, V, R], StopReason.LENGTH, "56"),
    ((f"{RIGHT}\nThe solution…",), [A], StopReason.LENGTH, "66"),
]
TWO_TURNS = [
    ((f"{RIGHT}\n{CHECKED_RIGHT}",), [A, V], StopReason.VERIFIED, "66"),
    ((f"{SLIP}\n{CHECKED_WRONG}", RIGHT), [A, V, I, R], StopReason.ROUNDS, "66"),
    ((f"{SLIP}\n{CHECKED_WRONG}", f"{RIGHT}\n{CHECKED_RIGHT}"), [A, V, I, R, V], StopReason.VERIFIED, "66"),
    # One round is allowed, so a verdict of "wrong" on the revision ends it.
    ((f"{SLIP}\n{CHECKED_WRONG}", f"{SLIP}\n{CHECKED_WRONG}"), [A, V, I, R, V], StopReason.ROUNDS, "56"),
    ((SLIP,), [A], StopReason.NO_VERDICT, "56"),
    ((f"{SLIP}\n{CHECKED_WRONG}…",), [A, V], StopReason.LENGTH, "56"),
    ((f"{SLIP}\n{CHECKED_WRONG}", "The solution…"), [A, V, I, R], StopReason.LENGTH, "56"),
]
PROMPTED = [
    ((RIGHT, CHECKED_RIGHT), [A, I, V], StopReason.VERIFIED, "66"),
    ((SLIP, CHECKED_WRONG, RIGHT), [A, I, V, I, R], StopReason.ROUNDS, "66"),
    ((SLIP, "the solution is wrong"), [A, I, V], StopReason.NO_VERDICT, "56"),
    ((SLIP, f"{CHECKED_RIGHT}. [VERIFY] wrong"), [A, I, V], StopReason.NO_VERDICT, "56"),  # two markers
    # What was cut is asked about like any other message, and the trajectory remembers.
    (("The solution…", CHECKED_WRONG, RIGHT), [A, I, V, I, R], StopReason.LENGTH, "66"),
    ((RIGHT, f"{CHECKED_RIGHT}…"), [A, I, V], StopReason.LENGTH, "66"),
    ((RIGHT, "The solution…"), [A, I, V], StopReason.LENGTH, "66"),
]
INTRINSIC = [
    ((SLIP, RIGHT), [A, I, R], StopReason.ANSWERED, "66"),
    ((RIGHT, SLIP), [A, I, R], StopReason.ANSWERED, "56"),
    ((RIGHT, "No"), [A, I, R], StopReason.ANSWERED, "66"),  # no box: the attempt's answer stays
    ((f"{RIGHT}…", SLIP), [A, I, R], StopReason.LENGTH, "56"),
    ((SLIP, "The solution…"), [A, I, R], StopReason.LENGTH, "56"),
]
ATTEMPT = [((RIGHT,), [A], StopReason.ANSWERED, "66"), (("The solution…",), [A], StopReason.LENGTH, None)]
CASES = [
    (name, *case)
    for name, cases in {
        "long_chain": LONG_CHAINS,
        "two_turn": TWO_TURNS,
        "prompted": PROMPTED,
        "intrinsic": INTRINSIC,
        "attempt": ATTEMPT,
    }.items()
    for case in cases
]


@pytest.mark.parametrize(("name", "texts", "expected", "stop", "final"), CASES)
def test_every_generation_ends_in_these_turns_with_this_stop_reason_and_final_answer(chat, name, texts, expected, stop, final):
    trajectory, _ = play(chat, name, *texts)
    assert kinds(trajectory) == expected
    assert trajectory.stop_reason is stop
    assert trajectory.final().answer == final


@pytest.mark.parametrize(("name", "texts", "expected", "stop", "final"), CASES)
def test_no_token_or_log_probability_is_lost_or_repeated(chat, name, texts, expected, stop, final):
    trajectory, engine = play(chat, name, *texts)
    sampled = [turn for turn in trajectory.turns if turn.kind is not I]
    assert [token for turn in sampled for token in turn.token_ids] == sum(engine.generations, [])
    assert [x for turn in sampled for x in turn.logprobs] == [-0.5 - n for ids in engine.generations for n in range(len(ids))]
    assert all(turn.weight_version == 3 for turn in sampled)
    assert not any(turn.sampled for turn in trajectory.turns if turn.kind is I)


@pytest.mark.parametrize(("name", "texts", "expected", "stop", "final"), CASES)
def test_each_prompt_begins_with_the_prompt_and_the_generation_before_it(chat, name, texts, expected, stop, final):
    trajectory, engine = play(chat, name, *texts)
    assert engine.prompts[0] == chat.opening(question(CHAIN))
    for before, generation, after in zip(engine.prompts, engine.generations, engine.prompts[1:], strict=False):
        assert after[: len(before) + len(generation)] == before + generation
    assert trajectory.token_ids() == engine.prompts[-1] + engine.generations[-1]


def test_an_unknown_protocol_is_refused_with_those_there_are(chat):
    with pytest.raises(ConfigError, match="protocol.name=three_turn: .*; there are long_chain, two_turn, .*, or module:function"):
        build_protocol("three_turn", Config(), chat)


def test_a_long_chain_is_cut_at_the_tokens_of_its_markers(chat):
    trajectory, _ = play(chat, "long_chain", f"{SLIP}\n{CHECKED_WRONG}\n{RIGHT}")
    attempt, verdict, revision = trajectory.turns
    assert attempt.token_ids == ids_of(chat, SLIP)
    assert verdict.token_ids == ids_of(chat, f"\n{CHECKED_WRONG}")
    assert revision.token_ids == [*ids_of(chat, f"\n{RIGHT}"), chat.end_id]
    assert (attempt.answer, verdict.verdict, revision.answer) == ("56", Verdict.WRONG, "66")
    # The engine's log-probability of token n is -0.5 - n.
    count = len(attempt.token_ids)
    assert attempt.logprobs[-1] == 0.5 - count and verdict.logprobs[0] == -0.5 - count


@given(pieces=st.lists(st.sampled_from([*PIECES, "[VERIFY] ", "correct", "wrong", "\\boxed{", "}", "\n"]), max_size=40))
def test_any_generation_is_cut_into_turns_that_add_up_to_it(chat, pieces):
    ids = [chat.tokenizer.get_vocab()[piece] for piece in pieces] + [chat.end_id]
    logprobs = [-float(n + 1) for n in range(len(ids))]
    for grammar in ("verify", "yes_no"):
        trajectory = Trajectory("t", "p", "", "", [])
        append_chain(trajectory, Sampled(A, ids, logprobs, 0, False), chat, grammar)
        assert trajectory.token_ids() == ids
        assert [x for turn in trajectory.turns for x in turn.logprobs] == logprobs
        assert all(turn.token_ids for turn in trajectory.turns[1:])
        assert trajectory.turns[-1].token_ids[-1] == chat.end_id


def test_two_rounds_of_a_two_turn_conversation_ask_twice(chat):
    config = load_config(None, ["protocol.max_rounds=2"])
    wrong = f"{SLIP}\n{CHECKED_WRONG}"
    trajectory, _ = play(chat, "two_turn", wrong, wrong, f"{RIGHT}\n{CHECKED_RIGHT}", config=config)
    assert kinds(trajectory) == [A, V, I, R, V, I, R, V]
    assert trajectory.stop_reason is StopReason.VERIFIED


def test_steps_of_sequential_sampling_go_on_from_what_the_trajectory_holds(chat):
    trajectory, _ = play(chat, "attempt", SLIP)
    trajectory, judge = play(chat, "verdict", CHECKED_WRONG, start=trajectory)
    trajectory, revise = play(chat, "revision", RIGHT, start=trajectory)
    assert kinds(trajectory) == [A, I, V, I, R]
    said = [turn.text for turn in trajectory.turns if turn.kind is I]
    assert said == ["Check the solution.", "The solution is wrong. Correct it."]
    assert trajectory.turns[2].verdict is Verdict.WRONG and trajectory.stop_reason is StopReason.ANSWERED
    assert (judge.limits, revise.limits) == ([160], [64])  # rollout.max_verdict_tokens, rollout.max_attempt_tokens


def test_a_step_after_a_cut_attempt_is_not_cut_itself(chat):
    trajectory, _ = play(chat, "attempt", f"{SLIP}…")
    assert trajectory.stop_reason is StopReason.LENGTH
    trajectory, _ = play(chat, "verdict", CHECKED_WRONG, start=trajectory)
    assert trajectory.stop_reason is StopReason.ANSWERED


def test_prompts_of_the_steps_are_those_of_the_pretraining_corpus(chat):
    for kind, steps in {
        "solve": ["attempt"],
        "check": ["attempt", "verdict"],
        "revise": ["attempt", "verdict", "revision"],
    }.items():
        trajectory, parts = None, document(random.Random(1), CHAIN, kind, own_line=False)
        for step, part in zip(steps, parts[1::2], strict=True):
            trajectory, _ = play(chat, step, part.text, start=trajectory)
        assert trajectory.token_ids() == encode(chat.tokenizer, parts)[0]
    parts = document(random.Random(1), CHAIN, "reask", own_line=False)
    trajectory, _ = play(chat, "intrinsic", parts[1].text, parts[3].text)
    assert trajectory.token_ids() == encode(chat.tokenizer, parts)[0]


def test_an_instruction_does_not_repeat_the_end_token_that_the_model_wrote(chat):
    said = f"{USER}Check the solution.{END}{ASSISTANT}"
    assert chat.decode(chat.instruction("Check the solution.", chat.end_id)) == said.replace(END, "")
    assert chat.instruction("Check the solution.", chat.end_id) == ids_of(chat, said)
    # Cut by the token limit, the model did not end its turn: the template's end token must.
    assert chat.instruction("Check the solution.", last_id=ids_of(chat, "85")[0]) == ids_of(chat, END + said)


@pytest.mark.parametrize(
    ("message", "ends", "said"),
    [
        ("<|{{m.role}}|>{{m.content}}<|end|>", "<|end|>", "<|user|>Again.<|end|>"),
        ("<|{{m.role}}|>{{m.content}}", "<|user|>", "Again."),  # as GLM-4's
    ],
)
def test_the_token_after_a_message_is_a_stop_even_where_the_tokenizer_has_no_name_for_it(tmp_path, message, ends, said):
    chat = of_bytes(tmp_path, message, PromptsConfig())
    end = chat.tokenizer.get_vocab()[ends]
    assert chat.stop_ids == [chat.end_id, end] and chat.end_id != end
    assert chat.tokenizer.decode(chat.instruction("Again.", end)) == f"{said}<|assistant|>"
    assert chat.decode([*chat.encode("No"), end]) == "No"


def test_a_system_message_stands_once_before_all_others_and_only_questions_are_worded(tmp_path):
    chat = of_bytes(tmp_path, "<|{{m.role}}|>{{m.content}}<|end|>", PromptsConfig(system="Reason.", question="{question}?"))
    before = [{"role": "user", "content": "1 + 1"}, {"role": "assistant", "content": "2"}]
    asked = "<|user|>1 + 1?<|end|><|assistant|>"
    assert chat.tokenizer.decode(chat.opening("1 + 1")) == f"<|system|>Reason.<|end|>{asked}"
    again = f"<|system|>Reason.<|end|>{asked}2<|end|><|user|>3 + 3?<|end|><|assistant|>"
    assert chat.tokenizer.decode(chat.opening("3 + 3", before)) == again
    end = chat.tokenizer.get_vocab()["<|end|>"]
    assert chat.tokenizer.decode(chat.instruction("Sure", end)) == "<|user|>Sure<|end|><|assistant|>"


def of_bytes(folder, message: str, prompts: PromptsConfig) -> Chat:
    alphabet = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    own = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    own.pre_tokenizer, own.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    own.add_special_tokens([AddedToken(name, special=True) for name in ("<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>")])
    saved = PreTrainedTokenizerFast(tokenizer_object=own, eos_token="<|endoftext|>")
    saved.chat_template = f"{{% for m in messages %}}{message}{{% endfor %}}<|assistant|>"
    saved.save_pretrained(folder)
    return Chat(str(folder), prompts)


def test_an_opening_ends_where_the_model_answers(chat):
    assert chat.opening("Check") == ids_of(chat, f"{USER}Check{END}{ASSISTANT}")


def test_wording_comes_from_the_configuration(tokenizer_folder):
    prompts = load_config(None, ["prompts.question=The solution is {question}."]).prompts
    chat = Chat(tokenizer_folder, prompts)
    assert chat.opening("85") == ids_of(chat, f"{USER}The solution is 85.{END}{ASSISTANT}")


def test_text_that_the_tokenizer_has_no_tokens_for_is_refused(chat):
    with pytest.raises(Exception, match="no tokens for all of.*What is"):
        chat.opening("What is love?")


@given(ids=st.lists(st.integers(5, 60), max_size=200), data=st.data())
def test_tokens_before_is_the_fewest_tokens_that_reach_so_far(chat, ids, data):
    characters = data.draw(st.integers(0, len(chat.decode(ids))))
    count = chat.tokens_before(ids, characters)
    assert len(chat.decode(ids[:count])) >= characters
    assert count == 0 or len(chat.decode(ids[: count - 1])) < characters
    begin = data.draw(st.integers(0, count))
    known = begin, len(chat.decode(ids[:begin]))
    assert chat.reach(ids, characters, known) == (count, len(chat.decode(ids[:count])))
    assert chat.reach(ids, len(chat.decode(ids)) + 1, known) == (len(ids), len(chat.decode(ids)))


def test_a_long_chain_is_cut_with_a_few_times_its_tokens_decoded(tokenizer_folder):
    chat, decoded = Chat(tokenizer_folder, PromptsConfig()), []
    chat.decode = lambda ids, decode=chat.decode: decoded.append(len(ids)) or decode(ids)
    ids = ids_of(chat, f"{SLIP}\n{CHECKED_WRONG}\n" * 30)
    trajectory = Trajectory("t", "p", question(CHAIN), "66", chat.opening(question(CHAIN)))
    append_chain(trajectory, Sampled(A, ids, [-1.0] * len(ids), 0, False), chat, "verify")
    assert len(trajectory.turns) == 60 and len(ids) > 3000
    assert sum(decoded) < 8 * len(ids)


@pytest.mark.parametrize(
    ("text", "expected", "stop"),
    [
        (f"\n{CHECKED_RIGHT}", [A, V], StopReason.VERIFIED),
        (f"\n{CHECKED_WRONG}\n{RIGHT}", [A, V, R], StopReason.ROUNDS),
        ("\nStart at 5", [A, A], StopReason.NO_VERDICT),
    ],
)
def test_a_chain_goes_on_after_a_given_attempt_without_touching_it(chat, text, expected, stop):
    first, _ = play(chat, "long_chain", f"{SLIP}\n{CHECKED_WRONG}\n{RIGHT}")
    given_attempt = as_given(first.turns[0])
    start = Trajectory("t", "p", question(CHAIN), "66", chat.opening(question(CHAIN)), [given_attempt])
    before = list(given_attempt.token_ids)
    trajectory, engine = play(chat, "long_chain", text, start=start)
    assert kinds(trajectory) == expected and trajectory.stop_reason is stop
    assert trajectory.turns[0].token_ids == before and not trajectory.turns[0].sampled and trajectory.turns[0].answer == "56"
    assert [token for turn in trajectory.turns[1:] for token in turn.token_ids] == engine.generations[0]
    assert [turn.answer for turn in trajectory.turns[1:]] == [None] + ["66"] * (len(expected) - 2)


def test_what_a_chain_adds_on_the_line_of_a_given_answer_is_of_its_check(chat):
    first, _ = play(chat, "long_chain", f"{SLIP} {CHECKED_WRONG} {RIGHT}")  # the attempt ends with its box
    start = Trajectory("t", "p", question(CHAIN), "56", chat.opening(question(CHAIN)), [as_given(first.turns[0])])
    trajectory, engine = play(chat, "long_chain", f" Start at 52\n{CHECKED_RIGHT}", start=start)
    assert kinds(trajectory) == [A, V] and [turn.answer for turn in trajectory.answers()] == ["56"]
    assert trajectory.turns[1].token_ids == engine.generations[0]
    assert trajectory.turns[1].text == f" Start at 52\n{CHECKED_RIGHT}"


def test_a_chain_that_goes_on_after_a_given_attempt_without_an_answer_answers_before_it_checks(chat):
    begun = Turn(A, ids_of(chat, "Start at 52"), "Start at 52")
    start = Trajectory("t", "p", question(CHAIN), "66", chat.opening(question(CHAIN)), [begun])
    trajectory, _ = play(chat, "long_chain", f"\n{RIGHT}\n{CHECKED_RIGHT}", start=start)
    assert kinds(trajectory) == [A, A, V] and [turn.answer for turn in trajectory.answers()] == [None, "66"]
    assert trajectory.stop_reason is StopReason.VERIFIED


COUNTER = """
from srl.protocols.action import Generate, Protocol, Say, Stop
from srl.protocols.receive import append_turn
from srl.trajectory import StopReason, TurnKind


def counter(config, chat):
    def next_action(trajectory):
        if not trajectory.turns:
            return Generate(TurnKind.ATTEMPT, 9)
        if len(trajectory.turns) == 1:
            return Say(str(len(trajectory.turns[0].token_ids)))
        return Generate(TurnKind.REVISION, 7) if len(trajectory.turns) == 2 else Stop(StopReason.ANSWERED)

    return Protocol(next_action, lambda trajectory, sampled: append_turn(trajectory, sampled, chat, config.protocol.grammar))
"""


def test_a_protocol_of_ones_own_is_a_function_that_the_setting_names(chat, tmp_path, monkeypatch):
    (tmp_path / "with_tools.py").write_text(COUNTER)
    monkeypatch.syspath_prepend(tmp_path)
    trajectory, engine = play(chat, "with_tools:counter", SLIP, RIGHT)
    assert kinds(trajectory) == [A, I, R] and trajectory.final().answer == "66" and engine.limits == [9, 7]
    assert trajectory.turns[1].text == str(len(trajectory.turns[0].token_ids)) and not trajectory.turns[1].sampled
    assert load_config(None, ["protocol.name=with_tools:own_chain"]).protocol.form == ""
