"""Prepares raw windows (`datasets.raw`) on the module's device: `signal.prepare` in torch.

Filter, resampling, scale, polarity and normalisation are as `windows.transform` does them, in float64 up to
the last cast. Signals whose steps are not fused (`Signal.fused`) are prepared on the host, by
`signal.prepare` itself; a stream that may choose leaves them to its actors (`stream.prepare = "auto"`).

The host never waits for the device: rates, and with them all shapes, are known on the host.

Batching: all steps run on exactly TOGETHER windows of one native rate, the last call padded, so that the
library sees one shape whatever the batch holds. On the CPU a window's result is then bit-identical whatever
it is batched with (tests). On CUDA this holds as far as cuFFT and cuBLAS treat the rows of one call alike,
which they do not promise.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from datasets import ecg, zerophase
from datasets.raw import GAINS
from datasets.signal import Signal, check_band, length, notch, prepare, short
from datasets.windows import WindowSpec, passes

TOGETHER = 32  # windows per call: small batches are slow in MKL's transforms and others


@dataclass(frozen=True)
class Cuts:
    """n windows of one signal as a corpus holds them. They may differ in native rate."""

    raw: Tensor  # (n, channels, longest) int16: each window's own samples first. On the host or the device
    rate: np.ndarray  # (n,) float64, native, Hz; 0: the window lacks this signal
    scale: np.ndarray  # (n,) float64: physical = raw · scale + offset
    offset: np.ndarray
    window_s: float


def batch_on(
    device: torch.device, spec: WindowSpec, batch: Mapping[str, np.ndarray | Tensor]
) -> dict[str, Tensor]:
    """Equals `windows.extract`, on `device`, for the output of `raw.gather` (or rows of it) on the host.

    Returns {modality: (n, channels, window_s · rate) float32, zeros where absent} and for each optional
    modality {"has_" + modality: (n,) bool}. Raises PlethoraError as `signal.prepare` does.
    """
    host = {name: torch.as_tensor(x) for name, x in batch.items()}
    out = {}
    for sig in spec.signals:
        m = sig.modality
        rate, scale, offset = (host[m + part].numpy() for part in GAINS)
        cuts = Cuts(host[m], rate, scale, offset, spec.window_s)
        out[m] = prepared(cuts, sig, round(spec.window_s * sig.rate), device)
    return out | {f"has_{m}": _sent(host[f"has_{m}"], device) for m in spec.optional}


def prepared(cuts: Cuts, sig: Signal, to: int, device: torch.device) -> Tensor:
    """(n, channels, to) float32 on `device`: `windows.transform` of the same windows; zeros where absent.

    The result is that of `transform` to rounding: in float64 the two differ by less than 1e-9 of the window's
    range, in float32 mostly not at all, else in the last place. Windows that need nothing but their gain are
    equal bit for bit. Two exceptions, neither of which matters to a model: a normalised window of which a
    filter leaves nothing but rounding; and an ECG whose polarity (`ecg.inverted`) depends on a median that is
    zero to rounding, whose sign may differ. Raises PlethoraError if the band does not fit under half a native
    rate.
    """
    out = torch.zeros(len(cuts.rate), sig.channels, to, device=device)
    calls = list(_calls(cuts, sig))
    if not calls:
        return out
    places = np.concatenate([np.resize(which, TOGETHER) for _, which in calls])  # the last call is padded
    at = _sent(torch.from_numpy(places), device)
    gains = _sent(torch.from_numpy(np.stack([cuts.scale[places], cuts.offset[places]])), device)
    raw = _sent(cuts.raw, device)
    for number, (rate, which) in enumerate(calls):
        here = slice(number * TOGETHER, (number + 1) * TOGETHER)
        size, n = int(length(cuts.window_s, rate)), len(which)
        host = not sig.fused or (filters(sig, rate) and short(sig, size))
        if host and not passes(sig, rate, size, to):
            # where scipy's padding is too long it is shortened, which `zerophase` does not support
            x = cuts.raw[torch.from_numpy(which), :, :size].cpu().numpy().astype(np.float64)
            if not sig.removes_offset:
                x += (cuts.offset / cuts.scale)[which, None, None]
            done = _sent(torch.from_numpy(prepare(x, rate, sig, cuts.scale[which], to)), device)
        else:
            some = raw.index_select(0, at[here])[..., :size]
            done = whole(some, rate, gains[0, here], gains[1, here], sig, to)[:n]
        out.index_copy_(0, at[here][:n], done)
    return out


def _calls(cuts: Cuts, sig: Signal) -> Iterator[tuple[float, np.ndarray]]:
    """(native rate, which windows): at most TOGETHER of one rate each, without windows that lack the
    signal."""
    for rate in np.unique(cuts.rate[cuts.rate > 0]).tolist():
        which = np.flatnonzero(cuts.rate == rate)
        for low in range(0, len(which), TOGETHER):
            yield rate, which[low : low + TOGETHER]


def filters(sig: Signal, rate: float) -> bool:
    """Whether `sig` filters a recording of `rate` Hz."""
    return sig.band is not None or notch(sig, rate) is not None


def _sent(x: Tensor, device: torch.device) -> Tensor:
    """`x` on `device`, from pinned memory: a copy from other memory would wait for the device's queue."""
    if device.type != "cuda" or x.device.type == "cuda":
        return x.to(device)
    return (x if x.is_pinned() else x.pin_memory()).to(device, non_blocking=True)


