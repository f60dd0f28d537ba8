"""How much of a GPU a training step of SIGMA and AnyPPG uses, on a machine that has nothing but torch.

Of the checkout it imports networks and the plan's meter, which need torch alone. Matrix products and memory
are measured first, on the same device; the rest is held against them. Rows of a network: our step as its
engine runs it, our step with compiled blocks, and a plain torch step of the same shape, compiled whole.
Rounds alternate, best of rounds.

    windows/s   of one device; projected: device-hours of the paper's whole run at that rate
    MFU         model FLOPs (tests/benchmarks/flops.py) over the vendor's peak (elsewhere: the measured one)
    roofline    the MFU of the eager step's kernels if each ran at the measured rates
    waits       of the host within a step, norms aside (torch.cuda.set_sync_debug_mode)

    python -m tests.benchmarks.gpu [--nets pro large anyppg] [--device cuda] [--quick] [--no-compile]
"""

from __future__ import annotations

import argparse
import resource
import time
import tomllib
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F

from pretrain.layers import Block
from pretrain.planning.meter import Meter
from tests.benchmarks import flops
from tests.benchmarks.gpu_steps import (
    BLOCKS,
    FILTERS,
    PAIRS,
    SIGMA,
    Anyppg,
    DropPath,
    PlainAnyppg,
    PlainSigma,
    Sigma,
    Step,
)
from tests.benchmarks.table import ROOT, show

HOURS = {"sigma": 120_000 * 80, "anyppg": 109_909 * 5}  # of signal, over all epochs of the papers
GOALS = {"pro": 0.25, "large": 0.40}  # MFU
QUICK = {"dim": 32, "depth": 2, "heads": 4, "channels": 8, "batch": 4, "teacher": 16, "codes": 64}
PATHS = {0: "math", 1: "flash", 2: "efficient", 3: "cudnn"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nets", nargs="+", choices=(*SIGMA, "anyppg"), default=["pro", "large", "anyppg"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="tiny networks, to see that it runs")
    parser.add_argument("--batch", type=int, help="windows a backward pass; default: the run files'")
    parser.add_argument("--steps", type=int, default=5, help="a round")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="default: on a GPU")
    given = parser.parse_args()
    device = torch.device(given.device)
    if device.type == "cpu" and not given.quick:
        parser.error("no GPU here: --quick tries it with tiny networks")
    compiled = device.type == "cuda" if given.compile is None else given.compile
    if given.quick:
        given.steps, given.rounds = 1, 1
    if compiled:
        torch._dynamo.config.recompile_limit = 64
    size, mib, tries = (256, 16, 2) if given.quick or device.type == "cpu" else (8192, 1024, 10)
    matmul, memory = flops.peak_matmul(device, size, tries), flops.peak_copy(device, mib, tries)
    peak = vendor(device) or matmul
    print(
        f"{name_of(device)}: bf16 product of {size} x {size} {matmul / 1e12:.4g} TFLOP/s, copies "
        f"{memory / 1e9:.4g} GB/s; MFU against {peak / 1e12:.4g} TFLOP/s; torch {torch.__version__}"
    )
    rows: list[dict[str, Any]] = []
    checks: dict[str, bool] = {}
    for name in given.nets:
        found = measure(name, given, device, compiled, (peak, matmul, memory))
        rows += found
        if device.type == "cuda" and not given.quick:
            ours = max(found[:-1], key=lambda row: row["windows/s"])
            if compiled:
                checks[f"{name}: at least 0.9 of the compiled plain step"] = ours["of plain"] >= 0.9
            checks[f"{name}: the host does not wait within a step"] = found[0]["waits"] == 0
            if name in GOALS:
                checks[f"{name}: MFU of at least {GOALS[name]:.0%}"] = ours["MFU %"] >= 100 * GOALS[name]
    show(f"gpu ({name_of(device)}{', tiny networks' * given.quick})", rows, checks)


