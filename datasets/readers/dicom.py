"""DICOM waveforms (PS3.3 C.10.9), read by pydicom: integers with each channel's sensitivity and baseline.

A channel is named by its group and number (1.1, 1.2, …), or by its lead (I, aVR, V1), else by the file's
label; in a group that is derived from another (median beats), with the group's own label as a prefix.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from datasets.descriptor import Descriptor
from datasets.readers import base, fields, kinds, tracks
from datasets.readers.base import Draft, RecordFile, Recording, Refused, Root
from datasets.readers.tracks import Track

if TYPE_CHECKING:
    from pydicom import Dataset

# Leads by the last number of their code, the same in both of the schemes that DICOM allows (PS3.16 CID 3001)
_CODE = {"MDC": re.compile(r"2:(\d+)"), "SCPECG": re.compile(r"5\.6\.3-9-(\d+)")}
_LEADS = {1: "I", 2: "II", 61: "III", 62: "aVR", 63: "aVL", 64: "aVF"} | {i + 2: f"V{i}" for i in range(1, 7)}
_TYPES = {
    (8, "SB"): "<i1",
    (8, "UB"): "<u1",
    (16, "SS"): "<i2",
    (16, "US"): "<u2",
    (32, "SL"): "<i4",
    (32, "UL"): "<u4",
}
_DATE = re.compile(r"(\d{4})(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)(\.\d{1,6})?([+-]\d{4})?")


@dataclass(frozen=True)
class Lead(Track):
    """A channel: column `column` of its group's samples, preceded by `late` missing ones."""

    group: int
    column: int
    late: int
    samples: int


@dataclass(frozen=True)
class Waveform:
    """`begins`: date and time of the first group's start, s since 1970 as if UTC."""

    data: "Dataset"
    leads: list[Lead]
    begins: float | None


def scan(root: Root, descriptor: Descriptor) -> list[RecordFile]:
    """Every record under `root` that the descriptor names."""
    return base.scan(root, descriptor, _look)


def _look(draft: Draft, descriptor: Descriptor) -> None:
    found = read(draft.fetch([draft.name]) / draft.name)
    draft.whole = max((Fraction(_length(t)) / t.rate for t in found.leads if t.rate), default=Fraction(0))
    tracks.promise(draft, descriptor, found.leads, _length)
    for i in range(len(found.data.WaveformSequence)):
        _raw(found.data, i)


def _length(lead: Lead) -> int:
    return lead.late + lead.samples


def read(path: Path) -> Waveform:
    """The waveforms of the file at `path`. Refused: unsupported, corrupt."""
    import pydicom

    try:
        data = pydicom.dcmread(path)
        if "WaveformSequence" not in data:
            raise Refused("unsupported", "it is a DICOM file without a waveform")
        groups = list(data.WaveformSequence)
        original = [g for g in groups if g.get("WaveformOriginality") != "DERIVED"] or groups
        first = min(float(g.get("MultiplexGroupTimeOffset") or 0) for g in original)
        leads = [lead for i, group in enumerate(groups) for lead in _leads(i, group, first)]
        return Waveform(data, leads, _begins(str(data.get("AcquisitionDateTime") or ""), first))
    except Refused:
        raise
    except pydicom.errors.InvalidDicomError as error:
        kind = kinds.kind_of(path)
        known = kind is not None and kind.reader != "dicom"
        raise Refused(
            "unsupported" if known else "corrupt", f"it is not a DICOM file{f' but {kind}' * known}"
        ) from error
    except Exception as error:  # any error of pydicom
        raise Refused("corrupt", f"unreadable DICOM file ({type(error).__name__})") from error


