"""A DINOv2-shaped ViT in an ONNX graph -> weights of the same model of timm, checked on the graph's tokens.

An exporter keeps the names of biases and norms, but gives the weight of a matrix product and the halves of a
split table of positions names of its own: they are identified by the place where the graph uses them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from cluster.errors import PlethoraError
from finetune.graph import Graph

if TYPE_CHECKING:
    from onnx import ModelProto

LARGEST = 2**31 - 1  # bytes of one protobuf message
TOLERANCE = 1e-4
FLOAT = 1  # onnx.TensorProto.FLOAT
RENAMED = (  # Hugging Face's names -> timm's
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.", ""),
    (r"^encoder\.layer\.", "blocks."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.attention\.attention\.(query|key|value)\.", r".attn.\1."),
    (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
    (r"^layernorm\.", "norm."),
)


@dataclass(frozen=True)
class Trunk:
    """The part of a graph from its image to its normalised tokens, for images of any size."""

    model: ModelProto
    image: str  # name of its input
    state: dict[str, Tensor]  # by timm's names

    def tokens(self, pixels: np.ndarray, where: str) -> np.ndarray:
        """(B, 3, H, W) float32, normalised -> (B, tokens, D) by onnxruntime."""
        return Graph(self.model.SerializeToString(), where)({self.image: pixels})


def trunk(path: str) -> Trunk:
    """The ViT of the ONNX file at `path`; what follows its tokens (a decoder, a classifier) is left out.
    PlethoraError: no ONNX file, a part of it is missing, or no ViT of this shape is in it.
    """
    model = _read(path)
    values = _initializers(model)
    found = [name for name in values if re.search(r"(^|\.)cls_token$", name)]
    if len(found) != 1:
        raise PlethoraError(f"{path} holds no ViT with one class token: its names end in cls_token {found}")
    prefix = found[0].removesuffix("cls_token").removesuffix("embeddings.")
    last = [
        node for node in model.graph.node if {f"{prefix}layernorm.bias", f"{prefix}norm.bias"} & {*node.input}
    ]
    if len(last) != 1:
        raise PlethoraError(f"{path}: no last normalisation follows the blocks ({prefix}layernorm.bias)")
    _cut(model, last[0].output[0])
    images = [i.name for i in model.graph.input]
    if len(images) != 1:
        raise PlethoraError(
            f"{path}: the ViT takes {len(images)} inputs ({', '.join(images)}), not one image"
        )
    return Trunk(model, images[0], _state(model, prefix))


def native(vit: Any) -> tuple[int, int]:
    """Height and width of the images that the model's table of positions is for: no position is resampled."""
    (rows, columns), (height, width) = vit.patch_embed.grid_size, vit.patch_embed.patch_size
    return rows * height, columns * width


def largest_difference(found: Trunk, vit: Any, where: str) -> float:
    """Between the tokens of `vit` and the graph's own on two drawn images of the size that the table of
    positions is for. PlethoraError: more than TOLERANCE.
    """
    pixels = torch.randn(2, 3, *native(vit), generator=torch.Generator().manual_seed(0))
    wanted = found.tokens(pixels.numpy(), where)
    with torch.inference_mode():
        tokens = vit.eval()(pixels).numpy()
    apart = float(np.abs(tokens - wanted).max()) if tokens.shape == wanted.shape else float("inf")
    if not apart <= TOLERANCE:
        raise PlethoraError(
            f"{where}: its tokens {wanted.shape} and those of timm's model {tokens.shape} differ by "
            f"{apart:.2g} (at most {TOLERANCE:g}), though their weights have the same names: it is of "
            "another model, whose name goes with --as"
        )
    return apart


def _read(path: str) -> ModelProto:
    import onnx
    from onnx.external_data_helper import load_external_data_for_model

    file = Path(path)
    if not file.is_file():
        raise PlethoraError(f"{path}: there is no such file")
    if file.stat().st_size > LARGEST:
        raise PlethoraError(f"{path} is larger than 2 GiB, which no ONNX file is: give the graph itself")
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf raises classes of its own
        raise PlethoraError(f"{path} is no ONNX file ({type(error).__name__})") from None
    if not model.graph.node:
        raise PlethoraError(f"{path} is no ONNX file: no graph is in it")
    try:
        load_external_data_for_model(model, str(file.parent))  # refuses files outside this folder
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise PlethoraError(
            f"{path} keeps weights in another file, which cannot be read ({reason}): put it beside the graph"
        ) from None
    return model


def _initializers(model: ModelProto) -> dict[str, np.ndarray]:
    from onnx import numpy_helper

    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def _cut(model: ModelProto, tokens: str) -> None:
    """Leaves what `tokens` is computed from, in place, and opens the sizes of its input."""
    from onnx import helper

    graph, needed, kept = model.graph, {tokens}, []
    for node in reversed(graph.node):
        if needed & {*node.output}:
            needed |= {*node.input}
            kept.append(node)
    own = {t.name for t in graph.initializer}
    inputs = [i for i in graph.input if i.name in needed - own]
    for value in inputs:
        for number, size in enumerate(value.type.tensor_type.shape.dim):
            if number != 1:
                size.dim_param = f"size_{number}"
    left = helper.make_graph(
        kept[::-1],
        graph.name,
        inputs,
        [helper.make_tensor_value_info(tokens, FLOAT, None)],
        [t for t in graph.initializer if t.name in needed],
    )
    graph.CopyFrom(left)


def _state(model: ModelProto, prefix: str) -> dict[str, Tensor]:
    """{timm's name: tensor} of all weights in the graph."""
    values = {name: x for name, x in _initializers(model).items() if x.dtype.kind == "f" and x.ndim}
    named = {name: x for name, x in values.items() if name.startswith(prefix) and "::" not in name}
    after: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            after.setdefault(name, []).append(node)
    for node in model.graph.node:
        if node.op_type != "MatMul" or node.input[1] not in values:
            continue
        for bias in (b for add in after.get(node.output[0], []) for b in add.input if b.endswith(".bias")):
            named.pop(node.input[1], None)
            named[bias.removesuffix("bias") + "weight"] = values[node.input[1]].T
    tables = [_rows(x) for name, x in values.items() if name not in named and x.ndim > 2]
    if len(tables) == 2:  # the class token's position, and the patches'
        named[f"{prefix}pos_embed"] = np.concatenate(sorted(tables, key=lambda x: x.shape[1]), axis=1)
    state = {_renamed(name.removeprefix(prefix)): x for name, x in named.items()}
    for name in [name for name in state if ".attn.query." in name]:
        parts = [name.replace("query", part) for part in ("query", "key", "value")]
        if all(part in state for part in parts):
            state[name.replace("query", "qkv")] = np.concatenate([state.pop(part) for part in parts])
    return {name: torch.from_numpy(np.array(x, np.float32)) for name, x in state.items()}


def _rows(table: np.ndarray) -> np.ndarray:
    """(1, N, D) of a table of positions that may be laid out as an image (1, D, rows, columns)."""
    return table.reshape(*table.shape[:2], -1).transpose(0, 2, 1) if table.ndim == 4 else table


def _renamed(name: str) -> str:
    for pattern, timms in RENAMED:
        name = re.sub(pattern, timms, name)
    return name
