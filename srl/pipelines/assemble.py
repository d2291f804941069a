"""From samples to demonstrations: D1, D2 and D3 (paper, section 3.1) with the loss weights of equation 1.

D1   wrong attempt, verdict "wrong", correct revision      trained: verdict, revision
D2   correct attempt, verdict "wrong", correct revision    trained: revision
D3   correct attempt, verdict "correct"                    trained: verdict, and the attempt for stability
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from srl.config import Config, ConfigError, Stage1Config
from srl.learner.batch import Example, weighted_example
from srl.protocols.chat import Chat, model_folder
from srl.trajectory import Outcome, Trajectory, Turn, TurnKind, Verdict

Row = dict[str, Any]

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("prompt_id", pa.string()),
        ("class", pa.string()),
        ("split", pa.string()),
        ("text", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("weights", pa.list_(pa.float32())),
    ]
)


def rank(seed: int, name: str) -> bytes:
    """A random but reproducible order that does not depend on how rows arrive."""
    return hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()


def choose(rows: Sequence[Row], stage1: Stage1Config, seed: int) -> tuple[list[tuple[str, list[Row]]], Counter]:
    """(class, samples along the path) for one problem's samples, and how many attempts left for which reason.

    At most one trajectory per attempt, at most `per_prompt_and_class` of each class.
    """
    children: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: rank(seed, row["id"])):
        children[row["parent"]].append(row)
    chosen, taken, reasons = [], Counter(), Counter()
    for attempt in children[""]:
        candidate, reason = path_from(attempt, children)
        if candidate is None:
            reasons[reason] += 1
        elif taken[candidate[0]] >= stage1.per_prompt_and_class:
            reasons[f"{candidate[0]}: cap per problem"] += 1
        else:
            taken[candidate[0]] += 1
            chosen.append(candidate)
    return chosen, reasons


def path_from(attempt: Row, children: dict[str, list[Row]]) -> tuple[tuple[str, list[Row]] | None, str]:
    """The trajectory that starts with this attempt, or the reason why there is none."""
    if attempt["outcome"] == Outcome.TIMEOUT:
        return None, "attempt: not graded in time"
    right = attempt["outcome"] == Outcome.CORRECT
    verdicts = children[attempt["id"]]
    told_wrong = [v for v in verdicts if v["verdict"] == Verdict.WRONG]
    corrected = [[attempt, v, r] for v in told_wrong for r in children[v["id"]] if r["accepted"]]
    if right:
        if corrected:
            return ("D2", corrected[0]), ""
        agreeing = [v for v in verdicts if v["accepted"]]
        return (("D3", [attempt, agreeing[0]]), "") if agreeing else (None, "correct attempt: no verdict agrees")
    if not told_wrong:
        return None, "wrong attempt: no verdict agrees"
    return (("D1", corrected[0]), "") if corrected else (None, "wrong attempt: no revision is right")


def balance(classes: Sequence[str], ids: Sequence[str], stage1: Stage1Config, seed: int) -> list[int]:
    """Indices to keep so that `correct_share` of them start with a correct attempt and at most `c2c_share` are D2."""
    by_class: dict[str, list[int]] = defaultdict(list)
    for index in sorted(range(len(ids)), key=lambda index: rank(seed, ids[index])):
        by_class[classes[index]].append(index)
    wrong, right, c2c = (len(by_class[name]) for name in ("D1", "D3", "D2"))
    share, c2c_share = stage1.correct_share, min(stage1.c2c_share, stage1.correct_share)
    total = min(wrong / (1 - share), (right + c2c) / share)
    if c2c_share < share:
        # D3 must fill what D2 may not.
        total = min(total, right / (share - c2c_share))
    keep_c2c = min(c2c, int(c2c_share * total))
    keep = {"D1": round(total * (1 - share)), "D2": keep_c2c, "D3": round(total * share) - keep_c2c}
    return sorted(index for name, count in keep.items() for index in by_class[name][:count])


def render(name: str, path: Sequence[Row], config: Config, chat: Chat) -> Trajectory:
    """The sampled pieces joined token by token as the trained model is to write them.

    `long_chain`: one message, pieces separated by `prompts.joiner`. `two_turn`: attempt and verdict in one message, then the
    user's instruction, then the revision. The token that the model must write to go on belongs to the piece it leads to.
    """
    weights = {"D1": (0.0, 1.0, 1.0), "D2": (0.0, 0.0, 1.0), "D3": (float(config.stage1.train_correct_attempts), 1.0)}[name]
    trajectory = Trajectory(f"{path[-1]['id']}/{name}", path[0]["prompt_id"], path[0]["question"], path[0]["gold"], [])
    trajectory.prompt_token_ids = chat.opening(trajectory.question)
    two_turn = config.protocol.name == "two_turn"
    for index, (row, weight) in enumerate(zip(path, weights, strict=True)):
        ids = [token for token in row["token_ids"] if token not in chat.stop_ids]
        new_message = two_turn and index == 2
        if new_message:
            trajectory.turns.append(
                Turn(TurnKind.INSTRUCTION, chat.instruction(config.prompts.revise, chat.end_id), config.prompts.revise)
            )
        elif index > 0:
            ids = chat.joiner() + ids
        if index == len(path) - 1 or (two_turn and index == 1):
            ids = [*ids, chat.end_id]
        verdict = row["verdict"] and Verdict(row["verdict"])
        trajectory.turns.append(
            Turn(TurnKind(row["kind"]), ids, row["text"], answer=row["answer"], verdict=verdict, loss_weight=weight)
        )
    return trajectory


class Assembler:
    """Ray Data's actor: one file of samples, which holds whole problems, to demonstration rows and drop counts."""

    def __init__(self, config: Config):
        self.config = config
        self.chat = Chat(model_folder(config.model.path), config.prompts)

    def __call__(self, item: Row) -> Iterable[Row]:
        problems: dict[str, list[Row]] = defaultdict(list)
        columns = [
            "id",
            "prompt_id",
            "question",
            "gold",
            "kind",
            "parent",
            "text",
            "token_ids",
            "answer",
            "outcome",
            "verdict",
            "accepted",
        ]
        for row in pq.read_table(item["path"], columns=columns).to_pylist():
            problems[row["prompt_id"]].append(row)
        dropped: Counter = Counter()
        for rows in problems.values():
            chosen, reasons = choose(rows, self.config.stage1, self.config.run.seed)
            dropped += reasons
            for name, path in chosen:
                yield self.demonstration(name, path)
        for reason, count in dropped.items():
            yield {"id": reason, "prompt_id": "", "class": "dropped", "text": "", "token_ids": [count], "weights": []}

    def demonstration(self, name: str, path: Sequence[Row]) -> Row:
        trajectory = render(name, path, self.config, self.chat)
        example = weighted_example(trajectory)
        return {
            "id": trajectory.id,
            "prompt_id": trajectory.prompt_id,
            "class": name,
            "text": self.chat.decode(example.token_ids),
            "token_ids": example.token_ids,
            "weights": example.weights,
        }


