"""Files from elsewhere are data: none of them is executed, none names a path outside the run directory, no secret is written."""

import ast
import json
import pickle
import shutil
from pathlib import Path

import pytest
from jinja2.exceptions import SecurityError

import srl
from srl.config import ConfigError, PromptsConfig
from srl.main import main
from srl.protocols.chat import Chat, model_folder

SOURCES = sorted(Path(srl.__file__).parent.rglob("*.py"))
# Functions that run what they read, and the keyword that makes one of them safe.
DANGEROUS = {"eval", "exec", "compile", "pickle.load", "pickle.loads", "torch.load", "yaml.load", "os.system", "joblib.load"}
SAFE_WITH = {"torch.load": ("weights_only", True)}


class Bomb:
    """Unpickling it writes a file."""

    def __init__(self, witness: Path):
        self.witness = witness

    def __reduce__(self):
        return Path.touch, (self.witness,)


def copied_model(folder: Path) -> Path:
    copy = folder / "model"
    shutil.copytree(model_folder("embedded"), copy)
    return copy


def refused(folder: Path, model: Path, capfd: pytest.CaptureFixture[str]) -> str:
    """The one line that the run ends in; nothing was written."""
    assert main([f"run.directory={folder / 'runs'}", f"model.path={model}"]) == 2
    assert not (folder / "runs").exists()
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("srl: ")]
    return line


@pytest.mark.parametrize("path", SOURCES, ids=[str(path.relative_to(Path(srl.__file__).parent)) for path in SOURCES])
def test_no_module_runs_what_it_reads(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        safe = SAFE_WITH.get(called)
        if safe and any(word.arg == safe[0] and ast.literal_eval(word.value) == safe[1] for word in node.keywords):
            continue
        assert called not in DANGEROUS, f"{path}:{node.lineno}: {called}"
        assert not any(word.arg == "trust_remote_code" and ast.unparse(word.value) != "False" for word in node.keywords), path


def test_pickled_weights_are_not_loaded(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    model, witness = copied_model(tmp_path), tmp_path / "executed"
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(witness)))
    assert "no weights (*.safetensors)" in refused(tmp_path, model, capfd)
    assert not witness.exists()


def with_code(model: Path, file: str, witness: Path, **settings: object) -> None:
    (model / "evil.py").write_text(f"open({str(witness)!r}, 'w')\nclass Evil: pass\n")
    (model / file).write_text(json.dumps({**json.loads((model / file).read_text()), **settings}))


def test_a_model_that_brings_code_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    model, witness = copied_model(tmp_path), tmp_path / "executed"
    classes = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}
    with_code(model, "config.json", witness, model_type="evil", auto_map=classes)
    assert str(model) in refused(tmp_path, model, capfd)
    assert not witness.exists()


def test_a_tokenizers_code_is_not_executed(tmp_path: Path):
    model, witness = copied_model(tmp_path), tmp_path / "executed"
    with_code(model, "tokenizer_config.json", witness, auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]})
    assert Chat(str(model), PromptsConfig()).opening("1 + 1")
    assert not witness.exists()


def test_a_chat_template_reaches_no_python(tmp_path: Path):
    model, witness = copied_model(tmp_path), tmp_path / "executed"
    attack = "{{ cycler.__init__.__globals__.os.system('touch WITNESS') }}".replace("WITNESS", str(witness))
    (model / "chat_template.jinja").write_text(attack)
    with pytest.raises((SecurityError, ConfigError)):
        Chat(str(model), PromptsConfig()).opening("1 + 1")
    assert not witness.exists()


def test_a_yaml_file_makes_no_objects(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    witness = tmp_path / "executed"
    (tmp_path / "c.yaml").write_text(f"run: !!python/object/apply:os.system ['touch {witness}']\n")
    assert main(["--config", str(tmp_path / "c.yaml"), "--dry-run"]) == 2
    assert "not YAML" in capfd.readouterr().err and not witness.exists()


@pytest.mark.parametrize("name", ["../up", "/abs", "a/b", ".hidden", ""])
def test_a_run_name_stays_below_the_run_directory(tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str):
    assert main([f"run.directory={tmp_path}", f"run.name={name}"]) == 2
    assert "run.name" in capfd.readouterr().err


def test_what_is_printed_and_kept_of_a_configuration_has_no_secrets(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    secrets = {name: f"secret-of-{name}" for name in ("HF_TOKEN", "WANDB_API_KEY", "RAY_AUTH_TOKEN", "MLFLOW_TRACKING_PASSWORD")}
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    assert main(["--dry-run"]) == 0
    output = capfd.readouterr()
    assert not any(value in output.out + output.err for value in secrets.values())
