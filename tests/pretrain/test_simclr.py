"""SimCLR's views: drawn by window and step alone, cut, stretched and blanked as the config says."""

import torch

from pretrain.net1d import zscore
from pretrain.recipes.simclr import SimCLRConfig, view

T = 500
IDS = torch.arange(6)


def waves() -> torch.Tensor:
    return torch.sin(6.283 * torch.arange(T) / 50 * torch.linspace(1, 2, 6)[:, None])[:, None]


def plain(**more) -> SimCLRConfig:
    return SimCLRConfig(**{"crop": 1.0, "noise": 0.0, "drift": 0.0, "blank": 0.0, **more})


def test_without_augmentation_a_view_is_the_standardised_window() -> None:
    torch.testing.assert_close(view(waves(), IDS, plain(), 1, 0, 0), zscore(waves()), atol=1e-4, rtol=1e-4)


def test_a_view_depends_on_window_step_and_side_and_on_no_neighbour() -> None:
    c, x = SimCLRConfig(), waves()
    whole = view(x, IDS, c, 1, 0, 0)
    torch.testing.assert_close(view(x[2:4], IDS[2:4], c, 1, 0, 0), whole[2:4])
    for key in ((1, 1, 0), (1, 0, 1), (2, 0, 0)):
        assert (view(x, IDS, c, *key) - whole).abs().mean() > 0.05


def test_a_cut_is_a_stretched_part_of_the_window() -> None:
    ramp = torch.arange(float(T)).expand(6, 1, T)
    low, high = zscore(ramp)[0, 0, [0, -1]]
    cut = view(ramp, IDS, plain(crop=0.8), 1, 0, 0)[:, 0]
    slopes = cut.diff(dim=1)
    torch.testing.assert_close(
        slopes, slopes.mean(dim=1, keepdim=True).expand_as(slopes), atol=1e-4, rtol=1e-2
    )
    share = (cut[:, -1] - cut[:, 0]) / (high - low)
    assert ((share >= 0.799) & (share <= 1.001)).all() and share.std() > 0.01
    assert (cut[:, 0] >= low - 1e-3).all() and (cut[:, -1] <= high + 1e-3).all()


def test_a_blank_has_its_length() -> None:
    blank = (view(waves() + 0.001, IDS, plain(blank=0.1), 1, 0, 0)[:, 0] == 0).sum(dim=1)
    assert ((blank >= 49) & (blank <= 51)).all()
