"""Classification metrics under drawn subjects, against scikit-learn with sample weights in a loop."""

import time

import numpy as np
import pytest
from sklearn import metrics as reference

from finetune import metrics
from finetune.evaluation import classes


@pytest.fixture
def study() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(class of 3, score (n, 3), subject, weights): many scores are equal."""
    rng = np.random.default_rng(0)
    subject = rng.integers(0, 15, 150)
    code = rng.integers(0, 3, 150)
    score = np.round(rng.normal(size=(150, 3)) + (code[:, None] == np.arange(3)), 1)
    return code, score, subject, metrics.draw_weights(15, draws=60, seed=2)


@pytest.mark.parametrize("columns", [[1], [0, 1, 2]])
def test_ranking_metrics_equal_scikit_learn_in_a_loop_over_draws(study, columns: list[int]) -> None:
    code, score, subject, weights = study
    hot = (code[:, None] == np.arange(3))[:, columns]
    found = classes.drawn(hot, score[:, columns], subject, weights)
    for i, counts in enumerate([np.ones(15), *weights]):
        w = counts[subject]
        pairs = list(zip(hot.T, score[:, columns].T, strict=True))
        auroc = np.mean([reference.roc_auc_score(y, s, sample_weight=w) for y, s in pairs])
        auprc = np.mean([reference.average_precision_score(y, s, sample_weight=w) for y, s in pairs])
        assert found["auroc"][i] == pytest.approx(auroc)
        assert found["auprc"][i] == pytest.approx(auprc)


def test_decisions_equal_scikit_learn_of_two_classes_and_of_three(study) -> None:
    code, score, subject, weights = study
    for hot, s, truth, said, average in (
        ((code == 1)[:, None], score[:, [1]] - 0.5, code == 1, score[:, 1] > 0.5, "binary"),
        (code[:, None] == np.arange(3), score, code, score.argmax(1), "macro"),
    ):
        found = classes.drawn(hot, s, subject, weights)
        for i, counts in enumerate([np.ones(15), *weights[:20]]):
            w = counts[subject]
            balanced = reference.balanced_accuracy_score(truth, said, sample_weight=w)
            f1 = reference.f1_score(truth, said, sample_weight=w, average=average)
            assert found["balanced_accuracy"][i] == pytest.approx(balanced)
            assert found["f1"][i] == pytest.approx(f1)


def test_many_draws_are_cut_into_parts_without_a_trace(study, monkeypatch: pytest.MonkeyPatch) -> None:
    code, score, subject, weights = study
    hot = code[:, None] == np.arange(3)
    whole = classes.drawn(hot, score, subject, weights)
    monkeypatch.setattr(classes, "AT_ONCE", 150 * 7)
    for name, values in classes.drawn(hot, score, subject, weights).items():
        np.testing.assert_array_equal(values, whole[name])


def test_a_draw_without_one_of_the_classes_has_no_value_and_does_not_count() -> None:
    hot, score = np.array([[True], [False], [False]]), np.array([[2.0], [1.0], [3.0]])
    weights = np.array([[0.0, 2, 1], [3, 0, 0], [1, 1, 1]])
    found = classes.drawn(hot, score, np.array(["a", "b", "c"]), weights)
    for name in ("auroc", "auprc", "balanced_accuracy"):
        assert np.isnan(found[name][[1, 2]]).all() and np.isfinite(found[name][[0, 3]]).all()
    assert metrics.interval(found["auroc"]) == metrics.Interval(0.5, 0.5, 0.5)


def test_predicting_the_prevalence_is_at_chance_although_folds_differ() -> None:
    code = np.array([0, 1] * 10 + [0] * 10)
    prevalence = np.where(np.arange(30) < 15, 0.2, 0.4)[:, None]
    score = classes.evidence(prevalence, prevalence)
    found = classes.drawn(classes.one_hot(code, 2), score, np.arange(30), np.ones((1, 30)))
    assert found["auroc"][0] == 0.5 and found["balanced_accuracy"][0] == 0.5
    assert found["auprc"][0] == pytest.approx(1 / 3)


def test_two_classes_are_one_column_and_more_are_a_column_each() -> None:
    assert classes.one_hot(np.array([0.0, 1.0]), 2).tolist() == [[False], [True]]
    assert classes.one_hot(np.array([0, 2]), 3).tolist() == [[True, False, False], [False, False, True]]


def test_nominal_95_percent_intervals_cover_the_true_auroc_in_at_least_90_of_100_studies() -> None:
    """40 subjects of 6 windows; a subject shifts all its scores, so windows are far from independent."""
    rng, covered = np.random.default_rng(11), 0
    who = np.repeat(np.arange(40), 6)
    truth = 0.7602499389  # the normal distribution's value at 1 / √2: N(1, 1) against N(0, 1)
    for study in range(100):
        hot = np.repeat(rng.permutation(40) < 20, 6)
        shared, own = np.sqrt(0.6) * rng.normal(size=40)[who], np.sqrt(0.4) * rng.normal(size=240)
        weights = metrics.draw_weights(40, 1000, seed=study)
        found = metrics.interval(
            classes.drawn(hot[:, None], (hot + shared + own)[:, None], who, weights)["auroc"]
        )
        covered += found.low <= truth <= found.high
    assert covered >= 90


def test_two_thousand_draws_over_ten_thousand_windows_take_under_a_second_of_one_core() -> None:
    rng = np.random.default_rng(0)
    who, hot = rng.integers(0, 300, 10_000), rng.random(10_000) < 0.4
    score, weights = rng.normal(size=10_000) + hot, metrics.draw_weights(300)
    begin = time.process_time()
    found = classes.drawn(hot[:, None], score[:, None], who, weights)
    metrics.drawn(metrics.subject_sums(score, score + 1, who), weights)
    assert len(found["auroc"]) == 2001 and time.process_time() - begin < 1.0
