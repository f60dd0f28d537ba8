"""One signal from another: a bundle's decoder beside the true signal and three references.

A bundle that has decoders (M2AE's) lists them in config.json: `ppg_to_ecg`, `ecg_to_ppg`.
"""

import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cluster import bundle as bundles
from cluster import storage
from cluster.errors import PlethoraError
from cluster.session import session
from datasets.index import Index, build
from datasets.schema import open_corpus
from datasets.windows import WindowSpec
from finetune import metrics, probe
from finetune.embed import cut, places, read_signals, same_time
from finetune.encoder import BATCH, BundleEncoder, finite
from finetune.evaluation import waveform
from finetune.evaluation.choose import seen_by_pretraining
from finetune.graph import Graph
from finetune.reports.reconstruct_report import ROWS, write

FIT = 6000  # windows that references are fitted on, spread over subjects


class Translator:
    """A bundle's decoder from `source` to `target`: prepared (n, 1, T) → (n, T') float32, z-scored."""

    def __init__(self, uri: str, source: str, target: str) -> None:
        self.bundle = bundles.open(uri)
        decoders = self.bundle.described.decoders
        name = f"{source}_to_{target}"
        if name not in decoders:
            raise PlethoraError(
                f"{uri} has no decoder from {source} to {target} (it has {', '.join(decoders) or 'none'}): "
                "use a bundle of a method that rebuilds signals, such as M2AE"
            )
        self.source, self.target = BundleEncoder(uri, source), BundleEncoder(uri, target)
        file, self._input = decoders[name].file, decoders[name].inputs[0].name
        self._graph = Graph(self.bundle.path(file), f"{uri}/{file}")
        self.name, self.rate = name, float(decoders[name].output["rate"])

    @property
    def window_s(self) -> float:
        return self.source.window_s

    def __call__(self, prepared: np.ndarray) -> np.ndarray:
        parts = [
            self._graph({self._input: prepared[i : i + BATCH]})[:, 0] for i in range(0, len(prepared), BATCH)
        ]
        return finite(np.concatenate(parts), self.bundle.uri)


def reconstruct(
    bundle: str,
    input: str,
    source: str,
    target: str,
    out: str,
    subjects: str = "unseen",
    windows: int = 2000,
    folds: int = 5,
    seed: int = 0,
) -> dict[str, Any]:
    """Rebuild `target` from `source` for a corpus that holds both, or for an .npz with the source.

    A corpus gives a table beside three references (fitted on other subjects) on up to `windows` windows of
    subjects that pretraining did not see, pictures, and rebuilt.parquet; an .npz gives rebuilt.npz, and the
    same figures without references where it holds the target as well. Everything lies in the folder `out`.
    """
    translator = Translator(bundle, source, target)
    if input.endswith(".npz"):
        return _from_npz(translator, input, source, target, out)
    return _from_corpus(translator, input, source, target, out, subjects, windows, folds, seed)


# ---------------------------------------------------------------- arrays


