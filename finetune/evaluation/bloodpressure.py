"""The blood pressure card: how far an estimate is from what standards ask of a device. Pure arithmetic.

Errors are predicted − reference, mmHg, one a reading. Limits: ANSI/AAMI/ISO 81060-2 criterion 1 (of all
readings: |mean error| ≤ 5, SD ≤ 8) and 2 (of subjects' mean errors: the SD that its table 1 allows); grades
of the British Hypertension Society's protocol (O'Brien et al. 1993: shares of absolute errors within 5, 10
and 15 mmHg) and of IEEE 1708-2014, amended 1708a-2019 (mean absolute error). Each asks 85 subjects with three
readings each.
Stages of hypertension where a corpus names none: JNC 7 (Chobanian et al. 2003), from reference pressures.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from datasets.schema import Corpus
from finetune.evaluation.choose import Windows
from finetune.evaluation.results import Agreement, Calibrated, PressureCard, Stage, TaskResult
from finetune.task import Task, whole_record, window_targets

ASKED, READINGS = 85, 255  # subjects and readings, by all three
ME_LIMIT, SD_LIMIT = 5.0, 8.0
# ISO 81060-2, table 1: the SD of subjects' mean errors allowed at |mean error| 0.0, 0.1, …, 5.0. (To 0.02
# the SD of normal errors of which 85 % lie within 10 mmHg.)
SD_TABLE = (
    6.95, 6.95, 6.95, 6.95, 6.93, 6.92, 6.91, 6.90, 6.89, 6.88, 6.87, 6.86, 6.84, 6.82, 6.80, 6.78, 6.76,
    6.73, 6.71, 6.68, 6.65, 6.62, 6.58, 6.55, 6.51, 6.47, 6.43, 6.39, 6.34, 6.30, 6.25, 6.20, 6.14, 6.09,
    6.03, 5.97, 5.89, 5.83, 5.77, 5.70, 5.64, 5.56, 5.49, 5.41, 5.33, 5.25, 5.16, 5.08, 5.01, 4.90, 4.79,
)  # fmt: skip
WITHIN = (5, 10, 15)
BHS = {"A": (60, 85, 95), "B": (50, 75, 90), "C": (40, 65, 85)}  # % within 5, 10, 15 mmHg; else D
STAGES = ("Normal", "Prehypertension", "Stage 1 hypertension", "Stage 2 hypertension")
FLOORS = {"sbp": (120, 140, 160), "dbp": (80, 90, 100)}  # mmHg from which each later stage begins
STAGE_LABEL = "hypertension"


def pressure_of(task: Task) -> str | None:
    """ "sbp" or "dbp" when the task is about one of them in mmHg, else None."""
    stem = task.label.partition("_")[0].lower()
    return stem if stem in FLOORS and task.unit == "mmHg" else None


def other_label(label: str) -> str:
    """The label of the other pressure that was measured the same way: "sbp_derived" → "dbp_derived"."""
    stem, mark, rest = label.partition("_")
    return {"sbp": "dbp", "dbp": "sbp"}[stem] + mark + rest


# ---------------------------------------------------------------- figures


def agreement(target_n: np.ndarray, predicted_n: np.ndarray, subject_n: np.ndarray) -> Agreement:
    """MAE, ME, SD (n − 1), shares within 5, 10 and 15 mmHg (%), verdicts and grades of (n,) estimates, each
    of one reading; `sd_subjects`: SD of the subjects' mean errors.

    slope: of the error on the reference: 0 where the error does not depend on the pressure, −1 where the same
    number is predicted for everyone; NaN where the reference does not vary.
    """
    reference = np.asarray(target_n, np.float64)
    error = np.asarray(predicted_n, np.float64) - reference
    _, who = np.unique(np.asarray(subject_n), return_inverse=True)
    means = np.bincount(who, error) / np.bincount(who)
    subjects = len(means)
    sd_subjects = float(means.std(ddof=1)) if subjects > 1 else float("nan")
    me, sd = float(error.mean()), float(error.std(ddof=1)) if len(error) > 1 else float("nan")
    within = {str(limit): float(100 * np.mean(np.abs(error) <= limit)) for limit in WITHIN}
    mae, spread = float(np.abs(error).mean()), float(np.var(reference))
    centred = reference - reference.mean()
    return Agreement(
        values=len(error),
        subjects=subjects,
        mae=mae,
        me=me,
        sd=sd,
        within=within,
        slope=float(np.mean(centred * error) / spread) if spread > 1e-9 else float("nan"),
        sd_subjects=sd_subjects,
        aami=aami(me, sd, subjects, len(error)),
        aami_2=aami_2(me, sd_subjects, subjects, len(error)),
        bhs=bhs_grade(list(within.values())),
        ieee=ieee_grade(mae),
        subjects_asked=ASKED,
        readings_asked=READINGS,
    )


def aami(me: float, sd: float, subjects: int, readings: int = READINGS) -> str:
    """Criterion 1 of ISO 81060-2, of all readings: "pass", "fail", or "too few subjects" ("readings") where
    the error is within its limits but not shown on enough.
    """
    return _verdict(abs(me) <= ME_LIMIT and sd <= SD_LIMIT, subjects, readings)


def aami_2(me: float, sd_subjects: float, subjects: int, readings: int = READINGS) -> str:
    """Criterion 2, of subjects' mean errors, in the same words. me: over all readings."""
    step = round(10 * abs(me)) if np.isfinite(me) else len(SD_TABLE)
    return _verdict(step < len(SD_TABLE) and sd_subjects <= SD_TABLE[step], subjects, readings)


