"""Who speaks next and when it stops. A protocol looks at a trajectory and says: generate, say this, ask a judge, or stop.

long_chain   one assistant message, cut into attempt, verdict, revision afterwards (paper, section 4)
two_turn     attempt with its verdict; told so by the user, a revision (section 5)
prompted     attempt; asked for a verdict; when that is "wrong", asked for a revision. What a base model can do
intrinsic    attempt; asked again without any verdict
attempt, verdict, revision   one step of sequential sampling, on top of what the trajectory already holds (section 3.1)
gold         attempt; told that it is wrong only if it is; revision (the paper's gold baseline)
misleading   attempt; told that it is wrong although it is right; revision. Gives p(c->i), how many give in (table 8)
judged       attempt; told what the scorer in protocol.judge says; revision (table 7, an external reward model)

Each of the last three has two forms more for models trained to judge themselves, in which the word of the model's own verdict
is replaced, after the check it wrote before it: `_chain` puts the verdict into its message, `_two_turn` also has the user
say that it was wrong.

One of your own is a function (config, chat) -> Protocol that is named as module:function.

All but the steps go on for up to protocol.max_rounds revisions; in a long chain the model decides. A turn that was cut by
its token limit ends long_chain and two_turn at once; the others go on after it, and stop with LENGTH in place of their own end.
"""

from collections.abc import Callable
from dataclasses import replace

from srl.config import Config
from srl.config.names import look_up
from srl.protocols.action import Protocol
from srl.protocols.chat import Chat
from srl.protocols.feedback import gold, judged, misleading
from srl.protocols.own_verdict import long_chain, prompted, two_turn
from srl.protocols.receive import cut_or
from srl.protocols.steps import intrinsic, step
from srl.trajectory import TurnKind

PROTOCOLS: dict[str, Callable[[Config, Chat], Protocol]] = {
    "long_chain": long_chain,
    "two_turn": two_turn,
    "prompted": prompted,
    "intrinsic": intrinsic,
    "attempt": lambda config, chat: step(TurnKind.ATTEMPT, None, config, chat),
    "verdict": lambda config, chat: step(TurnKind.VERDICT, config.prompts.verify, config, chat),
    "revision": lambda config, chat: step(TurnKind.REVISION, config.prompts.revise, config, chat),
    **{
        f"{feedback.__name__}{form}": lambda config, chat, feedback=feedback, form=form: feedback(form, config, chat)
        for feedback in (gold, misleading, judged)
        for form in ("", "_chain", "_two_turn")
    },
}

# What goes on from a given trajectory is a step of stage 1 and no conversation.
TRAINABLE = {name: make for name, make in PROTOCOLS.items() if name not in ("verdict", "revision")}


def build_protocol(name: str, config: Config, chat: Chat, setting: str = "protocol.name") -> Protocol:
    """One of PROTOCOLS, or module:function. Raises ConfigError, naming the setting, for neither."""
    protocol = look_up(setting, name, PROTOCOLS)(config, chat)
    return replace(protocol, next_action=lambda trajectory: cut_or(protocol.next_action(trajectory), trajectory))
