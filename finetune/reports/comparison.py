"""Results of a comparison → text: a table a task, and a sentence an encoder."""

# ruff: noqa: RUF001  (minus signs and dashes are meant)

from typing import Any

from finetune.reports import parts
from finetune.reports.report import (
    aligned,
    facts,
    main_of,
    metric_cell,
    metric_name,
    rows_explained,
    side,
    signed,
    spoken,
    table_md,
    warnings,
    with_interval,
)


def verdicts(table: dict[str, Any]) -> list[str]:
    """One sentence an encoder: which rows it beats, which it cannot be told apart from, which beat it."""
    labels, (_, _, lower) = {row["name"]: row["label"] for row in table["rows"]}, main_of(table["task"])
    said = []
    for name, differences in table["differences"].items():
        groups: dict[str, list[str]] = {"better": [], "level": [], "worse": []}
        for other in rivals(table, name):
            groups[side(differences[other], lower)].append(_short(table, other, name))
        words = {"better": "beats", "level": "cannot be told apart from", "worse": "is worse than"}
        told = [f"{words[how]} {_listed(rows)}" for how, rows in groups.items() if rows]
        said.append(f"{labels[name]} {'; '.join(told)}.")
    return said


def _listed(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def rivals(table: dict[str, Any], encoder: str) -> list[str]:
    """Rows that an encoder is compared with in words and pictures: other encoders, its untrained self and the
    baselines.
    """
    told = {f"{encoder}, untrained", *parts.telling(table)}
    return [name for name in table["differences"][encoder] if name in told]


def _short(table: dict[str, Any], other: str, own: str) -> str:
    return "its untrained self" if other == f"{own}, untrained" else spoken(other, table)


def cells(table: dict[str, Any]) -> tuple[list[str], list[list[str]], list[str]]:
    """Header, rows and notes of a task's main table."""
    task = table["task"]
    main, title, _ = main_of(task)
    rest = [m for m in task["metrics"] if m != main]
    header = ["", title, *(metric_name(m, task) for m in rest), "− untrained", "− handcrafted"]
    body, notes = [], []
    for row in table["rows"]:
        found, own = row["metrics"], table["differences"].get(row["name"], {})
        line = [row["label"], with_interval(found.get(main)), *(metric_cell(m, found) for m in rest)]
        for other in (f"{row['name']}, untrained", "handcrafted"):
            line.append(signed(own[other]) if other in own else "")
        body.append(line)
        if row["note"]:
            notes.append(f"{row['label']}: {row['note']}")
    return header, body, notes


def facts_of(table: dict[str, Any]) -> list[str]:
    """How a task's figures were made, and what each encoder refused."""
    lines = facts(table)
    said = []
    for name, refused in table["refused_by"].items():
        reasons = ", ".join(f"{reason} {count}" for reason, count in refused.items())
        said.append(f"{name} {sum(refused.values())}" + (f" ({reasons})" if reasons else ""))
    return [
        *lines,
        f"Of {table['placed']} windows that hold every encoder's signals, refused by: {'; '.join(said)}",
    ]


def terminal(results: dict[str, Any]) -> str:
    made = []
    for table in results["tasks"]:
        header, body, notes = cells(table)
        lines = [
            table["task"]["title"],
            *aligned(header, body),
            *warnings(table),
            *notes,
            *facts_of(table),
            "",
            *table["verdict"],
        ]
        for part in parts.pressure(table):
            lines += ["", part.title, *aligned(part.header, part.body), *warnings(table), *part.notes]
        made.append("\n".join(lines))
    return "\n\n".join(made)


def markdown(results: dict[str, Any]) -> str:
    """compare.md: what was compared, a section a task, how it was done."""
    encoders = [
        f"- **{name}**: `{e['uri']}`, mode `{e['mode']}`, vectors of {e['dim']}"
        for name, e in results["encoders"].items()
    ]
    made = [
        "# Comparison",
        f"On {results['corpus']['source']} (`{results['corpus']['uri']}`); all rows of a table have the same "
        "windows, folds and drawn subjects. Differences: row of the encoder − other row; 95 % intervals.",
        "\n".join(encoders),
        "![Main metric of each row](intervals.png)",
    ]
    for table in results["tasks"]:
        header, body, notes = cells(table)
        made += [
            f"## {table['task']['title']}",
            table_md(header, body),
            "\n".join(f"- {line}" for line in [*warnings(table), *notes, *table["verdict"]]),
            *parts.markdown(table, "###"),
            "How it was done:",
            "\n".join(f"- {line}" for line in facts_of(table)),
            rows_explained(table),
        ]
    return "\n\n".join(made) + "\n"
