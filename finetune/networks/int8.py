"""An int8 bundle: the same contract, preprocessing and mode as the bundle that it was made from."""

import importlib.metadata
import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cluster import bundle as bundles
from cluster import storage, terms
from cluster.errors import PlethoraError
from datasets.index import Index
from datasets.schema import Corpus
from datasets.split import Split
from finetune.encoders.bundle import BundleEncoder
from finetune.evaluation.sample import spread
from finetune.networks.quantize import HOW, OPERATORS, Fidelity, choose, tensors
from pretrain import card
from pretrain.publish import PACKAGES, commit

CALIBRATION, CHECK = 128, 256  # windows at most, spread over the subjects of a side


@dataclass(frozen=True)
class Sample:
    """Prepared windows by name of the encoder's inputs, and whose they are."""

    feed: dict[str, np.ndarray]
    subjects: list[str]

    @property
    def windows(self) -> int:
        return len(next(iter(self.feed.values())))


@dataclass(frozen=True)
class Quantised:
    """What config.json says of an int8 bundle: `how`: "static" or "weights"; `tried`: what each way kept on
    windows of the validation side; `windows` of the sides that it was made with.
    """

    how: str
    tried: Mapping[str, Fidelity]
    weights: str
    activations: str
    operators: tuple[str, ...]
    corpus: str
    window_s: float
    windows: Mapping[str, int]


def quantised(found: bundles.Bundle) -> Quantised:
    """What an int8 bundle's config.json says."""
    about = dict(found.config["quantised"])
    tried = {how: Fidelity(**each) for how, each in about.pop("tried").items()}
    return Quantised(tried=tried, operators=tuple(about.pop("operators")), **about)


def split_of(encoder: BundleEncoder) -> Split:
    """How the bundle's own run divided subjects; the default where it does not say."""
    return Split(**encoder.bundle.config.get("run", {}).get("split", {}))


def sample(index: Index, encoder: BundleEncoder, rows: np.ndarray, most: int) -> Sample:
    """At most so many of these rows of the index, spread."""
    chosen = spread(rows, most)
    loaded = index.load(chosen)
    feed = {i.name: loaded[i.modality] for i in encoder.inputs}
    return Sample(feed, sorted(set(index.table["subject"].take(pa.array(chosen)).to_pylist())))


def publish_int8(encoder: BundleEncoder, corpus: Corpus, index: Index, uri: str, window_s: float) -> None:
    """Quantise the encoder's mode and publish it at `uri`.

    Bounds are measured on the training side of the bundle's own split, the choice is made on its validation
    side. PlethoraError when one of them has no window.
    """
    split = split_of(encoder)
    parts = {}
    for side, most in (("train", CALIBRATION), ("val", CHECK)):
        rows = index.select(side, split)
        if len(rows) < 2:
            raise PlethoraError(
                f"{corpus.uri} has {len(rows)} windows of {window_s:g} s of subjects on the {side} side of "
                f"the bundle's split (seed {split.seed}): calibrate on a corpus with more subjects"
            )
        parts[side] = sample(index, encoder, rows, most)
    with tempfile.TemporaryDirectory(prefix="plethora-int8-") as temporary:
        work, folder = Path(temporary) / "work", Path(temporary) / "bundle"
        work.mkdir()
        folder.mkdir()
        made, choice = choose(encoder, parts["train"].feed, parts["val"].feed, work)
        about = Quantised(
            how=choice.how,
            tried=choice.tried,
            weights="int8, a scale a channel",
            activations=HOW[choice.how],
            operators=tuple(OPERATORS),
            corpus=corpus.uri,
            window_s=window_s,
            windows={side: part.windows for side, part in parts.items()},
        )
        _write(folder, encoder, corpus, parts, made, about)
        bundles.publish(folder, uri)


