"""The encoders that ``python -m pretrain import`` knows, and the names that tell a checkpoint of each."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from cluster.errors import PlethoraError


@dataclass(frozen=True)
class Kind:
    """One method's published weights.

    mapping         "module:function" that fills our network with them: it takes (``Names``, the user's
                    settings) and returns (encoder, modules by name, config).
    marks           some name in a checkpoint of this kind begins with one of these,
    also            another with each of these,
    lacks           and none with any of these.
    corpora_named   as the release names them, since no checkpoint does.
    """

    recipe: str
    mapping: str
    marks: tuple[str, ...]
    code: str
    paper: str
    corpora_named: tuple[str, ...]
    also: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()

    def fits(self, names: Collection[str]) -> bool:
        return (
            any(name.startswith(self.marks) for name in names)
            and all(any(name.startswith(mark) for name in names) for mark in self.also)
            and not any(name.startswith(self.lacks) for name in names)
        )

    def load(self) -> Callable[..., Any]:
        module, _, name = self.mapping.partition(":")
        found: Callable[..., Any] = getattr(importlib.import_module(module), name)
        return found


PAPAGEI = "https://github.com/Nokia-Bell-Labs/papagei-foundation-model"
SIGMA = "https://github.com/ZonghengGuo/SigmaPPG"
HOSPITALS = ("MIMIC-III", "MIMIC-IV", "VitalDB")

KINDS: dict[str, Kind] = {
    "anyppg": Kind(
        recipe="pretrain.recipes.anyppg:AnyPPG",
        mapping="pretrain.importing.anyppg:anyppg",
        marks=("stage_list.", "ppg_encoder.stage_list."),
        lacks=("dense.",),
        code="https://github.com/PKUDigitalHealth/AnyPPG",
        paper="arXiv 2511.01747",
        corpora_named=("PulseDB", "MC-MED", "HSP", "CFS", "MESA"),
    ),
    "ecgfounder": Kind(
        recipe="pretrain.recipes.released:ECGFounder",
        mapping="pretrain.importing.resnets:ecgfounder",
        marks=("stage_list.",),
        also=("dense.",),
        code="https://github.com/PKUDigitalHealth/ECGFounder",
        paper="arXiv 2410.04133",
        corpora_named=("HEEDB",),
    ),
    "moment": Kind(
        recipe="pretrain.recipes.released:MOMENT",
        mapping="pretrain.importing.moment:moment",
        marks=("patch_embedding.value_embedding.",),
        also=("encoder.block.",),
        code="https://github.com/moment-timeseries-foundation-model/moment",
        paper="arXiv 2402.03885",
        corpora_named=("Time Series Pile",),
    ),
    "papagei-s": Kind(
        recipe="pretrain.recipes.released:PaPaGei",
        mapping="pretrain.importing.resnets:papagei_s",
        marks=("expert_layers_1.",),
        code=PAPAGEI,
        paper="arXiv 2410.20542",
        corpora_named=("VitalDB", "MESA", "MIMIC-III"),
    ),
    "papagei-p": Kind(
        recipe="pretrain.recipes.released:PaPaGei",
        mapping="pretrain.importing.resnets:papagei_p",
        marks=("basicblock_list.",),
        also=("final_bn.", "dense."),
        lacks=("expert_layers_1.",),
        code=PAPAGEI,
        paper="arXiv 2410.20542",
        corpora_named=("VitalDB", "MESA", "MIMIC-III"),
    ),
    "pulse-ppg": Kind(
        recipe="pretrain.recipes.released:PulsePPG",
        mapping="pretrain.importing.resnets:pulse_ppg",
        marks=("basicblock_list.",),
        lacks=("final_bn.",),
        code="https://github.com/maxxu05/pulseppg",
        paper="arXiv 2502.01108",
        corpora_named=("a field study of 120 people over 100 days, not public",),
    ),
    "sigma-tokenizer": Kind(
        recipe="pretrain.recipes.sigma:Tokenizer",
        mapping="pretrain.importing.sigma:tokenizer",
        marks=("quantize.", "encode_task_layer."),
        code=SIGMA,
        paper="arXiv 2601.21031",
        corpora_named=HOSPITALS,
    ),
    "sigma-student": Kind(
        recipe="pretrain.recipes.sigma:Masked",
        mapping="pretrain.importing.sigma:student",
        marks=("patch_embed_", "student.patch_embed_"),
        code=SIGMA,
        paper="arXiv 2601.21031",
        corpora_named=HOSPITALS,
    ),
}


def check(kind: str, names: Collection[str], checkpoint: str) -> None:
    """Errors: PlethoraError when ``names`` are those of a checkpoint of another kind, or of none."""
    wanted = KINDS[kind]
    if wanted.fits(names):
        return
    other = next((known for known, about in KINDS.items() if about.fits(names)), None)
    if other:
        raise PlethoraError(
            f"{checkpoint} is no {kind}: its names are those of {other}: "
            f"python -m pretrain import {other} {checkpoint} …"
        )
    first = ", ".join(sorted(names)[:3])
    if not any(name.startswith(wanted.marks) for name in names):
        begins = " or ".join(wanted.marks)
        raise PlethoraError(
            f"{checkpoint} is no {kind}: no name in it begins with {begins} (it has {first} …)"
        )
    absent = [mark for mark in wanted.also if not any(name.startswith(mark) for name in names)]
    alien = [name for name in sorted(names) if name.startswith(wanted.lacks)]
    what = f"it has no {absent[0]}*" if absent else f"it has {alien[0]}"
    raise PlethoraError(f"{checkpoint} is no {kind}: {what}")
