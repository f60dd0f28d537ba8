"""Every shipped task runs on made-up labels: a vector that knows the answer beats chance, one that does not
stays at it. Nothing here needs Ray or a recording.
"""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cluster.errors import PlethoraError
from datasets.schema import LABELS
from finetune import metrics
from finetune import task as tasks
from finetune.evaluation import choose, fewshot, people, table
from finetune.evaluation.kinds import Answer, Classes, Labels, Numbers
from finetune.evaluation.options import Options
from finetune.evaluation.table import outcome
from finetune.task import Task, load_task

PEOPLE, WINDOWS = 40, 2  # windows a record; two records a subject
NAMES = sorted(path.stem for path in tasks.FOLDER.glob("*.toml"))


def entrant(name: str = "a") -> Any:
    encoder = SimpleNamespace(
        signal=SimpleNamespace(rate=50.0), samples_step=10, min_s=2.0, short="reflect", pieces=lambda s: 1
    )
    return SimpleNamespace(
        encoder=encoder, name=name, label=name, twin=f"{name}, untrained", twin_label=f"{name}, untrained"
    )


def answers(task: Task, rng: np.random.Generator) -> list[Any]:
    """A label for each subject (a list of codes where there may be several)."""
    level = (rng.permutation(PEOPLE) / (PEOPLE - 1)).tolist()
    if task.kind == "regression":
        low, high = task.aggregate.valid or (0.0, 1.0)
        return [low + (high - low) * (0.3 + 0.4 * x) for x in level]
    if task.kind == "binary":
        words = next((v for v in task.values if v not in task.positives), "something else")
        other = words if isinstance(task.positives[0], str) else 0.0
        yes = task.positives[0] if isinstance(task.positives[0], str) else float(task.positives[0])
        return [yes if x > 0.5 else other for x in level]
    if task.kind == "multi-class":
        return [(task.values or ("af", "paced", "sinus"))[min(int(3 * x), 2)] for x in level]
    if task.kind == "multi-label":
        return [["I48.91"] * (x > 0.5) + ["E11.9"] * (x < 0.4) + ["none"] * (0.4 <= x <= 0.5) for x in level]
    return [None] * PEOPLE


def corpus_of(task: Task, values: list[Any], rng: np.random.Generator) -> tuple[pa.Table, pa.Table]:
    """Labels, and the windows' place, of a corpus with that label for every subject."""
    rows, labels = [], []
    for i, value in enumerate(values):
        for record in (f"s{i:02}_1", f"s{i:02}_2"):
            base = {"subject": f"s{i:02}", "record": record}
            each = [(task.label, v) for v in (value if isinstance(value, list) else [value]) if v is not None]
            each += [(w.label, w.equals) for w in task.where]
            if task.label != "age":
                each.append(("age", float(rng.integers(20, 90))))
            if task.label != "sex":
                each.append(("sex", "FM"[int(rng.integers(2))]))
            for name, v in each:
                text = isinstance(v, str)
                labels.append(
                    base
                    | {
                        "name": name,
                        "value": None if text else float(v),
                        "text": v if text else None,
                        "unit": task.unit if name == task.label else None,
                    }
                )
            starts = [task.until_s - task.window_s] if task.until_s else np.arange(WINDOWS) * task.window_s
            rows += [base | {"start_s": float(s), "verdict": "ok"} for s in starts]
    return pa.Table.from_pylist(labels, schema=LABELS), pa.Table.from_pylist(rows)


def windows_of(task: Task, labels: pa.Table, placed: pa.Table) -> choose.Windows:
    index: Any = SimpleNamespace(table=placed, corpus=SimpleNamespace(uri="made up", manifest={}))
    places = choose.Places(index, {"a": index}, None)
    return choose.choose_windows(places, task, labels, people.NOBODY, "b")


