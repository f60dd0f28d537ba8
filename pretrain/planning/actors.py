"""stream.actors = "auto": how many transform actors keep a worker busy."""

from __future__ import annotations

import math

from pretrain.config import RunConfig

USUAL = "h100"  # where the driver sees no accelerator that is known: the fastest of the common ones


def with_actors(run: RunConfig) -> RunConfig:
    """`run` with a number for stream.actors: what is automatic is one for a worker without a GPU, and for one
    with a GPU as many as read, and prepare where actors do, what its step takes by the plan's roofline."""
    if run.stream.actors != "auto":
        return run
    count = _on_a_gpu(run) if run.resources.gpu else 1
    return run.model_copy(update={"stream": run.stream.model_copy(update={"actors": count})})


def needed(windows_s: float, a_core_s: float, lanes: int) -> int:
    """Actors for a worker that takes `windows_s` windows a second, where a core gives `a_core_s`; each needs
    a lane of its own."""
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
    a_core = local.actor_rate(spec, native, run.stream.sends_raw("cuda"), run.stream.materialised)
    return needed(run.batch / workers / step.total, a_core, run.stream.lanes // workers)


def kind() -> str:
    """The accelerator of this machine, as accelerators.toml calls it; `USUAL` where it is none of them."""
    import torch

    from pretrain.planning.assume import accelerators

    name = torch.cuda.get_device_name(0).lower() if torch.cuda.is_available() else ""
    known = [k for k in accelerators() if all(part in name for part in k.split("-"))]
    return max(known, key=len, default=USUAL)
