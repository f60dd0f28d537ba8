"""One sheet for every command: what it found, for the terminal, as Markdown, as a page, and in a folder."""

import tempfile
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from cluster import bundle as bundles
from cluster import storage
from finetune.pagekit.parts import Group, Table, aligned, markdown_table
from finetune.pagekit.template import filled
from finetune.reports.forest import Forest

Writer = Callable[[Path], object]  # writes one file


@dataclass(frozen=True)
class Picture:
    """A PNG beside the sheet. `private`: it shows people's waveforms, so it is not published beside a bundle
    where access to the corpus is not open.
    """

    file: str
    caption: str
    draw: Writer
    private: bool = False


@dataclass(frozen=True)
class Section:
    """One table with all that belongs to it. `own`: labels of the rows that stand out in a page; `explained`:
    what rows and columns mean, which a terminal leaves out; `warnings` stand with every table.
    """

    title: str
    key: str = "result"
    about: str = ""
    warnings: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()  # the main one first
    verdict: tuple[str, ...] = ()
    facts: tuple[str, ...] = ()
    explained: tuple[str, ...] = ()
    pictures: tuple[Picture, ...] = ()
    own: tuple[str, ...] = ()
    forests: tuple[Forest, ...] = ()
    groups: Callable[[], Sequence[Group]] = tuple  # drawn when a page is made


@dataclass(frozen=True)
class Sheet:
    """`name`: of the Markdown file; `lead`: paragraphs of Markdown below the title; `subjects`: what was
    asked ({name: about}, as encoders); `results`: results.json, and the JSON line where that has no `line`
    of its own; `files`: what else lies beside it; `out`: a folder to write to; `bundle`: to publish beside.
    """

    name: str
    title: str
    lead: tuple[str, ...]
    sections: tuple[Section, ...]
    results: dict[str, Any]
    line: dict[str, Any] | None = None
    subjects: Mapping[str, str] = field(default_factory=dict)
    overview: Table | None = None
    pictures: tuple[Picture, ...] = ()
    files: Mapping[str, Writer] = field(default_factory=dict)
    out: str | None = None
    bundle: str | None = None
    open_access: bool = True


def terminal(sheet: Sheet) -> str:
    """The title, then a block a section: its tables as aligned text, how they were made, what they say."""
    blocks = ["\n".join(_block(section)) for section in sheet.sections]
    title = [] if sheet.title == sheet.sections[0].title else [sheet.title]
    return "\n\n".join([*title, *blocks])


def _block(section: Section) -> list[str]:
    lines = [section.title]
    warned = [f"WARNING: {line}" for line in section.warnings]
    printed = [table for table in section.tables if table.printed]
    for number, table in enumerate(printed):
        if number:
            lines += ["", table.title]
        elif table.title and table.title != section.title:
            lines.append(table.title)
        lines += [*aligned(table), *warned, *table.notes]
    lines += [] if printed else warned
    lines += section.facts
    return [*lines, "", *section.verdict] if section.verdict else lines


def markdown(sheet: Sheet, private: bool = True) -> str:
    """The sheet as Markdown. `private`: private pictures lie beside it."""
    parts = [f"# {sheet.title}", *sheet.lead]
    parts.append("\n".join(f"- **{name}**: {about}" for name, about in sheet.subjects.items()))
    parts += _pictures(sheet.pictures, private)
    alone = len(sheet.sections) == 1
    for section in sheet.sections:
        if not alone or section.title != sheet.title:
            parts.append(f"## {section.title}")
        parts.append(section.about)
        warned = _bullets(f"**WARNING**: {line}" for line in section.warnings)
        says = [_bullets(section.verdict), *_pictures(section.pictures, private)]
        one_main = bool(section.tables) and section.tables[0].title in ("", section.title)
        parts += [] if section.tables else [warned]
        parts += [] if one_main else says
        for number, table in enumerate(section.tables):
            if number or (table.title and table.title != section.title):
                parts.append(f"### {table.title}")
            parts += [markdown_table(table), warned, _bullets(table.notes)]
            parts += says if one_main and not number else []
        how = _bullets([*section.facts, *section.explained])
        parts += ["### How it was done", how] if how else []
    return "\n\n".join(part for part in parts if part) + "\n"


def _bullets(lines: Any) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _pictures(pictures: tuple[Picture, ...], private: bool) -> list[str]:
    shown = [f"![{p.caption}]({p.file})" for p in pictures if private or not p.private]
    left_out = len(pictures) - len(shown)
    return shown + ["Pictures of waveforms are left out: access to the corpus is not open."] * bool(left_out)


def page(sheet: Sheet, folder: Path) -> str:
    """The sheet as one HTML file that needs nothing else, for a screen, a phone or paper. `folder`: where its
    pictures lie.
    """
    warned = list(dict.fromkeys(line for section in sheet.sections for line in section.warnings))
    inline = partial(_inline, folder)
    return filled("sheet.html", sheet=sheet, warned=warned, plain=_plain, inline=inline)


def _inline(folder: Path, picture: Picture) -> str:
    return "data:image/png;base64," + b64encode((folder / picture.file).read_bytes()).decode()


def _plain(text: str) -> str:
    """Markdown's marks taken out of a line."""
    return text.replace("*", "").replace("`", "")


def write(sheet: Sheet) -> dict[str, Any]:
    """Print the sheet, write its folder to `out` and beside the bundle where these are given, and return the
    JSON line with the addresses, "out" and "published".
    """
    results = dict(sheet.results if sheet.line is None else sheet.line)
    print(terminal(sheet), flush=True)
    if sheet.out is None and sheet.bundle is None:
        return results
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pictures = [*sheet.pictures, *(p for section in sheet.sections for p in section.pictures)]
        for file, make in {**sheet.files, **{p.file: p.draw for p in pictures}}.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            make(folder / file)
        (folder / f"{sheet.name}.md").write_text(markdown(sheet), encoding="utf-8")
        (folder / "results.json").write_bytes(storage.json_bytes(sheet.results))
        if sheet.out is not None:
            (folder / "report.html").write_text(page(sheet, folder), encoding="utf-8")
            storage.upload(folder, sheet.out)
            results["out"] = storage.normalise(sheet.out)
            print(f"\nwritten: {results['out']}")
        if sheet.bundle is not None:
            hidden = [p for p in pictures if p.private and not sheet.open_access]
            for picture in hidden:
                (folder / picture.file).unlink()
            if hidden:
                (folder / f"{sheet.name}.md").write_text(markdown(sheet, private=False), encoding="utf-8")
                print("pictures of waveforms are not published: access to the corpus is not open")
            for path in folder.rglob("*"):
                if path.suffix not in bundles.SUFFIXES and path.is_file():
                    path.unlink()  # pages and CSV have no place beside a bundle
            results["published"] = bundles.write_evaluation(sheet.bundle, folder)
            print(f"beside the bundle: {results['published']}")
    return results
