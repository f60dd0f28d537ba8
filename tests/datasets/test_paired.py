"""Windows over two modalities: their alignment, and batches in which one may be missing."""

import json
import logging

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import PlethoraError
from datasets import index, parts, stream
from datasets.plan import CorpusShare, Plan
from datasets.schema import content_hash, open_corpus, row_schema
from datasets.split import Split
from datasets.windows import Signal, WindowSpec, empty, extract, grid

PPG, ECG = Signal(modality="ppg", rate=125.0), Signal(modality="ecg", rate=500.0)
BOTH = WindowSpec(signals=(PPG, ECG), window_s=10.0)
EITHER = WindowSpec(
    signals=tuple(s.model_copy(update={"required": False}) for s in (PPG, ECG)), window_s=10.0
)
PPG_FIRST = WindowSpec(signals=(PPG, EITHER.signals[1]), window_s=10.0)


def row(start_s: float, seconds: float, subject: int = 1, **signals) -> dict:  # type: ignore[no-untyped-def]
    """A corpus row; signals: modality=(rate, values), stored in thousandths."""
    out = {"subject": f"{subject:032x}", "record": f"r{subject}", "start_s": start_s, "duration_s": seconds}
    for m, (rate, x) in signals.items():
        raw = np.round(1000 * np.asarray(x)).astype("<i2")
        out |= {m: raw.tobytes(), f"{m}_rate": rate, f"{m}_scale": 1e-3, f"{m}_offset": 0.0}
        out |= {f"{m}_unit": "x", f"{m}_channels": 1}
    return out


def corpus(folder, rows: list[dict], modalities=("ppg", "ecg")):  # type: ignore[no-untyped-def]
    (folder / "shards").mkdir(parents=True)
    table = pa.Table.from_pylist(rows, row_schema(modalities))
    pq.write_table(table, folder / "shards" / "0.parquet")
    rates = {m: sorted({r[f"{m}_rate"] for r in rows if m in r}) for m in modalities}
    entry = {"path": "shards/0.parquet", "rows": len(rows), "row_groups": [len(rows)], "rates": rates}
    manifest = {"version": 1, "modalities": list(modalities), "shards": [entry]}
    (folder / "corpus.json").write_text(json.dumps(manifest | {"hash": content_hash(manifest)}))
    return open_corpus(str(folder))


def scanned(found, spec: WindowSpec) -> index.Index:  # type: ignore[no-untyped-def]
    return index.Index(
        found, spec, index._scan({"shard": np.array([0]), "group": np.array([0])}, found, spec)
    )


def noise(rate: float, seconds: float, seed: int = 0) -> tuple[float, np.ndarray]:
    return rate, np.random.default_rng(seed).normal(size=round(rate * seconds))


@pytest.mark.parametrize(("ppg_rate", "ecg_rate"), [(125.0, 500.0), (50.0, 250.0)])
def test_an_event_lies_within_half_a_sample_in_each_modality_and_the_shift_does_not_grow(
    ppg_rate: float, ecg_rate: float
) -> None:
    rng = np.random.default_rng(0)
    start_s, seconds = 1234.568, 900.0
    event = start_s + np.cumsum(rng.uniform(0.6, 1.1, 1050))
    event = event[event < start_s + seconds]
    waves = {}
    for m, rate, width in (("ppg", 125.0, 0.05), ("ecg", 500.0, 0.02)):
        t = start_s + np.arange(round(seconds * rate)) / rate
        after = np.searchsorted(event, t).clip(1, len(event) - 1)
        waves[m] = (rate, sum(np.exp(-0.5 * ((t - event[after - k]) / width) ** 2) for k in (0, 1)) * 30)
    table = pa.Table.from_pylist([row(start_s, seconds, **waves)], row_schema(["ppg", "ecg"]))
    rates = {"ppg": ppg_rate, "ecg": ecg_rate}
    signals = tuple(Signal(modality=m, rate=rates[m]) for m in ("ppg", "ecg"))
    spec = WindowSpec(signals=signals, window_s=10.0, hop_s=3.3712)
    offset = grid(seconds, spec)
    out = empty(len(offset), spec)
    extract(table, np.zeros(len(offset), int), offset, spec, out, np.arange(len(offset)))
    found: dict[str, np.ndarray] = {}
    for m, native in (("ppg", 125.0), ("ecg", 500.0)):
        late = np.round(offset * native) / native - offset  # what the stated rule says
        assert np.abs(late).max() <= 0.5 / native and np.abs(late).max() > 0.4 / native
        errors = []
        for k, at in enumerate(offset):
            inside = event[(event > start_s + at + 1) & (event < start_s + at + 9)] - start_s - at
            t, x = np.arange(out[m].shape[-1]) / rates[m], out[m][k, 0]
            weight = x * (np.abs(t - inside[:, None]) < 0.25)
            errors.append(((weight * t).sum(1) / weight.sum(1) - inside).mean() + late[k])
        found[m] = np.array(errors)
        assert np.abs(found[m]).max() < 0.04 / native  # nothing but the rule, in the first and the last one
    assert np.abs(found["ppg"] - found["ecg"]).max() < 0.04 / 125


