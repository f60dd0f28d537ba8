"""A bundle's description of its inputs, derived from the windows that its recipe trains on.

A recipe states only what windows do not determine: the network, the width of its vectors, the input lengths,
how shorter input is treated, and the unit if the network depends on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from cluster.errors import PlethoraError
from datasets import declared
from datasets.signal import HALF
from datasets.windows import Signal, WindowSpec
from pretrain.recipe import Decoder, Encoder, Mode

if TYPE_CHECKING:
    from torch import nn

Short = Literal["reflect", "repeat", "refuse"]


def mode(
    spec: WindowSpec,
    module: nn.Module,
    dim: int,
    modalities: Sequence[str] = ("ppg",),
    *,
    min_samples: int,
    step_samples: int = 1,
    max_samples: int | None = None,
) -> Mode:
    """One input mode of an encoder: `module` maps the signals `modalities` of `spec`, in this order, to (B,
    dim).

    min_samples, step_samples, max_samples: as in `Mode`; by default the longest input is one window, in whole
    steps. Errors: PlethoraError when `spec` has no such signal, or the signals have different rates.
    """
    signals = [signal_of(spec, modality) for modality in modalities]
    longest = _longest(spec, signals, step_samples)
    return Mode(module, [_input(s) for s in signals], dim, min_samples, step_samples, max_samples or longest)


def decoder(
    spec: WindowSpec,
    module: nn.Module,
    source: str,
    target: str,
    *,
    min_samples: int,
    step_samples: int = 1,
    max_samples: int | None = None,
) -> Decoder:
    """A `Decoder` from signal `source` of `spec` to signal `target`; lengths and errors as in `mode`."""
    given, wanted = signal_of(spec, source), signal_of(spec, target)
    longest = _longest(spec, [given, wanted], step_samples)
    output = {"modality": wanted.modality, "rate": wanted.rate, "channels": wanted.channels}
    return Decoder(module, [_input(given)], output, min_samples, step_samples, max_samples or longest)


def encoder(
    spec: WindowSpec,
    modes: Mapping[str, Mode],
    kind: Literal["encoder", "tokenizer", "adapter"] = "encoder",
    *,
    short: Short = "reflect",
    unit: str = "any",
    decoders: Mapping[str, Decoder] | None = None,
) -> Encoder:
    """The published encoder of `modes`, with the preprocessing of every signal that they take.

    short: how input shorter than ``min_samples`` is treated; unit: the unit that the network expects ("any"
    if it normalises). Errors: PlethoraError when two modes have different shortest lengths for one signal.
    """
    preprocessing: dict[str, dict[str, Any]] = {}
    for name, each in modes.items():
        for given in each.inputs:
            signal = signal_of(spec, given["modality"])
            about = prepared(signal, each.min_samples / signal.rate, spec.window_s, short, unit)
            if preprocessing.setdefault(signal.modality, about) != about:
                raise PlethoraError(
                    f"mode {name} has min_samples = {each.min_samples}, and another mode takes "
                    f"{signal.modality} of another shortest length: give both the same"
                )
    return Encoder(dict(modes), kind, preprocessing, dict(decoders or {}))


def prepared(
    signal: Signal, min_s: float, window_s: float, short: Short = "reflect", unit: str = "any"
) -> dict[str, Any]:
    """The part of preprocessing.json about one signal: `declared.entry_of`, its lengths and its unit."""
    lengths = {"window_s": window_s, "min_s": min_s, "short": short, "unit": unit}
    return declared.entry_of(signal) | lengths


def signal_of(spec: WindowSpec, modality: str) -> Signal:
    """The signal `modality` of `spec`. Errors: PlethoraError when there is none."""
    found = next((s for s in spec.signals if s.modality == modality), None)
    if found is None:
        there = ", ".join(s.modality for s in spec.signals)
        raise PlethoraError(f"windows hold {there} and no {modality}: add a Signal to the WindowSpec")
    return found


def check(recipe: str, found: Encoder, spec: WindowSpec) -> None:
    """PlethoraError: the recipe's encoder describes other input than the windows of `spec`."""
    if wrong := differences(found, spec):
        raise PlethoraError(
            f"{recipe} describes other input than it trains on ({'; '.join(wrong)}): build its encoder with "
            "pretrain.published"
        )


def differences(found: Encoder, spec: WindowSpec) -> list[str]:
    """The differences between the description of `found` and the windows of `spec`, one line each."""
    out = []
    ways: dict[str, Mode | Decoder] = {**found.modes, **found.decoders}
    for name, each in ways.items():
        for given in each.inputs:
            m = given["modality"]
            signal = next((s for s in spec.signals if s.modality == m), None)
            about = found.preprocessing.get(m)
            if signal is None or about is None:
                where = "no window holds it" if signal is None else "preprocessing does not describe it"
                out.append(f"{name} takes {m}, but {where}")
                continue
            pairs = {
                f"rate of {name}": (given["rate"], signal.rate),
                f"channels of {name}": (given["channels"], signal.channels),
            }
            apart = {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}
            apart |= declared.differences(
                declared.signal_of(m, about, "preprocessing of the recipe's encoder"), signal
            )
            out += [f"{m}: {key} is {a}, in training {b}" for key, (a, b) in apart.items()]
            if abs(about.get("min_s", 0) * signal.rate - each.min_samples) > HALF:
                out.append(f"{m}: min_s is {about.get('min_s')}, {name} takes {each.min_samples} samples")
            window = round(spec.window_s * signal.rate) // each.step_samples * each.step_samples
            if not each.min_samples <= window <= each.max_samples:
                span = f"{each.min_samples} to {each.max_samples}"
                out.append(f"{m}: {name} takes {span} samples, in training a window has {window}")
    return list(dict.fromkeys(out))


def _input(signal: Signal) -> dict[str, Any]:
    named = {"name": signal.modality, "modality": signal.modality}
    return {**named, "rate": signal.rate, "channels": signal.channels}


def _longest(spec: WindowSpec, signals: Sequence[Signal], step: int) -> int:
    """Samples of one window in whole steps. Errors: PlethoraError when the signals have different rates."""
    rates = {s.rate for s in signals}
    if len(rates) > 1:
        named = ", ".join(f"{s.modality} has {s.rate:g} Hz" for s in signals)
        raise PlethoraError(
            f"one mode takes signals of one rate, but {named}: give them the same in WindowSpec"
        )
    return round(spec.window_s * rates.pop()) // step * step
