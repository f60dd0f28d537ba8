"""What compression costs, as text: one table, one sentence a task and row, how it was done."""

# ruff: noqa: RUF001  (minus signs and dashes are meant)

import tempfile
from pathlib import Path
from typing import Any

from cluster import storage
from finetune.reports.report import NAMES, aligned, main_of, side, signed, table_md, with_interval

LABELS = {"original": "Original", "int8": "int8", "student": "Student"}


def write(results: dict[str, Any], out: str) -> None:
    """Print the table; compress.md and results.json into the folder `out`."""
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        (here / "compress.md").write_text(markdown(results), encoding="utf-8")
        (here / "results.json").write_bytes(storage.json_bytes(results))
        print(terminal(results), flush=True)
        storage.upload(here, out)
    print(f"\nbundles, table and results: {out}")


def _cells(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    header = ["", "ONNX, kB", "× original", "ms, one core", "× original", "cosine (p5)", "variance kept"]
    for table in results["tasks"]:
        header += [f"{table['task']['name']}, {NAMES[table['task']['main']]}", "− original"]
    first, body = results["rows"][0], []
    for row in results["rows"]:
        own = row["name"] == "original"
        line = [
            LABELS[row["name"]], f"{row['bytes'] / 1e3:,.0f}", f"{row['bytes'] / first['bytes']:.2f}",
            f"{row['ms']:.2f}", f"{row['ms_ratio']:.2f}",
            "" if own else f"{row['cosine']:.4f} ({row['cosine_p5']:.4f})",
            "" if own else f"{row['kept']:.1%}",
        ]  # fmt: skip
        for table in results["tasks"]:
            line += [with_interval(table["rows"][row["name"]])]
            line += ["" if own else signed(table["differences"][row["name"]])]
        body.append(line)
    return header, body


def sentences(results: dict[str, Any]) -> list[str]:
    """Of each task and smaller row: worse, better, or level, and what loss is still possible."""
    said = []
    for table in results["tasks"]:
        task = table["task"]
        _, title, lower = main_of(task)
        for row, difference in table["differences"].items():
            words = {
                "worse": "loses", "better": "gains", "level": "cannot be told apart from the original",
            }[side(difference, lower)]  # fmt: skip
            at_most = difference["high"] if lower else -difference["low"]
            limit = f"; the interval allows a loss of {max(at_most, 0):.2f}"
            said.append(f"{task['name']}: {LABELS[row]} {words}, {title} {signed(difference)}{limit}.")
    return said


def facts(results: dict[str, Any]) -> list[str]:
    """How the figures were made, one line each; warnings first."""
    held, made = results["held_out"], results["quantised"]
    tried = made["tried"]
    other = next(how for how in tried if how != made["how"])
    lines = [f"WARNING: {line}" for table in results["tasks"] for line in table["warnings"]]
    lines += [
        f"Latency: one window of {results['window_s']:g} s at a time, one thread, medians over rows in turn; "
        "the ratio is the figure to trust, milliseconds are this machine's",
        f"Vectors compared on {held['windows']} windows of {held['subjects']} subjects that no row saw "
        f"(overlap of pretraining with the corpus: {results['overlap']['kind']}); variance kept counts each "
        "number of the vector alike, cosines flatter where vectors have much in common",
        f"int8 is {made['how']}: kept {tried[made['how']]['kept']:.1%} of the variance on validation "
        f"subjects ({other}: {tried[other]['kept']:.1%}), calibrated on {made['windows']['train']} windows; "
        "static: weights int8, their inputs uint8; weights: their inputs stay float32",
    ]
    for table in results["tasks"]:
        counts = table["counts"]
        lines.append(
            f"{table['task']['name']}: {counts['subjects']} subjects, {counts['windows']} windows, probes "
            "fitted for each row anew; all baselines in compare/"
        )
    return lines


def terminal(results: dict[str, Any]) -> str:
    header, body = _cells(results)
    title = f"Compression of {results['bundle']} (mode {results['mode']})"
    return "\n".join([title, *aligned(header, body), *facts(results), "", *sentences(results)])


def markdown(results: dict[str, Any]) -> str:
    header, body = _cells(results)
    bundles = [f"- {LABELS[row['name']]}: `{row['uri']}`" for row in results["rows"]]
    parts = [
        "# Compression",
        f"Mode `{results['mode']}` of `{results['bundle']}`, vectors of {results['dim']}, on "
        f"{results['corpus']['source']} (`{results['corpus']['uri']}`). Differences: row − original; 95 % "
        "intervals over drawn subjects.",
        table_md(header, body),
        "\n".join(f"- {line}" for line in sentences(results)),
        "## How it was done",
        "\n".join(f"- {line}" for line in facts(results)),
        "## Bundles",
        "\n".join(bundles),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"
