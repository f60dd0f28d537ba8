"""Heads that bend: forests and small networks on frozen vectors, with the linear probe's folds, imputation
and scaling. The inner folds choose a head's one setting; the same seed gives the same predictions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from finetune.probe import (
    FEW_ROWS,
    Folds,
    Probed,
    as_columns,
    class_inner_folds,
    inner_count,
    inner_folds,
    scaled,
)

Kind = Literal["number", "class", "labels"]

INNER = 3
TREES = 100
LEAVES = (1.0, 5.0, 20.0)  # training rows in a leaf of the forest, at least
WIDTH = 64  # hidden units
DECAYS = (0.01, 1.0, 10.0)  # scikit-learn's alpha of the network: L2 penalty, over the rows of a batch
RATE = 0.01  # of Adam
EPOCHS, PATIENCE = 200, 10  # at most so many; so many without a better held-out loss end it
BLIND_EPOCHS = 20  # where nobody can be held out


@dataclass(frozen=True)
class TrainingSet:
    """Rows that a head learns from: x (n, d), NaN where missing; y (n, columns) a number, one-hot classes, or
    labels that are 0 or 1; who (n,) the units that folds keep apart.
    """

    kind: Kind
    x: np.ndarray
    y: np.ndarray
    who: np.ndarray

    def at(self, rows: np.ndarray) -> "TrainingSet":
        return replace(self, x=self.x[rows], y=self.y[rows], who=self.who[rows])

    def folds(self, count: int, seed: int) -> Folds:
        """Subject-disjoint folds of these rows: none where one subject is left, or where a class would be
        missing from every training part.
        """
        if len(np.unique(self.who)) < 2:
            return []
        if self.kind == "class":
            return class_inner_folds(self.y.argmax(axis=1), self.who, count, seed)
        return inner_folds(self.who, count, seed)


Predict = Callable[[TrainingSet, np.ndarray, float, int], np.ndarray]


@dataclass(frozen=True)
class Head:
    """`predict(training set, test x, setting, seed)` gives (m, columns). `settings`: what the inner folds
    choose among, of which there are `inner` at most: each fits every setting anew.
    """

    predict: Predict
    settings: tuple[float, ...]
    inner: int = INNER


def head_probe(
    head: Head, kind: Kind, x_nd: np.ndarray, y_nc: np.ndarray, who_n: np.ndarray, folds: Folds, seed: int
) -> Probed:
    """Out-of-fold predictions, (n,) numbers or (n, columns) probabilities, and the setting of each fold. Its
    error (numbers) or log loss over the inner folds is the lowest. Arguments: see `TrainingSet`."""
    from threadpoolctl import threadpool_limits

    data = TrainingSet(kind, np.asarray(x_nd, np.float64), np.asarray(y_nc, np.float64), who_n)
    found, chosen = np.full(data.y.shape, np.nan), []
    with threadpool_limits(1, user_api="blas"):  # batches are small: threads would wait for each other
        for train, test in folds:
            part = data.at(train)
            setting = _choose(head, part, inner_count(folds), seed)
            found[test] = head.predict(part, data.x[test], setting, seed)
            chosen.append(setting)
    if kind == "number":
        return Probed(found[:, 0], tuple(chosen))
    return Probed(as_columns(found) if kind == "class" else found, tuple(chosen))


def _choose(head: Head, data: TrainingSet, folds: int, seed: int) -> float:
    if len(head.settings) == 1:
        return head.settings[0]
    total = np.zeros(len(head.settings))
    # a split has two parts at least; with inner = 1 a third of the subjects judges, once
    for a, b in data.folds(min(folds, max(head.inner, INNER)), seed)[: head.inner]:
        for i, setting in enumerate(head.settings):
            found = head.predict(data.at(a), data.x[b], setting, seed)
            total[i] += len(b) * loss(data.kind, found, data.y[b])
    return head.settings[int(np.argmin(total))]


def loss(kind: Kind, predicted_nc: np.ndarray, y_nc: np.ndarray) -> float:
    """Mean absolute error of numbers, log loss of probabilities."""
    if kind == "number":
        return float(np.abs(predicted_nc - y_nc).mean())
    p = np.clip(predicted_nc, 1e-12, 1 - 1e-12)
    each = y_nc * np.log(p)
    return -float((each if kind == "class" else each + (1 - y_nc) * np.log1p(-p)).sum(axis=1).mean())


def forest(data: TrainingSet, test_md: np.ndarray, leaf: float, seed: int) -> np.ndarray:
    """(m, columns) of extremely randomised trees. A regression on one-hot columns splits by Gini's impurity
    and gives shares, so that one forest serves every kind; one more tree, the prevalence, keeps shares off
    0 and 1.
    """
    from sklearn.ensemble import ExtraTreesRegressor

    train, test = scaled(data.x, test_md)
    model = ExtraTreesRegressor(
        n_estimators=TREES,
        min_samples_leaf=int(leaf),
        max_features=1 / 3 if data.kind == "number" else "sqrt",
        random_state=seed,
        n_jobs=None if len(train) < FEW_ROWS else -1,
    )
    model.fit(train, data.y if data.y.shape[1] > 1 else data.y[:, 0])
    model.set_params(n_jobs=None)  # threads add up trees in any order, which moves the last bits
    found = model.predict(test).reshape(len(test), -1)
    return found if data.kind == "number" else (TREES * found + data.y.mean(axis=0)) / (TREES + 1)


def mlp(data: TrainingSet, test_md: np.ndarray, decay: float, seed: int) -> np.ndarray:
    """(m, columns) of a network with one hidden layer. A fifth of the subjects is held out: the weights of
    the epoch with the lowest loss on them are kept. With one subject (or a class that would be missing)
    nobody is, and it stops after BLIND_EPOCHS.
    """
    train, test = scaled(data.x, test_md)
    net = _Network(data, decay, seed)
    held = data.folds(5, seed)[:1]
    if not held:
        for _ in range(BLIND_EPOCHS):
            net.epoch(train, data.y)
        return net.predict(test)
    (learn, stop) = held[0]
    best, kept, waited = np.inf, net.weights(), 0
    for _ in range(EPOCHS):
        net.epoch(train[learn], data.y[learn])
        now = loss(data.kind, net.predict(train[stop]), data.y[stop])
        if now < best:
            best, kept, waited = now, net.weights(), 0
        else:
            waited += 1
        if waited == PATIENCE:
            break
    net.restore(kept)
    return net.predict(test)


class _Network:
    """scikit-learn's MLP, an epoch at a time (its own early stopping holds out rows, not subjects). Numbers
    are learnt in standard deviations from their mean.
    """

    def __init__(self, data: TrainingSet, decay: float, seed: int) -> None:
        from sklearn.neural_network import MLPClassifier, MLPRegressor

        self.kind = data.kind
        self.mean, self.spread = data.y.mean(axis=0), float(data.y.std()) or 1.0
        self.classes = np.arange(max(data.y.shape[1], 2))
        made = MLPRegressor if data.kind == "number" else MLPClassifier
        # a RandomState goes on between epochs; a number would give every epoch the same order
        self.model: Any = made(
            hidden_layer_sizes=(WIDTH,),
            alpha=decay,
            learning_rate_init=RATE,
            random_state=np.random.RandomState(seed),
        )

    def epoch(self, x_nd: np.ndarray, y_nc: np.ndarray) -> None:
        if self.kind == "number":
            self.model.partial_fit(x_nd, (y_nc[:, 0] - self.mean) / self.spread)
        elif self.kind == "class":
            self.model.partial_fit(x_nd, y_nc.argmax(axis=1), classes=self.classes)
        else:
            y = y_nc.astype(int)
            self.model.partial_fit(x_nd, y if y.shape[1] > 1 else y[:, 0], classes=self.classes)

    def predict(self, x_nd: np.ndarray) -> np.ndarray:
        if self.kind == "number":
            return (self.model.predict(x_nd) * self.spread + self.mean)[:, None]
        found = self.model.predict_proba(x_nd)
        one_label = self.kind == "labels" and self.model.n_outputs_ == 1
        return found[:, 1:] if one_label else found

    def weights(self) -> list[np.ndarray]:
        if not hasattr(self.model, "coefs_"):
            return []
        return [w.copy() for w in (*self.model.coefs_, *self.model.intercepts_)]

    def restore(self, kept: Sequence[np.ndarray]) -> None:
        for w, old in zip((*self.model.coefs_, *self.model.intercepts_), kept, strict=True):
            w[:] = old


HEADS = {"forest": Head(forest, LEAVES), "mlp": Head(mlp, DECAYS)}
