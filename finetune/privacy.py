"""bundle + corpus → privacy card: how often a vector finds its subject again, and what it gives away of the
waveform.
"""

import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cluster import bundle as bundles
from cluster import storage
from cluster.cli import progress
from cluster.errors import PlethoraError
from cluster.session import session
from datasets.index import Index, build
from datasets.schema import Corpus, open_corpus
from datasets.windows import WindowSpec
from finetune import metrics, probe
from finetune.encoder import BundleEncoder, pooled, untrained
from finetune.evaluation import features, identify, inversion
from finetune.evaluation.choose import HANDCRAFTED, Seen, seen_by_pretraining
from finetune.reports import privacy_card, privacy_plots

CHUNK = 256  # windows in memory at once
WINDOW_S = 30.0  # longest default window: a third of a short recording should hold several
SIDE = 16  # windows a subject enrolled, probed, and in between, at most: spread evenly
MAX_SUBJECTS = 1000  # drawn from a larger corpus
GALLERY = (2, 5, 10, 20, 50, 100, 200, 500)
CURVE = 48  # gallery sizes in the picture
LABELS = {
    "encoder": "This encoder",
    "untrained": "Same, untrained",
    "handcrafted": "Handcrafted",
    "raw": "Raw waveform",
}


@dataclass(frozen=True)
class Chosen:
    """The windows of a card, (n,) each, and their sides. rows: of the index; drawn_from: the number of
    subjects before MAX_SUBJECTS.
    """

    rows: np.ndarray
    subject: np.ndarray
    record: np.ndarray
    sides: identify.Sides
    refused: dict[str, int]
    left_out: dict[str, int]
    drawn_from: int


def privacy(
    bundle: str,
    corpus: str,
    mode: str | None = None,
    window_s: float | None = None,
    gallery: str | None = None,
    out: str | None = None,
    subjects: str = "unseen",
    folds: int = 5,
    seed: int = 0,
    publish: bool = True,
) -> dict[str, Any]:
    """Write privacy.md, results.json and pictures to `out` (when given) and, unless `publish` is off, beside
    the bundle; return the results.

    window_s: default the encoder's own, at most WINDOW_S. gallery: sizes as "2,5,10"; default GALLERY and all
    subjects. subjects: "unseen" leaves out whom pretraining saw.
    """
    sizes = gallery_sizes(gallery)
    if window_s is not None and not window_s > 0:
        raise PlethoraError(f"--window-s {window_s:g}: must be above 0 seconds")
    encoder, source = BundleEncoder(bundle, mode), open_corpus(corpus)
    encoder.check(source)
    width = min(encoder.window_s, WINDOW_S) if window_s is None else window_s
    pieces = encoder.pieces(width)
    seen = seen_by_pretraining(encoder.bundle, source)
    with session(actors=2):
        index = build(source, WindowSpec(signals=encoder.signals, window_s=width))
    chosen = choose(index, seen, subjects, seed)
    people = len(chosen.sides.names)
    if sizes and sizes[-1] > people:
        raise PlethoraError(f"--gallery {sizes[-1]}: only {people} subjects are there to be searched")
    vectors, waves, notes = embedded(index, chosen.rows, encoder, pieces)
    sizes = sizes or sorted({n for n in GALLERY if n < people} | {people})
    found, searched = identification(vectors, chosen, sizes, seed)
    results = {
        "kind": "privacy",
        "bundle": {"uri": encoder.bundle.uri, "mode": encoder.mode, "dim": encoder.dim},
        "corpus": {"uri": source.uri, "hash": source.hash}
        | {k: source.manifest.get(k, "") for k in ("source", "licence", "access", "subjects_published")},
        "overlap": {"kind": seen.kind, "why": list(seen.why), "shared_subjects": len(seen.subjects),
                    "policy": subjects, "left_out": chosen.left_out},
        "counts": {"subjects": len(set(chosen.subject)), "records": len(set(chosen.record)),
                   "windows": len(chosen.rows), "enrolled": int(chosen.sides.enrol.sum()),
                   "probes": int(chosen.sides.probe.sum()), "drawn_from": chosen.drawn_from},
        "refused": chosen.refused,
        "protocol": _protocol(chosen, width, pieces, folds, seed),
        "identification": found | {"notes": notes},
    }  # fmt: skip
    inverted = _invert(vectors["encoder"], waves, encoder, chosen.subject, folds, seed)
    results["inversion"] = {
        m: {t: part["table"] for t, part in parts.items()} for m, parts in inverted.items()
    }
    results["verdict"] = privacy_card.verdicts(results)
    _write(results, searched, inverted, chosen.subject, bundle, source, out, publish)
    return results


