"""The plain-text table of results."""

from srl.evaluation.table import format_table


def row(**changes) -> dict:
    return {
        "method": "IFT", "benchmark": "chains", "turn1": 40.0, "final": 40.0, "delta": 0.0, "i2c": 20.0, "c2i": 20.0,
        "verdict_correct": 50.0, "verdict_wrong": 66.67, "format_failures": 40.0, "samples_per_trajectory": 1.4,
        "tokens_per_trajectory": 19.0, "ci95": {"final": [10.0, 70.0]},
    } | changes  # fmt: skip


def test_table_fits_110_columns_and_loses_no_name():
    long = "intrinsic self-correction with a very long name indeed"
    table = format_table([row(), row(method=long, benchmark="olympiadbench", verdict_wrong=None)])
    assert max(map(len, table.splitlines())) <= 110
    assert {*long.split(), "olympiadbench"} <= set(table.split())
    assert "40.0 [" in table and "+0.0" in table and "66.7" in table and " - " in table


def test_table_columns_are_aligned():
    lines = format_table([row(), row(method="RL", tokens_per_trajectory=1234.0)]).splitlines()
    assert len({len(line) for line in lines[1:]}) == 1
