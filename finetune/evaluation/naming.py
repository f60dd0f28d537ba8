"""Which rows a table has, what they are called, and which of them may be missing."""

from collections.abc import Mapping, Sequence

import numpy as np

from finetune import metrics
from finetune.evaluation.entrant import Entrant
from finetune.evaluation.given import named
from finetune.evaluation.options import NETWORK_HEADS, VECTOR_HEADS
from finetune.evaluation.results import Row
from finetune.evaluation.rows import NEAREST
from finetune.task import Task

Drawn = Mapping[str, Mapping[str, np.ndarray]]  # {row: {metric: (1 + draws,)}}
Notes = Mapping[str, str]  # {row: why it has no figures, or what they lack}

BENT = (NEAREST, *VECTOR_HEADS)  # heads that read in vectors what no straight line does
# after a name: rows made of a row
OWN_ONLY = (*(f", {head}" for head in (*BENT, *NETWORK_HEADS)), " + demographics")
HOW = {"lora": "LoRA", "full": "fine-tuned", "scratch": "trained from scratch"}

BASELINES = {
    "handcrafted": "Handcrafted features",
    "tracker": "Spectral tracker",
    "demographics": "Demographics only",
    "demographics + handcrafted": "Demographics + handcrafted",
    "mean": "Predict the mean",
}


def note_handcrafted(vectors: dict[str, np.ndarray], notes: dict[str, str]) -> None:
    """Where the windows hold no PPG there is no such row; where some lack it, the table says how many."""
    if "handcrafted" not in vectors:
        notes["handcrafted"] = "the corpus has no ppg"
        return
    absent = int(np.isnan(vectors["handcrafted"]).all(axis=1).sum())
    if absent == len(vectors["handcrafted"]):
        notes["handcrafted"] = "no window holds ppg"
        del vectors["handcrafted"]
    elif absent:
        notes["handcrafted"] = f"{absent} windows hold no usable ppg; they get the training median"


def row_labels(
    entrants: Sequence[Entrant],
    predictions: Sequence[str],
    classed: bool,
    task: Task,
    heads: Sequence[str] = (),
) -> dict[str, str]:
    """{row: what it is called}, in the order of the table; the baselines last."""
    labels = {e.name: e.label for e in entrants} | {e.twin: e.twin_label for e in entrants}
    if task.kind != "retrieval":
        for how in (NEAREST, *heads):
            labels |= {f"{e.name}, {how}": f"{e.label}, {HOW.get(how, how)}" for e in entrants}
        labels |= {f"{e.name} + demographics": f"{e.label} + demographics" for e in entrants}
    labels |= {row: f"{row} (given predictions)" for row in named(predictions)}
    for name, label in BASELINES.items():
        labels[name] = label
        if name == "handcrafted" and task.kind != "retrieval":
            labels |= {f"{name}, {head}": f"{label}, {head}" for head in heads if head in VECTOR_HEADS}
    if task.kind == "retrieval":
        return {n: v for n, v in labels.items() if "demographics" not in n} | {"mean": "A guess"}
    return labels | ({"mean": "Predict the prevalence"} if classed else {})


def table_rows(labels: Mapping[str, str], drawn: Drawn, notes: Notes) -> tuple[Row, ...]:
    """Rows with intervals, in the order of `labels`; those that have no figures with the reason. Optional
    ones (other heads, + demographics) without figures or a reason are left out.
    """
    return tuple(
        Row(name, label, metrics.each_interval(drawn.get(name, {})), notes.get(name, ""))
        for name, label in labels.items()
        if name in drawn or name in notes or not _optional(name)
    )


def _optional(name: str) -> bool:
    return name.endswith(OWN_ONLY) or name in ("demographics + handcrafted", "tracker")
