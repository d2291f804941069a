"""The data card of a stage-1 set: what was sampled, what left and why, what is trained. Pure functions of rows."""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from srl.config import Config
from srl.observe.run_directory import write_text
from srl.pipelines.classes import Row, attempt_of
from srl.trajectory import Outcome, TurnKind

# Name of a table -> its counts; adding them up gives the same for parts and whole.
Statistics = dict[str, Counter]

SHARES = "problems by share of right attempts"
EXAMPLES = 2  # of each class, in full


def add(total: Statistics, more: Mapping[str, Mapping[str, int]]) -> None:
    for name, counts in more.items():
        total.setdefault(name, Counter()).update(counts)


def problem_statistics(rows: Sequence[Row]) -> Statistics:
    """Of all samples of one problem."""
    found: Statistics = defaultdict(Counter)
    outcomes = {row["id"]: row["outcome"] for row in rows if row["kind"] == TurnKind.ATTEMPT}
    said: dict[str, list[str | None]] = defaultdict(list)
    for row in rows:
        kind, side = row["kind"], side_of(outcomes[attempt_of(row["id"])])
        found["counts"][f"{kind}s"] += 1
        found["counts"][f"{kind}s cut by the token budget"] += row["truncated"]
        found[f"tokens per {kind}"][bucket(len(row["token_ids"]))] += 1
        if kind == TurnKind.ATTEMPT:
            found["counts"][f"attempts {row['outcome']}"] += 1
        elif kind == TurnKind.VERDICT:
            said[row["parent"]].append(row["verdict"])
            found[f"verdicts on {side} attempts"][row["verdict"] or "no format"] += 1
            found["counts"]["verdicts without format" if row["verdict"] is None else "verdicts accepted"] += (
                row["verdict"] is None or row["accepted"]
            )
        else:
            found["counts"]["revisions accepted"] += row["accepted"]
            found[f"revisions of {side} attempts"][row["outcome"]] += 1
    for attempt, verdicts in said.items():
        if len(verdicts) > 1:
            alike = "all alike" if len(set(verdicts)) == 1 else "not all alike"
            found[f"verdicts of one {side_of(outcomes[attempt])} attempt"][alike] += 1
    problem = difficulty_of(rows)
    found[SHARES][tenth(problem["right"], problem["attempts"])] += 1
    return {name: +counts for name, counts in found.items()}


