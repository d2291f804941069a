import pytest
from hypothesis import settings
from transformers import AutoTokenizer

from srl.config import PromptsConfig
from srl.protocols.chat import Chat
from srl.tasks.tokenizer import save_tokenizer

# A busy machine is no reason to fail.
settings.register_profile("srl", deadline=None)
settings.load_profile("srl")


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The embedded task's tokenizer, which needs no download."""
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    return str(folder)


@pytest.fixture(scope="session")
def chat(tokenizer_folder: str) -> Chat:
    return Chat(tokenizer_folder, PromptsConfig())


@pytest.fixture(scope="session")
def two_ends(tokenizer_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Chat:
    """As Qwen's base models: the tokenizer's end token is not the one that its template puts after messages."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|end|>", "<|endoftext|>"]})
    tokenizer.chat_template = tokenizer.chat_template.replace("eos_token", "'<|end|>'")
    tokenizer.eos_token = "<|endoftext|>"
    folder = str(tmp_path_factory.mktemp("two-ends"))
    tokenizer.save_pretrained(folder)
    return Chat(folder, PromptsConfig())
