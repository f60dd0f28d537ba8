"""What a supervised run learns: each task's columns of the network's output, its targets and its loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor

from cluster.config import validate
from cluster.errors import PlethoraError
from datasets.schema import Corpus
from finetune.evaluation.adapt import adapted
from finetune.evaluation.readings import reading_names
from finetune.task import CLASSES, Task, classes, window_targets

LEARNT = ("regression", *CLASSES)


@dataclass(frozen=True)
class Head:
    """One task. `mean` and `std` are of the training windows' targets; `share`, of a classification, how
    common each class is among them; `weight`: all training windows over those with this label, so that a task
    counts the same however few windows carry it.
    """

    task: Task
    classes: tuple[str, ...] = ()
    mean: float = 0.0
    std: float = 1.0
    share: tuple[float, ...] = ()
    weight: float = 1.0

    @property
    def name(self) -> str:
        return self.task.name

    @property
    def columns(self) -> int:
        """Of the network's output: 1 for a number or a yes/no, else one a class."""
        return len(self.classes) if len(self.classes) > 2 else 1

    def table(self) -> dict[str, Any]:
        """For JSON."""
        plain = {"classes": list(self.classes), "mean": self.mean, "std": self.std, "share": list(self.share)}
        return {"task": self.task.model_dump(mode="json"), "weight": self.weight} | plain


def head_of(table: Mapping[str, Any], where: str) -> Head:
    """The head that `Head.table` described."""
    task = validate(Task, table["task"], f"{where}, task")
    names, share = tuple(table["classes"]), tuple(table["share"])
    return Head(task, names, table["mean"], table["std"], share, table["weight"])


def placed(tasks: Sequence[Task], window_s: float | None, hop_s: float | None) -> list[Task]:
    """The tasks over windows of one length and placement: `window_s` where given, else their common one.

    PlethoraError: a task is of a kind that no head learns, is named twice, or has other windows.
    """
    names = [t.name for t in tasks]
    if not names or len(set(names)) < len(names):
        raise PlethoraError(f"method.tasks = {names}: name at least one task, and each once")
    for task in tasks:
        if task.kind not in LEARNT:
            raise PlethoraError(
                f"task {task.name} is of kind {task.kind}, which no head is trained on "
                f"({', '.join(LEARNT)} are): evaluate it with `python -m finetune evaluate`"
            )
    found = []
    for task in tasks:
        change: dict[str, Any] = {"short_s": None}
        if window_s is not None and window_s != task.window_s:
            change["window_s"] = window_s
            if task.hop_s is not None:  # as finetune.evaluation.adapt does: the same overlap
                change["hop_s"] = window_s * task.hop_s / task.window_s
            if task.until_s is not None and task.until_s < window_s:
                raise PlethoraError(
                    f"task {task.name} has windows that end at {task.until_s:g} s of a record: "
                    f"{window_s:g} s do not fit before it"
                )
        if hop_s is not None and task.until_s is None:
            change["hop_s"] = hop_s
        found.append(task.model_copy(update=change))
    places = {(t.window_s, t.hop_s, t.until_s): t.name for t in found}
    if len(places) > 1:
        each = "; ".join(f"{n}: {w:g} s every {h or 0:g} s" for (w, h, _), n in places.items())
        raise PlethoraError(
            f"method.tasks want different windows ({each}): set method.window_s and method.hop_s, or train "
            "each task in a separate run"
        )
    return found


@dataclass
class Labels:
    """Targets of one corpus's windows. `values`: (n, tasks) float64, NaN where there is none; `why`:
    {task: {reason: windows}} of those without one; `tasks`: as fitted to this corpus, and `adapted` says what
    changed; `readings`: of a task about readings the name of each window's, (n,), "" where it has no target.
    """

    values: np.ndarray
    why: dict[str, dict[str, int]] = field(default_factory=dict)
    classes: dict[str, list[str]] = field(default_factory=dict)
    tasks: dict[str, Task] = field(default_factory=dict)
    adapted: list[str] = field(default_factory=list)
    readings: dict[str, np.ndarray] = field(default_factory=dict)


