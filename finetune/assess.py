"""An adapter's figures on people it never saw, beside predict-the-mean; the files that `compare` reads."""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cluster import bundle as bundles
from cluster import storage
from finetune import metrics
from finetune.adapter import Adapter, Held, held_out
from finetune.evaluation import classes
from finetune.evaluation.readings import units
from finetune.targets import Head


def judge(adapter: Adapter, held: Held, seed: int = 0) -> tuple[dict[str, Any], pa.Table]:
    """(results, predictions): figures with 95 % intervals over drawn subjects, beside the mean (or
    prevalence) of the training windows, and their paired differences; every prediction, labelled or not.
    """
    said = adapter.predict(held.index, held.rows)
    columns: dict[str, Any] = {"subject": held.subject, "record": held.record, "start_s": held.start_s}
    tables = []
    for number, (head, predicted) in enumerate(zip(adapter.heads, said, strict=True)):
        if predicted.ndim == 2 and predicted.shape[1] > 1:
            columns |= {f"{head.name}: {c}": predicted[:, k] for k, c in enumerate(head.classes)}
        else:
            columns[head.name] = predicted.ravel()
        target = held.labels.values[held.rows, number]
        task = held.labels.tasks[head.name]
        good = np.isfinite(target)
        refused = Counter(held.labels.why[head.name])
        entry: dict[str, Any] = {
            "task": task.model_dump(mode="json") | {"classes": list(head.classes), "main": task.main},
            "refused": dict(refused),
        }
        if not good.any():
            tables.append(entry | {"counts": {"windows": 0}, "rows": [], "note": "no window has this label"})
            continue
        reading = held.labels.readings.get(head.name)
        reading = None if reading is None else reading[held.rows][good]
        places = held.subject[good], held.record[good], reading
        y, p, who = _pooled(task.level, target[good], predicted[good], *places)
        counts = {"subjects": len(set(held.subject[good])), "windows": int(good.sum()), "rows": len(y)}
        tables.append(entry | {"level": task.level, "counts": counts} | _figures(head, y, p, who, seed))
    return {"tasks": tables}, pa.table(columns)


def _pooled(
    level: str,
    y: np.ndarray,
    p: np.ndarray,
    subject: np.ndarray,
    record: np.ndarray,
    reading: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Target, prediction and subject of each row (see `readings.units`); predictions are averaged."""
    if level == "window":
        return y, p, subject
    first, group = units(level, y, subject, record, reading)
    count = np.bincount(group).astype(float)
    flat = p.reshape(len(p), -1)
    mean = np.stack([np.bincount(group, column) / count for column in flat.T], axis=1)
    return y[first], mean.reshape(len(first), *p.shape[1:]), subject[first]


def _figures(head: Head, y: np.ndarray, p: np.ndarray, who: np.ndarray, seed: int) -> dict[str, Any]:
    """Rows "model" and "mean", and model minus mean of the main metric."""
    weights = metrics.draw_weights(len(np.unique(who)), seed=seed)
    if head.classes:
        share = np.broadcast_to(
            np.array(head.share)[1:] if head.columns == 1 else np.array(head.share), p.shape
        )
        hot = classes.one_hot(y, len(head.classes))
        drawn = {
            name: classes.drawn(hot, classes.evidence(x, share), who, weights)
            for name, x in (("model", p), ("mean", share))
        }
    else:
        drawn = {
            name: metrics.drawn(metrics.subject_sums(y, x, who), weights)
            for name, x in (("model", p), ("mean", np.full_like(y, head.mean)))
        }
    rows = [
        {"name": name, "metrics": {m: asdict(metrics.interval(v)) for m, v in found.items()}}
        for name, found in drawn.items()
    ]
    main = head.task.main
    return {"rows": rows, "difference": asdict(metrics.difference(drawn["model"][main], drawn["mean"][main]))}


def write(results: dict[str, Any], predictions: pa.Table, held: Held, report: str, folder: Path) -> None:
    """results.json, predictions.parquet, split.json (whom the run trained and validated on, whom it never
    saw) and report.md; `finetune compare --split --predictions` reads the second and third.
    """
    import pyarrow.parquet as pq

    pq.write_table(predictions, folder / "predictions.parquet", compression="zstd")
    (folder / "split.json").write_bytes(storage.json_bytes(held.sides))
    (folder / "results.json").write_bytes(storage.json_bytes(results))
    (folder / "report.md").write_text(report, encoding="utf-8")


def assess(
    adapter: Adapter, uri: str, cache: str, out: str | None, publish: bool = True, seed: int = 0
) -> dict[str, Any]:
    """Judge the adapter on a corpus, print the table, write it to `out` and beside the bundle."""
    held = held_out(adapter, uri, cache)
    results, predictions = judge(adapter, held, seed)
    results |= {
        "bundle": {"uri": adapter.bundle.uri, "base": adapter.bundle.config["base"]},
        "corpus": {"uri": held.corpus.uri, "hash": held.corpus.hash},
        "notes": held.notes,
    }
    text = report(results)
    print(text, flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(results, predictions, held, text, folder)
        if out is not None:
            storage.upload(folder, out)
            results["out"] = storage.normalise(out)
            print(f"predictions, split and figures: {results['out']}")
        if publish:
            results["published"] = bundles.write_evaluation(adapter.bundle.uri, folder)
            print(f"beside the bundle: {results['published']}")
    return results


def report(results: dict[str, Any]) -> str:
    """The figures as Markdown."""
    base = results["bundle"]["base"]
    lines = [
        f"# {results['bundle']['uri']} on {results['corpus']['uri']}",
        "",
        f"Base {base['name']}; weights {base['source']}. Subjects that neither the run nor its base trained "
        "on; 95 % intervals over drawn subjects.",
        *(f"- {note}" for note in results["notes"]),
    ]
    for table in results["tasks"]:
        task, counts = table["task"], table["counts"]
        left_out = ", ".join(f"{reason} {count}" for reason, count in table["refused"].items())
        lines += ["", f"## {task['title']}", ""]
        if not table["rows"]:
            lines.append(f"{table['note']}: {left_out}")
            continue
        unit = f" {task['unit']}" if task["unit"] else ""
        shown = [m for m in task["metrics"] if m in table["rows"][0]["metrics"]]
        lines += [
            f"{counts['subjects']} subjects, {counts['windows']} windows, a row a {table['level']}"
            + (f"; windows left out: {left_out}" if left_out else ""),
            "",
            "| | " + " | ".join(shown) + " |",
            "|---" * (len(shown) + 1) + "|",
        ]
        names = {"model": "this model", "mean": "prevalence" if task["classes"] else "predict the mean"}
        for row in table["rows"]:
            cells = [_cell(row["metrics"][m], unit if m in ("mae", "rmse") else "") for m in shown]
            lines.append(f"| {names[row['name']]} | " + " | ".join(cells) + " |")
        lines.append(f"\n{task['main']}, model minus mean: {_cell(table['difference'], unit)}")
    return "\n".join(lines) + "\n"


def _cell(found: dict[str, float], unit: str) -> str:
    value, low, high = (found[k] for k in ("value", "low", "high"))
    if value != value:
        return "-"
    return f"{value:.2f}{unit} ({low:.2f} to {high:.2f})"
