"""The probe against scikit-learn's own pipeline, and against leaks."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cluster.errors import PlethoraError
from finetune import probe


@pytest.fixture
def study() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(x, target, subject): 24 subjects, a target that is linear in two of ten features."""
    rng = np.random.default_rng(0)
    subject = np.repeat([f"s{i:02}" for i in range(24)], 15)
    x = rng.normal(0, 1, (360, 10)) * 10.0 ** np.arange(-5, 5) + 3
    target = 70 + 4 * x[:, 4] / 0.1 - 3 * x[:, 5] + rng.normal(0, 2, 360)
    return x, target, subject


def test_ridge_equals_scikit_learns_pipeline_at_every_alpha(study) -> None:
    x, target, _ = study
    x = np.concatenate([x, np.full((360, 1), 7.0)], axis=1)  # a constant column must not divide by zero
    found = probe.ridge_predictions(x[:250], target[:250], x[250:])
    for alpha, predicted in zip(probe.ALPHAS, found, strict=True):
        pipeline = make_pipeline(StandardScaler(), Ridge(alpha)).fit(x[:250], target[:250])
        np.testing.assert_allclose(predicted, pipeline.predict(x[250:]), rtol=1e-8)


def test_the_whole_probe_equals_nested_loops_of_scikit_learn(study) -> None:
    x, target, subject = study
    folds = probe.grouped_folds(subject, 4, seed=1)
    found = probe.ridge_probe(x, target, subject, folds, seed=1)
    expected, alphas = np.empty(360), []
    for train, test in folds:
        inner = probe.inner_folds(subject[train], 4, seed=1)
        error = []
        for alpha in probe.ALPHAS:
            total = 0.0
            for a, b in inner:
                fitted = make_pipeline(StandardScaler(), Ridge(alpha)).fit(x[train][a], target[train][a])
                total += np.abs(fitted.predict(x[train][b]) - target[train][b]).sum()
            error.append(total)
        alphas.append(probe.ALPHAS[int(np.argmin(error))])
        expected[test] = (
            make_pipeline(StandardScaler(), Ridge(alphas[-1])).fit(x[train], target[train]).predict(x[test])
        )
    np.testing.assert_allclose(found.predicted, expected, rtol=1e-8)
    assert found.alphas == tuple(alphas)