def gallery_sizes(text: str | None) -> list[int]:
    """``"2,5,10"`` → sorted sizes; none for None."""
    if text is None:
        return []
    try:
        sizes = sorted({int(part) for part in text.split(",")})
    except ValueError:
        sizes = []
    if not sizes or sizes[0] < 2:
        raise PlethoraError(f"--gallery {text}: must be whole numbers of 2 or more, as in 2,5,10")
    return sizes


def choose(index: Index, seen: Seen, subjects: str, seed: int) -> Chosen:
    """Sound windows of subjects that pretraining did not see (or of all), with their sides; at most SIDE a
    subject on each.
    """
    table = index.table
    refused = Counter(f"signal: {v}" for v in table["verdict"].to_pylist() if v != "ok")
    rows = index.select(None)
    subject = np.asarray(table["subject"].take(pa.array(rows)).to_pylist(), object).astype(str)
    known = np.isin(subject, list(seen.subjects) if subjects == "unseen" else [])
    left_out = {"subjects": len(set(subject[known])), "windows": int(known.sum())}
    rows, subject = rows[~known], subject[~known]
    names = np.unique(subject)
    rng = np.random.default_rng([seed, 0xCA4D])
    if len(names) > MAX_SUBJECTS:
        kept = np.isin(subject, rng.choice(names, MAX_SUBJECTS, replace=False))
        rows, subject = rows[kept], subject[kept]
    part = table.take(pa.array(rows))
    record, start = np.asarray(part["record"].to_pylist(), object).astype(str), part["start_s"].to_numpy()
    split = identify.sides(subject, record, start, index.spec.window_s)
    if len(split.names) < probe.MIN_SUBJECTS:
        raise PlethoraError(
            f"{index.corpus.uri}: {len(split.names)} subjects can be enrolled and probed "
            f"({len(split.left_out)} have too short a record for windows of {index.spec.window_s:g} s and "
            "a gap, "
            f"{left_out['subjects']} were seen by pretraining): at least {probe.MIN_SUBJECTS} are needed"
        )
    kept = np.concatenate(
        [_spread(np.flatnonzero((subject == name) & side))
         for name in np.unique(subject)
         for side in (split.enrol, split.probe, ~(split.enrol | split.probe))]
    )  # fmt: skip
    kept.sort()
    split = identify.Sides(split.enrol[kept], split.probe[kept], split.gap_s, split.apart, split.left_out)
    return Chosen(
        rows[kept], subject[kept], record[kept], split, dict(sorted(refused.items())), left_out, len(names)
    )


def _spread(rows: np.ndarray) -> np.ndarray:
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), SIDE)).round().astype(int))]


