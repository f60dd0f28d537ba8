"""Parts of a task's results beside its main table, as tables of text: whoever prints them (page, Markdown,
terminal) adds the task's warnings to each.
"""

# ruff: noqa: RUF001  (minus signs, dashes and Greek letters are meant)

from dataclasses import dataclass
from typing import Any

from finetune.reports.report import main_of, number, side, signed, table_md, warnings, with_interval

VARIANTS = (", untrained", ", k-NN", " + demographics")  # after an encoder's name, in rows made of it
ADDS = {"better": "adds", "level": "cannot be told", "worse": "takes away"}


@dataclass(frozen=True)
class Table:
    """Header, body and notes below; the first column names the row."""

    title: str
    header: list[str]
    body: list[list[str]]
    notes: tuple[str, ...] = ()


def extras(table: dict[str, Any]) -> list[Table]:
    """Every part that the results of a task have, in the order of a report."""
    made = [*pressure(table), *added(table), *subgroups(table), *per_label(table), *published(table)]
    made += delong(table)
    return [part for part in made if part.body]


def markdown(table: dict[str, Any], level: str = "##") -> list[str]:
    """`extras` as paragraphs, a heading of `level` before each."""
    found = []
    for part in extras(table):
        found += [f"{level} {part.title}", table_md(part.header, part.body)]
        found.append("\n".join(f"- {line}" for line in [*warnings(table), *part.notes]))
    return [paragraph for paragraph in found if paragraph]


def _labels(table: dict[str, Any]) -> dict[str, str]:
    return {row["name"]: row["label"] for row in table["rows"]}


def telling(table: dict[str, Any]) -> dict[str, str]:
    """Labels of the rows that a table of many columns shows: encoders and baselines, not what is made of an
    encoder (tables.csv has all).
    """
    made = {f"{encoder}{how}" for encoder in table["differences"] for how in VARIANTS}
    return {name: label for name, label in _labels(table).items() if name not in made}


# ---------------------------------------------------------------- blood pressure


def pressure(table: dict[str, Any]) -> list[Table]:
    """The blood pressure card: without calibration, with (or why not), by stage of hypertension."""
    cards = table.get("blood_pressure") or {}
    if not cards:
        return []
    labels, first = _labels(table), next(iter(cards.values()))
    named = {row: labels.get(row, row) for row in cards}
    told = first["calibrated"]
    found = [
        _pressures(
            f"{first['pressure']}: no calibration", {named[r]: c["free"] for r, c in cards.items()},
            ["Errors are predicted − reference. AAMI 1: criterion 1 of ISO 81060-2, of all values (|ME| ≤ 5, "
             "SD ≤ 8 mmHg); AAMI 2: its criterion 2, SD of the subjects' mean errors (4.79 to 6.95 by ME). "
             "Slope: of the error on the reference, 0 at best, −1 for a constant.",
             "Only the standards' limits: how they want references taken and subjects chosen is not met."],
        )
    ]  # fmt: skip
    if told["why_not"]:
        found[0] = Table(*_fields(found[0]), (*found[0].notes, f"Not calibrated: {told['why_not']}."))
    else:
        calibrated = {named[r]: c["calibrated"]["calibrated"] for r, c in cards.items()}
        notes = [
            "Each subject's mean error at its first reference reading is taken off all later ones, which "
            "alone count here. Where a row predicts one number a person, this is the first reading repeated: "
            "what calibration alone achieves."
        ]
        if one := told["subjects_with_one_reading"]:
            notes.append(f"Left out, with a single reading: {one} subjects.")
        free = {f"{named[r]}, not calibrated": c["calibrated"]["same_uncalibrated"] for r, c in cards.items()
                if r in table["differences"]}  # fmt: skip
        found.append(_pressures(f"{first['pressure']}: calibrated", calibrated | free, notes))
    return [*found, _stages(cards, named, first, telling(table))]


def _fields(table: Table) -> tuple[str, list[str], list[list[str]]]:
    return table.title, table.header, table.body


