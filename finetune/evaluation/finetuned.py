"""Heads that train the network itself on a task's windows: low-rank adapters (`lora`), all weights (`full`),
or the same network from its first weights (`scratch`, what pretraining must beat).

First a linear head on the vectors as they are, then head and network together (Kumar et al. 2022, arXiv
2202.10054): a fit can only end where held-out subjects say that it is no worse than that linear head.
"""

import copy
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from torch import nn

from cluster.cli import Progress, progress
from cluster.errors import PlethoraError
from datasets.index import Index
from finetune.embed import loaded
from finetune.encoders.base import Encoder
from finetune.evaluation.data import TaskData
from finetune.evaluation.entrant import Entrant
from finetune.evaluation.heads import Head
from finetune.evaluation.learner import Learner, tensors
from finetune.evaluation.lengths import Fit, fit, padded
from finetune.evaluation.options import Options
from finetune.networks import signal_lora

RATES = (1e-4, 1e-3)  # of AdamW, for all weights
CHUNK = 256


@contextmanager
def network_heads(entrants: Sequence[Entrant], data: TaskData, options: Options) -> Iterator[dict[str, Head]]:
    """{row: a head whose x are window numbers} for the heads of `options` that train the network, and in
    `data.notes` why a row has none. The prepared windows lie in a temporary folder meanwhile.
    """
    found: dict[str, Head] = {}
    if not options.network_heads or data.task.kind == "retrieval":
        yield found
        return
    with (
        tempfile.TemporaryDirectory(prefix="plethora-heads-") as folder,
        progress(None, f"networks learn {data.task.name}", "fits") as bar,
    ):
        for number, entrant in enumerate(entrants):
            try:
                found |= _of_encoder(entrant, data, options, Path(folder) / str(number), bar)
            except PlethoraError as error:
                rows = [f"{entrant.name}, {how}" for how in options.network_heads]
                data.notes.update(dict.fromkeys(rows, f"not trained: {error}"))
        yield found


def _of_encoder(
    entrant: Entrant, data: TaskData, options: Options, folder: Path, bar: Progress
) -> dict[str, Head]:
    """{row: head} of one encoder. PlethoraError: its network cannot be trained here."""
    if data.task.level != "window" and data.task.pool == "vectors":
        raise PlethoraError('pool = "vectors" averages vectors, a network learns from windows')
    encoder, found = entrant.encoder, {}
    trained = encoder.network()
    how = fit(encoder, data.task.window_s)
    signals = stored(data.places.views[entrant.name], data.windows.rows, encoder, how, folder)
    for name in options.network_heads:
        row = f"{entrant.name}, {name}"
        start = encoder.network(encoder.seed) if name == "scratch" else trained
        learner = Learner(start, signals, options.head_steps, partial(bar.update, 1))
        if name != "lora":
            found[row] = Head(learner.full if name == "full" else learner.scratch, RATES, inner=1)
            continue
        try:
            data.notes[row] = _adapted(start, signals, options.ranks)
            found[row] = Head(learner.lora, tuple(map(float, options.ranks)), inner=1)
        except PlethoraError as error:
            data.notes[row] = f"not trained: {error}"
    return found


def _adapted(network: nn.Module, signals: Sequence[np.ndarray], ranks: Sequence[int]) -> str:
    """A phrase for the table: what the adapters of these ranks sit on."""
    said = []
    for rank in ranks:
        trial = copy.deepcopy(network)
        names = signal_lora.add(trial, tensors(signals, np.arange(1), pieces=False), rank)
        count = sum(p.numel() for p in trial.parameters() if p.requires_grad)
        said.append(f"rank {rank}: {count:,} parameters")
    return f"adapters on {len(names)} layers ({', '.join(said)})"


def stored(view: Index, rows: np.ndarray, encoder: Encoder, how: Fit, folder: Path) -> list[np.ndarray]:
    """Prepared windows on disk, (n, pieces, channels, samples) float32 for each input of the encoder."""
    folder.mkdir()
    found: list[np.ndarray] = []
    for low in range(0, len(rows), CHUNK):
        given = padded(loaded(view, rows[low : low + CHUNK]), how)
        for number, entry in enumerate(encoder.inputs):
            x = given[entry.modality] if isinstance(given, dict) else np.asarray(given)
            length = x.shape[-1] // how.pieces // how.step * how.step
            parts = x[..., : length * how.pieces].reshape(*x.shape[:2], how.pieces, length)
            if low == 0:
                shape = (len(rows), how.pieces, x.shape[1], length)
                found.append(np.memmap(folder / str(number), np.float32, "w+", shape=shape))
            found[number][low : low + len(x)] = parts.transpose(0, 2, 1, 3)
    return found
