"""One task's result → a section of a sheet: main table, verdict, how it was made."""

# ruff: noqa: RUF001  (minus signs, dashes and Greek letters are meant)

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from finetune.evaluation import heads
from finetune.evaluation.results import Overlap, TaskResult
from finetune.evaluation.table import Outcome
from finetune.pagekit.parts import Table
from finetune.reports import panels, parts
from finetune.reports.figures import (
    NAMES,
    listed,
    lower_is_better,
    main_title,
    metric_cell,
    metric_name,
    number,
    p_cell,
    p_text,
    reasons,
    side,
    signed,
    sizes,
    with_interval,
)
from finetune.reports.forest import forests
from finetune.reports.sheet import Picture, Section

SPOKEN = {
    "untrained": "the same encoder untrained",
    "handcrafted": "handcrafted features",
    "tracker": "the spectral tracker",
    "demographics": "demographics alone",
    "demographics + handcrafted": "demographics with handcrafted features",
    "encoder + demographics": "itself with demographics",
    "encoder, k-NN": "its own nearest neighbours",
    "encoder, forest": "a forest on its own vectors",
    "encoder, mlp": "a small network on its own vectors",
    "encoder, lora": "its own network with low-rank adapters",
    "encoder, full": "its own network, fine-tuned",
    "encoder, scratch": "the same network trained from scratch",
    "handcrafted, forest": "a forest on handcrafted features",
    "handcrafted, mlp": "a small network on handcrafted features",
    "mean": "predicting the mean",
}
HEAD_LINES = {
    "k-NN": "*k-NN*: the nearest neighbours by distance of standardised vectors, their number by inner "
    "folds.",
    "forest": f"*forest*: {heads.TREES} extremely randomised trees on the same vectors, the fewest rows in a "
    "leaf by inner folds.",
    "mlp": f"*mlp*: a network with {heads.WIDTH} hidden units on the same vectors, stopped by a fifth of the "
    "training subjects, its weight decay by inner folds.",
    "lora": "*LoRA*: low-rank adapters are trained with a linear head, stopped by a fifth of the training "
    "subjects, their rank by a third of them.",
    "full": "*fine-tuned*: all weights are trained with a linear head, stopped by a fifth of the training "
    "subjects, the rate by a third of them.",
    "scratch": "*trained from scratch*: as *fine-tuned*, from the weights before pretraining.",
}


def section(outcome: Outcome, pictures: tuple[Picture, ...] = ()) -> Section:
    """`of_result` with its pictures, those of the page and the PNGs beside the sheet."""
    return replace(of_result(outcome.result), pictures=pictures, groups=partial(panels.groups, outcome))


def of_result(result: TaskResult) -> Section:
    """Tables, verdict and facts."""
    return Section(
        title=result.task.title,
        key=result.task.name,
        about=_about(result),
        warnings=result.warnings,
        tables=(main_table(result), *parts.extras(result)),
        verdict=result.verdict,
        facts=tuple(facts(result)),
        explained=tuple(_explained(result)),
        own=tuple(result.labels[name] for name in result.encoders),
        forests=forests(result, {encoder: rivals(result, encoder) for encoder in result.encoders}),
    )


def _about(result: TaskResult) -> str:
    task, counts = result.task, result.counts
    values = f"{counts.windows} windows of {task.window_s:g} s"
    if result.level != "window":
        values += f", pooled to one value a {result.level}"
    what = f"{task.kind.capitalize()} of {task.label or 'subjects'}"
    return f"{what}: {counts.subjects} subjects, {values}"


def main_table(result: TaskResult) -> Table:
    """A row's metrics; of one encoder the paired difference to every row and its p, of several each
    encoder's difference to its untrained self and to handcrafted features.
    """
    task, main, alone = result.task, result.task.main, len(result.encoders) == 1
    rest = [m for m in task.metrics if m != main]
    header = ["", main_title(task), *(metric_name(m, task) for m in rest)]
    header += [f"encoder − row, {NAMES[main]}", "p"] if alone else ["− untrained", "− handcrafted"]
    body = []
    for row in result.rows:
        line = [row.label, with_interval(row.metrics.get(main))]
        line += [metric_cell(m, row.metrics) for m in rest]
        if alone:
            found = result.differences[result.encoders[0]].get(row.name)
            line += [signed(found), p_cell(found.p)] if found else ["", ""]
        else:
            apart = result.differences.get(row.name, {})
            pairs = [apart.get(other) for other in (f"{row.name}, untrained", "handcrafted")]
            line += [signed(found) if found else "" for found in pairs]
        body.append(line)
    notes = tuple(f"{row.label}: {row.note}" for row in result.rows if row.note)
    return Table(task.title, header, body, notes)


