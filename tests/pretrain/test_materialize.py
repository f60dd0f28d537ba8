"""Materialised windows are the raw ones: same order, same samples, same weights bit by bit."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import load_file

from cluster import storage
from cluster.errors import PlethoraError
from datasets import prepared, stream
from datasets.windows import Signal, WindowSpec
from pretrain import driver
from pretrain.config import RunConfig
from pretrain.data import open_data, where_prepared
from pretrain.materialize import materialize
from pretrain.recipe import build
from pretrain.recipes.sigma import Masked, MaskedConfig, TokenizerConfig, tokens
from tests.pretrain.test_loop import home, run

assert home  # a fixture


@pytest.fixture(scope="module")
def both(ray_session: Any, home: Path) -> tuple[Any, Any, dict]:
    """A run from raw windows, the same from materialised ones, and what materialising told."""
    raw = run(home, "from-raw", workers=1, steps=4, epochs=None)
    told = materialize(raw)
    ready = raw.model_copy(
        update={"name": "from-columns", "stream": raw.stream.model_copy(update={"materialised": True})}
    )
    return raw, ready, told


def test_the_weights_are_bitwise_those_of_a_run_from_raw(both, home) -> None:
    weights = []
    for one in both[:2]:
        driver.launch(one)
        weights.append(load_file(home / "storage" / one.name / "bundle" / "model.safetensors"))
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        assert value.tobytes() == weights[1][name].tobytes(), name


def test_every_block_is_that_of_the_raw_stream(both) -> None:
    raw, ready, told = both
    same_blocks(raw, ready)
    assert told["corpora"][0]["windows"] > 0


def test_filters_that_only_hosts_run_are_materialised_too(ray_session: Any, home: Path) -> None:
    recipe = {"recipe": "tests.pretrain.toy:Declared", "workers": 1, "steps": 4}
    raw = run(home, "declared", **recipe)
    materialize(raw)
    same_blocks(raw, raw.model_copy(update={"stream": raw.stream.model_copy(update={"materialised": True})}))


def same_blocks(raw: RunConfig, ready: RunConfig) -> None:
    streams = []
    for one in (raw, ready):
        one = driver.located(one)
        data = open_data(one, build(one.recipe, one.method, one.seed))
        plan, selections = data.plan(0, 2)
        reader = stream.Reader(plan, 1, selections, data.spec)
        streams.append([reader.read(number) for number in range(plan.count())])
        assert (selections[0].prepared is not None) == one.stream.materialised
    assert len(streams[0]) == len(streams[1]) > 0
    for a, b in zip(*streams, strict=True):
        assert a.keys() == b.keys()
        for name, values in a.items():
            np.testing.assert_array_equal(values, b[name], err_msg=name)


def test_training_on_what_was_not_materialised_is_refused_with_the_command(both) -> None:
    ready = both[1]
    other = ready.model_copy(update={"storage": ready.storage + "-elsewhere"})
    recipe = build(other.recipe, other.method, other.seed)
    with pytest.raises(PlethoraError, match="python -m pretrain materialize"):
        open_data(driver.located(other), recipe)


def test_a_damaged_file_and_windows_of_another_spec_are_told(both, tmp_path) -> None:
    raw = driver.located(both[0])
    recipe = build(raw.recipe, raw.method, raw.seed)
    (index,) = open_data(raw, recipe).indexes[:1]
    where = where_prepared(raw, recipe, index)
    found = prepared.open_prepared(where, index)
    copy = tmp_path / "copy"
    shard, group, _ = found.counts[0]
    name = f"{shard:05d}/{group:05d}.parquet"
    data = bytearray(storage.read_bytes(storage.join(where, name)))
    data[len(data) // 2] ^= 255
    storage.write_bytes(str(copy / name), bytes(data))
    with pytest.raises(PlethoraError, match=re.escape(f"{name} is corrupt")):
        prepared.read(replace(found, uri=str(copy)), shard, group)

    manifest = storage.read_json(storage.join(where, "windows.json"))
    storage.write_json(str(copy / "windows.json"), manifest | {"spec": "0" * 16})
    with pytest.raises(PlethoraError, match="another corpus, spec or version"):
        prepared.open_prepared(str(copy), index)


def test_windows_of_a_file_are_numbered_in_the_order_of_the_index(both) -> None:
    raw = driver.located(both[0])
    index = open_data(raw, build(raw.recipe, raw.method, raw.seed)).indexes[0]
    selection = index.selection("train", raw.split).prepared_as(prepared.Prepared("", (), ()))
    every = np.arange(len(selection))
    rows, place = selection.rows(every), selection.windows(every).place
    assert rows.tolist() == index.select("train", raw.split).tolist()
    kept = index.select(None)
    shard, group = (index.table[c].to_pylist() for c in ("shard", "group"))
    for row, at in zip(rows.tolist(), place.tolist(), strict=True):
        same = [r for r in kept.tolist() if (shard[r], group[r]) == (shard[row], group[row])]
        assert same.index(row) == at


def test_optional_signals_come_back_with_their_masks(tmp_path) -> None:
    ppg, ecg = Signal(modality="ppg", rate=50.0), Signal(modality="ecg", rate=50.0, required=False)
    spec = WindowSpec(signals=(ppg, ecg), window_s=1.0)
    found = prepared.Prepared(str(tmp_path), (("ecg", "<f4", (1, 50)),), ((0, 0, 3),))
    table = pa.table({"ecg": prepared._binary(np.arange(150, dtype=np.float32).reshape(3, 1, 50))})
    (tmp_path / "00000").mkdir()
    pq.write_table(table, tmp_path / "00000" / "00000.parquet")
    zero, has = np.zeros(2, int), np.array([3, 1], np.uint8)
    got = prepared.gather([found], zero, zero, zero, np.array([2, 0]), has, spec)
    assert got["has_ecg"].tolist() == [True, False]
    assert got["ecg"][:, 0, 0].tolist() == [100.0, 0.0]


def test_a_step_on_foreseen_token_ids_has_the_losses_of_one_that_asks_the_tokenizer() -> None:
    shared = {"window_s": 20.0, "codebook_size": 16}
    tokenizer = tokens(TokenizerConfig(**shared, dim=32, depth=1, heads=2, decoder_depth=1, kmeans=False))
    config = MaskedConfig(
        **shared,
        dim=32,
        depth=1,
        heads=2,
        teacher_dim=16,
        teacher_depth=1,
        dropout=0.0,
        attn_dropout=0.0,
        drop_path=0.0,
    )
    recipe = Masked(config, 0, tokenizer)
    modules, frozen = recipe.modules(), recipe.frozen()
    batch = {"ppg": torch.randn(4, 1, 1000).cumsum(-1), "window": torch.arange(4)}
    asked = recipe.losses(modules, frozen, batch, 3).losses
    with torch.no_grad():
        told = recipe.foresee(frozen, batch)
    assert told["codes"].shape == told["prior"].shape == (4, 10)
    given = recipe.losses(modules, {"tokenizer": torch.nn.Identity()}, batch | told, 3).losses
    for name, loss in asked.items():
        assert torch.equal(loss, given[name]), name
