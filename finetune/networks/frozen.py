"""A frozen vision backbone as a function from PPG windows to vectors: nothing trains."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from finetune.imaging import Imaging, images, shapes
from finetune.networks.backbone import Backbone, sizes

PATCHES = 8192  # worked on at once: bounds memory, and fills two cores


def frozen(backbone: Backbone, imaging: Imaging) -> Callable[[np.ndarray], np.ndarray]:
    """The function from prepared windows (n, 1, T) to (n, D) float32: the mean of an image's patch tokens,
    and of several images (fusion) the mean of their vectors.

    It is what `finetune vision` computes with mode "probe" before its heads while its scores are even. T up
    to a whole window's; a window's vector does not depend on its company but in rounding. PlethoraError:
    images that are too large for the backbone.
    """
    sizes(backbone, imaging)
    backbone.eval().requires_grad_(False)

    @torch.inference_mode()
    def run(x_nct: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(np.ascontiguousarray(x_nct[:, 0], np.float32))
        rows, columns = backbone.patch
        fitted = [backbone.fitted(*shape) for shape in shapes(imaging, x.shape[1])]
        part = max(1, PATCHES // sum(h // rows * (w // columns) for h, w in fitted))
        found = [_mean(backbone, imaging, some) for some in x.split(part)] if len(x) else []
        return torch.cat([x.new_zeros(0, backbone.dim), *found]).numpy()

    return run


def _mean(backbone: Backbone, imaging: Imaging, x_bt: Tensor) -> Tensor:
    vectors = []
    for image in images(x_bt, imaging):
        tokens, valid = backbone(image)
        weight = valid.to(tokens.dtype)[..., None]
        vectors.append((tokens * weight).sum(1) / weight.sum(1))
    return torch.stack(vectors).mean(0)
