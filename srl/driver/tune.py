"""Temperature and threshold of stage-1 sampling by the balance score, on some of the training problems."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from srl.config import Config
from srl.driver.check import check_engines, check_start
from srl.driver.cluster import connect
from srl.driver.session import Session
from srl.observe.run_directory import RunDirectory, write_text
from srl.pipelines.balance_score import balance_score, judged_attempts
from srl.pipelines.sample import SamplingPass, sample
from srl.pipelines.samples import problems_in, sample_files
from srl.trajectory import TurnKind

COLUMNS = ["id", "prompt_id", "kind", "parent", "text", "outcome", "verdict"]


def tune_sampling(config: Config, temperatures: Sequence[float], problems: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Mean balance score for every temperature and threshold, best first; also written to stage1/tune.json.

    Attempts and verdicts are sampled as `stage1` says, without early stop; what is there from an earlier call is kept. `wanted`
    of the score is `stage1.per_prompt_and_class`; thresholds are the shares that `stage1.verdicts` verdicts can have.
    """
    check_engines(config)
    train = [problem for named in check_start(config, [])["train"].values() for problem in named][:problems]
    if len(train) < problems:
        say(f"{len(train)} problems: there are no more, or stage1.prompts={config.stage1.prompts} takes no more")
    run = RunDirectory(config)
    session = Session(config, run)
    scores = []
    try:
        with run.alone():
            connect(config)
            for temperature in temperatures:
                changes = {"temperature": temperature, "wave": config.stage1.attempts}
                tried = config.model_copy(update={"stage1": config.stage1.model_copy(update=changes)})
                folder = run.file(f"stage1/tune/{len(train)}-problems-temperature-{temperature:g}")
                steps = (TurnKind.ATTEMPT, TurnKind.VERDICT)
                sample(tried, train, session.rewards(), SamplingPass(folder, session.base, steps), lambda count: None)
                groups = [judged_attempts(rows) for file in sample_files(folder) for rows in problems_in(file, COLUMNS)]
                for count in range(config.stage1.verdicts + 1):
                    threshold = count / config.stage1.verdicts
                    score = sum(balance_score(g, threshold, config.stage1.per_prompt_and_class) for g in groups) / len(groups)
                    scores.append({"temperature": temperature, "threshold": threshold, "score": round(score, 4)})
                    say(f"temperature {temperature:<5g} threshold {threshold:<5.3g} balance score {score:.3f}")
    finally:
        session.close()
    found = {"problems": len(train), "scores": sorted(scores, key=lambda one: -one["score"])}
    write_text(run.file("stage1/tune.json"), json.dumps(found, indent=1))
    return found