def test_windows_at_a_row_that_starts_late_equal_the_same_windows_of_a_row_that_starts_at_zero() -> None:
    waves = {"ppg": noise(125.0, 31), "ecg": noise(500.0, 31, 1)}
    tables = [pa.Table.from_pylist([row(s, 31, **waves)], row_schema(["ppg", "ecg"])) for s in (0, 777.776)]
    room = [empty(2, BOTH) for _ in tables]
    for table, out in zip(tables, room, strict=True):
        extract(table, np.zeros(2, int), np.array([0.004, 17.3]), BOTH, out, np.arange(2))
    assert all(np.array_equal(room[0][m], room[1][m]) for m in ("ppg", "ecg"))


@pytest.fixture
def mixed(tmp_path):  # type: ignore[no-untyped-def]
    """20 s of both, then 30 s of PPG, 10 s of ECG; another person's PPG for 20 s."""
    rows = [
        row(5.0, 20, ppg=noise(125.0, 20, 1), ecg=noise(250.0, 20, 2)),
        row(25.0, 20, ppg=noise(125.0, 20, 3)),
        row(45.0, 10, ppg=noise(125.0, 10, 4)),
        row(55.0, 10, ecg=noise(250.0, 10, 5)),
        row(0.0, 20, 2, ppg=noise(125.0, 20, 6)),
    ]
    return corpus(tmp_path / "mixed", rows)


@pytest.mark.parametrize(
    ("spec", "starts"),
    [(BOTH, [5, 15]), (PPG_FIRST, [5, 15, 25, 35, 45, 0, 10]), (EITHER, [5, 15, 25, 35, 45, 55, 0, 10])],
)
def test_a_row_gives_windows_when_all_that_is_required_and_anything_at_all_is_there(
    mixed, spec, starts
) -> None:
    found = scanned(mixed, spec)
    assert found.table["start_s"].to_pylist() == starts
    rows = np.random.default_rng(0).permutation(len(starts))
    batch = found.load(rows)
    assert {k for k in batch if k.startswith("has_")} == {f"has_{m}" for m in spec.optional}
    start, person = (
        found.table["start_s"].to_numpy()[rows],
        found.table["record"].to_pandas().to_numpy()[rows],
    )
    there = {
        "ppg": ~((start == 55) & (person == "r1")),
        "ecg": np.isin(start, (5, 15, 55)) & (person == "r1"),
    }
    for sig in spec.signals:
        assert batch[sig.modality].shape == (len(rows), 1, round(10 * sig.rate))
        used = np.abs(batch[sig.modality]).sum((1, 2)) > 0
        np.testing.assert_array_equal(used, there[sig.modality])
        if not sig.required:
            has = batch["has_" + sig.modality]
            assert has.dtype == bool
            np.testing.assert_array_equal(has, there[sig.modality])


def test_what_is_there_is_the_same_whether_the_other_modality_is_required_or_not(mixed) -> None:
    both, either = scanned(mixed, BOTH).load(np.arange(2)), scanned(mixed, EITHER).load(np.arange(2))
    assert all(np.array_equal(both[m], either[m]) for m in ("ppg", "ecg"))


def test_an_optional_signal_that_fails_its_gate_is_left_out_and_a_required_one_refuses_the_window(
    tmp_path,
) -> None:
    t = np.arange(5000) / 250
    beats = np.exp(-0.5 * (((t + 0.3) % 0.8 - 0.4) / 0.015) ** 2)
    flat = np.where(t < 4, 0, np.random.default_rng(1).normal(0, 0.01, t.size))
    rows = [
        row(0.0, 20, 1, ppg=noise(125.0, 20), ecg=(250.0, 10 * beats)),
        row(0.0, 20, 2, ppg=noise(125.0, 20), ecg=noise(250.0, 20)),
        row(0.0, 20, 3, ppg=noise(125.0, 20), ecg=(250.0, -10 * beats + flat)),
    ]
    found = corpus(tmp_path / "c", rows)
    strict = ECG.model_copy(update={"gate": "ecg", "upright": True, "max_flat": 0.25, "band": (0.5, None)})
    loose = strict.model_copy(update={"required": False})
    refused = scanned(found, BOTH.model_copy(update={"signals": (PPG, strict)}))
    assert refused.table["verdict"].to_pylist() == ["flat", "flat", "quality", "quality", "flat", "ok"]
    kept = scanned(found, BOTH.model_copy(update={"signals": (PPG, loose)}))
    assert kept.table["verdict"].to_pylist() == ["ok"] * 6
    assert kept.table["verdict_ecg"].to_pylist() == refused.table["verdict"].to_pylist()
    batch = kept.load(np.arange(6))
    assert batch["has_ecg"].tolist() == [False] * 5 + [True]
    assert (batch["ecg"][:5] == 0).all() and batch["ecg"][5].max() > -batch["ecg"][5].min() > 0
    assert refused.summary() == {
        "windows": {"flat": 3, "ok": 1, "quality": 2},
        "inverted ecg": {"yes": 1, "no": 0},
    }
    assert kept.summary()["ecg"] == {"flat": 3, "ok": 1, "quality": 2}


