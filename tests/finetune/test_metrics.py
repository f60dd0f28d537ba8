"""Metrics and bootstrap against plain loops and scikit-learn."""

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as reference

from finetune import metrics


@pytest.fixture
def windows() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    subject = rng.choice([f"s{i}" for i in range(17)], 400)
    level = {s: rng.normal(80, 12) for s in sorted(set(subject))}
    target = np.array([level[s] for s in subject]) + rng.normal(0, 4, 400)
    predicted = 0.7 * target + 25 + rng.normal(0, 5, 400)
    return target, predicted, subject


def test_metrics_from_sums_equal_scikit_learn_and_scipy(windows) -> None:
    target, predicted, subject = windows
    found = metrics.metrics_of(metrics.subject_sums(target, predicted, subject).sum(0))
    assert found["mae"] == pytest.approx(reference.mean_absolute_error(target, predicted))
    assert found["rmse"] == pytest.approx(reference.root_mean_squared_error(target, predicted))
    assert found["r2"] == pytest.approx(reference.r2_score(target, predicted))
    assert found["pearson"] == pytest.approx(stats.pearsonr(target, predicted).statistic)


def test_metrics_keep_their_digits_far_from_zero(windows) -> None:
    target, predicted, subject = windows
    near = metrics.metrics_of(metrics.subject_sums(target, predicted, subject).sum(0))
    far = metrics.metrics_of(metrics.subject_sums(target + 1e7, predicted + 1e7, subject).sum(0))
    for name in metrics.METRICS:
        assert far[name] == pytest.approx(float(near[name]), rel=1e-5)


def test_intervals_equal_a_loop_that_draws_subjects_with_all_their_windows(windows) -> None:
    target, predicted, subject = windows
    names = np.unique(subject)
    weights = metrics.draw_weights(len(names), draws=300, seed=5)
    found = metrics.intervals(metrics.subject_sums(target, predicted, subject), weights)
    drawn: dict[str, list[float]] = {name: [] for name in metrics.METRICS}
    for counts in weights.astype(int):
        at = np.concatenate(
            [np.flatnonzero(subject == n) for n, c in zip(names, counts, strict=True) for _ in range(c)]
        )
        y, p = target[at], predicted[at]
        drawn["mae"].append(float(np.abs(p - y).mean()))
        drawn["rmse"].append(float(np.sqrt(np.mean((p - y) ** 2))))
        drawn["r2"].append(reference.r2_score(y, p))
        drawn["pearson"].append(stats.pearsonr(y, p).statistic)
    for name, values in drawn.items():
        low, high = np.percentile(values, [2.5, 97.5])
        assert (found[name].low, found[name].high) == pytest.approx((low, high)), name


def test_a_draw_has_as_many_subjects_as_there_are_and_depends_on_the_seed_alone() -> None:
    weights = metrics.draw_weights(11, draws=50, seed=1)
    assert (weights.sum(1) == 11).all()
    assert np.array_equal(weights, metrics.draw_weights(11, draws=50, seed=1))
    assert not np.array_equal(weights, metrics.draw_weights(11, draws=50, seed=2))


def test_the_paired_difference_equals_a_loop_over_the_same_draws(windows) -> None:
    target, predicted, subject = windows
    other = predicted + np.random.default_rng(0).normal(1, 4, len(target))
    a, b = (metrics.subject_sums(target, p, subject) for p in (predicted, other))
    weights = metrics.draw_weights(len(a), draws=400, seed=0)
    found = metrics.paired(a, b, weights)
    drawn = np.array([(w @ a)[6] / (w @ a)[0] - (w @ b)[6] / (w @ b)[0] for w in weights])
    assert found.value == pytest.approx(np.abs(predicted - target).mean() - np.abs(other - target).mean())
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(drawn, [2.5, 97.5])))
    assert found.p == pytest.approx(2 * (1 + min((drawn <= 0).sum(), (drawn >= 0).sum())) / 401)


def test_a_prediction_compared_with_itself_has_no_difference_and_p_one(windows) -> None:
    target, predicted, subject = windows
    sums = metrics.subject_sums(target, predicted, subject)
    found = metrics.paired(sums, sums, metrics.draw_weights(len(sums), draws=100))
    assert (found.value, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_clusters_widen_the_interval_where_subjects_differ() -> None:
    rng = np.random.default_rng(0)
    subject = np.repeat(np.arange(20), 50)
    target = np.zeros(1000)
    predicted = np.repeat(rng.normal(0, 5, 20), 50) + rng.normal(0, 0.1, 1000)
    by_subject = metrics.intervals(
        metrics.subject_sums(target, predicted, subject), metrics.draw_weights(20)
    )["mae"]
    each = np.arange(1000)
    by_window = metrics.intervals(
        metrics.subject_sums(target, predicted, each), metrics.draw_weights(1000, 500)
    )["mae"]
    assert by_subject.high - by_subject.low > 3 * (by_window.high - by_window.low)


def test_nominal_95_percent_intervals_cover_the_true_error_in_at_least_90_of_100_studies() -> None:
    rng, covered = np.random.default_rng(7), 0
    truth = np.sqrt(2 / np.pi) * np.sqrt(3.0**2 + 4.0**2)  # mean |N(0, 9 + 16)|
    for study in range(100):
        subject = np.repeat(np.arange(40), 12)
        error = np.repeat(rng.normal(0, 3, 40), 12) + rng.normal(0, 4, 480)
        sums = metrics.subject_sums(np.zeros(480), error, subject)
        found = metrics.intervals(sums, metrics.draw_weights(40, 1000, seed=study))["mae"]
        covered += found.low <= truth <= found.high
    assert covered >= 90


def test_predicting_one_value_has_no_correlation_and_no_crash() -> None:
    sums = metrics.subject_sums(np.array([1.0, 2, 3]), np.full(3, 2.0), np.array(["a", "b", "c"]))
    found = metrics.metrics_of(sums.sum(0))
    assert np.isnan(found["pearson"])
    assert found["r2"] == pytest.approx(0)


def test_bland_altman_limits_are_bias_and_196_standard_deviations() -> None:
    bias, low, high = metrics.bland_altman(np.array([1.0, 2, 3, 4]), np.array([2.0, 2, 4, 6]))
    assert bias == 1
    assert high - bias == pytest.approx(1.96 * np.std([1, 0, 1, 2], ddof=1)) == bias - low
