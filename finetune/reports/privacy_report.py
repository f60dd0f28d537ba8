"""A privacy outcome → its sheet: tables, pictures, and sentences that claim no more than was tried."""

from collections.abc import Mapping
from dataclasses import replace

from finetune.evaluation.inversion import TOP_HZ, InversionResult
from finetune.evaluation.privacy import PrivacyOutcome, PrivacyResult
from finetune.metrics import Interval
from finetune.pagekit.parts import Table
from finetune.reports import privacy_plots
from finetune.reports.comparison import described
from finetune.reports.figures import number, reasons, side, with_interval
from finetune.reports.sheet import Section, Sheet
from finetune.reports.task_section import overlap_lines

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
AT_LEAST = "These attacks are simple: the figures show what leaks at least, never that no more does."
NOT_TRIED = (
    "Linkage over days, devices or body sites, unless the corpus holds such records.",
    "Attackers with more: a decoder or a matcher trained on many people, generative models, several vectors "
    "of one window, knowledge of who was recorded when.",
    "Inference of what a person is or has (age, sex, disease) from a vector, and whether a person was in the "
    "pretraining data.",
    "Galleries larger than this corpus: rank-1 falls with N, and no curve is drawn beyond what was measured.",
)
COLUMNS = (
    "*r*: correlation of each window with its reconstruction.",
    "*MAE*: in SDs of the window (waveform), in log10 units (spectrum).",
    "*explained*: share of the variance about the mean training window, negative where that mean is better.",
    "*Another's vector*: the same decoder with the vector of another person: what it gets right without "
    "knowing anything of this window.",
)


def card(outcome: PrivacyOutcome, out: str | None, bundle: str | None) -> Sheet:
    """privacy.md, report.html, results.json, plots/rank.png and plots/inversion_MODALITY.png."""
    result = replace(outcome.result, verdict=tuple(verdicts(outcome.result)))
    return Sheet(
        name="privacy",
        title=f"Privacy card: {result.bundle.uri} (mode {result.bundle.mode})",
        lead=("A vector is personal data, as much as this card shows and possibly more.",),
        sections=(
            _identification(outcome, result),
            *(_inversion(outcome, result, modality) for modality in result.inversion),
            Section("Limits", "limits", verdict=(AT_LEAST, *(f"Not tried: {line}" for line in NOT_TRIED))),
        ),
        results={"kind": "privacy"} | result.to_json(),
        subjects=described({"This encoder": result.bundle}),
        out=out,
        bundle=bundle,
        open_access=result.corpus.access == "open",
    )


def _identification(outcome: PrivacyOutcome, result: PrivacyResult) -> Section:
    return Section(
        title=f"Re-identification: rank-1 among N {who(result)}",
        key="identification",
        warnings=result.warnings,
        tables=(_ranks(result),),
        verdict=tuple(_identified(result)),
        facts=tuple(_facts(result)),
        pictures=(privacy_plots.rank_picture(outcome, who(result)),),
    )


def _inversion(outcome: PrivacyOutcome, result: PrivacyResult, modality: str) -> Section:
    how = result.protocol
    return Section(
        title=f"Inversion: from the vector to the {modality.upper()}",
        key=f"inversion_{modality}",
        warnings=result.warnings,
        tables=(_recovered(result.inversion[modality]),),
        verdict=tuple(_inverted(result, modality)),
        facts=(
            f"{how.folds} subject-disjoint folds of the decoders",
            f"waveform: the first {how.wave_s:g} s at zero mean and unit SD; spectrum: log10 amplitude in "
            f"the encoder's band (to {TOP_HZ:g} Hz where it has no upper limit)",
        ),
        explained=COLUMNS,
        pictures=(privacy_plots.inversion_picture(outcome, modality),),
    )


def who(result: PrivacyResult, count: int | None = None) -> str:
    """What is distinguished: subjects, or records where the source does not say whose they are."""
    word = "subject" if result.corpus.subjects_published else "record"
    return word if count == 1 else f"{word}s"


# ---------------------------------------------------------------- sentences


def verdicts(result: PrivacyResult) -> list[str]:
    """What was found. A comparison is claimed only where the whole interval of the difference is on one
    side.
    """
    inverted = [line for modality in result.inversion for line in _inverted(result, modality)]
    return [*_identified(result), *inverted]


def _identified(result: PrivacyResult) -> list[str]:
    found = result.identification
    rows = {row.name: row for row in found.rows}
    size, encoder = found.sizes[-1], rows["encoder"]
    rank1, chance = encoder.rank1[-1], 1 / size
    above = "not distinguishable from chance with this much data"
    if rank1.low > chance:
        above = "above chance: the vector re-identifies"
    lines = [
        f"Among N = {size} {who(result)}, a vector of {result.protocol.window_s:g} s comes nearest to its "
        f"own {who(result, 1)} in {percent(rank1)} of probes (chance {_share(100 * chance)} %), {above}; "
        f"equal error rate {percent(encoder.eer)}."
    ]
    for name, difference in found.differences.items():
        figures = (
            f"{percent(rank1)} against {percent(rows[name].rank1[-1])}, difference {_points(difference)}"
        )
        how = {
            "better": "It re-identifies more than",
            "worse": "It re-identifies less than",
            "level": "It cannot be told apart from",
        }
        lines.append(f"{how[side(difference, lower=False)]} {SPOKEN[name]} ({figures}).")
    best = max(found.attacks, key=lambda name: found.attacks[name].value)
    lines.append(
        f"The strongest of {len(found.attacks)} searches tried, {ATTACK[best]}, succeeds in "
        f"{percent(found.attacks[best])} at N = {size}."
    )
    if len(found.by_gap) == 2:
        spoken = {"same record": "the same record", "other record": "another record"}
        parts = [
            f"{_share(100 * part.rank1)} % on {spoken[kind]} ({part.subjects} {who(result, part.subjects)})"
            for kind, part in found.by_gap.items()
        ]
        lines.append(f"At N = {size}: {', '.join(parts)}.")
    return lines


