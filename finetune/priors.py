"""What SIGMA's priors and masks make of sick windows: prior values per patch, and what the masks hide, in two
classes of windows (true arrhythmia alarms against false ones).

SIGMA (arXiv 2601.21031) hides patches by how much they have to say: height and skewness of a clean pulse. An
arrhythmia's patches are not clean pulses; whether the priors take them for artefacts is measured here.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cluster import storage
from cluster.errors import PlethoraError
from cluster.session import session
from datasets.schema import Corpus, open_corpus
from finetune import metrics
from finetune.encoder import BundleEncoder
from finetune.evaluation.choose import Seen, Windows, choose_windows, place
from finetune.reports import priors_report
from finetune.task import Task, load_task, whole_record
from finetune.task import classes as class_names

CHUNK = 64
MASKS = {
    "random": "random mask",
    "prior": "prior-weighted mask",
    "trained": "mask as trained (prior + teacher)",
}


@dataclass(frozen=True)
class Patches:
    """Per window and patch, (n, N): prior values, and how often each mask hides it (share of the draws)."""

    prior: np.ndarray
    hidden: dict[str, np.ndarray]


def priors(
    bundle: str,
    corpus: str,
    out: str,
    task: str = "alarm_truth",
    by: str | None = None,
    draws: int = 64,
    seed: int = 0,
) -> dict[str, Any]:
    """Write priors.md, results.json, patches.parquet and priors.png to `out`; return the results.

    `task`: two classes of windows. Where its windows end at one second of a record, the last `window_s` of
    them are the event, and SIGMA's own, longer window ends there; else all of a window is. `by`: a label of
    whole records (the kind of alarm) to tell apart. Everyone counts, also whom pretraining saw: nothing is
    predicted here. PlethoraError when the bundle is no SIGMA of the masked stage.
    """
    question, source, encoder = load_task(task), open_corpus(corpus), BundleEncoder(bundle)
    recipe, modules = _masked(bundle)
    wide = _widened(question, recipe.config.window_s)
    labels = source.labels([*question.labels, *([by] if by else [])])
    names = class_names(labels, wide)
    with session(actors=2):
        places = place(source, {"sigma": encoder}, wide)
    windows = choose_windows(places, wide, labels, Seen("none"), "all", bundle)
    parts = []
    for low in range(0, len(windows.rows), CHUNK):
        x = places.views["sigma"].load(windows.rows[low : low + CHUNK])[encoder.modality]
        parts.append(measured(x, recipe, modules, draws, seed + low))
    patches = Patches(
        np.concatenate([p.prior for p in parts]),
        {m: np.concatenate([p.hidden[m] for p in parts]) for m in parts[0].hidden},
    )
    seconds = recipe.config.patch / recipe.config.rate
    event = _event(question, patches.prior.shape[1], seconds)
    results = summary(patches, windows, event, names, seed)
    results |= {
        "bundle": {"uri": encoder.bundle.uri, "mode": encoder.mode},
        "corpus": {"uri": source.uri, "hash": source.hash, "name": source.manifest["name"]},
        "task": question.model_dump() | {"classes": names},
        "patch_s": seconds, "window_s": recipe.config.window_s, "event_patches": int(event.sum()),
        "alpha": recipe.config.alpha, "draws": draws, "refused": windows.refused,
    }  # fmt: skip
    if by:
        results["by"] = {"label": by, "groups": _by(source, by, patches, windows, event, names, seed)}
    results["verdict"] = priors_report.verdicts(results)
    _write(results, patches, windows, event, out)
    results["out"] = storage.normalise(out)
    return results


def _masked(bundle: str) -> tuple[Any, dict[str, Any]]:
    from pretrain.recipes.sigma import Masked
    from pretrain.trained import open_modules

    found, recipe, modules = open_modules(bundle)
    if not isinstance(recipe, Masked):
        raise PlethoraError(
            f"{bundle} is of {found.config['run']['recipe']}: priors are SIGMA's; give a bundle of its "
            "masked stage"
        )
    return recipe, modules


def _widened(task: Task, window_s: float) -> Task:
    if task.kind != "binary":
        raise PlethoraError(f"task {task.name} is {task.kind}: priors are told apart in two classes (binary)")
    if task.until_s is not None and task.until_s < window_s:
        raise PlethoraError(
            f"task {task.name} ends at {task.until_s:g} s of a record, SIGMA's windows are {window_s:g} s: "
            "give a bundle with shorter ones"
        )
    return task.model_copy(update={"window_s": window_s, "short_s": None})


def _event(task: Task, patches: int, seconds: float) -> np.ndarray:
    """(N,) bool: the patches that the task's own window lies in."""
    if task.until_s is None:
        return np.ones(patches, bool)
    return np.arange(patches) >= patches - int(np.ceil(task.window_s / seconds - 1e-6))


