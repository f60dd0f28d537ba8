"""Fits windows of any length to an encoder: splits them into equal pieces whose vectors are averaged, or pads
them as the bundle's preprocessing.json says.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from finetune.encoders.base import Encoder, Run, Samples, pooled


@dataclass(frozen=True)
class Fit:
    """How windows of one length are fitted to one encoder. `least`: samples at the encoder's rate to which
    `short` pads shorter windows (0: no padding needed).
    """

    window_s: float
    pieces: int
    step: int
    rate: float
    least: int = 0
    short: str = ""

    def said(self) -> str:
        """One phrase for the table; "" where windows need no change."""
        if self.least:
            how = "reflected" if self.short == "reflect" else "repeated"
            return f"windows of {self.window_s:g} s {how} to {self.least / self.rate:g} s"
        total = round(self.window_s * self.rate)
        taken = total // self.pieces // self.step * self.step / self.rate
        if self.pieces > 1:
            return f"{self.pieces} pieces of {taken:g} s each, their vectors averaged"
        return "" if abs(taken - self.window_s) < 1e-6 else f"the first {taken:g} s of {self.window_s:g} s"


def fit(encoder: Encoder, window_s: float) -> Fit:
    """Raises PlethoraError when windows are under the encoder's minimum and its bundle refuses short ones."""
    rate, step = encoder.signal.rate, encoder.samples_step
    if window_s < encoder.min_s - 1e-6 and encoder.short in ("reflect", "repeat"):
        least = -(-round(encoder.min_s * rate) // step) * step
        return Fit(window_s, 1, step, rate, least, encoder.short)
    return Fit(window_s, encoder.pieces(window_s), step, rate)


def run_fitted(run: Run, prepared: Samples, fit: Fit) -> np.ndarray:
    """(n, dim) vectors of prepared windows."""
    return pooled(run, padded(prepared, fit), fit.pieces, fit.step)


def padded(prepared: Samples, fit: Fit) -> Samples:
    """Prepared windows, short ones padded after filtering, because corpus windows are filtered as they are
    read. `Encoder.embed` pads before filtering; the two differ at the seam only.
    """

    def longer(x: np.ndarray) -> np.ndarray:
        if x.ndim == 1:  # has_<modality>
            return x
        pad = ((0, 0), (0, 0), (0, fit.least - x.shape[-1]))
        return np.pad(x, pad, mode="reflect" if fit.short == "reflect" else "wrap")

    if not fit.least:
        return prepared
    return {m: longer(x) for m, x in prepared.items()} if isinstance(prepared, Mapping) else longer(prepared)
