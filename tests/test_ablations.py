"""How the ablations read their rows; the runs themselves are benchmarks."""

from benchmarks.ablations import SETS, cell, common_size, directions, table
from srl.config import load_config
from srl.pipelines.samples import write_block
from tests.demonstration_rows import family, row

ROWS = [
    {"set": name, "seed": 0, "size": 9, "verdict_correct": 90 + n, "verdict_wrong": 70 - n, "p_c2i": 5 * ("c2c" not in name)}
    for n, name in enumerate(["more wrong", "more wrong, c2c", "balanced", "balanced, c2c", "more correct", "more correct, c2c"])
]


def test_every_set_is_a_valid_configuration():
    for what in SETS:
        for settings in SETS[what].values():
            load_config("tiny.yaml", [*settings, "stage1.samples=x", "stage1.size=10"])


def test_sets_are_compared_at_the_size_that_all_of_them_reach(tmp_path):
    verdicts = [row("p/a0/v0", True, "wrong"), row("p/a0/v1", True, "correct")]
    rows = [row("p/a0", True), *verdicts, row("p/a0/v0/r0", True), *family(1, False, ["wrong"], [True])]
    rows = [r | {"token_ids": [], "logprobs": [], "seed": 0, "temperature": 1.0, "weights": ""} for r in rows]
    write_block(rows, {}, tmp_path / "block-00000.parquet")
    assert common_size(tmp_path, {"c2c": ["stage1.c2c_share=0.2"], "none": ["stage1.c2c_share=0"]}, []) == 2
    assert common_size(tmp_path, SETS["baselines"], []) == 1  # RAFT has the wrong attempt alone


def test_the_directions_of_table_8_are_decided_by_means_over_sets():
    assert directions("mixes", ROWS) == [
        "- holds: more correct-first data: verdicts on correct attempts more often right: verdict_correct 94.5 against 90.5",
        "- holds: more correct-first data: verdicts on wrong attempts less often right: verdict_wrong 69.5 against 65.5",
        "- holds: c2c lowers p(c->i): p_c2i 5.0 against 0.0",
    ]
    assert directions("mixes", [row | {"p_c2i": None} for row in ROWS])[2] == "- not measured: c2c lowers p(c->i)"
    assert directions("mixes", [row | {"verdict_correct": 50} for row in ROWS])[0].startswith("- FAILS")


def test_a_cell_is_the_mean_and_every_seed():
    assert cell([1.0, 2.0]) == "1.5 (1.0 / 2.0)" and cell([None, None]) == "-" and cell([None, 2.0]) == "2.0 (- / 2.0)"
    assert "| more wrong | 9 |" in table(ROWS) and "p_c2i" in table(ROWS)