def measured(x_nct: np.ndarray, recipe: Any, modules: dict[str, Any], draws: int, seed: int) -> Patches:
    """Priors and masks of prepared windows (n, 1, T); `draws` masks, drawn and edited as the recipe does."""
    import torch

    from pretrain import masking
    from pretrain.layers import minmax
    from pretrain.layers import patches as cut

    c, x = recipe.config, torch.from_numpy(np.ascontiguousarray(x_nct, np.float32))
    generator = torch.Generator().manual_seed(seed)
    with torch.inference_mode():
        prior = masking.priors(cut(minmax(x), c.patch), c.beta)
        logits = {"random": torch.zeros_like(prior), "prior": c.alpha * masking.zscore(prior)}
        if recipe.has_teacher:
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
) -> dict[str, Any]:
    """Counts, quantiles of the prior, and class means with intervals over drawn subjects."""
    y, values = windows.target.astype(int), statistics(patches, event)
    _, group = np.unique(windows.subject, return_inverse=True)
    weights = metrics.with_point(metrics.draw_weights(int(group.max()) + 1, seed=seed))
    table = []
    for name, (title, value) in values.items():
        means = [_mean(value, y == k, group, weights) for k in range(2)]
        table.append(
            {
                "name": name, "title": title,
                "classes": [asdict(metrics.interval(m)) for m in means],
                "difference": asdict(metrics.difference(means[1], means[0])),
            }
        )  # fmt: skip
    return {
        "counts": {name: int(np.sum(y == k)) for k, name in enumerate(names)},
        "quantiles": {
            name: np.quantile(patches.prior[y == k][:, event], (0.05, 0.25, 0.5, 0.75, 0.95)).tolist()
            for k, name in enumerate(names)
            if (y == k).any()
        },
        "table": table,
    }


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


def _by(
    source: Corpus, by: str, patches: Patches, windows: Windows, event: np.ndarray, names: Sequence[str],
    seed: int,
) -> list[dict[str, Any]]:  # fmt: skip
    known = whole_record(source.labels([by]), by)
    of = np.array([str(known.get(r, "")) for r in windows.record], object)
    if not known:
        raise PlethoraError(f"{source.uri} has no label {by!r} of whole records: choose another --by")
    found = []
    for kind in sorted(set(of.tolist()) - {""}):
        at = np.flatnonzero(of == kind)
        part = Patches(patches.prior[at], {m: h[at] for m, h in patches.hidden.items()})
        small = Windows(
            windows.rows[at], windows.target[at], windows.subject[at], windows.record[at], windows.start_s[at]
        )
        found.append({"name": kind, **summary(part, small, event, names, seed)})
    return found


def _write(results: dict[str, Any], patches: Patches, windows: Windows, event: np.ndarray, out: str) -> None:
    import pyarrow.parquet as pq

    n, total = patches.prior.shape
    columns: dict[str, Any] = {
        "record": np.repeat(windows.record, total).tolist(),
        "class": np.repeat([results["task"]["classes"][int(k)] for k in windows.target], total).tolist(),
        "start_s": np.repeat(windows.start_s, total) + np.tile(np.arange(total) * results["patch_s"], n),
        "event": np.tile(event, n),
        "prior": patches.prior.ravel(),
    } | {f"hidden_{name}": h.ravel() for name, h in patches.hidden.items()}
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        pq.write_table(pa.table(columns), here / "patches.parquet", compression="zstd")
        priors_report.draw(results, patches, windows.target.astype(int), event, here / "priors.png")
        (here / "priors.md").write_text(priors_report.markdown(results), encoding="utf-8")
        (here / "results.json").write_bytes(storage.json_bytes(results))
        print(priors_report.terminal(results), flush=True)
        storage.upload(here, out)
        print(f"\ntable, patches and picture: {storage.normalise(out)}")
