"""What is in a corpus: numbers for the terminal, and one picture."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from cluster import redact
from cluster.errors import PlethoraError
from cluster.redact import printable
from datasets import agreement
from datasets.schema import Corpus, open_corpus, waveform

COLOURS = {"ppg": "#c2410c", "ecg": "#1d4ed8", "abp": "#be123c", "resp": "#047857", "acc": "#7c3aed"}
REASON_COLOURS = {"nan": "#6366f1", "flat": "#f59e0b", "clipped": "#ef4444", "fragment": "#9ca3af"}
OTHER_REASON = "#14b8a6"
SHOWN_S = {"resp": 40.0}
DEFAULT_SHOWN_S = 8.0


def describe(uri: str) -> dict[str, Any]:
    """The corpus at `uri` in numbers, JSON-able: counts, hours and rejects per modality, labels by name."""
    corpus = open_corpus(uri)
    m = corpus.manifest
    return {
        "uri": corpus.uri,
        "hash": corpus.hash,
        **{k: m[k] for k in ("name", "source", "licence", "terms", "access", "key_id", "id_space")},
        **{k: m[k] for k in ("subjects_published", "modalities", "rates", "counts", "hours_in")},
        **{k: m[k] for k in ("hours_refused", "rejects", "bridged_gaps")},
        "moved": m.get("moved", {}),
        "labels": m["labels"]["rows"],
        "agreement": agreement.of_corpus(corpus),
        "shards": len(corpus.shards),
        "bytes": sum(s["bytes"] for s in corpus.shards),
    }


def table(about: dict[str, Any]) -> str:
    """`describe`'s result for a terminal."""
    counts = about["counts"]
    lines = [
        f"{about['name']}  {about['uri']}",
        f"  licence {about['licence']} · access {about['access']} · {about['source']}",
        f"  {counts['subjects']:,} subjects ({_published(about)}) · {counts['records']:,} records"
        f" of {counts['records_in']:,} · {counts['rows']:,} rows · {about['shards']} shards,"
        f" {about['bytes'] / 1e6:,.1f} MB",
        f"  content {about['hash'][:16]} · subject key {about['key_id']} · id space {about['id_space']}",
        "",
        f"  {'modality':10}{'rate Hz':>12}{'hours in':>12}{'kept':>12}{'refused':>12}   refused by reason",
    ]
    for m in about["modalities"]:
        reasons = sorted(about["rejects"].get(m, {}).items(), key=lambda item: -item[1])
        rates = _rates(about["rates"][m])
        lines.append(
            f"  {m:10}{rates:>12}{about['hours_in'][m]:12.4f}{counts['hours'][m]:12.4f}"
            f"{about['hours_refused'][m]:12.4f}   "
            + (", ".join(f"{reason} {hours:.4f}" for reason, hours in reasons) or "nothing")
        )
    bridged = ", ".join(
        f"{m} {b['gaps']} ({b['seconds']:.2f} s)" for m, b in about["bridged_gaps"].items() if b["gaps"]
    )
    labels = ", ".join(f"{printable(name, 80)} {n:,}" for name, n in about["labels"].items())
    lines += ["", f"  bridged gaps: {bridged or 'none'}", f"  labels: {labels or 'none'}"]
    moved = ", ".join(
        f"{m} in {b['records']:,} records, by up to {b['largest_s']:.2f} s"
        for m, b in about.get("moved", {}).items()
    )
    lines += [f"  resampled to follow their clock: {moved}"] if moved else []
    lines += [f"  {agreement.line(found)}" for found in about.get("agreement", [])]
    return "\n".join(redact.lines(line) for line in lines)


def _rates(rates: list[float]) -> str:
    """All rates if there are few; else (each device with its own rate) the lowest, the highest and the
    count."""
    if len(rates) < 4:
        return ", ".join(f"{r:g}" for r in rates)
    return f"{rates[0]:g}-{rates[-1]:g} ({len(rates)})"


def _published(about: dict[str, Any]) -> str:
    return "by the source's ids" if about["subjects_published"] else "no ids published: one a record"


