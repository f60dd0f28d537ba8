"""Clean probes on damaged windows: what is fitted on what, curves, and what the verdict says."""

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from cluster.errors import PlethoraError
from finetune.commands.robustness import Robustness, run
from finetune.evaluation import corrupt
from finetune.evaluation.kinds import Numbers
from finetune.evaluation.options import Options
from finetune.evaluation.results import Counts, Protocol
from finetune.evaluation.robustness import Apart, Damaged, DamagedRow, RobustnessResult, everywhere
from finetune.evaluation.rows import Row
from finetune.metrics import Difference
from finetune.probe import grouped_folds
from finetune.reports import robustness_report
from finetune.reports.sheet import write
from finetune.task import load_task
from tests.finetune import made
from tests.finetune.run import compare

KINDS = ["motion", "wander", "inverted"]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("out") / "damaged"


@pytest.fixture(scope="module")
def results(ray_session: Any, bundle: str, corpus: str, out: Path) -> dict[str, Any]:
    options = Options(cache=str(out.parent / "cache"))
    return write(run(Robustness([bundle], corpus, "heart_rate", str(out), KINDS, options)))


def rows(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in results["rows"]}


def test_clean_figures_are_those_that_compare_gives(
    results: dict[str, Any], bundle: str, corpus: str, out: Path, tmp_path: Path
) -> None:
    cache = str(out.parent / "cache")
    found = compare([bundle], corpus, ["heart_rate"], str(tmp_path), few_shot=False, cache=cache)
    alone = {row["name"]: row["metrics"] for row in found["tasks"][0]["rows"]}
    for name, row in rows(results).items():
        for metric, expected in alone[name].items():
            assert row["metrics"][metric] == pytest.approx(expected, nan_ok=True, rel=1e-6)


def test_damage_costs_what_it_should(results: dict[str, Any]) -> None:
    found = rows(results)
    for name, row in found.items():
        for kind, points in row["damaged"].items():
            assert [p["severity"] for p in points] == list(corrupt.KINDS[kind].severities)
            for p in points:
                apart = p["metrics"]["mae"]["value"] - row["metrics"]["mae"]["value"]
                assert p["change"]["value"] == pytest.approx(apart)
                if name in ("mean", "demographics"):  # they look at no signal
                    assert p["change"]["low"] == p["change"]["high"] == 0
    own = found["tiny (ppg)"]["damaged"]
    assert own["motion"][-1]["change"]["low"] > 0
    # the filter takes a wandering baseline away: far less is lost than to motion of the same size
    assert own["wander"][2]["change"]["value"] < 0.3 * own["motion"][-1]["change"]["value"]


def test_each_probe_learns_from_clean_windows_of_others_alone() -> None:
    rng = np.random.default_rng(0)
    n, conditions = 60, 3
    who = np.repeat([f"s{i}" for i in range(12)], 5)
    clean, y = rng.standard_normal((n, 4)), rng.standard_normal(n)
    x = np.concatenate([clean, clean + 5 * rng.standard_normal((n, 4)), -clean])
    folds = grouped_folds(who, 4, 0)
    many = Numbers(np.concatenate([y] * conditions))
    found = everywhere({"a": Row(x)}, many, who, folds, conditions, 0)
    assert found["a"].shape == found["mean"].shape == (conditions, n)
    for train, test in folds:
        scaler = StandardScaler().fit(clean[train])
        options = [Ridge(alpha=a).fit(scaler.transform(clean[train]), y[train]) for a in (0.1, 1, 10, 100)]
        for k in range(conditions):
            part = scaler.transform(x.reshape(conditions, n, 4)[k][test])
            expected = [model.predict(part) for model in options]
            assert any(np.allclose(found["a"][k, test], e) for e in expected)
            assert np.allclose(found["mean"][k, test], y[train].mean())


def test_tables_curves_and_every_figure_are_written(results: dict[str, Any], out: Path) -> None:
    names = {"robustness.md", "report.html", "robustness.csv", "results.json", "curves.png"}
    assert {p.name for p in out.iterdir()} == names
    html = (out / "report.html").read_text()
    assert all(f"{corrupt.KINDS[k].title} ({corrupt.KINDS[k].unit})" in html for k in KINDS)
    page = (out / "robustness.md").read_text()
    assert all(corrupt.KINDS[k].title in page for k in KINDS) and "Probes of clean windows" in page
    assert page.index(results["verdict"][0]) < page.index("### Motion")  # it is about all kinds
    with open(out / "robustness.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    mine = [v for v in lines if v["row"] == "handcrafted" and v["kind"] == "motion" and v["metric"] == "mae"]
    assert [float(v["severity"]) for v in mine] == list(corrupt.KINDS["motion"].severities)
    point = rows(results)["handcrafted"]["damaged"]["motion"][1]
    assert float(mine[1]["value"]) == pytest.approx(point["metrics"]["mae"]["value"])
    assert float(mine[1]["change_high"]) == pytest.approx(point["change"]["high"])


def point(severity: float, *change: float) -> Damaged:
    return Damaged(severity, {}, Difference(*change, p=0.01))


def apart(severity: float, *figures: float) -> Apart:
    return Apart(*figures, p=0.01, severity=severity)


def test_the_verdict_names_where_an_encoder_gives_way() -> None:
    damaged = {
        "motion": (point(0.5, 1, -1, 3), point(1, 2, 1, 3), point(2, 4, 3, 5)),
        "clipping": (point(0.1, 0, -1, 1),),
    }
    handcrafted = {
        "clean": (apart(0, -1, -2, -0.5),),
        "motion": (apart(1, 1, -1, 2), apart(2, 3, 1, 4)),
    }
    mean = {
        "clean": (apart(0, -5, -6, -4),),
        "motion": (apart(2, -1, -3, 1),),
        "clipping": (apart(0.1, -4, -5, -3),),
    }
    result = RobustnessResult(
        task=load_task("heart_rate"),
        classes=(),
        rows=(DamagedRow("e", "E", {}, damaged=damaged),),
        against={"e": {"handcrafted": handcrafted, "mean": mean}},
        kinds=corrupt.KINDS,
        counts=Counts(60),
        refused={},
        adapted=(),
        overlap=made.NO_OVERLAP,
        warnings=(),
        protocol=Protocol(5, 0, 2000),
        encoders={},
        corpus=made.CORPUS,
    )
    assert robustness_report.verdicts(result) == (
        "E loses surely: motion from 1 (+2.00 [+1.00, +3.00]); clipping no sure loss.",
        "E is worse than handcrafted features under motion 2.",
        "E no longer beats predicting the mean under motion 2.",
    )
    level = mean | {"clean": (apart(0, 1, -1, 2),)}
    last = robustness_report.verdicts(replace(result, against={"e": {"mean": level}}))[-1]
    assert "does not beat predicting the mean on clean windows" in last


def test_unknown_damage_is_one_clear_line(bundle: str, corpus: str, tmp_path: Path) -> None:
    with pytest.raises(PlethoraError, match="no damage 'rain'; there are motion, wander"):
        run(Robustness([bundle], corpus, "heart_rate", str(tmp_path), ["rain"]))
    with pytest.raises(PlethoraError, match="is retrieval: robustness takes numbers and classes"):
        run(Robustness([bundle], corpus, "identity", str(tmp_path)))
