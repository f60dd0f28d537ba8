"""The host does not wait for the device within a step: what would make it wait is looked for, on a CPU.

On a GPU these make the host wait until all that was queued is done: a value that Python reads (``item``,
``bool``, ``float``, ``tolist``), a shape that depends on values (boolean indices, ``nonzero``, ``bincount``),
a copy between host and device. Two ways find them without one: the whole step on the CPU under an observer of
every operation, and the losses on fake CUDA tensors, which have a device and a shape but no values, so that
asking for one raises.
"""

import json
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.pretrain.group import together
from tests.pretrain.kit import batch
from tests.pretrain.recipes import RECIPES

READ = {"_local_scalar_dense", "is_nonzero", "equal"}
SHAPED = {"nonzero", "masked_select", "bincount", "_unique2", "unique_dim", "unique_consecutive"}
INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_"}
LIBRARIES = ("vector_quantize_pytorch", "deepspeed", "torch/optim")
TRIED = [
    "tokenizer",
    "masked",
    "masked, shown patches too",
    "anyppg, a frozen teacher",
    "m2ae",
    "simclr",
    "vision, LoRA",
]
MICROS, STEP = 2, 3


class Waits(TorchDispatchMode):
    """Counts, within, what would make the host of a GPU wait: {(operation, whose code asked)}."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[tuple[str, str]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        masks = INDEXED & {name} and any(i is not None and i.dtype == torch.bool for i in args[1])
        devices = {x.device.type for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor)}
        if name in READ | SHAPED or masks or len(devices) > 1:
            self.found[name, _asker()] += 1
        return out


def _asker() -> str:
    """The innermost library or file of ours on the stack."""
    for frame, _ in traceback.walk_stack(None):
        path = frame.f_code.co_filename
        for library in LIBRARIES:
            if f"/{library}/" in path:
                return library
        for ours in ("pretrain", "finetune"):
            if f"/{ours}/" in path and "/tests/" not in path:
                return f"{ours}/{path.split(f'/{ours}/')[1]}"
    return ""


def count(stage: int) -> dict[str, list]:
    """{recipe: [[operation, whose, how often]]} of one optimizer step; in a process group."""
    from pretrain.config import Engine, Optim
    from pretrain.engine import wrap
    from pretrain.loop import optimize

    found: dict[str, list] = {}
    for name in TRIED:
        recipe = RECIPES[name]()
        config = Engine.model_validate({"zero_stage": stage})
        engines = {
            key: wrap(key, module, Optim(), config, 8, MICROS, torch.device("cpu"))
            for key, module in recipe.modules().items()
        }
        micros = [batch(8, 8 * number) for number in range(MICROS)]
        rates, frozen = dict.fromkeys(engines, 1e-3), recipe.frozen()
        optimize(recipe, engines, frozen, micros, 0, rates, 0, 0)  # codebooks start
        with Waits() as waits:
            optimize(recipe, engines, frozen, micros, STEP, rates, 0, 0)
        found[name] = [[*key, times] for key, times in sorted(waits.found.items())]
    return found


def alone(rank: int, world: int, folder: Path) -> None:
    (folder / "zero.json").write_text(json.dumps(count(1)))


@pytest.fixture(scope="module")
def ddp() -> dict[str, list]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        return count(0)
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def zero(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list]:
    folder = tmp_path_factory.mktemp("waits")
    together(alone, 1, folder)
    return json.loads((folder / "zero.json").read_text())


def check(name: str, found: list) -> None:
    """Of ours: one number a module and optimizer step, the gradient norm, which decides whether the step
    counts; none a micro-batch. Of libraries: DeepSpeed's overflow check and norms, once a step; AdamW's
    counter, which lies on the host; and the codebook's questions: a micro-batch whether it has started, a
    step whether codes died."""
    modules = len(RECIPES[name]().modules())
    ours = [["_local_scalar_dense", "pretrain/engine.py", modules]]
    if name == "tokenizer":
        ours.append(["_local_scalar_dense", "pretrain/quantizer.py", MICROS])
    assert sorted(w for w in found if w[1] not in LIBRARIES) == ours
    for operation, asker, times in found:
        if asker == "deepspeed":
            assert operation in READ and times <= 8 * modules
        elif asker == "vector_quantize_pytorch":
            assert name == "tokenizer" and operation in READ and times <= 4 * MICROS
        elif asker == "torch/optim":
            assert operation in READ


@pytest.mark.parametrize("name", TRIED)
def test_the_host_waits_for_one_number_a_module_and_optimizer_step(ddp, name: str) -> None:
    check(name, ddp[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", TRIED)
def test_with_zero_1_it_waits_for_what_deepspeed_asks_as_well(zero, name: str) -> None:
    check(name, zero[name])


@pytest.fixture
def two_ranks() -> Iterator[None]:
    """This process as one of two whose collectives return at once."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield
    dist.destroy_process_group()


