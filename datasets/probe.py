"""`python -m datasets probe FILE…`: shows what recordings contain, and writes a first descriptor.

Reads one file of each kind whole, as its reader does, and guesses a channel's modality from its name only. A
person must check the guesses; nothing is ingested here.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cluster.errors import PlethoraError
from datasets.readers.contents import Channel, Contents, contents

# Channel names by modality; the first pattern that matches the whole name applies.
NAMES: tuple[tuple[str, str], ...] = (
    ("acc", r"(acc|accel).*|[xyz]"),
    ("ppg", r".*(ppg|pleth|bvp|infrared).*|ir|red|green|spo2.?wave"),
    ("ecg", r".*(ecg|ekg).*|(lead)?[ _-]?(i{1,3}|av[rlf]|v[1-6]|mlii|mcl\d?)"),
    ("abp", r".*(abp|arterial|finap|portapres|nexfin).*|(u)?art\d?|ibp\d?"),
    ("resp", r".*(resp|thora|abdo|effort|breath|chest).*"),
)
UNITS = {"ppg": "au", "ecg": "mV", "abp": "mmHg", "resp": "au", "acc": "g"}
FACTORS = {
    ("V", "mV"): 1000.0,
    ("uV", "mV"): 0.001,
    ("µV", "mV"): 0.001,
    ("nV", "mV"): 1e-6,
    ("kPa", "mmHg"): 7.50062,
    ("cmH2O", "mmHg"): 0.735559,
    ("mg", "g"): 0.001,
    ("m/s2", "g"): 0.101972,
    ("m/s^2", "g"): 0.101972,
    ("m/s²", "g"): 0.101972,
}
MOST = 12  # maximum number of reported files of a folder
AXES = re.compile(r"(?i)^(.*?)[ _-]?([xyz])$")


@dataclass(frozen=True)
class Guess:
    """Channels that look like one modality: `choices` as in a descriptor, each with its channel names."""

    modality: str
    choices: tuple[tuple[str, ...], ...]
    channel: Channel


def probe(paths: Sequence[str | Path]) -> list[Contents]:
    """The contents of the files at `paths`; of a folder, one readable file of each name (digits ignored).

    PlethoraError: there is none.
    """
    files = [Path(p) for p in paths]
    absent = next((p for p in files if not p.exists()), None)
    if absent is not None:
        raise PlethoraError(f"{absent} does not exist: give files, or a folder of them")
    found: dict[str, Path] = {}
    for path in files:
        for one in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
            found.setdefault(re.sub(r"\d+", "0", one.name).lower(), one)
    if not found:
        raise PlethoraError(f"{files[0]} holds no files")
    if not any(p.is_dir() for p in files):
        return [contents(path) for path in found.values()]
    looked: list[Contents] = []
    read: list[Contents] = []
    for path in found.values():
        held = contents(path)
        looked.append(held)
        if held.reader and held.channels:
            read.append(held)
        if len(read) == MOST:  # each file is read whole: stop at the reported number
            break
    return read or looked[:MOST]


def guesses(channels: Iterable[Channel], named: Mapping[str, str] | None = None) -> list[Guess]:
    """The modalities that the channel names suggest, and the channels of each; `named`: modality -> the
    channel that the user assigned to it.
    """
    found: dict[str, list[Channel]] = {}
    there = list(channels)
    given = {channel: m for m, channel in (named or {}).items()}
    for channel in there:
        if channel.name in given:
            found[given[channel.name]] = [channel]
            continue
        name = channel.name.rsplit("/", 1)[-1].rsplit(".", 1)[-1].strip().lower()
        modality = next((m for m, pattern in NAMES if re.fullmatch(pattern, name, re.S)), None)
        if modality and modality not in (named or {}):
            found.setdefault(modality, []).append(channel)
    return [Guess(m, _choices(m, cs), cs[0]) for m, cs in found.items()]


def _choices(modality: str, channels: Sequence[Channel]) -> tuple[tuple[str, ...], ...]:
    if modality != "acc":
        return tuple((c.name,) for c in channels)
    axes: dict[str, list[str]] = {}
    for channel in channels:
        split = AXES.match(channel.name)
        axes.setdefault(split.group(1) if split else channel.name, []).append(channel.name)
    return tuple(tuple(names) for names in axes.values())


def report(found: Sequence[Contents]) -> str:
    """Channels, rates, units, lengths and clocks, for a terminal."""
    lines: list[str] = []
    for one in found:
        start = f", starts {_moment(one.start_s)}" if one.start_s is not None else ""
        lines.append(f"{one.path}: {one.kind}{start}")
        for channel in one.channels:
            rate = f"{channel.rate:g} Hz" if channel.rate else "no rate stated"
            length = f"{channel.samples:,} samples"
            length += f" = {channel.samples / channel.rate:,.1f} s" if channel.rate else ""
            guess = next((g.modality for g in guesses([channel])), "")
            lines.append(
                f"  {channel.name:24} {rate:>16}  {channel.unit or 'no unit':10} {length:32} {guess}".rstrip()
            )
        lines += [f"  {word}" for word in one.words]
    return "\n".join(lines)


def facts(one: Contents) -> dict[str, object]:
    """A file's contents as printed by --json."""
    channels = [dataclasses.asdict(channel) for channel in one.channels]
    return {
        "path": str(one.path),
        "kind": one.kind,
        "reader": one.reader,
        "channels": channels,
        "start_s": one.start_s,
        "time": one.time,
        "words": one.words,
    }


