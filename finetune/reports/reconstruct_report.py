"""What people read of a reconstruction: the table, the pictures, the rebuilt windows as Parquet."""

# ruff: noqa: RUF001  (dashes and Greek letters are meant)

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cluster import storage
from finetune.evaluation import waveform

ROWS = {
    "decoder": "This decoder",
    "mean_beat": "Mean beat, at the median delay",
    "around": "Mean around a beat, least squares",
    "ridge": "Ridge regression from the window",
}


def markdown(results: dict[str, Any]) -> str:
    """The table and how it came about."""
    counts, names = results["counts"], list(waveform.METRICS)
    lines = [
        f"# {results['decoder'].replace('_', ' ')}",
        "",
        f"{counts['windows']} windows of {results['window_s']:g} s of {counts['subjects']} subjects of "
        f"{results['corpus']['uri']}; overlap with pretraining: {results['overlap']['kind']}, policy "
        f"{results['overlap']['policy']}. References are fitted on other subjects: those of the other folds, "
        f"and {counts['fitted_on_more']} windows of subjects that pretraining saw.",
        "",
        "| | " + " | ".join(waveform.METRICS.values()) + " |",
        "|---" * (len(names) + 1) + "|",
    ]
    for row in results["rows"]:
        cells = [_cell(row["metrics"][name]) for name in names]
        lines.append(f"| {row['label']} | " + " | ".join(cells) + " |")
    for name, found in results["differences"].items():
        for metric in ("mae", "pearson"):
            d = found[metric]
            lines.append(
                f"\n{ROWS['decoder']} − {ROWS[name].lower()}, {metric}: {d['value']:+.3f} "
                f"[{d['low']:+.3f}, {d['high']:+.3f}], p {_p(d['p'])}"
            )
    rated = {row["label"]: row["found"]["hr_bpm"] for row in results["rows"]}
    lines.append(
        "\nHeart rate could be read in " + ", ".join(f"{v:.0%} ({k})" for k, v in rated.items()) + "."
    )
    return "\n".join(lines) + "\n"


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


def _cell(found: dict[str, float]) -> str:
    digits = 1 if abs(found["value"]) >= 10 else 3
    return f"{found['value']:.{digits}f} [{found['low']:.{digits}f}, {found['high']:.{digits}f}]"


def write(
    results: dict[str, Any], table: pa.Table, x: np.ndarray, y: np.ndarray, guesses: dict[str, np.ndarray],
    r: np.ndarray, rate: float, source: str, target: str, out: str,
) -> None:  # fmt: skip
    import pyarrow.parquet as pq

    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        text = markdown(results)
        (here / "reconstruction.md").write_text(text, encoding="utf-8")
        (here / "results.json").write_bytes(storage.json_bytes(results))
        rebuilt = pa.FixedSizeListArray.from_arrays(
            pa.array(np.ascontiguousarray(guesses["decoder"], np.float32).ravel()), y.shape[1]
        )
        keys = {name: table[name].combine_chunks() for name in ("subject", "record", "start_s")}
        columns = pa.table({**keys, "pearson": r, "rebuilt": rebuilt})
        about = {"plethora.rate": f"{rate:g}", "plethora.target": target}
        pq.write_table(columns.replace_schema_metadata(about), here / "rebuilt.parquet", compression="zstd")
        picture(x, y, guesses, r, rate, source, target, here / "reconstruction.png")
        storage.upload(here, out)
    print(text + f"\nwritten: {storage.normalise(out)}", flush=True)


def picture(
    x: np.ndarray, y: np.ndarray, guesses: dict[str, np.ndarray], r: np.ndarray, rate: float, source: str,
    target: str, path: Path,
) -> None:  # fmt: skip
    """Windows at the 95th, 75th, 50th, 25th and 5th percentile of r: source, truth, rebuilt, reference."""
    from matplotlib.figure import Figure

    places = np.argsort(r)[np.round(np.array([0.95, 0.75, 0.5, 0.25, 0.05]) * (len(r) - 1)).astype(int)]
    figure = Figure(figsize=(14, 2.3 * len(places)), layout="constrained")
    axes = figure.subplots(len(places), 2, squeeze=False, sharex=True, width_ratios=(1, 2))
    time = np.arange(y.shape[1]) / rate
    for (left, right), i in zip(axes, places, strict=True):
        left.plot(time, waveform.zscored(x[i : i + 1])[0], color="#1f6feb", lw=0.9)
        right.plot(time, waveform.zscored(y[i : i + 1])[0], color="#1b1f24", lw=0.9, label="true")
        right.plot(time, guesses["decoder"][i], color="#d9730d", lw=0.9, label="rebuilt")
        right.plot(time, guesses["mean_beat"][i], color="#9aa4b0", lw=0.7, label="mean beat")
        right.set_title(f"r = {r[i]:.2f}", fontsize=9, loc="right")
    for axis, title in zip(axes[0], (f"{source.upper()} (given)", f"{target.upper()}"), strict=True):
        axis.set_title(title, fontsize=10, loc="left")
    axes[0, 1].legend(fontsize=8, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    for axis in axes[-1]:
        axis.set_xlabel("s")
    figure.savefig(path, dpi=120)
