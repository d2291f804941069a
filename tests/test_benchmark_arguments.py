"""Options of several values and settings on one command line: neither takes the other's words."""

import argparse
import sys
from types import SimpleNamespace

import pytest

from benchmarks import ablations, algorithms, kubernetes, nodes
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
