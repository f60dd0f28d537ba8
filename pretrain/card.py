"""The bundle's README.md: a model card with facts from the bundle only, and code that runs without
Plethora."""

# ruff: noqa: RUF001  (minus signs, dashes and Greek letters are meant)

from collections.abc import Sequence
from typing import Any

from datasets.declared import signal_of
from datasets.signal import Signal
from pretrain.snippet import SHORT, longest, snippet


def _table(header: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    clean = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    lines = [header, tuple("---" for _ in header), *clean]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _figures(metrics: dict[str, Any]) -> str:
    """A table of the first and the last validation; "" without validations."""
    first, last = metrics.get("first") or {}, metrics.get("last") or {}
    rows = [(f"`{name}`", _number(first.get(name, "")), _number(value)) for name, value in last.items()]
    return _table(("figure", "first validation", "last validation"), rows) if rows else ""


_SCALED = {
    "zscore": "scale each window to mean 0 and standard deviation 1",
    "minmax": "scale each window to [0, 1]",
    "minmax_signed": "scale each window to [-1, 1]",
}
_RESAMPLED = {"fft": "", "polyphase": ", polyphase", "linear": ", linear interpolation"}


def _signal(modality: str, known: dict[str, Any], scaled: Sequence[float] | None = None) -> str:
    """scaled: the range that the network scales a window to, where config.json names one."""
    signal = signal_of(modality, known, "preprocessing.json")
    steps = [
        f"cut a window of {known['min_s']:g} to {longest(known):g} s, a multiple of {known['multiple_s']:g} s"
    ]
    for step in signal.sequence:
        if step == "filter":
            steps += _filter(signal)
        elif step == "resample":
            steps.append(f"resample to {signal.rate:g} Hz{_RESAMPLED[signal.resample]}")
        elif signal.normalise != "none":
            steps.append(_SCALED[signal.normalise])
    if signal.upright:
        steps.insert(
            len(steps) - (signal.normalise != "none"), "turn windows over whose QRS complexes point down"
        )
    onto = f", by min-max onto [{scaled[0]:g}, {scaled[1]:g}] (window by window)" if scaled else ""
    steps.append("nothing else" + (f": the network normalises{onto}" if signal.normalise == "none" else ""))
    unit, short = known.get("unit", "any"), SHORT[known["short"]]
    return (
        f"- **{modality}**, unit {unit}: {'; then '.join(steps)}. Shorter input is {short}; half a raw "
        "sample is forgiven, for windows that are no whole number of samples."
    )


def _filter(signal: Signal) -> list[str]:
    """The steps of the filter, in words."""
    steps, band = [], signal.band
    if band:
        kind = f"band-pass {band[0]:g}–{band[1]:g} Hz" if band[1] else f"high-pass {band[0]:g} Hz"
        least = signal.min_rate or 2 * (band[1] or band[0])
        native = signal.sequence.index("filter") < signal.sequence.index("resample")
        where = "at the native rate" if native else f"at {signal.rate:g} Hz; the native rate must be"
        how = f"order {signal.order}, zero-phase"
        if signal.filter == "chebyshev2":
            how = f"order {signal.order}, {signal.attenuation:g} dB, zero-phase"
        elif signal.filter == "fir":
            phase = "zero-phase" if signal.phase == "zero" else "one pass, delayed by half its taps"
            how = f"{signal.taps} taps, {signal.taper}, {phase}"
        name = {"chebyshev2": "Chebyshev II", "fir": "FIR"}.get(signal.filter, signal.filter)
        at_least = f"{'at least' if signal.min_rate else 'above'} {least:g} Hz"
        steps.append(f"{name} {kind}, {how}, {where} {f'({at_least})' if native else at_least}")
    if signal.notch:
        steps.append(f"in the same pass a notch at {signal.notch:g} Hz (Q 30)")
    if signal.smooth_s:
        start = f" from {signal.smooth_from:g} Hz on" if signal.smooth_from else ""
        steps.append(f"a moving average of {signal.smooth_s:g} s, forward and backward{start}")
    if signal.baseline_s:
        steps.append(f"subtract the running median of {signal.baseline_s:g} s")
    return steps


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
    """The source of imported weights, and what is unknown about their training."""
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
    """The predictions of a network trained on labels, and what an adapter needs to make them."""
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
    """The card in Markdown, generated entirely from the bundle's four JSON documents.

    notes: paragraphs after the introduction (changes to the network after its training).
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
            seconds = min(30.0, longest(known))
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
    scaled = config.get("input_range")
    parts += ["## Preprocessing", "\n".join(_signal(m, k, scaled) for m, k in preprocessing.items())]
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
