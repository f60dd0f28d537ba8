"""The table of Vision4PPG, a row at a time: it goes on where it stopped, and says what it lacks."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster import config
from finetune.supervised import VisionRunConfig
from pretrain.config import RunConfig
from tests.benchmarks import vision_table
from tests.benchmarks.vision_table import RUNS, Row, figures, main, read, rows


def _mae(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 1, "high": value + 1}


def _results(mae: float) -> dict[str, Any]:
    of = {"model": _mae(mae), "mean": _mae(9.0)}
    rows = [{"name": name, "metrics": {"mae": value}} for name, value in of.items()]
    return {"tasks": [{"task": {"name": "sbp", "unit": "mmHg"}, "rows": rows}]}


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Names of the rows that were run: each leaves a checkpoint and its figures; those of LoRA r 8 fail."""
    found: list[str] = []

    def run(command: list[str], **given: Any) -> subprocess.CompletedProcess[str]:
        out = Path(command[command.index("--out") + 1])
        name = str(out.relative_to(tmp_path / "rows"))
        found.append(name)
        (tmp_path / "runs" / name / "checkpoint").mkdir(parents=True)
        if "lora8" in name:
            return subprocess.CompletedProcess(command, 1, "", "step 3\nerror: it broke\n")
        out.mkdir(parents=True, exist_ok=True)
        (out / "results.json").write_text(json.dumps(_results(float(len(found)))))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    return found


def _main(monkeypatch: pytest.MonkeyPatch, out: Path, *more: str) -> None:
    argv = ["vision_table", "--weights", "w.safetensors", "--ppg-bp", "corpus", "--out", str(out), *more]
    monkeypatch.setattr(sys, "argv", argv)
    main()


def test_rows_that_are_done_are_not_run_again_and_failed_ones_are(
    ran: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    only = ("--only", "ppg_bp/stft/")
    _main(monkeypatch, tmp_path, *only)
    assert len(ran) == len(set(ran)) == 5 * 2 * 3 and all(name.startswith("ppg_bp/stft/") for name in ran)
    assert not list((tmp_path / "runs").rglob("checkpoint"))
    shown = capsys.readouterr().out
    assert "24 of 240 rows run, 210 not run" in shown and "lora8/given/0: error: it broke" in shown
    given = [1 + ran.index(f"ppg_bp/stft/probe/given/{seed}") for seed in range(3)]
    assert f"| ppg_bp, sbp | stft | given | {sum(given) / 3:.2f} (3) |" in shown
    assert "| ppg_bp, sbp | complex | given | not run |" in shown
    before = len(ran)
    _main(monkeypatch, tmp_path, *only)
    assert ran[before:] and all("lora8" in name for name in ran[before:])
    assert len(read(tmp_path)) == 30


def test_no_row_starts_after_the_minutes_are_over(
    ran: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clock = iter(range(0, 10**6, 60))  # a minute at every look
    monkeypatch.setattr(vision_table.time, "monotonic", lambda: next(clock))
    _main(monkeypatch, tmp_path, "--minutes", "7")
    assert len(ran) == 3  # each row looks three times: may it start, when did it, when did it end


@pytest.mark.parametrize("corpus", RUNS)
def test_every_row_is_a_run_that_its_file_takes(corpus: str, tmp_path: Path) -> None:
    of = [row for row in rows() if row.corpus == corpus]
    assert len(of) == len(set(of)) == 120
    for row in of:
        command = row.command("corpus", "w.safetensors", tmp_path)
        sets = [word.removeprefix("--set=") for word in command if word.startswith("--set=")]
        run = config.load(command[4], RunConfig, sets)
        method = config.validate(VisionRunConfig, run.method, row.name)
        assert (run.seed, run.name, method.imaging.transform) == (row.seed, row.name, row.image)
        assert method.backbone.weights == ("random" if row.weights == "random" else "w.safetensors")
        assert method.backbone.options == {}
        assert row.mode == (f"lora{method.lora.r}" if method.mode == "lora" else method.mode)


def test_a_row_keeps_the_error_of_each_task_with_its_unit() -> None:
    found = figures(_results(4.0))
    assert found == {"sbp": {"unit": "mmHg", "model": _mae(4.0), "mean": _mae(9.0)}}
    assert Row("bidmc", "stft", "full", "given", 2).name == "bidmc/stft/full/given/2"
