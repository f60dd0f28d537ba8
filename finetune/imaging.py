"""PPG windows -> images for a vision backbone (Vision4PPG, arXiv 2510.10366; facts in DESIGN 8.4).

Pure and batched, on the device of the input, without gradient. B windows, T samples, H rows, W columns.
"code" in a comment is the authors' release (saurabh-kataria/Vision4PPG).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from cluster.config import Config
from cluster.errors import PlethoraError

Transform = Literal["stft", "complex", "recurrence"]
TRANSFORMS: tuple[Transform, ...] = get_args(Transform)
PAIRS = 2_000_000  # recurrence: pairs of samples (times three channels) worked on at once
POINTS = 40_000  # STFT: samples worked on at once, so that they stay in the processor's cache

_PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    # With the natural logarithm values span some 30 at most, so that a floor 80 below the highest is idle.
    "code": {"log": "natural"},
    # PPG-BP's segments last 2.1 s: 84 samples, of which the paper's constants make 6 columns that each mirror
    # the segment's ends into one 3.2-s window, and a recurrence of 42 x 42. Here the rate and the spacing of
    # rows (0.3125 Hz) stay the paper's, so that rows mean the same; the analysis window is 1 s, a beat, zero-
    # padded to n_fft; a step of one sample gives 85 columns; recurrence keeps every sample: 84 x 84.
    "ppg_bp": {"window_s": 2.1, "win": 40, "hop": 1, "stride": 1},
}
Preset = Literal["paper", "code", "ppg_bp"]


class Imaging(Config):
    """Constants of the transforms. `preset` fills what is not given; what it fills is stored beside it."""

    preset: Preset = "paper"
    transform: Literal["stft", "complex", "recurrence", "fusion"] = "stft"  # fusion: an image of each
    rate: float = Field(default=40.0, gt=0)  # Hz, paper
    window_s: float = Field(default=30.0, gt=0)  # paper
    n_fft: int = Field(default=128, ge=4)  # paper
    win: int | None = Field(default=None, ge=2)  # samples of the Hann window, centred in n_fft; None: n_fft
    hop: int = Field(default=16, ge=1)  # paper
    log: Literal["db", "natural"] = "db"  # unstated in the paper; code: natural
    floor: float | None = Field(
        default=80.0, gt=0
    )  # lowest value under the highest, in the unit of `log`; paper
    eps: float = Field(default=1e-6, gt=0)  # paper
    stride: int = Field(default=2, ge=1)  # recurrence keeps every so-many-th sample; paper
    sigma: float = Field(default=0.5, gt=0)  # paper, in standard deviations of the channel
    threshold: float | None = Field(
        default=None, gt=0
    )  # given: |difference| up to it is 1, else 0, no Gaussian
    spec_augment: bool = False  # in training, on STFT images; code: an option that is off
    rows_hidden: int = Field(default=4, ge=0)  # SpecAugment: at most so many; code
    columns_hidden: int = Field(default=4, ge=0)  # code

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {**_PRESETS.get(str(given.get("preset")), {}), **given}

    @model_validator(mode="after")
    def _check(self) -> Imaging:
        if self.win is not None and self.win > self.n_fft:
            raise ValueError(f"win = {self.win} is longer than n_fft = {self.n_fft}")
        shapes(self, self.samples)
        return self

    @property
    def samples(self) -> int:
        """T of a whole window."""
        return round(self.rate * self.window_s)

    @property
    def transforms(self) -> tuple[Transform, ...]:
        """The images that a window becomes, in order."""
        return TRANSFORMS if self.transform == "fusion" else (self.transform,)


class Images(NamedTuple):
    """`pixels` (B, 3, H, W) float32, z-scored over the valid ones, 0 elsewhere; `valid` (B, H, W) bool."""

    pixels: Tensor
    valid: Tensor


Found = tuple[Tensor, Tensor | None]  # pixels (one channel where all are equal) and valid, None: all


def shapes(c: Imaging, samples: int) -> list[tuple[int, int]]:
    """(H, W) of each of `c.transforms` for windows of so many samples. ValueError where too short for one."""
    found = []
    for name in c.transforms:
        if name == "recurrence":
            side = -(-samples // c.stride)
            if side < 2:
                raise ValueError(
                    f"{samples} samples at stride {c.stride} leave no two points to compare: take longer "
                    "windows or a smaller stride"
                )
            found.append((side, side))
            continue
        if samples <= c.n_fft // 2:
            raise ValueError(
                f"{samples} samples are too few for n_fft = {c.n_fft}, whose ends mirror {c.n_fft // 2}: "
                f"take windows of at least {(c.n_fft // 2 + 1) / c.rate:g} s, or n_fft up to "
                f"{2 * samples - 2}"
            )
        found.append((c.n_fft // 2 + 1, samples // c.hop + 1))
    return found


@torch.no_grad()
def images(x_bt: Tensor, c: Imaging, samples_b: Tensor | None = None) -> list[Images]:
    """(B, T) windows at `c.rate`, any unit -> the images of each of `c.transforms`.

    samples_b: (B,) int64, how many samples of each window are there, from its start (None: all T); the rest
    is padding, which leaves no trace in the image but invalid pixels. Windows are worked on some at a time,
    and a window's images do not depend on its company. T or samples_b below what `shapes` allows: ValueError.
    """
    x = x_bt.double()  # weak bins lie under what float32 keeps of strong ones, and take half the image
    shapes(c, int(x.shape[1] if samples_b is None else samples_b.min()))
    return [_in_parts(name, x, c, samples_b) for name in c.transforms]


def _in_parts(name: Transform, x: Tensor, c: Imaging, n_b: Tensor | None) -> Images:
    """Some windows at a time, so that memory beyond the result does not grow with the batch."""
    batch, t = x.shape
    side = -(-t // c.stride)
    image = (
        partial(_recurrence, c=c) if name == "recurrence" else partial(_SPECTRAL[name], c=c, hann=_hann(x, c))
    )
    part = max(1, PAIRS // (3 * side**2) if name == "recurrence" else POINTS // t)
    if torch.compiler.is_exporting() or batch <= part:
        pixels, valid = image(x, n_b=n_b)
    else:
        pixels, valid = x.new_empty(0), None
        for low in range(0, batch, part):
            at = slice(low, low + part)
            found, there = image(x[at], n_b=None if n_b is None else n_b[at])
            if low == 0:
                pixels = _room(batch, found)
                valid = None if there is None else there.new_empty((batch, *there.shape[1:]))
            pixels[at] = found
            if valid is not None and there is not None:
                valid[at] = there
    if valid is None:
        valid = torch.ones((), dtype=torch.bool, device=x.device).expand(batch, *pixels.shape[2:])
    if name != "recurrence":
        pixels, valid = pixels.transpose(2, 3), valid.transpose(1, 2)
    return Images(pixels.expand(-1, 3, -1, -1), valid)


def _room(batch: int, one: Tensor) -> Tensor:
    """(batch, …) float32 like `one`, to be filled. On a CPU from NumPy, which asks for huge pages: torch
    memory of its own, new at every call, costs as much to touch first as a recurrence to work out."""
    shape = (batch, *one.shape[1:])
    return torch.from_numpy(np.empty(shape, np.float32)) if one.device.type == "cpu" else one.new_empty(shape)


def _stft(x: Tensor, c: Imaging, hann: Tensor, n_b: Tensor | None) -> Found:
    """Log-power: log(|X|² + eps), floored, z-scored; of the three equal channels one."""
    spectrum, valid = _spectrum(x, c, hann, n_b)
    power = spectrum.square_()
    power = power[..., 0] + power[..., 1]
    return _logs(power, c, valid, 10.0)[:, None], valid


def _complex(x: Tensor, c: Imaging, hann: Tensor, n_b: Tensor | None) -> Found:
    """z(log(|X| + eps)) floored, z(cos φ), z(sin φ); φ of an empty bin is 0."""
    spectrum, valid = _spectrum(x, c, hann, n_b)
    re, im = spectrum.unbind(-1)
    size = re.square().add_(im.square()).sqrt_()
    safe = size.clamp(min=torch.finfo(size.dtype).tiny)
    cos, sin = (re / safe).masked_fill_(size == 0, 1.0), im / safe
    planes = [_logs(size, c, valid, 20.0), _zscore(cos, valid), _zscore(sin, valid)]
    return torch.stack(planes, dim=1), valid


def _recurrence(x: Tensor, c: Imaging, n_b: Tensor | None) -> Found:
    """exp(-D²/2σ²), or |D| <= threshold, of z(x), z(Δx), z(Δ²x), each z-scored again; differences are taken
    at the full rate and start with 0."""
    first = torch.diff(x, prepend=x[:, :1])
    second = torch.diff(first, prepend=first[:, :1])
    v = torch.stack([x, first, second], dim=1)[..., :: c.stride]
    point = None
    if n_b is not None:
        point = torch.arange(v.shape[-1], device=x.device) * c.stride < n_b[:, None]  # (B, N)
    v = _zscore(v, None if point is None else point[:, None].expand(-1, 3, -1), over=1)
    if c.threshold is None:
        v = (v / (c.sigma * 2**0.5)).float()
        near = (v[..., :, None] - v[..., None, :]).square_().neg_().exp_()
    else:
        near = ((v[..., :, None] - v[..., None, :]).abs() <= c.threshold).float()
    valid = None if point is None else point[:, :, None] & point[:, None, :]
    return _zscore(near, None if valid is None else valid[:, None]), valid


_SPECTRAL: dict[str, Callable[..., Found]] = {"stft": _stft, "complex": _complex}


def _hann(x: Tensor, c: Imaging) -> Tensor:
    win = c.win or c.n_fft
    left = (c.n_fft - win) // 2
    return F.pad(torch.hann_window(win, dtype=x.dtype, device=x.device), (left, c.n_fft - win - left))


def _spectrum(x: Tensor, c: Imaging, hann: Tensor, n_b: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """(B, W, H, 2) float32, real and imaginary, of the centred, one-sided STFT with periodic Hann windows,
    and what of it is there (None: all). A window's ends are mirrored at its own last sample.

    Time goes first, as the transform leaves it: what follows takes four times as long on the transpose.
    """
    half = c.n_fft // 2
    valid = None
    if n_b is None:
        ends = x[:, 1 : half + 1].flip(1), x[:, -half - 1 : -1].flip(1)
        padded = torch.cat([ends[0], x, ends[1]], dim=1)
    else:
        last = n_b[:, None] - 1
        at = torch.arange(-half, x.shape[1] + half, device=x.device).abs().expand(len(x), -1)
        padded = x.gather(1, (last - (last - at).abs()).clamp(min=0))
        columns = torch.arange(x.shape[1] // c.hop + 1, device=x.device) * c.hop <= n_b[:, None]
        valid = columns[..., None].expand(-1, -1, half + 1)
    found = torch.fft.rfft(padded.unfold(1, c.n_fft, c.hop) * hann)
    return torch.view_as_real(found).float(), valid


def _logs(v: Tensor, c: Imaging, valid: Tensor | None, decibel: float) -> Tensor:
    """log(v + eps), in place, in the unit of `c.log` (dB: `decibel` · log10), floored, z-scored."""
    unit = decibel / math.log(10) if c.log == "db" else 1.0
    v = _log_(v.add_(c.eps))  # z takes the unit away again, so the floor and z's own 1e-6 go by it instead
    if c.floor is not None:
        seen = v if valid is None else v.masked_fill(~valid, -torch.inf)
        v = v.clamp_(min=seen.amax(dim=(-2, -1), keepdim=True) - c.floor / unit)
    return _zscore(v, valid, small=1e-6 / unit)


def _log_(v: Tensor) -> Tensor:
    """The natural logarithm, in place: on a CPU by NumPy, which takes a third of torch's time for float32."""
    if v.device.type != "cpu" or torch.compiler.is_exporting():
        return v.log_()
    np.log(v.numpy(), out=v.numpy())
    return v