def plot(uri: str, path: str | Path) -> None:
    """Write a picture of the corpus to `path` (PNG): example windows of every modality, each modality along
    the records with its refused parts, hours per subject, signal quality, and hours refused by reason."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    if Path(path).suffix.lower() != ".png":
        raise PlethoraError(f"--plot {path}: give a file name that ends in .png")
    corpus = open_corpus(uri)
    names = corpus.modalities
    rows = _sample_rows(corpus)
    rejects = corpus.rejects()
    plt.rcParams.update({"font.size": 8, "axes.spines.top": False, "axes.spines.right": False})
    height = 1.5 * len(names)
    figure = plt.figure(figsize=(15, height + 6.4), layout="constrained")
    parts: Any = figure.subfigures(3, 1, height_ratios=[height, 3, 2.6])
    top, middle, bottom = parts
    _examples(top, corpus, rows)
    _timelines(middle, corpus, rejects)
    axes = bottom.subplots(1, 3)
    _hours_a_subject(axes[0], corpus)
    _quality(axes[1], corpus, rows)
    _reasons(axes[2], corpus)
    counts = corpus.manifest["counts"]
    figure.suptitle(
        f"{corpus.manifest['name']}: {counts['subjects']:,} subjects, {counts['records']:,} records, "
        + ", ".join(f"{m.upper()} {counts['hours'][m]:.2f} h" for m in names)
        + f"   ({corpus.manifest['licence']})",
        fontsize=11,
        weight="bold",
    )
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _sample_rows(corpus: Corpus, wanted: int = 60) -> list[dict[str, Any]]:
    """Up to `wanted` rows from row groups spread over the corpus, long and complete ones first."""
    places = [(i, g) for i, s in enumerate(corpus.shards) for g in range(len(s["row_groups"]))]
    picked = np.unique(np.linspace(0, len(places) - 1, min(4, len(places))).astype(int))
    rows: list[dict[str, Any]] = []
    for place in picked:
        group = corpus.read_row_group(*places[place])
        longest = np.argsort(-np.asarray(group["duration_s"]), kind="stable")[: -(-wanted // len(picked))]
        rows += group.take(np.sort(longest)).to_pylist()
    return sorted(rows, key=lambda r: -sum(r[m] is not None for m in corpus.modalities))


def _wave(row: dict[str, Any], m: str) -> np.ndarray:
    return waveform(row[m], row[f"{m}_scale"], row[f"{m}_offset"], row[f"{m}_channels"])


def _examples(figure: Any, corpus: Corpus, rows: list[dict[str, Any]]) -> None:
    """Three subjects side by side, the same moment in each of their modalities."""
    people: dict[str, dict[str, Any]] = {}
    for row in rows:
        people.setdefault(row["subject"], row)
    chosen = list(people.values())[:3]
    axes = figure.subplots(len(corpus.modalities), len(chosen), squeeze=False)
    for c, row in enumerate(chosen):
        for r, m in enumerate(corpus.modalities):
            ax = axes[r][c]
            if r == 0:
                ax.set_title(f"subject {row['subject'][:8]}…  record {row['record']}", loc="left")
            if row[m] is None:
                ax.text(0.5, 0.5, f"no {m.upper()}", ha="center", color="#9ca3af", transform=ax.transAxes)
                ax.set_axis_off()
                continue
            x, rate = _wave(row, m), row[f"{m}_rate"]
            span = int(SHOWN_S.get(m, DEFAULT_SHOWN_S) * rate)
            start = max(0, (x.shape[1] - span) // 2)
            t = row["start_s"] + np.arange(start, min(start + span, x.shape[1])) / rate
            ax.plot(t, x[:, start : start + span].T, color=COLOURS[m], lw=0.9)
            ax.set_ylabel(f"{m.upper()}, {row[f'{m}_unit']}")
            ax.margins(x=0)
        axes[-1][c].set_xlabel("seconds into the record")


def _timelines(figure: Any, corpus: Corpus, rejects: Any, shown: int = 3) -> None:
    """The records with the most refused stretches: their waveform's envelope, refused parts shaded."""
    order = pc.value_counts(rejects["record"]).to_pylist()
    busiest = [r["values"] for r in sorted(order, key=lambda r: (-r["counts"], r["values"]))]
    whole = _whole_records(corpus, set(busiest[:40]))
    chosen = [record for record in busiest if record in whole][:shown] or list(whole)[:shown]
    axes = figure.subplots(1, max(1, len(chosen)), squeeze=False)[0]
    used: set[str] = set()
    for ax, record in zip(axes, chosen, strict=False):
        parts = whole[record]
        for place, m in enumerate(reversed(corpus.modalities)):
            _envelope(ax, [p for p in parts if p[m] is not None], m, place)
            mine = rejects.filter((pc.field("record") == record) & (pc.field("modality") == m))
            for stretch in mine.to_pylist():
                a, n = stretch["start_s"], stretch["duration_s"]
                used.add(stretch["reason"])
                ax.axvspan(
                    a,
                    a + n,
                    ymin=place / len(corpus.modalities),
                    ymax=(place + 0.94) / len(corpus.modalities),
                    color=REASON_COLOURS.get(stretch["reason"], OTHER_REASON),
                    alpha=0.55,
                    lw=0,
                )
        ax.set_yticks(
            np.arange(len(corpus.modalities)) + 0.47, [m.upper() for m in reversed(corpus.modalities)]
        )
        ax.set_ylim(0, len(corpus.modalities))
        ax.margins(x=0)
        ax.set_title(f"record {record}: what was refused", loc="left")
        ax.set_xlabel("seconds into the record")
    if not chosen:
        axes[0].text(0.5, 0.5, "nothing was refused", ha="center", transform=axes[0].transAxes)
        axes[0].set_axis_off()
    patches = [
        axes[0].fill_between([], [], color=REASON_COLOURS.get(r, OTHER_REASON), alpha=0.55, lw=0, label=r)
        for r in sorted(used)
    ]
    if patches:
        figure.legend(handles=patches, loc="outside right upper", frameon=False, title="refused as")