def _inverted(result: PrivacyResult, modality: str) -> list[str]:
    lines, one = [], who(result, 1)
    for target, found in result.inversion[modality].items():
        best = found.best
        row, other, gain = found.rows[best], found.rows[f"{best}, shuffled"], found.gain_r[best]
        thing = f"{modality.upper()} {'waveform' if target == 'waveform' else 'log amplitude spectrum'}"
        if gain.low <= 0:
            kept = "these decoders recover nothing from the vector"
        elif row.explained.low <= 0:
            kept = "they recover a trace of it"
        else:
            kept = "the vector reveals part of it"
        lines.append(
            f"{thing}, rebuilt by decoders that never saw the {one}: r = {with_interval(row.r)} ({best}), "
            f"with another {one}'s vector {with_interval(other.r)}, gain {with_interval(gain)}; "
            f"{_explained(row.explained)} of the variance about the mean training window is explained: "
            f"{kept}."
        )
    return lines


def _facts(result: PrivacyResult) -> list[str]:
    """How the figures were made, one line each."""
    counts, how, corpus = result.counts, result.protocol, result.corpus
    lines = [
        f"{counts.subjects} {who(result, counts.subjects)}, {counts.records} records, {counts.windows} "
        f"windows of {how.window_s:g} s that do not overlap, from {corpus.source} ({corpus.uri})"
    ]
    if not corpus.subjects_published:
        lines.append(
            "WHO: the source publishes no subject ids, so RECORDS are re-identified here, not persons: the "
            "session (sensor, gain, noise) explains part of it, and one person may count as several"
        )
    if counts.drawn_from > counts.subjects:
        lines.append(f"{counts.subjects} were drawn from {counts.drawn_from}")
    if how.one_record:
        lines.append(
            f"{how.one_record} with one record: enrolled on windows of its first third, probed on its last; "
            f"gap between the two at least {_time(how.gap_s.least)}, median {_time(how.gap_s.median)}"
        )
    if how.other_records:
        lines.append(
            f"{how.other_records} with several records: enrolled on the first half of them, probed on the "
            "others; how much time lies between is not known"
        )
    if how.too_short:
        lines.append(f"{how.too_short} with too short a record for a gap: not searched for, only inverted")
    lines += [
        f"At most {how.windows_a_side} windows a side; windows refused: {reasons(result.refused)}",
        "Vectors are standardised by the enrolled windows of everyone but the probe's subject; cosine "
        "similarity; every person counts the same",
        "Rank-1 and rank-5 among N are exact means over all galleries of N, not draws; chance decides among "
        "equals",
        f"Intervals: 95 %, {how.draws:,} bootstrap draws of whole {who(result)}, the gallery unchanged",
    ]
    if how.pieces > 1:
        lines.append(f"Each window is cut into {how.pieces} that fit the encoder; their vectors are averaged")
    lines += [f"No row for {SPOKEN[name]}: {why}" for name, why in result.identification.notes.items()]
    return [*lines, *overlap_lines(result.overlap)]


# ---------------------------------------------------------------- tables


def _ranks(result: PrivacyResult) -> Table:
    """Rank-1 of every kind of vector at each N, the encoder's rank-5, and the equal error rates."""
    found = result.identification
    rows, encoder = found.rows, found.rows[0]
    body = []
    for i, n in enumerate(found.sizes):
        rank5 = percent(encoder.rank5[i]) if n > 5 else ""
        body.append([str(n), f"{_share(100 / n)} %", *(percent(row.rank1[i]) for row in rows), rank5])
    body.append(["equal error rate", "50 %", *(percent(row.eer) for row in rows), ""])
    header = ["N", "chance", *(row.label for row in rows), f"{encoder.label}, rank-5"]
    searches = [f"{ATTACK[name]} {percent(tried)}" for name, tried in found.attacks.items()]
    notes = f"Searches tried with this encoder at N = {found.sizes[-1]}: {'; '.join(searches)}"
    return Table("", header, body, (notes,))


def _recovered(targets: Mapping[str, InversionResult]) -> Table:
    """r, MAE and explained variance of each decoder and control, for each target."""
    header = ["decoder"]
    for target in targets:
        header += [f"{target}: r", "MAE", "explained"]
    body = []
    for name in targets["waveform"].rows:
        decoder, _, shuffled = name.partition(", ")
        line = [DECODED[decoder] + (", another's vector" if shuffled else "")]
        for found in targets.values():
            row = found.rows[name]
            line += [with_interval(row.r), number(row.mae.value), number(row.explained.value)]
        body.append(line)
    return Table("", header, body)


# ---------------------------------------------------------------- figures


def percent(found: Interval) -> str:
    """``63 % [48, 77]``"""
    return f"{_share(100 * found.value)} % [{_share(100 * found.low)}, {_share(100 * found.high)}]"


def _share(value: float) -> str:
    return f"{value:.1f}" if value < 9.95 else f"{value:.0f}"


def _points(found: Interval) -> str:
    return f"{100 * found.value:+.1f} points [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"


def _explained(found: Interval) -> str:
    return f"{100 * found.value:.0f} % [{100 * found.low:.0f}, {100 * found.high:.0f}]"


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
