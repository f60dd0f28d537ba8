"""The windows of a privacy card: which enrol and probe whom, their vectors, and what decoders aim at."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from cluster.cli import progress
from cluster.errors import PlethoraError
from datasets.index import Index
from finetune import probe
from finetune.encoders.base import Encoder, Run, pooled
from finetune.evaluation import features, identify, inversion
from finetune.evaluation.choose import HANDCRAFTED
from finetune.evaluation.people import SeenSubjects
from finetune.evaluation.results import LeftOut
from finetune.evaluation.sample import spread

CHUNK = 256  # windows in memory at once
SIDE = 16  # windows a subject enrolled, probed, and in between, at most: spread evenly
MAX_SUBJECTS = 1000  # drawn from a larger corpus


@dataclass(frozen=True)
class CardWindows:
    """The windows of a card, (n,) each, and their sides. rows: of the index; drawn_from: the number of
    subjects before MAX_SUBJECTS.
    """

    rows: np.ndarray
    subject: np.ndarray
    record: np.ndarray
    sides: identify.Sides
    refused: dict[str, int]
    left_out: LeftOut
    drawn_from: int


@dataclass(frozen=True)
class CardVectors:
    """`vectors`: {row: (n, d)}; `notes`: {row: why it is missing}; `targets`: what decoders aim at,
    {modality: {"waveform": (n, T), "spectrum": (n, F)}}.
    """

    vectors: dict[str, np.ndarray]
    notes: dict[str, str]
    targets: dict[str, dict[str, np.ndarray]]


def choose(index: Index, seen: SeenSubjects, seed: int) -> CardWindows:
    """Accepted windows of the subjects that `seen` leaves in, with their sides; at most SIDE a subject on
    each. PlethoraError where fewer than three subjects can be enrolled and probed.
    """
    table = index.table
    refused = Counter(f"signal: {v}" for v in table["verdict"].to_pylist() if v != "ok")
    rows = index.select(None)
    subject = np.asarray(table["subject"].take(pa.array(rows)).to_pylist(), object).astype(str)
    keep, left_out = seen.split(subject)
    rows, subject = rows[keep], subject[keep]
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
            f"({len(split.left_out)} have too short a record for windows of {index.spec.window_s:g} s and a "
            f"gap, {left_out.subjects} were seen by pretraining): at least {probe.MIN_SUBJECTS} are needed; "
            "use shorter windows (--window-s) or another corpus"
        )
    sides = (split.enrol, split.probe, ~(split.enrol | split.probe))
    by_subject = [subject == name for name in np.unique(subject)]
    parts = [spread(np.flatnonzero(mine & side), SIDE) for mine in by_subject for side in sides]
    kept = np.sort(np.concatenate(parts))
    split = identify.Sides(split.enrol[kept], split.probe[kept], split.gap_s, split.apart, split.left_out)
    return CardWindows(
        rows[kept],
        subject[kept],
        record[kept],
        split,
        dict(sorted(refused.items())),
        left_out,
        len(names),
    )


def embedded(index: Index, rows: np.ndarray, encoder: Encoder) -> CardVectors:
    """Vectors and targets of these rows of the index; memory grows with these only."""
    pieces = encoder.pieces(index.spec.window_s)
    runs, notes = _runs(encoder)
    found: dict[str, list[np.ndarray]] = {name: [] for name in runs}
    waves: dict[str, list[np.ndarray]] = {m: [] for m in encoder.modalities}
    spectra: dict[str, list[np.ndarray]] = {m: [] for m in encoder.modalities}
    # the same modalities, so that rows of the index mean the same rows
    signals = tuple(HANDCRAFTED if s.modality == "ppg" else s for s in encoder.signals)
    pulses = Index(index.corpus, index.spec.model_copy(update={"signals": signals}), index.table)
    if "ppg" in encoder.modalities:
        found["handcrafted"] = []
    else:
        notes["handcrafted"] = "made for PPG only"
    with progress(len(rows), "embed", "windows") as bar:
        for low in range(0, len(rows), CHUNK):
            part = rows[low : low + CHUNK]
            prepared = index.load(part)
            given = prepared if len(prepared) > 1 else prepared[encoder.modality]
            for name, run in runs.items():
                found[name].append(pooled(run, given, pieces, encoder.samples_step))
            for signal in encoder.signals:
                x = prepared[signal.modality][:, 0]
                waves[signal.modality].append(inversion.waveform(x, signal.rate))
                spectra[signal.modality].append(inversion.spectrum(x, signal.rate, signal.band))
            if "handcrafted" in found:
                pulse = pulses.load(part)["ppg"][:, 0]
                found["handcrafted"].append(features.handcrafted(pulse, HANDCRAFTED.rate))
            bar.update(len(part))
    vectors = {name: np.concatenate(parts) for name, parts in found.items()}
    targets = {
        m: {"waveform": np.concatenate(waves[m]), "spectrum": np.concatenate(spectra[m])}
        for m in encoder.modalities
    }
    vectors["raw"] = np.concatenate([aims["waveform"] for aims in targets.values()], axis=1)
    return CardVectors(vectors, notes, targets)


def _runs(encoder: Encoder) -> tuple[dict[str, Run], dict[str, str]]:
    """{row: what turns prepared windows into vectors}, and {row: why it is missing}."""
    try:
        fresh = encoder.untrained(encoder.seed)
    except (PlethoraError, KeyError) as error:
        return {"encoder": encoder}, {"untrained": f"cannot be built: {error}"}
    return {"encoder": encoder, "untrained": fresh}, {}
