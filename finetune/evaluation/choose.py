"""Selects the windows of an evaluation: labelled, of subjects outside pretraining, and usable by every
encoder under evaluation.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa

from cluster.errors import PlethoraError
from datasets.index import Index, build, few
from datasets.judge import judge
from datasets.schema import Corpus
from datasets.signal import Signal
from datasets.windows import WindowSpec, lasts, present
from finetune.encoders.base import Encoder
from finetune.evaluation import multilabel, tracker
from finetune.evaluation.people import NOBODY, SeenSubjects
from finetune.evaluation.readings import reading_names
from finetune.evaluation.results import LeftOut
from finetune.task import Task, excluded, window_targets

HANDCRAFTED = Signal(modality="ppg", rate=50.0, band=(0.5, 8.0))  # input of features.handcrafted
TRACKED = (  # inputs of tracker.frames_of; the accelerometer in g
    Signal(modality="ppg", rate=tracker.RATE, band=tracker.BAND),
    Signal(modality="acc", rate=tracker.RATE, band=tracker.BAND, channels=3, required=False),
)


@dataclass
class Windows:
    """The evaluated windows: rows of the index, targets (in the task's unit, a class number, or (n, labels)
    for several `names`), subject, record, start. unlabelled: number of subjects with good signals but no
    usable label. reading: for tasks on readings, the name of each window's reading.
    """

    rows: np.ndarray
    target: np.ndarray
    subject: np.ndarray
    record: np.ndarray
    start_s: np.ndarray
    refused: dict[str, int] = field(default_factory=dict)
    left_out: LeftOut = field(default_factory=LeftOut)
    names: list[str] = field(default_factory=list)
    unlabelled: int = 0
    reading: np.ndarray | None = None

    def at(self, rows: np.ndarray) -> "Windows":
        """The windows at these positions."""
        return replace(
            self,
            rows=self.rows[rows],
            target=self.target[rows],
            subject=self.subject[rows],
            record=self.record[rows],
            start_s=self.start_s[rows],
            reading=None if self.reading is None else self.reading[rows],
        )


@dataclass(frozen=True)
class Places:
    """Windows of one length and hop that contain all signals of all encoders. `views` (by encoder) and
    `pulses` (for handcrafted features; None where the corpus has no PPG) hold the same windows, row by row.
    """

    index: Index
    views: dict[str, Index]
    pulses: Index | None

    def refused_by(self) -> dict[str, dict[str, int]]:
        """{encoder: {reason: number of windows that it refuses}}."""
        found = {name: Counter(view.table["verdict"].to_pylist()) for name, view in self.views.items()}
        return {name: {v: n for v, n in sorted(c.items()) if v != "ok"} for name, c in found.items()}

    def verdicts(self) -> list[str]:
        """Verdict of each window: "ok" where every encoder takes it, else the first refusal's reason."""
        columns = [view.table["verdict"].to_pylist() for view in self.views.values()]
        return [next((v for v in row if v != "ok"), "ok") for row in zip(*columns, strict=True)]


def place(corpus: Corpus, encoders: Mapping[str, Encoder], task: Task, cache: str | None = None) -> Places:
    """Locations of the task's windows, with each encoder's verdict on them. Needs Ray. `cache`: URI of the
    index cache.

    Encoders that take the same signals with the same preprocessing share a view. Raises PlethoraError when an
    encoder cannot use the corpus.
    """
    signals: dict[str, Signal] = {}
    for encoder in encoders.values():
        encoder.check(corpus)
        for signal in encoder.signals:
            known = signals.get(signal.modality)
            if known is None or (signal.required and not known.required):
                signals[signal.modality] = signal

    def spec(of: Iterable[Signal]) -> WindowSpec:
        return WindowSpec(signals=tuple(of), window_s=task.window_s, hop_s=task.hop_s, until_s=task.until_s)

    index = build(corpus, spec(signals.values()), cache)
    views = {index.spec: index}
    for encoder in encoders.values():
        wanted = spec(encoder.signals)
        if wanted not in views:
            views[wanted] = relocated(index, wanted, judged=True)
    pulses = relocated(index, spec([HANDCRAFTED]), judged=False) if "ppg" in corpus.modalities else None
    return Places(index, {name: views[spec(e.signals)] for name, e in encoders.items()}, pulses)


