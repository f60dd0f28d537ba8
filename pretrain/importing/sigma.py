"""Import of SIGMA-PPG's released state dicts (ZonghengGuo/SigmaPPG) into our networks, function for function.

Its modules are BEiT's and LaBraM's. Differences in form are folded exactly: a learned vector that all patches
share is added to the positions, and another to the class token; a bias on the keys, or on their LayerNorm,
cancels in the softmax; a missing projection is the identity.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from cluster.config import validate
from cluster.errors import PlethoraError
from pretrain.importing.config import settle
from pretrain.importing.names import Filling, Names
from pretrain.recipe import Encoder
from pretrain.recipes.sigma import Masked, MaskedConfig, Tokenizer, TokenizerConfig, tokens
from pretrain.sigma_net import Student, conv_encoder

WIDTH = 200  # of the only released tokenizer, which has 10 heads
RANGES = {(-1, 1): "its first release (b1cc8d9)", (0, 1): "releases from ea1a3de on"}


def tokenizer(
    names: Names, given: Mapping[str, Any]
) -> tuple[Encoder, dict[str, nn.Module], TokenizerConfig]:
    """Import ``VQNSP``. Returns (encoder, modules by name, config). ``given``: config keys that the user
    sets.

    Shapes do not determine the number of heads: it is 10 at the release's width, otherwise ``given`` must set
    it. The release adds no position to a single patch, hence the minimum of two patches.
    Errors: PlethoraError, ValueError.
    """
    base = validate(TokenizerConfig, dict(given), "--set")
    _check_range(given)
    dim = names.shape("encoder.cls_token")[-1]
    decoder_dim = names.shape("decoder.cls_token")[-1]
    patch = names.shape("decode_task_layer.2.weight")[0]
    count = names.shape("encoder.time_embed")[1]
    size, code_dim = names.shape("quantize.embedding.weight")
    inferred = {
        "patch": patch,
        "window_s": count * patch / base.rate,
        "conv_channels": names.shape("encoder.patch_embed.conv1.weight")[0],
        "dim": dim,
        "depth": names.count("encoder.blocks."),
        "decoder_dim": decoder_dim,
        "decoder_depth": names.count("decoder.blocks."),
        "codebook_size": size,
        "code_dim": code_dim,
        "phase": "decode_task_layer_angle.0.weight" in names.left,
        "centre": False,
        "final_norms": 2 if "encoder.fc_norm.weight" in names.left else 1,
        "min_patches": 2,
    }
    for key, width in (("heads", dim), ("decoder_heads", decoder_dim)):
        if key not in given and width != WIDTH:
            raise PlethoraError(f"no shape tells the heads at a width of {width}: --set {key}=N")
    c = settle(TokenizerConfig, inferred, given)
    net = tokens(c).eval()
    # the release's loader skips these; the last two are training statistics that nothing reads
    names.drop(
        "loss", "teacher", "scaling", "quantize.embedding.cluster_size", "quantize.embedding.embed_avg"
    )

    fill = Filling(net, names)
    fill.new |= {
        name: fill.wanted[name] for name in ("mean_spectrum", "spectra_seen")
    }  # ours: no such centre
    _conv(fill, "encoder.embed", "encoder.patch_embed", "encoder.patch_proj")
    _transformer(fill, "encoder.", "encoder.", c.depth)
    _positions(fill, "encoder.", "encoder.", cls=0)
    if c.final_norms == 2:
        fill.move("encoder.norm.0", "encoder.norm")
        fill.move("encoder.norm.1", "encoder.fc_norm")
    else:
        fill.move("encoder.norm", "encoder.norm")
    kernel = names.take("decoder.patch_embed.proj.weight", (decoder_dim, code_dim, 1))
    fill.new["decoder.embed.weight"] = kernel[..., 0]
    fill.move("decoder.embed", "decoder.patch_embed.proj", ["bias"])
    _transformer(fill, "decoder.", "decoder.", c.decoder_depth)
    fill.new["decoder.cls_token"] = names.take("decoder.cls_token", (1, 1, decoder_dim))
    fill.new["decoder.positions"] = names.take("decoder.time_embed", (1, count, decoder_dim))
    fill.move("decoder.norm", "decoder.norm")
    heads = [("to_code", "encode_task_layer"), ("to_amplitude", "decode_task_layer")]
    for ours, theirs in heads + [("to_phase", "decode_task_layer_angle")] * c.phase:
        for layer in (0, 2):
            fill.move(f"{ours}.{layer}", f"{theirs}.{layer}")
    _codebook(fill, size, code_dim)
    names.finish("the tokenizer")
    fill.load()
    return Tokenizer(c, 0).encoder({"tokenizer": net}), {"tokenizer": net}, c


def student(names: Names, given: Mapping[str, Any]) -> tuple[Encoder, dict[str, nn.Module], MaskedConfig]:
    """Import the masked model, with or without the wrapper that stores it as ``student``. Returns (encoder,
    modules by name, config). If there is a wrapper, its head is the trained one and the inner head is
    dropped.

    As in its pretraining, the class token gets the shared vector of the patches.
    Errors: PlethoraError, ValueError.
    """
    wrapped = any(name.startswith("student.") for name in names.left)
    at = "student." if wrapped else ""
    names.drop("projection_head.", *["student.lm_head."] * wrapped)
    for part, other in (("patch_embed_conv", "seq.0"), ("patch_embed_projection", "seq.1")):
        _same(names, f"{at}{part}.", f"{at}patch_embed_{other}.")
    base = validate(MaskedConfig, dict(given), "--set")
    _check_range(given)
    dim = names.shape(f"{at}cls_token")[-1]
    count = names.shape(f"{at}time_embed")[1]
    channels = names.shape(f"{at}patch_embed_conv.conv1.weight")[0]
    projection = f"{at}patch_embed_projection.weight"
    wide = names.shape(projection)[1] if projection in names.left else dim
    patch = base.patch if "patch" in given else base.samples // count
    if (patch - 1) // 8 + 1 != wide / channels:
        raise PlethoraError(
            f"{count} positions and convolutions of {wide} outputs do not fit patches of {patch} samples: "
            "--set patch=SAMPLES, or window_s and rate of its longest window"
        )
    inferred = {
        "patch": patch,
        "window_s": count * patch / base.rate,
        "max_patches": count,
        "conv_channels": channels,
        "dim": dim,
        "depth": names.count(f"{at}blocks."),
        "heads": dim // names.shape(f"{at}blocks.0.attn.q_norm.weight")[0],
        "mlp_ratio": names.shape(f"{at}blocks.0.mlp.fc1.weight")[0] / dim,
        "codebook_size": names.shape("lm_head.weight")[0],
    }
    if f"{at}blocks.0.gamma_1" not in names.left:
        inferred["layer_scale"] = 0.0
    c = settle(MaskedConfig, inferred, given)
    inner = conv_encoder(
        c.patch,
        c.conv_channels,
        c.dim,
        c.depth,
        c.heads,
        c.max_patches,
        mlp_ratio=c.mlp_ratio,
        qk_norm=True,
        layer_scale=c.layer_scale,
        maskable=True,
    )
    net = Student(inner, c.patch, c.dim, c.codebook_size, c.input_range).eval()

    fill = Filling(net, names)
    _conv(fill, "encoder.embed", f"{at}patch_embed_conv", f"{at}patch_embed_projection")
    _transformer(fill, "encoder.", at, c.depth)
    _positions(fill, "encoder.", at, cls=1)
    fill.new["encoder.mask_token"] = names.take(f"{at}mask_token", (1, 1, dim))
    fill.move("encoder.norm", f"{at}norm")
    fill.move("head", "lm_head")
    names.finish("the student")
    fill.load()
    return Masked(c, 0).encoder({"student": net}), {"student": net}, c


def _check_range(given: Mapping[str, Any]) -> None:
    """Errors: PlethoraError unless ``given`` says which range the weights were trained on. The scaling is in
    the authors' preprocessing, so neither a tensor nor an option of the trainer tells it."""
    if tuple(given.get("input_range", ())) not in RANGES:
        known = ", ".join(f"[{low}, {high}] for {of}" for (low, high), of in RANGES.items())
        raise PlethoraError(
            "nothing in a checkpoint tells the range that the authors' preprocessing scaled its windows to: "
            f'--set "input_range=[LOW,HIGH]" ({known} of their code)'
        )


