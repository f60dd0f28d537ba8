"""Which held-out windows come first, and what a window weighs on its way."""

from types import SimpleNamespace
from typing import Any

import numpy as np

from datasets.windows import Signal, WindowSpec
from pretrain.data import Data, _turn


def test_each_subject_comes_once_before_any_comes_again() -> None:
    draw = np.random.default_rng(0)
    for n in (0, 1, 40):
        names = draw.integers(0, 7, n)
        wanted = [int((names[:i] == names[i]).sum()) for i in range(n)]
        assert _turn(names).tolist() == wanted


def test_blocks_are_cut_by_the_larger_of_a_windows_two_forms() -> None:
    spec = WindowSpec(signals=(Signal(modality="ecg", rate=100.0, channels=2),), window_s=10.0)
    run: Any = None

    def weighs(*rates: float) -> int:
        corpus = SimpleNamespace(shards=[{"rates": {"ecg": [rate]}} for rate in rates] + [{}])
        found: Any = SimpleNamespace(corpus=corpus)
        return Data(run, spec, [found]).window_bytes

    assert weighs() == weighs(125.0) == 2 * 1000 * 4  # float32 at 100 Hz
    assert weighs(125.0, 1000.0) == 2 * 10_000 * 2  # int16 at 1 kHz
