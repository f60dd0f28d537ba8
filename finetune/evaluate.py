"""bundle + corpus + task → one table: the encoder beside four baselines, on subjects it never saw."""

import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster import bundle as bundles
from cluster import storage
from cluster.cli import progress
from cluster.errors import PlethoraError
from cluster.session import session
from datasets import split
from datasets.index import Index, build
from datasets.schema import Corpus, open_corpus
from datasets.signal import Signal
from datasets.windows import WindowSpec
from finetune import features, metrics, plots, probe, report
from finetune.encoder import BundleEncoder, pooled, untrained
from finetune.task import Task, demographics, load_task, window_targets

CHUNK = 256
HANDCRAFTED = Signal(modality="ppg", rate=50.0, band=(0.5, 8.0))  # what features.handcrafted takes
LABELS = {
    "encoder": "This encoder",
    "untrained": "Same encoder, untrained",
    "handcrafted": "Handcrafted features",
    "demographics": "Demographics only",
    "mean": "Predict the mean",
}


@dataclass(frozen=True)
class Seen:
    """Whom of an evaluation corpus pretraining saw: kind "none", "shared" or "unknown", and why."""

    kind: str
    subjects: frozenset[str] = frozenset()
    why: tuple[str, ...] = ()


@dataclass
class Windows:
    """The windows that are evaluated: rows of the index, targets in the task's unit, subject, record,
    start.
    """

    rows: np.ndarray
    target: np.ndarray
    subject: np.ndarray
    record: np.ndarray
    start_s: np.ndarray
    refused: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)


def seen_by_pretraining(bundle: bundles.Bundle, corpus: Corpus) -> Seen:
    """Overlap of the bundle's lineage, parents included, with a corpus."""
    subjects: set[str] = set()
    kinds: list[str] = []
    why: list[tuple[str, str]] = []
    for entry, problem in _lineage(bundle, set()):
        if entry is None:
            kinds.append("unknown")
            why.append(("unknown", problem))
            continue
        found = split.overlap(
            entry["subjects"], entry["key_id"], entry["id_space"], entry["subjects_published"], corpus
        )
        kinds.append(found.kind)
        subjects |= found.shared
        why.append((found.kind, f"{entry['uri']}: {found.why}"))
        if found.kind == "unknown" and entry["hash"] == corpus.hash:
            subjects |= set(entry["subjects"])  # the same files: their names match, whatever they stand for
    if not kinds:
        kinds, why = ["unknown"], [("unknown", "lineage.json names no corpus")]
    kind = next((k for k in ("unknown", "shared") if k in kinds), "none")
    reasons = dict.fromkeys(reason for of, reason in why if of == kind)
    return Seen(kind, frozenset(subjects), tuple(reasons))


def _lineage(bundle: bundles.Bundle, done: set[str]) -> list[tuple[dict | None, str]]:
    """Corpus entries of a bundle and its parents; (None, why) for a parent that cannot be read."""
    entries: list[tuple[dict | None, str]] = [(entry, "") for entry in bundle.lineage.get("corpora", [])]
    for parent in bundle.lineage.get("parents", []):
        uri = parent["uri"]
        if uri in done:
            continue
        done.add(uri)
        try:
            entries += _lineage(bundles.open(uri), done)
        except PlethoraError as error:
            entries.append((None, f"parent bundle {uri} cannot be read ({error})"))
    return entries


