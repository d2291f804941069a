"""From samples to demonstrations: D1, D2 and D3 (paper, section 3.1) with the loss weights of equation 1.

D1   wrong attempt, verdict "wrong", correct revision      trained: verdict, revision
D2   correct attempt, verdict "wrong", correct revision    trained: revision
D3   correct attempt, verdict "correct"                    trained: verdict, and the attempt for stability

The baselines `raft` and `raft_plus` are made of the same samples without verdicts: attempt, a request to try again, revision
(D1 alone, or D1 and D2), trained on the revision.
"""

import hashlib
import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from srl.config import Config, ConfigError, Stage1Config
from srl.learner.batch import Example, weighted_example
from srl.pipelines.card import (
    Statistics,
    add,
    data_card,
    demonstration_statistics,
    difficulty_of,
    keep_example,
    problem_statistics,
)
from srl.pipelines.classes import CLASSES, Candidate, Row, attempt_of, candidates
from srl.pipelines.examples import Examples
from srl.pipelines.render import messages, reads_as_made, render, words
from srl.pipelines.samples import ROWS_PER_GROUP, problems_in, sample_files
from srl.protocols.chat import Chat, model_folder
from srl.trajectory import Trajectory

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("prompt_id", pa.string()),
        ("class", pa.string()),
        ("split", pa.string()),
        ("text", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("weights", pa.list_(pa.float32())),
        # The same as others read it: what was said and answered, an answer in pieces with the weight of each.
        (
            "messages",
            pa.list_(
                pa.struct(
                    [
                        ("role", pa.string()),
                        ("pieces", pa.list_(pa.struct([("kind", pa.string()), ("text", pa.string()), ("weight", pa.float32())]))),
                    ]
                )
            ),
        ),
    ]
)
COLUMNS = [
    "id", "prompt_id", "question", "gold", "kind", "parent", "text", "token_ids", "truncated", "answer", "outcome", "verdict",
    "accepted",
]  # fmt: skip


# Settings to look at when most attempts left for a reason that ends so.
REMEDIES = {
    "cut by the token budget": "rollout.max_attempt_tokens",
    "no verdict has the form": "prompts.verify, which should ask for words of protocol.grammar, and rollout.max_verdict_tokens",
    "no verdict agrees": "prompts.verify and stage1.verdicts",
    "too few of its verdicts agree": "stage1.agreement",
    "no revision is right": "prompts.revise and stage1.wrong_revisions",
    "read otherwise than sampled": "prompts.joiner",
    "longer than model.max_length": "model.max_length",
}
LIGHT = ["id", "prompt_id", "class"]


def rank(seed: int, name: str) -> bytes:
    """A random but reproducible order that does not depend on how rows arrive."""
    return hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()


def choose(rows: Sequence[Row], stage1: Stage1Config, seed: int, grammar: str) -> tuple[list[Candidate], Counter]:
    """Demonstrations from one problem's samples, and how many attempts left for which reason.

    At most one per attempt, at most `per_prompt_and_class` of each class, none that says the same as another. A correct attempt
    that could be D2 is D3 when D2 is full or not wanted. What D3 then has room for are spares: the D3 of attempts chosen for D2,
    which `balance` takes instead where the mix has no use for that D2.
    """
    children: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: rank(seed, row["id"])):
        children[row["parent"]].append(row)
    wanted = wanted_classes(stage1)
    chosen, spares, taken, said, reasons = [], [], Counter(), set(), Counter()

    def is_new(candidate: Candidate) -> bool:
        return words(candidate[1], stage1.recipe, grammar) not in said

    def is_open(candidate: Candidate) -> bool:
        return taken[candidate[0]] < stage1.per_prompt_and_class

    def take(candidate: Candidate) -> None:
        taken[candidate[0]] += 1
        said.add(words(candidate[1], stage1.recipe, grammar))
        chosen.append(candidate)

    for attempt in children[""]:
        found, reason = candidates(attempt, children, stage1.agreement)
        usable = [candidate for candidate in found if candidate[0] in wanted]
        new = [candidate for candidate in usable if is_new(candidate)]
        open_ones = [candidate for candidate in new if is_open(candidate)]
        if open_ones:
            take(open_ones[0])
            spares += open_ones[1:]
        elif usable and not new:
            reasons[f"{usable[-1][0]}: duplicate"] += 1
        elif usable:
            reasons[f"{usable[-1][0]}: cap per problem"] += 1
        else:
            reasons[reason or f"{found[0][0]}: not wanted in this set"] += 1
    for spare in spares:
        if is_new(spare) and is_open(spare):
            take(spare)
    return chosen, reasons