def _zscore(v: Tensor, valid: Tensor | None, over: int = 2, small: float = 1e-6) -> Tensor:
    """(v - mean) / (sample standard deviation + small), over the valid ones of the last `over` dimensions;
    others become 0. In place: fresh memory costs more than the arithmetic, torch.var_mean ten times as much.
    """
    dim = tuple(range(-over, 0))
    if valid is None:
        n: Any = 1
        for size in v.shape[-over:]:
            n = n * size
        v.sub_(v.mean(dim=dim, keepdim=True))
    else:
        n = valid.sum(dim=dim, keepdim=True)
        v.masked_fill_(~valid, 0)
        v.sub_(v.sum(dim=dim, keepdim=True) / n).masked_fill_(~valid, 0)
    deviation = v
    for axis in reversed(dim):  # one after the other: float32 adds up 360,000 squares to five digits only
        deviation = torch.linalg.vector_norm(deviation, dim=axis, keepdim=True)
    deviation = deviation / (n - 1) ** 0.5
    return v.div_(deviation + small)


def spec_augment(found: Images, c: Imaging, uniform_b4: Tensor) -> Images:
    """Sets up to `rows_hidden` neighbouring rows and `columns_hidden` columns of each image to 0, its mean.

    uniform_b4: (B, 4) in [0, 1): widths and places, rows first; a width is any of 0 … its most alike.
    """
    pixels = found.pixels
    hidden = torch.zeros_like(found.valid)
    for axis, most in ((1, c.rows_hidden), (2, c.columns_hidden)):
        size = hidden.shape[axis]
        width = (uniform_b4[:, 2 * axis - 2] * (min(most, size) + 1)).floor()
        start = (uniform_b4[:, 2 * axis - 1] * (size - width + 1)).floor()
        at = torch.arange(size, device=pixels.device)
        inside = (at >= start[:, None]) & (at < (start + width)[:, None])
        hidden = hidden | (inside[:, :, None] if axis == 1 else inside[:, None, :])
    return Images(pixels.masked_fill(hidden[:, None], 0.0), found.valid)


def checked(c: Imaging, samples: int) -> list[tuple[int, int]]:
    """`shapes`, with what is wrong as a PlethoraError."""
    try:
        return shapes(c, samples)
    except ValueError as error:
        raise PlethoraError(f"[imaging] transform = {c.transform!r}: {error}") from None
