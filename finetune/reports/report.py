"""Results → text that can be trusted and read: the terminal table, report.md, sentences of verdict."""

# ruff: noqa: RUF001  (minus signs, dashes and Greek letters are meant)

from typing import Any

SPOKEN = {
    "untrained": "the same encoder untrained",
    "handcrafted": "handcrafted features",
    "demographics": "demographics alone",
    "demographics + handcrafted": "demographics with handcrafted features",
    "encoder + demographics": "itself with demographics",
    "encoder, k-NN": "its own nearest neighbours",
    "mean": "predicting the mean",
}
NAMES = {
    "mae": "MAE", "rmse": "RMSE", "r2": "R²", "pearson": "Pearson", "auroc": "AUROC", "auprc": "AUPRC",
    "balanced_accuracy": "bal. acc.", "f1": "F1", "rank1": "rank-1", "rank5": "rank-5",
}  # fmt: skip


PICTURES = [
    "![Predicted against true](plots/predicted.png)",
    "![Bland–Altman](plots/bland_altman.png)",
    "![Error of each subject](plots/subjects.png)",
]


def number(value: float | None) -> str:
    """Three significant digits at most; a dash for what does not exist."""
    if value is None or value != value:
        return "–"
    value = round(value, 2) + 0.0  # no minus before a zero
    return f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}"


def with_interval(found: dict[str, float] | None) -> str:
    """``2.31 [1.90, 2.75]``."""
    if not found or found["value"] is None or found["value"] != found["value"]:
        return "–"
    return f"{number(found['value'])} [{number(found['low'])}, {number(found['high'])}]"


def main_of(task: dict[str, Any]) -> tuple[str, str, bool]:
    """Key of the metric that differences are about, its name with its unit, whether lower is better."""
    key = task.get("main", "mae")
    return key, NAMES[key] + (f", {task['unit']}" if key == "mae" else ""), key == "mae"


def side(difference: dict[str, float], lower: bool) -> str:
    """ "better", "worse" or "level": better and worse only where the whole interval is on one side."""
    low, high = difference["low"], difference["high"]
    if (high < 0) if lower else (low > 0):
        return "better"
    return "worse" if ((low > 0) if lower else (high < 0)) else "level"


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
    main, _, lower = main_of(results["task"])
    own = rows["encoder"]["metrics"][main]
    said = []
    for name, row in rows.items():
        if name == "encoder":
            continue
        label = spoken(name, results)
        if name not in results["differences"]:
            said.append(f"Not compared with {label}: {row['note']}.")
            continue
        difference = results["differences"][name]
        figures = (
            f"{NAMES[main]} {number(own['value'])} against {number(row['metrics'][main]['value'])}"
            f"{' ' + unit if unit and lower else ''}, difference {signed(difference)}, "
            f"{p_text(difference['p'])}"
        )
        how = side(difference, lower)
        if how == "better":
            said.append(f"The encoder beats {label} ({figures}).")
        elif how == "worse":
            said.append(f"The encoder does not beat {label}: it is worse ({figures}).")
        else:
            said.append(f"The encoder does not beat {label}: they cannot be told apart ({figures}).")
    return said


def spoken(name: str, results: dict[str, Any]) -> str:
    """A row as a sentence calls it."""
    if name == "mean" and _classes(results):
        return "predicting the prevalence"
    labels = {row["name"]: row["label"] for row in results["rows"]}
    return SPOKEN.get(name, labels.get(name, name))


def _classes(results: dict[str, Any]) -> dict[str, int]:
    return results.get("counts", {}).get("classes", {})


def warnings(results: dict[str, Any]) -> list[str]:
    """What every table of this task must carry, one line each."""
    return [f"WARNING: {line}" for line in results.get("warnings") or []]


