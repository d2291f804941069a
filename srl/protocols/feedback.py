"""Protocols in which something outside the model judges its answers: the gold answer or a scorer.

`form` says how the verdict is put: "" by the user; "_chain" in the model's own message, in place of the word of its own
verdict, after the check it wrote before that; "_two_turn" both.
"""

from collections.abc import Callable

from srl.config import Config
from srl.protocols.action import Action, Ask, Generate, Protocol, Sampled, Say, Stop
from srl.protocols.chat import Chat
from srl.protocols.grammar import awaits_word, spoken
from srl.protocols.own_verdict import rounds
from srl.protocols.receive import append_answer, append_check, append_open_answer
from srl.trajectory import StopReason, Trajectory, TurnKind, Verdict


def gold(form: str, config: Config, chat: Chat) -> Protocol:
    """Told the truth: wrong answers are sent back, a right one ends the conversation."""
    return feedback(Ask("gold"), lambda *judged: told_the_truth(*judged, form, config), form, config, chat)


def judged(form: str, config: Config, chat: Chat) -> Protocol:
    """As `gold`, with the verdicts of protocol.judge."""
    return feedback(Ask("judge"), lambda *judged: told_the_truth(*judged, form, config), form, config, chat)


def misleading(form: str, config: Config, chat: Chat) -> Protocol:
    """Right answers are sent back as wrong; a wrong one ends the conversation."""

    def told(trajectory: Trajectory, verdict: Verdict) -> Action:
        return told_wrong(trajectory, form, config) if verdict is Verdict.CORRECT else Stop(StopReason.REJECTED)

    return feedback(Ask("gold"), told, form, config, chat)


def told_the_truth(trajectory: Trajectory, verdict: Verdict, form: str, config: Config) -> Action:
    return told_wrong(trajectory, form, config) if verdict is Verdict.WRONG else Stop(StopReason.ACCEPTED)


def told_wrong(trajectory: Trajectory, form: str, config: Config) -> Say:
    if not form:
        return Say(config.prompts.revise, verdict=Verdict.WRONG)
    words, last = spoken(Verdict.WRONG, config.protocol.grammar), trajectory.turns[-1]
    check = last.text if last.kind is TurnKind.INSTRUCTION else ""
    spaced = check[-1:].isspace()
    if awaits_word(check, config.protocol.grammar):
        within = " " * (not spaced) + words.split()[-1]
    else:
        within = config.prompts.joiner * (not spaced) + words
    return Say("" if form == "_chain" else config.prompts.revise, within, Verdict.WRONG)


def feedback(ask: Ask, told: Callable[[Trajectory, Verdict], Action], form: str, config: Config, chat: Chat) -> Protocol:
    """Answer, hear the judge, answer again, up to protocol.max_rounds revisions."""
    tokens = config.rollout.max_response_tokens if form else config.rollout.max_attempt_tokens
    append = append_open_answer if form else append_answer

    def next_action(trajectory: Trajectory) -> Action:
        if not trajectory.turns:
            return Generate(TurnKind.ATTEMPT, tokens)
        if trajectory.turns[-1].kind is TurnKind.INSTRUCTION and trajectory.turns[-1].verdict is not None:
            return Generate(TurnKind.REVISION, tokens)
        return ask if rounds(trajectory) < config.protocol.max_rounds else Stop(StopReason.ROUNDS)

    def receive(trajectory: Trajectory, sampled: Sampled) -> None:
        append(trajectory, sampled, chat, config.protocol.grammar)
        if form and rounds(trajectory) < config.protocol.max_rounds:
            append_check(trajectory, sampled, chat, config.protocol.grammar)

    return Protocol(next_action, receive, told)
