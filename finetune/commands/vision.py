"""vision (or tune): train a network on labels, and judge it on people it never saw; judge an adapter on
another corpus; merge an adapter with its base.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from cluster import config, storage
from cluster.errors import PlethoraError
from cluster.session import session
from finetune.adapter import held_out, open_adapter
from finetune.evaluation.assess import assess
from finetune.reports import vision_report
from finetune.reports.sheet import Sheet
from finetune.supervised import Tune
from finetune.supervised import Vision as VisionRecipe
from pretrain import driver
from pretrain.config import RunConfig
from pretrain.publish import write_bundle
from pretrain.recipe import build


@dataclass(frozen=True)
class Vision:
    """One of `run` (a run file, with KEY=VALUE of `sets` on top), `transfer` and `merge` (bundles of
    adapters). `corpus`: of a transfer; `weights`: where the base's weights lie now, of an adapter; `out`: a
    folder for the sheet, of a merge the new bundle.
    """

    run: str | None = None
    sets: Sequence[str] = ()
    resume: bool = False
    transfer: str | None = None
    merge: str | None = None
    corpus: str | None = None
    weights: str | None = None
    out: str | None = None


def run(options: Vision) -> Sheet:
    """PlethoraError: not exactly one of the three is asked for, or what it needs is missing."""
    if sum(way is not None for way in (options.run, options.transfer, options.merge)) != 1:
        raise PlethoraError(
            "give one of RUN.toml, --transfer BUNDLE (with --corpus) and --merge BUNDLE (with --out)"
        )
    if options.run is not None:
        return _trained(options.run, options)
    if options.transfer is not None:
        return _transferred(options.transfer, options)
    return _merged(str(options.merge), options)


def _trained(path: str, options: Vision) -> Sheet:
    """Train the run file at `path` to its adapter bundle, and judge that on the test subjects of each corpus.
    The network is built and run once first, so that mistakes show before the first step.
    """
    given = config.load(path, RunConfig, options.sets)
    located = driver.located(given)
    recipe = build(located.recipe, located.method, located.seed)
    if not isinstance(recipe, VisionRecipe | Tune):
        raise PlethoraError(
            f'recipe = "{located.recipe}" does not learn from labels: `python -m pretrain {path}` trains it; '
            'here it is "finetune.supervised:Vision" or "finetune.supervised:Tune"'
        )
    for line in recipe.check():
        driver.say(line)
    trained = driver.launch(given, options.resume)
    adapter, cache = open_adapter(trained["bundle"]), storage.join(located.storage, "index")
    with session(actors=1):
        assessed = [assess(adapter, held_out(adapter, uri, cache)) for uri in located.corpora]
    return vision_report.sheet(assessed, options.out, trained)


def _transferred(bundle: str, options: Vision) -> Sheet:
    """Judge an adapter, without any refitting, on a corpus (zero-shot where it was not trained on it)."""
    if not options.corpus:
        raise PlethoraError("--transfer BUNDLE needs --corpus URI: the corpus to judge it on")
    adapter = open_adapter(bundle, options.weights)
    for line in adapter.recipe.lines(adapter.net.body):
        driver.say(line)
    home = storage.normalise(bundle).rpartition("/")[0].rpartition("/")[0]
    with session(actors=2):
        assessed = assess(adapter, held_out(adapter, options.corpus, storage.join(home, "index")))
    return vision_report.sheet([assessed], options.out)


def _merged(bundle: str, options: Vision) -> Sheet:
    """Publish at `out` a bundle of the adapter and its base as one network: `<signal>.onnx` goes from
    prepared samples to the predictions, with the images computed inside and LoRA added to its weights.
    """
    if not options.out:
        raise PlethoraError("--merge BUNDLE needs --out URI: where the merged bundle goes")
    adapter = open_adapter(bundle, options.weights)
    found, net = adapter.bundle, adapter.net
    net.body.merge()
    encoder = adapter.recipe.encoder({"net": net})
    encoder.kind = "encoder"
    encoder.about |= {"merged_from": {"uri": found.uri, "hash": found.hash}}
    state = {"net": {k: v.detach().contiguous() for k, v in net.state_dict().items()}}
    lineage = {k: v for k, v in found.lineage.items() if k not in ("git_commit", "versions")}
    lineage["parents"] = [*lineage.get("parents", []), {"uri": found.uri, "hash": found.hash}]
    parameters, uri = {"net": sum(p.numel() for p in net.parameters())}, storage.normalise(options.out)
    write_bundle(uri, encoder, state, parameters, found.config["run"], lineage, found.metrics, {})
    columns = [h.name if h.columns == 1 else [f"{h.name}: {c}" for c in h.classes] for h in adapter.heads]
    return vision_report.merged(uri, columns)