def measure(
    name: str, given: argparse.Namespace, device: torch.device, compiled: bool, rates: tuple[float, ...]
) -> list[dict[str, Any]]:
    """The rows of one network. Each kind of step is alone on the device while its memory is taken."""
    ours, plain, model_flops, path = kinds(name, given, device)
    made: dict[str, tuple[Step, float]] = {}
    kinds_ = {"ours": lambda: ours(False), "ours, fused AdamW": lambda: ours(True)}
    if compiled:
        kinds_["ours, compiled blocks, fused AdamW"] = lambda: compile_blocks(ours(True))
    kinds_["plain torch" + ", compiled" * compiled] = lambda: compile_whole(plain(), compiled)
    for kind, make in kinds_.items():
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
        step = make()
        for number in range(2):  # compiles, chooses kernels, makes the optimizer's state
            step.run(number)
        flops.wait(device)
        made[kind] = step, peak_gib(device, before)
    waits = host_waits(made["ours"][0], device)
    bound = roofline(made["ours"][0], rates)

    best = dict.fromkeys(made, 0.0)
    for round_ in range(given.rounds):
        for kind, (step, _) in made.items():
            flops.wait(device)
            began = time.perf_counter()
            for number in range(given.steps):
                step.run(round_ * given.steps + number)
            flops.wait(device)
            speed = given.steps * step.batch / (time.perf_counter() - began)
            best[kind] = max(best[kind], speed)
    *_, last = best
    share = 100 * model_flops / rates[0]
    window_s, hours = made[last][0].window_s, HOURS["anyppg" if name == "anyppg" else "sigma"]
    return [
        {
            "net": name,
            "step": kind,
            "batch": step.batch,
            "windows/s": best[kind],
            "MFU %": share * best[kind],
            "roofline %": share * bound,
            "GiB": gib,
            "of plain": best[kind] / best[last],
            "attention": path,
            "waits": waits if kind == "ours" else "",
            "projected h": hours * 3600 / window_s / best[kind] / 3600,
        }
        for kind, (step, gib) in made.items()
    ]


def kinds(
    name: str, given: argparse.Namespace, device: torch.device
) -> tuple[Callable[[bool], Step], Callable[[], Step], float, str]:
    """(our step, fused AdamW or not; the plain one; FLOPs of a window; which attention kernel)."""
    if name == "anyppg":
        filters, blocks = ((64, 80), (1, 1)) if given.quick else (FILTERS, BLOCKS)
        pairs = given.batch or (8 if given.quick else PAIRS)
        return (
            lambda fused: Anyppg(pairs, device, filters, blocks, fused=fused),
            lambda: PlainAnyppg(pairs, device, filters, blocks),
            flops.anyppg(pairs, filters, blocks)[1],
            "",
        )
    shape = replace(SIGMA[name], **QUICK) if given.quick else SIGMA[name]
    shape = replace(shape, batch=given.batch or shape.batch)
    return (
        lambda fused: Sigma(shape, device, fused),
        lambda: PlainSigma(shape, device),
        flops.sigma(shape)[1],
        attention(shape.heads, shape.dim // shape.heads, shape.patches + 1, shape.drop, device),
    )


def attention(heads: int, width: int, tokens: int, drop: float, device: torch.device) -> str:
    """Which kernel scaled_dot_product_attention takes for what the student gives it."""
    q = torch.zeros(1, heads, tokens, width, device=device, dtype=torch.bfloat16, requires_grad=True)
    if device.type == "cuda":  # torch pads to a multiple of 8 before it asks
        q = F.pad(q, (0, -width % 8))
    return PATHS[torch._fused_sdp_choice(q, q, q, None, drop, False)]


def compile_blocks(step: Step) -> Step:
    """Each transformer block, or the whole of a network that has none, in place."""
    for module in step.modules.values():
        blocks = [m for m in module.modules() if isinstance(m, Block)]
        for block in blocks:
            block.drop_path = DropPath(block.drop_path.p).to(step.device)  # type: ignore[assignment]
        for part in blocks or [module]:
            part.compile(dynamic=False)
    return step


def compile_whole(step: Step, compiled: bool) -> Step:
    for module in step.modules.values() if compiled else ():
        module.compile(dynamic=False)
    return step


def host_waits(step: Step, device: torch.device) -> int | str:
    """How often the host waits in a step whose norms nobody reads."""
    if device.type != "cuda":
        return "n/a"
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step.run(0, read=False)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(w.message) for w in told)


def roofline(step: Step, rates: tuple[float, ...]) -> float:
    """Windows a second of the step's own kernels, each the slower of its arithmetic and its bytes at the
    measured rates (Williams, Waterman, Patterson 2009)."""
    with Meter() as meter:
        step.run(0)
    return step.batch / sum(max(count / rates[1], moved / rates[2]) for count, moved in meter.kernels)


def peak_gib(device: torch.device, before: int) -> float:
    if device.type == "cuda":
        return (torch.cuda.max_memory_allocated(device) - before) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # of the process so far


def name_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def vendor(device: torch.device) -> float | None:
    """The vendor's peak of dense bfloat16, FLOP/s, where the plan knows the device."""
    known = tomllib.loads((ROOT / "pretrain/planning/accelerators.toml").read_text())
    for key, about in known.items():
        if key.split("-")[0].upper() in name_of(device).upper().replace("-", " ").split():
            return about["bf16"] * 1e12
    return None


if __name__ == "__main__":
    main()