def _write(
    folder: Path,
    encoder: BundleEncoder,
    corpus: Corpus,
    parts: Mapping[str, Sample],
    made: Path,
    about: Quantised,
) -> None:
    from safetensors.numpy import save_file

    parent, mode = encoder.bundle, encoder.mode
    constants = tensors(made)
    save_file({name: np.ascontiguousarray(x) for name, x in constants.items()}, folder / "model.safetensors")
    file = parent.config["modes"][mode]["file"]
    (folder / file).write_bytes(made.read_bytes())
    run = parent.config.get("run", {})
    config = {
        "version": bundles.VERSION,
        "kind": parent.config["kind"],
        "modes": {mode: parent.config["modes"][mode]},
        "decoders": {},
        "parameters": {
            mode: int(sum(x.size for x in constants.values() if x.dtype == np.int8 and x.ndim > 1))
        },
        "run": {**run, "name": f"{run.get('name') or 'encoder'}-int8"},
        **{key: parent.config[key] for key in ("input_range",) if key in parent.config},
        "quantised": asdict(about),
    }
    preprocessing = {m: parent.preprocessing[m] for m in encoder.modalities}
    lineage = {
        "corpora": [_calibrated_on(corpus, parts)],
        "parents": [{"uri": parent.uri, "hash": _hash(parent)}],
        "inherited": terms.inherited(parent.lineage),
        "seeds": parent.lineage.get("seeds", {}),
        "git_commit": commit(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }
    metrics = {"first": {}, "last": {}, "history": [], "quantised": asdict(about)["tried"]}
    documents = {"config": config, "preprocessing": preprocessing, "lineage": lineage, "metrics": metrics}
    for name, content in documents.items():
        (folder / f"{name}.json").write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    notes = [_card_note(parent, mode, about, parts)]
    (folder / "README.md").write_text(card.render(config, preprocessing, lineage, metrics, notes))


def _hash(parent: bundles.Bundle) -> str:
    return storage.read_bytes(storage.join(parent.uri, bundles.MARK)).decode().strip()


def _calibrated_on(corpus: Corpus, parts: Mapping[str, Sample]) -> dict[str, Any]:
    """lineage.json's entry: of the corpus only what was looked at."""
    copied = ("hash", "source", "licence", "terms", "citation", "key_id", "id_space", "subjects_published")
    subjects = sorted({s for part in parts.values() for s in part.subjects})
    return {
        "uri": corpus.uri,
        "weight": 1.0,
        "use": "calibration of int8",
        "windows": {side: part.windows for side, part in parts.items()},
        **{key: corpus.manifest[key] for key in copied},
        "name": corpus.manifest.get("name", ""),
        "models": terms.audience(corpus.manifest),
        "access": corpus.manifest.get("access", "unknown"),
        "subjects": subjects,
    }


_OTHER = {"static": "with inputs in uint8 as well", "weights": "with int8 weights alone"}


def _card_note(parent: bundles.Bundle, mode: str, about: Quantised, parts: Mapping[str, Sample]) -> str:
    """The card's paragraph."""
    how, found = about.how, about.tried[about.how]
    train, val = parts["train"], parts["val"]
    other = "weights" if how == "static" else "static"
    return (
        f"**Quantised to int8** ({how}) from mode `{mode}` of `{parent.uri}`, which is float32; "
        f"not trained again. Weights of {', '.join(about.operators)} are int8 with a scale a channel, "
        f"{HOW[how]}; the rest is float32. A window's vector does not depend on what else is in its batch. "
        f"{'Calibrated' if how == 'static' else 'Static bounds kept less: they were measured'} on "
        f"{train.windows} windows of {len(train.subjects)} subjects of `{about.corpus}`. On "
        f"{val.windows} windows of {len(val.subjects)} other subjects "
        f"its vectors have a cosine of {found.cosine:.4f} (5th percentile {found.cosine_p5:.4f}) to "
        f"the float32 ones and keep {found.kept:.1%} of their variance, each number alike ("
        f"{_OTHER[other]}: {about.tried[other].kept:.1%}). A probe fitted on float32 vectors must be fitted "
        "again. `model.safetensors` holds the int8 weights, scales and zero points of the ONNX file; to "
        "train on, take the float32 bundle. The table under *Training* names the calibration corpus alone; "
        "what the network learned from, and whose terms bind as well, is in the parent bundle's card."
    )
