"""Figures as text: numbers, intervals, differences, p-values, names of metrics."""

# ruff: noqa: RUF001  (minus signs and dashes are meant)

from collections.abc import Mapping

from finetune.evaluation.results import Counts, Metrics
from finetune.metrics import Difference, Interval
from finetune.task import Task

NAMES = {
    "mae": "MAE",
    "rmse": "RMSE",
    "r2": "R²",
    "pearson": "Pearson",
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "balanced_accuracy": "bal. acc.",
    "f1": "F1",
    "rank1": "rank-1",
    "rank5": "rank-5",
}


def number(value: float | None) -> str:
    """Three significant digits at most; a dash for what does not exist."""
    if value is None or value != value:
        return "–"
    value = round(value, 2) + 0.0  # no minus before a zero
    return f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}"


def with_interval(found: Interval | None) -> str:
    """``2.31 [1.90, 2.75]``."""
    if found is None or found.value != found.value:
        return "–"
    return f"{number(found.value)} [{number(found.low)}, {number(found.high)}]"


def signed(found: Interval | Difference) -> str:
    """``+0.31 [-0.10, +0.75]``."""
    return f"{found.value:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"


def main_title(task: Task) -> str:
    """The main metric's name, with its unit."""
    return NAMES[task.main] + (f", {task.unit}" if task.main == "mae" else "")


def lower_is_better(task: Task) -> bool:
    return task.main == "mae"


def direction(task: Task) -> str:
    """ "lower is better", or "higher"."""
    return f"{'lower' if lower_is_better(task) else 'higher'} is better"


def side(difference: Interval | Difference, lower: bool) -> str:
    """ "better", "worse" or "level": better and worse only where the whole interval is on one side."""
    low, high = difference.low, difference.high
    if (high < 0) if lower else (low > 0):
        return "better"
    return "worse" if ((low > 0) if lower else (high < 0)) else "level"


def p_text(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def p_cell(p: float) -> str:
    return p_text(p).removeprefix("p ").removeprefix("= ")


def metric_name(metric: str, task: Task) -> str:
    return NAMES.get(metric, metric) + (f", {task.unit}" if metric == "rmse" else "")


def metric_cell(metric: str, found: Metrics) -> str:
    """RMSE and AUPRC with their interval, others as a number: a table must stay narrow."""
    shown = found.get(metric)
    if metric in ("rmse", "auprc"):
        return with_interval(shown)
    return number(None if shown is None else shown.value)


def listed(names: list[str]) -> str:
    """``a, b and c``."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def sizes(counts: Counts, task: Task) -> str:
    """``12 subjects, 12 records, 96 windows of 30 s``."""
    windows = f"{counts.windows} windows of {task.window_s:g} s"
    return f"{counts.subjects} subjects, {counts.records} records, {windows}"


def reasons(counts: Mapping[str, int] | None) -> str:
    """``no label 3, flat 2``; ``none`` where there are none."""
    return ", ".join(f"{reason} {count}" for reason, count in (counts or {}).items()) or "none"
