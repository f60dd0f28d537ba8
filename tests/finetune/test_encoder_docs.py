"""The page on adding an encoder, followed to the letter."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from finetune.__main__ import main

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "adding_an_encoder.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("theirs")
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (folder / "theirs.py").write_text(code)
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv1d(1, 8, 25, stride=5),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool1d(2),
        torch.nn.Flatten(),
    )
    torch.jit.trace(net, torch.zeros(2, 1, 1250)).save(str(folder / "net.pt"))
    return f"{folder}/theirs.py:Theirs?weights={folder}/net.pt"


def test_the_class_of_the_page_is_a_row_beside_a_bundle_on_the_same_windows(
    ray_session: Any, address: str, bundle: str, corpus: str, tmp_path: Path
) -> None:
    out = str(tmp_path)
    found = main(
        [
            "compare",
            address,
            bundle,
            "--corpus",
            corpus,
            "--tasks",
            "heart_rate",
            "--out",
            out,
            "--no-few-shot",
        ]
    )
    (table,) = found["tasks"]
    rows = {row["name"]: row for row in table["rows"]}
    assert rows["Theirs (ppg)"]["metrics"]["mae"]["value"] > 0
    assert rows["Theirs (ppg), untrained"]["note"].endswith("has no `untrained(seed)`")
    assert {"tiny (ppg)", "tiny (ppg), untrained", "handcrafted"} <= set(rows)
    assert any("8 pieces" in line or "pieces of 10 s" in line for line in table["adapted"])
    assert "its lineage names no corpus" in " ".join(table["overlap"]["why"])


def test_it_writes_vectors_and_has_a_privacy_card(
    ray_session: Any, address: str, corpus: str, tmp_path: Path
) -> None:
    import pyarrow.parquet as pq

    main(["embed", "--bundle", address, "--input", corpus, "--out", str(tmp_path / "v.parquet")])
    vectors = np.stack(pq.read_table(tmp_path / "v.parquet")["embedding"].to_pylist())
    assert vectors.shape[1] == 16 and np.isfinite(vectors).all() and len(vectors) > 100
    card = main(["privacy", "--bundle", address, "--corpus", corpus, "--out", str(tmp_path / "card")])
    assert card["bundle"]["uri"] == address
