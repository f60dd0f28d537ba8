"""Files of a comparison: the page, tables for people and for machines, every prediction."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from cluster import storage
from finetune.evaluate import predictions
from finetune.reports import comparison, longform, page, plots
from finetune.study import Outcome


def write(results: dict[str, Any], outcomes: Sequence[Outcome], out: str) -> None:
    """report.html, tables.csv, metrics.json, compare.md, results.json, predictions.parquet and intervals.png
    to `out`; the tables to the terminal, too.
    """
    import pyarrow.parquet as pq

    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        pq.write_table(_predictions(outcomes), here / "predictions.parquet", compression="zstd")
        plots.draw_intervals(results["tasks"], here / "intervals.png")
        (here / "report.html").write_text(page.render(results, outcomes), encoding="utf-8")
        (here / "tables.csv").write_text(longform.as_csv(results), encoding="utf-8")
        (here / "metrics.json").write_bytes(storage.json_bytes(longform.as_json(results)))
        (here / "compare.md").write_text(comparison.markdown(results), encoding="utf-8")
        (here / "results.json").write_bytes(storage.json_bytes(results))
        print(comparison.terminal(results), flush=True)
        storage.upload(here, out)
        print(f"\nreport.html, tables and predictions: {storage.normalise(out)}")


def _predictions(outcomes: Sequence[Outcome]) -> pa.Table:
    """Every prediction of every task, with the task's name before it."""
    parts = []
    for outcome in outcomes:
        table = predictions(outcome)
        parts.append(table.add_column(0, "task", [[outcome.results["task"]["name"]] * table.num_rows]))
    return pa.concat_tables(parts, promote_options="default")