def _whole_records(corpus: Corpus, wanted: set[str], groups: int = 6) -> dict[str, list[dict[str, Any]]]:
    """Every row of the wanted records that begin in the first row groups."""
    found: dict[str, list[dict[str, Any]]] = {}
    places = [(i, g) for i, s in enumerate(corpus.shards) for g in range(len(s["row_groups"]))]
    for place in places[:groups]:
        table = corpus.read_row_group(*place)
        if wanted:
            table = table.filter(pc.is_in(table["record"], value_set=_strings(wanted)))
        for row in table.slice(0, 4000).to_pylist():
            found.setdefault(row["record"], []).append(row)
    return found


def _strings(values: set[str]) -> Any:
    import pyarrow as pa

    return pa.array(sorted(values), pa.string())


def _envelope(ax: Any, parts: list[dict[str, Any]], m: str, place: int, columns: int = 900) -> None:
    """Minimum and maximum along time, in the lane `place` to `place` + 0.94."""
    waves = [(_wave(p, m)[0], p["start_s"], p["duration_s"]) for p in parts]
    if not waves:
        return
    everything = np.concatenate([x for x, *_ in waves])
    low, high = np.percentile(everything, [0.5, 99.5])
    total = sum(n for *_, n in waves)
    for x, start, seconds in waves:
        bins = int(max(1, min(len(x), columns * seconds / total)))
        edges = np.linspace(0, len(x), bins + 1).astype(int)[:-1]
        t = start + edges / len(x) * seconds
        lanes = [
            place + 0.04 + 0.86 * np.clip((f(x, edges) - low) / max(high - low, 1e-12), 0, 1)
            for f in (np.minimum.reduceat, np.maximum.reduceat)
        ]
        ax.fill_between(
            np.append(t, start + seconds), *[np.append(y, y[-1]) for y in lanes], color=COLOURS[m], lw=0.4
        )


