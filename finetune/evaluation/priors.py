"""SIGMA's priors and masks in two classes of windows: values of patches, and how often masks hide them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster.errors import PlethoraError
from datasets.schema import Corpus
from finetune import metrics
from finetune.evaluation.choose import Windows
from finetune.evaluation.results import CorpusInfo, EncoderInfo, Result
from finetune.metrics import Difference, Interval
from finetune.task import Task, whole_record

MASKS = {
    "random": "random mask",
    "prior": "prior-weighted mask",
    "trained": "mask as trained (prior + teacher)",
}
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Patches:
    """Per window and patch, (n, N): prior values, and how often each mask hides it (share of the draws)."""

    prior: np.ndarray
    hidden: dict[str, np.ndarray]

    def at(self, rows: np.ndarray) -> "Patches":
        """Of these windows."""
        return Patches(self.prior[rows], {name: hidden[rows] for name, hidden in self.hidden.items()})


@dataclass(frozen=True)
class Statistic(Result):
    """A number of each window: its mean in both classes, and the second − the first."""

    name: str
    title: str
    classes: tuple[Interval, ...]
    difference: Difference


@dataclass(frozen=True)
class Summary(Result):
    """Windows of each class, quantiles of the prior in the event's patches, and the table."""

    counts: Mapping[str, int]
    quantiles: Mapping[str, Sequence[float]]
    table: tuple[Statistic, ...]

    def get(self, name: str) -> Statistic | None:
        return next((row for row in self.table if row.name == name), None)


@dataclass(frozen=True)
class Group(Result):
    """The windows of one value of a label."""

    name: str
    summary: Summary

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name} | self.summary.to_json()


@dataclass(frozen=True)
class Groups(Result):
    label: str
    groups: tuple[Group, ...]


@dataclass(frozen=True)
class Priors(Result):
    """`classes`: the task's two; `event_patches`: how many of a window's are the event; `alpha`: weight of
    the prior in the mask; `draws`: masks of each window.
    """

    bundle: EncoderInfo
    corpus: CorpusInfo
    task: Task
    classes: tuple[str, ...]
    patch_s: float
    window_s: float
    event_patches: int
    alpha: float
    draws: int
    refused: Mapping[str, int]
    summary: Summary
    by: Groups | None = None

    def to_json(self) -> dict[str, Any]:
        found = super().to_json()
        task = found["task"] | {"classes": found.pop("classes")}
        return found | found.pop("summary") | {"task": task}


def event_patches(task: Task, patches: int, seconds: float) -> np.ndarray:
    """(N,) bool: the patches of `seconds` each that the task's window lies in, at the end of SIGMA's longer
    one; all of them where the task's windows lie anywhere.
    """
    if task.until_s is None:
        return np.ones(patches, bool)
    return np.arange(patches) >= patches - int(np.ceil(task.window_s / seconds - 1e-6))


def measured(x_nct: np.ndarray, recipe: Any, modules: Mapping[str, Any], draws: int, seed: int) -> Patches:
    """Priors and masks of prepared windows (n, 1, T); `draws` masks, drawn and edited as the recipe does."""
    import torch

    from pretrain import masking
    from pretrain.layers import minmax
    from pretrain.layers import patches as cut

    c, x = recipe.config, torch.from_numpy(np.ascontiguousarray(x_nct, np.float32))
    generator = torch.Generator().manual_seed(seed)
    with torch.inference_mode():
        prior = masking.priors(cut(minmax(x, c.input_range), c.patch), c.beta)
        logits = {"random": torch.zeros_like(prior), "prior": c.alpha * masking.zscore(prior)}
        if "teacher" in modules:
            teacher = modules["teacher"].eval()
            logits["trained"] = recipe.alpha * masking.zscore(prior) + teacher(x).float()
        n, total = prior.shape
        hidden = {name: torch.zeros_like(prior) for name in logits}
        for _ in range(draws):
            uniform, again = (torch.rand(n, total, generator=generator) for _ in range(2))
            for name, at in logits.items():
                order = masking.draw(at, uniform.clamp(1e-7, 1 - 1e-7), max(1, int(total * c.mask_ratio)))
                hidden[name] += masking.edit(masking.to_mask(order, total), again, c.unmask, c.max_run)
    return Patches(prior.numpy(), {name: (h / draws).numpy() for name, h in hidden.items()})


def summary(
    patches: Patches, windows: Windows, event: np.ndarray, names: Sequence[str], seed: int
) -> Summary:
    """Class means with intervals over drawn subjects; `event`: (N,) bool of the patches."""
    y = windows.target.astype(int)
    _, group = np.unique(windows.subject, return_inverse=True)
    weights = metrics.with_point(metrics.draw_weights(int(group.max()) + 1, seed=seed))
    table = []
    for name, (title, value) in statistics(patches, event).items():
        first, second = (_mean(value, y == k, group, weights) for k in range(2))
        classes = (metrics.interval(first), metrics.interval(second))
        table.append(Statistic(name, title, classes, metrics.difference(second, first)))
    quantiles = {
        name: np.quantile(patches.prior[y == k][:, event], QUANTILES).tolist()
        for k, name in enumerate(names)
        if (y == k).any()
    }
    counts = {name: int(np.sum(y == k)) for k, name in enumerate(names)}
    return Summary(counts, quantiles, tuple(table))


def statistics(patches: Patches, event: np.ndarray) -> dict[str, tuple[str, np.ndarray]]:
    """{name: (title, (n,))}: one number a window each."""
    inside = "event" if not event.all() else "window"
    found = {"prior_event": (f"prior, patches of the {inside}", patches.prior[:, event].mean(1))}
    if not event.all():
        found["prior_rest"] = ("prior, patches before", patches.prior[:, ~event].mean(1))
    for name, hidden in patches.hidden.items():
        share = 100 * hidden
        if not event.all():
            inner, before = share[:, event].mean(1), share[:, ~event].mean(1)
            found[f"hidden_{name}"] = (f"% of event patches hidden, {MASKS[name]}", inner)
            found[f"apart_{name}"] = (f"% hidden, event − before, {MASKS[name]}", inner - before)  # noqa: RUF001
        weighed = (hidden * patches.prior).sum(1) / np.maximum(hidden.sum(1), 1e-12)
        found[f"chosen_{name}"] = (
            f"prior of hidden patches − of all, {MASKS[name]}",  # noqa: RUF001
            weighed - patches.prior.mean(1),
        )
    return found


def _mean(value: np.ndarray, which: np.ndarray, group: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(1 + draws,) mean of `value` over the windows of `which`; NaN in draws without any."""
    size = weights.shape[1]
    total, count = (np.bincount(group[which], w, size) for w in (value[which], np.ones(which.sum())))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((weights @ total) / (weights @ count))


def by_label(
    source: Corpus,
    label: str,
    patches: Patches,
    windows: Windows,
    event: np.ndarray,
    names: Sequence[str],
    seed: int,
) -> Groups:
    """A summary of each value of a label of whole records. PlethoraError: the corpus has no such label."""
    known = whole_record(source.labels([label]), label)
    if not known:
        raise PlethoraError(f"{source.uri} has no label {label!r} of whole records: choose another --by")
    of = np.array([str(known.get(record, "")) for record in windows.record], object)
    found = []
    for kind in sorted(set(of.tolist()) - {""}):
        at = np.flatnonzero(of == kind)
        found.append(Group(kind, summary(patches.at(at), windows.at(at), event, names, seed)))
    return Groups(label, tuple(found))
