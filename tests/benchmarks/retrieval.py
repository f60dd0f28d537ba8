"""Does a window of PPG find the ECG of its own time, and the other way round, among people never trained on?

For bundles of contrastive recipes (M2AE, AnyPPG): --gallery held-out windows, each of another record, out of
the validation and test subjects of the bundle's own run; several drawn galleries, mean and spread of recall.
The recipe's own networks and heads are used, so the bundle's recipe and corpora must be at hand.

    python -m tests.benchmarks.retrieval BUNDLE [BUNDLE …] [--gallery 64] [--draws 20]
"""

import argparse
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import load_file

from cluster import bundle
from cluster.cli import entry
from cluster.session import session
from pretrain.config import RunConfig
from pretrain.data import open_data
from pretrain.recipe import build
from tests.benchmarks.table import show

NAMES = ("recall1_ppg_ecg", "recall1_ecg_ppg", "recall5_ppg_ecg", "recall5_ecg_ppg", "chance")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundles", nargs="+", metavar="BUNDLE")
    parser.add_argument("--gallery", type=int, default=64)
    parser.add_argument("--draws", type=int, default=20, help="galleries")
    parser.add_argument(
        "--json", action="store_true", help="accepted for symmetry: JSON is always the last line"
    )
    given = parser.parse_args()
    with session(actors=2):
        rows = [measure(uri, given.gallery, given.draws) for uri in given.bundles]
    show(
        f"retrieval among {given.gallery} windows of distinct held-out records, {given.draws} galleries",
        rows,
        {"recall@1 at least 10 times chance, both ways": all(row["times chance"] >= 10 for row in rows)},
    )


def measure(uri: str, gallery: int, draws: int) -> dict[str, Any]:
    """Mean recalls over the galleries, and recall@1 (the worse way) over chance."""
    opened = bundle.open(uri)
    run = RunConfig(**opened.config["run"])
    recipe = build(run.recipe, run.method | {"gallery": gallery}, run.seed)
    modules, frozen = recipe.modules(), recipe.frozen()
    state = load_file(opened.path("model.safetensors"))
    for name, module in modules.items():
        mine = {k.removeprefix(f"{name}."): v for k, v in state.items() if k.startswith(f"{name}.")}
        module.load_state_dict(mine)
        module.eval()
    places = held_out(open_data(run, recipe))
    if len(places) < gallery:
        raise SystemExit(f"{uri}: {len(places)} held-out records with both signals: lower --gallery")
    draw, found = np.random.default_rng(0), []
    for _ in range(draws):
        chosen = [places[i] for i in draw.permutation(len(places))[:gallery]]
        parts = []
        for number, (index, rows) in enumerate(chosen):
            row = rows[draw.integers(len(rows))][None]
            parts.append(index.load(row) | {"window": index.ids(row), "subject": np.array([number])})
        batch = {k: torch.from_numpy(np.concatenate([p[k] for p in parts])) for k in parts[0]}
        with torch.no_grad():
            result = recipe.losses(modules, frozen, batch, 0)
        said = result.log | recipe.summary(result.counts)
        if NAMES[0] not in said:
            raise SystemExit(f"{uri}: {run.recipe} does not look for one signal's partner in another")
        found.append([float(said[name]) for name in NAMES])
    mean = dict(zip(NAMES, np.mean(found, axis=0), strict=True))
    spread = float(np.std([row[0] for row in found]))
    worse = min(mean["recall1_ppg_ecg"], mean["recall1_ecg_ppg"])
    row = {"bundle": run.name, "records": len(places)} | {k: float(v) for k, v in mean.items()}
    return row | {"SD of recall1_ppg_ecg": spread, "times chance": worse / mean["chance"]}


def held_out(data: Any) -> list[tuple[Any, np.ndarray]]:
    """(index, rows of windows with both signals) of each record of subjects that were not trained on."""
    places = []
    for index in data.indexes:
        rows = np.concatenate([index.select(side, data.run.split) for side in ("val", "test")])
        rows = rows[index.has(rows) == 2 ** len(index.spec.signals) - 1]
        record = np.asarray(index.table["record"].take(pa.array(rows)).to_pylist(), object)
        places += [(index, rows[record == name]) for name in sorted(set(record))]
    return places


if __name__ == "__main__":
    entry(lambda _: main())
