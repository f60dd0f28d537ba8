"""Python code for a bundle's card that goes from raw samples to vectors without Plethora."""

import json
from typing import Any

from datasets.declared import entry_of, signal_of
from datasets.signal import LATEST, Signal

_SNIPPET = '''\
from pathlib import Path

import numpy as np
import onnxruntime
from scipy import signal

BUNDLE = Path(".")  # the folder that holds this README
{constants}
{functions}
HALF = 0.5 + 1e-6  # of a sample is forgiven: 30 s at 124.945 Hz are 3748.35 samples


def steps(samples, rate, want):
    """How many steps of the network so many raw samples at `rate` Hz hold."""
    step, least, most = (want[k] * rate for k in ("multiple_s", "min_s", "max_s"))
    if samples >= most + 1 - 1e-6:
        raise ValueError(
            f"{{samples / rate}} s is longer than the maximum of {{want['max_s']}} s: cut it first"
        )
    if samples >= most - HALF:
        return int(most / step + 1e-6)
    if samples <= least + HALF:
        return int(np.ceil(least / step - 1e-6))
    return int(samples / step + HALF * min(1 / step, 1))


def prepare(raw, rate, want, seconds=None):
    """Raw {takes} at `rate` Hz -> {gives} float32 for the network.

    seconds: how much of it the network gets, by default all whole steps.
    """
{rows}    band = want["band"]  # one without an upper end is a high-pass
    top = band[1] or band[0] if band else want["rate"] / 2
    if not np.isfinite(x).all():
        raise ValueError("NaN or infinite samples: bridge or drop them first")
    if rate < 2 * top or (band and rate == 2 * top):
        raise ValueError(f"{{rate}} Hz cannot hold the band up to {{top}} Hz")
    if rate < (want["min_rate"] or 0):
        raise ValueError(f"{{rate}} Hz is under the {{want['min_rate']}} Hz that are needed")
    count = steps(x.shape[-1], rate, want) if seconds is None else int(seconds / want["multiple_s"] + 1e-6)
    missing = int(np.ceil(count * want["multiple_s"] * rate - HALF)) - x.shape[-1]
    if missing > 0:  # too short: {short}
        if want["short"] == "refuse" or x.shape[-1] < 2:
            raise ValueError(f"{{x.shape[-1] / rate}} s is under the minimum of {{want['min_s']}} s")
        x = np.pad(x, ((0, 0), (0, missing)), mode="reflect" if want["short"] == "reflect" else "wrap")
    else:  # the end that fills no whole step is cut
        x = x[:, : x.shape[-1] + missing]
{steps}    return x{shaped}.astype(np.float32)


{session}


def embed(raw, rate):
    """{doc}"""
{together}    return SESSION.run(None, {feed})[0]
'''

_TAKES = "(samples,) or (windows, samples)"
_ROWS = "    x = np.atleast_2d(np.asarray(raw, dtype=np.float64))\n"
_CHANNELS = """\
    x = np.asarray(raw, dtype=np.float64)
    x = x.reshape(-1, x.shape[-1])  # a row a channel
    if len(x) % want["channels"]:
        raise ValueError(f"{len(x)} rows are no windows of {want['channels']} channels")
"""

_UPRIGHT = '''

def upright(x, rate):
    """ECG windows (windows, n), turned over where the usual largest deflection at 5-20 Hz points down."""
    n = x.shape[-1]
    t = np.linspace(-1, 1, n)
    y = x - x.mean(axis=-1, keepdims=True)
    y = y - (y @ t / (t @ t))[:, None] * t
    edge = np.sin(np.linspace(0, np.pi / 2, max(2, min(round(0.25 * rate), n // 4)))) ** 2
    y[:, : len(edge)] *= edge
    y[:, -len(edge) :] *= edge[::-1]
    f = np.arange(n // 2 + 1) * rate / n
    keep = min(len(f), int(np.searchsorted(f, 50)) + 1)
    gain = np.r_[0, 1 / ((1 + (5 / f[1:keep]) ** 8) * (1 + (f[1:keep] / 20) ** 8))]
    m = min(n, 2 * (keep - 1))
    y = np.fft.irfft(np.fft.rfft(y)[:, :keep] * gain, m)
    count = max(1, int(m / (1.5 * f[1] * m)))
    y = y[:, : m // count * count].reshape(len(y), count, m // count)
    largest = np.take_along_axis(y, np.abs(y).argmax(axis=-1)[..., None], axis=-1)[..., 0]
    return np.where(np.median(largest, axis=-1, keepdims=True) < 0, -x, x)

'''
_TURNED = """\
    if want["upright"]:
        x = upright(x, want["rate"])
"""

