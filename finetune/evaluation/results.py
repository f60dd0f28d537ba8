"""What evaluations return: frozen types that reports read by attribute and results.json holds by name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from finetune.metrics import Difference, Interval
from finetune.task import Task

Metrics = Mapping[str, Interval]  # by metric
MAYBE = ("added", "chapters", "chance")  # of a TaskResult: left out of results.json where empty


class Result:
    """A frozen dataclass that is an object of results.json."""

    def to_json(self) -> dict[str, Any]:
        return {name: to_json(value) for name, value in _present(self)}


def to_json(value: Any) -> Any:
    """Plain values of a result, whatever it holds; a field that is None is left out."""
    if isinstance(value, Result):
        return value.to_json()
    if isinstance(value, Task):
        return value.model_dump(mode="json")
    if is_dataclass(value):
        return {name: to_json(item) for name, item in _present(value)}
    if isinstance(value, Mapping):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    return value


def _present(value: Any) -> list[tuple[str, Any]]:
    named = ((f.name, getattr(value, f.name)) for f in fields(value))
    return [(name, item) for name, item in named if item is not None]


@dataclass(frozen=True)
class EncoderInfo(Result):
    """An encoder that was asked."""

    uri: str
    mode: str
    dim: int


@dataclass(frozen=True)
class CorpusInfo(Result):
    """A corpus, as its manifest describes it."""

    uri: str
    hash: str
    source: str | None = None
    licence: str | None = None
    name: str | None = None
    access: str | None = None
    subjects_published: bool | None = None


@dataclass(frozen=True)
class LeftOut(Result):
    """What an evaluation leaves out because pretraining saw the subjects."""

    subjects: int = 0
    windows: int = 0


@dataclass(frozen=True)
class Overlap(Result):
    """Pretraining subjects in an evaluation corpus. `kind`: "none", "shared" or "unknown"; `policy`: "unseen"
    (they are left out) or "all" (they are kept).
    """

    kind: str
    why: tuple[str, ...]
    policy: str
    shared_subjects: int | None = None
    left_out: LeftOut | None = None


@dataclass(frozen=True)
class Readings(Result):
    """Readings of a subject: fewest and most."""

    fewest: int
    most: int


@dataclass(frozen=True)
class Target(Result):
    """Mean and SD of a regression's target, in the task's unit."""

    mean: float
    sd: float


@dataclass(frozen=True)
class Counts(Result):
    """Sizes of an evaluation. `rows`: values that are scored, where windows are pooled; `classes`: rows of
    each class; `labels`: how many a multi-label task asks; `gallery`, `left_out`: of identification.
    """

    windows: int
    subjects: int | None = None
    records: int | None = None
    rows: int | None = None
    unlabelled_subjects: int | None = None
    readings: Readings | None = None
    classes: Mapping[str, int] | None = None
    target: Target | None = None
    labels: int | None = None
    gallery: int | None = None
    left_out: int | None = None


@dataclass(frozen=True)
class Protocol(Result):
    """How figures were made. `draws`: of the bootstrap; `alphas` (ridge) and `strengths` (logistic): what the
    inner folds chose, by row.
    """

    folds: int
    seed: int
    draws: int
    folds_asked: int | None = None
    split: str | None = None
    alphas: Mapping[str, Sequence[float]] | None = None
    strengths: Mapping[str, Sequence[float]] | None = None
    demographics: tuple[str, ...] | None = None
    handcrafted: tuple[str, ...] | None = None
    gap_s: float | None = None
    not_refitted: str | None = None


@dataclass(frozen=True)
class Row(Result):
    """A row of a table. `note`: why it has no figures, or what they lack."""

    name: str
    label: str
    metrics: Metrics
    note: str = ""


@dataclass(frozen=True)
class FewShotPoint(Result):
    """The main metric of every row where probes learn from a share of the subjects."""

    share: float
    subjects: float
    rows: Metrics


@dataclass(frozen=True)
class SubgroupFigures(Result):
    """`metrics`: {row: {metric: interval}} in one group of people."""

    name: str
    subjects: int
    windows: int
    metrics: Mapping[str, Metrics]


@dataclass(frozen=True)
class Gap(Interval):
    """Main metric of the worst group − that of the best; `between` names the two."""

    between: tuple[str, ...] = ()


@dataclass(frozen=True)
class Subgroups(Result):
    """Groups by one label, the gap of each row, and subjects whose group is unknown."""

    column: str
    groups: tuple[SubgroupFigures, ...]
    gap: Mapping[str, Gap]
    unknown: int


@dataclass(frozen=True)
class LabelScore(Result):
    """AUROC of one of several labels; `positives`: subjects who have it; `chance`: the 2.5th and 97.5th
    percentile of the AUROC where labels are those of other people.
    """

    label: str
    positives: int
    auroc: Interval
    chance: tuple[float, float] | None = None


@dataclass(frozen=True)
class Chapter(Result):
    """Labels of one chapter of a classification: how many, and by row their mean AUROC and how many score
    above each level.
    """

    name: str
    labels: int
    auroc: Metrics
    above: Mapping[str, Mapping[str, Interval]]


@dataclass(frozen=True)
class Chance(Result):
    """What a row's scores reach on labels of other people: how many labels lie above each level (mean, 95 %
    range of the shuffles), and the 95th percentile of the best label.
    """

    shuffles: int
    above: Mapping[str, Interval]
    bound: float


@dataclass(frozen=True)
class Published(Result):
    """{row: {metric: interval}} under the leaking window-level folds of many papers."""

    label: str
    windows: int
    rows: Mapping[str, Metrics]


@dataclass(frozen=True)
class Agreement(Result):
    """A blood pressure estimate against its reference, mmHg: see `bloodpressure.agreement`."""

    values: int
    subjects: int
    mae: float
    me: float
    sd: float
    within: Mapping[str, float]  # % within 5, 10, 15 mmHg
    slope: float
    sd_subjects: float
    aami: str
    aami_2: str
    bhs: str
    ieee: str
    subjects_asked: int
    readings_asked: int


@dataclass(frozen=True)
class Calibrated(Result):
    """Figures with a first reading's calibration, those of the same values without, or why there are none."""

    why_not: str
    calibrated: Agreement | None = None
    same_uncalibrated: Agreement | None = None
    subjects_with_one_reading: int | None = None


