"""Fewer of many, without chance."""

import numpy as np


def spread(places: np.ndarray, most: int) -> np.ndarray:
    """At most so many of `places`, evenly."""
    if len(places) <= most:
        return places
    return places[np.linspace(0, len(places) - 1, most).round().astype(int)]
