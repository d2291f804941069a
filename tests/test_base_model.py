"""The base model that is shipped."""

from pathlib import Path

from safetensors import safe_open
from transformers import AutoConfig, AutoTokenizer

from srl.protocols.chat import model_folder
from srl.tasks.tokenizer import build_tokenizer

FOLDER = Path(model_folder("embedded"))


def test_it_is_a_bfloat16_qwen2_of_at_most_8_mib():
    assert AutoConfig.from_pretrained(FOLDER).model_type == "qwen2"
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= 8 * 2**20
    with safe_open(FOLDER / "model.safetensors", framework="pt") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"BF16"}  # noqa: SIM118


def test_its_tokenizer_is_the_one_the_code_builds():
    shipped, built = AutoTokenizer.from_pretrained(FOLDER), build_tokenizer()
    assert shipped.get_vocab() == built.get_vocab()
    assert shipped.chat_template == built.chat_template
    assert AutoConfig.from_pretrained(FOLDER).vocab_size >= len(built)
