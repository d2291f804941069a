"""The paper's tables (arXiv 2502.19613): its numbers, and how a row comes about here. Data only.

Numbers are per cent, in the order of a table's columns; none where the paper's are not at hand. A `Source` names what has to
be trained (a key of VARIANTS; "" is the run itself), which model of that run is asked (`base`, `ift`, `rl`) and by which
protocol: "" is the run's own, and `{form}` becomes the form of `gold`, `misleading` and `judged` that continues the model's
own message. The judge of `judged` is the outcome reward model of the variant `orm`.
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
class Claim:
    """A direction that the paper found: the mean of a column over some rows is above that of another over others."""

    text: str
    higher: tuple[str, ...]  # labels of rows
    lower: tuple[str, ...]
    column: str = "final"
    lower_column: str = ""  # "": the same


@dataclass(frozen=True, slots=True)
class Table:
    title: str
    columns: tuple[str, ...]  # keys of a results row; `p_c2i` comes from the misleading protocol
    rows: tuple[Row, ...]
    claims: tuple[Claim, ...]
    seeds: int = 1  # of the samples, where one run is shown
    temperature: float | None = None  # None: evaluate.temperature


@dataclass(frozen=True, slots=True)
class Variant:
    """Another run that differs by these overrides. `samples`, `start`: stage-1 samples, IFT model of the main run.

    `teacher` is the variant whose RL model writes the revisions of stage 1.
    """

    overrides: tuple[str, ...]
    phases: tuple[str, ...]
    samples: bool = False
    start: bool = False
    recipe: str = ""
    teacher: str = ""


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
    # The head starts at zero and has one number per answer to learn from: more passes, as fast as a critic.
    "orm": Variant(("sft.epochs=10", "sft.learning_rate=2e-3"), ("orm",), samples=True),
    "distillation": Variant(("stage1.teacher_writes=revision",), SET, teacher="ppo"),
}

TURNS = ("turn1", "final", "delta", "i2c", "c2i")
VERDICTS = ("verdict_correct", "verdict_wrong")
IFT, GOLD = Source("", "ift"), Source("", "ift", "gold{form}")
SELF, RAFT, RAFT_PLUS = "self-rewarding IFT", "RAFT for self-correction", "RAFT+ (with c2c)"
INTRINSIC, PPO, DPO, ORM = "intrinsic self-correction", "IFT + PPO", "IFT + DPO", "prompt with external ORM"
MIXES = ("balanced", "more-wrong", "more-correct", "balanced-c2c", "more-wrong-c2c", "more-correct-c2c")


def mix_label(name: str) -> str:
    return name.replace("-c2c", " + c2c").replace("more-", "more ")


def mix_rows(*names: str) -> tuple[Row, ...]:
    """Each mix of stage-1 data with its own verdicts and with gold verdicts."""
    own = [Row(mix_label(name), Source(name, "ift")) for name in names]
    return tuple(own + [Row(f"{mix_label(name)}, gold verdicts", Source(name, "ift", "gold{form}")) for name in names])


def some(*parts: str, without: str = "nothing") -> tuple[str, ...]:
    """Labels of the mixes whose name has all of these parts."""
    return tuple(mix_label(name) for name in MIXES if all(part in name for part in parts) and without not in name)


TABLES = {
    3: Table(
        "Table 3: Qwen2.5-Math-7B-base on MATH500, greedy",
        TURNS,
        (
            Row("single-turn RAFT", Source("single-turn-raft", "rl", "attempt"), (77.0, 77.0)),
            Row("single-turn DPO", Source("single-turn-dpo", "rl", "attempt"), (76.8, 76.8)),
            Row("single-turn PPO", Source("single-turn-ppo", "rl", "attempt"), (79.4, 79.4)),
            Row("prompt with gold verdict", Source("", "base", "gold"), (65.4, 66.8, 1.4, 1.4, 0.0)),
            Row(INTRINSIC, Source("", "base", "intrinsic"), (65.4, 51.4, -14.0, 1.4, 15.4)),
            Row(RAFT, Source("raft", "ift", "intrinsic"), (71.6, 70.4, -1.2, 5.0, 6.2)),
            Row(RAFT_PLUS, Source("raft-plus", "ift", "intrinsic"), (72.0, 71.2, -0.8, 3.0, 3.8)),
            Row(SELF, IFT, (72.6, 77.2, 4.6, 5.0, 0.4)),
            Row(DPO, Source("dpo", "rl"), (72.8, 78.6, 5.8, 6.0, 0.2)),
            Row(PPO, Source("ppo", "rl"), (75.8, 80.2, 4.4, 4.8, 0.4)),
        ),
        (
            Claim("asking again without a verdict loses", (INTRINSIC,), (INTRINSIC,), "turn1", "final"),
            Claim("self-rewarding IFT gains by correcting itself", (SELF,), (SELF,), "final", "turn1"),
            Claim("it ends above both baselines without verdicts", (SELF,), (RAFT, RAFT_PLUS)),
            Claim("c2c data lowers c->i without verdicts", (RAFT,), (RAFT_PLUS,), "c2i"),
            Claim("DPO raises the final answer", (DPO,), (SELF,)),
            Claim("PPO raises the final answer", (PPO,), (SELF,)),
            Claim("PPO raises the first attempt", (PPO,), (SELF,), "turn1"),
            Claim("PPO with correction ends above single-turn PPO", (PPO,), ("single-turn PPO",)),
        ),
        temperature=0.0,
    ),
    4: Table(
        "Table 4: accuracy of verdicts on MATH500, greedy",
        VERDICTS,
        (
            Row(SELF, IFT, (93.0, 47.7)),
            Row(PPO, Source("ppo", "rl"), (98.6, 47.6)),
            Row(DPO, Source("dpo", "rl"), (92.0, 50.6)),
        ),
        (
            Claim("right answers are recognised more often than wrong ones", (SELF,), (SELF,), *VERDICTS),
            Claim("PPO recognises right answers more often", (PPO,), (SELF,), "verdict_correct"),
            Claim("DPO recognises wrong answers more often", (DPO,), (SELF,), "verdict_wrong"),
        ),
        temperature=0.0,
    ),
    5: Table(
        "Table 5: Llama-3-8B-it on MATH, temperature 1, three seeds (the paper's column: final)",
        ("final", "turn1", "delta", "i2c", "c2i"),
        (
            Row(INTRINSIC, Source("", "base", "intrinsic"), (22.0,)),
            Row(ORM, Source("", "base", "judged"), (26.2,)),
            Row(RAFT, Source("raft", "ift", "intrinsic"), (26.1,)),
            Row(RAFT_PLUS, Source("raft-plus", "ift", "intrinsic"), (27.1,)),
            Row(SELF, IFT, (27.9,)),
            Row(f"{SELF}, gold verdicts", GOLD, (33.9,)),
        ),
        (
            Claim("an external ORM helps", (ORM,), (INTRINSIC,)),
            Claim("RAFT helps", (RAFT,), (INTRINSIC,)),
            Claim("c2c data helps it", (RAFT_PLUS,), (RAFT,)),
            Claim("self-rewarding IFT ends above RAFT+", (SELF,), (RAFT_PLUS,)),
            Claim("and above the external ORM", (SELF,), (ORM,)),
            Claim("gold verdicts would do better still", (f"{SELF}, gold verdicts",), (SELF,)),
        ),
        seeds=3,
        temperature=1.0,
    ),
    7: Table(
        "Table 7: the stage-1 model with its own verdicts, and with those of an outcome reward model trained on the same samples",
        (*TURNS, *VERDICTS),
        (
            Row("own verdicts", IFT),
            Row("external ORM", Source("", "ift", "judged{form}")),
            Row("gold verdicts", GOLD),
        ),
        (
            Claim("own verdicts end above those of the external ORM", ("own verdicts",), ("external ORM",)),
            Claim("gold verdicts are the bound", ("gold verdicts",), ("own verdicts", "external ORM")),
        ),
        temperature=1.0,
    ),
    8: Table(
        "Table 8: mixes of stage-1 data",
        (*TURNS, "p_c2i", *VERDICTS),
        mix_rows(*MIXES),
        (
            Claim("more correct-first data: verdict C rises", some("correct"), some("wrong"), "verdict_correct"),
            Claim("more correct-first data: verdict W falls", some("wrong"), some("correct"), "verdict_wrong"),
            Claim("c2c lowers p(c->i)", some(without="c2c"), some("c2c"), "p_c2i"),
        ),
    ),
    9: Table(
        "Table 9: multi-turn DPO by type of pair, and revisions by a stronger model (here the PPO model)",
        (*TURNS, *VERDICTS),
        (
            Row(SELF, IFT),
            Row("M-DPO, D1", Source("dpo-d1", "rl")),
            Row("M-DPO, D2", Source("dpo-d2", "rl")),
            Row("M-DPO, D1+2", Source("dpo-d12", "rl")),
            Row("M-DPO, D1+2+3", Source("dpo-d123", "rl")),
            Row("distillation", Source("distillation", "ift")),
        ),
        (
            Claim("D1 raises the final answer", ("M-DPO, D1",), (SELF,)),
            Claim("D1+2+3 raises the final answer", ("M-DPO, D1+2+3",), (SELF,)),
            Claim("distillation raises the first attempt", ("distillation",), (SELF,), "turn1"),
            Claim("distillation does not raise i->c", (SELF,), ("distillation",), "i2c"),
            Claim("distillation recognises right answers less often", (SELF,), ("distillation",), "verdict_correct"),
        ),
    ),
}
# Figure 1: the run whose validation it shows. Figure 2: MATH, Llama. (answers used per problem, accuracy).
FIGURE_1 = "ppo"
SELF_REWARDING_AT = (26.4, 42.8)
INDEPENDENT_AT = (64.0, 40.4)
SAMPLES_PER_TRAJECTORY = {"MATH": 1.65, "GSM8K": 1.25}