def whole(raw: Tensor, rate: float, scale: Tensor, offset: Tensor, sig: Signal, to: int) -> Tensor:
    """raw: (n, channels, samples) int16 of one native rate in Hz → (n, channels, to) float32."""
    if passes(sig, rate, raw.shape[-1], to):  # as `transform`, in float32
        return raw.float().mul_(scale.float()[:, None, None]).add_(offset.float()[:, None, None])
    return exact(raw, rate, scale, offset, sig, to).float()


def exact(raw: Tensor, rate: float, scale: Tensor, offset: Tensor, sig: Signal, to: int) -> Tensor:
    """`signal.prepare` of raw (n, channels, samples) int16, before its cast: (n, channels, to) float64.

    rate: native, in Hz; scale, offset: (n,) float64. `n` should be TOGETHER, see above.
    """
    y = raw.double()
    if not sig.removes_offset:
        y += (offset / scale)[:, None, None]
    if filters(sig, rate):
        check_band(sig.band, rate)
        y = _filter(rate, sig.band, sig.order, y.shape[-1], to, notch(sig, rate), y.device)(y)
    else:
        y = resample(y, to)
    y *= scale[:, None, None]
    if sig.upright:
        y *= 1.0 - 2.0 * inverted(y, sig.rate)[..., None]
    return normalise(y, sig.normalise)


@dataclass(frozen=True)
class _ZeroPhase:
    """A `zerophase.ZeroPhase` whose arrays are on a device."""

    m: int
    gain: Tensor
    u: Tensor
    head: Tensor
    tail: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """x: (n, channels, samples) float64 → (n, channels, m)."""
        y = _inverse(torch.fft.rfft(x)[..., : len(self.gain)] * self.gain, self.m)
        edges = _each(x[..., : len(self.head)], self.head)
        if len(self.tail):
            edges = edges + _each(x[..., -len(self.tail) :], self.tail)
        rows = edges.view(-1, 1, edges.shape[-1])
        y.view(len(rows), 1, self.m).baddbmm_(rows, self.u.expand(len(rows), -1, -1))
        return y


@lru_cache(maxsize=16)
def _filter(
    rate: float,
    band: zerophase.Band | None,
    order: int,
    n: int,
    m: int,
    mains: float | None,
    device: torch.device,
) -> _ZeroPhase:
    """`zerophase.design`, copied to `device` once."""
    of = zerophase.design(rate, band, order, n, m, mains)
    parts = (torch.tensor(x, device=device) for x in (of.gain, of.u, of.head, of.tail))
    return _ZeroPhase(m, *parts)


