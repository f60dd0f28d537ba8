"""Commands: exit codes, one-line errors, the JSON line, what progress looks like."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster import cli
from cluster.errors import PlethoraError, user_message

ROOT = Path(cli.__file__).parents[1]


def _run(body: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = f"""
import sys
from cluster.cli import entry
from cluster.errors import PlethoraError
def main(argv):
{body}
entry(main)
"""
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_a_users_mistake_is_one_line_and_exit_1() -> None:
    done = _run("    raise PlethoraError('corpus: no such\\nfile: make it')")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "error: corpus: no such file: make it\n")


def test_a_mistake_deep_in_a_chain_is_the_line_that_is_shown() -> None:
    body = (
        "    try: raise PlethoraError('x: bad')\n    except Exception as error: raise KeyError(1) from error"
    )
    done = _run(body)
    assert (done.returncode, done.stderr) == (1, "error: x: bad\n")


def test_a_bug_shows_its_traceback_and_exits_1() -> None:
    done = _run("    raise KeyError('bug')")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_what_a_file_says_moves_no_cursor_in_a_table_a_log_or_a_traceback() -> None:
    body = "    import logging; logging.warning('log \\x1b]0;t\\x07 µ')\n"
    body += "    print('table \\x1b[2J\\x9b \\u202e é')\n"
    body += "    print('\\rcolour \\x1b[31mred\\x1b[0m up \\x1b[A')\n    raise ValueError('bug \\x1b[2J')"
    done = _run(body)
    assert done.returncode == 1 and "table \ufffd[2J\ufffd \ufffd é" in done.stdout
    assert "log \ufffd]0;t\ufffd µ" in done.stderr and "ValueError: bug \ufffd[2J" in done.stderr
    assert "colour \x1b[31mred\x1b[0m up \x1b[A" in done.stdout  # what a progress display writes


def test_bad_usage_exits_2_and_an_interrupt_130() -> None:
    usage = _run("    import argparse; argparse.ArgumentParser().parse_args(argv)", "--what")
    assert usage.returncode == 2
    stopped = _run("    raise KeyboardInterrupt")
    assert (stopped.returncode, stopped.stderr) == (130, "interrupted\n")


def test_json_is_the_last_line_on_stdout_and_valid_whatever_was_measured() -> None:
    body = "    import numpy as np; print('table')\n"
    body += "    return {'b': float('nan'), 'a': np.float32(1.5), 'c': np.arange(2)}"
    done = _run(body, "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout.splitlines()[-1]) == {"a": 1.5, "b": None, "c": [0, 1]}
    assert _run(body).stdout == "table\n"


def test_an_answer_of_no_exits_1() -> None:
    done = _run("    return {'ok': False}", "--json")
    assert (done.returncode, json.loads(done.stdout)) == (1, {"ok": False})


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    script = (
        "from cluster.cli import entry\nentry(lambda argv: [print('x' * 99) for _ in range(99999)] and None)"
    )
    done = subprocess.run(
        f'{sys.executable} -c "{script}" | head -1',
        shell=True,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""


def test_plain_makes_json_of_numpy_sets_and_paths() -> None:
    given = {1: np.float64("inf"), "s": {"b", "a"}, "p": Path("/x"), "t": (np.int64(3), None, True)}
    assert cli.plain(given) == {"1": None, "s": ["a", "b"], "p": "/x", "t": [3, None, True]}


def test_clock_reads_as_people_do() -> None:
    assert [cli.clock(s) for s in (0.4, 42, 187, 3729)] == ["0s", "42s", "3:07", "1:02:09"]


def test_progress_without_a_terminal_is_a_line_now_and_then_with_the_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with cli.progress(100, "ingest", "records") as bar:
        for _ in range(100):
            now[0] += 0.25
            bar.update(1, rejected=3, loss=0.123456)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "ingest: 40/100 records (40%) · 15s left · rejected 3 · loss 0.1235",
        "ingest: 80/100 records (80%) · 5s left · rejected 3 · loss 0.1235",
        "ingest: 100/100 records (100%) · 25s · rejected 3 · loss 0.1235",
    ]


def test_progress_that_begins_in_the_middle_counts_only_its_own_steps_for_the_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with cli.progress(100, "train", "steps") as bar:
        now[0] = 5.0
        bar.begin(50)
        now[0] = 15.0
        bar.set(60)
    assert capsys.readouterr().err.splitlines()[0] == "train: 60/100 steps (60%) · 40s left"


@pytest.mark.parametrize("size", [(24, 100), (0, 0)])
def test_progress_on_a_terminal_of_any_size_is_a_bar(size: tuple[int, int]) -> None:
    import fcntl
    import struct
    import termios

    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
    script = (
        "from cluster.cli import progress\n"
        "with progress(4, 'demo', 'steps') as bar:\n"
        "    for i in range(4): bar.update(1, loss=0.5)\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, stderr=follower, check=True)
    os.close(follower)
    shown = os.read(leader, 65536).decode()
    os.close(leader)
    assert "demo: 100%|" in shown
    assert "4/4 steps" in shown
    assert "loss 0.5" in shown


def test_a_mistake_in_a_ray_task_comes_back_as_its_own_line(ray_session: Any) -> None:
    @ray_session.remote
    def fails() -> None:
        raise PlethoraError("shard 3: truncated: fetch it again")

    with pytest.raises(Exception) as caught:
        ray_session.get(fails.remote())
    assert user_message(caught.value) == "shard 3: truncated: fetch it again"


def test_a_mistake_in_a_ray_data_transform_comes_back_as_its_own_line(ray_session: Any) -> None:
    import ray.data

    def fails(batch: dict[str, Any]) -> dict[str, Any]:
        raise PlethoraError("row 7: no rate: name it in the descriptor")

    with pytest.raises(Exception) as caught:
        ray.data.from_items([1, 2]).map_batches(fails).materialize()
    assert user_message(caught.value) == "row 7: no rate: name it in the descriptor"


def test_an_error_without_a_users_mistake_has_no_user_message() -> None:
    assert user_message(ValueError("a PlethoraError is mentioned only")) is None
