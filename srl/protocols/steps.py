"""Protocols without any verdict that decides: one step of sequential sampling, and asking again."""

from srl.config import Config
from srl.protocols.action import Action, Generate, Protocol, Say, Stop
from srl.protocols.chat import Chat
from srl.protocols.own_verdict import rounds
from srl.protocols.receive import append_turn
from srl.trajectory import StopReason, Trajectory, TurnKind


def intrinsic(config: Config, chat: Chat) -> Protocol:
    tokens = config.rollout.max_attempt_tokens

    def next_action(trajectory: Trajectory) -> Action:
        if not trajectory.turns:
            return Generate(TurnKind.ATTEMPT, tokens)
        if trajectory.turns[-1].kind is TurnKind.INSTRUCTION:
            return Generate(TurnKind.REVISION, tokens)
        return Say(config.prompts.reask) if rounds(trajectory) < config.protocol.max_rounds else Stop(StopReason.ANSWERED)

    return Protocol(next_action, lambda trajectory, sampled: append_turn(trajectory, sampled, chat, config.protocol.grammar))


def step(kind: TurnKind, instruction: str | None, config: Config, chat: Chat) -> Protocol:
    """One more turn of that kind, after `instruction` if there is one."""
    lengths = config.rollout
    tokens = lengths.max_verdict_tokens if kind is TurnKind.VERDICT else lengths.max_attempt_tokens

    def next_action(trajectory: Trajectory) -> Action:
        last = trajectory.turns[-1].kind if trajectory.turns else None
        if last is kind:
            return Stop(StopReason.ANSWERED)
        if instruction is not None and last is not TurnKind.INSTRUCTION:
            return Say(instruction)
        return Generate(kind, tokens)

    return Protocol(next_action, lambda trajectory, sampled: append_turn(trajectory, sampled, chat, config.protocol.grammar))
