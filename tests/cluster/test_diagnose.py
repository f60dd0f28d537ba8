"""A run's telemetry names what holds the run up."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from cluster.diagnose import diagnose, lines
from cluster.errors import PlethoraError

EVEN = {
    "data": 0.02,
    "compute": 0.9,
    "exchange": 0.04,
    "straggle": 0.01,
    "validation": 0.02,
    "checkpoint": 0.01,
}


def _run(folder: Path, shares: dict[str, float], intervals: int = 9, **more: Any) -> str:
    """A run's telemetry as the loop writes it: `intervals` lines of ten steps, ten seconds each."""
    told = folder / "run" / "telemetry"
    told.mkdir(parents=True)
    out = []
    for n in range(1, intervals + 1):
        line: dict[str, Any] = {"step": 10 * n, "time": time.time() - 10 * (intervals - n)}
        line |= {f"train/time/{phase}": share for phase, share in shares.items()}
        line |= {"train/interval_s": 10.0, "train/windows_per_s": 64.0, "train/data_wait": shares["data"]}
        line |= {"train/data_wait_max": shares["data"]}
        out.append(line | {name: value(n) for name, value in more.items()})
    (told / "metrics.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in out) + '{"step": 99, "cut'
    )
    return str(folder / "run")


@pytest.mark.parametrize(
    ("phase", "named"),
    [
        ("data", "data"),
        ("compute", "compute"),
        ("exchange", "communication"),
        ("straggle", "communication"),
        ("checkpoint", "checkpoint"),
        ("validation", "validation"),
    ],
)
def test_the_phase_that_takes_the_time_is_the_bottleneck(tmp_path: Path, phase: str, named: str) -> None:
    shares = EVEN | ({} if phase == "compute" else {phase: 0.5, "compute": 0.4})
    found = diagnose(_run(tmp_path, shares))
    assert (found.bottleneck, found.phase) == (named, phase)
    assert found.shares[phase] == max(found.shares.values())
    assert sum(found.shares.values()) == pytest.approx(1.0)
    assert found.windows_per_s == pytest.approx(64.0)
    assert f"bottleneck  {named}" in lines(found)[2]
    assert found.evidence and found.advice


def test_the_wait_for_the_first_batch_is_told_apart_from_waiting_for_data(tmp_path: Path) -> None:
    uri = _run(tmp_path, EVEN)
    file = Path(uri, "telemetry/metrics.jsonl")
    first, *rest = file.read_text().splitlines()
    slow = json.loads(first) | {"train/interval_s": 60.0, "train/time/start": 0.9}
    slow |= {f"train/time/{phase}": share / 10 for phase, share in EVEN.items()}
    file.write_text("\n".join([json.dumps(slow), *rest]))
    found = diagnose(uri)
    assert found.bottleneck == "compute"
    assert found.shares["compute"] == pytest.approx(0.9)
    assert any("started once, 54s in all before the first batch" in line for line in found.evidence)


def test_evidence_names_a_run_that_slows_down_a_worker_that_waits_and_skipped_steps(tmp_path: Path) -> None:
    uri = _run(
        tmp_path,
        EVEN,
        **{
            "train/windows_per_s": lambda n: 100.0 if n < 5 else 50.0,
            "train/data_wait_max": lambda n: 0.3,
            "train/skipped_steps": lambda n: 3.0,
        },
    )
    said = " · ".join(diagnose(uri).evidence)
    assert "100.0 windows a second in the first third, 50.0 now" in said
    assert "one worker waits 30% of its time for data, all workers on average 2%" in said
    assert "3 steps were skipped" in said


def test_advice_for_checkpoints_says_how_rarely_for_a_twentieth_of_the_time(tmp_path: Path) -> None:
    shares = EVEN | {"checkpoint": 0.5, "compute": 0.41}
    saved = {"train/checkpoint_seconds": lambda n: 5.0}
    total = sum(shares.values())
    found = diagnose(_run(tmp_path, {k: v / total for k, v in shares.items()}, **saved))
    # a checkpoint of 5 s every 10 steps that take 5 s: 95 s of training between two make it 5 %
    assert "from every 10 to every 190 steps" in found.advice
    assert "9 checkpoints, 5.00 s each (median)" in " · ".join(found.evidence)


def test_a_run_that_says_no_more_is_silent_and_a_published_one_complete(tmp_path: Path) -> None:
    uri = _run(tmp_path, EVEN, time=lambda n: time.time() - 3600)
    found = diagnose(uri)
    assert found.state == "silent"
    assert "silent for 1:00:00" in found.evidence[-1]
    Path(uri, "bundle").mkdir()
    Path(uri, "bundle", "_COMPLETE").touch()
    assert diagnose(uri).state == "complete"


def test_a_place_without_telemetry_or_without_times_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(PlethoraError, match="no run with telemetry is there"):
        diagnose(str(tmp_path))
    uri = _run(tmp_path, EVEN)
    Path(uri, "telemetry/metrics.jsonl").write_text('{"step": 1, "train/loss/net": 0.5}\n')
    with pytest.raises(PlethoraError, match="does not say where time went"):
        diagnose(uri)


def test_the_command_prints_the_diagnosis_and_returns_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from cluster.__main__ import main

    told = main(["doctor", "--run", _run(tmp_path, EVEN | {"data": 0.4})])
    assert told is not None and told["bottleneck"] == "data"
    assert "bottleneck  data" in capsys.readouterr().out