def _pressures(title: str, rows: dict[str, dict[str, Any]], notes: list[str]) -> Table:
    header = [
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
    body = [
        [label, number(c["mae"]), mean_sd(c), *(f"{share:.0f} %" for share in c["within"].values()),
         c["aami"], c.get("aami_2", "–"), c["bhs"], c["ieee"],
         f"{c['slope']:+.2f}" if c["slope"] == c["slope"] else "–"]
        for label, c in rows.items()
    ]  # fmt: skip
    one = next(iter(rows.values()))
    count = f"{one['values']} values of {one['subjects']} subjects"
    asked = one["subjects_asked"], one.get("readings_asked", 0)
    if one["subjects"] < asked[0] or one["values"] < asked[1]:
        count += f"; each standard asks {asked[0]} subjects and {asked[1]} readings, so no grade here is one"
    return Table(title, header, body, (count + ".", *notes))


def mean_sd(found: dict[str, Any]) -> str:
    return f"{round(found['me'], 1) + 0.0:+.1f} ± {number(found['sd'])}"


def _stages(
    cards: dict[str, Any], named: dict[str, str], first: dict[str, Any], told: dict[str, str]
) -> Table:
    heads = [f"{s['name']} ({s['subjects']})" for s in first["stages"]]
    body = [
        [named[row], *(f"{number(s['mae'])} ({mean_sd(s)})" for s in card["stages"])]
        for row, card in cards.items()
        if row in told
    ]
    how = f"MAE (ME ± SD), mmHg; number of subjects in the header. Stage: {first['stages_by']}."
    return Table(f"{first['pressure']} by hypertension stage", ["", *heads], body, (how,))


# ---------------------------------------------------------------- groups, labels, protocols


def added(table: dict[str, Any]) -> list[Table]:
    """What each encoder's vectors add to demographics."""
    labels, (_, title, lower) = _labels(table), main_of(table["task"])
    body = [
        [labels.get(name, name), signed(d), ADDS[side(d, lower)]]
        for name, d in (table.get("added") or {}).items()
    ]
    note = f"{title}: encoder with demographics − demographics only."
    return [Table("What an encoder adds to demographics", ["", "difference", "in words"], body, (note,))]


def subgroups(table: dict[str, Any]) -> list[Table]:
    """A table a column: main metric of each row in each group, and the gap between the groups."""
    _, title, _ = main_of(table["task"])
    found = []
    for column in table.get("subgroups") or []:
        heads = [f"{g['name']} ({g['subjects']})" for g in column["groups"]]
        body = []
        for name, label in telling(table).items():
            cells = [with_interval(_of(g["metrics"], name, table)) for g in column["groups"]]
            if any(cell != "–" for cell in cells):
                gap = column.get("gap", {}).get(name)
                body.append([label, *cells, with_interval(gap) if gap else "–"])
        notes = [f"{title}; subjects in brackets. Gap: worst group − best group."]
        if column.get("unknown"):
            notes.append(f"In no group, {column['column']} not stated: {column['unknown']} subjects.")
        title_of = f"By {column['column'].replace('_', ' ')}"
        found.append(Table(title_of, ["", *heads, "Gap"], body, tuple(notes)))
    return found


def _of(metrics: dict[str, Any], row: str, table: dict[str, Any]) -> dict[str, Any] | None:
    """A row's interval of the main metric, given as itself or among all metrics."""
    found = metrics.get(row)
    return found.get(main_of(table["task"])[0]) if found and "value" not in found else found


def per_label(table: dict[str, Any]) -> list[Table]:
    """Of a multi-label task: AUROC of every label, and how many labels reach 0.7 and 0.8."""
    given = table.get("per_label") or {}
    if not given:
        return []
    labels = _labels(table)
    names = {entry["label"]: entry["positives"] for rows in given.values() for entry in rows}
    auroc = {row: {e["label"]: e["auroc"] for e in entries} for row, entries in given.items()}
    body = [
        [f"{name} ({count})", *(with_interval(auroc[row].get(name)) for row in given)]
        for name, count in sorted(names.items(), key=lambda item: -item[1])
    ]
    above = table.get("above") or {}
    notes = [
        f"{labels.get(row, row)}: "
        + ", ".join(f"{n} of {len(names)} above {limit}" for limit, n in found.items())
        for row, found in above.items()
    ]
    return [Table("AUROC of each label", ["", *(labels.get(r, r) for r in given)], body,
                  ("In brackets: positives.", *notes))]  # fmt: skip


def published(table: dict[str, Any]) -> list[Table]:
    """The leaking window-level split beside the subject-disjoint one."""
    given = table.get("published_protocol")
    if not given:
        return []
    main, title, _ = main_of(table["task"])
    honest = {row["name"]: row["metrics"].get(main) for row in table["rows"]}
    body = [
        [label, with_interval(honest.get(name)), with_interval(given["rows"][name].get(main))]
        for name, label in _labels(table).items()
        if name in given["rows"]
    ]
    notes = (
        f"{title}. Random folds of {given['windows']} windows put one person on both sides: LEAKING, shown "
        "only for how much it flatters.",
    )
    header = ["", "subjects apart", "windows apart (LEAKS)"]
    return [Table("As often published: a split by windows", header, body, notes)]


def delong(table: dict[str, Any]) -> list[Table]:
    """DeLong's AUROC intervals beside the bootstrap's."""
    given = table.get("delong") or {}
    boot = {row["name"]: row["metrics"].get("auroc") for row in table["rows"]}
    body = [
        [label, with_interval(boot.get(name)), with_interval(given[name])]
        for name, label in telling(table).items()
        if name in given
    ]
    notes = ("Two ways to the same interval; where they differ much, trust neither.",)
    return [Table("AUROC intervals checked", ["", "bootstrap", "DeLong"], body, notes)]


# ---------------------------------------------------------------- paired differences


@dataclass(frozen=True)
class Difference:
    """One line of a forest: low, value and high in percent of the axis, its figures, and who is better."""

    label: str
    low: float
    value: float
    high: float
    figures: str
    side: str


@dataclass(frozen=True)
class Forest:
    """Paired differences encoder − row on one axis; `zero` and `ticks` in percent of it."""

    title: str
    lines: list[Difference]
    zero: float
    ticks: list[tuple[float, str]]
    left: str
    right: str


def forests(table: dict[str, Any], shown: dict[str, list[str]]) -> list[Forest]:
    """One an encoder, all on one axis, so that they compare. `shown`: which rows of each."""
    labels, (_, title, lower) = _labels(table), main_of(table["task"])
    every = [table["differences"][e][n] for e, names in shown.items() for n in names]
    ends = [d[k] for d in every for k in ("low", "high") if d[k] is not None and d[k] == d[k]]
    if not ends:
        return []
    reach = max(max(map(abs, ends)), 1e-9) * 1.05

    def at(value: float) -> float:
        return min(max(50 + 50 * value / reach, 0), 100)

    found = []
    for encoder, names in shown.items():
        lines = []
        for name in names:
            d = table["differences"][encoder][name]
            if any(d[k] is None or d[k] != d[k] for k in ("value", "low", "high")):
                continue
            figures = signed(d)
            lines.append(
                Difference(labels[name], at(d["low"]), at(d["value"]), at(d["high"]), figures, side(d, lower))
            )
        step = _nice(reach)
        ticks = [(at(t), f"{t:+g}" if t else "0") for t in (-step, 0, step)]
        words = ("encoder better", "encoder worse")
        left, right = words if lower else words[::-1]
        found.append(Forest(f"{labels[encoder]} − row, {title}", lines, at(0), ticks, left, right))
    return found


def _nice(reach: float) -> float:
    """The largest of 1, 2, 5 times a power of ten that lies within the axis."""
    from math import floor, log10

    power = 10.0 ** floor(log10(reach))
    return max(step for step in (1, 2, 5) if step * power <= reach * (1 + 1e-9)) * power
