"""The worked examples of docs/bundles.md and docs/evaluation.md, with a tiny bundle for that of the demo."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from tests.pages import blocks, commands, run, worked
from tests.pretrain.golden.make import theirs


@pytest.fixture
def out(tmp_path: Path, bundle: str, corpus: str) -> Path:
    """`out/` as `make demo` leaves it."""
    demo = tmp_path / "out" / "demo"
    shutil.copytree(bundle, demo / "runs" / "sigma" / "bundle")
    shutil.copytree(corpus, demo / "corpus")
    return tmp_path / "out"


def test_a_bundle_is_verified_and_gives_vectors_of_the_readers_samples(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = worked("docs/bundles.md")
    monkeypatch.chdir(out.parent)
    (code,), (shell,) = blocks(section, "python"), blocks(section, "bash")
    exec(code, {})
    verify, embed = commands(shell)
    run(verify, out)
    assert run(embed, out)["windows"] == 2
    assert np.isfinite(np.stack(pq.read_table(out / "mine.parquet")["embedding"].to_numpy())).all()


def test_published_weights_become_a_bundle_that_embeds(
    ray_session: Any, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(out.parent)
    torch.save(theirs("papagei-s"), "papagei_s.pt")
    (shell,) = blocks(worked("docs/importing.md"), "bash")
    given, verify, embed = commands(shell)
    assert run(given, out)["modes"] == ["ppg"]
    run(verify, out)
    assert run(embed, out)["windows"] > 10
    assert "papagei_s.pt" in (out / "runs" / "papagei-s" / "bundle" / "README.md").read_text()


def test_an_evaluation_writes_what_the_page_says_and_keeps_it_beside_the_bundle(
    ray_session: Any, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (shell,) = blocks(worked("docs/evaluation.md"), "bash")
    (evaluate,) = commands(shell)
    run(evaluate, out)
    said = capsys.readouterr().out
    assert "encoder \N{MINUS SIGN} row" in said and "handcrafted features" in said
    for folder in (out / "evaluation", *(out / "demo" / "runs" / "sigma" / "evaluations").iterdir()):
        assert (folder / "predictions.parquet").is_file() and (folder / "results.json").is_file()
    assert (out / "evaluation" / "report.html").is_file()
