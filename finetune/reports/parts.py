"""What stands beside a task's main table: blood pressure, subgroups, labels, protocols, checks."""

# ruff: noqa: RUF001  (minus signs, dashes and Greek letters are meant)

from collections.abc import Mapping, Sequence
from dataclasses import replace

from finetune.evaluation import chapters
from finetune.evaluation.naming import OWN_ONLY
from finetune.evaluation.results import Agreement, Chance, Interval, PressureCard, TaskResult
from finetune.pagekit.parts import Table
from finetune.reports.figures import lower_is_better, main_title, number, side, signed, with_interval

VARIANTS = (", untrained", *OWN_ONLY)  # after an encoder's name, in rows made of it
ADDS = {"better": "adds", "level": "cannot be told", "worse": "takes away"}
PRESSURE_HEAD = [
    "",
    "MAE",
    "ME ± SD",
    "≤ 5",
    "≤ 10",
    "≤ 15 mmHg",
    "AAMI 1",
    "AAMI 2",
    "BHS",
    "IEEE 1708",
    "Slope",
]


def extras(result: TaskResult) -> tuple[Table, ...]:
    """Every part that the result has, in the order of a report; a terminal shows blood pressure alone."""
    more = [*added(result), *subgroups(result), *per_label(result), *published(result), *delong(result)]
    made = [*pressure(result), *(replace(table, printed=False) for table in more)]
    return tuple(table for table in made if table.body)


def telling(result: TaskResult) -> dict[str, str]:
    """Labels of the rows that a table of many columns shows: encoders and baselines, not what is made of an
    encoder (tables.csv has all).
    """
    made = {f"{encoder}{how}" for encoder in result.encoders for how in VARIANTS}
    return {name: label for name, label in result.labels.items() if name not in made}


# ---------------------------------------------------------------- blood pressure


def pressure(result: TaskResult) -> list[Table]:
    """The blood pressure card: without calibration, with (or why not), by stage of hypertension."""
    cards = result.blood_pressure
    if not cards:
        return []
    named = {row: result.labels.get(row, row) for row in cards}
    first = next(iter(cards.values()))
    free = _pressures(
        f"{first.pressure}: no calibration",
        {named[row]: card.free for row, card in cards.items()},
        "Errors are predicted − reference. AAMI 1: criterion 1 of ISO 81060-2, of all values (|ME| ≤ 5, "
        "SD ≤ 8 mmHg); AAMI 2: its criterion 2, SD of the subjects' mean errors (4.79 to 6.95 by ME). "
        "Slope: of the error on the reference, 0 at best, −1 for a constant.",
        "Only the standards' limits: how they want references taken and subjects chosen is not met.",
    )
    stages = _stages(cards, named, telling(result))
    if first.calibrated.why_not:
        note = f"Not calibrated: {first.calibrated.why_not}."
        return [replace(free, notes=(*free.notes, note)), stages]
    return [free, _calibrated(cards, named, result.encoders), stages]


def _calibrated(cards: Mapping[str, PressureCard], named: Mapping[str, str], encoders: list[str]) -> Table:
    first = next(iter(cards.values()))
    rows = {named[row]: card.calibrated.calibrated for row, card in cards.items()}
    rows |= {
        f"{named[row]}, not calibrated": card.calibrated.same_uncalibrated
        for row, card in cards.items()
        if row in encoders
    }
    notes = [
        "Each subject's mean error at its first reference reading is taken off all later ones, which "
        "alone count here. Where a row predicts one number a person, this is the first reading repeated: "
        "what calibration alone achieves."
    ]
    if one := first.calibrated.subjects_with_one_reading:
        notes.append(f"Left out, with a single reading: {one} subjects.")
    known = {label: found for label, found in rows.items() if found is not None}
    return _pressures(f"{first.pressure}: calibrated", known, *notes)


