"""One signal from another: a bundle's decoder beside the true signal and three references."""

from dataclasses import dataclass

from cluster.session import session
from datasets.index import build
from datasets.schema import open_corpus
from datasets.windows import WindowSpec
from finetune.evaluation import reconstruction
from finetune.evaluation.people import seen_by
from finetune.reports import reconstruct_report
from finetune.reports.sheet import Sheet
from finetune.translator import Translator


@dataclass(frozen=True)
class Reconstruct:
    """`input`: a corpus with both signals, or an .npz with `source`; `windows`: of a corpus, at most; `folds`
    and `seed`: of its references; `out`: a folder.
    """

    bundle: str
    input: str
    source: str
    target: str
    out: str
    windows: int = 2000
    allow_overlap: bool = False
    folds: int = 5
    seed: int = 0


def run(options: Reconstruct) -> Sheet:
    """A corpus gives a table beside three references (fitted on other subjects), pictures, and
    rebuilt.parquet; an .npz gives rebuilt.npz, and the same figures without references where it holds
    `target` as well.
    """
    translator = Translator(options.bundle, options.source, options.target)
    if options.input.endswith(".npz"):
        arrays = reconstruction.of_arrays(translator, options.input)
        return reconstruct_report.of_arrays(arrays, options.out)
    corpus = open_corpus(options.input)
    seen = seen_by([translator.bundle], corpus, options.allow_overlap)
    signals = (translator.source.signal, translator.target.signal)
    with session(actors=2):
        index = build(corpus, WindowSpec(signals=signals, window_s=translator.window_s))
    found = reconstruction.of_corpus(translator, index, seen, options.windows, options.folds, options.seed)
    return reconstruct_report.of_corpus(found, options.out)