def test_a_transform_actor_gives_the_masks_with_its_windows(mixed) -> None:
    found = scanned(mixed, EITHER)
    selection = found.selection(None, Split())
    source = CorpusShare(np.diff(selection.starts), selection.source(1.0).ids[:])
    plan = Plan((source,), 0, 8, 1, window_bytes=EITHER.bytes)
    assert plan.count() == 1
    batch = stream.Reader(plan, 0, [selection], EITHER).read(0)
    order = np.argsort(source.ids)
    want = found.load(order[np.searchsorted(source.ids[order], batch["window"])])
    assert all(np.array_equal(batch[name], want[name]) for name in want)
    assert sorted(batch["has_ecg"].tolist()) == [False] * 5 + [True] * 3


def test_a_corpus_without_an_optional_modality_gets_one_line_and_a_required_one_is_refused(
    tmp_path, caplog, monkeypatch
) -> None:
    found = corpus(tmp_path / "ppg", [row(0.0, 20, ppg=noise(125.0, 20))], ["ppg"])
    monkeypatch.setattr(
        index, "_judged", lambda c, s, wanted: [(n, parts.encode(scanned(c, s).table)) for n in wanted]
    )
    with caplog.at_level(logging.WARNING):
        batch = index.build(found, EITHER).load(np.arange(2))
    assert len(caplog.records) == 1 and "has no ecg (it has ppg): its windows come without" in caplog.text
    assert not batch["has_ecg"].any() and batch["has_ppg"].all() and (batch["ecg"] == 0).all()
    with pytest.raises(PlethoraError, match=r"has no ecg \(it has ppg\): use another corpus or method"):
        index.build(found, BOTH)
    with pytest.raises(PlethoraError, match="has no ecg"):
        index.build(found, WindowSpec(signals=EITHER.signals[1:], window_s=10.0))


def test_a_native_rate_below_the_need_is_named_for_a_corpus_and_counted_for_a_row(mixed, tmp_path) -> None:
    fast = ECG.model_copy(update={"min_rate": 300.0})
    with pytest.raises(PlethoraError, match="has ecg at 250 Hz at most, 300 Hz is needed"):
        index.build(mixed, BOTH.model_copy(update={"signals": (PPG, fast)}))
    rows = [row(0.0, 10, n, ppg=noise(125.0, 10), ecg=noise(r, 10)) for n, r in ((1, 250.0), (2, 500.0))]
    found = corpus(tmp_path / "c", rows)
    loose = fast.model_copy(update={"required": False})
    kept = scanned(found, BOTH.model_copy(update={"signals": (PPG, loose)}))
    assert kept.table["verdict_ecg"].to_pylist() == ["absent", "ok"]
    assert scanned(found, BOTH.model_copy(update={"signals": (PPG, fast)})).table["record"].to_pylist() == [
        "r2"
    ]


def test_specs_without_the_later_keys_keep_the_names_that_caches_know_them_by() -> None:
    ppg = Signal(modality="ppg", rate=50.0, band=(0.5, 8.0))
    assert WindowSpec(signals=(ppg,), window_s=10.0, hop_s=5.0).hash == "7ba81bc1ed1db075"
    ecg = Signal(modality="ecg", rate=125.0, order=3, channels=2, normalise="zscore")
    assert WindowSpec(signals=(ppg, ecg), window_s=240, min_quality=0.3).hash == "5a71ffff6c6b383c"
    later = {
        "required": False,
        "notch": 50.0,
        "upright": True,
        "min_rate": 9.0,
        "max_flat": 0.2,
        "gate": "ecg",
    }
    hashes = {
        WindowSpec(signals=(ppg.model_copy(update={k: v}),), window_s=10.0).hash for k, v in later.items()
    }
    assert len(hashes | {WindowSpec(signals=(ppg,), window_s=10.0).hash}) == 7
