"""neurokit2's cleaning and quality of ECG windows, beside our gate; `tests.benchmarks.ingest` runs it.

It needs nothing of ours, only neurokit2, in an environment of its own that `environment` makes: neurokit2 is
not part of requirements.lock.

    python gate.py FILE.npz     # x (n, samples) mV and rate -> JSON: processor seconds, and what it says
"""

import json
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

PACKAGE = "neurokit2==0.2.13"
WORST = "Unacceptable"  # the class of Zhao and Zhang (2018) that a gate leaves out


def judged(x: np.ndarray, rate: int) -> dict[str, Any]:
    """`default`, `zhao`: processor seconds of cleaning and quality of all windows. `simple`, `fuzzy`: Zhao's
    class of each by either rule; `mean`: of each the default quality, in [0, 1], which compares its beats
    with their average. None where neurokit2 finds no beats and raises.
    """
    import neurokit2 as nk

    warnings.simplefilter("ignore")

    def quality(**how: str) -> tuple[float, list[Any]]:
        start, found = time.process_time(), []
        for w in x:
            try:
                clean = nk.ecg_clean(w, sampling_rate=rate)
                found.append(nk.ecg_quality(clean, sampling_rate=rate, **how))
            except (ValueError, IndexError, ZeroDivisionError):
                found.append(None)
        return time.process_time() - start, found

    default, mean = quality()
    zhao, simple = quality(method="zhao2018", approach="simple")
    _, fuzzy = quality(method="zhao2018", approach="fuzzy")
    means = [None if m is None else float(np.nanmean(m)) for m in mean]
    return {"default": default, "zhao": zhao, "simple": simple, "fuzzy": fuzzy, "mean": means}


def environment(folder: Path) -> str | None:
    """The Python that has neurokit2, made in `folder` once; None where it cannot be had."""
    python = folder / "bin" / "python"
    if not (folder / ".ready").exists():
        uv = str(Path(sys.executable).with_name("uv"))
        try:
            subprocess.run(
                [uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)], check=True
            )
            subprocess.run(
                [uv, "pip", "install", "--quiet", "--python", str(python), PACKAGE], check=True, timeout=300
            )
        except (subprocess.SubprocessError, OSError) as why:
            print(f"{PACKAGE} cannot be had ({why})", file=sys.stderr)
            return None
        (folder / ".ready").touch()
    return str(python)


def asked(python: str, x: np.ndarray, rate: float, scratch: Path) -> dict[str, Any]:
    """`judged` in the environment of `python`."""
    np.savez(scratch / "windows.npz", x=x, rate=rate)
    command = [python, __file__, str(scratch / "windows.npz")]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def agreement(ours: np.ndarray, theirs: dict[str, Any]) -> dict[str, Any]:
    """How our verdict (n,) bool and theirs of the same windows agree; kappa is Cohen's."""
    mean = np.array(theirs["mean"], float)
    found: dict[str, Any] = {"windows": len(ours), "ours passes": float(ours.mean())}
    for rule in ("simple", "fuzzy"):
        fine = np.array([k not in (None, WORST) for k in theirs[rule]])
        same = float((ours == fine).mean())
        chance = float(ours.mean() * fine.mean() + (~ours).mean() * (~fine).mean())
        found |= {f"{rule} passes": float(fine.mean()), f"{rule} agrees": same}
        found[f"{rule} kappa"] = (same - chance) / (1 - chance) if chance < 1 else 1.0
    found["quality of passed"] = float(np.nanmean(mean[ours])) if ours.any() else None
    found["of refused"] = float(np.nanmean(mean[~ours])) if (~ours).any() else None
    return found


if __name__ == "__main__":
    given = np.load(sys.argv[1])
    print(json.dumps(judged(given["x"], int(given["rate"]))))