# ---------------------------------------------------------------- verdict


def verdicts(result: TaskResult) -> tuple[str, ...]:
    """Claims, made only where the whole interval of a difference is on one side: of one encoder a sentence a
    row, of several a sentence an encoder.
    """
    return tuple(_alone(result) if len(result.encoders) == 1 else _several(result))


def _alone(result: TaskResult) -> list[str]:
    task, encoder = result.task, result.encoders[0]
    lower, name = lower_is_better(task), NAMES[task.main]
    value = result.row(encoder).metrics[task.main].value
    lines = []
    for row in result.rows:
        if row.name == encoder:
            continue
        other, difference = spoken(row.name, result), result.differences[encoder].get(row.name)
        if difference is None:
            lines.append(f"Not compared with {other}: {row.note}.")
            continue
        unit = f" {task.unit}" if task.unit and lower else ""
        figures = (
            f"{name} {number(value)} against {number(row.metrics[task.main].value)}{unit}, difference "
            f"{signed(difference)}, {p_text(difference.p)}"
        )
        how = {
            "better": f"The encoder beats {other} ({figures}).",
            "worse": f"The encoder does not beat {other}: it is worse ({figures}).",
            "level": f"The encoder does not beat {other}: they cannot be told apart ({figures}).",
        }
        lines.append(how[side(difference, lower)])
    return lines


def _several(result: TaskResult) -> list[str]:
    words = {"better": "beats", "level": "cannot be told apart from", "worse": "is worse than"}
    lower, lines = lower_is_better(result.task), []
    for encoder in result.encoders:
        groups: dict[str, list[str]] = {how: [] for how in words}
        for other in rivals(result, encoder):
            its_own = other == f"{encoder}, untrained"
            called = "its untrained self" if its_own else spoken(other, result)
            groups[side(result.differences[encoder][other], lower)].append(called)
        claims = [f"{words[how]} {listed(rows)}" for how, rows in groups.items() if rows]
        lines.append(f"{result.labels[encoder]} {'; '.join(claims)}.")
    return lines


def rivals(result: TaskResult, encoder: str) -> list[str]:
    """Rows that an encoder is compared with in words and pictures: other encoders, its untrained self and the
    baselines.
    """
    shown = {"untrained", f"{encoder}, untrained", *parts.telling(result)}
    return [name for name in result.differences[encoder] if name in shown]


def spoken(name: str, result: TaskResult) -> str:
    """A row as a sentence calls it."""
    if name == "mean" and result.counts.classes:
        return "predicting the prevalence"
    return SPOKEN.get(name, result.labels.get(name, name))


# ---------------------------------------------------------------- how it was made


def facts(result: TaskResult) -> list[str]:
    """Counts, refusals, folds, overlap; one line each."""
    task, counts = result.task, result.counts
    source = f", from {result.corpus.source} ({result.corpus.uri})" if result.corpus else ""
    lines = [sizes(counts, task) + source]
    if task.until_s is not None:
        lines.append(f"One window a record, the {task.window_s:g} s before {task.until_s:g} s")
    if counts.classes:
        lines.append("Classes: " + ", ".join(f"{n} {name}" for name, n in counts.classes.items()))
    lines += [f"Windows refused: {reasons(result.refused)}", *result.adapted]
    if result.level != "window":
        lines.append(_pooling(result))
    lines += [_folds(result), f"Intervals: 95 %, {result.protocol.draws:,} bootstrap draws of whole subjects"]
    if result.pieces > 1 and not result.adapted:
        lines.append(
            f"Each window is cut into {result.pieces} that fit the encoder; their vectors are averaged"
        )
    if result.overlap is not None:
        lines += overlap_lines(result.overlap)
    if len(result.encoders) > 1:
        refusals = [f"{name} {_refusals(why)}" for name, why in result.refused_by.items()]
        held = f"Of {result.placed} windows that hold every encoder's signals"
        lines.append(f"{held}, refused by: {'; '.join(refusals)}")
    return lines


