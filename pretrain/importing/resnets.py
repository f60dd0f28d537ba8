"""Import of residual networks that their authors released: PaPaGei-S and -P, Pulse-PPG, ECGFounder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from pretrain.importing.config import settle
from pretrain.importing.names import Filling, Names
from pretrain.net1d import authors_net, table
from pretrain.recipe import Encoder
from pretrain.recipes.released import ECGFounderConfig, PaPaGeiConfig, PulsePPGConfig
from pretrain.resnet1d import DOUBLES

Imported = tuple[Encoder, dict[str, nn.Module], Any]


def papagei_s(names: Names, given: Mapping[str, Any]) -> Imported:
    """Import ``ResNet1DMoE`` (``papagei_s.pt``). Its experts, which predict morphology in training, are
    unused. Returns (encoder, modules by name, config). Errors: PlethoraError, ValueError."""
    names.drop("expert_layers_1.", "expert_layers_2.", "gating_network_1.", "gating_network_2.")
    return _papagei(names, given, "PaPaGei-S")


def papagei_p(names: Names, given: Mapping[str, Any]) -> Imported:
    """Import ``ResNet1D`` (``papagei_p.pt``; ``papagei_s_svri.pt`` has the same names). Returns and errors:
    as for ``papagei_s``."""
    return _papagei(names, given, "PaPaGei-P")


def pulse_ppg(names: Names, given: Mapping[str, Any]) -> Imported:
    """Import ``Net`` of Pulse-PPG (``checkpoint_best.pkl``). Returns and errors: as for ``papagei_s``."""
    config = settle(PulsePPGConfig, _sizes(names), given)
    net = config.net().eval()
    fill = Filling(net, names)
    _trunk(fill, config.blocks)
    names.finish("Pulse-PPG")
    fill.load()
    return config.encoder(net), {"net": net}, config


def ecgfounder(names: Names, given: Mapping[str, Any]) -> Imported:
    """Import ECGFounder's ``Net1D`` of any number of leads. Its batch norms, which its code never calls, and
    its head (``dense``) are unused. Returns and errors: as for ``papagei_s``."""
    net = authors_net(names, bare=True).eval()
    names.finish("ECGFounder")
    config = settle(ECGFounderConfig, {"channels": net.stem.in_channels, **table(net)}, given)
    return config.encoder(net), {"net": net}, config


def _papagei(names: Names, given: Mapping[str, Any], what: str) -> Imported:
    inferred = {**_sizes(names), "dim": names.shape("dense.weight")[0]}
    config = settle(PaPaGeiConfig, inferred, given)
    net = config.net().eval()
    fill = Filling(net, names)
    _trunk(fill, config.blocks)
    fill.norm("norm", "final_bn")
    fill.move("head", "dense")
    names.finish(what)
    fill.load()
    return config.encoder(net), {"net": net}, config


def _sizes(names: Names) -> dict[str, int]:
    """The config keys that describe a ``ResNet1D``. Errors: ValueError when there is no such network."""
    filters, channels, kernel = names.shape("first_block_conv.conv.weight")
    blocks = names.count("basicblock_list.")
    last = names.shape(f"basicblock_list.{blocks - 1}.conv2.conv.weight")[0]
    grown = filters * 2 ** ((blocks - 1) // DOUBLES)
    if channels != 1:
        raise ValueError(f"it takes {channels} channels, and one is wanted")
    if last != grown:  # asked before a network of that size is built
        raise ValueError(
            f"block {blocks - 1} has {last} filters, and {blocks} blocks from {filters} end at {grown}"
        )
    return {"filters": filters, "kernel": kernel, "blocks": blocks}


def _trunk(fill: Filling, blocks: int) -> None:
    """Map the convolutions. A bias before batch norm is subtracted from the running mean, which gives the
    same function; the first block's first norm is never called."""
    fill.names.drop("basicblock_list.0.bn1.")
    fill.move("trunk.stem", "first_block_conv.conv", ["weight"])
    fill.norm("trunk.norm", "first_block_bn", "first_block_conv.conv.bias")
    for number in range(blocks):
        ours, theirs = f"trunk.blocks.{number}", f"basicblock_list.{number}"
        if number:
            fill.norm(f"{ours}.norm1", f"{theirs}.bn1")
        fill.move(f"{ours}.conv1", f"{theirs}.conv1.conv", ["weight"])
        fill.norm(f"{ours}.norm2", f"{theirs}.bn2", f"{theirs}.conv1.conv.bias")
        fill.move(f"{ours}.conv2", f"{theirs}.conv2.conv")
