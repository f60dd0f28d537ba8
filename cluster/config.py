"""Strict configuration: TOML → `--set a.b=v` → a frozen pydantic model.

Every mistake is one line that names the file (or the --set), the key and, for an unknown key, the closest
one.
"""

from __future__ import annotations

import difflib
import json
import tomllib
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pydantic

from cluster.errors import PlethoraError

M = TypeVar("M", bound=pydantic.BaseModel)
Keys = tuple[str, ...]
ANY = "*"  # placeholder for a table with a free name: [signals.ppg]
LARGEST = 2**20  # maximum size of a configuration file, bytes
DEEPEST = 16  # maximum number of keys in one --set


class Config(pydantic.BaseModel):
    """Base of every configuration: frozen, no unknown keys, no NaN or infinity."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    # Top-level keys of which exactly one is given: one in a file or a --set replaces another from below.
    EITHER: ClassVar[tuple[str, ...]] = ()


def load(path: str | Path, model: type[M], sets: Sequence[str] = ()) -> M:
    """The TOML file at `path` (with its ``extends``), overridden by ``a.b=v`` in `sets`, as a `model`."""
    data, origins, raw = _merged(Path(path), sets, getattr(model, "EITHER", ()))
    while True:
        try:
            return _checked(model, data)
        except pydantic.ValidationError as error:
            if not _as_text(error, data, raw):
                raise _explained(model, data, error, lambda keys: _origin(keys, origins, str(path))) from None


def validate(model: type[M], data: dict[str, Any], where: str) -> M:
    """`data` as a `model`, strictly (``"5"`` is not a number); mistakes raise one PlethoraError with
    `where`."""
    try:
        return _checked(model, data)
    except pydantic.ValidationError as error:
        raise _explained(model, data, error, lambda keys: where) from None


def read_toml(path: str | Path, sets: Sequence[str] = ()) -> dict[str, Any]:
    """The merged table of the TOML file at `path`: its ``extends`` chain, then the file, then `sets`."""
    return _merged(Path(path), sets)[0]


def table_of(sets: Sequence[str]) -> dict[str, Any]:
    """The table that the ``a.b=v`` of `sets` define without a file."""
    data: dict[str, Any] = {}
    for item in sets:
        keys, text = _split(item)
        _put(data, keys, _value(text), item)
    return data


def _checked(model: type[M], data: dict[str, Any]) -> M:
    # pydantic's strict *Python* mode refuses a list for a tuple; its strict JSON mode accepts it.
    return model.model_validate_json(json.dumps(data, default=str), strict=True)


# ---------------------------------------------------------------- reading


def _merged(
    path: Path, sets: Sequence[str], either: Sequence[str] = ()
) -> tuple[dict[str, Any], dict[Keys, str], dict[Keys, str]]:
    """The merged table, the origin of each leaf, and the unparsed text of each set key."""
    origins: dict[Keys, str] = {}
    data: dict[str, Any] = {}

    def clear(coming: set[str]) -> None:
        for key in either if coming.intersection(either) else ():
            data.pop(key, None)
            origins.pop((key,), None)

    for file, table in _chain(path):
        clear(set(table))
        _merge(data, table, (), str(file), origins)
    clear({_split(item)[0][0] for item in sets})
    raw: dict[Keys, str] = {}
    for item in sets:
        keys, text = _split(item)
        _put(data, keys, _value(text), item)
        raw[keys] = text
        origins[keys] = f"--set {item}"
    return data, origins, raw


def files(path: Path) -> list[Path]:
    """`path` and the files that it extends. PlethoraError: one of them cannot be read."""
    return [file for file, _ in _chain(path)]


def _chain(path: Path) -> list[tuple[Path, dict[str, Any]]]:
    """`path` and the files that it extends, the farthest ancestor first."""
    found: list[tuple[Path, dict[str, Any]]] = []
    current, named_in = path, ""
    while True:
        if any(current.resolve() == file.resolve() for file, _ in found):
            raise PlethoraError(f"{path}: `extends` runs in a circle through {current}: remove one of them")
        table = _parse(current, named_in)
        parent = table.pop("extends", None)
        found.insert(0, (current, table))
        if parent is None:
            return found
        if not isinstance(parent, str):
            raise PlethoraError(f"{current}: `extends` must be one file name in quotes, not {parent!r}")
        current, named_in = current.parent / parent, f" (extended by {current})"


def _parse(path: Path, named_in: str) -> dict[str, Any]:
    try:
        if not path.is_dir() and path.exists() and not (path.is_file() and path.stat().st_size <= LARGEST):
            raise PlethoraError(
                f"{path}: no TOML file{named_in}: a plain file of up to {LARGEST:,} bytes is one"
            )
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise PlethoraError(f"{path}: not valid TOML: nested too deep") from None
    except FileNotFoundError:
        raise PlethoraError(f"{path}: no such file{named_in}") from None
    except (IsADirectoryError, PermissionError, UnicodeDecodeError) as error:
        raise PlethoraError(f"{path}: cannot be read as a TOML file{named_in}: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise PlethoraError(f"{path}: not valid TOML: {error}") from None


def _merge(
    base: dict[str, Any], extra: dict[str, Any], at: Keys, file: str, origins: dict[Keys, str]
) -> None:
    for key, value in extra.items():
        keys = (*at, key)
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            _merge(base[key], value, keys, file, origins)
            continue
        for old in [known for known in origins if known[: len(keys)] == keys]:
            del origins[old]
        if isinstance(value, dict):
            base[key] = {}
            origins[keys] = file
            _merge(base[key], value, keys, file, origins)
        else:
            base[key] = value
            origins[keys] = file


def _split(item: str) -> tuple[Keys, str]:
    """``a.b=v`` → (("a", "b"), "v"); keys follow TOML, so a key that contains dots is quoted."""
    wrong = PlethoraError(
        f"--set {item}: expected key=value, for example --set optim.lr=1e-4 or --set 'a.\"b.c\"=2'"
    )
    for position in (index for index, letter in enumerate(item) if letter == "="):
        try:
            table: Any = tomllib.loads(item[:position] + " = 0")
        except tomllib.TOMLDecodeError:
            continue
        except RecursionError:
            raise wrong from None
        keys: list[str] = []
        while isinstance(table, dict):
            key, table = next(iter(table.items()))
            keys.append(key)
        if len(keys) > DEEPEST:
            raise wrong
        return tuple(keys), item[position + 1 :].strip()
    raise wrong


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return text


def _put(data: dict[str, Any], keys: Keys, value: Any, item: str) -> None:
    table = data
    for depth, key in enumerate(keys[:-1]):
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            above = ".".join(keys[: depth + 1])
            raise PlethoraError(f"--set {item}: `{above}` is a value, not a table: set `{above}` itself")
    table[keys[-1]] = value


def _as_text(error: pydantic.ValidationError, data: dict[str, Any], raw: dict[Keys, str]) -> bool:
    """Restore the text of a --set that was parsed as a number where text is wanted (``name=7``); True if
    any."""
    mended = False
    for problem in error.errors(include_url=False):
        keys = tuple(str(part) for part in problem["loc"])
        for known in [
            known
            for known in raw
            if problem["type"] == "string_type"
            and keys[: len(known)] == known
            and not isinstance(problem["input"], dict | list)
        ]:
            _put(data, known, raw.pop(known), "")
            mended = True
    return mended


# ---------------------------------------------------------------- explaining


def _origin(keys: Keys, origins: dict[Keys, str], default: str) -> str:
    """The file or the --set that the value at `keys` came from (the nearest known origin)."""
    below = [known for known in origins if known[: len(keys)] == keys]
    if keys and below:
        return origins[below[0]]
    while keys:
        if keys in origins:
            return origins[keys]
        keys = keys[:-1]
    return default


def _explained(
    model: type[pydantic.BaseModel], data: Any, error: pydantic.ValidationError, where: Callable[[Keys], str]
) -> PlethoraError:
    seen: list[Keys] = []
    lines: list[str] = []
    # a misspelled key often causes a missing one: report the misspelled one first
    for problem in sorted(
        error.errors(include_url=False), key=lambda each: each["type"] != "extra_forbidden"
    ):
        keys = _keys(problem, data)
        # a union reports an error per branch, at the value or within it: the first branch suffices
        if not any(keys[: len(known)] == known or known[: len(keys)] == keys for known in seen):
            seen.append(keys)
            lines.append(f"{where(keys)}: {_problem(model, keys, problem)}")
    more = f"; and {len(lines) - 3} more" if len(lines) > 3 else ""
    return PlethoraError("; ".join(lines[:3]) + more)


def _keys(problem: Any, data: Any) -> Keys:
    """The location of the problem, without the labels that pydantic adds for the branches of a union."""
    keys: list[str] = []
    location = problem["loc"]
    for depth, part in enumerate(location):
        last = depth == len(location) - 1 and problem["type"] in ("missing", "extra_forbidden")
        inside = part in data if isinstance(data, dict) else isinstance(data, list) and isinstance(part, int)
        if inside and (isinstance(data, dict) or part < len(data)):
            data = data[part]
        elif not last:
            continue
        keys.append(str(part))
    return tuple(keys)


def _problem(model: type[pydantic.BaseModel], keys: Keys, problem: Any) -> str:
    dotted = ".".join(keys)
    if problem["type"] == "extra_forbidden":
        near = _nearest(model, keys)
        return f"unknown key `{dotted}`" + (f", the nearest known one is `{near}`" if near else "")
    if problem["type"] == "missing":
        return f"`{dotted}` is missing: set it"
    message = problem["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if not keys:
        return message
    given = problem["input"]
    shown = "" if isinstance(given, dict) or problem["type"] == "value_error" else f", not {given!r}"
    return f"`{dotted}`: {message[0].lower() + message[1:] if message[1:2].islower() else message}{shown}"


def _nearest(model: type[pydantic.BaseModel], keys: Keys) -> str | None:
    """The known dotted key that `keys` most likely meant: searched in its own table first, then
    everywhere."""
    known = [_given(path, keys) for path in _known(model, ())]
    beside = [path[-1] for path in known if len(path) == len(keys) and path[:-1] == keys[:-1]]
    close = difflib.get_close_matches(keys[-1], beside, n=1, cutoff=0.6)
    if close:
        return ".".join((*keys[:-1], close[0]))
    elsewhere = {path[-1]: path for path in reversed(known)}
    if keys[-1] in elsewhere:
        return ".".join(elsewhere[keys[-1]])
    dotted = [".".join(path) for path in known]
    close = difflib.get_close_matches(".".join(keys), dotted, n=1, cutoff=0.5)
    if not close and beside:
        close = [
            ".".join((*keys[:-1], name))
            for name in difflib.get_close_matches(keys[-1], beside, n=1, cutoff=0.0)
        ]
    return close[0] if close else None


def _given(path: Keys, keys: Keys) -> Keys:
    """A known path with `ANY` replaced by the table that `keys` name."""
    return tuple(keys[i] if part == ANY and i < len(keys) else part for i, part in enumerate(path))


def _known(annotation: Any, at: Keys) -> Iterator[Keys]:
    """Every dotted key that a model (or a type that contains one) has; `ANY` stands for freely named
    tables."""
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        for name, field in annotation.model_fields.items():
            keys = (*at, field.alias or name)
            yield keys
            if len(keys) < 8:  # a model may contain itself
                yield from _known(field.annotation, keys)
        return
    named = (ANY,) if typing.get_origin(annotation) in (dict, Mapping) else ()
    for inner in typing.get_args(annotation):
        yield from _known(inner, (*at, *named))
