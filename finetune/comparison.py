"""Results of a comparison → text: a table a task, and a sentence an encoder."""

# ruff: noqa: RUF001  (minus signs and dashes are meant)

from typing import Any

from finetune.report import (
    aligned,
    facts,
    main_of,
    metric_cell,
    metric_name,
    rows_explained,
    side,
    signed,
    table_md,
    with_interval,
)


def verdicts(table: dict[str, Any]) -> list[str]:
    """One sentence an encoder: which rows it beats, which it cannot be told apart from, which beat it. Of the
    untrained networks only its own counts.
    """
    labels, (_, _, lower) = {row["name"]: row["label"] for row in table["rows"]}, main_of(table["task"])
    said = []
    for name, differences in table["differences"].items():
        groups: dict[str, list[str]] = {"better": [], "level": [], "worse": []}
        twins = {f"{encoder}, untrained" for encoder in table["differences"] if encoder != name}
        for other, difference in differences.items():
            if other in twins:
                continue
            groups[side(difference, lower)].append(_short(labels[other], labels[name]))
        words = {"better": "beats", "level": "cannot be told apart from", "worse": "is worse than"}
        parts = [f"{words[how]} {'; '.join(rows)}" for how, rows in groups.items() if rows]
        said.append(f"{labels[name]} {', '.join(parts)}.")
    return said


def _short(label: str, own: str) -> str:
    return "its untrained self" if label == f"{own}, untrained" else label[:1].lower() + label[1:]


def _cells(table: dict[str, Any]) -> tuple[list[str], list[list[str]], list[str]]:
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


def _facts(table: dict[str, Any]) -> list[str]:
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
    parts = []
    for table in results["tasks"]:
        header, body, notes = _cells(table)
        lines = [
            table["task"]["title"],
            *aligned(header, body),
            *notes,
            *_facts(table),
            "",
            *table["verdict"],
        ]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def markdown(results: dict[str, Any]) -> str:
    """compare.md: what was compared, a section a task, how it was done."""
    encoders = [
        f"- **{name}**: `{e['uri']}`, mode `{e['mode']}`, vectors of {e['dim']}"
        for name, e in results["encoders"].items()
    ]
    parts = [
        "# Comparison",
        f"On {results['corpus']['source']} (`{results['corpus']['uri']}`); all rows of a table have the same "
        "windows, folds and drawn subjects. Differences: row of the encoder − other row; 95 % intervals.",
        "\n".join(encoders),
        "![Main metric of each row](intervals.png)",
    ]
    for table in results["tasks"]:
        header, body, notes = _cells(table)
        parts += [
            f"## {table['task']['title']}",
            table_md(header, body),
            "\n".join(f"- {line}" for line in [*notes, *table["verdict"]]),
            "How it was done:",
            "\n".join(f"- {line}" for line in _facts(table)),
            rows_explained(table),
        ]
    return "\n\n".join(parts) + "\n"
