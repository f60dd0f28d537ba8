"""Images of windows against float64 loops over samples, bins and pairs."""

import json
import math

import numpy as np
import pytest
import torch
from scipy import signal

from cluster.config import validate
from cluster.errors import PlethoraError
from finetune import imaging
from finetune.imaging import Images, Imaging, images, shapes, spec_augment


def z(v: np.ndarray) -> np.ndarray:
    return (v - v.mean()) / (v.std(ddof=1) + 1e-6)


def spectrum(x: np.ndarray, c: Imaging) -> np.ndarray:
    """(H, W) complex128, a frame at a time: mirrored ends, Hann window, discrete Fourier transform."""
    half, win = c.n_fft // 2, c.win or c.n_fft
    x = np.pad(x, half, mode="reflect")
    hann = np.zeros(c.n_fft)
    hann[(c.n_fft - win) // 2 :][:win] = signal.get_window("hann", win)
    angles = np.outer(np.arange(half + 1), np.arange(c.n_fft)) % c.n_fft  # exact, where a sum would round
    turns = np.exp(-2j * np.pi * angles / c.n_fft)
    columns = [turns @ (x[a : a + c.n_fft] * hann) for a in range(0, len(x) - c.n_fft + 1, c.hop)]
    found = np.stack(columns, axis=1)
    found[[0, -1]] = found[[0, -1]].real  # of a real signal, exactly; the sum leaves rounding behind
    return found


def floored(v: np.ndarray, c: Imaging) -> np.ndarray:
    return v if c.floor is None else np.maximum(v, v.max() - c.floor)


def reference(x: np.ndarray, name: str, c: Imaging) -> np.ndarray:
    """(T,) -> (3, H, W), float64."""
    x = x.astype(np.float64)
    if name == "recurrence":
        first = [0.0] + [x[i] - x[i - 1] for i in range(1, len(x))]
        second = [0.0] + [first[i] - first[i - 1] for i in range(1, len(x))]
        planes = []
        for v in (x, np.array(first), np.array(second)):
            v = z(v[:: c.stride])
            plane = np.empty((len(v), len(v)))
            for i, value in enumerate(v):
                gap = np.abs(value - v)
                plane[i] = np.exp(-(gap**2) / (2 * c.sigma**2)) if c.threshold is None else gap <= c.threshold
            planes.append(z(plane))
        return np.stack(planes)
    found = spectrum(x, c)
    log = np.log if c.log == "natural" else lambda v: 10 * np.log10(v)
    if name == "stft":
        return np.stack([z(floored(log(np.abs(found) ** 2 + 1e-6), c))] * 3)
    size = np.log(np.abs(found) + 1e-6) if c.log == "natural" else 20 * np.log10(np.abs(found) + 1e-6)
    return np.stack([z(floored(size, c)), z(np.cos(np.angle(found))), z(np.sin(np.angle(found)))])


def noise(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.normal(0, 1, n)


def pulse(rng: np.random.Generator, n: int) -> np.ndarray:
    """Beats, band-passed as prepared windows are: bins above 8 Hz lie 100 dB under the strongest."""
    t = np.arange(n) / 40
    x = sum(np.sin(2 * np.pi * h * rng.uniform(0.9, 1.6) * t) / h**2 for h in (1, 2, 3))
    sos = signal.butter(2, (0.5, 8), "bandpass", fs=40, output="sos")
    return signal.sosfiltfilt(sos, x + rng.normal(0, 0.01, n)).copy()


def counts(rng: np.random.Generator, n: int) -> np.ndarray:
    """As a converter gives them: a small pulse on a large offset."""
    return 2000 + 25 * pulse(rng, n)


CONSTANTS = {
    "paper": Imaging(),
    "code": Imaging(preset="code"),
    "ppg_bp": Imaging(preset="ppg_bp"),
    "other": Imaging(n_fft=96, win=60, hop=11, floor=None, stride=7, sigma=0.3, window_s=12),
    "threshold": Imaging(threshold=0.4, stride=5, window_s=10),
}


@pytest.mark.parametrize("name", imaging.TRANSFORMS)
@pytest.mark.parametrize("constants", CONSTANTS)
@pytest.mark.parametrize("draw", [noise, pulse, counts])
def test_images_are_those_of_a_float64_loop_within_1e_5(name, constants, draw):
    c = CONSTANTS[constants].model_copy(update={"transform": name})
    rng = np.random.default_rng(hash_of(name, constants, draw.__name__))
    x = np.stack([draw(rng, c.samples) for _ in range(1 if name == "recurrence" else 3)]).astype(np.float32)
    (found,) = images(torch.from_numpy(x), c)
    assert found.pixels.dtype == torch.float32 and bool(found.valid.all())
    wanted = np.stack([reference(row, name, c) for row in x])
    assert found.pixels.shape == wanted.shape
    np.testing.assert_allclose(found.pixels.numpy(), wanted, atol=1e-5, rtol=0)


def hash_of(*parts: str) -> int:
    return sum(ord(letter) * 31**i for i, letter in enumerate("".join(parts))) % 2**32


def test_the_papers_window_gives_the_papers_sizes():
    found = images(torch.randn(2, 1200), Imaging(transform="fusion"))
    assert [tuple(f.pixels.shape) for f in found] == [(2, 3, 65, 76), (2, 3, 65, 76), (2, 3, 600, 600)]
    assert [tuple(f.valid.shape) for f in found] == [(2, 65, 76), (2, 65, 76), (2, 600, 600)]


@pytest.mark.parametrize("name", imaging.TRANSFORMS)
def test_a_batch_is_a_loop_over_its_windows(name, monkeypatch):
    monkeypatch.setattr(imaging, "PAIRS", 3 * 2 * 100**2)
    monkeypatch.setattr(imaging, "POINTS", 4 * 800)
    c = Imaging(transform=name, stride=8)
    x = torch.from_numpy(np.stack([pulse(np.random.default_rng(i), 800) for i in range(7)]))
    (whole,) = images(x, c)
    for i in range(7):
        (alone,) = images(x[i : i + 1], c)
        torch.testing.assert_close(whole.pixels[i], alone.pixels[0], atol=2e-6, rtol=0)


def test_recurrence_works_on_one_window_at_a_time_however_many_come(monkeypatch):
    seen = []
    work = imaging._recurrence

    def watched(x: torch.Tensor, **given):
        seen.append(len(x))
        return work(x, **given)

    monkeypatch.setattr(imaging, "_recurrence", watched)
    (found,) = images(torch.randn(5, 1200), Imaging(transform="recurrence"))
    assert seen == [1] * 5 and len(found.pixels) == 5


@pytest.mark.parametrize("name", imaging.TRANSFORMS)
def test_a_shorter_window_in_a_batch_is_its_own_image_and_the_rest_is_masked(name):
    c = Imaging(transform=name, stride=8)
    rng = np.random.default_rng(5)
    lengths = [800, 511, 65, 333]
    x = np.full((4, 800), np.nan, np.float32)  # whatever padding holds leaves no trace
    for row, n in zip(x, lengths, strict=True):
        row[:n] = pulse(rng, n)
    (found,) = images(torch.from_numpy(x), c, torch.tensor(lengths))
    for i, n in enumerate(lengths):
        (alone,) = images(torch.from_numpy(x[i : i + 1, :n]), c)
        height, width = alone.pixels.shape[2:]
        torch.testing.assert_close(found.pixels[i, :, :height, :width], alone.pixels[0], atol=5e-6, rtol=0)
        assert bool(found.valid[i, :height, :width].all())
        assert int(found.valid[i].sum()) == height * width
        assert float((found.pixels[i] * ~found.valid[i]).abs().max()) == 0


def test_the_natural_logarithms_floor_is_idle_and_the_decibel_floor_is_not():
    x = torch.from_numpy(pulse(np.random.default_rng(0), 1200)[None])
    for preset, idle in (("code", True), ("paper", False)):
        (with_floor,), (without,) = (
            images(x, validate(Imaging, {"preset": preset, "floor": floor}, "")) for floor in (80.0, None)
        )
        assert torch.equal(with_floor.pixels, without.pixels) == idle


def test_a_flat_window_gives_finite_images():
    for image in images(torch.full((1, 1200), 3.0), Imaging(transform="fusion")):
        assert bool(image.pixels.isfinite().all())


def test_nothing_flows_back_through_an_image():
    (found,) = images(torch.randn(1, 1200, requires_grad=True), Imaging())
    assert not found.pixels.requires_grad


def test_too_short_a_window_is_refused_with_a_way_out():
    with pytest.raises(PlethoraError, match=r"40 samples are too few for n_fft = 128.*n_fft up to 78"):
        imaging.checked(Imaging(), 40)
    with pytest.raises(ValueError, match="too few"):
        images(torch.randn(2, 1200), Imaging(), torch.tensor([1200, 60]))
    with pytest.raises(PlethoraError, match="too few"):
        validate(Imaging, {"window_s": 1.5}, "[imaging]")
    with pytest.raises(PlethoraError, match="win = 200 is longer than n_fft"):
        validate(Imaging, {"win": 200}, "[imaging]")
    assert shapes(Imaging(), 65) == [(65, 5)]


def test_a_preset_fills_what_is_not_given_and_survives_being_stored():
    c = validate(Imaging, {"preset": "ppg_bp", "transform": "recurrence", "hop": 2}, "[imaging]")
    assert (c.samples, c.win, c.hop, c.stride) == (84, 40, 2, 1)
    assert shapes(c, c.samples) == [(84, 84)]
    assert shapes(Imaging(preset="ppg_bp"), 84) == [(65, 85)]
    assert Imaging.model_validate(json.loads(c.model_dump_json())) == c
    assert Imaging(preset="code").log == "natural"


def test_specaugment_hides_bands_no_wider_than_asked_for_and_every_width_is_drawn_alike():
    c = Imaging(rows_hidden=4, columns_hidden=3)
    ones = Images(torch.ones(5000, 3, 9, 20), torch.ones(5000, 9, 20, dtype=torch.bool))
    draw = torch.rand(5000, 4, generator=torch.Generator().manual_seed(0))
    hidden = spec_augment(ones, c, draw).pixels == 0
    assert torch.equal(hidden[:, 0], hidden[:, 1])
    rows, columns = hidden[:, 0].all(2), hidden[:, 0].all(1)
    for found, most in ((rows, 4), (columns, 3)):
        widths = found.sum(1)
        share = torch.bincount(widths, minlength=most + 1) / 5000
        assert len(share) == most + 1
        assert float((share - 1 / (most + 1)).abs().max()) < 4 * math.sqrt(0.2 / 5000)
        edges = (found[:, 1:] != found[:, :-1]).sum(1)
        assert int(edges.max()) <= 2  # one band, not several
    assert bool(rows[:, 0].any()) and bool(rows[:, -1].any()) and bool(columns[:, -1].any())
    assert torch.equal(hidden[:, 0], rows[:, :, None] | columns[:, None, :])