def wanted_classes(stage1: Stage1Config) -> set[str]:
    if stage1.recipe == "raft":
        return {"D1"}
    with_c2c = {"D2"} if stage1.c2c_share > 0 else set()
    return {"D1"} | with_c2c | ({"D3"} if stage1.recipe == "ift" else set())


def balance(classes: Sequence[str], ids: Sequence[str], stage1: Stage1Config, seed: int) -> list[int]:
    """Indices to keep: `counts_to_keep` of each class, chosen by a rank of their ids, one of each attempt.

    D2 are first those without a spare, so that as many attempts as possible can be used.
    """
    attempts = [attempt_of(name) for name in ids]
    by_class: dict[str, list[int]] = {name: [] for name in CLASSES}
    for index in sorted(range(len(ids)), key=lambda index: rank(seed, ids[index])):
        by_class[classes[index]].append(index)
    found = {name: {attempts[index] for index in indices} for name, indices in by_class.items()}
    keep = counts_to_keep(found, stage1)
    c2c = sorted(by_class["D2"], key=lambda index: attempts[index] in found["D3"])[: keep["D2"]]
    used = {attempts[index] for index in c2c}
    unused = [index for index in by_class["D3"] if attempts[index] not in used]
    return sorted(by_class["D1"][: keep["D1"]] + c2c + unused[: keep["D3"]])


def counts_to_keep(found: Mapping[str, Set[str]], stage1: Stage1Config) -> dict[str, int]:
    """The largest mix with the wanted shares, `size` at most. `found` are the attempts that can give each class.

    `ift`: `correct_share` of all start with a correct attempt, at most `c2c_share` are D2. `raft`: D1 alone. `raft_plus`: D1
    and at most `c2c_share` D2.
    """
    largest = stage1.size or float("inf")
    d1, d2, d3 = (len(found[name]) for name in CLASSES)
    if stage1.recipe != "ift":
        share = stage1.c2c_share if stage1.recipe == "raft_plus" else 0.0
        c2c = min(d2, int(share * min(d1 / (1 - share), largest)))
        return {"D1": int(min(d1, largest - c2c)), "D2": c2c, "D3": 0}
    share, c2c_share = stage1.correct_share, min(stage1.c2c_share, stage1.correct_share)
    total = min(largest, d1 / (1 - share), len(found["D2"] | found["D3"]) / share)
    if c2c_share < share:
        # D3 must fill what D2 may not.
        total = min(total, d3 / (share - c2c_share))
    total = int(total + 1e-9)  # 99.99... of a division is 100
    wrong, c2c = round(total * (1 - share)), min(d2, int(c2c_share * total))
    return {"D1": wrong, "D2": c2c, "D3": total - wrong - c2c}


def count_attempts(ids: Iterable[str]) -> int:
    return len({attempt_of(name) for name in ids})


class Assembler:
    """Ray Data's actor: all candidates of one file of samples to a file of demonstrations, and what there is to say of them."""

    def __init__(self, config: Config, folder: Path):
        self.config, self.folder = config, folder
        self.chat = Chat(model_folder(config.model.path), config.prompts)

    def __call__(self, item: dict[str, str]) -> dict[str, Any]:
        file, dropped = Path(item["path"]), Counter()
        statistics: Statistics = {}
        difficulty = []
        with pq.ParquetWriter(self.folder / file.name, SCHEMA) as writer:
            for rows in problems_in(file, COLUMNS):
                chosen, reasons = choose(rows, self.config.stage1, self.config.run.seed, self.config.protocol.grammar)
                dropped += reasons
                add(statistics, problem_statistics(rows))
                difficulty.append(difficulty_of(rows))
                made = [render(*candidate, self.config, self.chat) for candidate in chosen]
                readable = [one for one in made if reads_as_made(one, self.chat, self.config.protocol.grammar)]
                found = [self.demonstration(trajectory) for trajectory in readable]
                fitting = [row for row in found if len(row["token_ids"]) <= self.config.model.max_length]
                # Attempts are counted: one with a spare leaves when both do.
                read = count_attempts(row["id"] for row in found)
                dropped["read otherwise than sampled"] += count_attempts(one.id for one in made) - read
                dropped["longer than model.max_length"] += read - count_attempts(row["id"] for row in fitting)
                if fitting:
                    writer.write_table(pa.Table.from_pylist(fitting, schema=SCHEMA))
        return {"found": json.dumps({"dropped": dropped, "statistics": statistics, "difficulty": difficulty})}

    def demonstration(self, trajectory: Trajectory) -> Row:
        example = weighted_example(trajectory)
        return {
            "id": trajectory.id,
            "prompt_id": trajectory.prompt_id,
            "class": trajectory.id.rpartition("/")[2],
            "text": self.chat.decode(example.token_ids),
            "token_ids": example.token_ids,
            "weights": example.weights,
            "messages": messages(trajectory, self.chat),
        }


