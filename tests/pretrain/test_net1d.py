"""Net1D by its table, and the authors' weights in it against a plain float64 reference."""

import numpy as np
import pytest
import torch
from scipy.special import expit

from pretrain.layers import count
from pretrain.net1d import Net1D, SameConv, from_authors, zscore

FILTERS, BLOCKS, STEM, KERNEL, WIDTH = (8, 16, 16), (2, 1, 2), 8, 3, 4


def authors(kernel: int = KERNEL) -> dict[str, torch.Tensor]:
    """A state dict as the authors' Net1D names it, random values."""
    draw = torch.Generator().manual_seed(kernel)
    state: dict[str, torch.Tensor] = {}

    def put(name: str, *shape: int) -> None:
        state[f"{name}.weight"] = torch.randn(*shape, generator=draw, dtype=torch.float64) / np.sqrt(
            shape[-1]
        )
        state[f"{name}.bias"] = torch.randn(shape[0], generator=draw, dtype=torch.float64)

    def norm(name: str, size: int) -> None:
        put(name, size)
        state[f"{name}.running_mean"] = torch.randn(size, generator=draw, dtype=torch.float64)
        state[f"{name}.running_var"] = torch.rand(size, generator=draw, dtype=torch.float64) + 0.5
        state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    put("first_conv.conv", STEM, 1, kernel)
    norm("first_bn", STEM)
    inputs = STEM
    for stage, (filters, blocks) in enumerate(zip(FILTERS, BLOCKS, strict=True)):
        for block in range(blocks):
            name = f"stage_list.{stage}.block_list.{block}"
            norm(f"{name}.bn1", inputs)
            put(f"{name}.conv1.conv", filters, inputs, 1)
            norm(f"{name}.bn2", filters)
            put(f"{name}.conv2.conv", filters, WIDTH, kernel)
            norm(f"{name}.bn3", filters)
            put(f"{name}.conv3.conv", filters, filters, 1)
            put(f"{name}.se_fc1", filters // 2, filters)
            put(f"{name}.se_fc2", filters, filters // 2)
            inputs = filters
    return state


def by_hand(state: dict, x: np.ndarray) -> np.ndarray:
    """(C, T) of one window -> (F,), in loops over output samples."""
    s = {name: value.numpy() for name, value in state.items()}

    def swish(y):
        return y * expit(y)

    def conv(name: str, y: np.ndarray, stride: int) -> np.ndarray:
        w, b = s[f"{name}.conv.weight"], s[f"{name}.conv.bias"]
        filters, per_group, k = w.shape
        groups, steps = len(y) // per_group, -(-y.shape[1] // stride)
        zeros = max((steps - 1) * stride + k - y.shape[1], 0)
        y = np.pad(y, ((0, 0), (zeros // 2, zeros - zeros // 2)))
        out = np.empty((filters, steps))
        for f in range(filters):
            part = y[f // (filters // groups) * per_group :][:per_group]
            for t in range(steps):
                out[f, t] = (part[:, t * stride : t * stride + k] * w[f]).sum() + b[f]
        return out

    def norm(name: str, y: np.ndarray) -> np.ndarray:
        mean, var = s[f"{name}.running_mean"], s[f"{name}.running_var"]
        factor = s[f"{name}.weight"] / np.sqrt(var + 1e-5)
        return (y - mean[:, None]) * factor[:, None] + s[f"{name}.bias"][:, None]

    y = swish(norm("first_bn", conv("first_conv", x, 2)))
    for stage, blocks in enumerate(BLOCKS):
        for block in range(blocks):
            name, stride = f"stage_list.{stage}.block_list.{block}", 2 if block == 0 else 1
            z = y if stage == block == 0 else swish(norm(f"{name}.bn1", y))
            z = swish(norm(f"{name}.bn2", conv(f"{name}.conv1", z, 1)))
            z = swish(norm(f"{name}.bn3", conv(f"{name}.conv2", z, stride)))
            z = conv(f"{name}.conv3", z, 1)
            gate = swish(s[f"{name}.se_fc1.weight"] @ z.mean(axis=1) + s[f"{name}.se_fc1.bias"])
            z = z * expit(s[f"{name}.se_fc2.weight"] @ gate + s[f"{name}.se_fc2.bias"])[:, None]
            if stride == 2:
                y = np.pad(y, ((0, 0), (0, 1)))
                y = np.stack([y[:, t : t + 2].max(axis=1) for t in range(0, y.shape[1] - 1, 2)], axis=1)
            extra = len(z) - len(y)
            y = z + np.pad(y, ((extra // 2, extra - extra // 2), (0, 0)))
    return y.mean(axis=1)


@pytest.mark.parametrize("kernel", [3, 16])
@pytest.mark.parametrize("samples", [1, 2, 63, 64, 101])
def test_the_authors_weights_compute_what_a_plain_reference_does(kernel: int, samples: int) -> None:
    state = authors(kernel)
    net, unused = from_authors(state)
    draw = np.random.default_rng(samples)
    x = draw.normal(3, 5, (2, 1, samples))
    wanted = [by_hand(state, (w - w.mean()) / (w.std() + 1e-5)) for w in x]
    found = net.double().eval()(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)  # running means are float32 in between
    assert unused == sorted(n for n in state if n.startswith("stage_list.0.block_list.0.bn1."))


def test_what_does_not_match_is_named() -> None:
    state = authors()
    with pytest.raises(ValueError, match="not the state of a Net1D"):
        from_authors({"weight": torch.zeros(3)})
    lacking = {k: v for k, v in state.items() if k != "stage_list.1.block_list.0.se_fc1.bias"}
    with pytest.raises(ValueError, match=r"^missing: stage_list.1.block_list.0.se_fc1.bias$"):
        from_authors(lacking)
    short = {"stage_list.1.block_list.0.se_fc1.bias": torch.zeros(3)}
    with pytest.raises(
        ValueError, match=r"^of another shape: stage_list.1.block_list.0.se_fc1.bias \(3\) ins"
    ):
        from_authors(state | short)
    with pytest.raises(ValueError, match=r"^not part of a Net1D: rnn.weight$"):
        from_authors(state | {"rnn.weight": torch.zeros(3)})
    broken = {
        "first_bn.bias": torch.zeros(3),
        "stage_list.0.block_list.0.se_fc2.bias": torch.full((8,), torch.nan),
    }
    with pytest.raises(
        ValueError, match=r"missing: .*; of another shape: .*; with NaN .*; not part of .*: odd$"
    ):
        from_authors(lacking | broken | {"odd": torch.zeros(3)})
    assert "dense.weight" in from_authors(state | {"dense.weight": torch.zeros(3)})[1]


def test_the_published_table_has_the_published_size() -> None:
    assert count(Net1D()) == pytest.approx(4.04e6, rel=0.01)
    assert Net1D().dim == 512


def test_the_last_stage_sets_the_width_of_the_embedding() -> None:
    net = Net1D(filters=(64, 160, 160, 400, 400, 1024))
    assert net.eval()(torch.randn(1, 1, 1250)).shape == (1, 1024)


def test_a_stride_of_two_halves_the_time_upwards() -> None:
    for samples in (1, 2, 9, 10):
        assert SameConv(1, 4, 3, 2, 1, False)(torch.randn(1, 1, samples)).shape[-1] == (samples + 1) // 2


def test_unit_and_offset_do_not_matter_and_a_constant_window_is_zeros() -> None:
    net = Net1D(filters=(16,), blocks=(1,), stem=16).eval()
    x = torch.randn(2, 1, 500)
    torch.testing.assert_close(net(x), net(1000 * x - 7000), atol=1e-4, rtol=1e-3)
    assert not zscore(torch.full((1, 1, 9), 4.0)).any()


@pytest.mark.parametrize(
    "wrong, says",
    [
        ({"filters": (64, 100)}, "one each"),
        ({"filters": (64, 100), "blocks": (1, 1)}, r"\[100\] do not divide"),
        ({"filters": (64, 32), "blocks": (1, 1)}, "may not fall"),
        ({"kernel": 1}, "shorter than the stride"),
    ],
)
def test_a_table_that_is_none_is_refused(wrong: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Net1D(**wrong)
