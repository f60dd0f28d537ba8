"""State dicts as the authors of SIGMA-PPG name them, random values, and what they compute: float64, from the
names alone, none of our modules. Shapes and order of steps: their public code."""

import numpy as np
import torch
from scipy.special import erf

State = dict[str, torch.Tensor]
GROUPS = 4


class Writer:
    """Random tensors by name."""

    def __init__(self, seed: int) -> None:
        self.state: State = {}
        self._draw = torch.Generator().manual_seed(seed)

    def put(self, name: str, *shape: int, scale: float = 0.3) -> None:
        self.state[name] = scale * torch.randn(*shape, generator=self._draw)

    def linear(self, name: str, rows: int, columns: int, bias: bool = True) -> None:
        self.put(f"{name}.weight", rows, columns)
        if bias:
            self.put(f"{name}.bias", rows)

    def norm(self, name: str, size: int) -> None:
        self.put(f"{name}.weight", size)
        self.state[f"{name}.weight"] += 1
        self.put(f"{name}.bias", size)

    def conv(self, name: str, channels: int) -> None:
        for layer, (inputs, width) in enumerate(((1, 15), (channels, 3), (channels, 3)), start=1):
            self.put(f"{name}.conv{layer}.weight", channels, inputs, 1, width)
            self.put(f"{name}.conv{layer}.bias", channels)
            self.norm(f"{name}.norm{layer}", channels)

    def blocks(self, at: str, depth: int, dim: int, hidden: int, head: int = 0, bias: bool = False) -> None:
        """head: width of a head where queries and keys are normalised, with LayerScale; 0: neither."""
        for number in range(depth):
            name = f"{at}blocks.{number}"
            for norm in ("norm1", "norm2"):
                self.norm(f"{name}.{norm}", dim)
            self.linear(f"{name}.attn.qkv", 3 * dim, dim, bias=False)
            if bias:
                self.put(f"{name}.attn.q_bias", dim)
                self.put(f"{name}.attn.v_bias", dim)
            if head:
                self.norm(f"{name}.attn.q_norm", head)
                self.norm(f"{name}.attn.k_norm", head)
                self.put(f"{name}.gamma_1", dim)
                self.put(f"{name}.gamma_2", dim)
            self.linear(f"{name}.attn.proj", dim, dim)
            self.linear(f"{name}.mlp.fc1", hidden, dim)
            self.linear(f"{name}.mlp.fc2", dim, hidden)