def embedded(
    index: Index, rows: np.ndarray, encoder: BundleEncoder, pieces: int
) -> tuple[dict[str, np.ndarray], dict[str, dict[str, np.ndarray]], dict[str, str]]:
    """{row name: (n, d)} vectors, {modality: {"waveform": (n, T), "spectrum": (n, F)}} that decoders aim at,
    and why a row is missing; memory grows with the vectors and targets only.
    """
    runs, notes = _runs(encoder)
    found: dict[str, list[np.ndarray]] = {name: [] for name in runs}
    waves: dict[str, dict[str, list[np.ndarray]]] = {
        m: {"waveform": [], "spectrum": []} for m in encoder.modalities
    }
    # the same modalities, so that rows of the index mean the same rows
    plain_signals = tuple(HANDCRAFTED if s.modality == "ppg" else s for s in encoder.signals)
    plain = Index(index.corpus, index.spec.model_copy(update={"signals": plain_signals}), index.table)
    handcrafted = "ppg" in encoder.modalities
    if not handcrafted:
        notes["handcrafted"] = "made for PPG only"
    with progress(len(rows), "embed", "windows") as bar:
        for low in range(0, len(rows), CHUNK):
            part = rows[low : low + CHUNK]
            prepared = index.load(part)
            given = prepared if len(prepared) > 1 else prepared[encoder.modality]
            for name, run in runs.items():
                found[name].append(pooled(run, given, pieces, encoder.samples_step))
            for signal in encoder.signals:
                x, kept = prepared[signal.modality][:, 0], waves[signal.modality]
                kept["waveform"].append(inversion.waveform(x, signal.rate))
                kept["spectrum"].append(inversion.spectrum(x, signal.rate, signal.band))
            if handcrafted:
                pulse = plain.load(part)["ppg"][:, 0]
                found.setdefault("handcrafted", []).append(features.handcrafted(pulse, HANDCRAFTED.rate))
            bar.update(len(part))
    vectors = {name: np.concatenate(parts) for name, parts in found.items()}
    targets = {m: {k: np.concatenate(v) for k, v in kept.items()} for m, kept in waves.items()}
    vectors["raw"] = np.concatenate([kept["waveform"] for kept in targets.values()], axis=1)
    return vectors, targets, notes


def _runs(encoder: BundleEncoder) -> tuple[dict[str, Callable[[Any], np.ndarray]], dict[str, str]]:
    """What turns prepared windows into vectors, by row name, and why a row is missing."""
    notes: dict[str, str] = {}
    runs: dict[str, Callable[[Any], np.ndarray]] = {"encoder": encoder}
    config = encoder.bundle.config
    try:
        runs["untrained"] = untrained(config, encoder.mode, int(config["run"].get("seed", 0)))
    except (PlethoraError, KeyError) as error:
        notes["untrained"] = f"cannot be rebuilt from config.json: {error}"
    return runs, notes


def _protocol(chosen: Chosen, window_s: float, pieces: int, folds: int, seed: int) -> dict[str, Any]:
    gaps = np.array(list(chosen.sides.gap_s.values()) or [np.nan])
    return {
        "window_s": window_s, "pieces": pieces, "folds": folds, "seed": seed, "draws": metrics.DRAWS,
        "windows_a_side": SIDE, "wave_s": min(window_s, inversion.WAVE_S),
        "one_record": len(chosen.sides.gap_s), "other_records": len(chosen.sides.apart),
        "too_short": len(chosen.sides.left_out),
        "gap_s": {"least": gaps.min(), "median": np.median(gaps), "most": gaps.max()},
    }  # fmt: skip