def facts(results: dict[str, Any]) -> list[str]:
    """How the figures were made: counts, refusals, folds, overlap; one line each."""
    task, counts, protocol, overlap = (results[k] for k in ("task", "counts", "protocol", "overlap"))
    lines = [
        f"{counts['subjects']} subjects, {counts['records']} records, {counts['windows']} windows of "
        f"{task['window_s']:g} s, from {results['corpus']['source']} ({results['corpus']['uri']})"
    ]
    if task.get("until_s") is not None:
        lines.append(f"One window a record, the {task['window_s']:g} s before {task['until_s']:g} s")
    if _classes(results):
        lines.append("Classes: " + ", ".join(f"{n} {name}" for name, n in _classes(results).items()))
    refused = ", ".join(f"{reason} {count}" for reason, count in results["refused"].items())
    lines.append(f"Windows refused: {refused or 'none'}")
    lines += results.get("adapted", [])
    if results.get("level", "window") != "window":
        of = "of the mean of its windows' vectors"
        if task.get("pool") == "predictions":
            of = "the mean of its windows' predictions"
        line = f"One prediction a {results['level']}, {of}: {counts.get('rows', counts['windows'])}"
        if each := counts.get("readings"):
            few, most = each["fewest"], each["most"]
            line += f"; readings of a subject: {few}" + (f" to {most}" if most > few else "")
        lines.append(line)
    lines += [
        _folds_line(results),
        f"Intervals: 95 %, {protocol['draws']:,} bootstrap draws of whole subjects",
    ]
    if task["pieces"] > 1 and "adapted" not in results:
        lines.append(
            f"Each window is cut into {task['pieces']} that fit the encoder; their vectors are averaged"
        )
    told = [line for line in _overlap_lines(overlap) if line not in warnings(results)]
    return [*lines, *told]


def _folds_line(results: dict[str, Any]) -> str:
    counts, protocol = results["counts"], results["protocol"]
    if "gallery" in counts:
        return (
            f"A gallery of {counts['gallery']} subjects; {counts['left_out']} could not be enrolled and asked"
        )
    chosen = "logistic regression's C" if _classes(results) or "labels" in counts else "ridge α"
    if protocol.get("split"):
        return f"One split, given by {protocol['split']}; {chosen} by inner subject-disjoint folds"
    folds = f"{protocol['folds']} folds, no subject on both sides; {chosen} by inner subject-disjoint folds"
    if protocol["folds"] < protocol["folds_asked"]:
        few = f"there are only {counts['subjects']} subjects"
        if _classes(results):
            few = "the rarest class has too few subjects"
        folds += f" ({protocol['folds_asked']} folds were asked for: {few})"
    return folds


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
    main, title, _ = main_of(task)
    rest = [m for m in task["metrics"] if m != main]
    header = ["", title, *(metric_name(m, task) for m in rest), f"encoder − row, {NAMES[main]}", "p"]
    body, notes = [], []
    for row in results["rows"]:
        found, difference = row["metrics"], results["differences"].get(row["name"])
        line = [row["label"], with_interval(found.get(main)), *(metric_cell(m, found) for m in rest)]
        line += [signed(difference), p_cell(difference)] if difference else ["", ""]
        body.append(line)
        if row["note"]:
            notes.append(f"{row['label']}: {row['note']}")
    return header, body, notes


def metric_name(metric: str, task: dict[str, Any]) -> str:
    return NAMES.get(metric, metric) + (f", {task['unit']}" if metric == "rmse" else "")


def metric_cell(metric: str, found: dict[str, Any]) -> str:
    """RMSE and AUPRC with their interval, others as a number: a table must stay narrow."""
    shown = found.get(metric) or {}
    return with_interval(shown) if metric in ("rmse", "auprc") else number(shown.get("value"))


def p_cell(difference: dict[str, float]) -> str:
    return p_text(difference["p"]).removeprefix("p ").removeprefix("= ")


