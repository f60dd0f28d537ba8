"""Import of AnyPPG's released state dicts (PKUDigitalHealth/AnyPPG) into our networks, function for
function."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from cluster.errors import PlethoraError
from pretrain.importing.config import settle
from pretrain.importing.names import Filling, Names
from pretrain.net1d import Net1D, Projector, authors_net, table
from pretrain.recipe import Encoder
from pretrain.recipes.anyppg import AnyPPG, AnyPPGConfig, Pair


def anyppg(names: Names, given: Mapping[str, Any]) -> tuple[Encoder, dict[str, nn.Module], AnyPPGConfig]:
    """Import the PPG encoder alone (``anyppg_ckpt.pth``), or the whole ``CLIP`` module, whose ECG encoder
    becomes the mode "ecg". Returns (encoder, modules by name, config). Errors: PlethoraError, ValueError."""
    whole = any(name.startswith("ppg_encoder.") for name in names.left)
    ppg = authors_net(names, "ppg_encoder." if whole else "")
    inferred = _table(ppg, "ppg_encoder")
    if not whole:
        names.finish("AnyPPG's PPG encoder, nor of its CLIP module")
        c = settle(AnyPPGConfig, inferred, given)
        return c.encoder({"ppg": ppg}), {"pair.ppg": ppg}, c

    ecg = authors_net(names, "ecg_encoder.")
    other = _table(ecg, "ecg_encoder")
    for key in ("stem", "width"):
        if inferred[key] != other[key]:
            raise PlethoraError(
                f"its encoders differ in {key}: PPG {inferred[key]}, ECG {other[key]}; they must be equal"
            )
    inferred |= {f"ecg_{key}": other[key] for key in ("filters", "blocks", "kernel")}
    inferred["projection"] = names.shape("ppg_projector.3.weight")[0]
    c = settle(AnyPPGConfig, inferred, given)
    pair = Pair(c.net(), c.ecg_net(), ecg.dim, c)
    assert pair.ecg is not None
    pair.ppg.load_state_dict(ppg.state_dict())
    pair.ecg.load_state_dict(ecg.state_dict())
    heads = [
        _projector(pair.ppg_head, names, "ppg_projector"),
        _projector(pair.ecg_head, names, "ecg_projector"),
    ]
    scale = names.take("clip_loss.logit_scale", ())
    names.finish("AnyPPG's CLIP module")
    for head in heads:
        head.load()
    with torch.no_grad():
        pair.scale.log.fill_(scale)
    return AnyPPG(c, 0).encoder({"pair": pair.eval()}), {"pair": pair}, c


def _table(net: Net1D, name: str) -> dict[str, Any]:
    """The config keys that describe a network. Errors: PlethoraError when it takes several channels."""
    if net.stem.in_channels != 1:
        raise PlethoraError(f"its {name} takes {net.stem.in_channels} channels, and one is wanted")
    return table(net)


def _projector(head: Projector, names: Names, theirs: str) -> Filling:
    """Map a projector. The bias before its batch norm is subtracted from the running mean."""
    fill = Filling(head, names)
    fill.move("0", f"{theirs}.0", ["weight"])
    fill.norm("1", f"{theirs}.1", f"{theirs}.0.bias")
    fill.move("3", f"{theirs}.3")
    return fill