def _moment(start_s: float) -> str:
    if abs(start_s) < 1e8:  # a clock that counts from its own zero
        return f"at {start_s:g} s of its clock"
    return datetime.fromtimestamp(start_s, UTC).strftime("%Y-%m-%d %H:%M:%S")


def descriptor(found: Sequence[Contents], name: str, named: Mapping[str, str] | None = None) -> str:
    """A first descriptor, as TOML: from the first file that a reader reads and that holds signals.

    `named`: modality -> channel, as assigned by the user. PlethoraError: no channel name in any file suggests
    a modality, or `named` refers to no channel.
    """
    names = {c.name for one in found for c in one.channels}
    for modality, channel in (named or {}).items():
        if modality not in UNITS or channel not in names:
            raise PlethoraError(
                f"--signal {modality}={channel}: modalities are {', '.join(UNITS)}, channels are "
                f"{', '.join(sorted(names))[:300] or 'none'}"
            )
    for one in found:
        known = guesses(one.channels, named)
        if one.reader and known:
            return "\n".join(_lines(one, known, name)) + "\n"
    shown = ", ".join(sorted(names))[:300] or "nothing"
    raise PlethoraError(
        f"no channel name suggests PPG, ECG, pressure, respiration or an accelerometer "
        f"(channels: {shown}): assign them, as in --signal ppg=NAME"
    )


def _lines(one: Contents, known: Sequence[Guess], name: str) -> list[str]:
    suffix = re.escape("".join(one.path.suffixes[-2:]) if one.path.suffix == ".gz" else one.path.suffix)
    lines = [
        f"# Written by `python -m datasets probe {one.path.name}`: a start. Check what is marked with CHECK.",
        f"name = {_word(name)}",
        'source = "CHECK: where the recordings are from"',
        'licence = "CHECK"',
        'terms = "CHECK"',
        'citation = ""',
        'access = "restricted"  # CHECK: "open" where anyone may have a model of it',
        f"reader = {_word(one.reader or '')}",
        f"records = '(?:.*/)?(?P<record>[^/]+?){suffix}'",
        f"id_space = {_word(name)}",
        "subjects_published = false  # CHECK: true, with [subject], where the files say who is who",
    ]
    if one.reader == "table" and (one.table or one.time):
        lines += ["", "[table]", *one.table]
        lines += [f"time = {_word(one.time)}"] if one.time else []
    for number, guess in enumerate(known):
        lines += ["", f"[signals.{guess.modality}]", *_signal(guess, one, required=number == 0)]
    taken = {name for guess in known for choice in guess.choices for name in choice}
    rest = [c.name for c in one.channels if c.name not in taken]
    lines += ["", f"# not taken: {', '.join(rest)}"] if rest else []
    return lines


def _signal(guess: Guess, one: Contents, required: bool) -> list[str]:
    channel, unit = guess.channel, UNITS[guess.modality]
    choices = [c[0] if len(c) == 1 else list(c) for c in guess.choices]
    lines = [f"channels = [{', '.join(_words(c) for c in choices)}]"]
    if len(choices) > 1:
        lines[0] += "  # the first that a record has"
    if channel.rate_name:
        lines.append(f"rate = {_word(channel.rate_name)}  # the name under which the file states it")
    elif channel.rate and not one.time:
        lines.append(f"rate = {channel.rate:g}")
    elif not one.time:
        lines.append("# rate = 100  # CHECK: Hz; the file states none")
    stated = channel.unit
    factor = 1.0 if stated in (unit, "") or unit == "au" else FACTORS.get((stated, unit))
    if factor is None:
        unit, factor = stated, 1.0
    lines.append(f"unit = {_word(unit)}")
    lines.append(f"units = {{ {_word(stated or unit)} = {factor:g} }}")
    if not stated:
        lines.append(f"source_unit = {_word(unit)}  # CHECK: the file states none")
    elif one.reader == "table":
        lines.append(f"source_unit = {_word(stated)}")
    lines += ["required = true"] if required else []
    return lines


def _words(choice: str | list[str]) -> str:
    return _word(choice) if isinstance(choice, str) else f"[{', '.join(map(_word, choice))}]"


def _word(text: str) -> str:
    """A TOML string."""
    return '"' + "".join(c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08x}" for c in text) + '"'
