"""What compression costs → a sheet: one table, and a sentence for each task and smaller encoder."""

# ruff: noqa: RUF001  (minus signs and dashes are meant)

from finetune.evaluation.compression import Compression, EncoderCost
from finetune.pagekit.parts import Table
from finetune.reports.figures import NAMES, lower_is_better, main_title, side, signed, with_interval
from finetune.reports.sheet import Section, Sheet

LABELS = {"original": "Original", "int8": "int8", "student": "Student"}
WORDS = {"worse": "loses", "better": "gains", "level": "cannot be told apart from the original"}


def sheet(found: Compression, out: str) -> Sheet:
    """compress.md, report.html and results.json in the folder `out`."""
    title = f"Compression of {found.bundle} (mode {found.mode})"
    section = Section(
        title=title,
        warnings=tuple(dict.fromkeys(line for loss in found.tasks for line in loss.result.warnings)),
        tables=(_table(found),),
        verdict=tuple(sentences(found)),
        facts=tuple(_facts(found)),
    )
    lead = (
        f"Mode `{found.mode}` of `{found.bundle}`, vectors of {found.dim}, on {found.corpus.source} "
        f"(`{found.corpus.uri}`). Differences: row − original; 95 % intervals over drawn subjects."
    )
    return Sheet(
        name="compress",
        title=title,
        lead=(lead,),
        sections=(section,),
        results=found.to_json() | {"out": out},
        subjects={LABELS[row.name]: f"`{row.uri}`" for row in found.rows},
        out=out,
    )


def _table(found: Compression) -> Table:
    header = ["", "ONNX, kB", "× original", "ms, one core", "× original", "cosine (p5)", "variance kept"]
    for loss in found.tasks:
        task = loss.result.task
        header += [f"{task.name}, {NAMES[task.main]}", "− original"]
    body = []
    for row in found.rows:
        line = [LABELS[row.name], *_cost(row, found.rows[0])]
        for loss in found.tasks:
            apart = loss.differences.get(row.name)
            line += [with_interval(loss.rows[row.name]), signed(apart) if apart else ""]
        body.append(line)
    return Table("", header, body)


def _cost(row: EncoderCost, original: EncoderCost) -> list[str]:
    like = row.likeness
    return [
        f"{row.bytes / 1e3:,.0f}",
        f"{row.bytes / original.bytes:.2f}",
        f"{row.latency.ms:.2f}",
        f"{row.latency.ms_ratio:.2f}",
        f"{like.cosine:.4f} ({like.cosine_p5:.4f})" if like else "",
        f"{like.kept:.1%}" if like else "",
    ]


def sentences(found: Compression) -> list[str]:
    """Of each task and smaller encoder: worse, better, or level, and what loss is still possible."""
    lines = []
    for loss in found.tasks:
        task, lower = loss.result.task, lower_is_better(loss.result.task)
        for name, apart in loss.differences.items():
            at_most = max(apart.high if lower else -apart.low, 0)
            lines.append(
                f"{task.name}: {LABELS[name]} {WORDS[side(apart, lower)]}, {main_title(task)} "
                f"{signed(apart)}; the interval allows a loss of {at_most:.2f}."
            )
    return lines


def _facts(found: Compression) -> list[str]:
    """How the figures were made, one line each."""
    compared, made = found.held_out, found.quantised
    other = next(how for how in made.tried if how != made.how)
    lines = [
        f"Latency: one window of {found.window_s:g} s at a time, one thread, medians over rows in turn; "
        "the ratio is the figure to trust, milliseconds are this machine's",
        f"Vectors compared on {compared.windows} windows of {compared.subjects} subjects that no row saw "
        f"(overlap of pretraining with the corpus: {found.overlap.kind}); variance kept counts each "
        "number of the vector alike, cosines flatter where vectors have much in common",
        f"int8 is {made.how}: kept {made.tried[made.how].kept:.1%} of the variance on validation "
        f"subjects ({other}: {made.tried[other].kept:.1%}), calibrated on {made.windows['train']} windows; "
        "static: weights int8, their inputs uint8; weights: their inputs stay float32",
    ]
    for loss in found.tasks:
        counts = loss.result.counts
        lines.append(
            f"{loss.result.task.name}: {counts.subjects} subjects, {counts.windows} windows, probes fitted "
            "for each row anew; all baselines in compare/"
        )
    return lines
