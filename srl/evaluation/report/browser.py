"""The trajectories of a run, packed so that the page can show any of them: filtered, turn by turn, token by token.

They are data, never markup: JSON, compressed with gzip, as base64 in a script element of a type that no browser runs. The page's
script unpacks it and writes every text with `textContent`.
"""

import base64
import gzip
import itertools
import json
from pathlib import Path
from typing import Any

import yaml

from srl.evaluation.metrics import TRANSITIONS, is_right, transition
from srl.evaluation.report.files import RunFiles
from srl.evaluation.report.markup import badge, escape, label, missing, number
from srl.protocols.chat import model_folder
from srl.trajectory import Trajectory, Turn, TurnKind, Verdict, from_record

MOST_BYTES = 3_000_000  # of packed trajectories
MOST_TRAJECTORIES = 5000
MOST_CHARACTERS = 20_000  # shown of one piece of text
STATIC = 6  # examples in the page itself: for print, and where scripts are off
CHANGE_KINDS = dict(zip(TRANSITIONS, ("kept", "bad", "ok", ""), strict=True))


def browser_section(run: RunFiles) -> str:
    if not run.samples:
        return missing("trajectories.jsonl is missing or empty.")
    items = choose([(label(record), *parsed(record)) for record in run.samples])
    vocabulary = pieces_of(run, {token for _, _, item in items for turn in item.turns for token in turn.token_ids})
    data, shown, detailed = pack(items, vocabulary)
    note = f"{shown:,} of {len(run.samples):,} in trajectories.jsonl, methods and transitions in turn"
    note += "." if detailed == shown else f"; {detailed:,} of them with their tokens."
    examples = "".join(example(*item) for item in items[:STATIC])
    return (
        f'<p class="note">{note}</p>\n<form class="filters" hidden></form>\n<div id="list">{examples}</div>\n'
        f'<script type="application/octet-stream" id="trajectories">{data}</script>\n'
    )


def parsed(record: dict[str, Any]) -> tuple[str, Trajectory]:
    trajectory = from_record({key: value for key, value in record.items() if key not in ("method", "benchmark")})
    return transition(trajectory), trajectory


def choose(items: list[tuple[str, str, Trajectory]]) -> list[tuple[str, str, Trajectory]]:
    """At most `MOST_TRAJECTORIES`, one of each (method, transition) in turn, so that the rare ones come first."""
    groups: dict[tuple[str, str], list] = {}
    for item in items:
        groups.setdefault(item[:2], []).append(item)
    rounds = itertools.zip_longest(*groups.values())
    return [item for turn in rounds for item in turn if item is not None][:MOST_TRAJECTORIES]