def choose_windows(
    index: Index, task: Task, labels: pa.Table, seen: Seen, subjects: str, bundle: str
) -> Windows:
    """Windows with a good signal and a good label, of subjects that pretraining did not see (or of all)."""
    table = index.table
    refused = Counter(f"signal: {v}" for v in table["verdict"].to_pylist() if v != "ok")
    rows = np.flatnonzero(pc.equal(table["verdict"], "ok").to_numpy(zero_copy_only=False))
    part = table.take(pa.array(rows))
    subject = np.asarray(part["subject"].to_pylist(), object)
    left_out = {"subjects": 0, "windows": 0}
    if subjects == "unseen" and seen.subjects:
        known = np.isin(subject, list(seen.subjects))
        left_out = {"subjects": len(set(subject[known])), "windows": int(known.sum())}
        if known.all() and len(known):
            raise PlethoraError(
                f"pretraining of {bundle} saw all {left_out['subjects']} subjects of {index.corpus.uri}: "
                "evaluate on another corpus (--subjects all gives flattering figures, marked as such)"
            )
        rows, subject, part = rows[~known], subject[~known], part.filter(pa.array(~known))
    record = np.asarray(part["record"].to_pylist(), object)
    start = part["start_s"].to_numpy()
    target, refusal = window_targets(labels, record.tolist(), start.tolist(), task)
    refused.update(r for r in refusal.tolist() if r)
    good = np.isfinite(target)
    if not good.any():
        reasons = ", ".join(f"{r} {n}" for r, n in sorted(refused.items())) or "no stretch is long enough"
        raise PlethoraError(
            f"no window of {index.corpus.uri} is left for task {task.name} ({task.window_s:g} s): {reasons}"
        )
    return Windows(
        rows[good], target[good], subject[good].astype(str), record[good].astype(str), start[good],
        dict(sorted(refused.items())), left_out,
    )  # fmt: skip


def vectors_of(
    index: Index, windows: Windows, runs: dict[str, Callable[[np.ndarray], np.ndarray]], handcrafted: bool
) -> dict[str, np.ndarray]:
    """{row name: (n, d)}: each of `runs` on the prepared windows, and the handcrafted features; memory is
    bounded.
    """
    found: dict[str, list[np.ndarray]] = {name: [] for name in runs}
    plain = Index(index.corpus, _spec(HANDCRAFTED, index.spec.window_s, index.spec.hop_s), index.table)
    modality = index.spec.signals[0].modality
    with progress(len(windows.rows), "embed", "windows") as bar:
        for low in range(0, len(windows.rows), CHUNK):
            rows = windows.rows[low : low + CHUNK]
            prepared = index.load(rows)[modality]
            for name, run in runs.items():
                found[name].append(run(prepared))
            if handcrafted:
                waves = plain.load(rows)["ppg"][:, 0]
                found.setdefault("handcrafted", []).append(features.handcrafted(waves, HANDCRAFTED.rate))
            bar.update(len(rows))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _spec(signal: Signal, window_s: float, hop_s: float | None) -> WindowSpec:
    return WindowSpec(signals=(signal,), window_s=window_s, hop_s=hop_s)


def evaluate(
    bundle: str,
    corpus: str,
    task: str,
    out: str | None = None,
    subjects: str = "unseen",
    folds: int = 5,
    seed: int = 0,
    mode: str | None = None,
    publish: bool = True,
) -> dict[str, Any]:
    """Evaluate a bundle; write report.md, results.json, predictions.parquet and plots; return the results.

    Written to `out` (when given) and, unless `publish` is off, beside the bundle.
    """
    question, encoder, source = load_task(task), BundleEncoder(bundle, mode), open_corpus(corpus)
    if encoder.modality != question.modality:
        raise PlethoraError(
            f"task {question.name} is about {question.modality}, mode {encoder.mode!r} of {bundle} takes "
            f"{encoder.modality}: choose another mode"
        )
    pieces = encoder.pieces(question.window_s)
    labels = source.labels([question.label, *question.demographics])
    seen = seen_by_pretraining(encoder.bundle, source)
    with session(actors=2):
        index = build(source, _spec(encoder.signal, question.window_s, question.hop_s))
        windows = choose_windows(index, question, labels, seen, subjects, bundle)
        outer = probe.grouped_folds(windows.subject, folds, seed)
        runs, notes = _runs(encoder, pieces)
        vectors = vectors_of(index, windows, runs, question.modality == "ppg")
    people, people_names = demographics(labels, windows.record.tolist(), question.demographics)
    if people_names:
        vectors["demographics"] = people
    else:
        notes["demographics"] = f"the corpus has no {' or '.join(question.demographics) or 'demographics'}"
    probed = {name: _probe(name, vectors[name], windows, outer, seed) for name in LABELS if name in vectors}
    probed["mean"] = probe.mean_probe(windows.target, outer)
    results = {
        "task": question.model_dump() | {"pieces": pieces},
        "bundle": {"uri": encoder.bundle.uri, "mode": encoder.mode, "dim": encoder.dim},
        "corpus": {"uri": source.uri, "hash": source.hash, "source": source.manifest["source"],
                   "licence": source.manifest.get("licence", "")},
        "overlap": {"kind": seen.kind, "why": list(seen.why), "shared_subjects": len(seen.subjects),
                    "policy": subjects, "left_out": windows.left_out},
        "counts": {"subjects": len(set(windows.subject)), "records": len(set(windows.record)),
                   "windows": len(windows.rows)},
        "refused": windows.refused,
        "protocol": {"folds": len(outer), "folds_asked": folds, "seed": seed, "draws": metrics.DRAWS,
                     "alphas": {n: list(p.alphas) for n, p in probed.items()},
                     "demographics": people_names, "handcrafted": list(features.NAMES)},
        **_table(windows, probed, notes, seed),
    }  # fmt: skip
    results["verdict"] = report.verdicts(results)
    _write(results, windows, probed, bundle, out, publish)
    return results


