"""bundle + corpus + task → one table: the encoder beside four baselines, on subjects it never saw."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cluster import bundle as bundles
from cluster import storage
from datasets.schema import open_corpus
from finetune.encoder import BundleEncoder
from finetune.reports import bloodpressure, parts, plots, report
from finetune.study import BASELINES, Entrant, Options, Outcome, study
from finetune.task import load_task

LABELS = {
    "encoder": "This encoder",
    "untrained": "Same encoder, untrained",
    "encoder, k-NN": "This encoder, k-NN",
    "encoder + demographics": "This encoder + demographics",
    **BASELINES,
}


def evaluate(
    bundle: str,
    corpus: str,
    task: str,
    out: str | None = None,
    subjects: str = "unseen",
    folds: int = 5,
    seed: int = 0,
    mode: str | None = None,
    publish: bool = True,
    **more: Any,
) -> dict[str, Any]:
    """Evaluate a bundle; write report.md, results.json, predictions.parquet and plots; return the results.

    Written to `out` (when given) and, unless `publish` is off, beside the bundle. `more`: the other fields of
    `table.Options`.
    """
    question, encoder, source = load_task(task), BundleEncoder(bundle, mode), open_corpus(corpus)
    alone = Entrant(encoder, "encoder", LABELS["encoder"], "untrained", LABELS["untrained"])
    (outcome,) = study([alone], source, [question], Options(subjects, folds=folds, seed=seed, **more))
    bloodpressure.attach(outcome.results, outcome.windows, outcome.predicted, source)
    results: dict[str, Any] = {"bundle": about(encoder)}
    results |= outcome.results | {"differences": outcome.results["differences"]["encoder"]}
    results["verdict"] = report.verdicts(results)
    _write(results, outcome, bundle, out, publish)
    return results


def about(encoder: BundleEncoder) -> dict[str, Any]:
    return {"uri": encoder.bundle.uri, "mode": encoder.mode, "dim": encoder.dim}


def predictions(outcome: Outcome) -> pa.Table:
    """Every prediction: subject, record, start_s, fold, target, and a column a row of the table; of classes
    probabilities, a column a class where there are more than two; of several labels a column each, and of the
    target, too.
    """
    windows, names = outcome.windows, outcome.results["task"]["classes"] or outcome.windows.names
    columns: dict[str, Any] = {
        "subject": windows.subject.tolist(), "record": windows.record.tolist(), "start_s": windows.start_s,
        "fold": outcome.fold,
    }  # fmt: skip
    if windows.target.ndim == 1:
        columns["target"] = windows.target
    else:
        columns |= {f"target: {name}": windows.target[:, k] for k, name in enumerate(names)}
    if outcome.results["task"]["classes"]:
        columns["class"] = [names[int(k)] for k in windows.target]
    for row, predicted in outcome.predicted.items():
        if predicted.ndim == 1 or (predicted.shape[1] == 1 and windows.target.ndim == 1):
            columns[row] = np.ravel(predicted)
        else:
            columns |= {f"{row}: {name}": predicted[:, k] for k, name in enumerate(names)}
    return pa.table(columns)


def _write(results: dict[str, Any], outcome: Outcome, bundle: str, out: str | None, publish: bool) -> None:
    import pyarrow.parquet as pq

    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        pq.write_table(predictions(outcome), here / "predictions.parquet", compression="zstd")
        (here / "plots").mkdir()
        windows = outcome.windows
        if results["task"]["kind"] not in ("multi-label", "retrieval"):
            plots.draw_all(results, windows.target, windows.subject, outcome.predicted, here / "plots")
        beside = "\n\n".join(parts.markdown(outcome.results))
        (here / "report.md").write_text(f"{report.markdown(results)}\n{beside}\n", encoding="utf-8")
        (here / "results.json").write_bytes(storage.json_bytes(results))
        print(report.terminal(results), flush=True)
        if out is not None:
            storage.upload(here, out)
            results["out"] = storage.normalise(out)
            print(f"\nreport and pictures: {results['out']}")
        if publish:
            results["published"] = bundles.write_evaluation(bundle, here)
            print(f"beside the bundle: {results['published']}")