def knowing(values: list[Any], windows: choose.Windows, rng: np.random.Generator, dim: int = 4) -> np.ndarray:
    """(n, dim): noise, and in it each subject's answer (or, without one, itself)."""
    plain = ["+".join(v) if isinstance(v, list) else v for v in values]
    kinds = sorted({v for v in plain if v is not None}, key=str)
    sigma = {
        v: (v - np.mean(kinds)) / np.std(kinds) if isinstance(v, float) else k for k, v in enumerate(kinds)
    }
    own = rng.normal(size=(PEOPLE, dim))
    x = 0.3 * rng.normal(size=(len(windows.subject), dim))
    for i, name in enumerate(windows.subject):
        value = plain[int(name[1:])]
        if value is None:
            x[i] += own[int(name[1:])]
        else:
            x[i, kinds.index(value) % dim if isinstance(value, str) else 0] += float(
                3 if isinstance(value, str) else 2 * sigma[value]
            )
    return x


def run(task: Task, **options: Any) -> tuple[dict[str, Any], table.Outcome]:
    rng = np.random.default_rng(0)
    values = answers(task, rng)
    labels, placed = corpus_of(task, values, rng)
    windows = windows_of(task, labels, placed)
    vectors = {
        "a": knowing(values, windows, rng),
        "a, untrained": rng.normal(size=(len(windows.subject), 4)),
    }
    given = {"few_shot": False, "folds": 3} | options
    found = outcome([entrant()], task, labels, windows, vectors, {}, Options(**given))
    return {row["name"]: row["metrics"] for row in found.result.to_json()["rows"]}, found


@pytest.mark.parametrize("name", NAMES)
def test_a_vector_that_knows_the_answer_beats_chance_in_every_task(name: str) -> None:
    task = load_task(name)
    rows, found = run(task, folds=2)
    own, chance = rows["a"][task.main], rows["mean"][task.main]
    if task.kind == "regression":
        assert own["high"] < 0.5 * chance["low"]
    else:
        assert own["low"] > max(chance["high"], 0.4)
    counts = found.result.to_json()["counts"]
    expected = {"window": counts["windows"], "record": 2 * PEOPLE}.get(task.level, PEOPLE)
    assert counts["subjects"] == PEOPLE and counts["rows"] == expected == len(found.windows.subject)
    if len(found.predicted):
        assert set(found.predicted) == set(rows) - {n for n, m in rows.items() if not m}


def test_the_tasks_are_those_that_the_project_promises() -> None:
    promised = (
        "heart_rate respiration_rate spo2 sbp dbp hypertension diabetes age sex signal_quality alarm_truth "
        "rhythm af identity mortality lab_value diagnosis"
    )
    assert set(promised.split()) <= set(NAMES)


@pytest.mark.parametrize("kind", ["numbers", "two classes", "three classes", "labels"])
def test_permuted_labels_are_at_chance_within_the_interval(kind: str) -> None:
    """Vectors know the answer of another subject each time: the interval holds chance (nominal 95 %)."""
    at_chance, studies = 0, 6 if kind == "labels" else 12
    for seed in range(studies):
        rng = np.random.default_rng([seed, 7])
        who = np.repeat(np.arange(60), 3)
        own = rng.normal(size=60)
        x = own[rng.permutation(60)][who][:, None] + 0.1 * rng.normal(size=(180, 3))
        y = own[who]
        answer: Answer = Numbers(y)
        if kind == "labels":
            answer = Labels(np.stack([y > 0, y > 0.5], axis=1).astype(float), ["a", "b"])
        elif kind != "numbers":
            cuts = [0.0] if kind == "two classes" else [-0.4, 0.4]
            answer = Classes(np.digitize(y, cuts).astype(float), "abc"[: len(cuts) + 1])
        folds = answer.folds(who, 3, seed)
        base, p = answer.baseline(folds).predicted, answer.linear(x, who, folds, seed).predicted
        weights = metrics.draw_weights(60, 500, seed)
        drawn = answer.drawn(p, base, who, weights)
        if kind == "numbers":
            against = answer.drawn(base, base, who, weights)
            at_chance += metrics.difference(drawn["mae"], against["mae"]).high > 0
        else:
            at_chance += metrics.interval(drawn["auroc"]).low <= 0.5
    assert at_chance >= studies - 1


