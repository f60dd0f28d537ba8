"""The fingerprint of a run: the settings that determine its result, written when the run starts and compared
each time it resumes.

It contains what determines the order of the windows, the content of the checkpoints, and how a step updates
the weights. Most keys may not change. Those in `MAY_CHANGE` may, and the change is reported. Settings outside
the fingerprint (the number of workers, who reads, what is logged) may change without notice.
"""

import json
import re
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from cluster import storage
from cluster.config import Config, validate
from cluster.errors import PlethoraError
from datasets import plan
from datasets.schema import open_corpus
from datasets.split import Split
from datasets.windows import WindowSpec
from pretrain import recipe as recipes
from pretrain.config import Engine, Optim, RunConfig, Select
from pretrain.lineage import parents
from pretrain.recipe import Recipe

FILE = "plan.json"
_MOST = 3  # changes named in one line
# A change takes effect from the next step on. betas, eps, weight decay and clip are not among them: loading a
# checkpoint (torch's load_state_dict, DeepSpeed's load_checkpoint) restores the old values.
MAY_CHANGE = re.compile(
    r"optim(_of\..+)?\.(lr|lr_reference_batch|min_lr|warmup_epochs|warmup_steps|schedule)"
    r"|engine\.(precision|offload)|micro_batch|select\.patience"
)


class Corpus(Config):
    """`hash`: of its content; `weight`: its share, 0 to 1. The URI may change."""

    uri: str
    hash: str
    weight: float

    def __str__(self) -> str:
        return f"{self.uri} (content {self.hash}, weight {self.weight:g})"


class Order(Config):
    """The keys of [stream] that determine the order of windows."""

    lanes: int
    mixed: int


class Fingerprint(Config):
    """The settings that a run may not change once started, or only with a notice; named as in a run file."""

    plan: int  # version of the plan's order
    recipe: str
    method: dict[str, Any]  # complete, with defaults; the hash replaces the URI of a bundle or weights
    seed: int
    batch: int
    micro_batch: int | None
    steps: int | None
    epochs: float | None
    epoch_windows: int | None
    corpus: tuple[Corpus, ...]
    split: Split
    windows: WindowSpec
    stream: Order
    optim: Optim
    optim_of: dict[str, Optim]  # complete, for each module that has overrides
    engine: Engine
    select: Select

    @property
    def length(self) -> str:
        """The length of the run in the unit of its run file, for messages."""
        return f"{self.steps} steps" if self.steps is not None else f"{self.epochs:g} epochs"


@dataclass(frozen=True)
class Change:
    """A key whose value has changed."""

    key: str
    old: str
    new: str

    def __str__(self) -> str:
        text = f"{self.key} was {self.old}, is {self.new}"
        return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{52}\b", r"\1", text)


def of(run: RunConfig, recipe: Recipe) -> Fingerprint:
    """The fingerprint of a located run. PlethoraError: a corpus is missing."""
    kind: Any = recipes.load(run.recipe)
    method = validate(kind.Config, run.method, "[method]").model_dump(mode="json")
    hashes = {parent["uri"]: f"content {parent['hash']}" for parent in parents(run)}
    return Fingerprint(
        plan=plan.VERSION,
        recipe=run.recipe,
        method=_put(method, hashes),
        seed=run.seed,
        batch=run.batch,
        micro_batch=run.micro_batch,
        steps=run.steps,
        epochs=run.epochs,
        epoch_windows=run.epoch_windows,
        corpus=tuple(Corpus(uri=uri, hash=open_corpus(uri).hash, weight=w) for uri, w in run.corpora.items()),
        split=run.split,
        windows=recipe.windows(),
        stream=Order(lanes=run.stream.lanes, mixed=run.stream.mixed),
        optim=run.optim,
        optim_of={module: run.optim_for(module) for module in run.optim_of},
        engine=run.engine,
        select=run.select,
    )


def _put(value: Any, hashes: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _put(inner, hashes) for key, inner in value.items()}
    if isinstance(value, list):
        return [_put(inner, hashes) for inner in value]
    return hashes.get(value, value) if isinstance(value, str) else value


def read(home: str) -> Fingerprint | None:
    """The fingerprint that the run at `home` started with; None if there is none."""
    where = storage.join(home, FILE)
    if not storage.exists(where):
        return None
    stored = storage.read_json(where)
    if "optim" not in stored:
        raise PlethoraError(
            f"{where} is of an older Plethora, which did not keep the optimizer's settings: go on with that "
            "version, or give another name"
        )
    return validate(Fingerprint, stored, where)


def write(home: str, found: Fingerprint) -> None:
    """Store the fingerprint with which the run at `home` starts or resumes."""
    storage.write_json(storage.join(home, FILE), found.model_dump(mode="json"))


def changes(before: Fingerprint, now: Fingerprint) -> list[Change]:
    """Every key that differs, in the order of the fields."""
    found = []
    modules = list(dict.fromkeys([*before.optim_of, *now.optim_of]))
    old, new = (_flat("", _settings(p, modules)) for p in (before, now))
    for key in [*old, *(key for key in new if key not in old)]:
        if old.get(key) != new.get(key):
            found.append(Change(key, *(json.dumps(p.get(key), ensure_ascii=False) for p in (old, new))))
    for a, b in zip_longest(before.corpus, now.corpus):
        if a is None or b is None or (a.hash, a.weight) != (b.hash, b.weight):
            found.append(Change("corpus", str(a or "not there"), str(b or "not there")))
    return found


def _settings(found: Fingerprint, modules: list[str]) -> dict[str, Any]:
    """Everything except the corpora, with the optimizer of each of `modules`, overridden or not."""
    each = {module: found.optim_of.get(module, found.optim) for module in modules}
    return found.model_copy(update={"optim_of": each}).model_dump(mode="json", exclude={"corpus"})


def _flat(at: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {at: value}
    return {k: v for name, inner in value.items() for k, v in _flat(f"{at}.{name}".strip("."), inner).items()}


@dataclass(frozen=True)
class Resumption:
    """How a run resumes: whether it is extended, and which keys of `MAY_CHANGE` changed."""

    longer: bool
    changed: list[Change]

    def __str__(self) -> str:
        return "; ".join(map(str, self.changed))


def compare(name: str, before: Fingerprint, now: Fingerprint, lengthen: bool = True) -> Resumption:
    """How run `name` resumes. lengthen: whether it may be extended. PlethoraError: keys changed that may not,
    with their names.
    """
    found = changes(before, now)
    changed = [change for change in found if MAY_CHANGE.fullmatch(change.key)]
    found = [change for change in found if change not in changed]
    longer = lengthen and len(found) == 1 and _longer(before, now)
    if not found or longer:
        return Resumption(longer, changed)
    listed = "; ".join(str(change) for change in found[:_MOST])
    more = f"; and {len(found) - _MOST} more" if len(found) > _MOST else ""
    other = ", with the Plethora that began it" if found[0].key == "plan" else ""
    raise PlethoraError(
        f"run {name} is not what it began as ({listed}{more}): go on with what it began with{other}, or give "
        "another name"
    )


def _longer(before: Fingerprint, now: Fingerprint) -> bool:
    """Whether the one key in which the two differ is the length, and it grew."""
    if before.steps is not None and now.steps is not None:
        return now.steps > before.steps
    return before.epochs is not None and now.epochs is not None and now.epochs > before.epochs