def relocated(index: Index, spec: WindowSpec, judged: bool) -> Index:
    """The same windows, row by row, under `spec`: their location among its rows, and its verdicts ("absent"
    where no row of it contains the window; without `judged` all others are "ok"), also `verdict_<m>` of each
    optional modality.
    """
    table, modalities = index.table, [s.modality for s in spec.signals]
    shard, group, record = (table[c].to_numpy(zero_copy_only=False) for c in ("shard", "group", "record"))
    start, n = table["start_s"].to_numpy(), table.num_rows
    row, offset, verdict = np.zeros(n, np.int32), np.zeros(n), np.full(n, "absent", object)
    optional = {m: np.full(n, "absent", object) for m in spec.optional}
    if modalities == [s.modality for s in index.spec.signals] and not optional:
        row, offset = table["row"].to_numpy().copy(), table["offset_s"].to_numpy().copy()
        verdict[:] = "ok"
        if not judged:
            return Index(index.corpus, spec, _with(table, row, offset, verdict))
    for s, g in sorted(set(zip(shard.tolist(), group.tolist(), strict=True))):
        which = np.flatnonzero((shard == s) & (group == g))
        rows = few(index.corpus, s, g, spec)
        at, shift = _within(rows, record[which], start[which], spec)
        row[which], offset[which] = np.maximum(at, 0), shift
        there = at >= 0
        verdict[which] = np.where(there, "ok", "absent")
        if judged and there.any():
            said = judge(rows, at[there], shift[there], spec)
            verdict[which[there]] = said["verdict"].to_numpy(zero_copy_only=False)
            for m, values in optional.items():
                values[which[there]] = said[f"verdict_{m}"].to_numpy(zero_copy_only=False)
        elif there.any():
            for m, has in zip(modalities, present(rows, spec), strict=True):
                if m in optional:
                    optional[m][which[there]] = np.where(has[at[there]], "ok", "absent")
    table = _with(table, row, offset, verdict)
    for m, values in optional.items():
        name = f"verdict_{m}"
        table = table.drop_columns([name] if name in table.column_names else [])
        table = table.append_column(name, pa.array(values.tolist(), pa.string()))
    return Index(index.corpus, spec, table)


def _within(
    rows: pa.Table, record: np.ndarray, start: np.ndarray, spec: WindowSpec
) -> tuple[np.ndarray, np.ndarray]:
    """(n,) row of `rows` that contains each window, -1 where none does, and (n,) its offset in that row."""
    begin, seconds = rows["start_s"].to_numpy(), lasts(rows, spec)
    room = seconds - spec.window_s
    name = np.asarray(rows["record"].to_pylist(), object)
    at, offset = np.full(len(record), -1), np.zeros(len(record))
    for i, (r, s) in enumerate(zip(record, start, strict=True)):
        # the millisecond tolerates a row that starts a sample late
        holds = (name == r) & (begin <= s + 1e-3) & (s <= begin + room + 1e-3) & (room >= -1e-10)
        if holds.any():
            at[i] = int(np.argmax(holds))
            offset[i] = max(s - begin[at[i]], 0.0)
    return at, offset


def _with(table: pa.Table, row: np.ndarray, offset: np.ndarray, verdict: np.ndarray) -> pa.Table:
    columns = {"row": pa.array(row), "offset_s": pa.array(offset), "verdict": pa.array(verdict.tolist())}
    for name, values in columns.items():
        table = table.set_column(table.column_names.index(name), name, values)
    return table


def choose_windows(
    places: Places, task: Task, labels: pa.Table, seen: SeenSubjects = NOBODY, who: str = ""
) -> Windows:
    """Windows with a good signal and a usable label, of subjects outside the pretraining of the bundles
    `who`.
    """
    index, verdict = places.index, np.asarray(places.verdicts(), object)
    refused = Counter(f"signal: {v}" for v in verdict.tolist() if v != "ok")
    rows = np.flatnonzero(verdict == "ok")
    part = index.table.take(pa.array(rows))
    subject = np.asarray(part["subject"].to_pylist(), object)
    keep, left_out = seen.split(subject)
    if len(keep) and not keep.any():
        raise PlethoraError(
            f"pretraining of {who} saw all {left_out.subjects} subjects of {index.corpus.uri}: "
            "evaluate on another corpus (--allow-overlap gives flattering figures, marked as such)"
        )
    rows, subject, part = rows[keep], subject[keep], part.filter(pa.array(keep))
    record = np.asarray(part["record"].to_pylist(), object)
    start = part["start_s"].to_numpy()
    names, target, refusal = _targets(labels, record.tolist(), start.tolist(), task)
    refused.update(r for r in refusal.tolist() if r)
    good = np.isfinite(target).reshape(len(target), -1).all(axis=1)
    if not good.any():
        reasons = ", ".join(f"{r} {n}" for r, n in sorted(refused.items())) or "no segment is long enough"
        raise PlethoraError(
            f"no window of {index.corpus.uri} is left for task {task.name} ({task.window_s:g} s): {reasons}"
        )
    if task.kind == "multi-label":
        kept = multilabel.common(target[good], subject[good], names, task)
        names, target = [names[k] for k in kept], target[:, kept]
    found = Windows(
        rows[good],
        target[good],
        subject[good].astype(str),
        record[good].astype(str),
        start[good],
        dict(sorted(refused.items())),
        left_out,
        names,
        len(set(subject) - set(subject[good])),
    )
    if task.level != "reading":
        return found
    named = reading_names(
        labels, found.record, found.subject, found.start_s, found.target, task, index.corpus.manifest
    )
    return replace(found, reading=named)


def _targets(
    labels: pa.Table, record_n: list[str], start_n: list[float], task: Task
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Label names (for several labels per window, else []), targets and refusals of windows."""
    if task.kind == "multi-label":
        return multilabel.window_codes(labels, record_n, start_n, task)
    if task.kind == "retrieval":
        refusal = excluded(labels, record_n, task)
        return [], np.where(refusal == "", 0.0, np.nan), refusal
    return [], *window_targets(labels, record_n, start_n, task)
