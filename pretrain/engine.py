"""Engines run sharded optimizer steps of a module on its scalar loss: DeepSpeed ZeRO 1-3, or plain DDP."""

import os
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cluster.errors import PlethoraError
from pretrain.config import Engine as EngineConfig
from pretrain.config import Optim
from pretrain.reshard import universal

BUFFERS = "buffers.safetensors"
BUCKET = 500_000_000  # maximum number of gradients in one DeepSpeed reduction


class Engine(Protocol):
    """Trains one module. `module`: the wrapped module, which the recipe calls."""

    module: Any

    def begin(self, last: bool) -> None:
        """Call before the forward pass of a micro-batch. `last`: it is the step's last, which reduces the
        gradients over ranks."""

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradients of one micro-batch."""

    def step(self, lr: float) -> tuple[bool, float]:
        """Clip, update, zero the gradients. Returns (applied, global gradient norm); a step with a non-finite
        norm is skipped."""

    def save(self, folder: Path) -> None:
        """Save this rank's shard of the state. Collective: every rank calls it with a separate folder."""

    def load(self, folder: Path, world: int) -> None:
        """Load from the merged folder of the `world` ranks that saved; this run may have more or fewer
        ranks."""

    def weights(self) -> dict[str, Tensor]:
        """The state dict without frozen parameters, as detached copies on the CPU. Collective: every rank
        calls it."""


def wrap(
    name: str,
    module: nn.Module,
    optim: Optim,
    config: EngineConfig,
    micro: int,
    accumulation: int,
    device: torch.device,
) -> Engine:
    """Shard `module` over the process group according to `config` (stage 0: DDP)."""
    module.to(device)
    optimizer = torch.optim.AdamW(
        parameter_groups(module, optim.weight_decay),
        lr=optim.lr,
        betas=optim.betas,
        eps=optim.eps,
        foreach=True,
    )
    if config.zero_stage == 0:
        return DDPEngine(name, module, optimizer, config, accumulation, device)
    return DeepSpeedEngine(name, module, optimizer, config, micro, accumulation, device)


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict]:
    """Parameter groups: weight decay for matrices, none for biases, norms, scales and single tokens."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    flat = [p for p in parameters if p.squeeze().ndim < 2]
    deep = [p for p in parameters if p.squeeze().ndim >= 2]
    groups = [{"params": deep, "weight_decay": weight_decay}, {"params": flat, "weight_decay": 0.0}]
    return [g for g in groups if g["params"]]


def frozen_names(module: nn.Module) -> set[str]:
    """Names of frozen parameters. Checkpoints omit them; they are loaded from their source again."""
    return {n for n, p in module.named_parameters(remove_duplicate=False) if not p.requires_grad}


def load_trained(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a state dict that may lack only frozen parameters. RuntimeError: it belongs to another module."""
    frozen = frozen_names(module)
    lacking, strange = module.load_state_dict(dict(state), strict=not frozen)
    if strange or set(lacking) - frozen:
        raise RuntimeError(f"weights of another module: lacking {lacking}, strange {strange}")


def _trained(module: nn.Module) -> dict[str, Tensor]:
    frozen = frozen_names(module)
    return {k: v for k, v in module.state_dict().items() if k not in frozen}


def bf16(config: EngineConfig, device: torch.device) -> bool:
    """Whether modules run under bfloat16 autocast."""
    return config.precision == "bf16-autocast" or (config.precision == "auto" and device.type == "cuda")


class _Buffers:
    """Copies of the buffers that a forward pass or the loop updates (batch statistics, codebooks), restored
    when a step is skipped: otherwise one batch of NaN would stay in a moving average for ever."""

    def __init__(self, module: nn.Module) -> None:
        self.live = list(module.buffers())
        self.kept = [b.detach().clone() for b in self.live]

    @torch.no_grad()  # a library's buffer may require gradients: the codebook's does
    def settle(self, applied: bool) -> None:
        source, target = (self.live, self.kept) if applied else (self.kept, self.live)
        for a, b in zip(source, target, strict=True):
            b.copy_(a)


