"""Shards -> windows: hours of waveform a core-second of each preset, ours against a loop and the bare kernel.

sigma: 240 s of PPG, 0.5-8 Hz, 50 Hz; with priors: min-max and the prior of each patch as well. anyppg: 10 s
of PPG at 125 Hz and of ECG at 500 Hz, upright; index: the same with its gates, which a corpus goes through
once. vision: 30 s of PPG at 40 Hz -> images. tests/benchmarks/ingest.py makes the corpus and runs all.

loop: tests/benchmarks/looped.py, the same windows, with the same reading of the shard. kernel: scipy's
sosfiltfilt and resample over the stacked float64 windows (vision: resample and torch's bare STFT, or the bare
exp of the pairs), no reading, no gates; own kernel: ours, which does the two in one (datasets/zerophase.py).
All in one process on one thread, in turn, each at its best; processor seconds.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from scipy import signal as scipy_signal

from datasets import index, zerophase
from datasets.judge import judge
from datasets.schema import Corpus
from datasets.signal import Signal, normalise, samples
from datasets.windows import WindowSpec, cut, empty, extract, grid, lasts, present
from finetune.imaging import Imaging, images
from pretrain.masking import priors
from pretrain.recipes.anyppg import AnyPPGConfig
from pretrain.recipes.sigma_windows import Windows
from tests.benchmarks import looped
from tests.benchmarks.imaging import one as image

LOOP, KERNEL = 8.0, 2.0  # goals: times the loop; of the kernel's time at most
# Of a window's largest value; of verdicts the share that differs. Images and priors are float32 throughout,
# and the skewness of a nearly flat patch rests on rounded samples.
TOLERANCE = {"sigma": 1e-5, "sigma + priors": 1e-3, "anyppg": 1e-5, "anyppg index": 1e-3}
TOLERANCE |= {"vision stft": 1e-4, "vision recurrence": 1e-4}
SIGMA = Windows()
ANYPPG = AnyPPGConfig()
PICTURES = Imaging()
SPECS = {
    "sigma": SIGMA.spec(),
    "anyppg": WindowSpec(signals=ANYPPG.signals(), window_s=ANYPPG.window_s),
    "vision": WindowSpec(signals=(Signal(modality="ppg", rate=PICTURES.rate),), window_s=PICTURES.window_s),
}
Cuts = list[tuple[list[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]]


@dataclass
class Selection:
    """Windows of the first row group of a corpus: their rows and offsets (n,), and their raw samples."""

    corpus: Corpus
    spec: WindowSpec
    row: np.ndarray
    offset: np.ndarray
    cuts: Cuts  # a signal

    @property
    def hours(self) -> float:
        return len(self.row) * self.spec.window_s / 3600

    def first(self, most: int) -> "Selection":
        cuts = [(c[:most], tuple(g[:most] for g in gain)) for c, gain in self.cuts]
        return replace(self, row=self.row[:most], offset=self.offset[:most], cuts=cuts)

    def table(self) -> Any:
        return index.few.__wrapped__(self.corpus, 0, 0, self.spec)

    def bare(self) -> None:
        """Reading as anyone would: the columns of the row group."""
        path = f"{self.corpus.uri.removeprefix('file://')}/{self.corpus.shards[0]['path']}"
        columns = [c for c in self.spec.columns if c.split("_")[0] in (*self.corpus.modalities, "record")]
        pq.ParquetFile(path).read_row_group(0, columns=columns)


def selection(corpus: Corpus, spec: WindowSpec, most: int) -> Selection:
    """At most `most` windows, evenly over the first row group, of those that have every signal."""
    table = index.few(corpus, 0, 0, spec)
    usable = present(table, spec).all(axis=0)
    starts = [
        grid(d, spec) if u else np.empty(0) for d, u in zip(lasts(table, spec).tolist(), usable, strict=True)
    ]
    row, offset = np.repeat(np.arange(len(table)), [len(s) for s in starts]), np.concatenate(starts)
    some = np.unique(np.linspace(0, len(row) - 1, min(most, len(row))).astype(int))
    row, offset = row[some], offset[some]
    return Selection(
        corpus, spec, row, offset, [cut(table, row, offset, s, spec.window_s) for s in spec.signals]
    )


# ---------------------------------------------------------------- ours


def windows(at: Selection) -> dict[str, np.ndarray]:
    out = empty(len(at.row), at.spec)
    extract(at.table(), at.row, at.offset, at.spec, out, np.arange(len(at.row)))
    return out


def with_priors(at: Selection) -> tuple[np.ndarray, np.ndarray]:
    x = torch.from_numpy(normalise(windows(at)["ppg"], "minmax")[:, 0])
    return x.numpy(), priors(x.unflatten(1, (-1, SIGMA.patch))).numpy()


def sound(at: Selection) -> np.ndarray:
    """(n,) bool: whether the ECG passes, whatever the PPG does."""
    alone = at.spec.model_copy(update={"signals": at.spec.signals[1:]})
    return np.array(judge(at.table(), at.row, at.offset, alone)["verdict"].to_pylist()) == "ok"


def verdicts(at: Selection) -> list[str]:
    return judge(at.table(), at.row, at.offset, at.spec)["verdict"].to_pylist()


def pictures(at: Selection, c: Imaging) -> np.ndarray:
    return images(torch.from_numpy(windows(at)["ppg"][:, 0]), c)[0].pixels.numpy()


# ---------------------------------------------------------------- the loop


def each(at: Selection, number: int) -> Iterator[tuple[np.ndarray, float, float, float]]:
    cuts, gain = at.cuts[number]
    yield from zip(cuts, *(g.tolist() for g in gain), strict=True)


def loop_windows(at: Selection) -> dict[str, np.ndarray]:
    at.bare()
    return {
        s.modality: np.stack([looped.window(*w, s).astype(np.float32)[None] for w in each(at, i)])
        for i, s in enumerate(at.spec.signals)
    }


def loop_priors(at: Selection) -> tuple[np.ndarray, np.ndarray]:
    at.bare()
    x = [looped.minmax(looped.window(*w, at.spec.signals[0])) for w in each(at, 0)]
    return np.stack(x), np.stack([looped.priors(w, SIGMA.patch) for w in x])


def loop_verdicts(at: Selection) -> list[str]:
    at.bare()
    found = ["ok"] * len(at.row)
    for number, sig in enumerate(at.spec.signals):
        for i, (x, rate, scale, offset) in enumerate(each(at, number)):
            if found[i] == "ok":
                found[i] = looped.verdict(x, rate, looped.window(x, rate, scale, offset, sig), sig)
    return found


def loop_pictures(at: Selection, c: Imaging) -> np.ndarray:
    at.bare()
    name = c.transforms[0]
    return np.stack([image(looped.window(*w, at.spec.signals[0]), name, c) for w in each(at, 0)])


# ---------------------------------------------------------------- the kernels


def kernels(at: Selection, c: Imaging | None = None) -> tuple[Callable[[], object], Callable[[], object]]:
    """scipy's and ours, on float64 stacks that lie ready."""
    jobs: list[tuple[np.ndarray, Any, int, Any]] = []
    for number, sig in enumerate(at.spec.signals):
        cuts, (rate, scale, offset) = at.cuts[number]
        assert len(set(rate.tolist())) == 1
        x = np.stack(cuts)[..., 0] * scale[:, None] + offset[:, None]
        n, m, native = x.shape[1], samples(x.shape[1], rate[0], sig.rate), float(rate[0])
        sos = looped.sections(native, sig)
        notch = sig.notch if sig.notch and sig.notch < native / 2 else None
        own = zerophase.design(native, sig.band, sig.order, n, m, notch) if sos is not None else None
        jobs.append((x, sos, m, own))

    def scipys() -> None:
        for x, sos, m, _ in jobs:
            y = x if sos is None else scipy_signal.sosfiltfilt(sos, x)
            _bare(y if m == y.shape[1] else scipy_signal.resample(y, m, axis=-1), c)

    def ours() -> None:
        for x, _, m, own in jobs:
            for low in range(0, len(x), 16):
                part = x[low : low + 16]
                _bare(scipy_signal.resample(part, m, axis=-1) if own is None else own(part), c)

    return scipys, ours


