"""Micro-batches that arrive on a device are those that the stream gave."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from datasets import raw
from datasets.signal import Signal
from datasets.windows import WindowSpec
from pretrain.transfer import arriving

SPEC = WindowSpec(
    signals=(
        Signal(modality="ppg", rate=50.0, band=(0.5, 8.0)),
        Signal(modality="ecg", rate=100.0, normalise="zscore", required=False),
    ),
    window_s=10.0,
)


def batches(count: int) -> Iterator[dict[str, torch.Tensor]]:
    """Raw windows of two native rates; some lack the ECG."""
    rng = np.random.default_rng(3)
    for number in range(count):
        rate = rng.choice([100.0, 125.0], 6)
        there = rng.random(6) < 0.7
        batch = {
            "ppg": rng.integers(-3000, 3000, (6, 1, 1250), dtype=np.int16),
            "ecg": rng.integers(-3000, 3000, (6, 1, 2500), dtype=np.int16) * there[:, None, None],
            "ppg_rate": rate,
            "ecg_rate": np.where(there, 250.0, 0.0),
            "has_ecg": there,
            "step": np.full(6, number),
        }
        for m in ("ppg", "ecg"):
            batch |= {f"{m}_scale": np.full(6, 1e-3), f"{m}_offset": rng.normal(size=6)}
        yield {name: torch.from_numpy(x) for name, x in batch.items()}


def test_raw_windows_arrive_prepared_and_the_rest_as_it_was() -> None:
    given = list(batches(4))
    arrived = list(arriving(iter(given), SPEC, torch.device("cpu"), as_raw=True))
    assert len(arrived) == 4
    for batch, (host, there) in zip(given, arrived, strict=True):
        assert host is batch and set(there) == {"ppg", "ecg", "has_ecg", "step"}
        want = raw.prepared({name: x.numpy() for name, x in batch.items()}, SPEC)
        assert all(np.array_equal(there[name].numpy(), x) for name, x in want.items())
        assert there["ppg"].shape == (6, 1, 500) and there["ecg"].shape == (6, 1, 1000)
        assert (there["ecg"][~batch["has_ecg"]] == 0).all() and torch.equal(there["step"], batch["step"])


def test_prepared_windows_arrive_as_they_are() -> None:
    given = list(batches(2))
    for batch, (host, there) in zip(
        given, arriving(iter(given), SPEC, torch.device("cpu"), as_raw=False), strict=True
    ):
        assert host is batch and all(there[name] is x for name, x in batch.items())


@pytest.mark.gpu
def test_on_a_gpu_raw_windows_arrive_as_numpy_prepares_them_while_it_is_busy() -> None:
    device = torch.device("cuda")
    given = list(batches(8))
    busy = torch.randn(4000, 4000, device=device)
    for batch, (_, there) in zip(given, arriving(iter(given), SPEC, device, as_raw=True), strict=True):
        busy = busy @ busy / busy.norm()
        want = raw.prepared({name: x.numpy() for name, x in batch.items()}, SPEC)
        for name, x in want.items():
            assert there[name].device.type == "cuda"
            np.testing.assert_allclose(
                there[name].cpu().numpy(), x, rtol=0, atol=2e-6 * max(1, np.abs(x).max())
            )
