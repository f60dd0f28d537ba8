"""Privacy results → words: the terminal tables, privacy.md, sentences that claim no more than was tried."""

from typing import Any

from finetune.evaluation.inversion import TOP_HZ
from finetune.reports.report import number, with_interval

ATTACK = {
    "one window": "one window against the mean of each person's enrolled windows",
    "nearest window": "one window against the nearest enrolled window",
    "all windows": "the mean of all probe windows against the mean of the enrolled ones",
}
SPOKEN = {
    "untrained": "the same network untrained",
    "handcrafted": "handcrafted features",
    "raw": "the raw waveform",
}
DECODED = {"mean": "Mean of training windows", "ridge": "Ridge", "network": "Network"}
NOT_TRIED = (
    "Linkage over days, devices or body sites, unless the corpus holds such records.",
    "Attackers with more: a decoder or a matcher trained on many people, generative models, several "
    "vectors of "
    "one window, knowledge of who was recorded when.",
    "Inference of what a person is or has (age, sex, disease) from a vector, and whether a person was in the "
    "pretraining data.",
    "Galleries larger than this corpus: rank-1 falls with N, and no curve is drawn beyond what was measured.",
)


def percent(found: dict[str, float]) -> str:
    """``63 % [48, 77]``"""
    value, low, high = (100 * found[k] for k in ("value", "low", "high"))
    return f"{_share(value)} % [{_share(low)}, {_share(high)}]"


def _share(value: float) -> str:
    return f"{value:.1f}" if value < 9.95 else f"{value:.0f}"


def who(results: dict[str, Any], count: int | None = None) -> str:
    """What is told apart: people, or records where nobody says whose they are."""
    word = "subject" if results["corpus"]["subjects_published"] else "record"
    return word if count == 1 else f"{word}s"


# ---------------------------------------------------------------- sentences


def verdicts(results: dict[str, Any]) -> list[str]:
    """What was found. A comparison is claimed only where the whole interval of the difference is on one
    side.
    """
    return [*_identified(results), *_inverted(results)]


def _identified(results: dict[str, Any]) -> list[str]:
    found = results["identification"]
    rows = {row["name"]: row for row in found["rows"]}
    size, own, one = found["sizes"][-1], rows["encoder"]["rank1"][-1], who(results, 1)
    chance = 1 / size
    above = (
        "above chance: the vector re-identifies"
        if own["low"] > chance
        else "not told apart from chance with this much data"
    )
    said = [
        f"Among N = {size} {who(results)}, a vector of {results['protocol']['window_s']:g} s comes nearest "
        "to "
        f"its own {one} in {percent(own)} of probes (chance {_share(100 * chance)} %), {above}; equal error "
        f"rate {percent(rows['encoder']['eer'])}."
    ]
    for name, difference in found["differences"].items():
        figures = (
            f"{percent(own)} against {percent(rows[name]['rank1'][-1])}, difference {_points(difference)}"
        )
        if difference["low"] > 0:
            said.append(f"It re-identifies more than {SPOKEN[name]} ({figures}).")
        elif difference["high"] < 0:
            said.append(f"It re-identifies less than {SPOKEN[name]} ({figures}).")
        else:
            said.append(f"It cannot be told apart from {SPOKEN[name]} ({figures}).")
    best = max(found["attacks"], key=lambda name: found["attacks"][name]["value"])
    said.append(
        f"The strongest of {len(found['attacks'])} searches tried, {ATTACK[best]}, succeeds in "
        f"{percent(found['attacks'][best])} at N = {size}."
    )
    if len(found["by_gap"]) == 2:
        parts = [
            f"{_share(100 * part['rank1'])} % on {'another' if kind == 'other record' else 'the same'} "
            "record "
            f"({part['subjects']} {who(results, part['subjects'])})"
            for kind, part in found["by_gap"].items()
        ]
        said.append(f"At N = {size}: {', '.join(parts)}.")
    return said


def _points(found: dict[str, float]) -> str:
    value, low, high = (f"{100 * found[k]:+.1f}" for k in ("value", "low", "high"))
    return f"{value} points [{low}, {high}]"


