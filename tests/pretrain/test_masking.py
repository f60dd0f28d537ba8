import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from pretrain import masking
from pretrain.layers import keyed_uniform
from pretrain.losses import advantage, reinforce


def reference_priors(x: np.ndarray, beta: float) -> np.ndarray:
    """float64, written from DESIGN section 8.1 with scipy's own statistics."""
    out = []
    for window in x.astype(np.float64):
        s = window.std(axis=1)
        mad = stats.median_abs_deviation(s)
        z = 0.6745 * (s - np.median(s)) / mad if mad >= 1e-9 else np.zeros_like(s)
        gate = lambda v: 1 / (1 + np.exp(-v))
        amp = np.exp(-0.2 * z**2) * gate(50 * (s - 0.05)) * gate(-5 * (s - 2))
        with np.errstate(all="ignore"):
            skew = np.tanh(np.abs(np.nan_to_num(stats.skew(window, axis=1, bias=False))))
        out.append(beta * amp + (1 - beta) * skew)
    return np.array(out)


def waves(windows: int = 6, patches: int = 21) -> np.ndarray:
    rng = np.random.default_rng(0)
    t = np.arange(100 * patches) / 50
    x = np.sin(2 * np.pi * 1.3 * t) ** 3 * rng.uniform(0.2, 1, (windows, 1)) + 0.05 * rng.normal(
        size=(windows, len(t))
    )
    x = (x - x.min(1, keepdims=True)) / np.ptp(x, axis=1, keepdims=True)
    return x.reshape(windows, patches, 100).astype(np.float32)


@pytest.mark.filterwarnings("ignore:Precision loss")
@pytest.mark.parametrize("patches", [1, 20, 21])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_priors_equal_scipy_in_float64_also_where_patches_are_flat(patches, beta):
    x = waves(patches=patches)
    x[1, 0] = 0.5
    x[2, ::2] = 1.0
    x[3] = 0.0
    found = masking.priors(torch.from_numpy(x), beta).numpy()
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, reference_priors(x, beta), atol=1e-5)


def test_priors_stay_float32_under_autocast_and_carry_no_gradient():
    x = torch.from_numpy(waves()).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = masking.priors(x)
    assert found.dtype == torch.float32 and not found.requires_grad
    assert torch.equal(found, masking.priors(x))


def orders(n: int, k: int) -> torch.Tensor:
    return torch.tensor(list(itertools.permutations(range(n), k)))


def probability(theta: torch.Tensor, order: list[int]) -> torch.Tensor:
    """Of drawing this order without replacement: a product of renormalised softmaxes."""
    weight = theta.exp()
    left, p = weight.sum(), torch.ones((), dtype=theta.dtype)
    for i in order:
        p = p * weight[i] / left
        left = left - weight[i]
    return p


def test_plackett_luce_is_the_probability_of_drawing_in_this_order():
    theta = torch.tensor([0.3, -1.2, 2.0, 0.5, -0.4], dtype=torch.float64)
    all_orders = orders(5, 3)
    found = masking.plackett_luce_log_prob(theta.expand(len(all_orders), -1), all_orders)
    wanted = torch.stack([probability(theta, o) for o in all_orders.tolist()])
    torch.testing.assert_close(found.exp().double(), wanted, atol=1e-6, rtol=1e-5)
    assert found.exp().sum().item() == pytest.approx(1.0, abs=1e-5)


def test_gumbel_top_k_draws_orders_as_plackett_luce_says():
    theta = torch.tensor([0.3, -1.2, 1.0, 0.5])
    all_orders, n = orders(4, 2), 40_000
    drawn = masking.draw(theta.expand(n, -1), keyed_uniform(torch.arange(n), 4, 1), 2)
    seen = (drawn[:, None] == all_orders[None]).all(-1).sum(0).numpy()
    wanted = (
        masking.plackett_luce_log_prob(theta.expand(len(all_orders), -1), all_orders).exp().double().numpy()
    )
    assert stats.chisquare(seen, wanted / wanted.sum() * n).pvalue > 1e-3


def expected_gradient(log_prob, theta: torch.Tensor, k: int, reward) -> torch.Tensor:
    """Expected REINFORCE gradient of the reward, by summing over every ordered sample."""
    all_orders = orders(len(theta), k)
    p = torch.stack([probability(theta.detach(), o) for o in all_orders.tolist()])
    leaf = theta.detach().clone().requires_grad_()
    value = log_prob(leaf.expand(len(all_orders), -1), all_orders)
    (p * reward(all_orders) * value).sum().backward()
    return leaf.grad


