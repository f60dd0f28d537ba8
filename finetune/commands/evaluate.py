"""bundle + corpus + task → one table: the encoder beside four baselines, on subjects it never saw."""

from dataclasses import dataclass, field

from datasets.schema import open_corpus
from finetune.encoders.opening import opened
from finetune.evaluation.entrant import Entrant
from finetune.evaluation.options import Options
from finetune.evaluation.study import study
from finetune.reports import comparison
from finetune.reports.sheet import Sheet
from finetune.task import load_task


@dataclass(frozen=True)
class Evaluate:
    """`out`: a folder to write to as well; `publish`: write beside the bundle."""

    bundle: str
    corpus: str
    task: str
    out: str | None = None
    mode: str | None = None
    publish: bool = True
    how: Options = field(default_factory=Options)


def run(options: Evaluate) -> Sheet:
    """report.md and report.html, results.json, tables, predictions and pictures."""
    task, encoder = load_task(options.task), opened(options.bundle, options.mode)
    source = open_corpus(options.corpus)
    entrant = Entrant(encoder, "encoder", "This encoder", "untrained", "Same encoder, untrained")
    (outcome,) = study([entrant], source, [task], options.how)
    bundle = encoder.published if options.publish else None
    return comparison.of_one(outcome, entrant.info, options.out, bundle)
