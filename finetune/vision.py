"""python -m finetune vision (or tune): train a network on labels, judge it on people it never saw."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from cluster import config, storage
from cluster.errors import PlethoraError


def vision(
    path: str, sets: Sequence[str] = (), resume: bool = False, out: str | None = None
) -> dict[str, Any]:
    """Train the run file at `path` to its adapter bundle and judge that on the test subjects of each corpus.

    `out`: the figures, predictions and split go there too (of several corpora into folders by number). Every
    mistake that can be seen before the first step is told before it: the network is built and run once.
    """
    from pretrain.config import RunConfig

    run = config.load(path, RunConfig, sets)
    from finetune.supervised import Tune, Vision
    from pretrain import driver
    from pretrain.recipe import build

    located = driver.located(run)
    recipe = build(located.recipe, located.method, located.seed)
    if not isinstance(recipe, Vision | Tune):
        raise PlethoraError(
            f'recipe = "{run.recipe}" does not learn from labels: `python -m pretrain {path}` trains it; '
            'here it is "finetune.supervised:Vision" or "finetune.supervised:Tune"'
        )
    for line in recipe.check():
        driver.say(line)
    result = driver.launch(run, resume)
    from cluster.session import session
    from finetune.adapter import open_adapter
    from finetune.assess import assess

    adapter, found = open_adapter(result["bundle"]), []
    with session(actors=1):
        for number, uri in enumerate(located.corpora):
            where = out and (out if len(located.corpora) == 1 else storage.join(out, str(number)))
            found.append(assess(adapter, uri, storage.join(located.storage, "index"), where))
    return result | {"held_out": found}


def transfer(bundle: str, corpus: str, out: str | None = None, weights: str | None = None) -> dict[str, Any]:
    """Judge an adapter, without any refitting, on a corpus (zero-shot where it was not trained on it)."""
    from cluster.session import session
    from finetune.adapter import open_adapter
    from finetune.assess import assess

    adapter = open_adapter(bundle, weights)
    for line in adapter.recipe.lines(adapter.net.body):
        print(line, file=sys.stderr, flush=True)
    home = storage.normalise(bundle).rpartition("/")[0].rpartition("/")[0]
    with session(actors=2):
        return assess(adapter, corpus, storage.join(home, "index"), out)


def merge(bundle: str, out: str, weights: str | None = None) -> dict[str, Any]:
    """Publish at `out` a bundle of the adapter and its base as one network: `<signal>.onnx` goes from
    prepared samples to the predictions, with the images computed inside and LoRA added to its weights.
    """
    from finetune.adapter import open_adapter
    from finetune.networks.backbone import VisionNet
    from pretrain.publish import write_bundle

    adapter = open_adapter(bundle, weights)
    found, net = adapter.bundle, adapter.net
    if isinstance(net.body, VisionNet):
        net.body.merge()
    encoder = adapter.recipe.encoder({"net": net})
    encoder.kind = "encoder"
    encoder.about |= {"merged_from": {"uri": found.uri, "hash": found.hash}}
    state = {"net": {k: v.detach().contiguous() for k, v in net.state_dict().items()}}
    lineage = {k: v for k, v in found.lineage.items() if k not in ("git_commit", "versions")}
    lineage["parents"] = [*lineage.get("parents", []), {"uri": found.uri, "hash": found.hash}]
    uri = storage.normalise(out)
    write_bundle(
        uri, encoder, state, {"net": sum(p.numel() for p in net.parameters())}, found.config["run"], lineage,
        found.metrics, {},
    )  # fmt: skip
    columns = [h.name if h.columns == 1 else [f"{h.name}: {c}" for c in h.classes] for h in adapter.heads]
    print(f"merged: {uri}; its vector is {columns}")
    return {"bundle": uri, "columns": columns}


def main(given: Any) -> dict[str, Any]:
    """What the command line asks for: a run, --transfer or --merge."""
    ways = [w for w in (given.run, given.transfer, given.merge) if w]
    if len(ways) != 1:
        raise PlethoraError(
            "give one of RUN.toml, --transfer BUNDLE (with --corpus) and --merge BUNDLE (with --out)"
        )
    if given.transfer:
        if not given.corpus:
            raise PlethoraError("--transfer BUNDLE needs --corpus URI: the corpus to judge it on")
        return transfer(given.transfer, given.corpus, given.out, given.weights)
    if given.merge:
        if not given.out:
            raise PlethoraError("--merge BUNDLE needs --out URI: where the merged bundle goes")
        return merge(given.merge, given.out, given.weights)
    return vision(given.run, given.set, given.resume, given.out)
