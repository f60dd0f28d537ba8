"""Avro files of Empatica's EmbracePlus (schema 6), read by fastavro.

Channels: bvp, eda, temperature, accelerometer_x, _y, _z. Accelerometer counts become g by the file's limits
(schemas before 6.5) or its `conversionFactor` (since). The other units are not stated: `source_unit` gives
them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TypedDict, cast

import numpy as np

from datasets.descriptor import Descriptor
from datasets.readers import base, fields, kinds, tracks
from datasets.readers.base import Draft, RecordFile, Recording, Refused, Root
from datasets.readers.tracks import Track

_UNITS = {"bvp": "", "eda": "", "temperature": "", "accelerometer": "g"}


class _Limits(TypedDict, total=False):
    physicalMin: int
    physicalMax: int
    digitalMin: int
    digitalMax: int
    conversionFactor: float


class _Stream(TypedDict, total=False):
    timestampStart: int  # microseconds since 1970
    samplingFrequency: float
    values: list[float]
    x: list[int]
    y: list[int]
    z: list[int]
    imuParams: _Limits


class _Record(TypedDict, total=False):
    schemaVersion: dict[str, int]
    enrollment: dict[str, str]
    rawData: dict[str, _Stream]


@dataclass(frozen=True)
class Sensor(Track):
    """A channel and its samples, the first of which comes `late` samples after the earliest of any
    channel."""

    x: np.ndarray
    late: int


@dataclass(frozen=True)
class Session:
    """`begins`: the start of the first sensor, s since 1970 in UTC."""

    sensors: list[Sensor]
    begins: float | None
    words: dict[str, str]


def scan(root: Root, descriptor: Descriptor) -> list[RecordFile]:
    """Every record under `root` that the descriptor names. No header counts the samples: files are read
    whole."""
    return base.scan(root, descriptor, _look)


def _look(draft: Draft, descriptor: Descriptor) -> None:
    found = read(draft.fetch([draft.name]) / draft.name).sensors
    draft.whole = max((Fraction(_length(t)) / t.rate for t in found if t.rate), default=Fraction(0))
    tracks.promise(draft, descriptor, found, _length)


def _length(sensor: Sensor) -> int:
    return sensor.late + len(sensor.x)


def read(path: Path) -> Session:
    """The sensors of the file at `path`. Refused: unsupported, corrupt."""
    import fastavro

    try:
        with open(path, "rb") as file:
            if file.read(4) != b"Obj\x01":
                kind = kinds.kind_of(path)
                raise Refused(
                    "unsupported" if kind else "corrupt",
                    f"it is not an Avro file{f' but {kind}' if kind else ''}",
                )
            file.seek(0)
            records = list(cast(Iterator[_Record], fastavro.reader(file)))
        if len(records) != 1 or "rawData" not in records[0]:
            raise Refused("unsupported", "an Avro file, but not a session of an Empatica EmbracePlus")
        return _session(records[0])
    except Refused:
        raise
    except Exception as error:  # any error of fastavro
        raise Refused("corrupt", f"unreadable Avro file ({type(error).__name__})") from error


def _session(record: _Record) -> Session:
    version = record.get("schemaVersion") or {}
    raw = {name: record["rawData"].get(name) for name in _UNITS}
    there = {n: s for n, s in raw.items() if s and len(s.get("values") or s.get("x") or ())}
    first = min((s["timestampStart"] for s in there.values()), default=0)
    sensors = []
    for name, sensor in there.items():
        rate = base.fraction(float(sensor.get("samplingFrequency") or 0))
        late = round((sensor["timestampStart"] - first) / 1e6 * float(rate or 0))
        columns = {name: np.asarray(sensor.get("values") or (), float)}
        scale, flaw = 1.0, ""
        if "x" in sensor:
            scale, flaw = _scale(sensor, (version.get("major", 0), version.get("minor", 0)))
            axes = {"x": sensor["x"], "y": sensor["y"], "z": sensor["z"]}
            columns = {f"{name}_{axis}": np.asarray(x, np.int32) for axis, x in axes.items()}
        sensors += [Sensor(n, n, _UNITS[name], rate, scale, 0.0, flaw, x, late) for n, x in columns.items()]
    words = {k: str(v) for k, v in (record.get("enrollment") or {}).items()}
    return Session(sensors, first / 1e6 if there else None, words)


def _scale(sensor: _Stream, version: tuple[int, int]) -> tuple[float, str]:
    """The value of one count of an inertial sensor."""
    limits = sensor.get("imuParams") or {}
    if version >= (6, 5):
        factor = limits.get("conversionFactor")
        return (float(factor), "") if factor else (float("nan"), "the file states no conversion factor")
    try:
        span = float(limits["physicalMax"] - limits["physicalMin"])
        return span / (limits["digitalMax"] - limits["digitalMin"]), ""
    except (KeyError, ZeroDivisionError):
        return float("nan"), "the file states no limits"


def load(source: RecordFile, folder: Path, descriptor: Descriptor) -> Recording:
    """Samples and labels of one record. Raises Refused if the file is broken."""
    found = read(folder / source.files[0][0])
    labels, problems = fields.read(source, folder, descriptor.fields, variables=found.words)

    def samples(sensor: Sensor) -> tuple[np.ndarray, np.ndarray]:
        x = np.pad(sensor.x, (sensor.late, 0))
        return x, np.arange(len(x)) < sensor.late

    signals, named = tracks.load(source, descriptor, found.sensors, samples)
    return Recording(signals, labels + named, problems, found.begins)
