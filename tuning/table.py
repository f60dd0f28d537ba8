"""A search in the terminal while it runs: best so far, time left, time spent, and every trial at work."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from cluster.cli import LINE_EVERY_S, clock
from tuning.parallel import text
from tuning.record import Record, Trial, read

REFRESH_S = 1.0
ENDED_ROWS = 8  # finished and stopped trials shown, the best ones
MARKS = {"running": "▶", "done": "✓", "stopped": "■", "failed": "✗"}


@contextlib.contextmanager
def live(look: Callable[[], Record]) -> Iterator[None]:
    """Show the record that `look` gives, on stderr, while the block runs: a table on a terminal, elsewhere a
    line every ten seconds. `look` is called in a thread of its own.
    """
    over = threading.Event()
    show = _terminal if sys.stderr.isatty() else _lines
    watcher = threading.Thread(target=show, args=(look, over), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def watch(home: str, every_s: float = 2.0) -> dict[str, Any]:
    """Follow a search from another terminal until it has ended (Ctrl-C leaves it alone)."""
    found = [read(home)]
    with live(lambda: found[0]):
        while not found[0].result:
            time.sleep(every_s)
            found[0] = read(home)
    return {"search": found[0].home, "best": found[0].result.best}


def _lines(look: Callable[[], Record], over: threading.Event) -> None:
    said = ""
    while True:
        last = over.wait(LINE_EVERY_S)
        line = headline(look())
        if line != said or last:
            print(line, file=sys.stderr, flush=True)
        said = line
        if last:
            return


def _terminal(look: Callable[[], Record], over: threading.Event) -> None:
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True)
    with Live(table(look(), console.width), console=console, auto_refresh=False) as screen:
        while True:
            last = over.wait(REFRESH_S)
            screen.update(table(look(), console.width), refresh=True)
            if last:
                return


def headline(record: Record) -> str:
    """``lora-rank: 7/24 trials · 1 running · best val/mae 8.29 (t0003) · spent 12:40 · 20:10 left``"""
    over = len(record.having("done", "stopped", "failed"))
    planned = record.search.trials_planned or record.search.budget.get("trials")
    parts = [f"{over}/{planned} trials" if planned else f"{over} trials"]
    for state in ("running", "stopped", "failed"):
        if count := len(record.having(state)):
            parts.append(f"{count} {state}")
    best, objective = record.best(), record.search.objective[0]
    if best is not None:
        unfinished = "" if best.state == "done" else f", at step {best.step}"
        parts.append(f"best {objective.name} {text(best.at_end(objective.name))} ({best.trial}{unfinished})")
    parts.append(f"spent {clock(record.search.spent_s or 0.0)}")
    left = eta(record)
    if left is not None:
        parts.append(f"{clock(left)} left")
    return f"{record.search.name}: " + " · ".join(parts)


def eta(record: Record) -> float | None:
    """Seconds left: what a trial cost on average so far for those to come, what is left of that for those
    at work, over as many as run at once; no more than the budget's hours. None until one trial has ended.
    """
    ended = record.having("done", "stopped")
    planned = record.search.trials_planned or record.search.budget.get("trials")
    if not ended or not planned or record.result:
        return None
    mean = sum(t.spent_s for t in ended) / len(ended)
    rest = [max(mean - t.spent_s, 0.1 * mean) for t in record.having("running")]
    to_come = max(planned - len(record.trials), 0)
    at_once = record.search.budget.get("concurrent") or 1
    left = max([*rest, (sum(rest) + to_come * mean) / at_once])
    hours = record.search.budget.get("hours")
    return min(left, max(hours * 3600 - (record.search.spent_s or 0.0), 0.0)) if hours else left


def table(record: Record, width: int) -> Any:
    """The headline above a table: trials at work, then the best of those that ended."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    goals = record.search.objective
    best = record.best()
    header = ["", "trial", *(o.title for o in goals), "step", "spent", "values"]
    lines = []
    for trial in rows(record):
        step = f"{trial.step}/{trial.steps}" if trial.steps else str(trial.step)
        told = trial.why if trial.state == "failed" else _values(record, trial)
        figures = ["" if (v := trial.at_end(o.name)) is None else text(v) for o in goals]
        lines.append([MARKS[trial.state], trial.trial, *figures, step, clock(trial.spent_s), told])
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    widths = [max(len(line[number]) for line in [header, *lines]) for number in range(len(header))]
    room = max(width - sum(widths[:-1]) - 3 * len(header), 6)
    for number, (name, wide) in enumerate(zip(header, widths, strict=True)):
        side: Any = "left" if number in (0, 1, len(header) - 1) else "right"
        grid.add_column(
            name,
            no_wrap=True,
            overflow="ellipsis",
            justify=side,
            width=min(wide, room) if name == "values" else wide,
        )
    for trial, line in zip(rows(record), lines, strict=True):
        look = {"stopped": "dim", "failed": "red"}.get(trial.state, "")
        grid.add_row(*map(Text, line), style="bold green" if trial is best else look)
    return Group(Text(headline(record), no_wrap=True, overflow="ellipsis"), grid)


def rows(record: Record) -> list[Trial]:
    """Trials at work, the best of those that ended, the newest failures."""
    first = record.search.objective[0]
    told = [t for t in record.having("done", "stopped") if t.at_end(first.name) is not None]
    told.sort(key=lambda t: (t.state != "done", first.sign * (t.at_end(first.name) or 0.0)))
    return [*record.having("running"), *told[:ENDED_ROWS], *record.having("failed")[-3:]]


def _values(record: Record, trial: Trial) -> str:
    """Values, by the last word of each key where those differ."""
    short = {key: key.rpartition(".")[2] for key in record.search.space}
    clear = len(set(short.values())) == len(short)
    return " ".join(f"{short[k] if clear and k in short else k}={text(v)}" for k, v in trial.values.items())
