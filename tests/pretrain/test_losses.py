import numpy as np
import pytest
import torch

from pretrain import losses


def test_the_spectrum_is_the_standardised_fft_amplitude_of_each_patch():
    x = torch.rand(3, 4, 100, generator=torch.Generator().manual_seed(0))
    amplitude, phase = losses.spectrum(x)
    f = np.fft.fft(x.double().numpy(), axis=-1)
    wanted = np.abs(f)
    wanted = (wanted - wanted.mean((1, 2), keepdims=True)) / wanted.std((1, 2), keepdims=True, ddof=1)
    np.testing.assert_allclose(amplitude.numpy(), wanted, atol=1e-4)
    turn = np.abs(phase.numpy() - np.angle(f) / np.pi) % 2  # -pi and pi are one phase
    assert np.minimum(turn, 2 - turn).max() < 1e-3


def test_a_window_without_spectrum_gives_finite_targets():
    amplitude, phase = losses.spectrum(torch.zeros(1, 2, 100))
    assert torch.equal(amplitude, torch.zeros(1, 2, 100)) and torch.isfinite(phase).all()


@pytest.mark.parametrize("kind, wanted", [("l1", 1.5), ("mse", 2.5)])
def test_the_distance_is_the_papers_l1_or_the_codes_mse(kind, wanted):
    assert losses.distance(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 4.0]), kind).item() == wanted


def test_masked_cross_entropy_means_over_a_windows_hidden_patches_then_over_windows():
    draw = torch.Generator().manual_seed(0)
    mask = torch.tensor([[True, False, True], [False, True, False], [False, False, False]])
    targets = torch.tensor([[4, 3, 0], [1, 2, 0], [0, 0, 1]])
    at = torch.tensor([0, 2, 3, 4, 8])  # the hidden ones, and two that are shown
    logits = torch.randn(5, 5, generator=draw)
    per_window, loss = losses.masked_cross_entropy(logits, targets, mask, at)
    each = -logits.log_softmax(1)[torch.arange(5), targets.flatten()[at]]
    wanted = torch.stack([(each[0] + each[1]) / 2, each[3], torch.tensor(0.0)])
    torch.testing.assert_close(per_window, wanted)
    torch.testing.assert_close(loss, wanted.mean())


def test_masked_cross_entropy_of_a_batch_is_the_mean_over_its_halves():
    draw = torch.Generator().manual_seed(1)
    mask = torch.rand(8, 10, generator=draw) < 0.5
    logits, targets = torch.randn(8, 10, 6, generator=draw), torch.randint(0, 6, (8, 10), generator=draw)

    def part(s: slice) -> torch.Tensor:
        at = mask[s].flatten().nonzero()[:, 0]
        return losses.masked_cross_entropy(logits[s].flatten(0, 1)[at], targets[s], mask[s], at)[1]

    torch.testing.assert_close(part(slice(None)), (part(slice(0, 4)) + part(slice(4, 8))) / 2)


def test_the_policy_loss_raises_what_is_rewarded():
    log_prob = torch.zeros(2, requires_grad=True)
    losses.reinforce(log_prob, losses.advantage(torch.tensor([3.0, 1.0]), leave_one_out=False)).backward()
    assert log_prob.grad.tolist() == [-0.5, 0.5]  # descent raises the first