def hard_patches(all_orders: torch.Tensor) -> torch.Tensor:
    """A reward of the set, as a student's loss is: some patches are hard, and two together harder."""
    hard = torch.tensor([0.1, 1.0, 0.4, 2.0, 0.7], dtype=torch.float64)
    both = (all_orders == 1).any(1) & (all_orders == 3).any(1)
    return hard[all_orders].sum(1) + 1.5 * both


def true_gradient(theta: torch.Tensor, k: int, reward) -> torch.Tensor:
    leaf = theta.detach().clone().requires_grad_()
    all_orders = orders(len(theta), k)
    p = torch.stack([probability(leaf, o) for o in all_orders.tolist()])
    (p * reward(all_orders)).sum().backward()
    return leaf.grad


def test_reinforce_with_plackett_luce_is_unbiased_and_the_authors_variant_is_not():
    theta = torch.tensor([0.3, -0.8, 1.0, 0.5, -0.2], dtype=torch.float64)
    truth = true_gradient(theta, 3, hard_patches)
    ours = expected_gradient(masking.plackett_luce_log_prob, theta, 3, hard_patches)
    torch.testing.assert_close(ours, truth, atol=1e-5, rtol=1e-4)
    theirs = expected_gradient(masking.softmax_sum_log_prob, theta, 3, hard_patches)
    assert (theirs - truth).norm() > 0.1 * truth.norm()


def test_the_leave_one_out_baseline_keeps_a_batch_unbiased():
    theta = torch.tensor([0.3, -0.8, 1.0], dtype=torch.float64)
    reward = lambda o: torch.tensor([0.1, 1.0, 2.0], dtype=torch.float64)[o].sum(1)
    truth = true_gradient(theta, 1, reward)
    total = {True: torch.zeros(3), False: torch.zeros(3)}
    for pair in itertools.product(range(3), repeat=2):  # every batch of two windows
        order = torch.tensor(pair)[:, None]
        p = float(torch.stack([probability(theta, [i]) for i in pair]).prod())
        for exact in total:
            leaf = theta.float().requires_grad_()
            log_prob = masking.plackett_luce_log_prob(leaf.expand(2, -1), order)
            reinforce(log_prob, advantage(reward(order), leave_one_out=exact)).backward()
            total[exact] -= p * leaf.grad
    torch.testing.assert_close(total[True].double(), truth, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(2 * total[False].double(), truth, atol=1e-5, rtol=1e-4)  # (n - 1) / n of it


def test_the_authors_variant_is_a_sum_of_log_softmax():
    logits = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    order = torch.tensor([[0, 1], [5, 2], [3, 4]])
    p = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(1, keepdims=True)
    wanted = np.log(np.take_along_axis(p, order.numpy(), 1) + 1e-10).sum(1)
    np.testing.assert_allclose(masking.softmax_sum_log_prob(logits, order).numpy(), wanted, rtol=1e-5)


def test_a_hidden_run_never_exceeds_the_maximum():
    n = 400
    uniform = torch.ones(n, 60) - 1e-3
    mask = masking.draw(torch.zeros(n, 60), keyed_uniform(torch.arange(n), 60, 0), 50)
    edited = masking.edit(masking.to_mask(mask, 60), uniform, 0.3, 5)
    runs = [len(run) for row in edited for run in "".join("1" if v else "0" for v in row).split("0")]
    assert max(runs) == 5
    assert torch.equal(edited & ~masking.to_mask(mask, 60), torch.zeros(n, 60, dtype=torch.bool))
    full = masking.edit(torch.ones(1, 12, dtype=torch.bool), uniform[:1, :12], 0.0, 5)
    assert full[0].tolist() == [True] * 5 + [False] + [True] * 5 + [False]


def test_unmasking_shows_its_share_of_the_hidden_patches():
    mask = torch.ones(500, 60, dtype=torch.bool)
    edited = masking.edit(mask, keyed_uniform(torch.arange(500), 60, 3), 0.3, max_run=100)
    assert edited.float().mean().item() == pytest.approx(0.7, abs=0.01)


def test_entropy_of_even_logits_is_log_n():
    assert masking.entropy(torch.zeros(1, 30)).item() == pytest.approx(np.log(30))
