"""A scaling curve: what a figure would be at sizes not tried, as a sum of power laws (Hoffmann et al. 2022,
arXiv 2203.15556, approach 3), fitted by least squares, with what the drawn trials leave open.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize, nnls

SLOPES = (0.02, 2.0)  # of the exponents tried
DRAWS = 200


@dataclass(frozen=True)
class Law:
    """figure = floor + sign · Σ factor · (x / scale)^−exponent; sign −1 where larger is better."""

    floor: float
    factors: np.ndarray  # (axes,)
    exponents: np.ndarray  # (axes,)
    scale: np.ndarray  # (axes,) geometric mean of what was tried
    sign: float

    def at(self, x: np.ndarray) -> np.ndarray:
        """Figures (n,) at sizes (n, axes)."""
        return self.floor + self.sign * (self.terms(x) @ self.factors)

    def terms(self, x: np.ndarray) -> np.ndarray:
        return (x / self.scale) ** -self.exponents


@dataclass(frozen=True)
class Fit:
    """The law of all trials, and laws of trials drawn with replacement: their spread is the uncertainty."""

    axes: tuple[str, ...]
    law: Law
    drawn: tuple[Law, ...]
    rmse: float
    trials: int

    def band(self, x: np.ndarray, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """Interval (low, high), each (n,), of the curve at sizes (n, axes)."""
        lines = np.stack([law.at(x) for law in self.drawn])
        low, high = np.quantile(lines, [(1 - level) / 2, (1 + level) / 2], axis=0)
        return low, high

    def exponent(self, axis: int) -> tuple[float, float, float]:
        """(value, low, high) of one exponent."""
        values = [law.exponents[axis] for law in self.drawn]
        low, high = np.quantile(values, [0.025, 0.975])
        return float(self.law.exponents[axis]), float(low), float(high)


def fit(
    axes: Sequence[str], x: np.ndarray, y: np.ndarray, sign: float = 1.0, seed: int = 0, draws: int = DRAWS
) -> Fit | str:
    """The curve through figures `y` (n,) at sizes `x` (n, axes), all above 0; a reason where there is none.

    `sign` 1: smaller is better (falls with size), −1: larger is better (rises).
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    lacking = lack(axes, x)
    if lacking:
        return lacking
    law = _law(x, y, sign)
    generator = np.random.default_rng([seed, len(y)])
    laws: list[Law] = []
    for _ in range(20 * draws):
        if len(laws) == draws:
            break
        rows = generator.integers(len(y), size=len(y))
        if not lack(axes, x[rows], len(np.unique(rows))):
            laws.append(_law(x[rows], y[rows], sign, law))
    if len(laws) < draws:
        return "too few sizes to tell how sure the curve is: try more sizes of each axis"
    rmse = float(np.sqrt(np.mean((law.at(x) - y) ** 2)))
    return Fit(tuple(axes), law, tuple(laws), rmse, len(y))


def lack(axes: Sequence[str], x: np.ndarray, trials: int | None = None) -> str:
    """Why no curve goes through sizes `x` (n, axes); empty where one does."""
    if not np.isfinite(x).all() or (x <= 0).any():
        return "sizes must be above 0"
    for name, column in zip(axes, x.T, strict=True):
        if (count := len(np.unique(column))) < 3:
            return f"a curve needs 3 or more {name}, here are {count}"
    asked = 2 + 2 * len(axes)  # one more than the law has numbers
    found = len(x) if trials is None else trials
    return "" if found >= asked else f"a curve over {len(axes)} axes needs {asked} trials, here are {found}"


def _law(x: np.ndarray, y: np.ndarray, sign: float, start: Law | None = None) -> Law:
    """Least squares. For given exponents the rest is linear, with factors at or above 0: only the exponents
    are searched for, from a coarse grid or from those of `start`.
    """
    scale = np.exp(np.log(x).mean(axis=0)) if start is None else start.scale
    count = x.shape[1]

    def solved(exponents: np.ndarray) -> tuple[float, np.ndarray, float]:
        terms = sign * (x / scale) ** -exponents
        # a floor of either sign: +1 and −1 columns, since nnls allows none below 0
        matrix = np.column_stack([np.ones(len(y)), -np.ones(len(y)), terms])
        factors, residual = nnls(matrix, y)
        return float(factors[0] - factors[1]), factors[2:], float(residual) ** 2

    def cost(logs: np.ndarray) -> float:
        exponents = np.exp(np.clip(logs, *np.log(SLOPES)))
        return solved(exponents)[2] / spread

    spread = float(np.sum((y - y.mean()) ** 2)) or 1.0
    if start is None:
        steps = np.linspace(math.log(SLOPES[0]), math.log(SLOPES[1]), 12 if count == 1 else 7)
        grid = np.stack(np.meshgrid(*[steps] * count, indexing="ij"), axis=-1).reshape(-1, count)
        first = min(grid, key=cost)
    else:
        first = np.log(start.exponents)
    options = {"maxiter": 120 * count, "xatol": 1e-4, "fatol": 1e-9}
    found = minimize(cost, first, method="Nelder-Mead", options=options)
    exponents = np.exp(np.clip(found.x, *np.log(SLOPES)))
    floor, factors, _ = solved(exponents)
    return Law(floor, factors, exponents, scale, sign)