def pack(items: list[tuple[str, str, Trajectory]], vocabulary: dict[int, str]) -> tuple[str, int, int]:
    """(base64 of gzip of JSON, trajectories in it, how many of them with tokens), at most `MOST_BYTES` long.

    When all do not fit, tokens go first, then trajectories from the end, half of what is left at a time.
    """
    shown = detailed = len(items)
    while True:
        content = {
            "methods": sorted({item[0] for item in items}),
            "transitions": list(TRANSITIONS),
            "vocabulary": vocabulary,
            "items": [plain_item(*item, tokens=index < detailed) for index, item in enumerate(items[:shown])],
        }
        text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")
        data = base64.b64encode(gzip.compress(text, 6, mtime=0)).decode()
        if len(data) <= MOST_BYTES or shown <= 1:
            return data, shown, detailed
        detailed, shown = (detailed // 2, shown) if detailed > 50 else (0, shown // 2 if detailed == 0 else shown)


def plain_item(method: str, change: str, trajectory: Trajectory, *, tokens: bool) -> dict[str, Any]:
    return {
        "method": method,
        "change": change,
        "id": trajectory.id,
        "question": cut(trajectory.question),
        "gold": cut(trajectory.gold, 200),
        "stop": stop_words(trajectory),
        "reward": trajectory.reward,
        "tokens": trajectory.sampled_tokens(),
        "turns": [plain_turn(turn, right, tokens=tokens) for turn, right in with_truth(trajectory)],
    }


def stop_words(trajectory: Trajectory) -> str:
    return str(trajectory.stop_reason or "unfinished").replace("_", " ")


def with_truth(trajectory: Trajectory) -> list[tuple[Turn, bool]]:
    """Every turn with whether the last answer up to it is right."""
    found, right = [], False
    for turn in trajectory.turns:
        if turn.kind in (TurnKind.ATTEMPT, TurnKind.REVISION):
            right = is_right(turn)
        found.append((turn, right))
    return found


def plain_turn(turn: Turn, right: bool, *, tokens: bool) -> dict[str, Any]:
    """`logprobs` in hundredths of a nat, as positive whole numbers. A turn without tokens says how many there were."""
    found: dict[str, Any] = {"kind": turn.kind.value, "text": cut(turn.text), "count": len(turn.token_ids), "right": right}
    if turn.kind in (TurnKind.ATTEMPT, TurnKind.REVISION):
        found |= {"answer": None if turn.answer is None else cut(turn.answer, 200), "outcome": turn.outcome.replace("_", " ")}
    elif turn.kind is TurnKind.VERDICT and turn.verdict is not None:
        found |= {"verdict": turn.verdict.value}
    if turn.loss_weight:
        found["weight"] = turn.loss_weight
    if tokens:
        found |= {"ids": turn.token_ids, "logprobs": [round(-100 * value) for value in turn.logprobs]}
    return found


def cut(text: str, most: int = MOST_CHARACTERS) -> str:
    return text if len(text) <= most else f"{text[:most]} … ({len(text) - most:,} characters more)"


def pieces_of(run: RunFiles, ids: set[int]) -> dict[int, str]:
    """Text of single tokens, from the tokenizer of the run's checkpoints or of its model; {} if there is none here."""
    from tokenizers import Tokenizer

    path = ((yaml.safe_load(run.config) or {}).get("model") or {}).get("path", "") if run.config else ""
    folders = [*sorted((run.path / "checkpoints").glob("*")), Path(model_folder(str(path)))]
    files = [folder / "tokenizer.json" for folder in folders if (folder / "tokenizer.json").is_file()]
    if not files:
        return {}
    tokenizer = Tokenizer.from_file(str(files[0]))
    return {token: tokenizer.decode([token], skip_special_tokens=False) for token in sorted(ids)}


def example(method: str, change: str, trajectory: Trajectory) -> str:
    """One trajectory as HTML."""
    stop = escape(stop_words(trajectory))
    facts = f"gold {escape(cut(trajectory.gold, 200))} · stopped: {stop}"
    facts += "" if trajectory.reward is None else f" · reward {number(trajectory.reward, 'g')}"
    turns = "".join(example_turn(turn, right) for turn, right in with_truth(trajectory))
    return (
        f'<details class="trajectory"><summary>{badge(change.replace("->", " → "), CHANGE_KINDS[change])}<b>{escape(method)}</b> '
        f"<span>{escape(trajectory.question[:100])}</span></summary>"
        f'<p dir="auto">{escape(cut(trajectory.question, 2000))}</p><p class="note">{facts}</p>\n{turns}</details>\n'
    )


def example_turn(turn: Turn, right: bool) -> str:
    found = ""
    if turn.kind in (TurnKind.ATTEMPT, TurnKind.REVISION):
        found = (
            badge(turn.outcome.replace("_", " "), "ok" if right else "bad") + f"answer {escape(cut(str(turn.answer), 200))} · "
        )
    elif turn.kind is TurnKind.VERDICT and turn.verdict is not None:
        agrees = right is (turn.verdict is Verdict.CORRECT)
        found = badge(f"says {turn.verdict}", "ok" if agrees else "bad") + ("rightly · " if agrees else "mistakenly · ")
    head = f"<header><b>{turn.kind.value}</b> {found}{len(turn.token_ids)} tokens</header>"
    return f'<div class="turn {turn.kind.value}">{head}<pre dir="auto">{escape(cut(turn.text, 4000))}</pre></div>\n'