def _leads(index: int, group: "Dataset", first: float) -> list[Lead]:
    """The channels of one group; `first`: start of the first group, ms."""
    rate = base.fraction(float(group.get("SamplingFrequency") or 0))
    late = (float(group.get("MultiplexGroupTimeOffset") or 0) - first) / 1000
    derived = group.get("WaveformOriginality") == "DERIVED"
    prefix = f"{group.get('MultiplexGroupLabel') or 'derived'} " if derived else ""
    found = []
    for column, channel in enumerate(group.ChannelDefinitionSequence):
        sensitivity = channel.get("ChannelSensitivity")
        factor = float(channel.get("ChannelSensitivityCorrectionFactor") or 1)
        scale = float("nan") if sensitivity is None else float(sensitivity) * factor
        skew = float(channel.get("ChannelTimeSkew") or 0)
        skew += float(channel.get("ChannelSampleSkew") or 0) / float(rate or 1)
        flaw = "it states no sensitivity" if sensitivity is None else ""
        if rate and abs(skew) * rate > 0.5:
            flaw = f"it lags the other channels of its group by {skew:g} s"
        units = channel.get("ChannelSensitivityUnitsSequence")
        unit = str(units[0].get("CodeValue") or "") if units else ""
        found.append(
            Lead(
                f"{index + 1}.{column + 1}",
                prefix + _name(channel),
                unit.replace("mm[Hg]", "mmHg"),
                rate,
                scale,
                float(channel.get("ChannelBaseline") or 0),
                flaw,
                index,
                column,
                max(0, round(late * float(rate or 0))),
                int(group.NumberOfWaveformSamples),
            )
        )
    return found


def _name(channel: "Dataset") -> str:
    """The lead of a channel by its code, else its label, else the meaning of its source code."""
    source = channel.ChannelSourceSequence[0] if channel.get("ChannelSourceSequence") else None
    code = _CODE.get(str(source.get("CodingSchemeDesignator"))) if source else None
    number = code.fullmatch(str(source.get("CodeValue"))) if source and code else None
    lead = _LEADS.get(int(number[1])) if number else None
    label = channel.get("ChannelLabel") or (source.get("CodeMeaning") if source else None)
    return lead or " ".join(str(label or "unnamed").split())


def _begins(date: str, first: float) -> float | None:
    found = _DATE.fullmatch(date)
    if not found:
        return None
    try:
        year, month, day, hour, minute, second = (int(part) for part in found.groups()[:6])
        whole = datetime(year, month, day, hour, minute, second, tzinfo=UTC).timestamp()
    except ValueError:  # invalid date or time
        return None
    return whole + float(found[7] or 0) + first / 1000


def _raw(data: "Dataset", index: int) -> tuple[np.ndarray, np.ndarray]:
    """Raw samples (samples, channels) of a group, and a missing mask. Refused: unsupported, truncated."""
    group = data.WaveformSequence[index]
    kind = (group.WaveformBitsAllocated, group.WaveformSampleInterpretation)
    if kind not in _TYPES:
        raise Refused("unsupported", f"samples of {kind[0]} bits as {kind[1]}: write them as 16-bit integers")
    dtype = np.dtype(_TYPES[kind])
    syntax = data.file_meta.get("TransferSyntaxUID") if hasattr(data, "file_meta") else None
    if syntax is not None and (syntax.is_private or syntax.is_encapsulated or not syntax.is_little_endian):
        raise Refused(
            "unsupported", f"the transfer syntax {syntax.name}: write it as Explicit VR Little Endian"
        )
    shape = (int(group.NumberOfWaveformSamples), int(group.NumberOfWaveformChannels))
    content = group.get("WaveformData") or b""
    want = shape[0] * shape[1] * dtype.itemsize
    if len(content) < want or shape[1] != len(group.ChannelDefinitionSequence):
        stated = f"{shape[1]} channels of {shape[0]:,} samples"
        raise Refused("truncated", f"group {index + 1} holds {len(content):,} bytes for {stated}")
    raw = np.frombuffer(content[:want], dtype).reshape(shape)
    padding = group.get("WaveformPaddingValue")
    if padding is None:
        return raw, np.zeros(shape, bool)
    value = np.frombuffer(padding[: dtype.itemsize], dtype)[0] if isinstance(padding, bytes) else padding
    return raw, raw == value


def load(source: RecordFile, folder: Path, descriptor: Descriptor) -> Recording:
    """Samples (integers of the file) and labels of one record. Raises Refused if the file is broken."""
    found = read(folder / source.files[0][0])
    words = {e.keyword: str(e.value) for e in found.data if e.VR not in ("SQ", "OB", "OW", "UN")}
    labels, problems = fields.read(source, folder, descriptor.fields, variables=words)

    def samples(lead: Lead) -> tuple[np.ndarray, np.ndarray]:
        raw, missing = (part[:, lead.column] for part in _raw(found.data, lead.group))
        return np.pad(raw, (lead.late, 0)), np.pad(missing, (lead.late, 0), constant_values=True)

    signals, named = tracks.load(source, descriptor, found.leads, samples)
    return Recording(signals, labels + named, problems, found.begins)
