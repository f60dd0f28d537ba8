"""The documents of a bundle as types: the fields that the contract fixes, within bounds that are safe to
load.

A bundle may come from a stranger: a number out of bounds would cause a crash, a hang or a full memory later.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

import pydantic

from cluster import config as configuration
from cluster.errors import PlethoraError

VERSION = 2  # 2: preprocessing.json may ask for the filters, resamplers and sequences of `datasets.declared`
MOST_SAMPLES = 10**8  # maximum length of one prepared input, samples

Hertz = Annotated[float, pydantic.Field(gt=0, le=1e6, allow_inf_nan=False)]
Seconds = Annotated[float, pydantic.Field(gt=0, le=1e7, allow_inf_nan=False)]


class _Part(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="allow")


class Input(_Part):
    """One input of a mode: its tensor is (batch, `channels`, samples) float32 at `rate` Hz."""

    name: str
    modality: str
    rate: Hertz
    channels: int = pydantic.Field(ge=1, le=4096)


class File(_Part):
    """One ONNX file of a bundle."""

    file: str


class Mode(File):
    """`file`: `inputs` → (batch, `dim`) float32."""

    inputs: tuple[Input, ...] = pydantic.Field(min_length=1)
    dim: int = pydantic.Field(gt=0, le=10**7)


class Decoder(File):
    """`file`: `inputs` → the signal `output`, (batch, channels, samples) float32."""

    inputs: tuple[Input, ...] = pydantic.Field(min_length=1)
    output: dict[str, Any]


class Description(_Part):
    """The fields of `config.json` that the contract fixes; the full run configuration lies beside it."""

    version: Literal[1, 2]
    kind: Literal["encoder", "tokenizer", "adapter"]
    modes: dict[str, Mode]
    decoders: dict[str, Decoder] = {}
    modules: tuple[str, ...] | None = None  # of the recipe, in model.safetensors; None: all
    run: dict[str, Any] = {}

    def files(self) -> dict[str, Mode | Decoder]:
        """All ONNX files, by their mode's or decoder's name."""
        return {**self.modes, **self.decoders}

    @property
    def modalities(self) -> list[str]:
        """All modalities that any mode or decoder takes, without duplicates."""
        return list(dict.fromkeys(i.modality for f in self.files().values() for i in f.inputs))


class Preparation(_Part):
    """The entry of one modality in `preprocessing.json`."""

    rate: Hertz
    band: tuple[float | None, float | None] | None = None
    order: int | None = pydantic.Field(default=None, ge=0, le=20)
    notch: Hertz | None = None
    window_s: Seconds
    min_s: Seconds
    max_s: Seconds | None = None
    multiple_s: Seconds
    min_rate: float | None = pydantic.Field(default=None, ge=0, le=1e6)
    short: Literal["reflect", "repeat", "refuse"]
    normalise: str = "none"
    upright: bool | None = None

    @pydantic.model_validator(mode="after")
    def _bounded(self) -> Preparation:
        longest = max(self.window_s, self.min_s, self.max_s or 0)
        if longest * self.rate > MOST_SAMPLES:
            raise ValueError(f"{longest:g} s at {self.rate:g} Hz is more than {MOST_SAMPLES:,} samples")
        if self.band is not None and not all(edge is None or 0 < edge <= 1e6 for edge in self.band):
            raise ValueError(f"band = {list(self.band)} is not a valid band in Hz")
        return self


class Trained(_Part):
    """A corpus in `lineage.json`."""

    hash: str
    key_id: str = ""
    id_space: str = ""
    subjects: tuple[str, ...] = ()


class Lineage(_Part):
    corpora: tuple[Trained, ...] = ()
    inherited: tuple[dict[str, Any], ...] = ()


class Document(dict[str, Any]):
    """A JSON object of the contract, read from `where`; a missing key raises a PlethoraError."""

    where = ""

    @classmethod
    def of(cls, table: Any, where: str) -> Document:
        """PlethoraError if `table` is not a JSON object."""
        if not isinstance(table, dict):
            raise PlethoraError(f"{where}: must hold one JSON object, it holds {type(table).__name__}")
        made = cls(table)
        made.where = where
        return made

    def __missing__(self, key: str) -> Any:
        raise PlethoraError(f"{self.where} lacks `{key}`: it is incomplete: rebuild it")


def described(table: Any, where: str) -> Description:
    """config.json, checked. PlethoraError: newer than ours, or outside the contract."""
    if isinstance(table, dict) and isinstance(table.get("version"), int) and table["version"] > VERSION:
        raise PlethoraError(
            f"{where}: bundle version {table['version']} is newer than ours ({VERSION}): update Plethora"
        )
    return configuration.validate(Description, table, where)


def check_preparation(table: Mapping[str, Any], modalities: Iterable[str], where: str) -> None:
    """PlethoraError if preprocessing.json has an invalid entry for one of these modalities (a missing entry
    is the reader's concern).
    """
    for modality in modalities:
        if modality in table:
            configuration.validate(Preparation, table[modality], f"{where}, {modality}")


def check_lineage(table: dict[str, Any], where: str) -> None:
    """PlethoraError if lineage.json lists corpora in another form."""
    configuration.validate(Lineage, table, where)
