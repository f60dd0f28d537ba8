"""``python -m pretrain import``: turns the authors' published weights into a bundle."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cluster import storage
from cluster.config import table_of
from cluster.errors import PlethoraError

# the known checkpoints and their sources; corpora as the release names them, since no checkpoint does;
# marks: a checkpoint of this kind, and of no other, has names that begin so
KINDS: dict[str, dict[str, Any]] = {
    "anyppg": {
        "recipe": "pretrain.recipes.anyppg:AnyPPG",
        "marks": ("stage_list.", "ppg_encoder.stage_list."),
        "code": "https://github.com/PKUDigitalHealth/AnyPPG",
        "paper": "arXiv 2511.01747",
        "corpora_named": ["PulseDB", "MC-MED", "HSP", "CFS", "MESA"],
    },
    "sigma-tokenizer": {
        "recipe": "pretrain.recipes.sigma:Tokenizer",
        "marks": ("quantize.", "encode_task_layer."),
        "code": "https://github.com/ZonghengGuo/SigmaPPG",
        "paper": "arXiv 2601.21031",
        "corpora_named": ["MIMIC-III", "MIMIC-IV", "VitalDB"],
    },
    "sigma-student": {
        "recipe": "pretrain.recipes.sigma:Masked",
        "marks": ("patch_embed_", "student.patch_embed_"),
        "code": "https://github.com/ZonghengGuo/SigmaPPG",
        "paper": "arXiv 2601.21031",
        "corpora_named": ["MIMIC-III", "MIMIC-IV", "VitalDB"],
    },
}


def main(argv: list[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        prog="python -m pretrain import",
        description="Make a bundle from weights that a method's authors published: anyppg (the PPG encoder, "
        "or the whole module with its ECG encoder), sigma-tokenizer, sigma-student. The file is opened as "
        "weights only, never as code. If it does not match the authors' public code, the command reports all "
        "differences and writes nothing.",
    )
    parser.add_argument("kind", choices=tuple(KINDS), help="the method and its authors' file")
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a local .pth, .pt or .safetensors file")
    parser.add_argument("--out", required=True, metavar="URI", help="the bundle: STORAGE/NAME/bundle")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a key of the recipe's config that shapes do not determine: input_range=[-1,1] or [0,1] (SIGMA, "
        "must be given), heads=8, window_s=30",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line on stdout"
    )
    given = parser.parse_args(argv)
    return import_weights(given.kind, given.checkpoint, given.out, given.set)


def import_weights(kind: str, checkpoint: str, out: str, sets: list[str]) -> dict[str, Any]:
    """Import ``checkpoint`` as a bundle at ``out``. Returns {"bundle", "kind", "modes", "parameters",
    "sha256", "unused"}.

    Errors: PlethoraError when ``out`` is already complete, the file is not such a checkpoint, or ``sets``
    contradict it; nothing is written then.
    """
    uri = storage.normalise(out)
    if storage.exists(storage.join(uri, "_COMPLETE")):
        raise PlethoraError(f"{uri} is a complete bundle, and bundles never change: give another --out")
    from pretrain.importing import anyppg, sigma  # torch takes seconds: report usage errors first
    from pretrain.importing.checkpoint import digest, read
    from pretrain.importing.names import Names
    from pretrain.publish import write_bundle

    state = read(checkpoint)
    _check_kind(kind, state, checkpoint)
    names = Names(state)
    mapping: Any = {
        "anyppg": anyppg.anyppg,
        "sigma-tokenizer": sigma.tokenizer,
        "sigma-student": sigma.student,
    }[kind]
    try:
        encoder, modules, config = mapping(names, table_of(sets))
    except (ValueError, IndexError, ZeroDivisionError, PlethoraError) as error:  # odd shapes raise these, too
        raise PlethoraError(f"{checkpoint} as {kind}: {error}") from error
    about = KINDS[kind]
    imported = {
        "file": Path(checkpoint).name,
        "sha256": digest(checkpoint),
        "kind": kind,
        **{key: about[key] for key in ("code", "paper", "corpora_named")},
        "unused": names.unused,
    }
    run = {
        "recipe": about["recipe"],
        "name": f"{kind}-imported",
        "seed": 0,
        "method": config.model_dump(mode="json", exclude_unset=True),
    }
    weights = {name: module.state_dict() for name, module in modules.items()}
    counts = {name: sum(p.numel() for p in module.parameters()) for name, module in modules.items()}
    lineage = {"corpora": [], "parents": [], "seeds": "unknown", "imported": imported}
    write_bundle(uri, encoder, weights, counts, run, lineage, {}, {})
    unused = f"; not used: {', '.join(names.unused)}" if names.unused else ""
    say = f"{uri}: {len(state)} tensors of {checkpoint}, modes {', '.join(encoder.modes)}{unused}"
    print(say, file=sys.stderr, flush=True)
    return {
        "bundle": uri,
        "kind": encoder.kind,
        "modes": list(encoder.modes),
        "parameters": counts,
        "sha256": imported["sha256"],
        "unused": names.unused,
    }


def _check_kind(kind: str, state: Iterable[str], checkpoint: str) -> None:
    """Errors: PlethoraError when the names in ``state`` are those of another kind, or of none."""
    found = [known for known, about in KINDS.items() if any(n.startswith(about["marks"]) for n in state)]
    if kind in found:
        return
    if found:
        raise PlethoraError(
            f"{checkpoint} is no {kind}: its names are those of {found[0]}: "
            f"python -m pretrain import {found[0]} {checkpoint} …"
        )
    raise PlethoraError(
        f"{checkpoint} is no {kind}: no name in it begins with {' or '.join(KINDS[kind]['marks'])} (it has "
        f"{', '.join(sorted(state)[:3])} …)"
    )
