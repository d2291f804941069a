"""How the ablations read their rows; the runs themselves are benchmarks."""

from benchmarks.ablations import SETS, cell, directions, table
from srl.config import load_config

ROWS = [
    {"set": name, "seed": 0, "size": 9, "verdict_correct": 90 + n, "verdict_wrong": 70 - n, "p_c2i": 5 * ("c2c" not in name)}
    for n, name in enumerate(["more wrong", "more wrong, c2c", "balanced", "balanced, c2c", "more correct", "more correct, c2c"])
]


def test_every_set_is_a_valid_configuration():
    for what in SETS:
        for settings in SETS[what].values():
            load_config("tiny.yaml", [*settings, "stage1.samples=x", "stage1.size=10"])


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
