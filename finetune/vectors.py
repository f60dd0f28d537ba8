"""Windows → vectors of every row of a table: encoders, their untrained twins, handcrafted features."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.cli import progress
from datasets.index import Index
from finetune import features
from finetune.choose import HANDCRAFTED, Places
from finetune.encoder import Run

CHUNK = 256


def vectors_at(
    places: Places, rows: np.ndarray, runs: Mapping[str, Mapping[str, Run]]
) -> dict[str, np.ndarray]:
    """{row name: (n, d)} of these rows of the index: each of `runs` ({encoder: {row name: run}}) on its
    encoder's view, and handcrafted features (NaN where a window holds no PPG); memory is bounded.
    """
    found: dict[str, list[np.ndarray]] = {name: [] for own in runs.values() for name in own}
    if places.pulses is not None:
        found["handcrafted"] = []
    with progress(len(rows), "embed", "windows") as bar:
        for low in range(0, len(rows), CHUNK):
            part = rows[low : low + CHUNK]
            loaded: dict[int, Any] = {}
            for encoder, own in runs.items():
                view = places.views[encoder]
                if id(view) not in loaded:
                    loaded[id(view)] = _samples(view, part)
                for name, run in own.items():
                    found[name].append(run(loaded[id(view)]))
            if places.pulses is not None:
                found["handcrafted"].append(_handcrafted(places.pulses, part))
            bar.update(len(part))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _samples(view: Index, rows: np.ndarray) -> Any:
    """Prepared windows: (n, C, T), or a dict by modality where the view holds several."""
    loaded = view.load(rows)
    return loaded[view.spec.signals[0].modality] if len(view.spec.signals) == 1 else loaded


def _handcrafted(pulses: Index, rows: np.ndarray) -> np.ndarray:
    found = np.full((len(rows), len(features.NAMES)), np.nan)
    verdict = pulses.table["verdict"].take(pa.array(rows)).to_numpy()
    there = np.flatnonzero(verdict == "ok")
    if len(there):
        waves = pulses.load(rows[there])["ppg"][:, 0]
        found[there] = features.handcrafted(waves, HANDCRAFTED.rate)
    return found
