"""`tests.benchmarks.gpu` counts right, times what the recipes do, and needs nothing but torch."""

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cluster.config import read_toml, validate
from pretrain import layers
from pretrain.layers import count
from pretrain.recipes.anyppg import AnyPPG, AnyPPGConfig
from pretrain.recipes.sigma import Masked, MaskedConfig
from tests.benchmarks import flops, gpu
from tests.benchmarks.gpu_steps import SIGMA, Anyppg, DropPath, Shape, Sigma, Step, sigma_nets
from tests.benchmarks.table import ROOT

CPU = torch.device("cpu")
SMALL = Shape(dim=32, depth=2, heads=4, channels=8, batch=3, patches=12, codes=50, teacher=16)
NET = {"filters": (64, 80), "blocks": (1, 2)}
# what torch itself brings along
TORCH = [
    "torch",
    "torchgen",
    "functorch",
    "numpy",
    "sympy",
    "mpmath",
    "networkx",
    "jinja2",
    "markupsafe",
    "filelock",
    "fsspec",
    "typing_extensions",
]
OURS = {"layers", "losses", "masking", "contrastive", "sigma_net", "quantizer", "net1d", "sync_bn"}


def counted(work) -> int:  # type: ignore[no-untyped-def]
    # the counter does not know the CPU's flash kernel
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def test_the_formula_of_sigma_counts_what_torch_counts() -> None:
    step = Sigma(SMALL, CPU)
    forward, both = flops.sigma(SMALL)
    assert counted(lambda: step.losses(0)) == forward * SMALL.batch
    assert counted(lambda: sum(step.losses(0).values()).backward()) == both * SMALL.batch  # type: ignore[union-attr]


def test_the_formula_of_anyppg_counts_what_torch_counts() -> None:
    """Forward; torch 2.13 counts a grouped convolution's backward pass as if it had one group."""
    step = Anyppg(4, CPU, **NET)
    assert counted(lambda: step.losses(0)) == flops.anyppg(4, **NET)[0] * 4


def test_a_network_of_6_nd_flops_has_about_that_many() -> None:
    """The rule of thumb, six a parameter and token, holds of the large one within a tenth."""
    assert flops.sigma(SIGMA["large"])[1] == pytest.approx(6 * 76e6 * 121, rel=0.1)


class Wrapped:
    """A module under bfloat16 autocast, as an engine's."""

    def __init__(self, step: Step, name: str) -> None:
        self.step, self.name = step, name

    def __call__(self, *args):  # type: ignore[no-untyped-def]
        return self.step.called(self.name, *args)


def assert_same(recipe, step: Step, batch: dict) -> None:  # type: ignore[no-untyped-def]
    for name, module in recipe.modules().items():
        step.modules[name].load_state_dict(module.state_dict())
    found = []
    for _ in range(2):
        torch.manual_seed(7)
        found.append(step.losses(5))
        torch.manual_seed(7)
        wrapped = {name: Wrapped(step, name) for name in step.modules}
        found.append(recipe.losses(wrapped, {}, batch, 5).losses)
    assert found[0].keys() == found[1].keys()
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name], rtol=0, atol=0)


def test_the_step_of_sigma_has_the_losses_of_the_recipe() -> None:
    step = Sigma(SMALL, CPU)
    config = MaskedConfig(
        window_s=24.0,
        max_patches=12,
        dim=32,
        depth=2,
        heads=4,
        conv_channels=8,
        codebook_size=50,
        teacher_dim=16,
    )
    batch = {"ppg": step.x, "window": step.ids, "codes": step.targets.int(), "prior": step.prior}
    assert_same(Masked(config, 0), step, batch)


def test_the_step_of_anyppg_has_the_loss_of_the_recipe() -> None:
    step = Anyppg(4, CPU, **NET)
    config = AnyPPGConfig(**NET, ecg_filters=NET["filters"], ecg_blocks=NET["blocks"])
    batch = {"ppg": step.ppg, "ecg": step.ecg, "subject": torch.arange(4), "window": torch.arange(4)}
    assert_same(AnyPPG(config, 0), step, batch)


@pytest.mark.parametrize("p", [0.0, 0.05, 0.15])
def test_a_drop_path_that_compiles_once_drops_the_same(p: float) -> None:
    x, found = torch.randn(64, 3, 4), []
    for net in (layers.DropPath(p), DropPath(p)):
        torch.manual_seed(3)
        found.append(net(x))
    torch.testing.assert_close(*found, rtol=0, atol=0)


@pytest.fixture(params=SIGMA)
def size(request: pytest.FixtureRequest) -> Iterator[str]:
    yield request.param


def test_shapes_are_those_of_the_run_files(size: str) -> None:
    run, shape = read_toml(str(ROOT / f"pretrain/runs/sigma/{size}.toml")), SIGMA[size]
    config = validate(MaskedConfig, run["method"], size)
    with torch.device("meta"):
        theirs, ours = Masked(config, 0).modules(), sigma_nets(shape)
    assert {n: count(m) for n, m in theirs.items()} == {n: count(m) for n, m in ours.items()}
    assert (shape.heads, shape.batch, shape.patches) == (config.heads, run["micro_batch"], config.patches)
    assert (shape.drop, shape.drop_path) == (config.attn_dropout, config.drop_path)


BLOCKER = f"""
import sys, runpy
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder
allowed = set({TORCH!r}) | {{"pretrain", "tests"}} | set(sys.stdlib_module_names)
class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] in allowed or name.startswith("_sysconfigdata"):
            return PathFinder.find_spec(name, path, target)
sys.meta_path[:] = [BuiltinImporter, FrozenImporter, Finder]
sys.argv = ["gpu", "--device", "cpu", "--quick", "--nets", "pro", "anyppg"]
try:
    runpy.run_module("tests.benchmarks.gpu", run_name="__main__")
finally:
    ours = ("pretrain.", "cluster", "datasets", "finetune")
    print(sorted(name for name in sys.modules if name.startswith(ours)), file=sys.stderr)
"""


def test_whole_networks_are_refused_where_there_is_no_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu", "--device", "cpu"])
    with pytest.raises(SystemExit, match="2"):
        gpu.main()
    assert "no GPU here: --quick tries it with tiny networks" in capsys.readouterr().err


@pytest.mark.slow
def test_it_runs_on_a_cpu_with_torch_and_the_networks_alone() -> None:
    done = subprocess.run([sys.executable, "-c", BLOCKER], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads(done.stdout.splitlines()[-1])["rows"]
    assert {row["net"] for row in rows} == {"pro", "anyppg"} and all(row["windows/s"] > 0 for row in rows)
    loaded = set(json.loads(done.stderr.splitlines()[-1].replace("'", '"')))
    assert loaded == {f"pretrain.{name}" for name in OURS} | {
        "pretrain.importing",
        "pretrain.importing.names",
        "pretrain.planning",
        "pretrain.planning.meter",
    }