def _bare(y: np.ndarray, c: Imaging | None) -> None:
    """The costliest step of an image alone."""
    if c is None:
        return
    for low in range(0, len(y), 16):
        x = torch.from_numpy(np.ascontiguousarray(y[low : low + 16]))
        if c.transform == "stft":
            torch.stft(
                x, c.n_fft, c.hop, window=torch.hann_window(c.n_fft, dtype=x.dtype), return_complex=True
            ).abs().log()
        else:
            v = x[:, :: c.stride].float()
            for _ in range(3):
                (v[:, :, None] - v[:, None]).square_().neg_().exp_()


# ---------------------------------------------------------------- the table


def best(work: list[Callable[[], object]], rounds: int) -> list[float]:
    """Processor seconds of each at its best, in turn."""
    least = [np.inf] * len(work)
    for _ in range(rounds):
        for i, do in enumerate(work):
            start = time.process_time()
            do()
            least[i] = min(least[i], time.process_time() - start)
    return least


def apart(a: Any, b: Any) -> float:
    """Largest difference, as a share of each window's largest value; of verdicts: the share that differs."""
    if isinstance(a, dict):
        return max(apart(a[m], b[m]) for m in a)
    if isinstance(a, tuple):
        return max(apart(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, list):
        return float(np.mean(np.array(a) != np.array(b)))
    size = np.abs(b).reshape(len(b), -1).max(axis=1)
    return float((np.abs(a - b).reshape(len(b), -1).max(axis=1) / np.where(size > 0, size, 1)).max())


def presets(corpus: Corpus, most: dict[str, int], rounds: int) -> list[dict[str, Any]]:
    """A row a preset: hours a core-second of ours, the loop, the kernels; how far outputs are apart."""
    rows = []
    for name, spec in SPECS.items():
        at = selection(corpus, spec, most[name])
        for what, mine, theirs, c in _work(name, at):
            own, loop, scipys, ours = best([mine, theirs, *kernels(at, c)], rounds)
            rows.append(
                {
                    "what": what,
                    "corpus": corpus.manifest["name"],
                    "h/core-s": at.hours / own,
                    "loop": at.hours / loop,
                    "kernel": at.hours / scipys,
                    "own kernel": at.hours / ours,
                    "x loop": loop / own,
                    "x kernel's time": own / scipys,
                    "x own kernel's": own / ours,
                    "us a window": 1e6 * own / len(at.row),
                    "apart": apart(mine(), theirs()),
                }
            )
    return rows


def _work(name: str, at: Selection) -> list[tuple[str, Callable[[], Any], Callable[[], Any], Imaging | None]]:
    """(what, ours, loop, image) of a preset."""
    if name == "sigma":
        second = ("sigma + priors", partial(with_priors, at), partial(loop_priors, at), None)
    elif name == "anyppg":
        second = ("anyppg index", partial(verdicts, at), partial(loop_verdicts, at), None)
    else:
        found = []
        for kind in ("stft", "recurrence"):
            c = Imaging(transform=kind)
            few = at if kind == "stft" else at.first(len(at.row) // 4)
            found.append((f"vision {kind}", partial(pictures, few, c), partial(loop_pictures, few, c), c))
        return found
    return [(name, partial(windows, at), partial(loop_windows, at), None), second]


if __name__ == "__main__":
    from tests.benchmarks.ingest import main

    main()
