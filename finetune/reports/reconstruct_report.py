"""Rebuilt signals → the sheet: the table, the picture, the rebuilt windows as files."""

# ruff: noqa: RUF001  (minus signs are meant)

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from finetune.evaluation import waveform
from finetune.evaluation.reconstruction import LABELS, RebuiltArrays, RebuiltWindows, ReconstructionResult
from finetune.metrics import Difference, Interval
from finetune.pagekit.parts import Table
from finetune.reports.figures import p_cell
from finetune.reports.plots import BLUE, GREY, INK, ORANGE, drawing
from finetune.reports.sheet import Picture, Section, Sheet
from finetune.reports.task_section import overlap_lines

COMPARED = ("mae", "pearson")
SHOWN = (0.95, 0.75, 0.5, 0.25, 0.05)  # quantiles of r


def of_arrays(found: RebuiltArrays, out: str) -> Sheet:
    """reconstruction.md, report.html, results.json and rebuilt.npz."""
    rows, windows, _ = found.rebuilt.shape
    results = {"windows": rows * windows, "decoder": found.decoder, "metrics": found.metrics}
    body = [[waveform.METRICS[name], f"{value:.3f}"] for name, value in found.metrics.items()]
    section = Section(
        title=_title(found.decoder),
        tables=(Table("", ["", "mean over windows"], body),) if body else (),
        facts=(
            f"{rows} rows of {windows} windows were rebuilt",
            f"rebuilt.npz holds {found.modality} (rows, windows, samples) at {found.rate:g} Hz, and start_s",
        ),
    )
    return _sheet(section, results, out, {"rebuilt.npz": partial(_write_arrays, found)})


def of_corpus(found: RebuiltWindows, out: str) -> Sheet:
    """reconstruction.md, report.html, results.json, rebuilt.parquet and reconstruction.png."""
    result = found.result
    caption = f"Windows from the best r to the worst: {found.source} given, {found.target} true and rebuilt"
    picture = Picture("reconstruction.png", caption, drawing(partial(_picture, found=found)), private=True)
    section = Section(
        title=_title(result.decoder),
        about=f"{result.counts.subjects} subjects, {result.counts.windows} windows of {result.window_s:g} s",
        warnings=result.warnings,
        tables=(_main_table(result), _differences(result)),
        facts=tuple(_facts(result)),
        pictures=(picture,),
        own=(LABELS["decoder"],),
    )
    return _sheet(section, result.to_json(), out, {"rebuilt.parquet": partial(_write_windows, found)})


def _title(decoder: str) -> str:
    return decoder.replace("_", " ")


def _sheet(section: Section, results: dict[str, Any], out: str, files: dict[str, Any]) -> Sheet:
    return Sheet("reconstruction", section.title, (), (section,), results, files=files, out=out)


# ---------------------------------------------------------------- tables


def _main_table(result: ReconstructionResult) -> Table:
    body = [[row.label, *(_cell(row.metrics[name]) for name in waveform.METRICS)] for row in result.rows]
    return Table("", ["", *waveform.METRICS.values()], body)


def _differences(result: ReconstructionResult) -> Table:
    """Decoder − each reference, of two metrics."""
    header = [""]
    for metric in COMPARED:
        header += [waveform.METRICS[metric], "p"]
    body = []
    for name, found in result.differences.items():
        line = [f"{LABELS['decoder']} − {LABELS[name].lower()}"]
        for metric in COMPARED:
            line += [_signed(found[metric]), p_cell(found[metric].p)]
        body.append(line)
    return Table("Paired differences", header, body)


def _cell(found: Interval) -> str:
    digits = 1 if abs(found.value) >= 10 else 3
    return f"{found.value:.{digits}f} [{found.low:.{digits}f}, {found.high:.{digits}f}]"


def _signed(found: Difference) -> str:
    return f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


def _facts(result: ReconstructionResult) -> list[str]:
    counts, how = result.counts, result.protocol
    rated = [f"{row.found['hr_bpm']:.0%} ({row.label})" for row in result.rows]
    return [
        f"{counts.windows} windows of {result.window_s:g} s of {counts.subjects} subjects of "
        f"{result.corpus.uri}",
        f"References are fitted on other subjects: those of the other folds ({how.folds}), and "
        f"{counts.fitted_on_more} windows of subjects that pretraining saw",
        f"Heart rate could be read in {', '.join(rated)}; every metric is over the windows in which each row "
        "has it",
        f"Intervals: 95 %, {how.draws:,} bootstrap draws of whole subjects; differences are paired",
        *overlap_lines(result.overlap),
    ]


# ---------------------------------------------------------------- files


def _write_arrays(found: RebuiltArrays, path: Path) -> None:
    arrays: dict[str, Any] = {found.modality: found.rebuilt, "rate": found.rate, "start_s": found.start_s}
    np.savez_compressed(path, **arrays)


def _write_windows(found: RebuiltWindows, path: Path) -> None:
    """A row a window: subject, record, start_s, Pearson r, and the rebuilt samples."""
    import pyarrow.parquet as pq

    samples = pa.array(np.ascontiguousarray(found.guesses["decoder"], np.float32).ravel())
    rebuilt = pa.FixedSizeListArray.from_arrays(samples, found.y.shape[1])
    keys = {name: found.keys[name].combine_chunks() for name in found.keys.column_names}
    table = pa.table({**keys, "pearson": found.r, "rebuilt": rebuilt})
    about = {"plethora.rate": f"{found.rate:g}", "plethora.target": found.target}
    pq.write_table(table.replace_schema_metadata(about), path, compression="zstd")


def _picture(plt: Any, found: RebuiltWindows) -> Any:
    """Windows at five quantiles of r: source, truth, rebuilt, reference."""
    order = np.argsort(found.r)
    windows = order[np.round(np.array(SHOWN) * (len(order) - 1)).astype(int)]
    figure, axes = plt.subplots(
        len(windows),
        2,
        figsize=(14, 2.3 * len(windows)),
        squeeze=False,
        sharex=True,
        width_ratios=(1, 2),
        layout="constrained",
    )
    time = np.arange(found.y.shape[1]) / found.rate
    given, true = waveform.zscored(found.x[windows]), waveform.zscored(found.y[windows])
    for k, ((left, right), i) in enumerate(zip(axes, windows, strict=True)):
        left.plot(time, given[k], color=BLUE, lw=0.9)
        right.plot(time, true[k], color=INK, lw=0.9, label="true")
        right.plot(time, found.guesses["decoder"][i], color=ORANGE, lw=0.9, label="rebuilt")
        right.plot(time, found.guesses["mean_beat"][i], color=GREY, lw=0.7, label="mean beat")
        right.set_title(f"r = {found.r[i]:.2f}", fontsize=9, loc="right")
    axes[0, 0].set_title(f"{found.source.upper()} (given)", fontsize=10)
    axes[0, 1].set_title(found.target.upper(), fontsize=10)
    axes[0, 1].legend(fontsize=8, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    for axis in axes[-1]:
        axis.set_xlabel("s")
    return figure
