"""Rules and dashboard: they parse, they speak when they should, and every metric that they name exists.

Prometheus' own promtool (Debian's package `prometheus`, or PROMTOOL) checks and tests the rules where it is.
"""

import json
import os
import re
import shutil
import subprocess
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from cluster.gauges import GAUGES, PREFIX

ROOT = Path(__file__).resolve().parents[2]
INFRA = ROOT / "infra"
PROMTOOL = os.environ.get("PROMTOOL") or shutil.which("promtool")
needs_promtool = pytest.mark.skipif(
    PROMTOOL is None, reason="no promtool: apt install prometheus, or set PROMTOOL"
)
OF_SERIES = {"run", "instance", "job", "alertname", "alertstate"}


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((INFRA / "prometheus/rules.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    return dict(json.loads((INFRA / "grafana/plethora.json").read_text()))


def expressions() -> dict[str, str]:
    """{where: PromQL} of every rule and every panel's target."""
    found = {rule.get("alert") or rule["record"]: rule["expr"] for rule in rules()}
    for panel in dashboard()["panels"]:
        found |= {f"panel {panel['title']} {t['refId']}": t["expr"] for t in panel["targets"]}
    return found


def test_every_metric_that_a_rule_or_a_panel_names_exists_with_its_labels() -> None:
    told = (Path(ray.__file__).parent / "dashboard/modules/reporter/reporter_agent.py").read_text()
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    for where, text in expressions().items():
        names = set(re.findall(r"\bray_[a-z0-9_]+", text))
        for name in names:
            ours = name.removeprefix(f"ray_{PREFIX}_")
            assert ours in GAUGES if ours != name else f'"{name.removeprefix("ray_")}"' in told, (where, name)
        assert set(re.findall(rf"\b{PREFIX}:\w+", text)) <= recorded, where
        known = OF_SERIES.union(
            *(GAUGES[n.removeprefix(f"ray_{PREFIX}_")].labels for n in names if PREFIX in n)
        )
        for labels in re.findall(r"\b(?:by|on) \(([^)]*)\)", text):
            assert set(labels.split(", ")) <= known, (where, labels)


def test_every_gauge_that_people_asked_for_has_a_panel() -> None:
    shown = " ".join(expressions().values())
    wanted = (
        "data_wait",
        "windows_per_s",
        "tokens_per_s",
        "loss",
        "codebook_usage",
        "mask_entropy",
        "refused_hours",
        "checkpoint_timestamp_seconds",
    )
    assert all(f"ray_{PREFIX}_{name}" in shown for name in wanted)
    assert [name for name in GAUGES if f"ray_{PREFIX}_{name}" not in shown] == []


@needs_promtool
def test_prometheus_takes_rules_and_configuration() -> None:
    for command in (["rules", "rules.yaml"], ["config", "prometheus.yml"]):
        done = subprocess.run(
            [str(PROMTOOL), "check", *command], cwd=INFRA / "prometheus", capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_each_alert_speaks_when_it_should_and_not_before() -> None:
    done = subprocess.run(
        [str(PROMTOOL), "test", "rules", "rules.test.yaml"],
        cwd=INFRA / "prometheus",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    tested = (INFRA / "prometheus/rules.test.yaml").read_text()
    # promtool has no way to write a series of NaN; the disk is Ray's own
    untested = {"LossNotFinite", "DiskNearlyFull"}
    assert {rule["alert"] for rule in rules() if "alert" in rule and rule["alert"] not in tested} == untested


@needs_promtool
def test_prometheus_parses_every_panel(tmp_path: Path) -> None:
    made = [
        {"record": f"panel:number_{i}", "expr": text.replace("$run", ".*")}
        for i, text in enumerate(expressions().values())
    ]
    (tmp_path / "panels.yaml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": made}]}))
    done = subprocess.run(
        [str(PROMTOOL), "check", "rules", str(tmp_path / "panels.yaml")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_says_what_is_wrong_and_what_to_do() -> None:
    for rule in rules():
        if "alert" in rule:
            assert rule["labels"]["severity"] in ("page", "warn", "info"), rule["alert"]
            assert set(rule["annotations"]) == {"summary", "remedy"}, rule["alert"]
            assert "{{ $labels." in rule["annotations"]["summary"], rule["alert"]


def test_panels_lie_side_by_side_under_one_data_source() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len({p["title"] for p in panels}) == len(panels)
    for panel in panels:
        at = panel["gridPos"]
        assert at["x"] >= 0 and at["x"] + at["w"] <= 24 and panel["fieldConfig"]["defaults"]["unit"]
        assert {t["datasource"]["uid"] for t in panel["targets"]} == {"${datasource}"}
        for target in panel["targets"]:  # a legend shows labels that its series have
            kept = re.findall(r"\bby \(([^)]*)\)", target["expr"])
            labels = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            assert not kept or labels <= set(kept[-1].split(", ")), (panel["title"], labels)
    for one, other in combinations([panel["gridPos"] for panel in panels], 2):
        apart_x = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        assert apart_x or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
    assert {v["name"] for v in dashboard()["templating"]["list"]} == {"datasource", "run"}