def bucket(tokens: int) -> str:
    """The least length in the same bar of a histogram: four bars from one power of two to the next, of 4 tokens at least."""
    width = bar_width(tokens)
    return str(tokens // width * width)


def bar_width(tokens: int) -> int:
    return max(4, 2 ** (tokens.bit_length() - 3))


def tenth(right: int, attempts: int) -> str:
    """The least share in the same bar of a histogram: ten bars, of which the last has those with all right too."""
    return f"{min(10 * right // attempts, 9) / 10:.1f}"


def histogram_bars(title: str, counts: Mapping[str, int]) -> dict[tuple[float, float], int]:
    """(from, to) -> count, of a table that is a histogram: of `SHARES`, or of tokens by `bucket`."""
    found: Counter = Counter()
    for least, count in counts.items():
        if title == SHARES:
            place = min(round(10 * float(least)), 9)  # cards of earlier versions have 1.0 apart
            found[place / 10, (place + 1) / 10] += count
        else:
            found[int(least), int(least) + bar_width(int(least))] += count
    return dict(found)


def side_of(outcome: str) -> str:
    return "correct" if outcome == Outcome.CORRECT else "wrong"


def difficulty_of(rows: Sequence[Row]) -> Row:
    """The difficulty record of a problem. A problem that got no more attempts because its quotas were full has fewer."""
    outcomes = [row["outcome"] for row in rows if row["kind"] == TurnKind.ATTEMPT]
    right = sum(outcome == Outcome.CORRECT for outcome in outcomes)
    return {"prompt_id": rows[0]["prompt_id"], "attempts": len(outcomes), "right": right, "share": right / len(outcomes)}


def demonstration_statistics(row: Row) -> Statistics:
    """Of one demonstration that is kept."""
    name, length = row["class"], len(row["token_ids"])
    trained = sum(weight > 0 for weight in row["weights"])
    return {
        "classes": Counter({name: 1}),
        "splits": Counter({f"{name} {row['split']}": 1}),
        "tokens": Counter({"all": length, "trained": trained, f"trained {name}": trained}),
        "tokens per demonstration": Counter({bucket(length): 1}),
    }


def data_card(
    config: Config, sampled: Statistics, dropped: Mapping[str, int], kept: Statistics, shown: Sequence[Row]
) -> dict[str, Any]:
    """Everything as numbers, and some demonstrations as text."""
    sampled, kept = dict(sampled), dict(kept)
    stage1 = config.stage1
    return {
        "counts": ordered(sampled.pop("counts", {})),
        "classes": ordered(kept.pop("classes", {})),
        "dropped": dict(dropped),
        "settings": {"protocol": config.protocol.name, "seed": config.run.seed, **stage1.model_dump(mode="json")},
        "tables": {name: ordered(counts) for name, counts in sorted({**sampled, **kept}.items())},
        "examples": list(shown),
    }


def ordered(counts: Mapping[str, int]) -> dict[str, int]:
    """Numbers by size, names by alphabet."""
    return dict(sorted(counts.items(), key=lambda item: (float(item[0]) if is_number(item[0]) else 0.0, item[0])))


def is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdigit()


def keep_example(shown: list[Row], row: Row) -> None:
    """Of each class the first ones."""
    if sum(other["class"] == row["class"] for other in shown) < EXAMPLES:
        shown.append({"id": row["id"], "class": row["class"], "messages": row["messages"]})


# --- for people


def write_card(card: Mapping[str, Any], folder: Path) -> None:
    """card.json for programs, card.md and card/*.svg for people."""
    write_text(folder / "card.json", json.dumps(card, indent=1))
    write_text(folder / "card.md", card_text(card))
    (folder / "card").mkdir(exist_ok=True)
    write_plots(card, folder / "card")


def card_text(card: Mapping[str, Any]) -> str:
    """The card as Markdown."""
    lines = ["# Stage-1 data", ""]
    tables = {"sampled": card["counts"], "left out": card["dropped"], "demonstrations": card["classes"], **card["tables"]}
    for title, counts in tables.items():
        total = sum(counts.values())
        # Kinds of samples and of tokens are no parts of one whole.
        shares = total > 0 and title not in ("sampled", "tokens")
        lines += [f"## {title}", "", "| | n | % |" if shares else "| | n |", "|---|---:|---:|" if shares else "|---|---:|"]
        lines += [f"| {name} | {n:,} |" + (f" {100 * n / total:.1f} |" if shares else "") for name, n in counts.items()]
        lines.append("")
    for shown in card["examples"]:
        lines += [f"## example of {shown['class']}: {shown['id']}", ""]
        for message in shown["messages"]:
            lines += [f"**{message['role']}**", "", "```"]
            lines += [f"{piece['text'].strip()}{'   <- trained' if piece['weight'] > 0 else ''}" for piece in message["pieces"]]
            lines += ["```", ""]
    lines += ["## settings", ""] + [f"- {name}: {value}" for name, value in card["settings"].items()]
    return "\n".join(lines) + "\n"


PLOTS = {
    "lengths": ("tokens per attempt", "tokens per verdict", "tokens per revision", "tokens per demonstration"),
    "difficulty": (SHARES,),
    "verdicts": ("verdicts on correct attempts", "verdicts on wrong attempts"),
    "mix": ("classes", "dropped"),
}


def write_plots(card: Mapping[str, Any], folder: Path) -> list[Path]:
    """One SVG per question: how long, how hard, do verdicts agree, which classes and why not more."""
    from matplotlib.figure import Figure

    files, tables = [], {"classes": card["classes"], "dropped": card["dropped"], **card["tables"]}
    for title, wanted in PLOTS.items():
        names = [name for name in wanted if tables.get(name)]
        if not names:
            continue
        figure = Figure(figsize=(3.2 * len(names), 2.6), layout="constrained")
        for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
            axes.barh(list(tables[name]), list(tables[name].values()), color="#2a68b0")
            axes.invert_yaxis()
            axes.set_title(name, fontsize=9)
            axes.tick_params(labelsize=7)
            axes.spines[["top", "right"]].set_visible(False)
        files.append(folder / f"{title}.svg")
        figure.savefig(files[-1])
    return files
