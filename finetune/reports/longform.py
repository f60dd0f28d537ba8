"""Every figure of a comparison for machines: tables.csv, a figure a line, and metrics.json, nested."""

import csv
from collections.abc import Iterator
from io import StringIO
from typing import Any

from finetune.reports.report import main_of

COLUMNS = (
    "task", "table", "row", "against", "group", "metric", "unit", "subjects", "windows", "value", "low",
    "high", "p", "warnings",
)  # fmt: skip
IN_UNIT = ("mae", "rmse", "me", "sd")  # metrics that have the target's unit
PARTS = (
    "level", "warnings", "verdict", "per_subject_mae", "few_shot", "subgroups", "delong", "per_label",
    "above", "published_protocol", "blood_pressure",
)  # fmt: skip


def as_csv(results: dict[str, Any]) -> str:
    """tables.csv: long form, COLUMNS, UTF-8; every line carries the warnings of its task."""
    out = StringIO()
    writer = csv.DictWriter(out, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for table in results["tasks"]:
        task, said = table["task"], "; ".join(table.get("warnings") or [])
        for line in _lines(table):
            unit = task.get("unit", "") if line["metric"] in IN_UNIT else ""
            writer.writerow({"task": task["name"], "unit": unit, "warnings": said} | _known(line))
    return out.getvalue()


def _known(line: dict[str, Any]) -> dict[str, Any]:
    """Without figures that do not exist: the cell stays empty."""
    return {k: v for k, v in line.items() if v is not None and v == v}


def _lines(table: dict[str, Any]) -> Iterator[dict[str, Any]]:
    counts, main = table["counts"], main_of(table["task"])[0]
    size = {"subjects": counts["subjects"], "windows": counts["windows"]}
    for row in table["rows"]:
        for metric, found in row["metrics"].items():
            yield {"table": "main", "row": row["name"], "metric": metric} | size | _figures(found)
    for encoder, others in table["differences"].items():
        for other, found in others.items():
            pair = {"row": encoder, "against": other}
            yield {"table": "difference", "metric": main} | pair | size | _figures(found)
    for point in table.get("few_shot") or []:
        for row, found in point["rows"].items():
            yield {
                "table": "few_shot", "row": row, "group": f"{point['share']:g}", "metric": main,
                "subjects": point["subjects"],
            } | _figures(found)  # fmt: skip
    yield from _subgroups(table, main)
    for row, found in (table.get("delong") or {}).items():
        yield {"table": "delong", "row": row, "metric": "auroc"} | size | _figures(found)
    for row, entries in (table.get("per_label") or {}).items():
        for entry in entries:
            found = _figures(entry["auroc"])
            yield {"table": "label", "row": row, "group": entry["label"], "metric": "auroc"} | found
    for row, limits in (table.get("above") or {}).items():
        for limit, count in limits.items():
            yield {"table": "labels above", "row": row, "group": limit, "metric": "auroc", "value": count}
    published = table.get("published_protocol") or {"rows": {}}
    for row, metrics in published["rows"].items():
        for metric, found in metrics.items():
            yield {
                "table": "published protocol (leaks)", "row": row, "metric": metric,
                "windows": published["windows"],
            } | _figures(found)  # fmt: skip
    yield from _pressures(table)


def _figures(found: Any) -> dict[str, Any]:
    return {k: found[k] for k in ("value", "low", "high", "p") if k in found}


def _subgroups(table: dict[str, Any], main: str) -> Iterator[dict[str, Any]]:
    for column in table.get("subgroups") or []:
        for group in column["groups"]:
            for row, given in group["metrics"].items():
                for metric, found in (given if "value" not in given else {main: given}).items():
                    yield {
                        "table": "subgroup", "row": row, "group": f"{column['column']}: {group['name']}",
                        "metric": metric, "subjects": group["subjects"], "windows": group["windows"],
                    } | _figures(found)  # fmt: skip
        for row, found in (column.get("gap") or {}).items():
            gap = {"table": "subgroup gap", "row": row, "group": column["column"], "metric": main}
            yield gap | _figures(found)


def _pressures(table: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for row, card in (table.get("blood_pressure") or {}).items():
        parts = {"no calibration": card["free"]}
        if not card["calibrated"]["why_not"]:
            parts["calibrated"] = card["calibrated"]["calibrated"]
            parts["same values, not calibrated"] = card["calibrated"]["same_uncalibrated"]
        parts |= {f"stage: {stage['name']}": stage for stage in card["stages"]}
        for group, found in parts.items():
            size = {"subjects": found["subjects"], "windows": found["values"]}
            values = {
                m: found[m]
                for m in ("mae", "me", "sd", "sd_subjects", "slope", "aami", "aami_2", "bhs", "ieee")
            }
            values |= {f"% within {limit} mmHg": share for limit, share in found["within"].items()}
            for metric, value in values.items():
                of = {"table": "blood pressure", "row": row, "group": group, "metric": metric}
                yield of | size | {"value": value}


def as_json(results: dict[str, Any]) -> dict[str, Any]:
    """metrics.json: {tasks: {task: {rows: {row: {metric: {value, low, high}}}, differences, …}}}, by name."""
    tasks = {}
    for table in results["tasks"]:
        task = table["task"]
        tasks[task["name"]] = {
            "title": task["title"], "kind": task["kind"], "unit": task.get("unit", ""),
            "main": main_of(task)[0],
            "counts": table["counts"], "overlap": table["overlap"]["kind"],
            "rows": {row["name"]: row["metrics"] for row in table["rows"] if row["metrics"]},
            "missing": {row["name"]: row["note"] for row in table["rows"] if not row["metrics"]},
            "differences": table["differences"],
        } | {part: table[part] for part in PARTS if table.get(part)}  # fmt: skip
    return {
        "version": 1, "corpus": results["corpus"], "encoders": results["encoders"], "tasks": tasks,
    }  # fmt: skip
