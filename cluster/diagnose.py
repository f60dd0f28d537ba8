"""Finds a run's bottleneck: reads its telemetry, splits its time into phases and lists the evidence."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cluster import storage
from cluster.cli import clock
from cluster.errors import PlethoraError
from cluster.telemetry import JSONL

WORTH = 0.15  # a phase other than compute is the bottleneck from this share of the time on
SLOWER = 0.2  # loss of speed between the first and the last third that is reported
QUIET_S = 600.0  # maximum silence of a run that is not complete
_ADVICE = {
    "data": "more transform actors (stream.actors) on nodes with free cores, prepared windows instead of raw "
    "ones (python -m pretrain materialize), or a store nearer to the nodes",
    "exchange": "more windows between exchanges (a larger batch, micro_batch as it is), engine.zero_stage 0 "
    "or 1, a faster network, or fewer workers",
    "straggle": "find the slow node (Ray's dashboard, its log lines by rank): other programs on it, a slower "
    "accelerator; or leave it out",
    "checkpoint": "checkpoint more rarely: checkpoint_every",
    "validation": "validate more rarely or on fewer windows: validate_every, validate_windows",
    "compute": "the workers compute: more or faster accelerators, bf16 (engine.precision), a larger "
    "micro_batch if memory is left",
}
_NAMES = {"exchange": "communication", "straggle": "communication"}


@dataclass(frozen=True)
class Diagnosis:
    """A run's time. `shares`: of the steady time (from each start's first batch on), by phase; `bottleneck`:
    data, compute, communication, checkpoint or validation; `evidence`: one fact per line."""

    uri: str
    state: str  # "complete", "running" or "silent"
    step: int
    seconds: float
    windows_per_s: float
    shares: dict[str, float]
    bottleneck: str
    phase: str
    evidence: tuple[str, ...]
    advice: str


def diagnose(uri: str) -> Diagnosis:
    """The bottleneck of the run at `uri`, ``<storage>/<name>``. PlethoraError: it has no telemetry, or none
    that says where the time went."""
    home = storage.normalise(uri)
    lines = _read(home)
    timed = [line for line in lines if "train/interval_s" in line]
    if not timed:
        raise PlethoraError(
            f"{home}: its telemetry does not say where time went ({len(lines)} lines): "
            "wait for log_every steps, or run it again with this version"
        )
    shares, seconds = _shares(timed)
    phase = _bottleneck(shares)
    windows = sum(_of(line, "train/windows_per_s") * _of(line, "train/interval_s") for line in timed)
    whole = sum(_of(line, "train/interval_s") for line in timed)
    state, quiet = _state(home, lines)
    return Diagnosis(
        uri=home,
        state=state,
        step=int(lines[-1]["step"]),
        seconds=whole,
        windows_per_s=windows / whole if whole else 0.0,
        shares=shares,
        bottleneck=_NAMES.get(phase, phase),
        phase=phase,
        evidence=tuple(_evidence(timed, lines, shares, seconds, phase, quiet)),
        advice=_advice(phase, shares, lines),
    )


def _read(home: str) -> list[dict[str, Any]]:
    where = storage.join(home, "telemetry", JSONL)
    if not storage.exists(where):
        raise PlethoraError(f"{home}: no run with telemetry is there: give <storage>/<name> of a run")
    lines = []
    for text in storage.read_bytes(where).splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue  # the last line of a run that is writing it, or was killed
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            lines.append(line)
    if not lines:
        raise PlethoraError(f"{home}: the run has reported nothing yet: try again after log_every steps")
    return lines


def _of(line: Mapping[str, Any], name: str) -> float:
    value = line.get(name)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else 0.0


def _shares(timed: Sequence[dict[str, Any]]) -> tuple[dict[str, float], float]:
    """(share of the steady time by phase, the steady seconds)."""
    phases = sorted({key.removeprefix("train/time/") for line in timed for key in line if "/time/" in key})
    spent = {
        phase: sum(_of(line, f"train/time/{phase}") * _of(line, "train/interval_s") for line in timed)
        for phase in phases
        if phase != "start"
    }
    steady = sum(spent.values())
    return {phase: value / steady if steady else 0.0 for phase, value in spent.items()}, steady


def _bottleneck(shares: Mapping[str, float]) -> str:
    """The largest phase other than compute if it is large enough, else compute."""
    phase = max((p for p in shares if p != "compute"), key=lambda p: shares[p], default="compute")
    return phase if shares.get(phase, 0.0) >= WORTH else "compute"


def _evidence(
    timed: Sequence[dict[str, Any]],
    lines: Sequence[dict[str, Any]],
    shares: Mapping[str, float],
    steady: float,
    phase: str,
    quiet: str,
) -> list[str]:
    out = [f"{len(timed)} intervals over {clock(steady)} of steady training"]
    by_interval = [_shares([line])[0].get(phase, 0.0) for line in timed]
    worst = max(range(len(timed)), key=by_interval.__getitem__)
    out.append(
        f"{phase} took {shares.get(phase, 0.0):.0%} of the time, at most {by_interval[worst]:.0%} of the "
        f"interval that ended at step {timed[worst]['step']}"
    )
    mean = statistics.fmean(_of(line, "train/data_wait") for line in timed)
    most = statistics.fmean(_of(line, "train/data_wait_max") for line in timed)
    if most > 2 * mean and most > 0.05:
        out.append(f"one worker waits {most:.0%} of its time for data, all workers on average {mean:.0%}")
    saved = [_of(line, "train/checkpoint_seconds") for line in lines if "train/checkpoint_seconds" in line]
    if saved:
        out.append(f"{len(saved)} checkpoints, {statistics.median(saved):.2f} s each (median)")
    if shares.get("exchange", 0.0) > 0.02:
        out.append(
            "communication is an upper bound: a timed message, scaled to the gradients' bytes, as if "
            "nothing of it overlapped with the backward pass"
        )
    speeds = [_of(line, "train/windows_per_s") for line in timed if not _of(line, "train/time/start")]
    third = len(speeds) // 3
    if third:
        first, last = statistics.median(speeds[:third]), statistics.median(speeds[-third:])
        if last < (1 - SLOWER) * first:
            out.append(f"it slowed down: {first:,.1f} windows a second in the first third, {last:,.1f} now")
    starts = [line for line in timed if _of(line, "train/time/start")]
    wasted = [_of(line, "train/time/start") * _of(line, "train/interval_s") for line in starts]
    if starts:
        times = "once" if len(starts) == 1 else f"{len(starts)} times"
        out.append(f"started {times}, {clock(sum(wasted))} in all before the first batch")
    skipped = _of(timed[-1], "train/skipped_steps")
    if skipped:
        out.append(f"{skipped:.0f} steps were skipped: a loss or gradient was not finite")
    return [*out, quiet] if quiet else out


def _state(home: str, lines: Sequence[dict[str, Any]]) -> tuple[str, str]:
    """(state, a line about silence or "")."""
    if storage.exists(storage.join(home, "bundle", "_COMPLETE")):
        return "complete", ""
    silent = time.time() - _of(lines[-1], "time")
    if silent < QUIET_S:
        return "running", ""
    return (
        "silent",
        f"not complete, and silent for {clock(silent)}: check its job and its workers",
    )


def _advice(phase: str, shares: Mapping[str, float], lines: Sequence[dict[str, Any]]) -> str:
    if phase != "checkpoint":
        return _ADVICE[phase]
    at = [line["step"] for line in lines if "train/checkpoint_seconds" in line]
    if len(at) < 2:
        return _ADVICE[phase]
    every = at[1] - at[0]
    share = shares[phase]
    wanted = math.ceil(every * (share / (1 - share)) / 0.05 * 0.95) if share < 1 else 100 * every
    return f"{_ADVICE[phase]}, from every {every} to every {wanted} steps for 5 % of the time"


def lines(found: Diagnosis) -> list[str]:
    """A diagnosis as text for people."""
    parts = sorted(found.shares.items(), key=lambda item: -item[1])
    return [
        f"run         {found.uri}: {found.state}, step {found.step}, {found.windows_per_s:,.1f} windows/s",
        "time        " + ", ".join(f"{name} {share:.0%}" for name, share in parts),
        f"bottleneck  {found.bottleneck}" + (f" ({found.phase})" if found.phase != found.bottleneck else ""),
        *(f"            {line}" for line in found.evidence),
        f"what helps  {found.advice}",
    ]


def as_dict(found: Diagnosis) -> dict[str, Any]:
    """A diagnosis for the JSON line."""
    return asdict(found)
