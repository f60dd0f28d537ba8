"""Results → text that can be trusted and read: the terminal table, report.md, sentences of verdict."""

# ruff: noqa: RUF001  (minus signs, dashes and Greek letters are meant)

from typing import Any

SPOKEN = {
    "untrained": "the same encoder untrained",
    "handcrafted": "handcrafted features",
    "demographics": "demographics alone",
    "mean": "predicting the mean",
}
NAMES = {"mae": "MAE", "rmse": "RMSE", "r2": "R²", "pearson": "Pearson"}


def number(value: float | None) -> str:
    """Three significant digits at most; a dash for what does not exist."""
    if value is None or value != value:
        return "–"
    return f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}"


def with_interval(found: dict[str, float] | None) -> str:
    """``2.31 [1.90, 2.75]``."""
    if not found or found["value"] is None or found["value"] != found["value"]:
        return "–"
    return f"{number(found['value'])} [{number(found['low'])}, {number(found['high'])}]"


def signed(found: dict[str, float]) -> str:
    value, low, high = (f"{found[k]:+.2f}" for k in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def p_text(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def verdicts(results: dict[str, Any]) -> list[str]:
    """One sentence a baseline. A claim is made only where the whole interval of the difference is on one
    side.
    """
    rows, unit = {row["name"]: row for row in results["rows"]}, results["task"]["unit"]
    own = rows["encoder"]["metrics"]["mae"]
    said = []
    for name, row in rows.items():
        if name == "encoder":
            continue
        label = SPOKEN[name]
        if name not in results["differences"]:
            said.append(f"Not compared with {label}: {row['note']}.")
            continue
        difference = results["differences"][name]
        figures = (
            f"MAE {number(own['value'])} against {number(row['metrics']['mae']['value'])} {unit}, "
            f"difference {signed(difference)}, {p_text(difference['p'])}"
        )
        if difference["high"] < 0:
            said.append(f"The encoder beats {label} ({figures}).")
        elif difference["low"] > 0:
            said.append(f"The encoder does not beat {label}: it is worse ({figures}).")
        else:
            said.append(f"The encoder does not beat {label}: they cannot be told apart ({figures}).")
    return said


def facts(results: dict[str, Any]) -> list[str]:
    """How the figures were made: counts, refusals, folds, overlap; one line each."""
    task, counts, protocol, overlap = (results[k] for k in ("task", "counts", "protocol", "overlap"))
    lines = [
        f"{counts['subjects']} subjects, {counts['records']} records, {counts['windows']} windows of "
        f"{task['window_s']:g} s, from {results['corpus']['source']} ({results['corpus']['uri']})"
    ]
    refused = ", ".join(f"{reason} {count}" for reason, count in results["refused"].items())
    lines.append(f"Windows refused: {refused or 'none'}")
    folds = f"{protocol['folds']} folds, no subject on both sides; ridge α by inner subject-disjoint folds"
    if protocol["folds"] < protocol["folds_asked"]:
        folds += (
            f" ({protocol['folds_asked']} folds were asked for: there are only {counts['subjects']} subjects)"
        )
    lines.append(folds)
    lines.append(f"Intervals: 95 %, {protocol['draws']:,} bootstrap draws of whole subjects")
    if task["pieces"] > 1:
        lines.append(
            f"Each window is cut into {task['pieces']} that fit the encoder; their vectors are averaged"
        )
    return [*lines, *_overlap_lines(overlap)]


def _overlap_lines(overlap: dict[str, Any]) -> list[str]:
    left, shared = overlap["left_out"], overlap["shared_subjects"]
    if overlap["policy"] == "all" and (shared or overlap["kind"] != "none"):
        lines = [
            f"WARNING: subjects that pretraining saw are NOT left out ({shared} known): figures may flatter"
        ]
    elif left["subjects"]:
        lines = [f"Left out, seen by pretraining: {left['subjects']} subjects, {left['windows']} windows"]
    else:
        lines = []
    if overlap["kind"] == "unknown":
        lines.append(f"Overlap with pretraining: UNKNOWN ({'; '.join(overlap['why'])})")
    elif overlap["kind"] == "none":
        lines.append(f"Overlap with pretraining: none ({'; '.join(overlap['why'])})")
    return lines


def _cells(results: dict[str, Any]) -> tuple[list[str], list[list[str]], list[str]]:
    """Header, rows and notes of the main table."""
    task = results["task"]
    header = ["", f"MAE, {task['unit']}"]
    rest = [m for m in task["metrics"] if m != "mae"]
    header += [NAMES[m] + (f", {task['unit']}" if m == "rmse" else "") for m in rest]
    header += ["encoder − row, MAE", "p"]
    body, notes = [], []
    for row in results["rows"]:
        found, difference = row["metrics"], results["differences"].get(row["name"])
        line = [row["label"], with_interval(found.get("mae"))]
        for m in rest:
            shown = found.get(m) or {}
            line.append(with_interval(shown) if m == "rmse" else number(shown.get("value")))
        line += (
            [signed(difference), p_text(difference["p"]).removeprefix("p ").removeprefix("= ")]
            if difference
            else ["", ""]
        )
        body.append(line)
        if row["note"]:
            notes.append(f"{row['label']}: {row['note']}")
    return header, body, notes


def terminal(results: dict[str, Any]) -> str:
    """The table as aligned text, then how it was made, then the verdict."""
    header, body, notes = _cells(results)
    widths = [max(len(line[i]) for line in [header, *body]) for i in range(len(header))]

    def row(cells: list[str]) -> str:
        return "  ".join(
            c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))
        ).rstrip()

    rule = "─" * (sum(widths) + 2 * (len(widths) - 1))
    title = f"{results['task']['title']}: {results['bundle']['uri']} (mode {results['bundle']['mode']})"
    lines = [title, rule, row(header), rule, *map(row, body), rule]
    return "\n".join([*lines, *notes, *facts(results), "", *results["verdict"]])


