"""Import of MOMENT's released state dicts (AutonLab/MOMENT-1-small, -base and -large) into our network,
function for function."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from pretrain.importing.config import settle
from pretrain.importing.names import Filling, Names
from pretrain.recipe import Encoder
from pretrain.recipes.released import MOMENTConfig

PARTS = {  # of a block: ours, theirs
    "norm1": "layer.0.layer_norm",
    "q": "layer.0.SelfAttention.q",
    "k": "layer.0.SelfAttention.k",
    "v": "layer.0.SelfAttention.v",
    "proj": "layer.0.SelfAttention.o",
    "norm2": "layer.1.layer_norm",
    "gate": "layer.1.DenseReluDense.wi_0",
    "up": "layer.1.DenseReluDense.wi_1",
    "down": "layer.1.DenseReluDense.wo",
}
ATTENTION = "encoder.block.0.layer.0.SelfAttention"


def moment(names: Names, given: Mapping[str, Any]) -> tuple[Encoder, dict[str, nn.Module], MOMENTConfig]:
    """Import ``MOMENTPipeline`` (``model.safetensors`` or ``pytorch_model.bin``). Unused are its head, T5's
    table of words, and the vector of masked patches, since nothing attends to these or averages them. Returns
    (encoder, modules by name, config). Errors: PlethoraError, ValueError."""
    names.drop("head.", "encoder.embed_tokens.", "patch_embedding.mask_embedding")
    dim, patch = names.shape("patch_embedding.value_embedding.weight")
    buckets, heads = names.shape(f"{ATTENTION}.relative_attention_bias.weight")
    inferred = {
        "dim": dim,
        "depth": names.count("encoder.block."),
        "heads": heads,
        "head_dim": names.shape(f"{ATTENTION}.q.weight")[0] // heads,
        "hidden": names.shape("encoder.block.0.layer.1.DenseReluDense.wi_0.weight")[0],
        "patch": patch,
        "buckets": buckets,
    }
    config = settle(MOMENTConfig, inferred, given)
    net = config.net().eval()
    fill = Filling(net, names)
    fill.move("embed", "patch_embedding.value_embedding", ["weight"])
    table = "patch_embedding.position_embedding.pe"
    rows = names.take(table, (1, max(names.shape(table)[1], len(net.positions)), dim))
    fill.new |= {"positions": rows[0, : len(net.positions)], "bucket_of": net.bucket_of}
    fill.new["biases"] = names.take(f"{ATTENTION}.relative_attention_bias.weight", (buckets, heads))
    for number in range(config.depth):
        for ours, theirs in PARTS.items():
            fill.move(f"blocks.{number}.{ours}", f"encoder.block.{number}.{theirs}", ["weight"])
    fill.move("norm", "encoder.final_layer_norm", ["weight"])
    names.finish("MOMENT")
    fill.load()
    return config.encoder(net), {"net": net}, config
