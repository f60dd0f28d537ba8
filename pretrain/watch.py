"""What users see of a run: progress, metrics, and how it spends its time."""

from __future__ import annotations

import contextlib
import io
import logging
import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cluster import log, storage, telemetry
from pretrain.config import RunConfig
from pretrain.data import Data

_PHASES = ("start", "data", "validation", "checkpoint", "forward")
_PROBE_BYTES = 25 * 2**20  # DDP's bucket size, and about DeepSpeed's
_log = logging.getLogger(__name__)


class Watch:
    """Every rank times its phases; rank 0 writes telemetry and updates the driver's progress bar.

    The time since the last report is split into phases, logged as shares ``train/time/<phase>``: start (until
    the first batch arrives), data (waiting for batches, mean over workers), validation, checkpoint, exchange
    (the gradient all-reduce, estimated from a message timed at the start; an upper bound, because it overlaps
    with the backward pass), straggle (the slowest worker's forward passes minus the median), and compute (the
    rest).
    """

    def __init__(
        self, run: RunConfig, board: Any, steps: int, rank: int, start: int, tokens: int = 0
    ) -> None:
        self.board, self.steps, self.rank, self.tokens = board, steps, rank, tokens
        self.uri = storage.join(run.storage, run.name, "telemetry")
        self.writer = telemetry.Telemetry(self.uri, start_step=start + 1) if rank == 0 else None
        self.run = run
        self.spent = dict.fromkeys(_PHASES, 0.0)
        self.events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self.first = start  # steps before this process started
        self.done, self.windows, self.stepped, self.since = start, 0, 0, time.perf_counter()
        self.exchange_s = 0.0
        self.saved_s = 0.0
        self.device = torch.device("cpu")
        self.shown: dict[str, Any] = {}
        self.plots: dict[str, bytes] = {}  # the last validation's figures, PNG

    def begin(self, data: Data, modules: Mapping[str, nn.Module], device: torch.device) -> None:
        """Call before the first step, on every rank: set up the log and the gauges, and time a gradient
        all-reduce."""
        world = dist.get_world_size()
        self.device = device
        log.configure(run=self.run.name, rank=self.rank, world=world, step=self.done)
        trained = sum(p.numel() for m in modules.values() for p in m.parameters() if p.requires_grad)
        self.exchange_s = exchange_s(4 * trained, device) if world > 1 else 0.0
        _log.info("training starts", extra={"steps": self.steps, "recipe": self.run.recipe})
        if self.writer is None:
            return
        gauges = self.writer.gauges
        gauges.set("step", self.done)
        gauges.set("steps", self.steps)
        gauges.set("workers", world)
        gauges.set("checkpoint_timestamp_seconds", time.time())
        for found, uri in zip(data.indexes, self.run.corpora, strict=True):
            manifest = found.corpus.manifest
            for verdict, n in found.summary()["windows"].items():
                gauges.set("indexed_windows", n, corpus=uri, verdict=verdict)
            for modality, hours in manifest.get("counts", {}).get("hours", {}).items():
                gauges.set("kept_hours", hours, corpus=uri, modality=modality)
                refused = manifest.get("rejects", {}).get(modality) or {"none": 0.0}
                for reason, hours in refused.items():
                    gauges.set("refused_hours", hours, corpus=uri, modality=modality, reason=reason)

    @contextlib.contextmanager
    def spending(self, phase: str) -> Iterator[None]:
        """Count the time of the block as `phase`. Waiting for the first batch counts as "start"."""
        began = time.perf_counter()
        try:
            yield
        finally:
            now = time.perf_counter()
            if phase == "data" and self.done == self.first:
                self.spent["start"] = now - self.since
            else:
                self.spent[phase] += now - began
            if phase == "checkpoint":
                self.saved_s = now - began

    @contextlib.contextmanager
    def forward(self) -> Iterator[None]:
        """Time a forward pass. It waits for no other worker, so it shows how workers differ in speed. On a
        GPU, CUDA events time it without a synchronisation."""
        if self.device.type != "cuda":
            with self.spending("forward"):
                yield
            return
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        yield
        end.record()
        self.events.append((begin, end))

    def step(self, step: int, windows: int) -> None:
        """Record that step `step` is complete, over `windows` windows of all workers."""
        self.done, self.windows, self.stepped = step, self.windows + windows, self.stepped + 1
        log.at(step)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Report the metrics since the last report. Collective: every rank calls it."""
        values |= self._times()
        if log.minute():
            _log.info("step", extra={name: round(value, 6) for name, value in values.items()})
        if self.writer is None:
            return
        self.writer.scalars(step, {f"train/{n}": v for n, v in values.items()})
        self.writer.gauges.set("step", step)
        losses = {n.removeprefix("loss/"): v for n, v in values.items() if n.startswith("loss/")}
        self.shown |= losses
        self.shown |= {"data wait": f"{values['data_wait']:.0%}"}
        telemetry.put(self.board, step, self.steps, self.shown)

    def _times(self) -> dict[str, float]:
        now = time.perf_counter()
        if self.events:
            self.events[-1][1].synchronize()
            self.spent["forward"] += sum(a.elapsed_time(b) for a, b in self.events) / 1000
            self.events.clear()
        mine = torch.tensor([now - self.since, *(self.spent[p] for p in _PHASES)], device=self.device)
        every = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(every, mine)
        passed, by_rank = float(torch.stack(every)[:, 0].mean()), torch.stack(every)[:, 1:]
        mean = dict(zip(_PHASES, by_rank.mean(dim=0).tolist(), strict=True))
        most = dict(zip(_PHASES, by_rank.max(dim=0).values.tolist(), strict=True))
        usual = float(by_rank[:, _PHASES.index("forward")].median())  # with two workers: the faster one
        share = {phase: mean[phase] / passed for phase in ("start", "data", "validation", "checkpoint")}
        left = max(0.0, 1.0 - sum(share.values()))
        share["straggle"] = min(left, (most["forward"] - usual) / passed)
        share["exchange"] = min(left - share["straggle"], self.exchange_s * self.stepped / passed)
        share["compute"] = left - share["straggle"] - share["exchange"]
        speed = self.windows / passed
        out = {"windows_per_s": speed, "data_wait": share["data"], "data_wait_max": most["data"] / passed}
        out["interval_s"] = passed
        if self.tokens:
            out["tokens_per_s"] = speed * self.tokens
        self.spent = dict.fromkeys(_PHASES, 0.0)
        self.windows, self.stepped, self.since = 0, 0, now
        return out | {f"time/{phase}": value for phase, value in share.items()}

    def validated(self, step: int, values: dict[str, float], figures: Mapping[str, Any]) -> None:
        """Report the metrics of a validation and draw its plots."""
        if self.writer is None:
            return
        self.writer.scalars(step, {f"val/{n}": v for n, v in values.items()})
        losses = {n.removeprefix("loss/"): v for n, v in values.items() if n.startswith("loss/")}
        self.shown |= {f"val {name}": value for name, value in losses.items()}
        for name, draw in figures.items():
            figure, png = draw(), io.BytesIO()
            figure.savefig(png, format="png", dpi=120)
            self.plots[name] = png.getvalue()
            self.writer.figure(step, name, figure)

    def checkpointed(self, step: int) -> None:
        """Record that the checkpoint of `step` was handed over, and how long training paused for it."""
        if self.writer is not None:
            self.writer.scalars(step, {"train/checkpoint_seconds": self.saved_s})
            self.writer.gauges.set("checkpoint_timestamp_seconds", time.time())

    def skipped(self, step: int, windows: Tensor) -> None:
        """Record the window ids of a skipped step. Collective: every rank calls it."""
        ids = [torch.empty_like(windows) for _ in range(dist.get_world_size())]
        dist.all_gather(ids, windows)
        if self.rank == 0:
            named = [f"{i & (2**64 - 1):016x}" for i in torch.cat(ids).tolist()]
            where = storage.join(self.uri, f"nonfinite-{step}.json")
            storage.write_json(where, {"step": step, "windows": named})
            _log.warning("step skipped: a loss or gradient was not finite", extra={"windows": where})

    def flush(self) -> None:
        """Store all telemetry. Call it before a checkpoint, from which a resumed run continues."""
        if self.writer is not None:
            self.writer.flush()

    def close(self) -> None:
        """Log the end of training and close the writer."""
        _log.info("training ends")
        if self.writer is not None:
            telemetry.put(self.board, self.steps, self.steps, self.shown | {"now": "publishing"})
            self.writer.close()


def exchange_s(n_bytes: int, device: torch.device, tries: int = 3) -> float:
    """Seconds that an all-reduce of `n_bytes` takes, scaled from the fastest of `tries` messages. Collective:
    every rank calls it."""
    size = max(1, min(n_bytes, _PROBE_BYTES) // 4)
    message = torch.zeros(size, device=device)
    took = []
    for _ in range(tries + 1):  # the first one opens connections
        began = time.perf_counter()
        dist.all_reduce(message)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        took.append(time.perf_counter() - began)
    return min(took[1:]) * n_bytes / (4 * size)
