"""Between text and token ids: prompts through the model's own chat template, instructions as the tokens that follow a turn."""

import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from srl.config import ConfigError, PromptsConfig
from srl.protocols.action import Say

CONTEXT = 8  # tokens before some others on which the text of these may depend: spaces, and characters of several tokens
FIRST_STEP = 32  # tokens; then twice as many each time
ANSWER = "\x02answer\x03"  # stands for the model's answer while the template is measured; no real text contains it


class Chat:
    """Tokenizer, template and wording of one model."""

    def __init__(self, path: str, prompts: PromptsConfig):
        self.tokenizer = load_tokenizer(path)
        self.prompts = prompts
        self.end_id: int = self.tokenizer.eos_token_id
        self.stop_ids = stop_ids(self.tokenizer)
        self.special_ids = frozenset(self.tokenizer.all_special_ids)

    def opening(self, question: str, before: Sequence[Mapping[str, str]] = ()) -> list[int]:
        """Prompt of a conversation about one problem, up to where the model answers; `before` are messages of an earlier one."""
        earlier = [self._user(message["content"]) if message["role"] == "user" else message for message in before]
        return self.encode(self._render([*earlier, self._user(question)], answering=True))

    def instruction(self, text: str, last_id: int) -> list[int]:
        """What follows an answer that ended with `last_id` when the user says `text` and the model is to answer again.

        The template is rendered around a placeholder, so that whatever it puts between two turns is kept and no sampled
        token is ever tokenised again. An end token that the model wrote itself is not repeated.
        """
        messages = [self._user("?"), {"role": "assistant", "content": ANSWER}, {"role": "user", "content": text}]
        ids = self.encode(self._render(messages, answering=True).split(ANSWER, 1)[1])
        return ids[1:] if last_id in self.stop_ids and ids[0] == last_id else ids

    def around_answers(self, messages: list[dict[str, str]]) -> list[list[int]]:
        """What the template puts before, between and after the assistant's messages: one more than there are of those."""
        hidden = [{**message, "content": ANSWER} if message["role"] == "assistant" else message for message in messages]
        return [self.encode(text) for text in self.tokenizer.apply_chat_template(hidden, tokenize=False).split(ANSWER)]

    def said(self, action: Say, ids: list[int]) -> list[int]:
        """What is said after the tokens `ids`: first the part within the model's own message, then the user's."""
        within = self.encode(action.within) if action.within else []
        if not action.text:
            return within
        return within + self.instruction(action.text, (ids + within)[-1])

    def joiner(self) -> list[int]:
        return self.encode(self.prompts.joiner)

    def decode(self, ids: list[int]) -> str:
        """Text without the end token."""
        return self.tokenizer.decode([token for token in ids if token not in self.stop_ids], skip_special_tokens=False)

    def without_end(self, ids: list[int]) -> list[int]:
        """Without what ended the message: of this model or, for samples of another with these tokens, any special token."""
        ids = ids[:-1] if ids and ids[-1] in self.special_ids else ids
        return [token for token in ids if token not in self.stop_ids]

    def tokens_before(self, ids: list[int], characters: int) -> int:
        """The fewest first tokens whose text has at least that many characters."""
        return self.reach(ids, characters)[0]

    def reach(self, ids: list[int], characters: int, begun: tuple[int, int] = (0, 0)) -> tuple[int, int]:
        """The fewest first tokens whose text has at least that many characters, all if none have, and how many it has.

        `begun` is another such pair that is known to lie before. The time grows with the distance from there, not with the length
        of `ids`: only what is between is decoded, after a few tokens of what stands before it, on which its text may depend.
        """
        (low, below), step = begun, FIRST_STEP
        if below >= characters or low == len(ids):
            return low, below

        def length(count: int) -> int:
            context = max(0, low - CONTEXT)
            return below + len(self.decode(ids[context:count])) - len(self.decode(ids[context:low]))

        while (reached := length(high := min(low + step, len(ids)))) < characters:
            if high == len(ids):
                return high, reached
            low, below, step = high, reached, 2 * step
        while high - low > 1:
            middle = (low + high) // 2
            if (between := length(middle)) >= characters:
                high, reached = middle, between
            else:
                low, below = middle, between
        return high, reached

    def _user(self, question: str) -> dict[str, str]:
        return {"role": "user", "content": self.prompts.question.replace("{question}", question)}

    def _render(self, messages: list[dict[str, str]], answering: bool) -> str:
        system = [{"role": "system", "content": self.prompts.system}] if self.prompts.system else []
        return self.tokenizer.apply_chat_template(system + messages, tokenize=False, add_generation_prompt=answering)

    def encode(self, text: str) -> list[int]:
        """Raises ConfigError for text that the tokenizer cannot write."""
        ids = self.tokenizer(text, add_special_tokens=False).input_ids
        # Some tokenizers drop what they do not know without a word. Spaces may change; letters may not.
        if (kept := squeezed(self.tokenizer.decode(ids))) != squeezed(text):
            raise ConfigError(f"the tokenizer has no tokens for all of {text!r}: {kept!r} is left")
        return ids


def squeezed(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text).split())


def load_tokenizer(path: str, setting: str = "model.path") -> PreTrainedTokenizerBase:
    """Raises ConfigError, naming the setting, when there is no usable tokenizer with a chat template at `path`."""
    if not Path(path).is_dir() and (path.startswith((".", "/", "~")) or path.count("/") > 1):
        raise ConfigError(f"{setting}={path}: no such folder")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{setting}={path}: no tokenizer can be loaded from it: {first_line(error)}") from None
    except StrictDataclassError as error:  # transformers reads the model's configuration, too
        raise ConfigError(f"{setting}={path}: config.json: {first_line(error.__cause__ or error)}") from None
    if tokenizer.chat_template is None:
        raise ConfigError(f"{setting}={path}: its tokenizer has no chat template (tokenizer_config.json: chat_template)")
    if tokenizer.eos_token_id is None:
        raise ConfigError(f"{setting}={path}: its tokenizer has no end token (tokenizer_config.json: eos_token)")
    return tokenizer


def stop_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens that end an answer: the end token, and the one the template puts between an assistant's message and the user's."""
    user = {"role": "user", "content": "?"}
    messages = [user, {"role": "assistant", "content": ANSWER}, user]
    after = tokenizer.apply_chat_template(messages, tokenize=False).split(ANSWER, 1)[1]
    following = tokenizer(after, add_special_tokens=False).input_ids[:1]
    added = tokenizer.added_tokens_decoder  # may be special without a name of its own in the tokenizer
    special = [token for token in following if token in tokenizer.all_special_ids or (token in added and added[token].special)]
    return list(dict.fromkeys([tokenizer.eos_token_id, *special]))


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def model_folder(path: str) -> str:
    """`embedded` becomes the shipped model's folder; any other path is returned as it is."""
    return str(Path(__file__).parent.parent / "tasks" / "base") if path == "embedded" else path
