"""What Prometheus makes of the rules and of the dashboard's queries, by its own promtool."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

MONITORING = Path(__file__).parents[1] / "cluster" / "monitoring"

pytestmark = pytest.mark.skipif(not shutil.which("promtool"), reason="promtool (Debian package prometheus) is not installed")


def test_prometheus_accepts_rules_and_dashboard_queries(tmp_path: Path):
    groups = yaml.safe_load((MONITORING / "rules.yaml").read_text())["spec"]
    panels = json.loads((MONITORING / "dashboard.json").read_text())["panels"]
    queries = [target["expr"].replace("$run", ".*") for panel in panels for target in panel["targets"]]
    groups["groups"].append({"name": "q", "rules": [{"record": f"q:{i}", "expr": query} for i, query in enumerate(queries)]})
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(groups))
    checked = subprocess.run(["promtool", "check", "rules", str(tmp_path / "rules.yml")], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_alarm_fires_the_alert_for_a_quarter_of_an_hour_and_counts_in_the_panel_also_the_first(tmp_path: Path):
    groups = yaml.safe_load((MONITORING / "rules.yaml").read_text())["spec"]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(groups))
    (annotations,) = [rule["annotations"] for rule in groups["groups"][0]["rules"] if rule.get("alert") == "SrlAlarm"]
    panels = json.loads((MONITORING / "dashboard.json").read_text())["panels"]
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    (panel,) = [query.replace("$run", ".*") for query in queries if "alarms_total" in query]
    labels = {"run": "r", "role": "driver", "WorkerId": "w"}
    alert = {
        "exp_labels": labels | {"severity": "warning"},
        "exp_annotations": {name: text.replace("{{ $labels.run }}", "r") for name, text in annotations.items()},
    }
    # The counter appears with the first alarm, at 5 min; the second comes at 40 min; at 45 min the process has ended.
    series = {"series": 'ray_srl_alarms_total{run="r",role="driver",WorkerId="w"}', "values": "_x29 1x209 2x29 stale"}
    fires = {"4m": False, "5m": True, "19m": True, "21m": False, "39m": False, "41m": True, "54m": True, "61m": False}
    counted = {"6m": 1, "30m": 1, "42m": 2, "70m": 1}
    test = {
        "interval": "10s",
        "input_series": [series],
        "alert_rule_test": [
            {"eval_time": time, "alertname": "SrlAlarm", "exp_alerts": [alert] if firing else []}
            for time, firing in fires.items()
        ],
        "promql_expr_test": [
            {"expr": panel, "eval_time": time, "exp_samples": [{"labels": '{run="r"}', "value": value}]}
            for time, value in counted.items()
        ],
    }
    (tmp_path / "tests.yml").write_text(
        yaml.safe_dump({"rule_files": ["rules.yml"], "evaluation_interval": "30s", "tests": [test]})
    )
    checked = subprocess.run(["promtool", "test", "rules", str(tmp_path / "tests.yml")], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
