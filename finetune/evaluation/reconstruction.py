"""Reconstructs one signal from another: a bundle's decoder against the true signal and three baselines."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from cluster.errors import PlethoraError
from datasets.index import Index
from finetune import metrics, probe
from finetune.embed import cut, places, read_signals, same_time
from finetune.encoders.bundle import BundleEncoder
from finetune.evaluation import waveform
from finetune.evaluation.people import SeenSubjects
from finetune.evaluation.results import CorpusInfo, Metrics, Overlap, Protocol, Result
from finetune.evaluation.sample import spread
from finetune.metrics import Difference
from finetune.translator import Translator

FIT = 6000  # windows to fit the baselines on, spread over subjects
LABELS = {
    "decoder": "This decoder",
    "mean_beat": "Mean beat, at the median delay",
    "around": "Mean around a beat, least squares",
    "ridge": "Ridge regression from the window",
}

Scores = Mapping[str, np.ndarray]  # {metric: (n,)}, NaN where a window has none


@dataclass(frozen=True)
class RebuiltArrays:
    """`metrics`: means over windows, if the file also holds the true signal; `rebuilt`: (rows, windows,
    samples) of `modality` at `rate` Hz; `start_s`: (windows,).
    """

    decoder: str
    metrics: Mapping[str, float]
    rebuilt: np.ndarray
    modality: str
    rate: float
    start_s: np.ndarray


@dataclass(frozen=True)
class RebuiltRow(Result):
    """A row of the table. `found`: {metric: fraction of windows for which the row has a value}."""

    name: str
    label: str
    metrics: Metrics
    found: Mapping[str, float]


@dataclass(frozen=True)
class RebuiltCounts(Result):
    """`fitted_on_more`: windows of pretraining subjects, on which the baselines are also fitted."""

    subjects: int
    windows: int
    fitted_on_more: int


@dataclass(frozen=True)
class ReconstructionResult(Result):
    """`differences`: {row: {metric: decoder − row}}, paired."""

    decoder: str
    bundle: str
    corpus: CorpusInfo
    overlap: Overlap
    warnings: tuple[str, ...]
    counts: RebuiltCounts
    window_s: float
    protocol: Protocol
    rows: tuple[RebuiltRow, ...]
    differences: Mapping[str, Mapping[str, Difference]]


@dataclass(frozen=True)
class RebuiltWindows:
    """A result with its windows: `keys` (one row per window: subject, record, start_s), the prepared input
    signal `x` and true signal `y`, (n, T) each, `guesses` of each row, and the decoder's Pearson `r` (n,).
    """

    result: ReconstructionResult
    keys: pa.Table
    x: np.ndarray
    y: np.ndarray
    guesses: dict[str, np.ndarray]
    r: np.ndarray
    rate: float
    source: str
    target: str


# ---------------------------------------------------------------- arrays


def of_arrays(translator: Translator, path: str) -> RebuiltArrays:
    """Rebuilds the target signal of an .npz; metrics need the true target in the file as well. A row shorter
    than the decoder's window is one window.
    """
    source, target = translator.source.modality, translator.target.modality
    signals = read_signals(path, [source])
    with np.load(path, allow_pickle=False) as npz:
        both = target in npz.files
    if both:
        signals = read_signals(path, [source, target])
    seconds = same_time(path, signals)
    starts = places(signals, translator.window_s, translator.window_s)
    known = translator.window_s if len(starts) else None
    width = seconds if known is None else known
    if known is None:
        starts = np.zeros(1)

    def prepared(encoder: BundleEncoder) -> np.ndarray:
        """(rows · windows, 1, T): the windows of a row are consecutive."""
        x, rate = signals[encoder.modality]
        windows = cut(x, rate, starts, width).swapaxes(0, 1)
        return encoder.prepare(windows.reshape(-1, 1, windows.shape[-1]), rate, known)

    guess, means = translator(prepared(translator.source)), {}
    if both:
        true = prepared(translator.target)[:, 0, : guess.shape[1]]
        scored = waveform.scores(true, guess, translator.rate, target)
        means = {name: float(np.nanmean(values)) for name, values in scored.items()}
    rebuilt = guess.reshape(len(signals[source][0]), len(starts), -1)
    return RebuiltArrays(translator.name, means, rebuilt, target, translator.rate, starts)


# ---------------------------------------------------------------- corpora


def of_corpus(
    translator: Translator, index: Index, seen: SeenSubjects, windows: int, folds: int, seed: int
) -> RebuiltWindows:
    """Rebuilds at most `windows` windows that hold both signals, of the subjects that `seen` keeps. Baselines
    are fitted on other subjects. Raises PlethoraError when no window is left.
    """
    source, target = translator.source.modality, translator.target.modality
    rows = index.select(None)
    subject = np.asarray(index.table["subject"].take(pa.array(rows)).to_pylist(), object).astype(str)
    keep, left_out = seen.split(subject)
    if not keep.any():
        why = f"no stretch holds {translator.window_s:g} s of both; use another corpus"
        if left_out.subjects:
            why = (
                f"pretraining saw all its {left_out.subjects} subjects; use another corpus "
                "(--allow-overlap gives flattering figures, marked as such)"
            )
        raise PlethoraError(
            f"no window of {index.corpus.uri} is left to rebuild {target} from {source}: {why}"
        )
    chosen, fit = spread(np.flatnonzero(keep), windows), spread(np.flatnonzero(~keep), FIT)
    x, y = _load(index, rows[chosen], source, target)
    guesses = {"decoder": translator(x[:, None])}
    length = guesses["decoder"].shape[1]
    shown = Pairs(x[:, :length], y[:, :length], subject[chosen])
    more_x, more_y = _load(index, rows[fit], source, target)
    more = Pairs(more_x[:, :length], more_y[:, :length], subject[fit])
    guesses |= references(shown, more, translator.rate, source, target, folds, seed)
    scored = {name: waveform.scores(shown.y, y, translator.rate, target) for name, y in guesses.items()}
    table_rows, differences = table(scored, shown.subject, seed)
    result = ReconstructionResult(
        decoder=translator.name,
        bundle=translator.bundle.uri,
        corpus=CorpusInfo(index.corpus.uri, index.corpus.hash),
        overlap=seen.overlap(),
        warnings=tuple(seen.warnings()),
        counts=RebuiltCounts(len(set(shown.subject)), len(chosen), len(fit)),
        window_s=translator.window_s,
        protocol=Protocol(folds, seed, metrics.DRAWS),
        rows=table_rows,
        differences=differences,
    )
    keys = index.table.take(pa.array(rows[chosen])).select(["subject", "record", "start_s"])
    r = scored["decoder"]["pearson"]
    return RebuiltWindows(result, keys, shown.x, shown.y, guesses, r, translator.rate, source, target)


@dataclass(frozen=True)
class Pairs:
    """Windows of both signals, (n, T) each at one rate, and their subjects (n,)."""

    x: np.ndarray
    y: np.ndarray
    subject: np.ndarray


def _load(index: Index, rows: np.ndarray, source: str, target: str) -> tuple[np.ndarray, np.ndarray]:
    """Both signals, (n, T) float32 each, preprocessed for the network."""
    found = index.load(rows)
    return found[source][:, 0], found[target][:, 0]


def references(
    pairs: Pairs, more: Pairs, rate: float, source: str, target: str, folds: int, seed: int
) -> dict[str, np.ndarray]:
    """{row: (n, T)} out-of-fold predictions, fitted on the other subjects of `pairs` and on all of `more`."""
    found = {name: np.zeros(pairs.y.shape) for name in LABELS if name != "decoder"}
    for train, test in probe.grouped_folds(pairs.subject, folds, seed):
        x, y = np.concatenate([more.x, pairs.x[train]]), np.concatenate([more.y, pairs.y[train]])
        people = np.concatenate([more.subject, pairs.subject[train]])
        models: dict[str, Callable[[np.ndarray], np.ndarray]] = {
            "mean_beat": waveform.MeanBeat.of_target(x, y, rate, source, target),
            "around": waveform.MeanBeat.around_source(x, y, rate, source),
            "ridge": waveform.Ridge.fit(x, y, people, seed),
        }
        for name, model in models.items():
            found[name][test] = model(pairs.x[test])
    return found


# ---------------------------------------------------------------- table


def table(
    scored: Mapping[str, Scores], subject_n: np.ndarray, seed: int
) -> tuple[tuple[RebuiltRow, ...], dict[str, dict[str, Difference]]]:
    """Rows (means over windows with subject-bootstrap intervals) and paired differences decoder − row. Each
    metric uses only windows for which all rows have a value, so that no row gains by omitting windows.
    """
    metric_names = scored["decoder"].keys()
    common = {m: np.all([np.isfinite(s[m]) for s in scored.values()], axis=0) for m in metric_names}
    _, group = np.unique(subject_n, return_inverse=True)
    weights = metrics.draw_weights(group.max() + 1, seed=seed)
    drawn = {
        name: {m: _drawn(np.where(common[m], values, np.nan), group, weights) for m, values in row.items()}
        for name, row in scored.items()
    }
    rows = [
        RebuiltRow(
            name,
            LABELS[name],
            metrics.each_interval(drawn[name]),
            {m: float(np.isfinite(values).mean()) for m, values in row.items()},
        )
        for name, row in scored.items()
    ]
    decoder = drawn["decoder"]
    differences = {
        name: {m: metrics.difference(decoder[m], values) for m, values in row.items()}
        for name, row in drawn.items()
        if name != "decoder"
    }
    return tuple(rows), differences


def _drawn(values: np.ndarray, group: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(1 + draws,) mean of the finite values: over all windows, then over each bootstrap draw of subjects."""
    good = np.isfinite(values)
    sums = np.stack([np.bincount(group, np.where(good, values, 0)), np.bincount(group, good)], axis=1)
    total = np.concatenate([sums.sum(0)[None], weights @ sums])
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(total[:, 0] / total[:, 1])
