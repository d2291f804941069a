"""Judges outside the model, for protocols that ask one. A judge is a function from a trajectory to a future verdict.

Anything that answers with a verdict is one: `in_threads` makes one of a plain function, `of_calls` of calls to Ray actors,
`reward_model` of the folder of an outcome reward model, `served` of a second language model.
"""

import itertools
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayError

from srl.config import Config, ConfigError
from srl.config.names import look_up
from srl.learner.model import VALUE_HEAD, check_tokens
from srl.learner.reward_model import RewardModel
from srl.protocols.action import Judge
from srl.protocols.chat import model_folder
from srl.protocols.grammar import only_verdict
from srl.reward.answer import stated_answer
from srl.trajectory import Outcome, Trajectory, Verdict

MOST_CALLS = 64  # at once, from one rollout worker to a judge behind an endpoint

log = logging.getLogger(__name__)


def in_threads(function: Callable[[Trajectory], Verdict | None], threads: int) -> Judge:
    """Calls `function` on this many threads of the rollout worker."""
    executor = ThreadPoolExecutor(threads, "judge")
    return lambda trajectory: executor.submit(function, trajectory)


def of_calls(call: Callable[[Trajectory], ray.ObjectRef], verdict: Callable[[Any], Verdict | None]) -> Judge:
    """`call` starts a remote call about a trajectory; `verdict` reads its result."""
    return lambda trajectory: then(call(trajectory).future(), verdict)


def gold_judge(reward_actors: Sequence[ActorHandle], stated: bool) -> Judge:
    """Whether the last answer is the gold one, by the actors that grade, in turn; `stated`: reward.answers is.

    An answer that they did not get done with has no verdict.
    """
    turn = itertools.cycle(reward_actors)

    def grade(trajectory: Trajectory) -> ray.ObjectRef:
        last = trajectory.answers()[-1]
        answer = stated_answer(last.text) if stated and last.answer is None else last.answer
        return next(turn).grade.remote([(trajectory.id, answer, trajectory.gold)])

    verdicts = {Outcome.CORRECT: Verdict.CORRECT, Outcome.TIMEOUT: None}
    return of_calls(grade, lambda grades: verdicts.get(*grades.values(), Verdict.WRONG))


def served(config: Config) -> Judge:
    """A second model behind protocol.judge_url is shown problem and answer and asked `prompts.verify`, greedily.

    Its verdict is read by protocol.grammar; a server that does not answer, or answers anything but a completion, gives none.
    Raises ConfigError when there is no server with a model at the start.
    """
    protocol, prompts = config.protocol, config.prompts
    # Above protocol.judge_timeout_s: it is the loop that gives a judge up.
    client = httpx.Client(base_url=protocol.judge_url, timeout=2 * protocol.judge_timeout_s)
    try:
        model = client.get("/models").raise_for_status().json()["data"][0]["id"]
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, LookupError, TypeError) as error:  # of JSON, of its form
        raise ConfigError(f"protocol.judge_url={protocol.judge_url!r}: no server with a model answers there ({error})") from None

    def ask(trajectory: Trajectory) -> Verdict | None:
        said = [prompts.question.replace("{question}", trajectory.question), trajectory.answers()[-1].text, prompts.verify]
        messages = [{"role": role, "content": text} for role, text in zip(("user", "assistant", "user"), said, strict=True)]
        asked = {"model": model, "messages": messages, "temperature": 0, "max_tokens": config.rollout.max_verdict_tokens}
        try:
            reply = client.post("/chat/completions", json=asked).raise_for_status().json()
            return only_verdict(reply["choices"][0]["message"]["content"], protocol.grammar)
        except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:  # of JSON, or of its form
            log.warning("no verdict on %s: %r", trajectory.id, error)
            return None

    return in_threads(ask, min(MOST_CALLS, config.rollout.max_sequences))


def reward_model(config: Config) -> Judge:
    """The outcome reward model in the folder protocol.judge: a positive score of the last answer is the verdict "correct".

    It runs in an actor of this worker's own, which takes what a learner takes. Raises ConfigError when it does not start.
    """
    learner, limit = config.learner, config.rollout.start_timeout_s
    actor = ray.remote(RewardModel).options(num_cpus=learner.cpus, num_gpus=learner.gpus, label_selector=learner.nodes)
    scorer = actor.remote(config.protocol.judge, config)
    try:
        ray.get(scorer.ready.remote(), timeout=limit)
    except GetTimeoutError:
        raise ConfigError(f"rollout.start_timeout_s={limit:g}: the reward model {config.protocol.judge} did not start") from None
    except RayError as error:
        raise ConfigError(f"protocol.judge={config.protocol.judge}: {error}") from None
    return of_calls(
        lambda trajectory: scorer.score.remote(trajectory.prompt_token_ids, trajectory.answers()[-1].token_ids),
        lambda score: Verdict.CORRECT if score > 0 else Verdict.WRONG,
    )


JUDGES: dict[str, Callable[[Config], Judge]] = {"served": served}


def named_judge(config: Config) -> Callable[[Config], Judge]:
    """What protocol.judge means: the folder of a reward model, or a function from the configuration to a judge.

    Raises ConfigError for what is neither.
    """
    judge = config.protocol.judge
    if "/" not in judge:
        return look_up("protocol.judge", judge, JUDGES)
    if not (Path(judge) / VALUE_HEAD).is_file():
        raise ConfigError(f"protocol.judge={judge}: no reward model: the folder has no {VALUE_HEAD}")
    return reward_model


def make_judges(config: Config, reward_actors: Sequence[ActorHandle]) -> dict[str, Judge]:
    """By the names that protocols ask for."""
    judges = {"gold": gold_judge(reward_actors, config.reward.answers == "stated")} if reward_actors else {}
    if config.protocol.judge:
        judges["judge"] = named_judge(config)(config)
    return judges


def check_judge(protocol: str, config: Config) -> None:
    """Raises ConfigError for a protocol that asks the judge of protocol.judge where that names none, or one of other tokens."""
    if not protocol.startswith("judged"):
        return
    if not config.protocol.judge:
        raise ConfigError(f"protocol {protocol} asks the judge that protocol.judge names, and it names none")
    if named_judge(config) is reward_model:
        check_tokens(config.protocol.judge, model_folder(config.model.path), "protocol.judge")
    if config.protocol.judge == "served" and not config.protocol.judge_url:
        raise ConfigError("protocol.judge=served asks the model behind protocol.judge_url, such as http://host:8000/v1")


def then(future: Future, function: Callable[[Any], Any]) -> Future:
    """A future of `function` of that future's result; errors pass through."""
    result: Future = Future()

    def settle(done: Future) -> None:
        try:
            result.set_result(function(done.result()))
        except Exception as error:
            result.set_exception(error)

    future.add_done_callback(settle)
    return result
