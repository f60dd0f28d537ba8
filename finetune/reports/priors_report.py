"""Results about SIGMA's priors → table, sentences and picture."""

# ruff: noqa: RUF001  (minus signs and dashes are meant)

from pathlib import Path
from typing import Any

import numpy as np

from finetune.reports.plots import BLUE, GREY, INK, ORANGE, STYLE
from finetune.reports.report import aligned, number, p_text, signed, table_md, with_interval

COLOURS = (BLUE, ORANGE)  # of the two classes
SPOKEN = {"prior": "the prior-weighted mask", "trained": "the mask as trained"}


def verdicts(results: dict[str, Any]) -> list[str]:
    """What the masks do with the event, a sentence each; a claim only where the whole interval says so."""
    rows = {row["name"]: row for row in results["table"]}
    first, second = results["task"]["classes"]
    said = []
    for name, spoken in SPOKEN.items():
        row = rows.get(f"hidden_{name}")
        if row is None:
            continue
        (a, b), d = row["classes"], row["difference"]
        how = "as often as (they cannot be told apart)"
        if d["low"] > 0 or d["high"] < 0:
            how = "more often than" if d["value"] > 0 else "less often than"
        chance = rows["hidden_random"]["classes"][1]["value"]
        said.append(
            f"Where {second}, {spoken} hides the event's patches {number(b['value'])} % of the time, {how} "
            f"where {first} ({number(a['value'])} %; difference {signed(d)}, {p_text(d['p'])}); a random "
            f"mask {number(chance)} %."
        )
        within = rows[f"apart_{name}"]["classes"][1]
        rather = "as often as (they cannot be told apart)"
        if within["low"] > 0 or within["high"] < 0:
            rather = "more often than" if within["value"] > 0 else "less often than"
        said.append(
            f"Where {second}, {spoken} hides the event's patches {rather} those before it "
            f"({signed(within)} points)."
        )
    row = rows["prior_event"]
    (a, b), d = row["classes"], row["difference"]
    how = "cannot be told apart"
    if d["low"] > 0 or d["high"] < 0:
        how = "is higher" if d["value"] > 0 else "is lower"
    said.append(
        f"The prior of these patches {how} where {second} ({number(b['value'])} against "
        f"{number(a['value'])}; difference {signed(d)}, {p_text(d['p'])})."
    )
    return said