def _inverted(results: dict[str, Any]) -> list[str]:
    said = []
    for modality, targets in results["inversion"].items():
        for target, found in targets.items():
            best = max(found["gain_r"], key=lambda name: found["rows"][name]["r"]["value"])
            row, other, gain = found["rows"][best], found["rows"][f"{best}, shuffled"], found["gain_r"][best]
            thing = f"{modality.upper()} {'waveform' if target == 'waveform' else 'log amplitude spectrum'}"
            if gain["low"] <= 0:
                kept = "these decoders got nothing out of the vector"
            elif row["explained"]["low"] <= 0:
                kept = "a trace of it comes back"
            else:
                kept = "the vector gives some of it away"
            said.append(
                f"{thing}, rebuilt by decoders that never saw the {who(results, 1)}: r = "
                f"{with_interval(row['r'])} ({best}), with another {who(results, 1)}'s vector "
                f"{with_interval(other['r'])}, gain {with_interval(gain)}; "
                f"{_share_explained(row['explained'])} of the variance about the mean training window is "
                f"explained: {kept}."
            )
    return said


def _share_explained(found: dict[str, float]) -> str:
    value, low, high = (f"{100 * found[k]:.0f}" for k in ("value", "low", "high"))
    return f"{value} % [{low}, {high}]"


def facts(results: dict[str, Any]) -> list[str]:
    """How the figures were made, one line each."""
    counts, how, corpus = results["counts"], results["protocol"], results["corpus"]
    lines = [
        f"{counts['subjects']} {who(results, counts['subjects'])}, {counts['records']} records, "
        f"{counts['windows']} windows of {how['window_s']:g} s that do not overlap, from {corpus['source']} "
        f"({corpus['uri']})"
    ]
    if not corpus["subjects_published"]:
        lines.append(
            "WHO: the source publishes no subject ids, so RECORDS are re-identified here, not persons: "
            "some of "
            "it is the session (sensor, gain, noise), and one person may count as several"
        )
    if counts["drawn_from"] > counts["subjects"]:
        lines.append(f"{counts['subjects']} were drawn from {counts['drawn_from']}")
    gap = how["gap_s"]
    if how["one_record"]:
        lines.append(
            f"{how['one_record']} with one record: enrolled on windows of its first third, probed on its "
            "last;"
            f" gap between the two at least {_time(gap['least'])}, median {_time(gap['median'])}"
        )
    if how["other_records"]:
        lines.append(
            f"{how['other_records']} with several records: enrolled on the first half of them, probed on the "
            "others; how much time lies between is not known"
        )
    if how["too_short"]:
        lines.append(f"{how['too_short']} with too short a record for a gap: not searched for, only inverted")
    refused = ", ".join(f"{reason} {count}" for reason, count in results["refused"].items())
    lines += [
        f"At most {how['windows_a_side']} windows a side; windows refused: {refused or 'none'}",
        "Vectors are standardised by the enrolled windows of everyone but the probe's own; cosine "
        "similarity; "
        "every person counts the same",
        "Rank-1 and rank-5 among N are exact means over all galleries of N, not draws; equals share a "
        "place by "
        "a coin",
        f"Inversion: {how['folds']} subject-disjoint folds; waveform = first {how['wave_s']:g} s at zero "
        "mean "
        f"and unit SD; spectrum = log10 amplitude in the encoder's band (to {TOP_HZ:g} Hz where it has no "
        "upper "
        "limit)",
        f"Intervals: 95 %, {how['draws']:,} bootstrap draws of whole {who(results)}, the gallery unchanged",
    ]
    if how["pieces"] > 1:
        lines.append(
            f"Each window is cut into {how['pieces']} that fit the encoder; their vectors are averaged"
        )
    lines += [f"No row for {SPOKEN[name]}: {why}" for name, why in results["identification"]["notes"].items()]
    return [*lines, *_overlap(results["overlap"])]


def _overlap(overlap: dict[str, Any]) -> list[str]:
    why, left = "; ".join(overlap["why"]), overlap["left_out"]
    lines = [f"Overlap with pretraining: {overlap['kind']} ({why})"]
    if overlap["policy"] == "all" and overlap["kind"] != "none":
        lines.append(
            f"WARNING: subjects that pretraining saw are NOT left out ({overlap['shared_subjects']} known)"
        )
    elif left["subjects"]:
        lines.append(f"Left out, seen by pretraining: {left['subjects']}, {left['windows']} windows")
    return lines


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