# Butterworth and notch, then Fourier resampling; the network normalises
_USUAL = """\
    sections = []  # zero-phase, at the native rate, before resampling
    if band:
        edges, kind = (band, "bandpass") if band[1] else (band[0], "highpass")
        sections.append(signal.butter(want["order"], edges, btype=kind, fs=rate, output="sos"))
    if want["notch"] and want["notch"] < rate / 2:
        sections.append(signal.tf2sos(*signal.iirnotch(want["notch"], 30, fs=rate)))
    if sections:
        x = signal.sosfiltfilt(np.concatenate(sections), x, axis=-1)
    n = count * round(want["multiple_s"] * want["rate"])
    x = signal.resample(x, n, axis=-1) if n != x.shape[-1] else x
"""

_IN_TURN = """\
    n = count * round(want["multiple_s"] * want["rate"])
    for step in want["sequence"]:
        if step.startswith("filter"):
            x = filtered(x, rate, want)
        elif step == "resample":
            x, rate = resampled(x, n, want["resample"]), want["rate"]
        elif step == "turn upright":
            x = upright(x, rate)
        else:
            x = normalised(x, want["normalise"])
"""

_FUNCTIONS = '''

def filtered(x, rate, want):
    """x (windows, samples) at `rate` Hz through the band, the moving average and the running median."""
    n, band, sections = x.shape[-1], want["band"], []
    edges, kind = (None, None) if not band else (band, "bandpass") if band[1] else (band[0], "highpass")
    if band and want["filter"] == "fir":
        taper = ("kaiser", want["beta"]) if want["taper"] == "kaiser" else want["taper"]
        taps = signal.firwin(want["taps"], edges, pass_zero=kind, window=taper, fs=rate)
        if want["phase"] == "delayed":  # by (taps - 1) / 2 samples
            x = signal.lfilter(taps, 1, x, axis=-1)
        else:
            x = signal.filtfilt(taps, 1, x, axis=-1, padlen=min(3 * len(taps), n - 1))
    elif band and want["filter"] == "chebyshev2":
        order, attenuation = want["order"], want["attenuation"]
        sections.append(signal.cheby2(order, attenuation, edges, btype=kind, fs=rate, output="sos"))
    elif band:
        sections.append(signal.butter(want["order"], edges, btype=kind, fs=rate, output="sos"))
    if want["notch"] and want["notch"] < rate / 2:
        sections.append(signal.tf2sos(*signal.iirnotch(want["notch"], 30, fs=rate)))
    if sections:
        x = signal.sosfiltfilt(np.concatenate(sections), x, axis=-1)
    k = round(want["smooth_s"] * rate) if want["smooth_s"] and rate >= want["smooth_from"] else 1
    if k > 1:
        x = signal.filtfilt(np.full(k, 1 / k), 1, x, axis=-1, padlen=min(3 * k, n - 1))
    if want["baseline_s"]:
        k = int(want["baseline_s"] * rate) + 1
        x = x - np.stack([signal.medfilt(row, k + 1 - k % 2) for row in x])
    return x


def resampled(x, n, how):
    """x (windows, samples) as `n` samples of the same duration."""
    m = x.shape[-1]
    if n == m:
        return x
    if how == "polyphase":
        return signal.resample_poly(x, n, m, axis=-1)
    if how == "linear":
        return np.stack([np.interp(np.arange(n) * (m / n), np.arange(m), row) for row in x])
    return signal.resample(x, n, axis=-1)


def normalised(x, how):
    """x (windows, samples) of which each window is scaled; a constant one becomes zeros."""
    if how == "none":
        return x
    if how == "zscore":
        spread = x.std(axis=-1, keepdims=True)
        return (x - x.mean(axis=-1, keepdims=True)) / np.where(spread > 0, spread, 1)
    low, high = x.min(axis=-1, keepdims=True), x.max(axis=-1, keepdims=True)
    span = np.where(high > low, high - low, 1)
    return ((x - low) - (high - x)) / span if how == "minmax_signed" else (x - low) / span

'''

_TOGETHER = """\
    wants = {{{wants}}}
    samples = {{name: np.shape(raw[name])[-1] for name in wants}}
    used = [steps(samples[name], rate[name], want) * want["multiple_s"] for name, want in wants.items()]
    lasts = [samples[name] / rate[name] for name in wants]
    if max(lasts) - min(lasts) > 1 / min(rate.values()) + 1e-9 and max(used) - min(used) > 1e-6:
        raise ValueError(f"signals of {{lasts}} s are not of the same time: cut them alike")
    seconds = min(used)
"""