def _from_npz(translator: Translator, input: str, source: str, target: str, out: str) -> dict[str, Any]:
    held = read_signals(input, [source])
    with np.load(input, allow_pickle=False) as there:
        both = target in there.files
    if both:
        held = read_signals(input, [source, target])
    seconds = same_time(input, held)
    starts = places(held, translator.window_s, translator.window_s)
    known = translator.window_s if len(starts) else None
    width = seconds if known is None else known
    if known is None:  # shorter rows are one window each
        starts = np.zeros(1)
    rows = len(held[source][0])

    def prepared(modality: str, encoder: BundleEncoder) -> np.ndarray:
        """(rows · windows, 1, T): a row's windows follow each other."""
        x, rate = held[modality]
        windows = cut(x, rate, starts, width).swapaxes(0, 1)
        return encoder.prepare(windows.reshape(-1, 1, windows.shape[-1]), rate, known)

    guess = translator(prepared(source, translator.source))
    results: dict[str, Any] = {"windows": len(guess), "decoder": translator.name, "metrics": {}}
    if both:
        true = prepared(target, translator.target)[:, 0, : guess.shape[1]]
        found = waveform.scores(true, guess, translator.rate, target)
        results["metrics"] = {name: float(np.nanmean(value)) for name, value in found.items()}
    shaped = guess.reshape(rows, len(starts), -1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rebuilt.npz"
        arrays: dict[str, Any] = {target: shaped, "rate": translator.rate, "start_s": starts}
        np.savez_compressed(path, **arrays)
        storage.upload(folder, out)
    for name, value in results["metrics"].items():
        print(f"{waveform.METRICS[name]}: {value:.3f}")
    print(
        f"written: {storage.join(storage.normalise(out), 'rebuilt.npz')}, {target} (rows, windows, samples)"
    )
    return results | {"out": storage.normalise(out)}


# ---------------------------------------------------------------- corpora


def _from_corpus(
    translator: Translator, input: str, source: str, target: str, out: str, subjects: str, windows: int,
    folds: int, seed: int,
) -> dict[str, Any]:  # fmt: skip
    corpus = open_corpus(input)
    seen = seen_by_pretraining(translator.bundle, corpus)
    spec = WindowSpec(
        signals=(translator.source.signal, translator.target.signal), window_s=translator.window_s
    )
    with session(actors=2):
        index = build(corpus, spec)
    rows = index.select(None)
    subject = np.asarray(index.table["subject"].take(pa.array(rows)).to_pylist(), object).astype(str)
    held_out = np.ones(len(rows), bool) if subjects == "all" else ~np.isin(subject, list(seen.subjects))
    if not held_out.any():
        why = "pretraining saw all its subjects" if len(rows) else f"no {translator.window_s:g} s of both"
        raise PlethoraError(
            f"no window of {input} is left to rebuild {target} from {source}: {why}; use another corpus"
        )
    chosen = spread(np.flatnonzero(held_out), windows)
    fit = spread(np.flatnonzero(~held_out), FIT)
    who = subject[chosen]
    x, y = _load(index, rows[chosen], source, target)
    guesses = {"decoder": translator(x[:, None])}
    length = guesses["decoder"].shape[1]
    x, y = x[:, :length], y[:, :length]
    more_x, more_y = (part[:, :length] for part in _load(index, rows[fit], source, target))
    guesses |= _references(
        x, y, who, more_x, more_y, subject[fit], translator.rate, source, target, folds, seed
    )

    found = {name: waveform.scores(y, guess, translator.rate, target) for name, guess in guesses.items()}
    results = {
        "decoder": translator.name,
        "bundle": translator.bundle.uri,
        "corpus": {"uri": corpus.uri, "hash": corpus.hash},
        "overlap": {"kind": seen.kind, "why": list(seen.why), "policy": subjects},
        "counts": {"subjects": len(set(who)), "windows": len(chosen), "fitted_on_more": len(fit)},
        "window_s": translator.window_s,
        "protocol": {"folds": folds, "seed": seed, "draws": metrics.DRAWS},
        **_table(found, who, seed),
    }
    table = index.table.take(pa.array(rows[chosen]))
    write(results, table, x, y, guesses, found["decoder"]["pearson"], translator.rate, source, target, out)
    return results | {"out": storage.normalise(out)}


def spread(places: np.ndarray, most: int) -> np.ndarray:
    """At most so many of `places`, evenly."""
    if len(places) <= most:
        return places
    return places[np.linspace(0, len(places) - 1, most).round().astype(int)]


def _load(index: Index, rows: np.ndarray, source: str, target: str) -> tuple[np.ndarray, np.ndarray]:
    """(n, T) float32 of both signals, prepared as the network wants them."""
    found = index.load(rows)
    return found[source][:, 0], found[target][:, 0]


def _references(
    x: np.ndarray, y: np.ndarray, who: np.ndarray, more_x: np.ndarray, more_y: np.ndarray,
    more_who: np.ndarray, rate: float, source: str, target: str, folds: int, seed: int,
) -> dict[str, np.ndarray]:  # fmt: skip
    """The references out of fold: fitted on the other subjects of these and on all that pretraining saw."""
    found = {name: np.zeros(y.shape) for name in ROWS if name != "decoder"}
    for train, test in probe.grouped_folds(who, folds, seed):
        fit_x, fit_y = np.concatenate([more_x, x[train]]), np.concatenate([more_y, y[train]])
        people = np.concatenate([more_who, who[train]])
        models: dict[str, Callable[[np.ndarray], np.ndarray]] = {
            "mean_beat": waveform.MeanBeat.of_target(fit_x, fit_y, rate, source, target),
            "around": waveform.MeanBeat.around_source(fit_x, fit_y, rate, source),
            "ridge": waveform.Ridge.fit(fit_x, fit_y, people, seed),
        }
        for name, model in models.items():
            found[name][test] = model(x[test])
    return found


def _table(found: dict[str, dict[str, np.ndarray]], who: np.ndarray, seed: int) -> dict[str, Any]:
    """Means over windows with subject-bootstrap intervals, and paired differences decoder − reference; each
    metric over the windows in which every row has it, so that none gains by giving up.
    """
    share = {n: {m: float(np.isfinite(v).mean()) for m, v in scored.items()} for n, scored in found.items()}
    common = {m: np.all([np.isfinite(f[m]) for f in found.values()], axis=0) for m in found["decoder"]}
    found = {n: {m: np.where(common[m], v, np.nan) for m, v in f.items()} for n, f in found.items()}
    _, group = np.unique(who, return_inverse=True)
    weights = metrics.draw_weights(group.max() + 1, seed=seed)
    sums = {
        name: {metric: _sums(values, group) for metric, values in scored.items()}
        for name, scored in found.items()
    }
    rows = [
        {
            "name": name,
            "label": ROWS[name],
            "metrics": {m: asdict(_interval(s, weights)) for m, s in scored.items()},
            "found": share[name],
        }
        for name, scored in sums.items()
    ]
    differences = {
        name: {m: asdict(_difference(sums["decoder"][m], sums[name][m], weights)) for m in sums[name]}
        for name in sums
        if name != "decoder"
    }
    return {"rows": rows, "differences": differences}


def _sums(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    """(subjects, 2): sum and count of what is finite."""
    good = np.isfinite(values)
    return np.stack([np.bincount(group, np.where(good, values, 0)), np.bincount(group, good)], axis=1)


def _mean(sums: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return sums[..., 0] / sums[..., 1]


def _interval(sums: np.ndarray, weights: np.ndarray) -> metrics.Interval:
    low, high = np.nanpercentile(_mean(weights @ sums), [2.5, 97.5])
    return metrics.Interval(float(_mean(sums.sum(0))), float(low), float(high))


def _difference(a: np.ndarray, b: np.ndarray, weights: np.ndarray) -> metrics.Difference:
    drawn = _mean(weights @ a) - _mean(weights @ b)
    drawn = drawn[np.isfinite(drawn)]
    tail = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    low, high = np.percentile(drawn, [2.5, 97.5]) if len(drawn) else (np.nan, np.nan)
    p = min(1.0, 2 * (1 + tail) / (len(drawn) + 1))
    return metrics.Difference(float(_mean(a.sum(0)) - _mean(b.sum(0))), float(low), float(high), p)