def _hours_a_subject(ax: Any, corpus: Corpus) -> None:
    seconds: dict[str, float] = {}
    for index, shard in enumerate(corpus.shards):
        for group in range(len(shard["row_groups"])):
            columns = corpus.read_row_group(index, group, ["subject", "duration_s"])
            pairs = zip(columns["subject"].to_pylist(), columns["duration_s"].to_pylist(), strict=True)
            for subject, duration in pairs:
                seconds[subject] = seconds.get(subject, 0.0) + duration
    unit, size = ("minutes", 60) if max(seconds.values()) < 3 * 3600 else ("hours", 3600)
    values = np.array(list(seconds.values())) / size
    ax.hist(values, bins=30, range=(0, values.max() * 1.05), color="#475569")
    ax.set_title(f"{unit} a subject ({len(values):,} subjects)", loc="left")
    ax.set_xlabel(unit)
    ax.set_ylabel("subjects")


def beat_quality(x: np.ndarray, rate: float, window_s: float = 8.0) -> np.ndarray:
    """Regularity of a pulsatile or breathing signal (samples,), one number per window in [0, 1].

    The highest peak of the normalised autocorrelation after its first zero crossing, at lags of 0.3 s to half
    a window: near 1 for a clean periodic wave, near 0 for noise.
    """
    n = int(window_s * rate)
    windows = x[: len(x) // n * n].reshape(-1, n).astype(np.float64)
    if not len(windows):
        return np.zeros(0)
    windows = windows - windows.mean(1, keepdims=True)
    spectrum = np.fft.rfft(windows, 2 * n)
    correlation = np.fft.irfft(np.abs(spectrum) ** 2)[:, : n // 2] / (n - np.arange(n // 2))
    correlation /= np.maximum(correlation[:, :1], 1e-12)
    crossed = np.cumsum(correlation < 0, axis=1) > 0
    crossed[:, : int(0.3 * rate)] = False
    return np.clip(np.where(crossed, correlation, 0).max(1), 0, 1)


def _quality(ax: Any, corpus: Corpus, rows: list[dict[str, Any]]) -> None:
    """Regularity of a sample of windows per modality, as cumulative curves for comparison."""
    for m in corpus.modalities:
        window = 30.0 if m == "resp" else 8.0
        held = [beat_quality(_wave(r, m)[0], r[f"{m}_rate"], window) for r in rows if r[m] is not None]
        values = np.sort(np.concatenate(held)) if held else np.zeros(0)
        if len(values):
            share = np.linspace(0, 100, len(values))
            ax.plot(values, share, color=COLOURS[m], lw=1.6, label=f"{m.upper()} ({len(values):,} windows)")
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 100)
    ax.set_title("signal quality of a sample of windows", loc="left")
    ax.set_xlabel("regularity (highest peak of the autocorrelation)")
    ax.set_ylabel("% of windows below")
    ax.grid(alpha=0.25)
    ax.legend(frameon=False, loc="upper left")


def _reasons(ax: Any, corpus: Corpus) -> None:
    rejects = corpus.manifest["rejects"]
    bars = [(m, reason, hours) for m in corpus.modalities for reason, hours in rejects.get(m, {}).items()]
    bars = sorted(((m, r, 3600 * h) for m, r, h in bars if h), key=lambda bar: bar[2])[-14:]
    ax.set_title("refused, by reason", loc="left")
    if not bars:
        ax.text(0.5, 0.5, "nothing was refused", ha="center", transform=ax.transAxes)
        ax.set_axis_off()
        return
    ax.barh(range(len(bars)), [s for *_, s in bars], color=[COLOURS[m] for m, *_ in bars])
    ax.set_yticks(range(len(bars)), [f"{m.upper()} {reason}" for m, reason, _ in bars])
    ax.set_xscale("log")
    ax.set_xlabel("seconds (log scale)")
    share = {
        m: 100 * corpus.manifest["hours_refused"][m] / corpus.manifest["hours_in"][m]
        for m in corpus.modalities
    }
    for y, (m, _, seconds) in enumerate(bars):
        ax.annotate(
            f" {seconds:,.1f} s ({seconds / 36 / corpus.manifest['hours_in'][m]:.2g} %)",
            (seconds, y),
            va="center",
            fontsize=7,
        )
    ax.set_xlim(right=ax.get_xlim()[1] * 12)
    ax.text(
        0.99,
        0.02,
        "refused in all:\n" + "\n".join(f"{m.upper()} {share[m]:.2f} %" for m in corpus.modalities),
        transform=ax.transAxes,
        ha="right",
        va="bottom",
    )
