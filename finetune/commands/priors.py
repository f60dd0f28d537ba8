"""What SIGMA's priors and masks do with windows of arrhythmia: prior values of patches, and what the masks
hide, in two classes of windows (true arrhythmia alarms against false ones).

SIGMA (arXiv 2601.21031) hides patches by a prior: height and skewness of a clean pulse. An arrhythmia's
patches are not clean pulses; whether the prior takes them for artefacts is measured here.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster.errors import PlethoraError
from cluster.session import session
from datasets.schema import open_corpus
from finetune.encoders.bundle import BundleEncoder
from finetune.evaluation.choose import choose_windows, place
from finetune.evaluation.priors import Patches, by_label, event_patches, measured, summary
from finetune.evaluation.priors import Priors as Found
from finetune.evaluation.results import CorpusInfo, EncoderInfo
from finetune.reports import priors_report
from finetune.reports.sheet import Sheet
from finetune.task import Task, load_task
from finetune.task import classes as class_names

CHUNK = 64


@dataclass(frozen=True)
class Priors:
    """`task`: two classes of windows. Where its windows end at one second of a record, the last `window_s` of
    them are the event, and SIGMA's longer window ends there; else all of a window is. `by`: a label of whole
    records (the kind of alarm) to tell apart. `draws`: masks of each window.
    """

    bundle: str
    corpus: str
    out: str
    task: str = "alarm_truth"
    by: str | None = None
    draws: int = 64
    seed: int = 0


def run(options: Priors) -> Sheet:
    """Subjects that pretraining saw count, too: nothing is predicted here. PlethoraError: the bundle is not
    of SIGMA's masked stage.
    """
    task, source, encoder = (
        load_task(options.task),
        open_corpus(options.corpus),
        BundleEncoder(options.bundle),
    )
    recipe, modules = open_masked(options.bundle)
    config = recipe.config
    wide = widened(task, config.window_s)
    labels = source.labels([*task.labels, *([options.by] if options.by else [])])
    names = class_names(labels, wide)
    with session(actors=2):
        places = place(source, {"sigma": encoder}, wide)
    windows = choose_windows(places, wide, labels)
    parts = []
    for low in range(0, len(windows.rows), CHUNK):
        x = places.views["sigma"].load(windows.rows[low : low + CHUNK])[encoder.modality]
        parts.append(measured(x, recipe, modules, options.draws, options.seed + low))
    patches = Patches(
        np.concatenate([part.prior for part in parts]),
        {mask: np.concatenate([part.hidden[mask] for part in parts]) for mask in parts[0].hidden},
    )
    patch_s = config.patch / config.rate
    event = event_patches(task, patches.prior.shape[1], patch_s)
    by = None
    if options.by:
        by = by_label(source, options.by, patches, windows, event, names, options.seed)
    found = Found(
        bundle=EncoderInfo(encoder.bundle.uri, encoder.mode, encoder.dim),
        corpus=CorpusInfo(source.uri, source.hash, name=source.manifest["name"]),
        task=task,
        classes=tuple(names),
        patch_s=patch_s,
        window_s=config.window_s,
        event_patches=int(event.sum()),
        alpha=config.alpha,
        draws=options.draws,
        refused=windows.refused,
        summary=summary(patches, windows, event, names, options.seed),
        by=by,
    )
    return priors_report.sheet(found, patches, windows, event, options.out)


def open_masked(bundle: str) -> tuple[Any, dict[str, Any]]:
    """The recipe of SIGMA's masked stage and its trained modules."""
    from pretrain.recipes.sigma import Masked
    from pretrain.trained import open_modules

    found, recipe, modules = open_modules(bundle)
    if not isinstance(recipe, Masked):
        raise PlethoraError(
            f"{bundle} is of {found.config['run']['recipe']}: priors are SIGMA's; give a bundle of its "
            "masked stage"
        )
    return recipe, modules


def widened(task: Task, window_s: float) -> Task:
    """The task over SIGMA's windows. PlethoraError: it is not binary, or they do not fit in its records."""
    if task.kind != "binary":
        raise PlethoraError(f"task {task.name} is {task.kind}: priors are told apart in two classes (binary)")
    if task.until_s is not None and task.until_s < window_s:
        raise PlethoraError(
            f"task {task.name} ends at {task.until_s:g} s of a record, SIGMA's windows are {window_s:g} s: "
            "give a bundle with shorter ones"
        )
    return task.model_copy(update={"window_s": window_s, "short_s": None})
