"""The sheet of an adapter: a section for each corpus, and the files that `compare` reads."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from finetune.evaluation.assess import AdapterInfo, Assessed, Assessment, BaseInfo, TaskFigures
from finetune.evaluation.results import CorpusInfo, Counts, Row
from finetune.metrics import Difference, Interval
from finetune.reports import vision_report
from finetune.reports.sheet import markdown, terminal, write
from finetune.task import load_task


def assessed(corpus: str, low: float = -4.0, high: float = -2.0, labelled: bool = True) -> Assessed:
    """Figures of heart rate; the difference to the mean is −3 in [low, high]."""
    task, reason = load_task("heart_rate"), {"no label": 2}
    figures = TaskFigures(task, (), reason, Counts(0), note="no window has this label")
    if labelled:
        rows = (
            Row("model", "This model", {"mae": Interval(5.0, 4.0, 6.0)}),
            Row("mean", "Predict the mean", {"mae": Interval(8.0, 7.0, 9.0)}),
        )
        apart = Difference(-3.0, low, high, 0.01)
        figures = TaskFigures(task, (), reason, Counts(7, subjects=3, rows=7), rows, apart, "window")
    bundle = AdapterInfo("/runs/a/bundle", BaseInfo("vit", "hub: x@1", "abc"))
    result = Assessment(bundle, CorpusInfo(corpus, "h"), ("2 test subjects left out",), (figures,))
    return Assessed(result, pa.table({"subject": ["s"], "heart_rate": [60.0]}), {"test": ["s"]})


def test_a_table_has_every_figure_and_the_sentence_claims_what_its_interval_shows() -> None:
    sheet = vision_report.sheet([assessed("/c")], None)
    for text in (terminal(sheet), markdown(sheet)):
        assert "5.00 [4.00, 6.00]" in text and "8.00 [7.00, 9.00]" in text and "MAE, bpm" in text
        assert "3 subjects, 7 windows, a row a window; windows left out: no label 2" in text
        assert "Heart rate: this model beats predicting the mean (MAE" in text and "p = 0.010" in text
        assert "2 test subjects left out" in text and "Base vit; weights hub: x@1" in text
    level = vision_report.sheet([assessed("/c", high=1.0)], None)
    assert "cannot be told apart from predicting the mean" in terminal(level)


def test_a_task_without_labels_is_a_line_with_its_reasons() -> None:
    text = terminal(vision_report.sheet([assessed("/c", labelled=False)], None))
    assert "Heart rate: no window has this label (no label 2)" in text and "this model" not in text


def written(corpora: list[str], folder: Path) -> dict[str, Any]:
    sheet = vision_report.sheet([assessed(uri) for uri in corpora], str(folder / "out"), {"steps": 3})
    return write(replace(sheet, bundle=str(folder / "run" / "bundle")))


def test_of_one_corpus_the_files_lie_in_the_folder_and_the_json_line_has_the_run(tmp_path: Path) -> None:
    line = written(["/c"], tmp_path)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert line["steps"] == 3 and line["held_out"][0]["tasks"] == results["tasks"]
    assert results["corpus"] == {"uri": "/c", "hash": "h"} and Path(line["published"]).is_dir()
    table = pq.read_table(tmp_path / "out" / "predictions.parquet")
    assert table.column_names == ["subject", "heart_rate"]
    assert json.loads((tmp_path / "out" / "split.json").read_text()) == {"test": ["s"]}


def test_of_several_corpora_each_has_a_section_and_a_folder(tmp_path: Path) -> None:
    written(["/c", "/d"], tmp_path)
    out = tmp_path / "out"
    for number, uri in enumerate(("/c", "/d")):
        files = {path.name for path in (out / str(number)).iterdir()}
        assert files == {"predictions.parquet", "results.json", "split.json"}
        assert json.loads((out / str(number) / "results.json").read_text())["corpus"]["uri"] == uri
        assert f"## /runs/a/bundle on {uri}" in (out / "report.md").read_text()
    found = json.loads((out / "results.json").read_text())["corpora"]
    assert [each["corpus"]["uri"] for each in found] == ["/c", "/d"]