def on_a_gpu(net: nn.Module) -> nn.Module:
    """`net` with fake CUDA tensors for weights; called within a FakeTensorMode."""
    for part in net.modules():
        for name, p in part._parameters.items():
            if p is not None:
                empty = torch.empty(p.shape, dtype=p.dtype, device="cuda")
                part._parameters[name] = nn.Parameter(empty, p.requires_grad)
        for name, b in part._buffers.items():
            if b is not None:
                part._buffers[name] = torch.empty(b.shape, dtype=b.dtype, device="cuda")
    return net


def losses_on_a_gpu(name: str, foreseen: bool) -> tuple[Counter, set[str]]:
    recipe = RECIPES[name]()
    modules, frozen, data = recipe.modules(), recipe.frozen(), batch(8)
    if foreseen:
        data |= recipe.foresee(frozen, data)  # type: ignore[attr-defined]
    with FakeTensorMode(allow_non_fake_inputs=True):
        modules = {key: on_a_gpu(module) for key, module in modules.items()}
        frozen = {key: on_a_gpu(module) for key, module in frozen.items()}
        data = {key: torch.empty(x.shape, dtype=x.dtype, device="cuda") for key, x in data.items()}
        with Waits() as waits:
            result = recipe.losses(modules, frozen, data, STEP)
        return waits.found, {loss.device.type for loss in result.losses.values()}


@pytest.mark.parametrize("name", [n for n in RECIPES if not n.startswith("tokenizer")])
def test_losses_on_a_gpu_need_no_value_and_copy_nothing(
    name: str, two_ranks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def grid_sample(x: Tensor, grid: Tensor, **_: Any) -> Tensor:  # torch's asks the driver for its version
        return x.new_empty(*x.shape[:2], *grid.shape[1:3])

    monkeypatch.setattr(F, "grid_sample", grid_sample)
    for foreseen in (False, True) if name.startswith("masked") else (False,):
        found, devices = losses_on_a_gpu(name, foreseen)
        assert not found and devices == {"cuda"}


def test_the_tokenizers_codebook_is_what_it_waits_for(two_ranks: None) -> None:
    with pytest.raises(DataDependentOutputException) as told:
        losses_on_a_gpu("tokenizer", False)
    assert any(entry.path.name in ("quantizer.py", "vector_quantize_pytorch.py") for entry in told.traceback)


@pytest.mark.parametrize(
    "waiting",
    [
        lambda x: float(x.sum()),
        lambda x: x[x > 0],
        lambda x: bool((x > 0).any()),
        lambda x: torch.bincount(x.long().abs()),
        lambda x: (x > 0).nonzero(),
        lambda x: x.unique(),
        lambda x: x.masked_fill_(x > 0, 0).index_put_((x > 0,), torch.ones(())),
    ],
)
def test_what_waits_is_seen(waiting: Any) -> None:
    with Waits() as waits:
        waiting(torch.randn(4))
    assert waits.found


def test_what_copies_to_a_gpu_is_seen() -> None:
    with FakeTensorMode(), Waits() as waits:
        torch.empty(3, device="cuda").new_tensor(1.0)
    assert waits.found


def test_what_does_not_wait_is_not_seen() -> None:
    with FakeTensorMode(), Waits() as waits:
        x = torch.empty(3, device="cuda")
        torch.where(x > 0, x, 0.0).new_full((), 3).index_select(0, torch.zeros(1, device="cuda").long())
    assert not waits.found
