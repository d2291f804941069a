"""Protocols in which the model judges itself."""

from srl.config import Config
from srl.protocols.action import Action, Generate, Protocol, Sampled, Say, Stop
from srl.protocols.chat import Chat
from srl.protocols.receive import append_chain, append_turn, chain_end
from srl.trajectory import StopReason, Trajectory, TurnKind, Verdict


def long_chain(config: Config, chat: Chat) -> Protocol:
    def next_action(trajectory: Trajectory) -> Action:
        return chain_end(trajectory) if any(turn.sampled for turn in trajectory.turns) else whole_chain(config)

    return Protocol(next_action, lambda trajectory, sampled: append_chain(trajectory, sampled, chat, config.protocol.grammar))


def two_turn(config: Config, chat: Chat) -> Protocol:
    def next_action(trajectory: Trajectory) -> Action:
        if not any(turn.sampled for turn in trajectory.turns):
            return whole_chain(config)
        end = chain_end(trajectory)
        if end.reason is not StopReason.NO_REVISION:
            return end
        if trajectory.turns[-1].kind is TurnKind.INSTRUCTION:
            return whole_chain(config, TurnKind.REVISION)
        return Say(config.prompts.revise) if rounds(trajectory) < config.protocol.max_rounds else Stop(StopReason.ROUNDS)

    return Protocol(next_action, lambda trajectory, sampled: append_chain(trajectory, sampled, chat, config.protocol.grammar))


def prompted(config: Config, chat: Chat) -> Protocol:
    lengths, prompts = config.rollout, config.prompts

    def next_action(trajectory: Trajectory) -> Action:
        if not trajectory.turns:
            return Generate(TurnKind.ATTEMPT, lengths.max_attempt_tokens)
        last, all_judged = trajectory.turns[-1], len(trajectory.verdicts()) == len(trajectory.answers())
        if last.kind is TurnKind.INSTRUCTION and all_judged:
            return Generate(TurnKind.REVISION, lengths.max_attempt_tokens)
        if last.kind is TurnKind.INSTRUCTION:
            return Generate(TurnKind.VERDICT, lengths.max_verdict_tokens)
        if last.kind is not TurnKind.VERDICT:
            return Say(prompts.verify) if rounds(trajectory) < config.protocol.max_rounds else Stop(StopReason.ROUNDS)
        if last.verdict is None:
            return Stop(StopReason.NO_VERDICT)
        return Stop(StopReason.VERIFIED) if last.verdict is Verdict.CORRECT else Say(prompts.revise)

    def receive(trajectory: Trajectory, sampled: Sampled) -> None:
        append_turn(trajectory, sampled, chat, config.protocol.grammar)

    return Protocol(next_action, receive)


def whole_chain(config: Config, first: TurnKind = TurnKind.ATTEMPT) -> Generate:
    return Generate(first, config.rollout.max_response_tokens, chain=True)


def rounds(trajectory: Trajectory) -> int:
    """Revisions so far."""
    return len(trajectory.answers()) - 1