def _pressures(title: str, rows: Mapping[str, Agreement], *notes: str) -> Table:
    body = [[label, *_pressure_cells(found)] for label, found in rows.items()]
    one = next(iter(rows.values()))
    count = f"{one.values} values of {one.subjects} subjects"
    if one.subjects < one.subjects_asked or one.values < one.readings_asked:
        count += f"; each standard asks {one.subjects_asked} subjects and {one.readings_asked} readings, so "
        count += "no grade here is one"
    return Table(title, PRESSURE_HEAD, body, (count + ".", *notes))


def _pressure_cells(found: Agreement) -> list[str]:
    shares = [f"{share:.0f} %" for share in found.within.values()]
    slope = f"{found.slope:+.2f}" if found.slope == found.slope else "–"
    grades = [found.aami, found.aami_2, found.bhs, found.ieee]
    return [number(found.mae), mean_sd(found), *shares, *grades, slope]


def mean_sd(found: Agreement) -> str:
    return f"{round(found.me, 1) + 0.0:+.1f} ± {number(found.sd)}"


def _stages(cards: Mapping[str, PressureCard], named: Mapping[str, str], shown: Mapping[str, str]) -> Table:
    first = next(iter(cards.values()))
    heads = [f"{stage.name} ({stage.subjects})" for stage in first.stages]
    body = [
        [named[row], *(f"{number(stage.mae)} ({mean_sd(stage)})" for stage in card.stages)]
        for row, card in cards.items()
        if row in shown
    ]
    how = f"MAE (ME ± SD), mmHg; number of subjects in the header. Stage: {first.stages_by}."
    return Table(f"{first.pressure} by hypertension stage", ["", *heads], body, (how,))


# ---------------------------------------------------------------- groups, labels, protocols


def added(result: TaskResult) -> list[Table]:
    """What each encoder's vectors add to demographics."""
    lower = lower_is_better(result.task)
    body = [
        [result.labels.get(name, name), signed(d), ADDS[side(d, lower)]] for name, d in result.added.items()
    ]
    note = f"{main_title(result.task)}: encoder with demographics − demographics only."
    return [Table("What an encoder adds to demographics", ["", "difference", "in words"], body, (note,))]


def subgroups(result: TaskResult) -> list[Table]:
    """A table a column: main metric of each row in each group, and the gap between the groups."""
    found, main = [], result.task.main
    for column in result.subgroups:
        heads = [f"{group.name} ({group.subjects})" for group in column.groups]
        body = []
        for name, label in telling(result).items():
            cells = [with_interval(group.metrics.get(name, {}).get(main)) for group in column.groups]
            if any(cell != "–" for cell in cells):
                body.append([label, *cells, with_interval(column.gap.get(name))])
        notes = [f"{main_title(result.task)}; subjects in brackets. Gap: worst group − best group."]
        if column.unknown:
            notes.append(f"In no group, {column.column} not stated: {column.unknown} subjects.")
        title = f"By {column.column.replace('_', ' ')}"
        found.append(Table(title, ["", *heads, "Gap"], body, tuple(notes)))
    return found


def per_label(result: TaskResult) -> list[Table]:
    """Of a multi-label task: AUROC by chapter of the codes, and of every label beside what chance reaches."""
    scores = result.per_label
    if not scores:
        return []
    shown = {row: each for row, each in scores.items() if row in telling(result) and row != "mean"}
    positives = {score.label: score.positives for each in scores.values() for score in each}
    auroc = {row: {score.label: score.auroc for score in each} for row, each in shown.items()}
    band = {s.label: s.chance for row in reversed(result.encoders) for s in scores.get(row, ()) if s.chance}
    header = ["", *(result.labels.get(row, row) for row in shown)]
    body = [
        [f"{name} ({count})", *(with_interval(auroc[row].get(name)) for row in shown), _range(band.get(name))]
        for name, count in sorted(positives.items(), key=lambda item: -item[1])
    ]
    notes = [
        f"{result.labels.get(row, row)}: {_reached(above, result.chance.get(row), len(positives))}"
        for row, above in (result.above or {}).items()
        if row in shown
    ]
    every = Table("AUROC of each label", [*header, "By chance"], body, (IN_BRACKETS, *notes, *_found(result)))
    return [*_chapters(result, list(shown)), every]