@dataclass(frozen=True)
class Stage(Agreement):
    """Figures in one stage of hypertension."""

    name: str = ""


@dataclass(frozen=True)
class PressureCard(Result):
    """A row's blood pressure card. `pressure`: "SBP" or "DBP"; `stages_by`: where stages come from."""

    pressure: str
    free: Agreement
    calibrated: Calibrated
    stages: tuple[Stage, ...]
    stages_by: str
    readings: int


@dataclass(frozen=True)
class TaskResult(Result):
    """One task on one corpus: every row's figures, and paired differences encoder − row of the main metric,
    {encoder: {row: difference}}. `pieces`: into which the longest window is cut for an encoder; `placed`:
    windows that hold every signal; `refused_by`: {encoder: {reason: windows}}; `seen_by`: {encoder: its own
    overlap}, where `overlap` is that of all together; `adapted`: how the task was fitted to the corpus.
    """

    task: Task
    classes: tuple[str, ...]
    pieces: int
    refused: Mapping[str, int]
    warnings: tuple[str, ...]
    counts: Counts
    protocol: Protocol
    rows: tuple[Row, ...]
    differences: Mapping[str, Mapping[str, Difference]]
    added: Mapping[str, Difference] = field(default_factory=dict)  # by encoder: + demographics − demographics
    per_subject_mae: Mapping[str, Mapping[str, float]] | None = None
    delong: Mapping[str, Interval] | None = None
    per_label: Mapping[str, tuple[LabelScore, ...]] | None = None
    above: Mapping[str, Mapping[str, int]] | None = None
    chapters: tuple[Chapter, ...] = ()
    chance: Mapping[str, Chance] = field(default_factory=dict)
    subgroups: tuple[Subgroups, ...] = ()
    few_shot: tuple[FewShotPoint, ...] | None = None
    published_protocol: Published | None = None
    blood_pressure: Mapping[str, PressureCard] | None = None
    overlap: Overlap | None = None
    seen_by: Mapping[str, Overlap] = field(default_factory=dict)
    refused_by: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    placed: int = 0
    adapted: tuple[str, ...] = ()
    corpus: CorpusInfo | None = None
    verdict: tuple[str, ...] = ()

    @property
    def level(self) -> str:
        return self.task.level

    @property
    def labels(self) -> dict[str, str]:
        """{row: what it is called}"""
        return {row.name: row.label for row in self.rows}

    @property
    def encoders(self) -> list[str]:
        """Rows that are encoders."""
        return list(self.differences)

    def row(self, name: str) -> Row:
        return next(row for row in self.rows if row.name == name)

    def to_json(self) -> dict[str, Any]:
        about = {"main": self.task.main, "classes": list(self.classes), "pieces": self.pieces}
        found = super().to_json() | {"task": self.task.model_dump(mode="json") | about, "level": self.level}
        del found["classes"], found["pieces"]
        return {key: value for key, value in found.items() if key not in MAYBE or value}
