"""The bundle's README.md: a model card that holds facts from the bundle alone, and code that runs without
Plethora.
"""

# ruff: noqa: RUF001  (minus signs, dashes and Greek letters are meant)

import json
from collections.abc import Sequence
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

_SHORT = {
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
    wanted = {n: {k: p.get(k) for k in keys} | {"max_s": _longest(p)} for n, p in known.items()}
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
        short=" or ".join(sorted(_SHORT[s] for s in shorts)),
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


def _table(header: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    clean = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    lines = [header, tuple("---" for _ in header), *clean]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _figures(metrics: dict[str, Any]) -> str:
    """First and last validation side by side; "" when there was none."""
    first, last = metrics.get("first") or {}, metrics.get("last") or {}
    rows = [(f"`{name}`", _number(first.get(name, "")), _number(value)) for name, value in last.items()]
    return _table(("figure", "first validation", "last validation"), rows) if rows else ""


def _longest(known: dict[str, Any]) -> float:
    """Seconds of the longest input that the network takes."""
    return float(known.get("max_s", known["window_s"]))


def _signal(modality: str, known: dict[str, Any]) -> str:
    band = known.get("band")
    steps = [
        f"cut a window of {known['min_s']:g} to {_longest(known):g} s, "
        f"a multiple of {known['multiple_s']:g} s"
    ]
    if band:
        kind = f"band-pass {band[0]:g}–{band[1]:g} Hz" if band[1] else f"high-pass {band[0]:g} Hz"
        least = known.get("min_rate") or 2 * (band[1] or band[0])
        steps.append(
            f"{known.get('filter', 'butterworth')} {kind}, order {known['order']}, zero-phase, at the native "
            f"rate ({'at least' if known.get('min_rate') else 'above'} {least:g} Hz)"
        )
    if known.get("notch"):
        steps.append(f"in the same pass a notch at {known['notch']:g} Hz (Q 30)")
    steps.append(f"resample to {known['rate']:g} Hz")
    if known.get("upright"):
        steps.append("turn windows over whose QRS complexes point down")
    steps.append("nothing else: the network normalises")
    unit, short = known.get("unit", "any"), _SHORT[known["short"]]
    return (
        f"- **{modality}**, unit {unit}: {'; then '.join(steps)}. Shorter input is {short}; half a raw "
        "sample is forgiven, for windows that are no whole number of samples."
    )


def _corpora(lineage: dict[str, Any]) -> str:
    rows = []
    for corpus in lineage.get("corpora", []):
        subjects = f"{len(corpus.get('subjects', [])):,}"
        if not corpus.get("subjects_published", True):
            subjects += " (records; the source publishes no subject ids)"
        rows.append(
            (
                corpus["uri"],
                subjects,
                corpus.get("licence", "?"),
                corpus.get("terms", ""),
                corpus["hash"][:12],
            )
        )
    if not rows and (imported := lineage.get("imported")):
        return _imported(imported)
    if not rows:
        return "No corpus is recorded in `lineage.json`."
    return _table(("corpus", "subjects seen", "licence of the data", "terms of use", "hash"), rows)


def _imported(imported: dict[str, Any]) -> str:
    """Whose weights these are, and what is not known of their training."""
    return (
        f"Imported: the weights of the authors' `{imported['file']}` (SHA-256 `{imported['sha256']}`; "
        f"{imported['paper']}, {imported['code']}), the same function, not trained here. "
        "**The training data are unknown**: a checkpoint does not name them, so overlap with any corpus is "
        f"unknown, too. The authors' release names {', '.join(imported['corpora_named'])}. "
        "The weights keep their authors' licence."
    )


def _input(given: dict[str, Any]) -> str:
    return f"{given['name']}, {given['rate']:g} Hz, {given['channels']} channel(s)"


def _size(config: dict[str, Any]) -> str:
    counts = config.get("parameters") or {}
    return f" ({sum(counts.values()):,} trained parameters)" if counts else ""


def _title(config: dict[str, Any]) -> str:
    run = config.get("run", {})
    return str(run.get("name") or run.get("recipe", "encoder").split(":")[-1])


def _adapter(config: dict[str, Any]) -> list[str]:
    """What a network that learnt labels predicts, and what an adapter needs to do so."""
    rows = []
    for target in config["targets"]:
        task = target["task"]
        names = target["classes"]
        gives = (
            f"{task['unit']}"
            if not names
            else f"probability of {names[1] if len(names) == 2 else 'each class'}"
        )
        rows.append((task["name"], task["title"], gives, f"{task['window_s']:g} s", ", ".join(names)))
    found = [_table(("task", "", "gives", "window", "classes"), rows)]
    if config["kind"] == "adapter":
        base = config["base"]
        found += [
            f"`model.safetensors` holds what was trained, and sits upon **{base['name']}**, weights "
            f"{base['source']} (SHA-256 `{base['hash'][:16]}…`): without these it does nothing.",
            "```sh\npython -m finetune vision --transfer BUNDLE --corpus URI  # its figures on a corpus\n"
            "python -m finetune vision --merge BUNDLE --out URI  # one ONNX file, for onnxruntime alone\n```",
        ]
    return found


def render(
    config: dict[str, Any],
    preprocessing: dict[str, Any],
    lineage: dict[str, Any],
    metrics: dict[str, Any],
    notes: Sequence[str] = (),
) -> str:
    """The card in Markdown, from the bundle's four JSON documents. Nothing in it is written by hand.

    notes: paragraphs that follow the introduction (what was done to the network after its training).
    """
    run, modes = config.get("run", {}), config["modes"]
    signals = " and ".join(name.upper() for name in preprocessing)
    mode_rows = [
        (f"`{m}`", f"`{e['file']}`", ", ".join(map(_input, e["inputs"])), e["dim"]) for m, e in modes.items()
    ]
    made = "rebuilt" if lineage.get("imported") else "made"
    parts = [
        f"# {_title(config)}",
        f"A{' pretrained' if modes else 'n'} {config.get('kind', 'encoder')} for {signals}, {made} by the "
        f"recipe `{run.get('recipe', 'unknown')}`{_size(config)}. It turns a stretch of signal into one "
        "vector" + (": its predictions." if "targets" in config else "."),
        *notes,
        "## Use it",
    ]
    if "targets" in config:
        parts += _adapter(config)
    if modes:
        parts += [
            _table(("mode", "file", "inputs", "vector"), mode_rows),
            "The files take samples that are already prepared. The code below goes from raw samples to the "
            "vector; it needs numpy, scipy and onnxruntime, nothing else.",
        ]
    for mode, entry in modes.items():
        parts += [f"### Mode `{mode}`", f"```python\n{snippet(mode, config, preprocessing).rstrip()}\n```"]
        if len(entry["inputs"]) == 1:
            known = preprocessing[entry["inputs"][0]["modality"]]
            seconds = min(30.0, _longest(known))
            parts += [
                "Then:",
                f"```python\nrate = 125  # Hz, of your own recording\n"
                f"time = np.arange(0, {seconds:g}, 1 / rate)\n"
                f"raw = np.sin(2 * np.pi * 1.2 * time)  # your samples in place of this sine\n"
                f"vectors = embed(raw, rate)\nprint(vectors.shape)  # (1, {entry['dim']})\n```",
            ]
    if decoders := config.get("decoders"):
        rows = [
            (
                f"`{d}`",
                f"`{e['file']}`",
                ", ".join(map(_input, e["inputs"])),
                _input({"name": e["output"]["modality"]} | e["output"]),
            )
            for d, e in decoders.items()
        ]
        parts += [
            "## One signal from another",
            _table(("decoder", "file", "inputs", "output"), rows),
            "Input `(batch, 1, samples)`, prepared as above; output `signal` of as many samples, z-scored a "
            "window. `python -m finetune reconstruct` shows how close it comes.",
        ]
    parts += ["## Preprocessing", "\n".join(_signal(m, known) for m, known in preprocessing.items())]
    parts += ["What is in `preprocessing.json` is binding; other preprocessing gives other vectors."]
    terms = "Terms of the data bind whoever uses what was made from it: read them before you do."
    if lineage.get("corpora"):
        terms += (
            " `lineage.json` lists the subjects seen, as keyed hashes, so that an evaluation can leave them "
            "out."
        )
    handed = {entry.get("hash"): entry for entry in lineage.get("inherited", [])}
    for entry in handed.values():
        terms += f" Through what it was made from, those of {entry.get('name') or entry.get('source')} bind, "
        terms += f"too ({entry.get('licence')}): {entry.get('terms')}"
    for entry in [*lineage.get("corpora", []), *handed.values()]:
        if entry.get("models") == "approved":
            terms += f" **For those alone whom {entry.get('name')} ({entry.get('source')}) has approved.**"
    parts += [
        "## Training",
        _corpora(lineage),
        terms,
        _table(("", ""), _provenance(run, lineage)),
    ]
    if figures := _figures(metrics):
        parts += [
            "Figures of the training itself (on the people set aside for validation):"
            if "targets" in config
            else "Figures of the training itself (the pretext task, not a use):",
            figures,
        ]
    if selected := metrics.get("selected"):
        early = f" The run ended early: {selected['stopped']}." if selected["stopped"] else ""
        parts.append(
            f"The weights are those of step {selected['step']}, chosen by `{selected['metric']}` of "
            f"validation ({_number(selected['value'])}).{early}"
        )
    parts += [
        "## Evaluation",
        "**Not evaluated yet**, at publication. A bundle never changes: evaluations appear beside it, under "
        "`../evaluations/<hash>/`, each with its own table, baselines, intervals and subject overlap; "
        "`python -m finetune evaluate` writes them.",
        "## Limits",
        "What has not been shown under *Evaluation* is not known: this includes other sensors, sites, skin "
        "tones, rhythms and populations than those of the corpora above. Not a medical device.",
    ]
    return "\n\n".join(parts) + "\n"


def _provenance(run: dict[str, Any], lineage: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [("git commit", f"`{lineage.get('git_commit') or 'unknown'}`")]
    seeds = lineage.get("seeds", run.get("seed"))
    rows.append(
        ("seeds", ", ".join(f"{k} {v}" for k, v in seeds.items()) if isinstance(seeds, dict) else str(seeds))
    )
    versions = lineage.get("versions", {})
    rows.append(
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items()) or "unknown")
    )
    for parent in lineage.get("parents", []):
        uri, digest = (
            (parent.get("uri"), parent.get("hash", "")) if isinstance(parent, dict) else (parent, "")
        )
        rows.append(("parent bundle", f"{uri} `{digest[:12]}`" if digest else str(uri)))
    return rows
