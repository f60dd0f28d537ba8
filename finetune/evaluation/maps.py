"""Vectors → a map of two coordinates, to look at."""

import numpy as np

SHOWN = 1500  # windows; more make the picture no clearer
LEAST = 8  # windows below which a map says nothing


def flat(vectors_nd: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Rows of the windows shown (m,), their places (m, 2) and the share of the variance that each axis keeps
    (2,): the first two principal components of the standardised vectors, which is what a linear probe is
    given. None where there are too few windows, or fewer than two directions.
    """
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    rows = np.flatnonzero(np.isfinite(vectors_nd).all(axis=1))
    if len(rows) > SHOWN:
        rows = np.sort(np.random.default_rng([seed, 0x3A9]).choice(rows, SHOWN, replace=False))
    if len(rows) < LEAST or np.sum(np.ptp(vectors_nd[rows], axis=0) > 0) < 2:
        return None
    fit = PCA(2, random_state=seed)
    places = fit.fit_transform(StandardScaler().fit_transform(vectors_nd[rows].astype(np.float64)))
    return rows, places, np.asarray(fit.explained_variance_ratio_)