def read_labels(corpus: Corpus, table: pa.Table, tasks: Sequence[Task]) -> Labels:
    """The targets of an index's windows that have a good signal, a column a task.

    A task whose label the corpus has nowhere is NaN everywhere, and that is its reason.
    """
    ok = np.flatnonzero(pa.compute.equal(table["verdict"], "ok").to_numpy(zero_copy_only=False))
    record = np.asarray(table["record"].to_pylist(), object)[ok].tolist()
    start = table["start_s"].to_numpy()[ok].tolist()
    found = Labels(np.full((table.num_rows, len(tasks)), np.nan))
    for number, asked in enumerate(tasks):
        task, lines = adapted(asked, corpus, asked.window_s)
        found.tasks[task.name] = task
        found.adapted += [f"{task.name}: {line}" for line in lines]
        labels = corpus.labels([task.label, *(w.label for w in task.where)])
        if task.label not in set(labels["name"].to_pylist()):
            found.why[task.name] = {f"no label {task.label} in the corpus": len(ok)}
            continue
        values, refusal = window_targets(labels, record, start, task)
        found.values[ok, number] = values
        reasons, counts = np.unique(refusal[refusal != ""].astype(str), return_counts=True)
        found.why[task.name] = dict(zip(reasons.tolist(), counts.tolist(), strict=True))
        if task.level == "reading":
            known = ok[np.isfinite(values)]
            part = table.select(["record", "subject", "start_s"]).take(pa.array(known))
            who = np.asarray(part["subject"].to_pylist(), object)
            name = np.asarray(part["record"].to_pylist(), object)
            at_s, y = part["start_s"].to_numpy(), found.values[known, number]
            each = np.full(table.num_rows, "", object)
            each[known] = reading_names(labels, name, who, at_s, y, task, corpus.manifest)
            found.readings[task.name] = each.astype(str)
        if names := classes(labels, task):
            found.classes[task.name] = names
    return found


def with_statistics(
    tasks: Sequence[Task], names: Mapping[str, Sequence[str]], y_nk: np.ndarray
) -> list[Head]:
    """The heads of tasks whose training windows have the targets `y_nk`.

    PlethoraError: a task without a label there, or one class only.
    """
    heads = []
    for task, y in zip(tasks, np.asarray(y_nk, np.float64).T, strict=True):
        y = y[np.isfinite(y)]
        if not len(y):
            raise PlethoraError(
                f"no window to train on has label {task.label!r}, which task {task.name} needs: use a corpus "
                "that has it, or take the task out of method.tasks"
            )
        head = Head(task, tuple(names.get(task.name, ())), weight=len(y_nk) / len(y))
        if head.classes:
            share = np.bincount(y.astype(int), minlength=len(head.classes)) / len(y)
            if (share > 0).sum() < 2:
                raise PlethoraError(
                    f"all {len(y)} windows to train task {task.name} on are {head.classes[int(y[0])]!r}: "
                    "use a corpus with both, or another split.seed"
                )
            heads.append(replace(head, share=tuple(share.tolist())))
        else:
            heads.append(replace(head, mean=float(y.mean()), std=float(y.std()) or 1.0))
    return heads


def task_losses(y_bo: Tensor, target_bk: Tensor, heads: Sequence[Head], beta: float, scaled: bool) -> Tensor:
    """(tasks,): each task's loss, the mean over windows; one without the label counts nothing, the others by
    `Head.weight`, so that batches, halves and workers add up to the same.

    y_bo: predictions in the task's unit, logits of classes; target_bk: NaN where unknown. Smooth L1 with its
    knee at `beta` units (scaled: in standard deviations of the training targets); cross-entropy of classes.
    """
    found = []
    parts = y_bo.split([h.columns for h in heads], dim=1)
    for head, y, target in zip(heads, parts, target_bk.T, strict=True):
        known = torch.isfinite(target)
        t = torch.where(known, target, torch.zeros_like(target))
        if not head.classes:
            loss = F.smooth_l1_loss(y[:, 0], t, reduction="none", beta=beta) / (head.std if scaled else 1.0)
        elif head.columns == 1:
            loss = F.binary_cross_entropy_with_logits(y[:, 0], t, reduction="none")
        else:
            loss = F.cross_entropy(y, t.long(), reduction="none")
        found.append(torch.where(known, loss, torch.zeros_like(loss)).mean() * head.weight)
    return torch.stack(found)


def predicted(y_bo: Tensor, heads: Sequence[Head]) -> list[Tensor]:
    """The network's predictions, a task each: (B,) numbers in the task's unit; (B, classes) probabilities, of
    two classes (B, 1), the second's.
    """
    parts = y_bo.split([h.columns for h in heads], dim=1)
    return [
        y[:, 0] if not h.classes else y.sigmoid() if h.columns == 1 else y.softmax(dim=1)
        for h, y in zip(heads, parts, strict=True)
    ]


def errors(y_bo: Tensor, target_bk: Tensor, heads: Sequence[Head]) -> Tensor:
    """(2, tasks) float64: the sum over labelled windows of absolute errors (of classes: of wrong ones), and
    how many those windows are.
    """
    found = []
    for head, p, target in zip(heads, predicted(y_bo, heads), target_bk.T, strict=True):
        known = torch.isfinite(target)
        if not head.classes:
            wrong = (p - target).abs()
        else:
            chosen = (p[:, 0] > 0.5).long() if head.columns == 1 else p.argmax(dim=1)
            wrong = (chosen != torch.nan_to_num(target).long()).to(p.dtype)
        wrong = torch.where(known, wrong, torch.zeros_like(wrong)).double().sum()
        found.append(torch.stack([wrong, known.double().sum()]))
    return torch.stack(found, dim=1)