def _conv(fill: Filling, ours: str, theirs: str, projection: str) -> None:
    """Map the convolutions inside patches and the linear layer after them, which is absent if it would not
    change the width."""
    for layer in range(3):
        fill.move(f"{ours}.conv.{3 * layer}", f"{theirs}.conv{layer + 1}")
        fill.move(f"{ours}.conv.{3 * layer + 1}", f"{theirs}.norm{layer + 1}")
    rows, columns = fill.wanted[f"{ours}.proj.weight"].shape
    if rows == columns and not any(name.startswith(f"{projection}.") for name in fill.names.left):
        fill.new |= {f"{ours}.proj.weight": torch.eye(rows), f"{ours}.proj.bias": torch.zeros(rows)}
    else:
        fill.move(f"{ours}.proj", projection)


def _transformer(fill: Filling, ours: str, theirs: str, depth: int) -> None:
    for number in range(depth):
        a, b = f"{ours}blocks.{number}", f"{theirs}blocks.{number}"
        for part in ("norm1", "norm2", "attn.proj"):
            fill.move(f"{a}.{part}", f"{b}.{part}")
        for part in ("fc1", "fc2"):
            fill.move(f"{a}.{part}", f"{b}.mlp.{part}")
        fill.move(f"{a}.attn.qkv", f"{b}.attn.qkv", ["weight"])
        for name, known in (
            ("attn.q_bias", "attn.q_bias"),
            ("attn.v_bias", "attn.v_bias"),
            ("gamma1", "gamma_1"),
            ("gamma2", "gamma_2"),
        ):
            if (wanted := fill.wanted.get(f"{a}.{name}")) is not None:
                fill.new[f"{a}.{name}"] = fill.names.take(f"{b}.{known}", wanted.shape)
        if f"{a}.attn.q_norm.weight" in fill.wanted:
            fill.move(f"{a}.attn.q_norm", f"{b}.attn.q_norm")
            fill.move(f"{a}.attn.k_norm", f"{b}.attn.k_norm", ["weight"])
            fill.names.take(f"{b}.attn.k_norm.bias", fill.wanted[f"{a}.attn.k_norm.weight"].shape)


