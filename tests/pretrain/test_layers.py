import numpy as np
import pytest
import torch
from scipy import stats

from pretrain import layers
from pretrain.layers import Attention, Block, PatchTransformer, keyed_normal, keyed_uniform, minmax, patches


def splitmix(ids: list[int], n: int, key: tuple[int, ...]) -> np.ndarray:
    """The same numbers from Python's own integers."""
    word = (1 << 64) - 1

    def mix(x: int) -> int:
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & word
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & word
        return x ^ (x >> 31)

    golden, state = 0x9E3779B97F4A7C15, 0
    for part in key:
        state = mix(((state ^ (part & word)) + golden) & word)
    out = []
    for i in ids:
        seed = mix((((i & word) ^ state) + golden) & word)
        out.append([((mix((seed + j * golden) & word) >> 41) + 0.5) / 2**23 for j in range(1, n + 1)])
    return np.array(out)


def test_keyed_uniforms_are_splitmix64_of_key_id_and_position():
    ids = [0, 1, -5, 2**62 + 3, -(2**63)]
    found = keyed_uniform(torch.tensor(ids), 7, 3, -1, 12)
    np.testing.assert_array_equal(found.double().numpy(), splitmix(ids, 7, (3, -1, 12)))


def test_keyed_uniforms_do_not_depend_on_the_batch_around_a_window():
    ids = torch.arange(100)
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    whole = keyed_uniform(ids, 30, 1, 2)
    assert torch.equal(keyed_uniform(ids[order], 30, 1, 2), whole[order])
    assert torch.equal(keyed_uniform(ids[40:41], 30, 1, 2), whole[40:41])


def test_keyed_uniforms_are_uniform_and_differ_by_key_and_window():
    u = keyed_uniform(torch.arange(2000), 50, 5).flatten().numpy()
    assert u.min() > 0 and u.max() < 1
    assert stats.kstest(u, "uniform").pvalue > 1e-3
    other = keyed_uniform(torch.arange(2000), 50, 6).flatten().numpy()
    assert abs(np.corrcoef(u, other)[0, 1]) < 0.02
    rows = keyed_uniform(torch.arange(2000), 50, 5)
    assert abs(np.corrcoef(rows[:-1].flatten(), rows[1:].flatten())[0, 1]) < 0.02


def test_keyed_normals_are_standard_normal():
    z = keyed_normal(torch.arange(1000), 50, 9).flatten().numpy()
    assert stats.kstest(z, "norm").pvalue > 1e-3


def test_minmax_spans_0_to_1_and_turns_a_flat_window_into_zeros():
    x = torch.stack([torch.linspace(-3, 5, 50), torch.full((50,), 7.0)])[:, None]
    y = minmax(x)
    assert y[0].min() == 0 and y[0].max() == 1
    assert torch.equal(y[1], torch.zeros(1, 50))


def test_patches_cut_the_rest():
    x = torch.arange(250.0)[None, None]
    assert torch.equal(patches(x, 100), torch.arange(200.0).reshape(1, 2, 100))


@pytest.mark.parametrize("qk_norm", [False, True])
def test_attention_equals_softmax_written_out(qk_norm):
    torch.manual_seed(0)
    net = Attention(12, 3, bias=True, qk_norm=qk_norm, drop=0.0, attn_drop=0.0).eval()
    torch.nn.init.normal_(net.q_bias)
    torch.nn.init.normal_(net.v_bias)
    x = torch.randn(2, 5, 12)
    q, k, v = (net.qkv(x) + torch.cat([net.q_bias, torch.zeros(12), net.v_bias])).chunk(3, -1)
    heads = []
    for h in range(3):
        part = slice(4 * h, 4 * h + 4)
        qh, kh = net.q_norm(q[..., part]), net.k_norm(k[..., part])
        heads.append((qh @ kh.transpose(1, 2) / 2.0).softmax(-1) @ v[..., part])
    torch.testing.assert_close(net(x), net.proj(torch.cat(heads, -1)))


def test_a_dropped_path_leaves_the_sample_as_it_was_and_scales_the_others():
    torch.manual_seed(0)
    drop = layers.DropPath(0.25).train()
    y = drop(torch.ones(4000, 1, 1)).flatten()
    assert y.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    assert y.mean() == pytest.approx(1.0, abs=0.05)
    assert torch.equal(drop.eval()(torch.ones(3, 1, 1)), torch.ones(3, 1, 1))


def transformer(**kwargs) -> PatchTransformer:
    torch.manual_seed(0)
    block = lambda rate: Block(16, 2, drop_path=rate)
    return PatchTransformer(layers.TemporalConv(100, 8, 16), 16, 2, 12, block, maskable=True, **kwargs).eval()


def test_a_masked_patch_hides_its_content_but_for_group_statistics():
    net = transformer()
    net.embed.conv[1] = net.embed.conv[4] = net.embed.conv[7] = torch.nn.Identity()
    x = torch.rand(1, 6, 100)
    mask = torch.tensor([[False, True, False, False, True, False]])
    changed = x.clone()
    changed[:, mask[0]] = torch.rand(1, 2, 100)
    torch.testing.assert_close(net(x, mask), net(changed, mask))
    assert not torch.allclose(net(x), net(changed))


def test_a_start_moves_a_window_along_the_positions():
    net = transformer()
    x = torch.rand(2, 4, 100)
    moved = net(x, start_b=torch.tensor([0, 8]))
    torch.testing.assert_close(moved[:1], net(x)[:1])
    with torch.no_grad():
        net.positions[:, :4] = net.positions[:, 8:].clone()
    torch.testing.assert_close(moved[1:], net(x)[1:])


def test_stopping_after_all_blocks_leaves_out_the_norm_alone():
    net, x = transformer(), torch.rand(2, 4, 100)
    torch.testing.assert_close(net.norm(net(x, blocks=2)), net(x))
    assert not torch.allclose(net(x, blocks=1), net(x, blocks=2))


def test_global_mean_without_ranks_is_the_mean():
    assert layers.global_mean(torch.tensor([1.0, 2.0, 6.0])) == 3.0
