"""A board → its sheet: mean ranks and wins, a table of columns, what was seen, what could not be run."""

# ruff: noqa: RUF001  (minus signs and dashes are meant)

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from finetune.evaluation.leaderboard import RIVALS, TWIN, Board, Cell, Column, Seen
from finetune.evaluation.results import Result, to_json
from finetune.metrics import Interval
from finetune.pagekit.parts import Table
from finetune.reports.comparison import described
from finetune.reports.figures import direction, listed, lower_is_better, main_title, side, with_interval
from finetune.reports.leaderboard_plot import board_picture
from finetune.reports.sheet import Section, Sheet

AT_ONCE = 4  # columns side by side in a table
BY_CHANCE = 0.025  # share of comparisons between equals that one side wins
AGAINST = {
    TWIN: "beats its untrained self",
    "handcrafted": "beats handcrafted",
    "tracker": "beats tracker",
    "demographics": "beats demographics",
    "mean": "beats the mean",
}
FIELDS = ("column", "task", "corpus", "row", "kind", "metric", "unit", "subjects", "windows")
FIGURES = ("value", "low", "high", "rank", "rank_low", "rank_high")


@dataclass(frozen=True)
class Wins(Result):
    """In how many of `columns` an encoder is better or worse by the whole interval of the difference."""

    better: int
    worse: int
    columns: int


def sheet(found: Board, out: str | None) -> Sheet:
    """leaderboard.md, report.html, results.json, leaderboard.csv, leaderboard.png."""
    won = wins(found)
    return Sheet(
        name="leaderboard",
        title="Leaderboard",
        lead=(_lead(found),),
        sections=(_standings(found, won), _columns(found), _seen(found), _absent(found)),
        results=to_json(found) | {"wins": to_json(won)},
        subjects=described(found.encoders),
        pictures=(board_picture(found),),
        files={"leaderboard.csv": partial(_write_csv, found)},
        out=out,
    )


def wins(found: Board) -> dict[str, dict[str, Wins]]:
    """{encoder: {rival: Wins}}"""
    return {
        name: {
            rival: Wins(sides.count("better"), sides.count("worse"), len(sides))
            for rival in RIVALS
            if (sides := _sides(found.columns, name, rival))
        }
        for name in found.encoders
    }


def _sides(columns: Sequence[Column], name: str, rival: str) -> list[str]:
    found = [(c.differences.get(name, {}).get(rival), lower_is_better(c.task)) for c in columns]
    return [side(difference, lower) for difference, lower in found if difference is not None]


def _lead(found: Board) -> str:
    folders = {folder for column in found.columns for folder in column.folders}
    return (
        f"{_counted(len(found.encoders), 'encoder')} in {_counted(len(found.columns), 'column')} from "
        f"{_counted(len(folders), 'folder')}. Brackets are 95 % intervals over drawn subjects. All rows of a "
        "column have the same windows, folds and drawn subjects; 1 is the best rank."
    )


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' if count != 1 else ''}"


# ---------------------------------------------------------------- sections


def _standings(found: Board, won: dict[str, dict[str, Wins]]) -> Section:
    rivals = [rival for rival in RIVALS if any(rival in of for of in won.values())]
    body = []
    for name in found.encoders:
        rank = found.overall.mean_rank.get(name)
        held = sum(name in column.rows for column in found.columns)
        cells = [_won(won[name].get(rival)) for rival in rivals]
        body.append([name, with_interval(rank), str(held), *cells])
    header = ["", "mean rank", "columns", *(AGAINST[rival] for rival in rivals)]
    return Section(
        title="Over all columns",
        key="overall",
        warnings=tuple(_kept(found)),
        tables=(Table("", header, body),),
        facts=(*_how_ranked(found), _multiplicity(won)),
        own=tuple(found.encoders),
    )


def _won(count: Wins | None) -> str:
    if count is None:
        return "–"
    return f"{count.better} of {count.columns}" + (f", worse in {count.worse}" if count.worse else "")


def _kept(found: Board) -> list[str]:
    """A line for each column in which an encoder's own people are left in."""
    lines = []
    for column in found.columns:
        kept = [name for name, seen in column.seen.items() if seen.overlap.policy == "all"]
        if kept:
            lines.append(
                f"{column.title}: {listed(kept)} evaluated with --allow-overlap: subjects that pretraining "
                "saw are NOT left out, figures may flatter"
            )
    return lines


def _how_ranked(found: Board) -> list[str]:
    overall = found.overall
    lines = [
        "Ranks are those of encoders among encoders; equals share the mean of their places. A baseline shows "
        "the place that it would take among them."
    ]
    if not overall.columns:
        return [*lines, "No mean rank: no column with predictions holds every encoder; order as named"]
    left = [column.title for column in found.columns if column.title not in overall.columns]
    lines.append(
        f"Mean rank: over the {_counted(len(overall.columns), 'column')} with predictions that hold every "
        "encoder" + (f"; not in it: {'; '.join(left)}" if left else "")
    )
    shared = [f"{listed(list(group))}" for group in overall.together if len(group) > 1]
    if shared:
        lines.append(
            "Columns that share people are drawn together, each draw's people being the same in all of them: "
            + "; ".join(shared)
        )
    if len(overall.together) > 1:
        lines.append("Columns that share nobody are drawn independently")
    return lines


