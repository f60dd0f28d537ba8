#!/bin/sh
# pyPPG: its band-pass (Chebyshev II, order 4, 0.5 to 12 Hz) gives another signal the higher the sampling rate is.
# One would guess: the same pulse at any rate, as scipy's second-order sections give (output="sos", sosfiltfilt).
# pyPPG 1.0.73 filters with numerator and denominator, and poles close to 1 lose their digits: against sections it is
# off by 2e-8 of the range at 125 Hz, 2e-6 at 250 Hz, 1e-3 at 500 Hz; at 1,000 Hz (PPG-BP's rate) by the whole range.
set -e
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
# its other pins do not build on every Python, and the filter needs none of them
"$work/venv/bin/pip" install --quiet --disable-pip-version-check scipy==1.15.3 'numpy<2.3' 'pandas<3' dotmap==1.3.30
"$work/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps pyPPG==1.0.73
cd "$work"
"$work/venv/bin/python" - <<'PY'
from importlib.metadata import version

import numpy as np
from dotmap import DotMap
from pyPPG.preproc import Preprocess
from scipy.signal import cheby2, filtfilt, sosfiltfilt

off = {}
for rate in (125, 250, 500, 1000):
    time = np.arange(10 * rate) / rate
    pulse = 2 + sum(np.sin(2 * np.pi * f * time + f) / (1 + k) for k, f in enumerate((1.3, 2.6, 0.2)))
    pulse += 0.05 * np.random.default_rng(rate).normal(size=len(time))
    found = Preprocess(fL=0.5, fH=12, order=4).get_signals(DotMap(v=pulse, fs=rate, filtering=True))[0]
    sections = cheby2(4, 20, [0.5, 12], "bandpass", output="sos", fs=rate)
    width = round(0.05 * rate)  # pyPPG smooths by a moving average, which is not at fault
    wanted = filtfilt(np.ones(width) / width, 1, sosfiltfilt(sections, pulse))
    inside = slice(rate, -rate)  # the two functions pad the ends differently
    off[rate] = np.abs(found - wanted)[inside].max() / np.ptp(wanted)
    print(f"pyPPG {version('pyPPG')}, {rate} Hz: off by {off[rate]:.2g} of the range")
assert off[125] < off[250] < 1e-4 < off[500] and off[1000] > 0.3, off
PY