def _each(x: Tensor, of: Tensor) -> Tensor:
    """x (n, channels, k) @ of (k, s), one product per row: a single product of all rows sums in an order that
    depends on the row's position.
    """
    rows = x.reshape(-1, 1, x.shape[-1])
    return torch.bmm(rows, of.expand(len(rows), -1, -1)).view(*x.shape[:-1], -1)


def resample(x: Tensor, m: int) -> Tensor:
    """`signal.resample`. (…, T) → (…, m)."""
    n = x.shape[-1]
    if m == n:
        return x
    keep = min(n, m)
    spectrum = torch.fft.rfft(x)[..., : keep // 2 + 1]
    if keep % 2 == 0:
        spectrum[..., -1] *= 2.0 if m < n else 0.5
    return _inverse(spectrum, m) * (m / n)


def _inverse(spectrum: Tensor, m: int) -> Tensor:
    """The real signal (…, m) of a half spectrum (…, bins), which it modifies: scipy ignores the imaginary
    part that truncation leaves at the Nyquist frequency, and cuFFT does not promise to.
    """
    if m == 2 * (spectrum.shape[-1] - 1):
        spectrum[..., -1].imag.zero_()
    return torch.fft.irfft(spectrum, m)


def normalise(x: Tensor, how: str) -> Tensor:
    """`signal.normalise`: per window and channel, a constant window becomes zeros."""
    if how == "none":
        return x
    x = x - x[..., :1]  # makes a constant exactly zero, which subtracting the mean may miss by rounding
    if how != "zscore":
        low, high = x.aminmax(dim=-1, keepdim=True)
        span = _or_one(high - low)
        return (x - low) / span if how == "minmax" else ((x - low) - (high - x)) / span
    x -= x.mean(dim=-1, keepdim=True)
    return x / _or_one(x.square().mean(dim=-1, keepdim=True).sqrt())


def _or_one(spread: Tensor) -> Tensor:
    return torch.where(spread > 0, spread, 1.0)


def inverted(x: Tensor, rate: float) -> Tensor:
    """`ecg.inverted`: x (n, channels, samples) float64 at `rate` Hz → (n, channels) bool."""
    of = _polarity(x.shape[-1], rate, x.device)
    y = x - x[..., :1]
    fitted = _each(_each(y, of.line).to(of.lines.dtype), of.lines)
    band = _inverse((torch.fft.rfft(y * of.taper)[..., : of.bins] - fitted) * of.gain, of.m)
    low, high = band[..., : of.blocks * of.size].unflatten(-1, (of.blocks, of.size)).aminmax(dim=-1)
    # the larger deflection with its sign; of two equal ones `ecg` takes the first, arbitrary after a filter
    found = torch.where(high >= -low, high, low).sort(dim=-1).values
    return found[..., (of.blocks - 1) // 2] + found[..., of.blocks // 2] < 0  # twice the median


@dataclass(frozen=True)
class _Polarity:
    """Constants of `ecg.inverted` for windows of one length: `ecg.tapered` and `ecg.passing`."""

    taper: Tensor  # (samples,)
    line: Tensor  # (samples, 2)
    lines: Tensor  # (2, bins) complex
    gain: Tensor  # (bins,)
    bins: int
    m: int
    blocks: int
    size: int


@lru_cache(maxsize=16)
def _polarity(n: int, rate: float, device: torch.device) -> _Polarity:
    taper, line, lines = ecg.tapered(n, float(rate))
    f = np.arange(lines.shape[-1]) * rate / n
    gain, m, at = ecg.passing(f, n, *ecg.QRS_HZ)
    count = ecg.block_count(m, at)
    a, b, c, d = (torch.tensor(x, device=device) for x in (taper, line, lines[:, : len(gain)], gain))
    return _Polarity(a, b, c, d, len(gain), m, count, m // count)