def _runs(
    encoder: BundleEncoder, pieces: int
) -> tuple[dict[str, Callable[[np.ndarray], np.ndarray]], dict[str, str]]:
    """What turns prepared windows into vectors, by row name, and why a row has none."""
    step, notes = encoder.samples_step, {}
    runs = {"encoder": lambda x: pooled(encoder, x, pieces, step)}
    try:
        seed = int(encoder.bundle.config["run"].get("seed", 0))
        fresh = untrained(encoder.bundle.config, encoder.mode, seed)
        runs["untrained"] = lambda x: pooled(fresh, x, pieces, step)
    except (PlethoraError, KeyError) as error:
        notes["untrained"] = f"cannot be rebuilt from config.json: {error}"
    return runs, notes


def _probe(name: str, x: np.ndarray, windows: Windows, folds: probe.Folds, seed: int) -> probe.Probed:
    subsets = features.SUBSETS if name == "handcrafted" else None
    return probe.ridge_probe(x, windows.target, windows.subject, folds, seed, subsets)


def _table(
    windows: Windows, probed: dict[str, probe.Probed], notes: dict[str, str], seed: int
) -> dict[str, Any]:
    """Rows with intervals, paired differences encoder − baseline, and each subject's MAE."""
    sums = {n: metrics.subject_sums(windows.target, p.predicted, windows.subject) for n, p in probed.items()}
    weights = metrics.draw_weights(len(sums["mean"]), seed=seed)
    rows = []
    for name, label in LABELS.items():
        found = metrics.intervals(sums[name], weights) if name in sums else {}
        shown = {k: asdict(v) for k, v in found.items()}
        rows.append({"name": name, "label": label, "metrics": shown, "note": notes.get(name, "")})
    differences = {
        n: asdict(metrics.paired(sums["encoder"], sums[n], weights)) for n in sums if n != "encoder"
    }
    names = np.unique(windows.subject)
    by_subject = {n: dict(zip(names, metrics.per_subject_mae(s), strict=True)) for n, s in sums.items()}
    return {"rows": rows, "differences": differences, "per_subject_mae": by_subject}


def _write(
    results: dict[str, Any],
    windows: Windows,
    probed: dict[str, probe.Probed],
    bundle: str,
    out: str | None,
    publish: bool,
) -> None:
    import pyarrow.parquet as pq

    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        predictions = pa.table(
            {
                "subject": windows.subject.tolist(),
                "record": windows.record.tolist(),
                "start_s": windows.start_s,
                "target": windows.target,
                **{name: p.predicted for name, p in probed.items()},
            }
        )
        pq.write_table(predictions, here / "predictions.parquet", compression="zstd")
        (here / "plots").mkdir()
        plots.draw_all(
            results,
            windows.target,
            windows.subject,
            {n: p.predicted for n, p in probed.items()},
            here / "plots",
        )
        (here / "report.md").write_text(report.markdown(results), encoding="utf-8")
        (here / "results.json").write_bytes(storage.json_bytes(results))
        print(report.terminal(results), flush=True)
        if out is not None:
            storage.upload(here, out)
            results["out"] = storage.normalise(out)
            print(f"\nreport and pictures: {results['out']}")
        if publish:
            results["published"] = bundles.write_evaluation(bundle, here)
            print(f"beside the bundle: {results['published']}")