@pytest.mark.parametrize("pool", ["predictions", "vectors"])
def test_a_subjects_windows_are_one_row_where_its_records_share_one_reading(pool: Any) -> None:
    task = load_task("sbp").model_copy(update={"pool": pool})
    rows, pooled = run(task)
    apart, whole = run(task.model_copy(update={"level": "window"}))
    assert rows["a"]["mae"]["value"] < apart["a"]["mae"]["value"]  # noise averages out
    assert pooled.result.to_json()["level"] == "reading" and len(set(pooled.windows.subject)) == PEOPLE
    assert (len(pooled.vectors["a"]), len(pooled.fold)) == (PEOPLE, PEOPLE)
    if pool == "predictions":
        order = np.argsort(whole.windows.subject, kind="stable")
        each = whole.predicted["a"][order].reshape(PEOPLE, -1).mean(1)
        np.testing.assert_allclose(pooled.predicted["a"], each)


def test_subgroups_have_their_people_and_the_gap_is_between_the_two_that_it_names() -> None:
    _, found = run(load_task("sbp"))
    tables = {t["column"]: t for t in found.result.to_json()["subgroups"]}
    assert set(tables) == {"sex", "age"}  # the corpus knows no stage of hypertension
    for t in tables.values():
        assert sum(g["subjects"] for g in t["groups"]) == PEOPLE
        value = {g["name"]: g["metrics"]["a"]["mae"]["value"] for g in t["groups"]}
        gap = t["gap"]["a"]
        worst, best = gap["between"]
        assert (
            gap["value"]
            == pytest.approx(value[worst] - value[best])
            == max(value.values()) - min(value.values())
        )
        assert gap["low"] <= gap["value"] <= gap["high"]
    assert [g["name"] for g in tables["age"]["groups"]] == ["under 45", "45 to under 65", "65 and over"]


def test_few_shot_curves_fall_with_people_and_end_at_the_tables_own_figures() -> None:
    task = load_task("sbp")
    rows, found = run(task, few_shot=True)
    curve = found.result.to_json()["few_shot"]
    assert [c["share"] for c in curve] == [0.1, 0.2, 0.5, 1.0]
    assert curve[0]["subjects"] == 3 and curve[-1]["rows"]["a"]["value"] == rows["a"]["mae"]["value"]
    mae = [c["rows"]["a"]["value"] for c in curve]
    assert mae[-1] < 0.8 * mae[0]


def test_a_few_shot_subset_holds_people_of_every_class_or_is_left_out() -> None:
    who = np.repeat(np.arange(40), 2)
    answer = Classes((who < 10).astype(float), ["no", "yes"])
    some = fewshot._subset(answer, who, np.arange(80), 0.3, np.random.default_rng(0))
    assert some is not None
    assert len(set(who[some])) == 12 and len(set(who[some][who[some] < 10])) == 3
    assert fewshot._subset(answer, who, np.arange(80), 0.2, np.random.default_rng(0)) is None


def test_demographics_beside_vectors_lose_nothing_that_either_knows() -> None:
    rng = np.random.default_rng(3)
    task = load_task("sbp")
    values = answers(task, rng)
    labels, placed = corpus_of(task, values, rng)
    windows = windows_of(task, labels, placed)
    vectors = {"a": np.concatenate([knowing(values, windows, rng), rng.normal(size=(160, 10))], axis=1)}
    found = outcome([entrant()], task, labels, windows, vectors, {}, Options(few_shot=False))
    mae = {row["name"]: row["metrics"].get("mae", {}).get("value") for row in found.result.to_json()["rows"]}
    assert mae["a + demographics"] < 1.3 * mae["a"] < 0.5 * mae["demographics"]
    assert found.result.to_json()["added"]["a"]["high"] < 0


def test_a_line_is_said_where_only_neighbours_read_the_vectors() -> None:
    rng = np.random.default_rng(0)
    task = load_task("sbp")
    own = rng.normal(size=PEOPLE)
    labels, placed = corpus_of(task, (100 + 30 * np.abs(own)).tolist(), rng)
    windows = windows_of(task, labels, placed)
    x = own[[int(s[1:]) for s in windows.subject]][:, None]
    bent = outcome([entrant()], task, labels, windows, {"a": x}, {}, Options(few_shot=False)).result.to_json()
    assert any("linear probe fails where a non-linear one (k-NN) works" in w for w in bent["warnings"])
    straight = outcome([entrant()], task, labels, windows, {"a": np.abs(x)}, {}, Options(few_shot=False))
    assert not straight.result.warnings


