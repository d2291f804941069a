import pytest
from hypothesis import settings

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
