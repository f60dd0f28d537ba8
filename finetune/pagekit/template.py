"""A page that needs nothing else: a Jinja template with its style sheet inside."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

TEMPLATES = Path(__file__).parent / "templates"


def filled(template: str, folder: Path | None = None, styles: Sequence[str] = (), **given: Any) -> str:
    """A template of `folder`, or of ours, with what it is given, our style sheet and `folder`'s `styles`."""
    import jinja2

    folders = [*([folder] if folder else []), TEMPLATES]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folders),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    sheets = [TEMPLATES / "report.css", *((folder or TEMPLATES) / name for name in styles)]
    style = Markup("\n".join(sheet.read_text(encoding="utf-8") for sheet in sheets))
    return environment.get_template(template).render(style=style, minus=minus, **given)


def minus(text: str) -> str:
    """Hyphens before digits as the minus signs that they stand for."""
    return re.sub(r"(?<![\w.])-(?=\d)", "−", text)  # noqa: RUF001