def _cells(results: dict[str, Any], part: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    names = results["task"]["classes"]
    header = ["", *(f"{n} ({part['counts'][n]})" for n in names), "difference", "p"]
    body = [
        [
            row["title"], *(with_interval(c) for c in row["classes"]), signed(row["difference"]),
            p_text(row["difference"]["p"]).removeprefix("p ").removeprefix("= "),
        ]
        for row in part["table"]
        if row["name"] not in ("chosen_random", "apart_random")
    ]  # fmt: skip
    return header, body


def _by_cells(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """One line a group: the prior, and what each weighted mask hides, where both classes are there."""
    shown = ("prior_event", "hidden_prior", "hidden_trained")
    titles = {row["name"]: row["title"] for row in results["table"]}
    header = ["", "windows", *(f"{titles[n]}: difference" for n in shown if n in titles)]
    body = []
    for group in results["by"]["groups"]:
        rows = {row["name"]: row for row in group["table"]}
        counts = " + ".join(str(n) for n in group["counts"].values())
        both = all(group["counts"].values())
        body.append(
            [
                group["name"], counts,
                *(signed(rows[n]["difference"]) if both else "–" for n in shown if n in rows),
            ]
        )  # fmt: skip
    return header, body


def _facts(results: dict[str, Any]) -> list[str]:
    refused = ", ".join(f"{reason} {count}" for reason, count in results["refused"].items())
    quantiles = "; ".join(
        f"{name}: {', '.join(number(v) for v in values)}" for name, values in results["quantiles"].items()
    )
    counts = ", ".join(f"{n} {name}" for name, n in results["counts"].items())
    event = f", of which the last {results['event_patches']} are the event" if _partial(results) else ""
    return [
        f"{counts}: windows of {results['window_s']:g} s, patches of {results['patch_s']:g} s{event}, from "
        f"{results['corpus']['name']} ({results['corpus']['uri']})",
        f"Windows refused: {refused or 'none'}",
        f"5, 25, 50, 75, 95 % of the event's priors, {quantiles}",
        f"Masks drawn {results['draws']} times a window with α = {results['alpha']:g}, edited as in "
        "training; intervals: 95 %, 2,000 draws of whole subjects",
        "Everyone counts, also whom pretraining saw: nothing is predicted here",
    ]


def _partial(results: dict[str, Any]) -> bool:
    return bool(results["event_patches"] * results["patch_s"] < results["window_s"] - 1e-6)


def _title(results: dict[str, Any]) -> str:
    return f"SIGMA's priors and masks, {results['task']['title'].lower()}: {results['bundle']['uri']}"


def terminal(results: dict[str, Any]) -> str:
    parts = [_title(results), *aligned(*_cells(results, results))]
    if "by" in results:
        parts += ["", f"By {results['by']['label']}", *aligned(*_by_cells(results))]
    return "\n".join([*parts, *_facts(results), "", *results["verdict"]])


def markdown(results: dict[str, Any]) -> str:
    """priors.md."""
    parts = [f"# {_title(results)}", table_md(*_cells(results, results))]
    if "by" in results:
        parts += [f"## By {results['by']['label']}", table_md(*_by_cells(results))]
    parts += [
        "\n".join(f"- {line}" for line in [*results["verdict"], *_facts(results)]),
        "![Priors and what the masks hide](priors.png)",
    ]
    return "\n\n".join(parts) + "\n"


def draw(results: dict[str, Any], patches: Any, y: np.ndarray, event: np.ndarray, path: Path) -> None:
    """Distribution of the prior over the event's patches; of the hidden ones; what is hidden, over time."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names, seconds = results["task"]["classes"], results["patch_s"]
    mask = "trained" if "trained" in patches.hidden else "prior"
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 3, figsize=(14, 4.2), layout="constrained")
        for k, (name, colour) in enumerate(zip(names, COLOURS, strict=True)):
            mine = y == k
            if not mine.any():
                continue
            inside = patches.prior[mine][:, event]
            _steps(axes[0], inside.ravel(), None, colour, "-", name)
            if not event.all():
                _steps(axes[0], patches.prior[mine][:, ~event].ravel(), None, colour, ":", f"{name}, before")
            every = patches.prior[mine].ravel()
            for other, dash in (("prior", "-"), ("random", ":")):
                weight = patches.hidden[other][mine].ravel()
                _steps(axes[1], every, weight, colour, dash, f"{name}, {other} mask")
            at = (np.arange(len(event)) - len(event) + 0.5) * seconds
            axes[2].plot(at, 100 * patches.hidden["prior"][mine].mean(0), color=colour, lw=1.8, label=name)
            if mask == "trained":
                hidden = 100 * patches.hidden[mask][mine].mean(0)
                axes[2].plot(at, hidden, color=colour, lw=1, ls="--", label=f"{name}, with teacher")
        axes[2].axhline(100 * patches.hidden["random"].mean(), color=INK, lw=1, ls=":", label="random mask")
        if not event.all():
            axes[2].axvspan(-event.sum() * seconds, 0, color=GREY, alpha=0.25, lw=0)
        titles = ("Prior of the event's patches", "Prior of the patches that are hidden", "Hidden, by time")
        marks = (("prior", "share of patches"), ("prior", "share of hidden patches"),
                 ("s before the event's end", "% of draws"))  # fmt: skip
        for axis, title, (x, label) in zip(axes, titles, marks, strict=True):
            axis.set(title=title, xlabel=x, ylabel=label)
            axis.legend(frameon=False, fontsize=8)
        axes[0].set(xlim=(0, 1), ylim=(0, 1))
        axes[1].set(xlim=(0, 1), ylim=(0, 1))
        figure.savefig(path, dpi=130, metadata={"Software": None})
        plt.close(figure)


def _steps(
    axis: Any, values: np.ndarray, weights: np.ndarray | None, colour: str, dash: str, label: str
) -> None:
    """A weighted distribution function."""
    order = np.argsort(values, kind="stable")
    weight = np.ones(len(values)) if weights is None else weights[order]
    axis.plot(values[order], np.cumsum(weight) / weight.sum(), color=colour, ls=dash, lw=1.6, label=label)
