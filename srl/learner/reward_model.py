"""An outcome reward model: the critic's model and scalar head, read once, at the end of an answer (paper, tables 5 and 7)."""

from collections.abc import Sequence

import torch

from srl.config import Config
from srl.learner.batch import Example, collate
from srl.learner.model import load_critic
from srl.protocols.chat import Chat


def outcome_example(name: str, prompt_ids: Sequence[int], answer_ids: Sequence[int], chat: Chat, right: bool = False) -> Example:
    """An answer to a prompt, to be judged by a reward model, or to teach one."""
    return with_outcome(name, outcome_ids(prompt_ids, answer_ids, chat), right)


def outcome_ids(prompt_ids: Sequence[int], answer_ids: Sequence[int], chat: Chat) -> list[int]:
    """Prompt, answer and the token that ends it.

    `answer_ids` may be an attempt or revision from anywhere in a conversation: an end token of its own, and what joins it to
    what came before, do not count.
    """
    ids, joiner = chat.without_end(list(answer_ids)), chat.joiner()
    if joiner and ids[: len(joiner)] == joiner:
        ids = ids[len(joiner) :]
    return [*prompt_ids, *ids, chat.end_id]


def with_outcome(name: str, token_ids: list[int], right: bool) -> Example:
    """The value before the last token, which ends the answer, is to be its outcome."""
    before = [0.0] * (len(token_ids) - 1)
    return Example(name, token_ids, [*before, 1.0], returns=[*before, float(right)])


class RewardModel:
    """A trained reward model in a process of its own. On CPU with `learner.threads` threads."""

    def __init__(self, folder: str, config: Config):
        on_gpu = config.learner.gpus > 0
        if not on_gpu:
            torch.set_num_threads(config.learner.threads)
        self.device = torch.device("cuda" if on_gpu else "cpu")
        self.critic = load_critic(folder, config.model).to(self.device).eval()
        self.chat = Chat(folder, config.prompts)

    def ready(self) -> bool:
        return True

    @torch.no_grad()
    def score(self, prompt_ids: Sequence[int], answer_ids: Sequence[int]) -> float:
        """The logarithm of the odds that the answer is right."""
        batch = collate([outcome_example("answer", prompt_ids, answer_ids, self.chat)], self.chat.end_id)
        return float(self.critic(batch.to(self.device))[0][-1])