class DeepSpeedEngine:
    """ZeRO stage 1, 2 or 3. DeepSpeed does the accumulation, the clipping and the non-finite check."""

    def __init__(
        self,
        name: str,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: EngineConfig,
        micro: int,
        accumulation: int,
        device: torch.device,
    ) -> None:
        deepspeed = _deepspeed(device)
        trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
        settings: dict[str, Any] = {
            "train_micro_batch_size_per_gpu": micro,
            "gradient_accumulation_steps": accumulation,
            "gradient_clipping": config.clip,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "zero_optimization": {
                "stage": config.zero_stage,
                # a GPU allocates it in full: 2 GB by default, even for a small network
                "reduce_bucket_size": min(BUCKET, trained),
                **({"offload_optimizer": {"device": "cpu"}} if config.offload else {}),
            },
            "torch_autocast": {"enabled": bf16(config, device), "dtype": "bfloat16"},
            "steps_per_print": 2**31,
        }
        self.name, self.stage = name, config.zero_stage
        self.module, self.optimizer, _, _ = deepspeed.initialize(
            model=module, optimizer=optimizer, config=settings, dist_init_required=False
        )
        self.buffers = _Buffers(module)

    def begin(self, last: bool) -> None:
        self.last = last

    def backward(self, loss: Tensor) -> None:
        self.module.backward(loss)
        if not self.last:
            self.module.step()  # counts the micro-batch; DeepSpeed updates at the accumulation boundary only

    def step(self, lr: float) -> tuple[bool, float]:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.module.step()
        applied = bool(self.module.was_step_applied())
        self.buffers.settle(applied)
        norm = self.module.get_global_grad_norm()
        return applied, 0.0 if norm is None else float(norm)

    def save(self, folder: Path) -> None:
        self.module.save_checkpoint(
            str(folder), tag=self.name, exclude_frozen_parameters=bool(frozen_names(self.module.module))
        )
        if dist.get_rank() == 0:
            save_file(_stored_buffers(self.module.module), folder / self.name / BUFFERS)
        for extra in (folder / "latest", *folder.glob("*.py")):  # no code travels with a run
            extra.unlink(missing_ok=True)

    def load(self, folder: Path, world: int) -> None:
        if world == dist.get_world_size():
            self._load(folder)
        else:
            # The conversion loses buffers and, in stage 3, the settings of all parameter groups but the
            # first. It also makes all parameters share one tensor for Adam's step, which each of them
            # advances.
            groups = [{k: v for k, v in g.items() if k != "params"} for g in self.optimizer.param_groups]
            with universal(folder, self.name) as converted:
                self.module._config.load_universal_checkpoint = True
                self._load(converted)
                self.module._config.load_universal_checkpoint = False
            for group, settings in zip(self.optimizer.param_groups, groups, strict=True):
                group.update(settings)
            for moments in self.optimizer.optimizer.state.values():
                moments["step"] = torch.as_tensor(moments["step"]).clone()
            for name, value in load_file(folder / self.name / BUFFERS).items():
                self.module.module.get_buffer(name).copy_(value)
        self.buffers = _Buffers(self.module.module)

    def _load(self, folder: Path) -> None:
        strict = not frozen_names(self.module.module)
        path, _ = self.module.load_checkpoint(str(folder), tag=self.name, load_module_strict=strict)
        if path is None:  # DeepSpeed only warns
            raise PlethoraError(f"checkpoint {folder} holds no module {self.name}: resume from another one")

    def weights(self) -> dict[str, Tensor]:
        inner = self.module.module
        if self.stage == 3:
            # A forward pass without a backward pass (validation) leaves weights gathered, rounded to bfloat16
            # under autocast, and gathering again would reuse them. After a release they come from the float32
            # shards. Without `lower_precision_safe_modules` none would be rounded, but each step would send
            # twice the bytes.
            self.module.empty_partition_cache()
        with _gathered(inner) if self.stage == 3 else nullcontext():
            return {k: v.detach().cpu().clone() for k, v in _trained(inner).items()}


def _stored_buffers(module: nn.Module) -> dict[str, Tensor]:
    """The buffers that belong to a module's state (codebooks, batch statistics), on the CPU."""
    stored = module.state_dict().keys()
    return {name: b.detach().cpu().contiguous() for name, b in module.named_buffers() if name in stored}


def _gathered(module: nn.Module) -> Any:
    import deepspeed

    return deepspeed.zero.GatheredParameters(
        [p for p in module.parameters() if p.requires_grad], modifier_rank=None
    )


def _deepspeed(device: torch.device) -> Any:
    """Import DeepSpeed with its accelerator set and, on a CPU, without the extension that takes minutes to
    compile.
    """
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    import logging

    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    if device.type == "cpu":
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


class _Autocast(DistributedDataParallel):
    """DDP whose forward pass runs under bfloat16 autocast, like DeepSpeed's `torch_autocast`; losses are
    computed outside autocast.
    """

    bf16 = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with torch.autocast(next(self.parameters()).device.type, torch.bfloat16, enabled=self.bf16):
            return super().forward(*args, **kwargs)


class DDPEngine:
    """Plain data parallelism; every rank has the whole state."""

    def __init__(
        self,
        name: str,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: EngineConfig,
        accumulation: int,
        device: torch.device,
    ) -> None:
        self.name, self.optimizer, self.accumulation, self.clip = name, optimizer, accumulation, config.clip
        # Buffers may differ between ranks (a synchronised codebook is equal anyway); broadcasting them would
        # cost a collective per step.
        # Gradients are views of the communication buckets, which saves a copy of all of them.
        self.module = _Autocast(module, broadcast_buffers=False, gradient_as_bucket_view=True)
        self.module.bf16 = bf16(config, device)
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.buffers = _Buffers(module)

    def begin(self, last: bool) -> None:
        # as `no_sync` does; DDP reads it before the forward pass and otherwise reduces at every micro-batch
        self.module.require_backward_grad_sync = last

    def backward(self, loss: Tensor) -> None:
        (loss / self.accumulation).backward()

    def step(self, lr: float) -> tuple[bool, float]:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        norm = float(nn.utils.clip_grad_norm_(self.parameters, self.clip or float("inf")))
        applied = norm == norm and norm != float("inf")
        if applied:
            self.optimizer.step()
        # a single backward pass writes new gradients; several accumulate in the buckets
        self.optimizer.zero_grad(set_to_none=self.accumulation == 1)
        self.buffers.settle(applied)
        return applied, norm

    def save(self, folder: Path) -> None:
        if dist.get_rank() == 0:
            state = {"module": _trained(self.module.module), "optimizer": self.optimizer.state_dict()}
            torch.save(state, folder / f"{self.name}.pt")

    def load(self, folder: Path, world: int) -> None:
        device = next(self.module.parameters()).device
        state = torch.load(folder / f"{self.name}.pt", map_location=device, weights_only=True)
        load_trained(self.module.module, state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.buffers = _Buffers(self.module.module)

    def weights(self) -> dict[str, Tensor]:
        return {k: v.detach().cpu().clone() for k, v in _trained(self.module.module).items()}