def _multiplicity(won: dict[str, dict[str, Wins]]) -> str:
    count = sum(one.columns for of in won.values() for one in of.values())
    return (
        f"{_counted(count, 'paired comparison')} stand behind the wins, none corrected for their number: if "
        f"no encoder were better than anything, about {count * BY_CHANCE:.1f} of them would still be wins"
    )


def _columns(found: Board) -> Section:
    labels = {name: name for name in found.encoders} | dict(found.baselines)
    tables = []
    for start in range(0, len(found.columns), AT_ONCE):
        part = found.columns[start : start + AT_ONCE]
        header = ["", *(f"{column.title}: {main_title(column.task)} · rank" for column in part)]
        body = [[label, *(_cell(column.rows.get(row)) for column in part)] for row, label in labels.items()]
        tables.append(Table("" if not start else "More columns", header, body))
    facts = [
        f"{column.title}: {column.windows} windows, {_counted(column.subjects, 'subject')}, "
        f"{direction(column.task)}; from {', '.join(column.folders)}"
        for column in found.columns
    ]
    plain = [column.title for column in found.columns if column.task.kind == "retrieval"]
    if plain:
        facts.append(f"{'; '.join(plain)}: `compare` keeps no vectors, so ranks there have no interval")
    return Section(
        title="Task by task",
        key="columns",
        about="Main metric with its interval · rank with its interval. Baselines stand below the encoders.",
        tables=tuple(tables),
        facts=tuple(facts),
        own=tuple(found.encoders),
    )


def _cell(cell: Cell | None) -> str:
    return "–" if cell is None else f"{with_interval(cell.figure)} · {rank_text(cell.rank)}"


def rank_text(rank: Interval) -> str:
    """``2 [1, 3.5]``; without brackets where there is no interval."""
    if rank.low != rank.low:
        return f"{rank.value:g}"
    return f"{rank.value:g} [{rank.low:g}, {rank.high:g}]"


def _seen(found: Board) -> Section:
    header = ["", *(column.title for column in found.columns)]
    body = [[name, *(_saw(column.seen.get(name)) for column in found.columns)] for name in found.encoders]
    whys = [
        f"{name}: {why}"
        for column in found.columns
        for name, seen in column.seen.items()
        for why in seen.overlap.why
    ]
    together = any(seen.together for column in found.columns for seen in column.seen.values())
    return Section(
        title="What each encoder had seen",
        key="seen",
        about="The column's people in the encoder's pretraining: none, shared (and how many) or unknown. "
        "Whom any encoder of a folder saw is left out of that folder's figures, unless it says kept.",
        tables=(Table("", header, body),),
        facts=("†: any of the encoders of its folder (an earlier version wrote it)",) * together,
        explained=tuple(dict.fromkeys(whys)),
    )


def _saw(seen: Seen | None) -> str:
    if seen is None:
        return "–"
    overlap = seen.overlap
    many = f" {overlap.shared_subjects}" if overlap.shared_subjects else ""
    return overlap.kind + many + (", kept" if overlap.policy == "all" else "") + "†" * seen.together


def _absent(found: Board) -> Section:
    body = [[one.row, column.title, one.why] for column in found.columns for one in column.absent]
    about = "" if body else "Every encoder and every baseline has figures in every column."
    tables = (Table("", ["row", "column", "why"], body),) if body else ()
    return Section(title="What could not be run", key="absent", about=about, tables=tables)


# ---------------------------------------------------------------- leaderboard.csv


def _write_csv(found: Board, path: Path) -> None:
    """A line a row and column, UTF-8; the mean ranks last, as the column "overall". An absent figure is an
    empty cell.
    """
    with path.open("w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([*FIELDS, *FIGURES])
        for column in found.columns:
            task = column.task
            unit = task.unit if lower_is_better(task) else ""
            for cell in column.cells:
                kind = "encoder" if cell.row in found.encoders else "baseline"
                about = [column.title, task.name, column.corpus.uri, cell.row, kind, task.main, unit]
                figures = [*_plain(cell.figure), *_plain(cell.rank)]
                writer.writerow([*about, column.subjects, column.windows, *figures])
        for name, rank in found.overall.mean_rank.items():
            writer.writerow(["overall", "", "", name, "encoder", "", "", "", "", "", "", "", *_plain(rank)])


def _plain(found: Interval) -> list[float | str]:
    return [value if value == value else "" for value in (found.value, found.low, found.high)]