def assemble(config: Config, samples: Path, target: Path) -> dict[str, Any]:
    """Write the demonstrations of all sample files to one Parquet file; returns the data card's numbers.

    Raises ConfigError when a class that the mix needs has no trajectory at all.
    """
    paths = sorted(str(path) for path in samples.glob("*.parquet"))
    dataset = ray.data.from_items([{"path": path} for path in paths]).flat_map(
        Assembler, fn_constructor_args=(config,), num_cpus=0.1, compute=ray.data.ActorPoolStrategy(size=1)
    )
    rows = dataset.take_all()
    dropped: Counter = Counter()
    for row in rows:
        if row["class"] == "dropped":
            dropped[row["id"]] += int(row["token_ids"][0])
    found = sorted((row for row in rows if row["class"] != "dropped"), key=lambda row: row["id"])
    kept = [
        found[index] for index in balance([r["class"] for r in found], [r["id"] for r in found], config.stage1, config.run.seed)
    ]
    too_long = [row for row in kept if len(row["token_ids"]) > config.model.max_length]
    kept = [row for row in kept if len(row["token_ids"]) <= config.model.max_length]
    if not kept:
        raise ConfigError(
            f"stage1: no demonstrations from {len(paths)} sample files: classes {dict(Counter(r['class'] for r in found))}, "
            f"dropped {dict(dropped)}; sample more with stage1.prompts or stage1.attempts"
        )
    write_demonstrations(kept, config, target)
    dropped["balance of the mix"] += len(found) - len(kept) - len(too_long)
    dropped["longer than model.max_length"] += len(too_long)
    classes = Counter(row["class"] for row in kept)
    return {"classes": dict(sorted(classes.items())), "dropped": {k: v for k, v in sorted(dropped.items()) if v}}


def write_demonstrations(rows: Sequence[Row], config: Config, target: Path) -> None:
    """Problems are split into train and validation as a whole, so that no question stands in both; at least one is held out."""
    prompts = sorted({row["prompt_id"] for row in rows}, key=lambda prompt: rank(config.run.seed, prompt))
    held_out = set(prompts[: max(1, round(config.stage1.validation_share * len(prompts)))])
    for row in rows:
        row["split"] = "validation" if row["prompt_id"] in held_out else "train"
    partial = target.with_suffix(".partial")
    pq.write_table(pa.Table.from_pylist(list(rows), schema=SCHEMA), partial)
    partial.rename(target)


def load_demonstrations(path: Path, split: str) -> list[Example]:
    rows = pq.read_table(path, filters=[("split", "=", split)]).to_pylist()
    return [Example(row["id"], row["token_ids"], row["weights"]) for row in rows]


def sample_counts(folder: Path) -> dict[str, int]:
    """How many samples of each kind there are, and how many of them are right, for the data card."""
    counts: Counter = Counter()
    for file in sorted(folder.glob("*.parquet")):
        table = pq.read_table(file, columns=["kind", "accepted", "outcome", "verdict"]).to_pylist()
        for row in table:
            counts[f"{row['kind']}s"] += 1
            if row["kind"] == TurnKind.ATTEMPT:
                counts[f"attempts {row['outcome']}"] += 1
            elif row["kind"] == TurnKind.VERDICT and row["verdict"] is None:
                counts["verdicts without format"] += 1
            elif row["accepted"]:
                counts[f"{row['kind']}s accepted"] += 1
    return dict(sorted(counts.items()))