IN_BRACKETS = (
    "In brackets: subjects who have it. By chance: 95 % of what the first encoder's predictions reach on "
    "labels of other people (each subject is given all labels of another)."
)


def _range(band: tuple[float, float] | None) -> str:
    return f"{number(band[0])} to {number(band[1])}" if band else "–"


def _reached(above: Mapping[str, int], chance: Chance | None, labels: int) -> str:
    """How many labels lie above each level, and how many would by chance."""
    words = []
    for level, n in above.items():
        luck = chance.above[level] if chance else None
        by = f" (by chance {luck.value:.1f}, {luck.low:.0f} to {luck.high:.0f})" if luck else ""
        words.append(f"{n} of {labels} above {level}{by}")
    return ", ".join(words)


def _found(result: TaskResult) -> list[str]:
    """The labels of each encoder that no label reaches by chance."""
    lines = []
    for row in result.encoders:
        chance, scores = result.chance.get(row), (result.per_label or {}).get(row)
        if chance and scores:
            names = chapters.found(scores, chance)
            lines.append(
                f"{result.labels[row]}: above what the best of all labels reaches by chance in 95 of 100 "
                f"shuffles ({number(chance.bound)}): {', '.join(names) or 'none'}."
            )
    return lines


def _chapters(result: TaskResult, shown: Sequence[str]) -> list[Table]:
    """Mean AUROC by chapter, and how many labels lie above each level, of encoders with an interval."""

    def count(found: Interval, row: str) -> str:
        interval = f" [{found.low:.0f}, {found.high:.0f}]" if row in result.encoders else ""
        return f"{found.value:.0f}{interval}"

    header = ["", *(result.labels.get(row, row) for row in shown)]
    names = [f"{line.name} ({line.labels})" for line in result.chapters]
    means = [[with_interval(line.auroc[row]) for row in shown] for line in result.chapters]
    counts = [
        ["; ".join(count(found, row) for found in line.above[row].values()) for row in shown]
        for line in result.chapters
    ]
    return [
        Table(title, header, [[name, *cells] for name, cells in zip(names, body, strict=True)], (note,))
        for title, body, note in (
            ("AUROC by chapter", means, "In brackets: labels. The mean over the labels of the chapter."),
            ("High AUROC by chapter", counts, "How many labels of the chapter lie above 0.7; above 0.8."),
        )
    ]


def published(result: TaskResult) -> list[Table]:
    """The leaking window-level split beside the subject-disjoint one."""
    leaking, main = result.published_protocol, result.task.main
    if leaking is None:
        return []
    body = [
        [row.label, with_interval(row.metrics.get(main)), with_interval(leaking.rows[row.name].get(main))]
        for row in result.rows
        if row.name in leaking.rows
    ]
    note = (
        f"{main_title(result.task)}. Random folds of {leaking.windows} windows put one person on both sides: "
        "LEAKING, shown only for how much it flatters."
    )
    header = ["", "subjects apart", "windows apart (LEAKS)"]
    return [Table("As often published: a split by windows", header, body, (note,))]


def delong(result: TaskResult) -> list[Table]:
    """DeLong's AUROC intervals beside the bootstrap's."""
    closed = result.delong or {}
    body = [
        [label, with_interval(result.row(name).metrics.get("auroc")), with_interval(closed[name])]
        for name, label in telling(result).items()
        if name in closed
    ]
    note = "Two ways to the same interval; where they differ much, trust neither."
    return [Table("AUROC intervals checked", ["", "bootstrap", "DeLong"], body, (note,))]
