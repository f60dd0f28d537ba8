"""Which held-out windows come first."""

import numpy as np

from pretrain.data import _turn


def test_each_subject_comes_once_before_any_comes_again() -> None:
    draw = np.random.default_rng(0)
    for n in (0, 1, 40):
        names = draw.integers(0, 7, n)
        wanted = [int((names[:i] == names[i]).sum()) for i in range(n)]
        assert _turn(names).tolist() == wanted
