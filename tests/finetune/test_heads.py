"""Forests and small networks on vectors: what no straight line reads, and nothing of the test subjects."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cluster.errors import PlethoraError
from finetune.__main__ import options_of, parser
from finetune.commands.compare import Compare
from finetune.evaluation import heads, multilabel
from finetune.evaluation.kinds import Answer, Classes, Labels, Numbers
from finetune.evaluation.options import Options
from finetune.evaluation.table import Outcome, outcome
from finetune.probe import Folds, Probed
from finetune.task import load_task
from tests.finetune.test_tasks import PEOPLE, answers, corpus_of, entrant, knowing, run, windows_of

RNG = np.random.default_rng(1)
WHO = np.repeat(np.arange(40), 8)
X = RNG.normal(size=(320, 3))
BENT = X[:, 0] * X[:, 1]  # a line through it sees nothing
NOISE = RNG.normal(size=320)
HEADS = tuple(heads.HEADS)


@pytest.fixture(autouse=True)
def _one_setting(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nested choice costs nine fits a fold: only a test that says "chooses" in its name has all settings."""
    if "chooses" not in request.node.name:
        for name, setting in (("forest", 1.0), ("mlp", 0.01)):
            monkeypatch.setitem(heads.HEADS, name, replace(heads.HEADS[name], settings=(setting,)))
        monkeypatch.setattr(heads, "EPOCHS", 60)


def bent(answer: Answer, head: str, x: np.ndarray = X, seed: int = 0) -> tuple[Probed, Folds]:
    folds = answer.folds(WHO, 3, 0)
    return answer.bent(heads.HEADS[head], x, WHO, folds, seed), folds


@pytest.mark.parametrize("head", HEADS)
def test_a_product_of_two_columns_is_read_by_a_head_and_not_by_a_line(head: str) -> None:
    answer = Numbers(100 + 10 * BENT + NOISE)
    found, folds = bent(answer, head)
    error = {
        name: np.abs(p.predicted - answer.y).mean()
        for name, p in {
            "mean": answer.baseline(folds),
            "line": answer.linear(X, WHO, folds, 0),
            "head": found,
        }.items()
    }
    assert error["line"] > 0.97 * error["mean"] and error["head"] < 0.7 * error["mean"]


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("count", [2, 3])
def test_classes_that_no_line_parts_are_told_and_probabilities_add_up(head: str, count: int) -> None:
    code = np.digitize(BENT, [0.0] if count == 2 else [-0.3, 0.3]).astype(float)
    answer = Classes(code, ["a", "b", "c"][:count])
    found, folds = bent(answer, head)
    p, line = found.predicted, answer.linear(X, WHO, folds, 0).predicted
    assert p.shape == line.shape == (320, 1 if count == 2 else 3)
    assert (p >= 0).all() and (p <= 1).all()
    assert head == "mlp" or ((p > 0) & (p < 1)).all()  # no forest is certain
    if count == 3:
        np.testing.assert_allclose(p.sum(axis=1), 1)
    assert _right(p, code) > 0.75 > _right(line, code) + 0.1


def _right(p: np.ndarray, code: np.ndarray) -> float:
    said = p[:, 0] > 0.5 if p.shape[1] == 1 else p.argmax(axis=1)
    return float((said == code).mean())


@pytest.mark.parametrize("head", HEADS)
def test_labels_are_learnt_together_and_a_rare_one_is_its_prevalence(head: str) -> None:
    hot = np.stack([BENT > 0, np.abs(X[:, 2]) > 0.7, WHO == 0], axis=1).astype(float)
    found, folds = bent(Labels(hot, ["a", "b", "rare"]), head)
    assert ((found.predicted > 0.5) == hot)[:, :2].mean(axis=0).min() > 0.75
    np.testing.assert_array_equal(found.predicted[:, 2], multilabel.prevalence(hot, folds).predicted[:, 2])


