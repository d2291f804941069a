"""Options of several values and settings on one command line: neither takes the other's words."""

import argparse
import importlib
import subprocess
import sys
from types import SimpleNamespace

import pytest
import ray

from benchmarks import ablations, algorithms, kubernetes, nodes, rl_resume
from srl.commands.numbers import at_least, several


class Reached(Exception):
    """With the arguments of the function that the command line leads to."""


def reach(*arguments) -> None:
    raise Reached(*arguments)


def test_settings_after_the_seeds_of_ablations_reach_its_runs(monkeypatch, tmp_path):
    monkeypatch.setattr(ablations, "one_seed", reach)
    words = ["baselines", "--seeds", "4,5", "stage1.prompts=2000", "--folder", str(tmp_path), "rollout.threads=1"]
    monkeypatch.setattr(sys, "argv", ["ablations", *words])
    with pytest.raises(Reached) as reached:
        ablations.main()
    assert reached.value.args == ("baselines", 4, tmp_path, 1000, ["stage1.prompts=2000", "rollout.threads=1"])


def test_settings_after_the_victims_of_nodes_reach_its_job(monkeypatch, tmp_path):
    monkeypatch.setattr(nodes, "experiment", reach)
    monkeypatch.setattr(nodes.signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["nodes", "--folder", str(tmp_path), "--victims", "learner,head", "rl.steps=4"])
    with pytest.raises(Reached) as reached:
        nodes.main()
    assert reached.value.args == (tmp_path, ["learner", "head"], 0, ["rl.steps=4"])


def test_settings_after_the_victims_of_kubernetes_reach_its_job(monkeypatch):
    monkeypatch.setattr(kubernetes, "Job", lambda *arguments: SimpleNamespace(entrypoint="", arguments=arguments))
    monkeypatch.setattr(kubernetes, "versions", lambda kubectl: {})
    monkeypatch.setattr(kubernetes, "experiment", reach)
    monkeypatch.setattr(sys, "argv", ["kubernetes", "--victims", "learner", "rl.steps=4", "--name", "mine"])
    with pytest.raises(Reached) as reached:
        kubernetes.main()
    job, victims = reached.value.args
    assert (job.arguments[-2:], victims) == (("mine", ["rl.steps=4"]), ["learner"])


def test_settings_after_the_methods_of_algorithms_reach_every_run(capsys, tmp_path):
    arguments = ["--directory", str(tmp_path), "--dry-run", "--seeds", "0", "--only", "grpo,dpo", "rl.group=4"]
    algorithms.main(arguments)
    lines = [line for line in capsys.readouterr().out.splitlines() if " rl " in line]
    assert len(lines) == 2 and all("rl.group=4" in line for line in lines)


MISSPELT = "unknown setting rl.stps=3; did you mean rl.steps?"
MODULES = ("ablations", "algorithms", "exactly_once", "kubernetes", "nodes", "rl_resume", "rl_step", "rollout", "soak", "stage1")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        *((f"{name}{' mixes' * (name == 'ablations')} rl.stps=3", MISSPELT) for name in MODULES),
        *(
            (f"{name} --rounds 0", "--rounds: 0 is not a whole")
            for name in ("rollout", "stage1", "rl_step", "weight_sync", "learner")
        ),
        ("exactly_once --kills=-1", "--kills: -1 is not a whole number of at least 0"),
        ("soak --minutes 0", "--minutes: 0 is not a number above 0"),
        ("grading --golds 0", "--golds: 0 is not a whole"),
        *(
            (f"{name} --folder /dev/null/x", "--folder: /dev/null/x cannot be made")
            for name in ("exactly_once", "stage1", "soak")
        ),
        *((f"{name} --model /nope", "/nope: no such folder") for name in ("rl_step", "rollout")),
        *((f"{name} --trl /nope", "--trl /nope: no such program") for name in ("rl_step", "learner")),
        ("rl_resume --folder {}", "killed: is there already; name another --folder"),
        ("kubernetes", "kubectl: no such program"),
    ],
)
def test_what_a_benchmark_cannot_use_is_told_in_one_line_before_anything_starts(
    line: str, message: str, monkeypatch, tmp_path, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "killed").mkdir()
    monkeypatch.setattr(rl_resume, "finish", lambda *_: tmp_path)
    monkeypatch.setattr(ray, "init", reach)
    monkeypatch.setattr(subprocess, "Popen", reach)
    name, *words = line.format(tmp_path).split()
    module = importlib.import_module(f"benchmarks.{name}")
    monkeypatch.setattr(sys, "argv", [name, *words])
    with pytest.raises(SystemExit) as left:
        module.main(*[words] * (name in ("algorithms", "rollout")))
    assert left.value.code == 2 and message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (several(int), "0 1", "0 1 is not a list such as 0,1,2"),
        (several(int), "0,", "0, is not a list"),
        (several(at_least(1)), "2,0", "0 is not a whole number of at least 1"),
        (several(str, ["job", "head"]), "head,cpu", "cpu is none of job, head"),
    ],
)
def test_a_list_that_cannot_be_is_refused(kind, text: str, message: str):
    with pytest.raises(argparse.ArgumentTypeError, match=message):
        kind(text)