def identification(
    vectors: dict[str, np.ndarray], chosen: Chosen, sizes: list[int], seed: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Rank-1 and rank-5 against N, equal error rate and differences of each kind of vector; and what is
    drawn: {name: (n, 4) gallery size, rank-1, low, high}.
    """
    subject, split, people = chosen.subject, chosen.sides, len(chosen.sides.names)
    weights = metrics.draw_weights(people, metrics.DRAWS, seed)
    dense = sorted({*np.geomspace(2, people, CURVE).round().astype(int).tolist(), *sizes})
    rows, curves, largest, attacks = [], {}, {}, {}

    def listed(hits: np.ndarray) -> list[dict[str, float]]:
        return [asdict(identify.of_mean(column, weights)) for column in hits.T]

    for name, label in LABELS.items():
        if name not in vectors:
            continue
        scored = identify.scores(vectors[name], subject, split)
        first = identify.hits(scored, dense)
        at = [dense.index(n) for n in sizes]
        largest[name] = first[:, at[-1]]
        shown = listed(first)
        curves[name] = np.array([[n, *i.values()] for n, i in zip(dense, shown, strict=True)])
        rows.append({
            "name": name, "label": label, "rank1": [shown[i] for i in at],
            "rank5": listed(identify.hits(scored, sizes, 5)),
            "eer": asdict(identify.equal_error_rate(scored, weights)),
        })  # fmt: skip
    for attack in identify.ATTACKS:
        tried = identify.hits(identify.scores(vectors["encoder"], subject, split, attack), sizes[-1:])
        attacks[attack] = listed(tried)[0]
    away = np.isin(split.names, split.apart)
    by_gap = {
        kind: {"subjects": int(mask.sum()), "rank1": float(largest["encoder"][mask].mean())}
        for kind, mask in (("same record", ~away), ("other record", away)) if mask.any()
    }  # fmt: skip
    return {
        "sizes": sizes, "rows": rows, "attacks": attacks, "by_gap": by_gap,
        "differences": {n: asdict(identify.of_mean(largest["encoder"] - largest[n], weights))
                        for n in largest if n != "encoder"},
        "per_subject": dict(zip(split.names, largest["encoder"].tolist(), strict=True)),
    }, curves  # fmt: skip


def _invert(
    x_nd: np.ndarray,
    targets: Mapping[str, dict[str, np.ndarray]],
    encoder: BundleEncoder,
    subject: np.ndarray,
    folds: int,
    seed: int,
) -> dict[str, dict[str, dict[str, Any]]]:
    """{modality: {"waveform" | "spectrum": {truth, found, axis, table}}}"""
    outer = probe.grouped_folds(subject, folds, seed)
    out: dict[str, dict[str, dict[str, Any]]] = {}
    for signal in encoder.signals:
        samples = targets[signal.modality]["waveform"].shape[1]
        axes = {
            "waveform": np.arange(samples) / signal.rate,
            "spectrum": inversion.frequencies(samples, signal.rate, signal.band),
        }
        for name, truth in targets[signal.modality].items():
            found = inversion.invert(x_nd, truth, subject, outer, seed)
            out.setdefault(signal.modality, {})[name] = {
                "truth": truth, "found": found, "axis": axes[name],
                "table": inversion.table(truth, found, subject, seed),
            }  # fmt: skip
    return out


def _write(
    results: dict[str, Any],
    curves: dict[str, np.ndarray],
    inverted: dict[str, dict[str, dict[str, Any]]],
    subject: np.ndarray,
    bundle: str,
    corpus: Corpus,
    out: str | None,
    publish: bool,
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        (here / "plots").mkdir()
        privacy_plots.rank(results, curves, here / "plots" / "rank.png")
        for modality, parts in inverted.items():
            privacy_plots.inversion(parts, subject, modality, here / "plots" / f"inversion_{modality}.png")
        (here / "privacy.md").write_text(privacy_card.markdown(results), encoding="utf-8")
        (here / "results.json").write_bytes(storage.json_bytes(results))
        print(privacy_card.terminal(results), flush=True)
        if out is not None:
            storage.upload(here, out)
            results["out"] = storage.normalise(out)
            print(f"\ncard and pictures: {results['out']}")
        if publish:
            if results["corpus"]["access"] != "open":  # recordings of people who gave them to few
                for modality in inverted:
                    (here / "plots" / f"inversion_{modality}.png").unlink()
                (here / "privacy.md").write_text(
                    privacy_card.markdown(results, pictured=False), encoding="utf-8"
                )
                print("pictures of waveforms are not published: access to the corpus is not open")
            results["published"] = bundles.write_evaluation(bundle, here)
            print(f"beside the bundle: {results['published']}")