def tokenizer(
    patch: int, count: int, dim: int, channels: int, codes: int, code_dim: int, phase: bool
) -> State:
    """VQNSP: encoder, decoder, codebook, heads."""
    w = Writer(1)
    w.conv("encoder.patch_embed", channels)
    wide = ((patch - 1) // 8 + 1) * channels
    if wide != dim:
        w.linear("encoder.patch_proj", dim, wide)
    w.put("encoder.cls_token", 1, 1, dim)
    w.put("encoder.pos_embed", 1, count + 1, dim)
    w.put("encoder.time_embed", 1, count, dim)
    w.blocks("encoder.", 2, dim, 4 * dim, bias=True)
    w.norm("encoder.norm", dim)
    w.norm("encoder.fc_norm", dim)
    w.put("decoder.patch_embed.proj.weight", dim, code_dim, 1)
    w.put("decoder.patch_embed.proj.bias", dim)
    w.put("decoder.cls_token", 1, 1, dim)
    w.put("decoder.time_embed", 1, count, dim)
    w.blocks("decoder.", 1, dim, 4 * dim, bias=True)
    w.norm("decoder.norm", dim)
    heads = [("encode_task_layer", code_dim), ("decode_task_layer", patch)]
    for name, out in heads + [("decode_task_layer_angle", patch)] * phase:
        w.linear(f"{name}.0", dim, dim)
        w.linear(f"{name}.2", out, dim)
    w.put("quantize.embedding.weight", codes, code_dim)
    book = w.state["quantize.embedding.weight"]
    book /= book.norm(dim=-1, keepdim=True)
    w.state["quantize.embedding.initted"] = torch.ones(1)
    w.state["quantize.embedding.embed_avg"] = torch.zeros(codes, code_dim)
    w.state["quantize.embedding.cluster_size"] = torch.zeros(codes)
    w.state["quantize.cluster_size"] = torch.arange(codes).float()
    return w.state


def student(patch: int, count: int, dim: int, channels: int, codes: int, head: int) -> State:
    """The masked model in its wrapper; convolutions stand in it under two names, as in theirs."""
    w = Writer(2)
    at = "student."
    w.conv(f"{at}patch_embed_conv", channels)
    w.linear(f"{at}patch_embed_projection", dim, ((patch - 1) // 8 + 1) * channels)
    for name in list(w.state):
        other = name.replace("patch_embed_conv", "patch_embed_seq.0")
        w.state[other.replace("patch_embed_projection", "patch_embed_seq.1")] = w.state[name]
    for name, rows in (("cls_token", 1), ("mask_token", 1), ("pos_embed", 129), ("time_embed", count)):
        w.put(f"{at}{name}", 1, rows, dim)
    w.blocks(at, 2, dim, 3 * dim, head=head)
    w.norm(f"{at}norm", dim)
    w.linear(f"{at}lm_head", codes, dim)
    w.linear("lm_head", codes, dim)
    w.linear("projection_head.0", dim, dim)
    return w.state


class Reference:
    """What such a state computes on one window that is in [0, 1] already."""

    def __init__(self, state: State) -> None:
        self.s = {name: value.double().numpy() for name, value in state.items()}

    def tokens(self, x: np.ndarray, patch: int, heads: int) -> np.ndarray:
        """Tokenizer's encoder: (T,) -> (N, D)."""
        s = self.s
        y = self._convolved("encoder.patch_embed", x.reshape(-1, patch))
        if "encoder.patch_proj.weight" in s:
            y = self._linear("encoder.patch_proj", y)
        pos, n = s["encoder.pos_embed"][0], len(y)
        y = y + pos[1] + s["encoder.time_embed"][0, :n]
        y = np.concatenate([s["encoder.cls_token"][0] + pos[0], y])
        y = self._norm("encoder.norm", self._blocks("encoder.", y, heads))
        return self._norm("encoder.fc_norm", y[1:])

    def codes(self, features: np.ndarray) -> np.ndarray:
        z = self._head("encode_task_layer", features)
        z = z / np.linalg.norm(z, axis=-1, keepdims=True)
        book = self.s["quantize.embedding.weight"]
        return ((z[:, None] - book[None]) ** 2).sum(-1).argmin(-1)

    def decoded(self, codes: np.ndarray, heads: int, head: str) -> np.ndarray:
        """Code ids (N,) -> spectrum (N, P)."""
        s = self.s
        z = s["quantize.embedding.weight"][codes]
        y = z @ s["decoder.patch_embed.proj.weight"][..., 0].T + s["decoder.patch_embed.proj.bias"]
        y = np.concatenate([s["decoder.cls_token"][0], y + s["decoder.time_embed"][0, : len(y)]])
        return self._head(head, self._norm("decoder.norm", self._blocks("decoder.", y, heads))[1:])

    def student(self, x: np.ndarray, patch: int, heads: int, hidden: np.ndarray) -> np.ndarray:
        """Student's features: (T,), hidden (N,) -> (N, D)."""
        s, at = self.s, "student."
        y = self._linear(
            f"{at}patch_embed_projection", self._convolved(f"{at}patch_embed_conv", x.reshape(-1, patch))
        )
        y = np.where(hidden[:, None], s[f"{at}mask_token"][0], y)
        shared = s[f"{at}pos_embed"][
            0, 1
        ]  # of the one channel, and by their indexing of the class token, too
        y = np.concatenate([s[f"{at}cls_token"][0], y + s[f"{at}time_embed"][0, : len(y)]]) + shared
        return self._norm(f"{at}norm", self._blocks(at, y, heads))[1:]

    def _linear(self, name: str, y: np.ndarray) -> np.ndarray:
        return y @ self.s[f"{name}.weight"].T + self.s[f"{name}.bias"]

    def _head(self, name: str, y: np.ndarray) -> np.ndarray:
        return self._linear(f"{name}.2", np.tanh(self._linear(f"{name}.0", y)))

    def _norm(self, name: str, y: np.ndarray) -> np.ndarray:
        centred = y - y.mean(-1, keepdims=True)
        y = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
        return y * self.s[f"{name}.weight"] + self.s[f"{name}.bias"]

    def _convolved(self, name: str, x_np: np.ndarray) -> np.ndarray:
        """(N, P) patches -> (N, steps * channels), a step's channels together."""
        y = x_np[None]  # (C, N, P)
        for layer, stride in ((1, 8), (2, 1), (3, 1)):
            w, b = self.s[f"{name}.conv{layer}.weight"][:, :, 0], self.s[f"{name}.conv{layer}.bias"]
            width = w.shape[-1]
            y = np.pad(y, ((0, 0), (0, 0), (width // 2, width // 2)))
            starts = range(0, y.shape[-1] - width + 1, stride)
            y = np.stack([np.einsum("cnk,fck->fn", y[:, :, i : i + width], w) for i in starts], axis=-1)
            y = y + b[:, None, None]
            parts = y.reshape(GROUPS, -1)
            parts = (parts - parts.mean(1, keepdims=True)) / np.sqrt(parts.var(1, keepdims=True) + 1e-5)
            weight, bias = self.s[f"{name}.norm{layer}.weight"], self.s[f"{name}.norm{layer}.bias"]
            y = gelu(parts.reshape(y.shape) * weight[:, None, None] + bias[:, None, None])
        return y.transpose(1, 2, 0).reshape(len(x_np), -1)

    def _blocks(self, at: str, y: np.ndarray, heads: int) -> np.ndarray:
        s, number = self.s, 0
        while f"{at}blocks.{number}.norm1.weight" in s:
            name = f"{at}blocks.{number}"
            ones = np.ones(y.shape[-1])
            y = y + s.get(f"{name}.gamma_1", ones) * self._attended(
                f"{name}.attn", self._norm(f"{name}.norm1", y), heads
            )
            z = gelu(self._linear(f"{name}.mlp.fc1", self._norm(f"{name}.norm2", y)))
            y = y + s.get(f"{name}.gamma_2", ones) * self._linear(f"{name}.mlp.fc2", z)
            number += 1
        return y

    def _attended(self, name: str, y: np.ndarray, heads: int) -> np.ndarray:
        s, dim = self.s, y.shape[-1]
        zeros = np.zeros(dim)
        bias = np.concatenate([s.get(f"{name}.q_bias", zeros), zeros, s.get(f"{name}.v_bias", zeros)])
        q, k, v = np.split(y @ s[f"{name}.qkv.weight"].T + bias, 3, axis=-1)
        out = []
        for part in np.split(np.arange(dim), heads):
            a, b = q[:, part], k[:, part]
            if f"{name}.q_norm.weight" in s:
                a, b = self._norm(f"{name}.q_norm", a), self._norm(f"{name}.k_norm", b)
            logits = a @ b.T / np.sqrt(len(part))
            share = np.exp(logits - logits.max(-1, keepdims=True))
            out.append(share / share.sum(-1, keepdims=True) @ v[:, part])
        return self._linear(f"{name}.proj", np.concatenate(out, axis=-1))


def gelu(y: np.ndarray) -> np.ndarray:
    return y * 0.5 * (1 + erf(y / np.sqrt(2)))


def unit_range(x: np.ndarray) -> np.ndarray:
    return (x - x.min(-1, keepdims=True)) / np.ptp(x, axis=-1, keepdims=True)