@pytest.mark.parametrize("head", HEADS)
def test_a_seed_gives_the_same_predictions_and_another_gives_others(head: str) -> None:
    answer = Numbers(BENT)
    first, again, other = (bent(answer, head, seed=s)[0].predicted for s in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("head", HEADS)
def test_no_test_subject_is_learnt_from_or_chooses(head: str) -> None:
    """The inner folds choose among all settings here."""
    answer = Numbers(BENT.copy())
    before, folds = bent(answer, head)
    test = folds[0][1]
    answer.y[test] = -1e3
    moved = X.copy()
    moved[test] = moved[test][::-1] * 50
    after = answer.bent(heads.HEADS[head], moved, WHO, folds, 0)
    again = answer.bent(heads.HEADS[head], moved, WHO, [folds[0]], 0)
    assert before.alphas[0] == after.alphas[0]
    part = heads.TrainingSet("number", X[folds[0][0]], answer.y[folds[0][0], None], WHO[folds[0][0]])
    refitted = heads.HEADS[head].predict(part, moved[test], before.alphas[0], 0)
    np.testing.assert_array_equal(after.predicted[test], refitted[:, 0])
    np.testing.assert_array_equal(after.predicted[test], again.predicted[test])


@pytest.mark.parametrize("head", HEADS)
def test_vectors_that_only_name_their_subject_gain_nothing(head: str) -> None:
    level = np.repeat(RNG.normal(80, 12, 40), 8)
    answer = Numbers(level + NOISE)
    found, folds = bent(answer, head, np.eye(40)[WHO])
    apart = np.abs(found.predicted - answer.y).mean()
    mean = np.abs(answer.baseline(folds).predicted - answer.y).mean()
    each = np.arange(320)  # the leaking protocol, to show that the leak is there
    leaking = answer.bent(heads.HEADS[head], np.eye(40)[WHO], each, answer.folds(each, 3, 0), 0).predicted
    assert apart > 0.9 * mean > 2 * np.abs(leaking - answer.y).mean()


def test_early_stopping_holds_out_whole_subjects(monkeypatch: pytest.MonkeyPatch) -> None:
    learnt: list[np.ndarray] = []
    true = heads._Network.epoch
    monkeypatch.setattr(
        heads._Network, "epoch", lambda self, x, y: (learnt.append(x[:, 0].copy()), true(self, x, y))[1]
    )
    marked = np.stack([WHO.astype(float), X[:, 0]], axis=1)
    data = heads.TrainingSet("number", marked, BENT[:, None], WHO)
    heads.mlp(data, marked[:5], 0.01, 0)
    people, rows = len(np.unique(learnt[0])), len(learnt[0])
    assert people == 32 and rows == 32 * 8  # 8 of 40 are held out whole
    assert len(learnt) < heads.EPOCHS


def test_one_subject_or_a_class_of_one_are_learnt_without_holding_out() -> None:
    data = heads.TrainingSet("number", X[:8], BENT[:8, None], WHO[:8])
    assert np.isfinite(heads.mlp(data, X[8:16], 0.01, 0)).all()
    hot = np.eye(2)[(WHO[:80] == 0).astype(int)]
    few = heads.TrainingSet("class", X[:80], hot, WHO[:80])
    found, _ = heads.mlp(few, X[80:90], 0.01, 0), heads.forest(few, X[80:90], 1, 0)
    assert found.shape == (10, 2)


def test_the_forest_chooses_larger_leaves_where_targets_are_noise() -> None:
    y = np.stack([NOISE, 10 * X[:, 0]])
    chosen = [bent(Numbers(each), "forest")[0].alphas for each in y]
    assert min(chosen[0]) > max(chosen[1])


def test_the_setting_with_the_lowest_loss_on_other_subjects_is_chosen() -> None:
    data = heads.TrainingSet("number", WHO[:, None].astype(float), np.zeros((320, 1)), WHO)

    def far_from_five(part: heads.TrainingSet, x: np.ndarray, setting: float, seed: int) -> np.ndarray:
        assert not set(part.who) & set(x[:, 0])
        return np.full((len(x), 1), abs(setting - 5))

    assert heads._choose(heads.Head(far_from_five, (1.0, 5.0, 20.0)), data, 3, 0) == 5


# ---------------------------------------------------------------- in a table


def table(name: str = "sbp", **options: Any) -> tuple[Any, Outcome]:
    return run(load_task(name), heads=("linear", *HEADS), **options)


def test_each_encoder_and_the_handcrafted_features_get_a_row_a_head() -> None:
    rng, task = np.random.default_rng(0), load_task("sbp")
    values = answers(task, rng)
    labels, placed = corpus_of(task, values, rng)
    windows = windows_of(task, labels, placed)
    vectors = {n: knowing(values, windows, rng) for n in ("a", "b", "handcrafted")}
    vectors["handcrafted"] = np.tile(vectors["handcrafted"], 12)
    how = Options(heads=("mlp", "forest"), few_shot=False, folds=3, published_protocol=True)
    result = outcome([entrant("a"), entrant("b")], task, labels, windows, vectors, {}, how).result
    rows = {row.name: row for row in result.rows}
    expected = {f"{name}, {head}" for name in ("a", "b", "handcrafted") for head in HEADS}
    assert expected < set(rows) and rows["handcrafted, mlp"].label == "Handcrafted features, mlp"
    for name in expected:
        found = rows[name].metrics["mae"]
        assert found.low < found.value < found.high and found.value < rows["mean"].metrics["mae"].value
    assert {"a, forest", "handcrafted, mlp"} < set(result.differences["a"])
    assert "b, forest" not in result.differences["a"]
    assert result.published_protocol is not None and "a, mlp" in result.published_protocol.rows


@pytest.mark.parametrize("name", ["sbp", "alarm_truth", "rhythm", "diagnosis"])
def test_heads_serve_every_kind_and_pooled_levels(name: str) -> None:
    rows, found = table(name)
    main = found.result.task.main
    for head in HEADS:
        assert np.isfinite(rows[f"a, {head}"][main]["value"])
        p = found.predicted[f"a, {head}"]
        assert p.shape == found.predicted["a"].shape and len(p) == found.result.counts.rows


def test_identity_has_no_heads() -> None:
    rows, _ = table("identity")
    assert not any(name.endswith(HEADS) for name in rows)


def test_without_the_option_there_are_no_such_rows() -> None:
    rows, _ = run(load_task("sbp"))
    assert not any(name.endswith(HEADS) for name in rows)


def test_heads_are_named_on_the_command_line_and_an_unknown_one_is_refused() -> None:
    line = ["compare", "b", "--corpus", "c", "--tasks", "sbp", "--out", "o", "--heads", "mlp,linear"]
    assert options_of(Compare, parser().parse_args(line)).how.vector_heads == ("mlp",)
    with pytest.raises(
        PlethoraError, match=r"--heads: there is no head 'tree': choose of linear, forest, mlp"
    ):
        options_of(Compare, parser().parse_args([*line[:-1], "tree"]))


def test_a_line_is_said_where_only_other_heads_read_the_vectors() -> None:
    rng, task = np.random.default_rng(0), load_task("sbp")
    own = rng.normal(size=PEOPLE)
    labels, placed = corpus_of(task, (100 + 30 * np.abs(own)).tolist(), rng)
    windows = windows_of(task, labels, placed)
    x = own[[int(s[1:]) for s in windows.subject]][:, None]
    found = outcome(
        [entrant()], task, labels, windows, {"a": x}, {}, Options(heads=("forest",), few_shot=False)
    )
    assert any("a non-linear one (k-NN, forest) works" in w for w in found.result.warnings)
