"""Python code for a bundle's card that goes from raw samples to vectors without Plethora."""

import json
from typing import Any

_SNIPPET = '''\
from pathlib import Path

import numpy as np
import onnxruntime
from scipy import signal

BUNDLE = Path(".")  # the folder that holds this README
{constants}
{upright}
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
    """Raw (samples,) or (windows, samples) at `rate` Hz -> (windows, 1, n) float32 for the network.

    seconds: how much of it the network gets, by default all whole steps.
    """
    x = np.atleast_2d(np.asarray(raw, dtype=np.float64))
    band = want["band"]  # one without an upper end is a high-pass
    top = band[1] or band[0] if band else want["rate"] / 2
    if not np.isfinite(x).all():
        raise ValueError("NaN or infinite samples: bridge or drop them first")
    if not rate > 2 * top:
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
{turned}    return x[:, None].astype(np.float32)


{session}


def embed(raw, rate):
    """{doc}"""
{together}    return SESSION.run(None, {feed})[0]
'''

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

    One input: `raw` is (samples,) or (windows, samples), `rate` in Hz. Several inputs: both are dicts by
    input name.
    """
    entry = config["modes"][mode]
    inputs = entry["inputs"]
    keys = ("rate", "band", "order", "notch", "upright", "min_rate", "min_s", "multiple_s", "short")
    known = {i["name"]: preprocessing[i["modality"]] for i in inputs}
    wanted = {n: {k: p.get(k) for k in keys} | {"max_s": longest(p)} for n, p in known.items()}
    constants = "\n".join(f"{_constant(name)} = {_literal(want)}" for name, want in wanted.items())
    shapes = f"(windows, {entry['dim']}) float32"
    together = ""
    if len(inputs) == 1:
        name = inputs[0]["name"]
        doc = (
            f"Raw {inputs[0]['modality'].upper()} (samples,) or (windows, samples) at `rate` Hz -> {shapes}."
        )
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
        upright=_UPRIGHT if turns else "",
        turned=_TURNED if turns else "",
        session=f'SESSION = onnxruntime.InferenceSession(str(BUNDLE / "{entry["file"]}"))',
        short=" or ".join(sorted(SHORT[s] for s in shorts)),
        doc=doc,
        together=together,
        feed=feed,
    )


def _constant(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name).upper()


def _literal(want: dict[str, Any]) -> str:
    shown = {k: json.dumps(v) if isinstance(v, str) else repr(v) for k, v in want.items()}
    lines = "".join(f"    {json.dumps(k)}: {v},\n" for k, v in shown.items())
    return "{\n" + lines + "}\n"


def longest(known: dict[str, Any]) -> float:
    """Seconds of the longest input that the network accepts."""
    return float(known.get("max_s", known["window_s"]))