SHORT = {
    "reflect": "reflected at its end until the minimum is reached",
    "repeat": "repeated until the minimum is reached",
    "refuse": "refused",
}


def snippet(mode: str, config: dict[str, Any], preprocessing: dict[str, Any]) -> str:
    """Python source of `embed(raw, rate)` for one mode, with NumPy, SciPy and onnxruntime only.

    One input: `raw` is (samples,) or (windows, samples), or of several channels (channels, samples) or
    (windows, channels, samples); `rate` in Hz. Several inputs: both are dicts by input name.
    """
    entry = config["modes"][mode]
    inputs = entry["inputs"]
    known = {i["name"]: preprocessing[i["modality"]] for i in inputs}
    signals = {
        i["name"]: signal_of(i["modality"], preprocessing[i["modality"]], "preprocessing.json")
        for i in inputs
    }
    usual = all(s.fused and s.normalise == "none" for s in signals.values())
    wanted = {n: _want(signals[n], p, usual) for n, p in known.items()}
    many = any(i["channels"] > 1 for i in inputs)
    if many:
        wanted = {i["name"]: wanted[i["name"]] | {"channels": i["channels"]} for i in inputs}
    takes = "(channels, samples) or (windows, channels, samples)" if many else _TAKES
    constants = "\n".join(f"{_constant(name)} = {_literal(want)}" for name, want in wanted.items())
    shapes = f"(windows, {entry['dim']}) float32"
    together = ""
    if len(inputs) == 1:
        name = inputs[0]["name"]
        doc = f"Raw {inputs[0]['modality'].upper()} {takes} at `rate` Hz -> {shapes}."
        feed = f'{{"{name}": prepare(raw, rate, {_constant(name)})}}'
    else:
        names, together = (
            ", ".join(i["name"] for i in inputs),
            _TOGETHER.format(wants=", ".join(f'"{n}": {_constant(n)}' for n in wanted)),
        )
        doc = f"Dicts by input name ({names}) of raw samples and of rates in Hz, same time -> {shapes}."
        feed = (
            "{"
            + ", ".join(f'"{n}": prepare(raw["{n}"], rate["{n}"], {_constant(n)}, seconds)' for n in wanted)
            + "}"
        )
    shorts = {want["short"] for want in wanted.values()}
    turns = any(want["upright"] for want in wanted.values())
    return _SNIPPET.format(
        constants=constants,
        functions=(_UPRIGHT if turns else "") + ("" if usual else _FUNCTIONS),
        steps=_USUAL + (_TURNED if turns else "") if usual else _IN_TURN,
        session=f'SESSION = onnxruntime.InferenceSession(str(BUNDLE / "{entry["file"]}"))',
        takes=takes,
        gives="(windows, channels, n)" if many else "(windows, 1, n)",
        rows=_CHANNELS if many else _ROWS,
        shaped='.reshape(-1, want["channels"], x.shape[-1])' if many else "[:, None]",
        short=" or ".join(sorted(SHORT[s] for s in shorts)),
        doc=doc,
        together=together,
        feed=feed,
    )


def _want(signal: Signal, known: dict[str, Any], usual: bool) -> dict[str, Any]:
    """What the code's `prepare` has to know of one input."""
    want = {
        "rate": signal.rate,
        "band": None if signal.band is None else list(signal.band),
        "order": signal.order,
        "notch": signal.notch,
        "upright": signal.upright,
        "min_rate": signal.min_rate,
    }
    want |= {key: known.get(key) for key in ("min_s", "multiple_s", "short")} | {"max_s": longest(known)}
    if usual:
        return want
    want |= {key: getattr(signal, key) for key in ("normalise", *LATEST)}
    return want | {"sequence": [step for step in entry_of(signal)["sequence"] if step != "cut"]}


def _constant(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name).upper()


def _literal(want: dict[str, Any]) -> str:
    shown = {k: json.dumps(v) if isinstance(v, str) else repr(v) for k, v in want.items()}
    lines = "".join(f"    {json.dumps(k)}: {v},\n" for k, v in shown.items())
    return "{\n" + lines + "}\n"


def longest(known: dict[str, Any]) -> float:
    """Seconds of the longest input that the network accepts."""
    return float(known.get("max_s", known["window_s"]))