def assemble(config: Config, samples: Path, target: Path) -> tuple[dict[str, Any], list[Row]]:
    """Write the demonstrations of all sample files to one Parquet file; returns the data card and every problem's difficulty.

    Raises ConfigError when a class that the mix needs has no trajectory at all, and for samples of another tokenizer.
    """
    files, parts = sample_files(samples), target.with_suffix(".parts")
    check_tokenizer(files[0], Chat(model_folder(config.model.path), config.prompts))
    shutil.rmtree(parts, ignore_errors=True)
    parts.mkdir(parents=True)
    dataset = ray.data.from_items([{"path": str(path)} for path in files], override_num_blocks=len(files)).map(
        Assembler,
        fn_constructor_args=(config, parts),
        num_cpus=config.reward.cpus,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=config.reward.workers),
    )
    found = [json.loads(row["found"]) for row in dataset.take_all()]
    statistics, dropped = {}, Counter()
    for one in found:
        add(statistics, one["statistics"])
        dropped.update(one["dropped"])
    light = [row for file in sorted(parts.iterdir()) for row in pq.read_table(file, columns=LIGHT).to_pylist()]
    kept = {
        light[index]["id"]
        for index in balance([row["class"] for row in light], [row["id"] for row in light], config.stage1, config.run.seed)
    }
    if not kept:
        classes, reasons = dict(Counter(row["class"] for row in light)), {name: n for name, n in dropped.items() if n}
        found = f"classes {classes}, dropped {reasons}"
        raise ConfigError(f"stage1: no demonstrations from {len(files)} sample files: {found}; {remedy(reasons)}")
    dropped["balance of the mix"] += count_attempts(row["id"] for row in light) - len(kept)
    splits = split_of({row["prompt_id"] for row in light if row["id"] in kept}, config)
    shown, examples = write_demonstrations(demonstrations(parts, kept), splits, target)
    shutil.rmtree(parts)
    card = data_card(config, statistics, {name: n for name, n in sorted(dropped.items()) if n}, shown, examples)
    return card, sorted((row for one in found for row in one["difficulty"]), key=lambda row: row["prompt_id"])


def remedy(dropped: Mapping[str, int]) -> str:
    """What to set, when attempts left for these reasons and none stayed."""
    most = max(dropped, key=lambda reason: dropped[reason], default="")
    settings = next((settings for end, settings in REMEDIES.items() if most.endswith(end)), "")
    return f"most left as {most!r}: see {settings}" if settings else "sample more with stage1.prompts or stage1.attempts"


def check_tokenizer(file: Path, chat: Chat) -> None:
    row = next(problems_in(file, ["prompt_id", "text", "token_ids"]))[0]
    if chat.decode(chat.without_end(row["token_ids"])) != row["text"]:
        raise ConfigError(f"{file}: its token ids do not read as its text, so these samples are of another tokenizer")


def split_of(prompts: set[str], config: Config) -> dict[str, str]:
    """Problems are split into train and validation as a whole, so that no question stands in both; at least one is held out."""
    order = sorted(prompts, key=lambda prompt: rank(config.run.seed, prompt))
    held_out = set(order[: max(1, round(config.stage1.validation_share * len(order)))])
    return {prompt: "validation" if prompt in held_out else "train" for prompt in order}


def demonstrations(parts: Path, kept: set[str]) -> Iterator[Row]:
    """The kept ones, in the order of the problems."""
    for file in sorted(parts.iterdir()):
        for batch in pq.ParquetFile(file).iter_batches(ROWS_PER_GROUP):
            yield from (row for row in batch.to_pylist() if row["id"] in kept)


def write_demonstrations(rows: Iterable[Row], splits: Mapping[str, str], target: Path) -> tuple[Statistics, list[Row]]:
    """One Parquet file that appears only when it is whole; returns what the data card says of the set, and examples."""
    partial, shown, examples, group = target.with_suffix(".partial"), {}, [], []
    with pq.ParquetWriter(partial, SCHEMA) as writer:
        for row in rows:
            group.append(row | {"split": splits[row["prompt_id"]]})
            add(shown, demonstration_statistics(group[-1]))
            keep_example(examples, group[-1])
            if len(group) == ROWS_PER_GROUP:
                writer.write_table(pa.Table.from_pylist(group, schema=SCHEMA))
                group = []
        writer.write_table(pa.Table.from_pylist(group, schema=SCHEMA))
    partial.rename(target)
    return shown, examples


def load_demonstrations(path: Path, split: str) -> Examples:
    table = pq.read_table(path, columns=["id", "token_ids", "weights"], filters=[("split", "=", split)])
    return Examples(table, lambda row: Example(row["id"], row["token_ids"], row["weights"]))