# ---------------------------------------------------------------- tables


def _identification_cells(results: dict[str, Any]) -> list[list[str]]:
    found = results["identification"]
    rows = found["rows"]
    head = ["N", "chance", *(row["label"] for row in rows), "This encoder, rank-5"]
    body = [
        [
            str(n),
            f"{_share(100 / n)} %",
            *(percent(row["rank1"][i]) for row in rows),
            percent(rows[0]["rank5"][i]) if n > 5 else "",
        ]
        for i, n in enumerate(found["sizes"])
    ]
    return [head, *body, ["equal error rate", "50 %", *(percent(row["eer"]) for row in rows), ""]]


def _inversion_cells(targets: dict[str, Any]) -> list[list[str]]:
    head = ["decoder"]
    for target in targets:
        head += [f"{target}: r", "MAE", "explained"]
    body = []
    for name in targets["waveform"]["rows"]:
        base, _, shuffled = name.partition(", ")
        line = [DECODED[base] + (", another's vector" if shuffled else "")]
        for found in targets.values():
            row = found["rows"][name]
            line += [with_interval(row["r"]), number(row["mae"]["value"]), number(row["explained"]["value"])]
        body.append(line)
    return [head, *body]


def _aligned(cells: list[list[str]]) -> list[str]:
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = [
        "  ".join(
            c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    ]
    rule = "─" * (sum(widths) + 2 * (len(widths) - 1))
    return [rule, lines[0].rstrip(), rule, *(line.rstrip() for line in lines[1:]), rule]


def terminal(results: dict[str, Any]) -> str:
    """Both tables as aligned text, how they were made, what they say."""
    lines = [f"Privacy: {results['bundle']['uri']} (mode {results['bundle']['mode']})", "",
             f"Rank-1 among N {who(results)}", *_aligned(_identification_cells(results))]  # fmt: skip
    for modality, targets in results["inversion"].items():
        lines += ["", f"Inversion to {modality.upper()}", *_aligned(_inversion_cells(targets))]
    return "\n".join([*lines, "", *facts(results), "", *results["verdict"], "", *_limits()])


def _limits() -> list[str]:
    return [
        "These attacks are simple: the figures say what leaks at least, never that no more does. Not tried:",
        *(f"- {line}" for line in NOT_TRIED),
    ]


def _table(cells: list[list[str]]) -> str:
    lines = [cells[0], ["---"] + ["---:"] * (len(cells[0]) - 1), *cells[1:]]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def markdown(results: dict[str, Any], pictured: bool = True) -> str:
    """privacy.md. `pictured`: whether the pictures of waveforms lie beside it."""
    bundle = results["bundle"]
    parts = [
        "# Privacy card",
        f"Bundle `{bundle['uri']}`, mode `{bundle['mode']}`, vectors of {bundle['dim']}. A vector is "
        "personal "
        "data as much as this card says, and possibly more.",
        "\n".join(f"- {sentence}" for sentence in results["verdict"]),
        f"## Re-identification: rank-1 among N {who(results)}",
        _table(_identification_cells(results)),
        "![Rank-1 against N](plots/rank.png)",
        "Searches tried with this encoder at the largest N:",
        "\n".join(
            f"- {ATTACK[name]}: {percent(found)}"
            for name, found in results["identification"]["attacks"].items()
        ),
    ]
    for modality, targets in results["inversion"].items():
        parts += [
            f"## Inversion: from the vector to the {modality.upper()}",
            _table(_inversion_cells(targets)),
        ]
        parts.append(
            f"![True and inverted](plots/inversion_{modality}.png)"
            if pictured
            else "Pictures are left out: access to the corpus is not open."
        )
    parts += [
        "*r*: correlation of each window with its reconstruction. *MAE*: in SDs of the window (waveform), "
        "in log10 "
        "units (spectrum). *explained*: share of the variance about the mean training window, negative "
        "where that "
        "mean is better. *Another's vector*: the same decoder given the vector of another person: what it "
        "gets "
        "right without knowing anything of this window.",
        "## What was not tried",
        "\n".join(_limits()).replace("Not tried:", "Not tried:\n"),
        "## How it was done",
        "\n".join(f"- {line}" for line in facts(results)),
    ]
    return "\n\n".join(parts) + "\n"
