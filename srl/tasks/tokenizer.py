"""The word-level tokenizer of the embedded task: numbers, signs and a few words, one token each."""

import re
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

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
    "Start at ", ": ", " + ", " - ", " = ", "?", ", ", " ", "\n", ".", ". The answer is ", "\\boxed{", "}",
    " yes", " no", ". [VERIFY] ", "[VERIFY] ", "correct", "wrong",
    "Check", "The", "There", "Correct", "Rewrite", "Please", "Is", "Yes", "No",
    " the", " solution", " is", " wrong", " it", " may", " be", " an", " error", " answer", " correct", " step", " by",
    " and", " rewrite", " please", " above", " in", " your", " my", " again", " right",
]  # fmt: skip


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Tokenizer with chat template; `decode(encode(text)) == text` for every text of the task."""
    vocabulary: dict[str, int] = {}
    for piece in [PAD, END, USER, ASSISTANT, UNKNOWN, *PIECES]:
        vocabulary.setdefault(piece, len(vocabulary))
    alternatives = "|".join(re.escape(piece) for piece in sorted(PIECES, key=len, reverse=True))
    core = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(alternatives), behavior="isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )


def save_tokenizer(folder: Path) -> None:
    build_tokenizer().save_pretrained(folder)
