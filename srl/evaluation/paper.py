"""The paper's tables (arXiv 2502.19613): its numbers, and how a row comes about here. Data only.

Numbers are per cent, in the order of a table's columns; none where the paper's are not at hand. A `Source` names what has to
be trained (a key of VARIANTS; "" is the run itself), which model of that run is asked (`base`, `ift`, `rl`) and by which
protocol: "" is the run's own, and `{form}` becomes the form of `gold` and `misleading` that continues the model's own message.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Source:
    variant: str
    model: str
    protocol: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    label: str
    source: Source
    paper: tuple[float | None, ...] = ()


@dataclass(frozen=True, slots=True)
class Table:
    title: str
    columns: tuple[str, ...]  # keys of a results row; `p_c2i` comes from the misleading protocol
    rows: tuple[Row, ...]
    finding: str
    seeds: int = 1
    temperature: float | None = None  # None: evaluate.temperature
    left_out: str = ""


@dataclass(frozen=True, slots=True)
class Variant:
    """Another run that differs by these overrides. `samples`, `start`: stage-1 samples, IFT model of the main run."""

    overrides: tuple[str, ...]
    phases: tuple[str, ...]
    samples: bool = False
    start: bool = False
    recipe: str = ""


SET = ("stage1", "sft")
VARIANTS = {
    "raft": Variant(("stage1.recipe=raft",), SET, samples=True),
    "raft-plus": Variant(("stage1.recipe=raft_plus",), SET, samples=True),
    "balanced": Variant(("stage1.correct_share=0.5", "stage1.c2c_share=0"), SET, samples=True),
    "more-wrong": Variant(("stage1.correct_share=0.3", "stage1.c2c_share=0"), SET, samples=True),
    "more-correct": Variant(("stage1.correct_share=0.7", "stage1.c2c_share=0"), SET, samples=True),
    "balanced-c2c": Variant(("stage1.correct_share=0.5", "stage1.c2c_share=0.15"), SET, samples=True),
    "more-wrong-c2c": Variant(("stage1.correct_share=0.3", "stage1.c2c_share=0.15"), SET, samples=True),
    "more-correct-c2c": Variant(("stage1.correct_share=0.7", "stage1.c2c_share=0.15"), SET, samples=True),
    "dpo": Variant((), ("rl",), start=True, recipe="dpo"),
    "ppo": Variant((), ("rl",), start=True, recipe="ppo"),
    "single-turn-raft": Variant((), ("rl",), recipe="single-turn-raft"),
    "single-turn-dpo": Variant((), ("rl",), recipe="single-turn-dpo"),
    "single-turn-ppo": Variant((), ("rl",), recipe="single-turn-ppo"),
    "dpo-d1": Variant(("objective.pairs=[d1]",), ("rl",), start=True, recipe="dpo-typed"),
    "dpo-d2": Variant(("objective.pairs=[d2]",), ("rl",), start=True, recipe="dpo-typed"),
    "dpo-d12": Variant(("objective.pairs=[d1, d2]",), ("rl",), start=True, recipe="dpo-typed"),
    "dpo-d123": Variant(("objective.pairs=[d1, d2, d3]",), ("rl",), start=True, recipe="dpo-typed"),
}

TURNS = ("turn1", "final", "delta", "i2c", "c2i")
IFT, GOLD, MISLED = Source("", "ift"), Source("", "ift", "gold{form}"), "misleading{form}"


def mix_rows(*names: str) -> tuple[Row, ...]:
    """Each mix of stage-1 data with its own verdicts and with gold verdicts."""
    pairs = [(name.replace("-c2c", " + c2c").replace("more-", "more "), name) for name in names]
    own = [Row(label, Source(name, "ift")) for label, name in pairs]
    return tuple(own + [Row(f"{label}, gold verdicts", Source(name, "ift", "gold{form}")) for label, name in pairs])


TABLES = {
    3: Table(
        "Table 3: Qwen2.5-Math-7B-base on MATH500, greedy",
        TURNS,
        (
            Row("single-turn RAFT", Source("single-turn-raft", "rl", "attempt"), (77.0, 77.0)),
            Row("single-turn DPO", Source("single-turn-dpo", "rl", "attempt"), (76.8, 76.8)),
            Row("single-turn PPO", Source("single-turn-ppo", "rl", "attempt"), (79.4, 79.4)),
            Row("prompt with gold verdict", Source("", "base", "gold"), (65.4, 66.8, 1.4, 1.4, 0.0)),
            Row("intrinsic self-correction", Source("", "base", "intrinsic"), (65.4, 51.4, -14.0, 1.4, 15.4)),
            Row("RAFT for self-correction", Source("raft", "ift", "intrinsic"), (71.6, 70.4, -1.2, 5.0, 6.2)),
            Row("RAFT+ (with c2c)", Source("raft-plus", "ift", "intrinsic"), (72.0, 71.2, -0.8, 3.0, 3.8)),
            Row("self-rewarding IFT", IFT, (72.6, 77.2, 4.6, 5.0, 0.4)),
            Row("IFT + DPO", Source("dpo", "rl"), (72.8, 78.6, 5.8, 6.0, 0.2)),
            Row("IFT + PPO", Source("ppo", "rl"), (75.8, 80.2, 4.4, 4.8, 0.4)),
        ),
        "re-asking without a verdict loses, self-rewarding gains, RL gains more on both turns",
        temperature=0.0,
    ),
    4: Table(
        "Table 4: accuracy of verdicts on MATH500, greedy",
        ("verdict_correct", "verdict_wrong"),
        (
            Row("self-rewarding IFT", IFT, (93.0, 47.7)),
            Row("IFT + PPO", Source("ppo", "rl"), (98.6, 47.6)),
            Row("IFT + DPO", Source("dpo", "rl"), (92.0, 50.6)),
        ),
        "right answers are recognised far more often than wrong ones; RL moves verdicts towards “correct”",
        temperature=0.0,
    ),
    5: Table(
        "Table 5: Llama-3-8B-it on MATH, temperature 1, three seeds (the paper's column: final)",
        ("final", "turn1", "delta", "i2c", "c2i"),
        (
            Row("intrinsic self-correction", Source("", "base", "intrinsic"), (22.0,)),
            Row("RAFT for self-correction", Source("raft", "ift", "intrinsic"), (26.1,)),
            Row("RAFT+ (with c2c)", Source("raft-plus", "ift", "intrinsic"), (27.1,)),
            Row("self-rewarding IFT", IFT, (27.9,)),
            Row("self-rewarding IFT, gold verdicts", GOLD, (33.9,)),
        ),
        "intrinsic < RAFT < RAFT+ < self-rewarding < gold verdicts",
        seeds=3,
        temperature=1.0,
        left_out="the external reward model (26.2)",
    ),
    8: Table(
        "Table 8: mixes of stage-1 data",
        (*TURNS, "p_c2i", "verdict_correct", "verdict_wrong"),
        mix_rows("balanced", "more-wrong", "more-correct", "balanced-c2c", "more-wrong-c2c", "more-correct-c2c"),
        "more data with a correct first attempt biases verdicts to “correct”; c2c lowers p(c->i)",
    ),
    9: Table(
        "Table 9: multi-turn DPO by type of pair",
        (*TURNS, "verdict_correct", "verdict_wrong"),
        (
            Row("self-rewarding IFT", IFT),
            Row("M-DPO, D1", Source("dpo-d1", "rl")),
            Row("M-DPO, D2", Source("dpo-d2", "rl")),
            Row("M-DPO, D1+2", Source("dpo-d12", "rl")),
            Row("M-DPO, D1+2+3", Source("dpo-d123", "rl")),
        ),
        "the pair types train different habits; all three together do best",
        left_out="distillation of the second answer from a 70B teacher",
    ),
}
# Figure 2: MATH, Llama. (answers used per problem, accuracy).
SELF_REWARDING_AT = (26.4, 42.8)
INDEPENDENT_AT = (64.0, 40.4)
SAMPLES_PER_TRAJECTORY = {"MATH": 1.65, "GSM8K": 1.25}
