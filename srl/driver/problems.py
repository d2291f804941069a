"""The problems of a run, and whether its tokenizer can write them."""

from collections.abc import Iterable

from srl.config import Config, ConfigError
from srl.protocols.chat import Chat, model_folder
from srl.tasks.problems import Problem, chain_problems, load_problems, place_of


def load_task(config: Config) -> dict[str, dict[str, list[Problem]]]:
    """Problems by use: train and validation under one name, test by benchmark. Raises ConfigError naming file and row.

    Called before anything starts, so that bad data costs nothing.
    """
    task, wanted = config.task, config.stage1.prompts
    steps = (task.min_operations, task.max_operations)
    if task.name == "chains":
        rl_prompts = config.rl.prompts * config.rl.steps
        return {
            "train": {"chains": chain_problems("train", wanted, task.seed, *steps)},
            "rl": {"chains": chain_problems("train", rl_prompts, task.seed + 1, *steps)},
            "validation": {"chains": chain_problems("validation", config.evaluate.validation_problems, task.seed, *steps)},
            "test": load_tests(config),
        }
    keys = (task.question_key, task.answer_key)
    held_out = config.evaluate.validation_problems
    # No more than the phases can use: each gold is parsed here, and NuminaMath-CoT has 860,000. By chance: MATH begins with a
    # thousand of algebra.
    used = max(wanted, config.rl.prompts * config.rl.steps)
    train = load_problems(task.train, *keys, used + (0 if task.validation else held_out))
    if task.validation:
        validation = load_problems(task.validation, *keys, held_out)
    elif len(train) > held_out:
        validation, train = train[:held_out], train[held_out:]
    else:
        raise ConfigError(
            f"task.train={task.train} has {len(train)} problems, too few to hold out evaluate.validation_problems={held_out}"
        )
    return {
        "train": {"train": train[:wanted]}, "rl": {"train": train}, "validation": {"validation": validation},
        "test": load_tests(config),
    }  # fmt: skip


def shared(uses: dict[str, dict[str, list[Problem]]]) -> list[str]:
    """A sentence for each benchmark with questions that are trained on or validated with, word for word."""
    seen = {problem.prompt_id for use, own in uses.items() if use != "test" for some in own.values() for problem in some}
    counts = {name: sum(problem.prompt_id in seen for problem in tests) for name, tests in uses["test"].items()}
    return [
        f"{count} of {len(uses['test'][name])} problems of {name} are also trained on or validated with"
        for name, count in counts.items()
        if count
    ]


def load_tests(config: Config, only: str = "") -> dict[str, list[Problem]]:
    """The run's test problems by benchmark. Raises as `load_task`."""
    task, most = config.task, config.evaluate.problems
    if task.name == "chains":
        return {"chains": chain_problems("test", most, task.seed, task.min_operations, task.max_operations)}
    return {name: load_benchmark(source, config) for name, source in task.test.items() if only in ("", name)}


def load_benchmark(source: str, config: Config) -> list[Problem]:
    return load_problems(source, config.task.question_key, config.task.answer_key, config.evaluate.problems)


def places_of_tests(config: Config) -> dict[str, str]:
    """Where the run's benchmarks come from, by name; "" is made here."""
    return {"chains": ""} if config.task.name == "chains" else {name: place_of(s)[1] for name, s in config.task.test.items()}


def check_wording(config: Config, problems: Iterable[Problem]) -> None:
    """Raises ConfigError naming the setting, or the problem, whose text the tokenizer cannot write."""
    chat = Chat(model_folder(config.model.path), config.prompts)
    for name, text in config.prompts.model_dump().items():
        try:
            chat.encode(text.replace("{question}", ""))
        except ConfigError as error:
            raise ConfigError(f"prompts.{name}: {error}") from None
    for prompt_id, question in {problem.prompt_id: problem.question for problem in problems}.items():
        try:
            chat.opening(question)
        except ConfigError as error:
            raise ConfigError(f"problem {prompt_id}: {error}") from None
