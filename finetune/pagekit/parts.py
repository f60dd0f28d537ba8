"""What reports are made of: tables of text, and pictures that a page lays out beside each other."""

from dataclasses import dataclass

from markupsafe import Markup


@dataclass(frozen=True)
class Table:
    """Header, body and notes below; the first column names the row. `printed`: the terminal shows it, too."""

    title: str
    header: list[str]
    body: list[list[str]]
    notes: tuple[str, ...] = ()
    printed: bool = True


@dataclass(frozen=True)
class Panel:
    """A picture inside a page, the line above it and the line below it."""

    title: str
    picture: Markup
    note: str = ""


@dataclass(frozen=True)
class Group:
    """Panels under one heading."""

    title: str
    text: str
    panels: list[Panel]
    layout: str = "many"  # or "wide", "pairs"


def aligned(table: Table) -> list[str]:
    """The table as lines of aligned text, with rules."""
    lines = [table.header, *table.body]
    widths = [max(len(line[i]) for line in lines) for i in range(len(table.header))]

    def row(cells: list[str]) -> str:
        first, *rest = (
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join([first, *rest]).rstrip()

    rule = "─" * (sum(widths) + 2 * (len(widths) - 1))
    return [rule, row(table.header), rule, *map(row, table.body), rule]


def markdown_table(table: Table) -> str:
    """The table in Markdown."""
    lines = [table.header, ["---"] + ["---:"] * (len(table.header) - 1), *table.body]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
