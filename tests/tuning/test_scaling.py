"""A scaling curve finds the law behind the figures, and refuses where it cannot."""

import numpy as np
import pytest
from scipy.optimize import curve_fit

from tuning import scaling
from tuning.scaling import Fit

SIZES = np.array([1e5, 5e5, 2e6, 1e7])
HOURS = np.array([10.0, 100.0, 1000.0, 5000.0])
GRID = np.array([(n, h) for n in SIZES for h in HOURS])


def fitted(*given: object, **more: object) -> Fit:
    found = scaling.fit(*given, **more)  # type: ignore[arg-type]
    assert isinstance(found, Fit), found
    return found


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_law_is_found_again(sign: float) -> None:
    y = 1.2 + sign * (30 * GRID[:, 0] ** -0.3 + 2 * GRID[:, 1] ** -0.4)
    found = fitted(("parameters", "hours"), GRID, y, sign)
    np.testing.assert_allclose(found.law.exponents, [0.3, 0.4], rtol=0.01)
    assert found.law.floor == pytest.approx(1.2, abs=0.01)
    far = np.array([[1e9, 1e5]])
    truth = 1.2 + sign * (30 * 1e9**-0.3 + 2 * 1e5**-0.4)
    assert found.law.at(far)[0] == pytest.approx(truth, abs=0.01)


def test_one_axis_is_fitted_as_least_squares_fit_it() -> None:
    generator = np.random.default_rng(0)
    x = np.geomspace(1e5, 1e8, 12)
    y = 2.0 + 40 * x**-0.25 + 0.01 * generator.normal(size=12)
    found = fitted(("parameters",), x[:, None], y)
    (floor, factor, exponent), _ = curve_fit(
        lambda x, e, a, b: e + a * (x / 1e6) ** -b, x, y, p0=(2.0, 1.0, 0.3), maxfev=20_000
    )
    np.testing.assert_allclose(found.law.at(x[:, None]), floor + factor * (x / 1e6) ** -exponent, atol=2e-4)


def test_the_band_holds_the_truth_and_widens_beyond_what_was_tried() -> None:
    inside = []
    for seed in range(10):
        noise = 0.02 * np.random.default_rng(seed).normal(size=len(GRID))
        y = 1.2 + 30 * GRID[:, 0] ** -0.3 + 2 * GRID[:, 1] ** -0.4
        found = fitted(("parameters", "hours"), GRID, y + noise, seed=seed, draws=60)
        low, high = found.band(GRID)
        inside.append(np.mean((low <= y) & (y <= high)))
        near, far = (np.subtract(*found.band(np.array([p]))[::-1])[0] for p in ((1e6, 300), (1e9, 3e5)))
        assert far > near
    assert np.mean(inside) > 0.75


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (GRID[:8], "3 or more parameters, here are 2"),
        (GRID[[0, 5, 10, 15, 3]], "needs 6 trials, here are 5"),
        (np.vstack([GRID, [[0.0, 1.0]]]), "above 0"),
    ],
)
def test_sizes_without_a_curve_give_the_reason(x: np.ndarray, words: str) -> None:
    assert words in str(scaling.fit(("parameters", "hours"), x, np.ones(len(x))))
