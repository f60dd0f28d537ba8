"""stream.actors = "auto": the number of transform actors that keep a worker busy."""

from __future__ import annotations

import math

from pretrain.config import RunConfig

USUAL = "h100"  # if the driver sees no known accelerator: the fastest of the common ones


def with_actors(run: RunConfig) -> RunConfig:
    """`run` with a number for stream.actors. "auto" becomes 1 for a worker without a GPU. For one with a GPU,
    it becomes the number of actors that read (and, if actors do so, prepare) windows as fast as the plan's
    roofline says that a step consumes them."""
    if run.stream.actors != "auto":
        return run
    count = _on_a_gpu(run) if run.resources.gpu else 1
    return run.model_copy(update={"stream": run.stream.model_copy(update={"actors": count})})


def needed(windows_s: float, a_core_s: float, lanes: int) -> int:
    """Actors for a worker that consumes `windows_s` windows per second, when one core supplies `a_core_s`. At
    most one actor per lane."""
    return max(1, min(math.ceil(windows_s / a_core_s), lanes))


def _on_a_gpu(run: RunConfig) -> int:
    from pretrain.planning import local
    from pretrain.planning.assume import assumptions
    from pretrain.planning.probe import probe
    from pretrain.planning.rehearse import rehearsal
    from pretrain.planning.speed import step_time

    recipe = rehearsal(run)
    spec = recipe.windows()
    given = assumptions(kind(), spec, ())
    bf16 = run.engine.precision in ("bf16-autocast", "auto")
    workers, stage = run.most, run.engine.zero_stage
    step = step_time(probe(recipe, bf16, workers), given, bf16, stage, workers, run.micro, run.accumulation)
    native = {s.modality: given[f"native.{s.modality}"].value for s in spec.signals}
    a_core = local.actor_rate(spec, native, run.stream.sends_raw("cuda", spec), run.stream.materialised)
    return needed(run.batch / workers / step.total, a_core, run.stream.lanes // workers)


def kind() -> str:
    """This machine's accelerator as named in accelerators.toml; `USUAL` if it is not listed there."""
    import torch

    from pretrain.planning.assume import accelerators

    name = torch.cuda.get_device_name(0).lower() if torch.cuda.is_available() else ""
    known = [k for k in accelerators() if all(part in name for part in k.split("-"))]
    return max(known, key=len, default=USUAL)
