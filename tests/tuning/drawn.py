"""A search that never ran, drawn so that the truth behind it is known: what reports are tested on."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cluster import storage
from tuning import record
from tuning.config import Budget, Objective, Scheduler, Search, Searcher
from tuning.record import Info, Record, Result, Table, Trial
from tuning.space import Spread

SPACE = {
    "optim.lr": Spread(kind="loguniform", low=1e-5, high=1e-2),
    "method.rank": Spread(kind="choice", choices=(2, 4, 8, 16, 32)),
    "method.transform": Spread(kind="choice", choices=("stft", "recurrence")),
    "method.stft.n_fft": Spread(kind="choice", choices=(64, 128, 256), when={"method.transform": ["stft"]}),
    "method.dropout": Spread(kind="uniform", low=0.0, high=0.5),
    "method.alpha": Spread(kind="int", low=1, high=64),
}
RUNGS = (10, 20, 40)
STEPS, EVERY, SECOND = 80, 10, 1.5


def loss_at(values: dict[str, Any], step: int) -> float:
    """The truth: rate matters most, the transform next, dropout and alpha not at all."""
    rate = (np.log10(values["optim.lr"]) + 3.3) ** 2
    image = 0.6 if values["method.transform"] == "recurrence" else 0.0
    return float(8 + 1.5 * rate + image + 0.02 * abs(values["method.rank"] - 8) + 12 * np.exp(-step / 20))


def search(trials: int = 24, seed: int = 0, objectives: int = 1, name: str = "lora-rank") -> Record:
    """ASHA over drawn trials: at each rung the worst two thirds so far stop; one trial fails."""
    generator = np.random.default_rng(seed)
    found, rungs, clock = [], {rung: [] for rung in RUNGS}, 1_800_000_000.0
    for number in range(trials):
        values = values_of(generator)
        curve: list[tuple[int, dict[str, Any]]] = []
        state, why = "done", ""
        if number == 3:
            state, why = "failed", "worker died twice: out of memory at step 7 (needs 3.1 GB, has 2.0)"
        for step in [] if state == "failed" else range(EVERY, STEPS + 1, EVERY):
            mae = loss_at(values, step) + 0.05 * generator.normal()
            figures = {"val/mae": mae, "val/loss/net": 0.1 * mae}
            if objectives == 2:
                figures["cost"] = float(values["method.rank"]) + 0.1 * generator.normal()
            curve.append((step, figures))
            if step in RUNGS:
                rungs[step].append(mae)
                if len(rungs[step]) >= 3 and mae > np.quantile(rungs[step], 1 / 3):
                    state = "stopped"
                    why = f"asha: {mae:.2f} at step {step} is not in the best third of rung {step}"
                    break
        last = curve[-1] if curve else (7, {})
        sets = " ".join(f"--set {key}={json.dumps(value)}" for key, value in values.items())
        spent = last[0] * SECOND
        found.append(
            Trial(
                trial=f"t{number:04d}",
                state=state,
                why=why,
                values=values,
                command=f"python -m finetune vision runs/tiny.toml {sets} --set name={name}-t{number:04d}",
                started=clock,
                spent_s=spent,
                retries=1 if number == 5 else 0,
                step=last[0],
                steps=STEPS,
                objective={k: v for k, v in last[1].items() if k in ("val/mae", "cost")} or None,
                curve=tuple(curve),
                bundle=f"/runs/{name}-t{number:04d}/bundle" if state == "done" else None,
                facts={"parameters": 442_368 * values["method.rank"] // 8, "hours": 3.5},
                run=f"{name}-t{number:04d}",
            )
        )
        clock += spent / 2
    goals = (
        Objective(metric="val/mae", mode="min", unit="bpm"),
        Objective(metric="cost", mode="min", unit="M"),
    )
    about = Search(
        name=name,
        base="finetune/runs/vision/tiny.toml",
        objective=goals[:objectives],
        space=SPACE,
        budget=Budget(trials=trials, hours=2.0, concurrent=2),
    )
    info = Info(
        git_commit="0123abc",
        command=f"python -m tuning {name}.toml",
        started=1_800_000_000.0,
        spent_s=sum(t.spent_s for t in found),
        ended=clock,
        trials_planned=trials,
    )
    whole = Record(about, info, tuple(found))
    best = whole.best()
    test = Table(
        title="Heart rate, test subjects",
        header=("", "MAE, bpm", "Pearson r"),
        body=(
            ("this model", "8.31 [7.10, 9.62]", "0.52 [0.31, 0.66]"),
            ("predict the mean", "11.02 [9.80, 12.40]", "-"),
        ),
        notes=("11 subjects, 212 windows, evaluated once: by the best trial alone.",),
    )
    return replace(whole, result=Result(best.trial if best else None, (), (test,)))


def values_of(generator: np.random.Generator) -> dict[str, Any]:
    values = {
        "optim.lr": float(10 ** generator.uniform(-5, -2)),
        "method.rank": int(generator.choice([2, 4, 8, 16, 32])),
        "method.transform": str(generator.choice(["stft", "recurrence"])),
        "method.dropout": float(generator.uniform(0, 0.5)),
        "method.alpha": int(generator.integers(1, 65)),
    }
    if values["method.transform"] == "stft":
        values["method.stft.n_fft"] = int(generator.choice([64, 128, 256]))
    return values


def scaled(noise: float = 0.01, seed: int = 0) -> Record:
    """A search over model size and hours whose loss is 1.2 + 30 N^-0.3 + 2 H^-0.4."""
    generator = np.random.default_rng(seed)
    found = []
    for number, (size, hours) in enumerate(
        (n, h) for n in (1e5, 5e5, 2e6, 1e7) for h in (10, 100, 1000, 5000)
    ):
        end = 1.2 + 30 * size**-0.3 + 2 * hours**-0.4 + noise * generator.normal()
        curve = tuple((s, {"val/loss": float(end + np.exp(-s / 20))}) for s in (20, 40, 60))
        curve += ((80, {"val/loss": float(end)}),)
        found.append(
            Trial(
                trial=f"t{number:04d}",
                state="done",
                values={"method.size": f"{size:g}", "hours": hours},
                command="python -m pretrain pretrain/runs/sigma/tiny.toml",
                spent_s=60.0,
                step=80,
                steps=80,
                objective={"val/loss": float(end)},
                curve=curve,
                facts={"parameters": size, "hours": hours},
            )
        )
    space = {
        "method.size": Spread(kind="choice", choices=("100000", "500000", "2e+06", "1e+07")),
        "hours": Spread(kind="choice", choices=(10, 100, 1000, 5000)),
    }
    about = Search(
        name="scale",
        base="pretrain/runs/sigma/tiny.toml",
        objective=(Objective(metric="val/loss", mode="min"),),
        space=space,
        scheduler=Scheduler(kind="none"),
        searcher=Searcher(kind="grid"),
        budget=Budget(trials=16),
        scaling=("parameters", "hours"),
    )
    return Record(about, Info(ended=1.0, trials_planned=16, grid_points=16), tuple(found))


def write(found: Record, home: str | Path, events: bool = True) -> str:
    """The files of a record; with `events`, each trial has an earlier line, as a driver writes it."""
    uri = storage.normalise(home)
    storage.write_json(storage.join(uri, record.SEARCH), record.search_json(found.search, found.info))
    lines = []
    for trial in found.trials:
        if events:
            lines.append(record.line(replace(trial, state="running", why="", curve=trial.curve[:1])))
        lines.append(record.line(trial))
    storage.write_bytes(storage.join(uri, record.TRIALS), b"".join(lines))
    if found.result is not None:
        storage.write_json(storage.join(uri, record.RESULT), found.result.to_json())
    return uri
