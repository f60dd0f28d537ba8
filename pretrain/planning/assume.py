"""The assumptions of a plan, each with its source; the user can replace any of them."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import PlethoraError
from datasets.windows import WindowSpec

HERE = "here"  # this machine's CPU, measured


@dataclass(frozen=True)
class Assumption:
    """A number and its source."""

    value: float
    unit: str
    why: str


Assumptions = dict[str, Assumption]

COMMON: Assumptions = {
    "hours.row": Assumption(1.0, "h", "rows of a corpus are whole hours, shorter where signals break"),
    "accepted": Assumption(1.0, "", "share of windows that pass the gates; `index` counts the true one"),
    "compression": Assumption(0.75, "", "zstd on int16 samples, measured on BIDMC and CinC 2015"),
    "bucket.node_gb_s": Assumption(1.0, "GB/s", "read speed of one machine from a bucket"),
    "bucket.write_gb_s": Assumption(0.5, "GB/s", "write speed of a checkpoint, all ranks together"),
    "checkpoint.commit_s": Assumption(2.0, "s", "Ray Train polls for reports every 2 s"),
    "start_s": Assumption(180.0, "s", "with nodes running: Ray, imports, first blocks"),
}

GPU: Assumptions = {
    "gpu.matrix_share": Assumption(
        0.5, "", "share of peak FLOP/s in products and convolutions; not measured"
    ),
    "gpu.memory_share": Assumption(0.75, "", "share of memory bandwidth in other kernels; not measured"),
    "gpu.kernel_us": Assumption(8.0, "µs", "minimum time of a kernel launched from Python; not measured"),
    "gpu.link_share": Assumption(0.7, "", "share of link bandwidth in collectives, no overlap; not measured"),
    "gpu.reserve_gb": Assumption(1.5, "GB", "CUDA context, NCCL and cuDNN work space; not measured"),
    "gpu.fragments": Assumption(1.1, "", "bytes reserved by the allocator per byte in use; not measured"),
}

UNITS = {
    "memory_gb": "GB",
    "bf16": "TFLOP/s",
    "fp32": "TFLOP/s",
    "memory_gb_s": "GB/s",
    "node": "GPUs",
    "link_gb_s": "GB/s",
    "net_gb_s": "GB/s",
    "cores": "cores/GPU",
    "price_h": "US$/h",
}


def accelerators() -> dict[str, dict[str, float]]:
    """The accelerators of accelerators.toml, by name."""
    return tomllib.loads((Path(__file__).parent / "accelerators.toml").read_text(encoding="utf-8"))


def assumptions(accelerator: str, spec: WindowSpec, given: Sequence[str]) -> Assumptions:
    """All assumptions of a plan for `accelerator`; ``name=value`` items of `given` replace defaults.

    Errors: PlethoraError for an unknown accelerator or name, with the nearest known one.
    """
    found = dict(COMMON)
    for signal in spec.signals:
        rate = max(125.0, signal.min_rate, signal.rate if signal.modality != "ppg" else 0.0)
        why = "rate of the recordings, one channel, 16 bits per sample"
        found[f"native.{signal.modality}"] = Assumption(rate, "Hz", why)
    if accelerator == HERE:
        why = "a local Ray, imports, the first blocks"
        found["start_s"] = Assumption(30.0, "s", why)
    else:
        stored = accelerators()
        if accelerator not in stored:
            raise PlethoraError(
                f"--accelerator {accelerator}: there is {', '.join(stored)} and {HERE} (this machine's CPU)"
            )
        found |= GPU
        source = f"vendor's figure for {accelerator} (pretrain/planning/accelerators.toml)"
        for key, value in stored[accelerator].items():
            why = "price lists, round" if key == "price_h" else source
            found[f"gpu.{key}"] = Assumption(float(value), UNITS[key], why)
    for item in given:
        name, _, text = item.partition("=")
        if name not in found:
            near = difflib.get_close_matches(name, found, 1)
            hint = f", the nearest is {near[0]}" if near else ""
            raise PlethoraError(f"--assume {item}: no such assumption{hint}; the plan lists all")
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not 0 <= value < float("inf"):
            raise PlethoraError(
                f"--assume {item}: give a number from 0 on, as in {name}={found[name].value:g}"
            )
        found[name] = Assumption(value, found[name].unit, "given")
    return found