def _refusals(why: Mapping[str, int]) -> str:
    return f"{sum(why.values())}" + (f" ({reasons(why)})" if why else "")


def _pooling(result: TaskResult) -> str:
    counts = result.counts
    of = "of the mean of its windows' vectors"
    if result.task.pool == "predictions":
        of = "the mean of its windows' predictions"
    line = f"One prediction a {result.level}, {of}: {counts.rows or counts.windows}"
    if counts.readings:
        few, most = counts.readings.fewest, counts.readings.most
        line += f"; readings of a subject: {few}" + (f" to {most}" if most > few else "")
    return line


def _of_classes(result: TaskResult) -> bool:
    return bool(result.counts.classes) or result.counts.labels is not None


def _folds(result: TaskResult) -> str:
    counts, protocol = result.counts, result.protocol
    if counts.gallery is not None:
        return f"A gallery of {counts.gallery} subjects; {counts.left_out} could not be enrolled and asked"
    chosen = "logistic regression's C" if _of_classes(result) else "ridge α"
    if protocol.split:
        return f"One split, given by {protocol.split}; {chosen} by inner subject-disjoint folds"
    folds = f"{protocol.folds} folds, no subject on both sides; {chosen} by inner subject-disjoint folds"
    if protocol.folds < (protocol.folds_asked or 0):
        few = f"there are only {counts.subjects} subjects"
        if counts.classes:
            few = "the rarest class has too few subjects"
        folds += f" ({protocol.folds_asked} folds were asked for: {few})"
    return folds


def overlap_lines(overlap: Overlap, what: str = "Overlap with pretraining") -> list[str]:
    """Whom pretraining saw, and what became of them (a warning of every table says where they were kept)."""
    line = f"{what}: {overlap.kind.upper() if overlap.kind == 'unknown' else overlap.kind}"
    line += f" ({'; '.join(overlap.why)})" if overlap.why else ""
    left = overlap.left_out
    if left is not None and left.subjects:
        line += f"; left out as seen: {left.subjects} subjects, {left.windows} windows"
    return [line]


def _explained(result: TaskResult) -> list[str]:
    """What rows and columns mean."""
    labels, protocol = result.labels, result.protocol
    if result.task.kind == "retrieval":
        lines = ["A window is compared with the mean of each subject's enrolled windows; nothing is trained."]
    else:
        probe = "LogisticRegression" if _of_classes(result) else "Ridge"
        lines = [
            f"Every row but the last is StandardScaler → {probe} on frozen vectors where nothing else is "
            "said, with the same folds; predictions are out of fold."
        ]
    if _of_classes(result):
        lines.append(
            "Windows are ranked by the log-odds of the prediction over those of the prevalence in the fold's "
            "training part; above 0 counts as positive (balanced accuracy, F1). AUPRC is to be read against "
            "the prevalence."
        )
    lines += [line for head, line in HEAD_LINES.items() if any(n.endswith(f", {head}") for n in labels)]
    if any(" + " in name for name in labels):
        lines.append(
            "*+ demographics*, *+ handcrafted*: one linear probe on the columns of both; inner folds choose "
            "how much a vector's column counts beside a demographic one."
        )
    if any("(given predictions)" in label for label in labels.values()):
        lines.append("*Given predictions*: another model's, out of sample, from a file.")
    if "tracker" in labels:
        lines.append(
            "*Spectral tracker*: rates straight from the signal, with nothing learnt "
            "(finetune/evaluation/tracker.py). It looks at the record's other windows, before and after."
        )
    return [
        *lines,
        "*Untrained*: the network of config.json with the weights that its training began with.",
        f"*Handcrafted*: {len(protocol.handcrafted or ())} features of rate, beat timing, morphology, "
        "spectrum and breathing (finetune/evaluation/features.py); inner folds choose among the rate "
        "features, rate and timing, and all.",
        f"*Demographics*: {', '.join(protocol.demographics or ()) or 'none in this corpus'}.",
        "Differences are paired: the same drawn subjects for both rows; p is the bootstrap's, two-sided.",
        "`results.json` has every figure, `predictions.parquet` every prediction.",
    ]
