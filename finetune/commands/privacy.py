"""bundle + corpus → privacy card: how often a vector finds its subject again, and how much of the waveform
decoders recover from it.
"""

from dataclasses import dataclass

from cluster.errors import PlethoraError
from cluster.session import session
from datasets.index import build
from datasets.schema import open_corpus
from datasets.windows import WindowSpec
from finetune.encoders.opening import opened
from finetune.evaluation import privacy
from finetune.evaluation.people import seen_by
from finetune.reports import privacy_report
from finetune.reports.sheet import Sheet

WINDOW_S = 30.0  # longest default window: a third of a short recording should hold several


@dataclass(frozen=True)
class Privacy:
    """`window_s`: default the encoder's, at most WINDOW_S; `gallery`: sizes as "2,5,10"; `out`: a folder to
    write to as well; `publish`: write beside the bundle.
    """

    bundle: str
    corpus: str
    mode: str | None = None
    window_s: float | None = None
    gallery: str | None = None
    out: str | None = None
    publish: bool = True
    allow_overlap: bool = False
    folds: int = 5
    seed: int = 0


def run(options: Privacy) -> Sheet:
    """privacy.md and report.html, results.json and pictures."""
    sizes, window_s = gallery_sizes(options.gallery), options.window_s
    if window_s is not None and not window_s > 0:
        raise PlethoraError(f"--window-s {window_s:g}: must be above 0 seconds")
    encoder, source = opened(options.bundle, options.mode), open_corpus(options.corpus)
    encoder.check(source)
    width = min(encoder.window_s, WINDOW_S) if window_s is None else window_s
    encoder.pieces(width)  # refuses windows under its minimum
    seen = seen_by([encoder], source, options.allow_overlap)
    with session(actors=2):
        index = build(source, WindowSpec(signals=encoder.signals, window_s=width))
    found = privacy.outcome(encoder, index, seen, sizes, options.folds, options.seed)
    return privacy_report.card(found, options.out, encoder.published if options.publish else None)


def gallery_sizes(text: str | None) -> list[int]:
    """``"2,5,10"`` → sorted sizes; none for None."""
    if text is None:
        return []
    try:
        sizes = sorted({int(part) for part in text.split(",")})
    except ValueError:
        sizes = []
    if not sizes or sizes[0] < 2:
        raise PlethoraError(f"--gallery {text}: must be whole numbers of 2 or more, as in 2,5,10")
    return sizes
