"""What all commands share: exit codes, one-line errors, the JSON line, the progress display."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from cluster import redact
from cluster.errors import user_message

LINE_EVERY_S = 10.0


def entry(main: Callable[[list[str]], dict | None]) -> NoReturn:
    """Run a command's `main(argv)` and exit: 0 done, 1 failed, 2 bad usage, 130 interrupted.

    With ``--json`` in the arguments (before a ``--``), the last line on stdout is the dict that `main`
    returns. A key ``"ok": False`` in it means that the command worked and the answer is no: exit 1. A number
    ``"exit_code"`` is the code of a command that ran elsewhere, and becomes ours.
    """
    argv = sys.argv[1:]
    redact.install()
    try:
        result = main(argv)
        if "--json" in (argv[: argv.index("--")] if "--" in argv else argv):
            print(json.dumps(plain(result or {}), sort_keys=True))
        sys.stdout.flush()
    except KeyboardInterrupt:
        _say("interrupted")
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output (head, less) went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        message = user_message(error)
        if message is None:
            _say(redact.lines("".join(traceback.format_exception(error)).rstrip("\n")))
        else:
            _say(f"error: {message}")
        sys.exit(1)
    sys.exit((result or {}).get("exit_code") or (1 if result and result.get("ok") is False else 0))


def _say(line: str) -> None:
    sys.stdout.flush()
    print(line, file=sys.stderr, flush=True)


def plain(value: Any) -> Any:
    """`value` as plain JSON: NumPy types unwrapped, NaN and infinities null, other types as text."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in (sorted(value) if isinstance(value, set | frozenset) else value)]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    return str(value)


def clock(seconds: float) -> str:
    """A duration in seconds for people: ``42s``, ``3:07``, ``1:02:09``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def shown_text(shown: dict[str, Any]) -> str:
    """``loss 0.123 · wait 3%`` from {"loss": 0.1234, "wait": "3%"}."""
    parts = [
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in shown.items()
    ]
    return " · ".join(parts)


def _size() -> dict[str, Any]:
    """tqdm's settings for the terminal; on one of size 0 by 0 (docker exec, script) tqdm prints nothing."""
    try:
        size = os.get_terminal_size(sys.stderr.fileno())
    except (OSError, ValueError):
        return {"ncols": 100, "nrows": 24}
    return (
        {"dynamic_ncols": True}
        if size.columns and size.lines
        else {"ncols": size.columns or 100, "nrows": 24}
    )


class Progress:
    """A progress bar on a terminal, elsewhere a line every ten seconds on stderr; both show the time left."""

    def __init__(self, total: int | None, label: str, unit: str) -> None:
        self.total, self.label, self.unit = total, label, unit
        self.done = 0
        self.first = 0
        self.note = ""
        self._shown: dict[str, Any] = {}
        self._started = self._last = time.monotonic()
        self._printed = -1
        self._bar: Any = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            layout = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {unit} "
            layout += "[{elapsed}<{remaining}{postfix}]"
            self._bar = tqdm(
                total=total,
                desc=label,
                unit=unit,
                file=sys.stderr,
                **_size(),
                bar_format=layout if total else None,
                smoothing=0.1,
            )

    def update(self, n: int = 1, **shown: Any) -> None:
        """Count `n` more units; `shown`: further values to print (loss, wait)."""
        self.set(self.done + n, **shown)

    def set(self, done: int, **shown: Any) -> None:
        """Set the number of finished units."""
        step, self.done = done - self.done, done
        self._shown.update(shown)
        if self._bar is not None:
            self._bar.set_postfix_str(self._text(), refresh=False)
            self._bar.update(step)
            self._bar.refresh()
        elif time.monotonic() - self._last >= LINE_EVERY_S:
            self._line()

    def begin(self, done: int) -> None:
        """Start the clock with `done` units already finished: neither counts for the time left."""
        self.done = self.first = done
        self.note = ""
        self._started = time.monotonic()
        if self._bar is not None:
            self._bar.initial = self._bar.n = self._bar.last_print_n = done
            self._bar.start_t = self._bar.last_print_t = self._bar._time()
            self._bar.refresh()

    def _text(self) -> str:
        return self.note or shown_text(self._shown)

    def close(self) -> None:
        """Leave the last state on the terminal."""
        if self._bar is not None:
            self._bar.close()
        elif self.done != self._printed:
            self._line()

    def _line(self) -> None:
        self._last, self._printed = time.monotonic(), self.done
        spent = self._last - self._started
        fresh = self.done - self.first
        parts = [f"{self.done:,}/{self.total:,} {self.unit}" if self.total else f"{self.done:,} {self.unit}"]
        if self.total:
            parts[0] += f" ({100 * self.done / self.total:.0f}%)"
        if self.total and self.done < self.total and fresh:
            parts.append(f"{clock(spent / fresh * (self.total - self.done))} left")
        else:
            parts.append(f"{clock(spent)}")
        if self._text():
            parts.append(self._text())
        print(f"{self.label}: " + " · ".join(parts), file=sys.stderr, flush=True)


@contextlib.contextmanager
def progress(total: int | None, label: str, unit: str) -> Iterator[Progress]:
    """Show progress: ``with progress(100, "ingest", "records") as bar: bar.update(1, rejected=3)``."""
    bar = Progress(total, label, unit)
    try:
        yield bar
    finally:
        bar.close()