def markdown(results: dict[str, Any]) -> str:
    """report.md: the same table, the same sentences, and the pictures beside it."""
    header, body, notes = _cells(results)
    bundle = results["bundle"]
    table = [header, ["---"] + ["---:"] * (len(header) - 1), *body]
    rows = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in table]
    parts = [
        f"# {results['task']['title']}",
        f"Bundle `{bundle['uri']}`, mode `{bundle['mode']}`, vectors of {bundle['dim']}.",
        "\n".join(rows),
        "\n".join(f"- {note}" for note in notes),
        "## Verdict",
        "\n".join(f"- {sentence}" for sentence in results["verdict"]),
        "## How it was done",
        "\n".join(f"- {line}" for line in facts(results)),
        _rows_explained(results),
        "## Pictures",
        "![Predicted against true](plots/predicted.png)",
        "![Bland–Altman](plots/bland_altman.png)",
        "![Error of each subject](plots/subjects.png)",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _rows_explained(results: dict[str, Any]) -> str:
    protocol = results["protocol"]
    return "\n".join(
        [
            "- Every row but the last is StandardScaler → Ridge on frozen vectors, with the same folds; "
            "predictions are out of fold.",
            "- *Untrained*: the network of config.json with the weights that its training began with.",
            f"- *Handcrafted*: {len(protocol['handcrafted'])} features of rate, beat timing, morphology, "
            "spectrum and breathing (finetune/features.py); inner folds choose among the rate features, "
            "rate and timing, and all.",
            f"- *Demographics*: {', '.join(protocol['demographics']) or 'none in this corpus'}.",
            "- Differences are paired: the same drawn subjects for both rows; p is the bootstrap's, "
            "two-sided.",
            "- `results.json` has every figure, `predictions.parquet` every prediction.",
        ]
    )
