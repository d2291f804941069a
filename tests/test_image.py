"""What cluster/Dockerfile says, held against the files it depends on. That it builds is not tested here."""

import ctypes
import os
import re
import tomllib
from pathlib import Path

import pytest
import yaml

from srl.config import ConfigError
from srl.rollout.engine import prepare_environment

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "cluster" / "Dockerfile").read_text()
IGNORED, *ALLOWED = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("**/")]


def test_the_image_leaves_out_the_development_packages_and_no_others():
    left_out = re.search(r"--invert-match --extended-regexp '\^\((.*)\)=='", DOCKERFILE)[1].split("|")
    development = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["dev"]
    assert left_out == sorted(re.match(r"[\w-]+", package)[0] for package in development)
    locked = {line.partition("==")[0] for line in (ROOT / "cpu.lock").read_text().splitlines()}
    assert set(left_out) <= locked


def test_nothing_gets_into_the_image_but_what_is_named_and_everything_that_is_copied_is():
    assert IGNORED == "*"
    allowed = {line.removeprefix("!") for line in ALLOWED}
    assert all(line.startswith("!") for line in ALLOWED) and all((ROOT / name).exists() for name in allowed)
    copied = {name for line in re.findall(r"^COPY (?:--\S+ )*(.*) \S+$", DOCKERFILE, re.MULTILINE) for name in line.split()}
    assert {name.split("/")[0] for name in copied - {"."}} <= allowed
    assert {"srl", "configs", "cpu.lock", "gpu.lock", "pyproject.toml"} <= allowed


def test_the_user_of_the_image_is_the_one_of_the_pods():
    pod = yaml.safe_load((ROOT / "cluster/base/rayjob.yaml").read_text())["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]
    user = pod["spec"]["securityContext"]["runAsUser"]
    assert f"useradd --uid {user} " in DOCKERFILE
    assert re.findall(r"^USER (.*)$", DOCKERFILE, re.MULTILINE) == [str(user)] * 2


def test_a_cpu_machine_without_libnuma_or_a_compiler_is_told_so_and_a_gpu_machine_is_not_asked(monkeypatch: pytest.MonkeyPatch):
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(os, "environ", {"PATH": "/nowhere"})
    with monkeypatch.context() as patch:
        patch.setattr(ctypes, "CDLL", missing)
        with pytest.raises(ConfigError, match=r"libnuma1\): libnuma\.so\.1: cannot open"):
            prepare_environment(on_gpu=False)
    with monkeypatch.context() as patch:
        patch.setattr(ctypes, "CDLL", lambda name: None)
        with pytest.raises(ConfigError, match=r"needs a C\+\+ compiler \(.*\): no g\+\+"):
            prepare_environment(on_gpu=False)
    prepare_environment(on_gpu=True)