def aligned(header: list[str], body: list[list[str]]) -> list[str]:
    """A table as lines of text, ruled."""
    widths = [max(len(line[i]) for line in [header, *body]) for i in range(len(header))]

    def row(cells: list[str]) -> str:
        return "  ".join(
            c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))
        ).rstrip()

    rule = "─" * (sum(widths) + 2 * (len(widths) - 1))
    return [rule, row(header), rule, *map(row, body), rule]


def table_md(header: list[str], body: list[list[str]]) -> str:
    """The same in Markdown."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *body]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def terminal(results: dict[str, Any]) -> str:
    """The table as aligned text, then how it was made, then the verdict."""
    header, body, notes = _cells(results)
    title = f"{results['task']['title']}: {results['bundle']['uri']} (mode {results['bundle']['mode']})"
    lines = [title, *aligned(header, body), *warnings(results), *notes, *facts(results), ""]
    return "\n".join([*lines, *results["verdict"]])


def markdown(results: dict[str, Any]) -> str:
    """report.md: the same table, the same sentences, and the pictures beside it."""
    header, body, notes = _cells(results)
    bundle = results["bundle"]
    parts = [
        f"# {results['task']['title']}",
        f"Bundle `{bundle['uri']}`, mode `{bundle['mode']}`, vectors of {bundle['dim']}.",
        table_md(header, body),
        "\n".join(f"- {note}" for note in [*warnings(results), *notes]),
        "## Verdict",
        "\n".join(f"- {sentence}" for sentence in results["verdict"]),
        "## How it was done",
        "\n".join(f"- {line}" for line in facts(results)),
        rows_explained(results),
        *_pictures(results),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _pictures(results: dict[str, Any]) -> list[str]:
    """What `plots.draw_all` draws of this kind of task."""
    if results["task"].get("kind") in ("multi-label", "retrieval"):
        return []
    return ["## Pictures", *(["![ROC curves](plots/roc.png)"] if _classes(results) else PICTURES)]


def rows_explained(results: dict[str, Any]) -> str:
    protocol, of_classes = results["protocol"], _classes(results)
    probe = "LogisticRegression" if of_classes else "Ridge"
    ranked = [
        "- Windows are ranked by the log-odds of the prediction over those of the prevalence in the fold's "
        "training part; above 0 counts as positive (balanced accuracy, F1). AUPRC is to be read against the "
        "prevalence."
    ] * bool(of_classes)
    names = {row["name"] for row in results["rows"]}
    near = [
        "- *k-NN*: the nearest neighbours by distance of standardised vectors, their number by inner folds."
    ] * any(name.endswith(", k-NN") for name in names)
    both = [
        "- *+ demographics*, *+ handcrafted*: one linear probe on the columns of both; inner folds choose "
        "how much a vector's column counts beside a demographic one."
    ] * any(" + " in name for name in names)
    given = ["- *Given predictions*: another model's, out of sample, from a file."] * any(
        "(given predictions)" in row["label"] for row in results["rows"]
    )
    how = [
        f"- Every row but the last is StandardScaler → {probe} on frozen vectors where nothing else is said, "
        "with the same folds; predictions are out of fold."
    ]
    if results["task"].get("kind") == "retrieval":
        how = ["- A window is compared with the mean of each subject's enrolled windows; nothing is trained."]
    return "\n".join(
        [
            *how,
            *ranked,
            *near,
            *both,
            *given,
            "- *Untrained*: the network of config.json with the weights that its training began with.",
            f"- *Handcrafted*: {len(protocol['handcrafted'])} features of rate, beat timing, morphology, "
            "spectrum and breathing (finetune/evaluation/features.py); inner folds choose among the rate "
            "features, rate and timing, and all.",
            f"- *Demographics*: {', '.join(protocol['demographics']) or 'none in this corpus'}.",
            "- Differences are paired: the same drawn subjects for both rows; p is the bootstrap's, "
            "two-sided.",
            "- `results.json` has every figure, `predictions.parquet` every prediction.",
        ]
    )
