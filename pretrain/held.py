"""Which modules of a recipe a bundle holds, and how its weights are loaded into exactly these."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from cluster.errors import PlethoraError

if TYPE_CHECKING:
    from torch import Tensor, nn

SHOWN = 100  # names per problem; a layer or a module that is missing as a whole counts as one


def held(modules: Mapping[str, nn.Module], names: Sequence[str] | None, where: str) -> dict[str, nn.Module]:
    """Those of a recipe's ``modules`` that a bundle holds. ``names``: of whole modules ("student") or of
    parts of one ("pair.ppg"), whose other parts become None; None, as in older bundles: all.

    Errors: PlethoraError when the recipe has no such module.
    """
    if names is None:
        return dict(modules)
    parts = {name: [part for part, _ in module.named_children()] for name, module in modules.items()}
    known = [*parts, *(f"{name}.{part}" for name, inner in parts.items() for part in inner)]
    strange = [name for name in names if name not in known]
    if strange or not names:
        raise PlethoraError(
            f"{where}: modules names {', '.join(strange) or 'nothing'}; its recipe has {', '.join(known)}"
        )
    found = {}
    for name, module in modules.items():
        if name in names:
            found[name] = module
            continue
        kept = {part for part in parts[name] if f"{name}.{part}" in names}
        if kept:
            found[name] = module
            for part in set(parts[name]) - kept:
                setattr(module, part, None)
    return found


def fill(modules: Mapping[str, nn.Module], weights: Mapping[str, Tensor], what: str) -> None:
    """Load ``weights`` ({"module.key": tensor}) into ``modules``. Errors: PlethoraError that begins with
    ``what`` and names all that is missing, of another shape, or unexpected; nothing is loaded then.
    """
    wanted = {
        f"{name}.{key}": x for name, module in modules.items() for key, x in module.state_dict().items()
    }
    both = [name for name in wanted if name in weights and wanted[name].shape != weights[name].shape]
    shapes = [f"{name} {tuple(weights[name].shape)} instead of {tuple(wanted[name].shape)}" for name in both]
    problems = {
        "missing": grouped([name for name in wanted if name not in weights], wanted),
        "of another shape": shapes,
        "unexpected": grouped([name for name in weights if name not in wanted], weights),
    }
    if any(problems.values()):
        raise PlethoraError(
            f"{what}: {'; '.join(f'{kind}: {_listed(names)}' for kind, names in problems.items() if names)}"
        )
    for name, module in modules.items():
        module.load_state_dict(
            {key.removeprefix(f"{name}."): x for key, x in weights.items() if key.startswith(f"{name}.")}
        )


def grouped(names: Collection[str], among: Collection[str]) -> list[str]:
    """``names``, all told in few words: "pair.ecg.* (210)" where they include all of ``among`` under it."""
    mine, theirs = (Counter(p for name in some for p in _above(name)) for some in (names, among))
    found: dict[str, None] = {}
    for name in names:
        whole = next((p for p in _above(name) if mine[p] == theirs[p] > 1), None)
        found[name if whole is None else f"{whole}.* ({theirs[whole]})"] = None
    return list(found)


def _above(name: str) -> Iterator[str]:
    """ "a" and "a.b" of "a.b.c"."""
    parts = name.split(".")
    return (".".join(parts[:count]) for count in range(1, len(parts)))


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return " ".join(", ".join(names[:SHOWN]).split()) + more
