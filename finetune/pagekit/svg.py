"""matplotlib figures → SVG inside a page: colours are the page's, so light, dark and print agree."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from typing import Any

from markupsafe import Markup, escape

INK, MID, RULE = "#1b1f24", "#6e7781", "#c9d1d9"
SERIES = ("#1f5fbf", "#0b7a75", "#7a3fb5", "#b3325f", "#4f6d12", "#5a5a5a")  # encoders, in their order
HANDCRAFTED, PEOPLE, BOTH = "#b35c00", "#3d7a3a", "#8a6d00"
THEME = {
    INK: "ink",
    MID: "mid",
    RULE: "rule",
    HANDCRAFTED: "handcrafted",
    PEOPLE: "people",
    BOTH: "both",
} | {colour: f"series-{i}" for i, colour in enumerate(SERIES)}
STYLE: Any = {
    "font.size": 8.5,
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": RULE,
    "axes.linewidth": 0.8,
    "axes.labelcolor": MID,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MID,
    "ytick.labelcolor": MID,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "lines.linewidth": 1.5,
    "svg.fonttype": "none",
    "text.parse_math": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}
WIDE, TALL = 3.5, 3.1  # inches; a panel is drawn once and scaled by the page


@contextmanager
def panel(columns: int = 1, wide: float = WIDE, tall: float = TALL) -> Iterator[tuple[Any, Any]]:
    """(figure, axes) in the page's style, for `inline`; axes is one, or a list of `columns`."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(wide, tall), layout="constrained")
        axes = figure.subplots(1, columns, squeeze=False)[0]
        yield figure, axes[0] if columns == 1 else list(axes)


def inline(figure: Any, label: str) -> Markup:
    """`figure` as one <svg> element without size of its own; `label` is what it says to who cannot see it and
    must differ from those of the page's other pictures. Call it inside `panel`.
    """
    import matplotlib

    out = StringIO()
    with matplotlib.rc_context({"svg.hashsalt": label}):
        figure.savefig(out, format="svg", dpi=170, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = _own_ids(text, label)
    for colour, name in THEME.items():
        text = text.replace(colour, f"var(--{name})")
    text = re.sub(r"font-family: [^;\"]*", "font-family: var(--sans)", text)
    size = re.search(r'viewBox="[^"]*"', text)
    assert size is not None  # matplotlib always writes one
    head = f'<svg {size[0]} class="chart" role="img" aria-label="{escape(label)}"'
    links = ' xmlns:xlink="http://www.w3.org/1999/xlink" xmlns="http://www.w3.org/2000/svg">'
    return Markup(head + links + text[text.index(">") + 1 :].strip())


def _own_ids(text: str, label: str) -> str:
    """Ids of one picture must not meet those of another in the same page."""
    from hashlib import sha256

    mark = "p" + sha256(label.encode()).hexdigest()[:8]
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    text = re.sub(r' id="([^"]+)"', lambda found: f' id="{mark}{found[1]}"' if found[1] in used else "", text)
    return re.sub(r'(href="#|url\(#)([^")]+)', rf"\g<1>{mark}\g<2>", text)
