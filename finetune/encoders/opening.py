"""An encoder by its address: a bundle, a class of anyone's, an ONNX file, a Hugging Face model folder."""

import hashlib
import importlib
import importlib.util
import re
import sys
import traceback
from pathlib import Path
from types import ModuleType
from urllib.parse import parse_qsl

from cluster import storage
from cluster.errors import PlethoraError
from finetune.encoders.base import Encoder
from finetune.encoders.bundle import opened_bundle
from finetune.encoders.port import PortEncoder, code_of
from finetune.graph import one_line

CLASS = re.compile(r"(?P<module>[^?#:]+\.py|[A-Za-z_][\w.]*):(?P<name>[A-Za-z_]\w*)(?:\?(?P<arguments>.*))?")
ADDRESS = (
    "a bundle (BUNDLE or BUNDLE#MODE), a class (FILE.py:Class or module:Class, ?key=value for its "
    "arguments), an ONNX file beside its preprocessing.json, a Hugging Face model folder that holds one, or "
    "a vision backbone (vision:NAME?image=stft&weights=PATH)"
)


def opened(address: str, mode: str | None = None, threads: int = 0) -> Encoder:
    """The encoder at `address` (`ADDRESS` lists its forms). `mode`: of a bundle that has several, unless the
    address ends with #MODE; `threads`: of onnxruntime (0: all).

    Raises PlethoraError for an address that leads nowhere and for an encoder outside its contract.
    """
    if address.startswith("vision:"):  # before classes, whose form it has
        from finetune.encoders.vision import VisionPort

        vision = VisionPort(address)
        return PortEncoder(address, vision, vision.files)
    found = CLASS.fullmatch(address)
    if found:
        return _class(address, found["module"], found["name"], found["arguments"] or "")
    if address.endswith(".onnx"):
        from finetune.encoders.onnx import OnnxPort

        path = _local(address)
        return PortEncoder(address, OnnxPort(path, threads), (path, path.with_name("preprocessing.json")))
    if not storage.is_remote(address) and Path(address, "config.json").is_file():
        from finetune.encoders.hub import HubPort, is_model

        if is_model(Path(address)):
            return PortEncoder(address, HubPort(Path(address)), (Path(address),))
    return opened_bundle(address, mode, threads)


def _local(address: str) -> Path:
    if storage.is_remote(address):
        raise PlethoraError(f"{address}: an ONNX file must be local: download it, or publish a bundle")
    if not Path(address).is_file():
        raise PlethoraError(f"no file {address}")
    return Path(address)


def _class(address: str, module: str, name: str, arguments: str) -> Encoder:
    found = _file(address, Path(module)) if module.endswith(".py") else _module(address, module)
    kind = getattr(found, name, None)
    if not isinstance(kind, type):
        there = ", ".join(n for n, v in vars(found).items() if isinstance(v, type) and hasattr(v, "embed"))
        raise PlethoraError(
            f"{address}: {module} has no class {name} (with `embed` it has {there or 'none'})"
        )
    if not callable(getattr(kind, "embed", None)):
        raise PlethoraError(
            f"{address}: class {name} has no method `embed`: docs/adding_an_encoder.md shows one"
        )
    given = dict(parse_qsl(arguments, keep_blank_values=True, strict_parsing=False))
    try:
        port = kind(**given)
    except PlethoraError:
        raise
    except Exception as error:
        raise PlethoraError(
            f"{address}: {name}({', '.join(given)}) failed: {type(error).__name__}: {one_line(error)}"
        ) from error
    weights = (Path(value) for value in given.values())
    return PortEncoder(address, port, (*code_of(port), *(path for path in weights if path.exists())))


def _file(address: str, path: Path) -> ModuleType:
    """The module in a file, which may import its neighbours."""
    path = path.resolve()
    if not path.is_file():
        raise PlethoraError(f"{address}: no file {path}")
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"  # two folders, one file name
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and `inspect` look it up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise _broken(address, error) from error
    return module


def _module(address: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
            raise PlethoraError(
                f"{address}: there is no module {error.name}: check the spelling, and that its folder is "
                "where you start from or on PYTHONPATH; FILE.py:Class needs neither"
            ) from error
        raise _broken(address, error) from error


def _broken(address: str, error: Exception) -> PlethoraError:
    at = traceback.extract_tb(error.__traceback__)[-1]
    return PlethoraError(
        f"{address}: its import failed at {at.filename}:{at.lineno}: "
        f"{type(error).__name__}: {one_line(error)}"
    )