def _positions(fill: Filling, ours: str, theirs: str, cls: int) -> None:
    """Map the positions. ``time_embed`` holds one vector per position; of ``pos_embed``, only row 1 applies
    to the patches of one channel, and row ``cls`` to the class token."""
    names, dim = fill.names, fill.wanted[f"{ours}cls_token"].shape[-1]
    name = f"{theirs}pos_embed"
    rows = max(names.shape(name)[1], 2)
    shared = names.take(name, (1, rows, dim))
    token = names.take(f"{theirs}cls_token", (1, 1, dim))
    fill.new[f"{ours}cls_token"] = token + shared[:, cls : cls + 1]
    wanted = fill.wanted[f"{ours}positions"].shape
    fill.new[f"{ours}positions"] = names.take(f"{theirs}time_embed", wanted) + shared[:, 1:2]


def _codebook(fill: Filling, size: int, dim: int) -> None:
    """Map the codebook. The release's nearest code equals ours only for unit vectors, as its training keeps
    them."""
    codes = fill.names.take("quantize.embedding.weight", (size, dim))
    used = fill.names.take("quantize.cluster_size", (size,))
    started = fill.names.take("quantize.embedding.initted", (1,))
    book = "quantizer.vq._codebook."
    fill.new |= {
        f"{book}initted": torch.tensor(True),
        f"{book}cluster_size": used[None],
        f"{book}embed_avg": (codes * used.clamp_min(1)[:, None])[None],
        f"{book}embed": codes[None],
    }
    fill.names.finish("the tokenizer")  # report a missing codebook as missing
    if not bool(started.all()):
        raise PlethoraError("its codebook was never started (quantize.embedding.initted is 0)")
    norms = codes.norm(dim=-1)
    if bad := int((norms - 1).abs().gt(1e-3).sum()):
        raise PlethoraError(f"{bad} of {size} codes in quantize.embedding.weight are no unit vectors")


def _same(names: Names, first: str, second: str) -> None:
    """Keep the first of two names of one module. Errors: PlethoraError when their tensors differ."""
    for name in [name for name in names.left if name.startswith(second)]:
        value, known = names.left.pop(name), first + name[len(second) :]
        if known in names.left and not torch.equal(names.left[known], value):
            raise PlethoraError(f"{known} and {name} should be one tensor and differ")
        names.left[known] = value
