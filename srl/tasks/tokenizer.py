"""The word-level tokenizer of the embedded task: numbers, signs and a few words, one token each."""

from pathlib import Path

from tokenizers import AddedToken
from transformers import Qwen2Tokenizer

from srl.tasks.chains import NAMES

PAD, END, USER, ASSISTANT, UNKNOWN = "<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|unknown|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
# A piece carries its own spaces, so that decoding is joining: "(1) +38 a = 85" <-> ["(1)", " +38", " a = ", "85"].
PIECES = [
    *(str(number) for number in range(100)),
    *(f" {operand:+d}" for operand in (*range(-89, -9), *range(10, 90))),
    *(f"{space}({step})" for step in range(1, 9) for space in ("", " ")),
    *(f" {name} = " for name in NAMES),
    *(f", {name} is " for name in NAMES),
    "Start at ", "? ", ": ", " + ", " - ", " = ", " against ", "?", ", ", " ", "\n", ".", ". The answer is ", "\\boxed{", "}",
    " yes", " no", ". [VERIFY] ", "[VERIFY] ", "correct", "wrong",
    "Check", "The", "There", "Correct", "Rewrite", "Please", "Is", "Yes", "No",
    " the", " solution", " is", " wrong", " it", " may", " be", " an", " error", " answer", " correct", " step", " by",
    " and", " rewrite", " please", " above", " in", " your", " my", " again", " right",
]  # fmt: skip


def build_tokenizer() -> Qwen2Tokenizer:
    """Tokenizer with chat template; `decode(encode(text)) == text` for every text of the task.

    transformers rebuilds the tokenizer of any Qwen2 folder as byte-level BPE and keeps nothing but vocabulary and added
    tokens. So the pieces are added tokens, found longest first, and the BPE below them is empty: other text has no tokens.
    """
    special = [PAD, END, USER, ASSISTANT, UNKNOWN]
    tokenizer = Qwen2Tokenizer(
        vocab={token: index for index, token in enumerate(special)},
        merges=[],
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        extra_special_tokens=[USER, ASSISTANT],
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.add_tokens([AddedToken(piece, normalized=False, special=False) for piece in dict.fromkeys(PIECES)])
    return tokenizer


def save_tokenizer(folder: Path) -> None:
    build_tokenizer().save_pretrained(folder)
