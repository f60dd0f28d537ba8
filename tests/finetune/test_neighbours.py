"""k-NN against scikit-learn's own, and where a straight line sees nothing."""

import numpy as np
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from finetune import probe
from finetune.evaluation import neighbours

RNG = np.random.default_rng(0)
X = RNG.normal(size=(200, 4)) * [1, 10, 0.1, 3]


def test_numbers_equal_scikit_learns_regressor_at_every_k() -> None:
    y = X[:, 1] + RNG.normal(size=200)
    found = neighbours.number_predictions(X[:150], y[:150], X[150:])
    for k, predicted in zip(neighbours.NEIGHBOURS, found, strict=True):
        model = make_pipeline(StandardScaler(), KNeighborsRegressor(k)).fit(X[:150], y[:150])
        np.testing.assert_allclose(predicted, model.predict(X[150:]))


def test_classes_are_scikit_learns_shares_drawn_towards_the_prevalence_by_one_neighbour() -> None:
    code = (X[:, 0] > 0.5).astype(int) + (X[:, 3] > 3)
    found = neighbours.class_probabilities(X[:150], code[:150], X[150:])
    prevalence = np.bincount(code[:150]) / 150
    for k, p in zip(neighbours.NEIGHBOURS, found, strict=True):
        model = make_pipeline(StandardScaler(), KNeighborsClassifier(k)).fit(X[:150], code[:150])
        np.testing.assert_allclose(p, (k * model.predict_proba(X[150:]) + prevalence) / (k + 1))
    assert (found > 0).all()


def test_fewer_training_rows_than_neighbours_give_their_mean() -> None:
    found = neighbours.number_predictions(X[:4], np.arange(4.0), X[4:6], (3, 100))
    assert found[1].tolist() == [1.5, 1.5]


def test_what_depends_on_a_distance_from_the_middle_is_seen_by_neighbours_and_not_by_a_line() -> None:
    rng = np.random.default_rng(1)
    who = np.repeat(np.arange(60), 8)
    x = rng.normal(size=(480, 2))
    y = 10 * np.abs(x[:, 0]) + rng.normal(size=480)
    folds = probe.grouped_folds(who, 5, 0)
    error = {
        name: np.abs(p.predicted - y).mean()
        for name, p in {
            "mean": probe.mean_probe(y, folds),
            "line": probe.ridge_probe(x, y, who, folds, 0),
            "near": neighbours.number_neighbours(x, y, who, folds, 0),
        }.items()
    }
    assert error["line"] > 0.97 * error["mean"] and error["near"] < 0.5 * error["mean"]
    far = (np.abs(x[:, 0]) > 1).astype(float)
    folds = probe.class_folds(far, who, ["near", "far"], 5, 0)
    p = neighbours.class_neighbours(x, far, who, folds, 0).predicted
    assert ((p[:, 0] > 0.5) == far).mean() > 0.9


def test_the_choice_of_k_never_sees_the_test_subjects() -> None:
    who, y = np.repeat(np.arange(40), 5), X[:, 1].copy()
    folds = probe.grouped_folds(who, 4, 0)
    before = neighbours.number_neighbours(X, y, who, folds, 0)
    test = folds[0][1]
    y[test] = -1e3
    after = neighbours.number_neighbours(X, y, who, folds, 0)
    assert after.alphas[0] == before.alphas[0]
    np.testing.assert_array_equal(after.predicted[test], before.predicted[test])
