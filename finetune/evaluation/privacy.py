"""The figures of a privacy card: how often a vector finds its subject again, and how much of the waveform
decoders recover from it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cluster.errors import PlethoraError
from datasets.index import Index
from finetune import metrics, probe
from finetune.encoders.base import Encoder
from finetune.evaluation import identify, inversion, privacy_data
from finetune.evaluation.people import SeenSubjects
from finetune.evaluation.privacy_data import CardWindows
from finetune.evaluation.results import CorpusInfo, EncoderInfo, Overlap, Result

GALLERY = (2, 5, 10, 20, 50, 100, 200, 500)


@dataclass(frozen=True)
class PrivacyCounts(Result):
    """`enrolled`, `probes`: windows; `drawn_from`: subjects before some were drawn."""

    subjects: int
    records: int
    windows: int
    enrolled: int
    probes: int
    drawn_from: int


@dataclass(frozen=True)
class GapSeconds(Result):
    """Time between the windows that enrol a subject and those that probe it, in s."""

    least: float
    median: float
    most: float


@dataclass(frozen=True)
class PrivacyProtocol(Result):
    """How figures were made. `one_record`, `other_records`, `too_short`: subjects with one record, with
    several, and with one that leaves no gap; `wave_s`: seconds of a window that are inverted.
    """

    window_s: float
    pieces: int
    folds: int
    seed: int
    draws: int
    windows_a_side: int
    wave_s: float
    one_record: int
    other_records: int
    too_short: int
    gap_s: GapSeconds


@dataclass(frozen=True)
class PrivacyResult(Result):
    """`inversion`: {modality: {"waveform" or "spectrum": …}}."""

    bundle: EncoderInfo
    corpus: CorpusInfo
    overlap: Overlap
    warnings: tuple[str, ...]
    counts: PrivacyCounts
    refused: Mapping[str, int]
    protocol: PrivacyProtocol
    identification: identify.Identification
    inversion: Mapping[str, Mapping[str, inversion.InversionResult]]
    verdict: tuple[str, ...] = ()


@dataclass(frozen=True)
class PrivacyOutcome:
    """A result with what its pictures show: `curves` (`identify.identification`), `inverted` windows by
    modality and target, and the windows' `subject` (n,).
    """

    result: PrivacyResult
    curves: dict[str, np.ndarray]
    inverted: dict[str, dict[str, inversion.Inversion]]
    subject: np.ndarray


def outcome(
    encoder: Encoder,
    index: Index,
    seen: SeenSubjects,
    sizes: Sequence[int],
    folds: int,
    seed: int,
) -> PrivacyOutcome:
    """`sizes` of galleries in ascending order; none: GALLERY and all subjects. PlethoraError where the corpus
    has too few subjects.
    """
    chosen = privacy_data.choose(index, seen, seed)
    people = len(chosen.sides.names)
    if sizes and sizes[-1] > people:
        raise PlethoraError(f"--gallery {sizes[-1]}: only {people} subjects can be searched: ask for fewer")
    sizes = sizes or sorted({n for n in GALLERY if n < people} | {people})
    data = privacy_data.embedded(index, chosen.rows, encoder)
    identified, curves = identify.identification(
        data.vectors, chosen.subject, chosen.sides, sizes, seed, data.notes
    )
    outer = probe.grouped_folds(chosen.subject, folds, seed)
    inverted = inversion.inversions(
        data.vectors["encoder"], data.targets, encoder.signals, chosen.subject, outer, seed
    )
    result = PrivacyResult(
        bundle=EncoderInfo(encoder.uri, encoder.mode, encoder.dim),
        corpus=_corpus(index),
        overlap=seen.overlap(chosen.left_out),
        warnings=tuple(seen.warnings()),
        counts=_counts(chosen),
        refused=chosen.refused,
        protocol=_protocol(chosen, index.spec.window_s, encoder, folds, seed),
        identification=identified,
        inversion={m: {name: part.result for name, part in parts.items()} for m, parts in inverted.items()},
    )
    return PrivacyOutcome(result, curves, inverted, chosen.subject)


def _corpus(index: Index) -> CorpusInfo:
    corpus, about = index.corpus, index.corpus.manifest
    return CorpusInfo(
        corpus.uri,
        corpus.hash,
        source=about.get("source", ""),
        licence=about.get("licence", ""),
        access=about.get("access", ""),
        subjects_published=about["subjects_published"],
    )


def _counts(chosen: CardWindows) -> PrivacyCounts:
    return PrivacyCounts(
        subjects=len(set(chosen.subject)),
        records=len(set(chosen.record)),
        windows=len(chosen.rows),
        enrolled=int(chosen.sides.enrol.sum()),
        probes=int(chosen.sides.probe.sum()),
        drawn_from=chosen.drawn_from,
    )


def _protocol(
    chosen: CardWindows, window_s: float, encoder: Encoder, folds: int, seed: int
) -> PrivacyProtocol:
    sides = chosen.sides
    gaps = np.array(list(sides.gap_s.values()) or [np.nan])
    return PrivacyProtocol(
        window_s=window_s,
        pieces=encoder.pieces(window_s),
        folds=folds,
        seed=seed,
        draws=metrics.DRAWS,
        windows_a_side=privacy_data.SIDE,
        wave_s=min(window_s, inversion.WAVE_S),
        one_record=len(sides.gap_s),
        other_records=len(sides.apart),
        too_short=len(sides.left_out),
        gap_s=GapSeconds(float(gaps.min()), float(np.median(gaps)), float(gaps.max())),
    )
