"""A search in the terminal while it runs: the best trial so far, time spent and left, and running trials."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from cluster.cli import LINE_EVERY_S, clock
from tuning.record import Record, Trial, read
from tuning.space import label

REFRESH_S = 1.0
ENDED_ROWS = 8  # finished and stopped trials shown, the best ones
MARKS = {"running": "▶", "done": "✓", "stopped": "■", "failed": "✗"}
STYLES = {"stopped": "dim", "failed": "red"}


@contextlib.contextmanager
def live(look: Callable[[], Record]) -> Iterator[None]:
    """Show the record that `look` returns on stderr while the block runs: a table on a terminal, elsewhere a
    line every ten seconds. `look` is called in another thread.
    """
    over = threading.Event()
    show = _terminal if sys.stderr.isatty() else _lines
    thread = threading.Thread(target=show, args=(look, over), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def watch(home: str, every_s: float = 2.0) -> dict[str, Any]:
    """Follow a search from another terminal until it has ended; Ctrl-C leaves it running."""
    found = [read(home)]
    with live(lambda: found[0]):
        while not found[0].result:
            time.sleep(every_s)
            found[0] = read(home)
    return {"search": found[0].home, "best": found[0].result.best}


def _lines(look: Callable[[], Record], over: threading.Event) -> None:
    printed, last = "", False
    while not last:
        last = over.wait(LINE_EVERY_S)
        line = headline(look())
        if line != printed or last:
            print(line, file=sys.stderr, flush=True)
        printed = line


def _terminal(look: Callable[[], Record], over: threading.Event) -> None:
    from rich.console import Console
    from rich.live import Live

    console, last = Console(stderr=True), False
    with Live(table(look(), console.width), console=console, auto_refresh=False) as screen:
        while not last:
            last = over.wait(REFRESH_S)
            screen.update(table(look(), console.width), refresh=True)


def headline(record: Record) -> str:
    """``lora-rank: 7/24 trials · 1 running · best val/mae 8.29 (t0003) · spent 12:40 · 20:10 left``"""
    parts = [f"{len(record.having('done', 'stopped', 'failed'))}/{record.planned} trials"]
    for state in ("running", "stopped", "failed"):
        if count := len(record.having(state)):
            parts.append(f"{count} {state}")
    best, objective = record.best(), record.search.objective[0]
    if best is not None:
        unfinished = "" if best.state == "done" else f", at step {best.step}"
        parts.append(f"best {objective.name} {label(best.at_end(objective.name))} ({best.trial}{unfinished})")
    parts.append(f"spent {clock(record.info.spent_s or 0.0)}")
    left = eta(record)
    if left is not None:
        parts.append(f"{clock(left)} left")
    return f"{record.search.name}: " + " · ".join(parts)


def eta(record: Record) -> float | None:
    """Seconds left: every trial to come costs the mean of the ended ones, a running one what is left of that,
    divided by how many run at once; no more than the budget's hours. None until one trial has ended.
    """
    ended, budget = record.having("done", "stopped"), record.search.budget
    if not ended or record.result:
        return None
    mean = sum(t.spent_s for t in ended) / len(ended)
    rest = [max(mean - t.spent_s, 0.1 * mean) for t in record.having("running")]
    to_come = max(record.planned - len(record.trials), 0)
    left = max([*rest, (sum(rest) + to_come * mean) / budget.concurrent])
    if budget.hours is None:
        return left
    return min(left, max(budget.hours * 3600 - (record.info.spent_s or 0.0), 0.0))


def table(record: Record, width: int) -> Any:
    """The headline above a table: running trials, then the best of those that ended."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    goals, best, shown = record.search.objective, record.best(), rows(record)
    header = ["", "trial", *(o.title for o in goals), "step", "spent", "values"]
    lines = []
    for trial in shown:
        step = f"{trial.step}/{trial.steps}" if trial.steps else str(trial.step)
        figures = ["" if (v := trial.at_end(o.name)) is None else label(v) for o in goals]
        last = trial.why if trial.state == "failed" else _values(record, trial)
        lines.append([MARKS[trial.state], trial.trial, *figures, step, clock(trial.spent_s), last])
    *widths, wide = (max(map(len, column)) for column in zip(header, *lines, strict=True))
    room = max(width - sum(widths) - 3 * len(header), 6)
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, (name, size) in enumerate(zip(header, [*widths, min(wide, room)], strict=True)):
        side: Any = "left" if number in (0, 1, len(widths)) else "right"
        grid.add_column(name, no_wrap=True, overflow="ellipsis", justify=side, width=size)
    for trial, line in zip(shown, lines, strict=True):
        style = "bold green" if trial is best else STYLES.get(trial.state, "")
        grid.add_row(*map(Text, line), style=style)
    return Group(Text(headline(record), no_wrap=True, overflow="ellipsis"), grid)


def rows(record: Record) -> list[Trial]:
    """Running trials, the best of those that ended, the newest failures."""
    ended = sorted(record.measured("done", "stopped"), key=lambda one: (one[1].state != "done", one[0]))
    best = [trial for _, trial in ended[:ENDED_ROWS]]
    return [*record.having("running"), *best, *record.having("failed")[-3:]]


def _values(record: Record, trial: Trial) -> str:
    """Values, by the last word of each key where those differ."""
    short = {key: key.rpartition(".")[2] for key in record.search.space}
    unique = len(set(short.values())) == len(short)
    return " ".join(f"{short.get(k, k) if unique else k}={label(v)}" for k, v in trial.values.items())