def _verdict(within: bool, subjects: int, readings: int) -> str:
    if not within:
        return "fail"
    if subjects < ASKED:
        return "too few subjects"
    return "pass" if readings >= READINGS else "too few readings"


def bhs_grade(within: Sequence[float]) -> str:
    """Grade of the shares (%) within 5, 10 and 15 mmHg: the best all three of whose limits are met."""
    met = (g for g, limits in BHS.items() if all(w >= m for w, m in zip(within, limits, strict=True)))
    return next(met, "D")


def ieee_grade(mae: float) -> str:
    """A to 5 mmHg, B below 6, C below 7, else D."""
    return "A" if mae <= 5 else "B" if mae < 6 else "C" if mae < 7 else "D"


# ---------------------------------------------------------------- readings and stages


def readings(
    target_n: np.ndarray,
    subject_n: np.ndarray,
    record_n: np.ndarray,
    start_n: np.ndarray,
    apart: bool = False,
) -> np.ndarray:
    """(n,) int: which of its subject's reference readings each value is compared with, from 0, in order.

    Neighbours (by record name, then start) of one subject and one reference value share a reading: a cuff's
    value stands for many windows, and a whole-record label for every record that repeats it. `apart`: each
    value is of a reading of its own, also where two are equal.
    """
    order = np.lexsort((start_n, record_n, subject_n))
    who, value = np.asarray(subject_n)[order], np.asarray(target_n, np.float64)[order]
    new_subject = np.concatenate([[True], who[1:] != who[:-1]])
    new = new_subject | apart | np.concatenate([[True], np.abs(np.diff(value)) > 1e-9])
    count = np.cumsum(new)
    first = np.maximum.accumulate(np.where(new_subject, count, 0))
    found = np.empty(len(order), int)
    found[order] = count - first
    return found


