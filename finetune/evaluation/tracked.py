"""The spectral tracker's row of a table: heart rates of a task's windows straight from their signals."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from cluster.cli import progress
from datasets.index import Index
from datasets.schema import DERIVED, Corpus
from datasets.signal import Signal
from datasets.windows import WindowSpec
from finetune.evaluation.choose import TRACKED, Windows, relocated
from finetune.evaluation.tracker import Frames, frames_of, of_windows
from finetune.task import Task

CHUNK = 256  # windows in memory


@dataclass(frozen=True)
class Direct:
    """A row that learns nothing: its name in the table, its predictions (n,) of all windows in the task's
    unit, NaN where it has none, and what they lack.
    """

    label: str
    predicted: np.ndarray
    note: str

    def at(self, rows: np.ndarray) -> "Direct":
        """Of these windows alone."""
        return replace(self, predicted=self.predicted[rows])


def asks_heart_rate(task: Task) -> bool:
    return task.kind == "regression" and task.unit == "bpm" and task.label in ("hr", f"hr{DERIVED}")


def tracked(index: Index, windows: Windows, task: Task) -> Direct | None:
    """The tracker's answers for rows `windows.rows` of `index`; None where the task asks for something else
    or the corpus has no PPG. Every record is tracked as a whole, from the evaluated windows alone.
    """
    if not asks_heart_rate(task) or "ppg" not in index.corpus.modalities:
        return None
    asked = Index(index.corpus, index.spec, index.table.take(pa.array(windows.rows)))
    ppg = TRACKED[0].model_copy(update={"channels": _channels(index.corpus, asked.table)})
    both = _view(asked, (ppg, *TRACKED[1:])) if "acc" in index.corpus.modalities else None
    alone = _view(asked, (ppg,))
    found, moved = np.full(len(windows.rows), np.nan), np.zeros(len(windows.rows), bool)
    with progress(len(found), "track", "windows") as bar:
        for record in dict.fromkeys(windows.record.tolist()):
            mine = np.flatnonzero(windows.record == record)
            mine = mine[np.argsort(windows.start_s[mine], kind="stable")]
            parts = []
            for low in range(0, len(mine), CHUNK):
                part = mine[low : low + CHUNK]
                frames, moved[part] = _frames(both, alone, part, windows.start_s[part])
                parts.append(frames)
                bar.update(len(part))
            whole = Frames(
                *(np.concatenate([getattr(p, f) for p in parts]) for f in ("start_s", "evidence", "known"))
            )
            found[mine] = of_windows(whole, len(mine))
    return Direct(_label(moved), found, _note(found, moved))


def _view(asked: Index, signals: Sequence[Signal]) -> Index:
    spec = asked.spec.model_copy(update={"signals": tuple(signals), "min_quality": 0.0})
    return relocated(asked, WindowSpec(**spec.model_dump()), judged=False)


def _channels(corpus: Corpus, table: pa.Table) -> int:
    """How many PPG channels every row group with one of these windows has."""
    places = zip(table["shard"].to_pylist(), table["group"].to_pylist(), strict=True)
    groups = [corpus.read_row_group(shard, group, ["ppg_channels"]) for shard, group in sorted(set(places))]
    counts = [n for rows in groups for n in rows["ppg_channels"].to_pylist() if n]
    return min(counts, default=1)


def _frames(
    both: Index | None, alone: Index, part: np.ndarray, start_s: np.ndarray
) -> tuple[Frames, np.ndarray]:
    """Frames of these windows, and (n,) whether each has an accelerometer. Where that begins or ends within a
    window, PPG alone.
    """
    signal = alone.spec.signals[0]
    size = round(alone.spec.window_s * signal.rate)
    ppg = np.full((len(part), signal.channels, size), np.nan, np.float32)
    acc = np.zeros((len(part), TRACKED[1].channels, size), np.float32)
    moved = np.zeros(len(part), bool)
    if both is not None:
        there = _holds(both, part)
        loaded = both.load(part[there])
        ppg[there], acc[there], moved[there] = loaded["ppg"], loaded["acc"], loaded["has_acc"]
    rest = _holds(alone, part) & ~moved
    ppg[rest] = alone.load(part[rest])["ppg"]
    return frames_of(start_s, ppg, acc), moved


def _holds(view: Index, part: np.ndarray) -> np.ndarray:
    return view.table["verdict"].take(pa.array(part)).to_numpy(zero_copy_only=False) == "ok"


def _label(moved: np.ndarray) -> str:
    return f"Spectral tracker (PPG{' + accelerometer' if moved.any() else ''}, whole record)"


def _note(found: np.ndarray, moved: np.ndarray) -> str:
    """What the windows lack."""
    silent, still = int(np.isnan(found).sum()), int((~moved).sum())
    said = [f"{silent} windows hold no usable ppg; they get the training mean"] if silent else []
    if moved.any() and still:
        said.append(f"{still} windows have no accelerometer; they are tracked by ppg alone")
    return "; ".join(said)
