"""``python -m pretrain import``: turns the authors' published weights into a bundle."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from cluster import storage
from cluster.config import table_of
from cluster.errors import PlethoraError
from pretrain.importing import kinds
from pretrain.importing.kinds import KINDS


def main(argv: list[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        prog="python -m pretrain import",
        description="Make a bundle from weights that a method's authors published (docs/importing.md). The "
        "file is opened as weights only, never as code. If it does not match the authors' public code, the "
        "command reports all differences and writes nothing.",
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
    from pretrain.importing.checkpoint import digest, read  # torch takes seconds: report usage errors first
    from pretrain.importing.names import Names, listed
    from pretrain.publish import write_bundle

    state = read(checkpoint)
    kinds.check(kind, state, checkpoint)
    names, about = Names(state), KINDS[kind]
    try:
        encoder, modules, config = about.load()(names, table_of(sets))
    except (ValueError, IndexError, ZeroDivisionError, PlethoraError) as error:  # odd shapes raise these, too
        raise PlethoraError(f"{checkpoint} as {kind}: {error}") from error
    imported = {
        "file": Path(checkpoint).name,
        "sha256": digest(checkpoint),
        "kind": kind,
        "code": about.code,
        "paper": about.paper,
        "corpora_named": list(about.corpora_named),
        "unused": names.unused,
    }
    run = {
        "recipe": about.recipe,
        "name": f"{kind}-imported",
        "seed": 0,
        "method": config.model_dump(mode="json", exclude_unset=True),
    }
    weights = {name: module.state_dict() for name, module in modules.items()}
    counts = {name: sum(p.numel() for p in module.parameters()) for name, module in modules.items()}
    lineage = {"corpora": [], "parents": [], "seeds": "unknown", "imported": imported}
    write_bundle(uri, encoder, weights, counts, run, lineage, {}, {})
    unused = f"; not used: {listed(names.unused)}" if names.unused else ""
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