def calibrated(
    target_n: np.ndarray, predicted_n: np.ndarray, subject_n: np.ndarray, reading_n: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Rows that can be calibrated (m,) and their predictions (m,) shifted by the subject's mean error at its
    first reference reading. Rows of that reading are not among them.
    """
    _, group = np.unique(subject_n, return_inverse=True)
    first = np.asarray(reading_n) == 0
    error = np.asarray(predicted_n, np.float64) - np.asarray(target_n, np.float64)
    offset = np.bincount(group[first], error[first], group.max() + 1) / np.bincount(group[first])
    rows = np.flatnonzero(~first)
    return rows, np.asarray(predicted_n, np.float64)[rows] - offset[group[rows]]


def stages(sbp_n: np.ndarray | None, dbp_n: np.ndarray | None) -> np.ndarray:
    """(n,) str: JNC 7 stage, by the higher of the two pressures (mmHg); of one alone where the other is None
    or NaN.
    """
    given = [(np.asarray(p, float), FLOORS[n]) for n, p in (("sbp", sbp_n), ("dbp", dbp_n)) if p is not None]
    level = np.max([np.searchsorted(floors, p, side="right") * np.isfinite(p) for p, floors in given], axis=0)
    return np.array(STAGES, object)[level]


def staged(task: Task, windows: Windows, labels: pa.Table) -> tuple[np.ndarray, str]:
    """(n,) stage of each of `windows`, and where it comes from: the corpus's own label, or the reference
    pressures that there are. `labels`: those called STAGE_LABEL and `other_label(task.label)`.
    """
    texts = labels.filter(labels["text"].is_valid())
    known = whole_record(texts, STAGE_LABEL)
    if known:
        found = [known.get(r, "not stated") for r in windows.record.tolist()]
        return np.array(found, object), f"the corpus's label {STAGE_LABEL!r}"
    own, other = task.label.partition("_")[0], other_label(task.label)
    pressures: dict[str, np.ndarray | None] = {own: windows.target, other.partition("_")[0]: None}
    if np.any(np.asarray(labels["name"].to_pylist(), object) == other):
        any_value = task.aggregate.model_copy(update={"valid": None})  # its range is of the own pressure
        question = task.model_copy(update={"label": other, "where": (), "aggregate": any_value})
        second, _ = window_targets(labels, windows.record.tolist(), windows.start_s.tolist(), question)
        pressures[other.partition("_")[0]] = second
        how = "reference SBP and DBP, JNC 7"
        missing = int(np.sum(~np.isfinite(second)))
        how += f" (by {own.upper()} alone for {missing} without the other)" if missing else ""
    else:
        how = f"reference {own.upper()} alone, JNC 7 (the corpus has no {other})"
    return stages(pressures["sbp"], pressures["dbp"]), how


# ---------------------------------------------------------------- cards


def with_cards(
    result: TaskResult, windows: Windows, predicted: Mapping[str, np.ndarray], source: Corpus
) -> TaskResult:
    """The result with blood pressure cards, where its task is about one. `windows`, `predicted`: as in
    `cards`; `source`: the corpus evaluated on.
    """
    task = result.task
    if task.kind != "regression" or pressure_of(task) is None:
        return result
    labels = source.labels([STAGE_LABEL, other_label(task.label)])
    return replace(result, blood_pressure=cards(task, windows, predicted, labels))


def cards(
    task: Task, windows: Windows, predicted: Mapping[str, np.ndarray], labels: pa.Table
) -> dict[str, PressureCard]:
    """{row: its card} for out-of-fold predictions (n,) of a pressure at `windows` (target, subject, record,
    start_s). `labels` as in `staged`.
    """
    target, subject = windows.target, windows.subject
    stage, source = staged(task, windows, labels)
    apart = task.level != "window"  # then a row is a reading already
    reading = readings(target, subject, windows.record, windows.start_s, apart)
    names = [s for s in (*STAGES, *sorted(set(stage) - set(STAGES))) if np.any(stage == s)]
    pairs = len(set(zip(subject.tolist(), reading.tolist(), strict=True)))

    def in_stage(name: str, values: np.ndarray) -> Stage:
        at = stage == name
        return Stage(**vars(agreement(target[at], values[at], subject[at])), name=name)

    return {
        row: PressureCard(
            pressure=task.label.partition("_")[0].upper(),
            free=agreement(target, values, subject),
            calibrated=_calibrated(target, values, subject, reading),
            stages=tuple(in_stage(name, values) for name in names),
            stages_by=source,
            readings=pairs,
        )
        for row, values in predicted.items()
    }


def _calibrated(
    target: np.ndarray, values: np.ndarray, subject: np.ndarray, reading: np.ndarray
) -> Calibrated:
    """Figures with calibration beside those of the very same rows without, or why there are none."""
    people, several = len(set(subject.tolist())), len(set(subject[reading > 0].tolist()))
    if several == 0:
        return Calibrated("no subject has two separate reference readings in this table")
    rows, shifted = calibrated(target, values, subject, reading)
    return Calibrated(
        why_not="",
        calibrated=agreement(target[rows], shifted, subject[rows]),
        same_uncalibrated=agreement(target[rows], values[rows], subject[rows]),
        subjects_with_one_reading=people - several,
    )