def test_the_published_protocol_flatters_a_vector_that_names_its_subject() -> None:
    rng = np.random.default_rng(0)
    task = load_task("sbp")
    values = answers(task, rng)
    labels, placed = corpus_of(task, values, rng)
    windows = windows_of(task, labels, placed)
    named = np.eye(PEOPLE)[[int(s[1:]) for s in windows.subject]]
    found = outcome(
        [entrant()], task, labels, windows, {"a": named}, {}, Options(few_shot=False, published_protocol=True)
    ).result.to_json()
    honest = {row["name"]: row["metrics"] for row in found["rows"]}
    leaking = found["published_protocol"]["rows"]
    assert "LEAK" in found["published_protocol"]["label"]
    assert honest["a"]["mae"]["low"] > 0.7 * honest["mean"]["mae"]["value"]
    assert leaking["a"]["mae"]["high"] < 0.2 * leaking["mean"]["mae"]["value"]
    assert found["published_protocol"]["windows"] == len(windows.subject) == 4 * PEOPLE


# ---------------------------------------------------------------- bad input


def test_subjects_without_a_label_are_counted_and_stated() -> None:
    rng = np.random.default_rng(0)
    task = load_task("sbp")
    values = answers(task, rng)
    labels, placed = corpus_of(task, values, rng)
    some = pa.compute.or_(
        pa.compute.not_equal(labels["name"], "sbp"), pa.compute.greater(labels["subject"], "s06")
    )
    windows = windows_of(task, labels.filter(some), placed)
    assert windows.unlabelled == 7 and windows.refused == {"no label": 7 * 2 * WINDOWS}
    vectors = {"a": knowing(values, windows, rng)}
    found = outcome([entrant()], task, labels, windows, vectors, {}, Options(few_shot=False, folds=3))
    assert found.result.to_json()["warnings"] == [
        "7 of 40 subjects have no usable label sbp and are not in the table"
    ]


def test_nan_labels_have_their_own_reason_and_nothing_but_them_is_one_line() -> None:
    rng = np.random.default_rng(0)
    task = load_task("sbp")
    labels, placed = corpus_of(task, [float("nan")] * 5 + [120.0] * 35, rng)
    assert windows_of(task, labels, placed).refused == {"label without a value": 5 * 2 * WINDOWS}
    labels, placed = corpus_of(task, [float("nan")] * PEOPLE, rng)
    with pytest.raises(PlethoraError, match=r"no window of made up is left .*: label without a value 160"):
        windows_of(task, labels, placed)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        (
            "hypertension",
            "Stage 1 hypertension",
            r"all 160 windows left to evaluate are of one class \(hypert",
        ),
        ("sbp", 120.0, "all 160 labels left to evaluate are 120: there is nothing to predict"),
        ("hypertension", "Normal", r"no label 'hypertension' of the corpus is Stage 1 hypertension or"),
    ],
)
def test_one_class_and_one_value_are_one_line(name: str, value: Any, said: str) -> None:
    rng = np.random.default_rng(0)
    task = load_task(name)
    labels, placed = corpus_of(task, [value] * PEOPLE, rng)
    with pytest.raises(PlethoraError, match=said):
        windows = windows_of(task, labels, placed)
        x = rng.normal(size=(len(windows.subject), 2))
        outcome([entrant()], task, labels, windows, {"a": x}, {}, Options(few_shot=False))


def test_fewer_subjects_than_folds_lower_the_folds() -> None:
    rng = np.random.default_rng(0)
    task = load_task("sbp")
    labels, placed = corpus_of(task, [100.0, 110.0, 120.0, 150.0], rng)
    windows = windows_of(task, labels, placed)
    found = outcome(
        [entrant()],
        task,
        labels,
        windows,
        {"a": rng.normal(size=(len(windows.subject), 2))},
        {},
        Options(few_shot=True),
    )
    assert (found.result.protocol.folds, found.result.to_json()["protocol"]["folds_asked"]) == (4, 5)