def test_more_columns_than_rows_are_no_trouble() -> None:
    rng = np.random.default_rng(0)
    x, y, new = rng.normal(size=(20, 300)), rng.normal(size=20), rng.normal(size=(5, 300))
    for alpha, predicted in zip(probe.ALPHAS, probe.ridge_predictions(x, y, new), strict=True):
        pipeline = make_pipeline(StandardScaler(), Ridge(alpha)).fit(x, y)
        np.testing.assert_allclose(predicted, pipeline.predict(new), rtol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_no_subject_is_ever_on_both_sides_outside_or_inside(study, seed: int) -> None:
    _, _, subject = study
    tested: list[int] = []
    for train, test in probe.grouped_folds(subject, 5, seed):
        assert not set(subject[train]) & set(subject[test])
        tested += test.tolist()
        for a, b in probe.inner_folds(subject[train], 5, seed):
            assert not set(subject[train][a]) & set(subject[train][b])
    assert sorted(tested) == list(range(len(subject)))


def test_folds_follow_the_seed(study) -> None:
    _, _, subject = study
    same = [probe.grouped_folds(subject, 5, 0)[0][1].tolist() for _ in range(2)]
    assert same[0] == same[1] != probe.grouped_folds(subject, 5, 1)[0][1].tolist()


def test_few_subjects_lower_the_folds_and_two_are_refused(study) -> None:
    x, target, subject = study
    few = np.isin(subject, ["s00", "s01", "s02"])
    folds = probe.grouped_folds(subject[few], 5, 0)
    assert len(folds) == 3
    assert np.isfinite(probe.ridge_probe(x[few], target[few], subject[few], folds, 0).predicted).all()
    with pytest.raises(PlethoraError, match=r"2 subjects left to evaluate.*at least 3"):
        probe.grouped_folds(subject[np.isin(subject, ["s00", "s01"])], 5, 0)


def test_a_feature_that_names_the_subject_gains_nothing() -> None:
    rng = np.random.default_rng(0)
    subject = np.repeat(np.arange(30), 20)
    target = np.repeat(rng.normal(80, 12, 30), 20) + rng.normal(0, 1, 600)
    named = np.eye(30)[subject]  # window-level folds would read the subject's own mean from it
    folds = probe.grouped_folds(subject, 5, 0)
    leak = np.abs(probe.ridge_probe(named, target, subject, folds, 0).predicted - target).mean()
    mean = np.abs(probe.mean_probe(target, folds).predicted - target).mean()
    assert leak >= 0.98 * mean
    windows = probe.grouped_folds(
        np.arange(600), 5, 0
    )  # the leaking protocol, to show that the leak is there
    assert (
        np.abs(probe.ridge_probe(named, target, np.arange(600), windows, 0).predicted - target).mean()
        < 0.2 * mean
    )


def test_scaling_and_imputation_use_training_rows_only(study) -> None:
    x, target, _ = study
    holes = x.copy()
    holes[::7, 5] = np.nan
    before = probe.ridge_predictions(holes[:200], target[:200], holes[200:210])
    changed = np.concatenate([holes[200:210], 1e6 * np.ones((50, 10))])
    after = probe.ridge_predictions(holes[:200], target[:200], changed)[:, :10]
    np.testing.assert_array_equal(before, after)


def test_missing_values_become_the_training_median() -> None:
    train = np.array([[1.0], [2.0], [np.nan], [9.0]])
    scaler = probe.Scaler(train)
    assert scaler.median_d[0] == 2
    np.testing.assert_allclose(scaler(np.array([[np.nan]])), scaler(np.array([[2.0]])))


def test_a_column_that_training_rows_never_have_changes_nothing(study) -> None:
    x, target, _ = study
    empty = np.concatenate([x, np.full((360, 1), np.nan)], axis=1)
    empty[300:, -1] = 5.0
    np.testing.assert_allclose(
        probe.ridge_predictions(empty[:300], target[:300], empty[300:]),
        probe.ridge_predictions(x[:300], target[:300], x[300:]),
    )


def test_inner_folds_choose_the_columns_that_generalise() -> None:
    rng = np.random.default_rng(0)
    subject = np.repeat(np.arange(12), 6)
    target = rng.normal(size=72)
    x = np.concatenate([target[:, None] + 0.1 * rng.normal(size=(72, 1)), rng.normal(size=(72, 60))], axis=1)
    folds = probe.grouped_folds(subject, 4, 0)
    few = probe.ridge_probe(x, target, subject, folds, 0, [slice(0, 1), slice(0, 61)])
    only = probe.ridge_probe(x[:, :1], target, subject, folds, 0)
    np.testing.assert_allclose(few.predicted, only.predicted)


def test_predict_the_mean_never_sees_the_test_subjects() -> None:
    target, subject = np.array([1.0, 2, 3, 4, 5, 9]), np.array(["a", "a", "b", "b", "c", "c"])
    folds = probe.grouped_folds(subject, 3, 0)
    for train, test in folds:
        assert (probe.mean_probe(target, folds).predicted[test] == target[train].mean()).all()


# ---------------------------------------------------------------- classes


@pytest.fixture
def classified() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(x, class, subject): 30 subjects with 4 windows, a class that two of eight features tell."""
    rng = np.random.default_rng(1)
    subject = np.repeat([f"s{i:02}" for i in range(30)], 4)
    x = rng.normal(size=(120, 8)) * 10.0 ** np.arange(-4, 4)
    code = (x[:, 3] / 0.1 + x[:, 4] + rng.normal(size=120) > 0.8).astype(float)
    return x, code, subject


def test_the_logistic_probe_equals_scikit_learns_pipeline_at_every_strength(classified) -> None:
    x, code, _ = classified
    wide = np.concatenate([x, np.random.default_rng(2).normal(size=(120, 150))], axis=1)
    three = code + (x[:, 5] > 0)
    for features_nd, y in ((x, code), (wide, code), (x, three)):
        found = probe.logistic_probabilities(features_nd[:80], y[:80], features_nd[80:])
        for strength, p in zip(probe.STRENGTHS, found, strict=True):
            model = LogisticRegression(C=strength, tol=1e-8, max_iter=20_000)
            pipeline = make_pipeline(StandardScaler(), model).fit(features_nd[:80], y[:80])
            np.testing.assert_allclose(p, pipeline.predict_proba(features_nd[80:]), atol=2e-4)


def test_the_strength_is_chosen_without_a_look_at_the_test_subjects(classified) -> None:
    x, code, subject = classified
    folds = probe.class_folds(code, subject, ["no", "yes"], 4, seed=0)
    before = probe.logistic_probe(x, code, subject, folds, seed=0)
    train, test = folds[0]
    flipped, moved = code.copy(), x.copy()
    flipped[test], moved[test] = 1 - code[test], x[test][::-1] * 50
    after = probe.logistic_probe(moved, flipped, subject, folds, seed=0)
    assert after.alphas[0] == before.alphas[0]
    refitted = probe.logistic_probabilities(x[train], code[train], moved[test], (before.alphas[0],))
    np.testing.assert_allclose(after.predicted[test], refitted[0][:, 1:])


def test_folds_of_classes_are_subject_disjoint_and_share_the_classes_out(classified) -> None:
    _, code, subject = classified
    tested: list[int] = []
    for train, test in probe.class_folds(code, subject, ["no", "yes"], 5, seed=3):
        assert not set(subject[train]) & set(subject[test])
        assert 0.5 < code[test].mean() / code.mean() < 1.5
        tested += test.tolist()
        for a, b in probe.class_inner_folds(code[train], subject[train], 5, seed=3):
            assert not set(subject[train][a]) & set(subject[train][b])
    assert sorted(tested) == list(range(120))


def test_one_class_and_a_class_of_two_subjects_are_one_clear_line() -> None:
    subject = np.array([f"s{i}" for i in range(10)])
    with pytest.raises(PlethoraError, match=r"all 10 windows left to evaluate are of one class \(no\)"):
        probe.class_folds(np.zeros(10), subject, ["no", "yes"], 5, 0)
    with pytest.raises(PlethoraError, match=r"class 'yes' has 2 subjects left to evaluate.*at least 3"):
        probe.class_folds(np.array([1, 1] + [0] * 8), subject, ["no", "yes"], 5, 0)
    assert len(probe.class_folds(np.array([1, 1, 1] + [0] * 7), subject, ["no", "yes"], 5, 0)) == 3


def test_predict_the_prevalence_never_sees_the_test_subjects(classified) -> None:
    _, code, subject = classified
    folds = probe.class_folds(code, subject, ["no", "yes"], 4, seed=0)
    for train, test in folds:
        assert (probe.prevalence_probe(code, folds).predicted[test] == code[train].mean()).all()
