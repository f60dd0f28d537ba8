"""The index's files: what they say, how they are made, and who holds what of them."""

import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster import storage
from cluster.errors import PlethoraError
from datasets import catalogue, index, parts, plan
from datasets.index import Index, Selection
from datasets.judge import VERDICTS, schema
from datasets.ledger import expected
from datasets.plan import CorpusShare, Plan
from datasets.prepared import Prepared
from datasets.schema import Corpus, open_corpus
from datasets.signal import Signal
from datasets.split import Split, assign
from datasets.windows import WindowSpec
from tests.datasets.test_stream import SPEC, write_corpus

ROOT = Path(__file__).parents[2]
TWO = WindowSpec(
    signals=(
        Signal(modality="ppg", rate=10.0),
        Signal(modality="ecg", rate=10.0, required=False, upright=True, band=(0.5, 4.0)),
    ),
    window_s=10.0,
    hop_s=0.1,  # no float: sums of it would not be its multiples
)
HALVES = Split(val=0.5, test=0.2)


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return open_corpus(write_corpus(tmp_path / "corpus"))


def here(corpus: Corpus, spec: WindowSpec, wanted: list[int]) -> Iterator[tuple[int, bytes]]:
    """`index._judged`, without Ray."""
    for number in wanted:
        made = index._judge_part({"part": np.array([number])}, corpus, spec)
        yield made["part"][0].as_py(), made["data"][0].as_py()


def judging(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Have parts judged without Ray; the numbers of those that were."""
    found: list[int] = []

    def told(corpus: Corpus, spec: WindowSpec, wanted: list[int]) -> Iterator[tuple[int, bytes]]:
        found.extend(wanted)
        return here(corpus, spec, wanted)

    monkeypatch.setattr(index, "_judged", told)
    return found


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    return judging(monkeypatch)


def test_the_files_say_what_was_judged(corpus: Corpus, judged: list[int], tmp_path: Path) -> None:
    people = [hashlib.sha256(b"%d" % n).hexdigest()[:32] for n in range(12)]
    row = np.repeat(np.arange(12), 6)
    scan = [
        index._scan({"shard": np.array([s]), "group": np.array([g])}, corpus, SPEC)
        for s in range(3)
        for g in (0, 1)
    ]
    for found in (index.build(corpus, SPEC, str(tmp_path / "cache")), index.build(corpus, SPEC)):
        table = found.table
        assert table.column_names == schema(SPEC).names and found.windows == 72
        assert table["shard"].to_pylist() == (row // 4).tolist()
        assert table["group"].to_pylist() == (row % 4 // 2).tolist()
        assert table["row"].to_pylist() == (row % 2).tolist()
        assert table["offset_s"].to_pylist() == table["start_s"].to_pylist() == [0, 10, 20, 30, 40, 50] * 12
        assert table["subject"].to_pylist() == [people[r] for r in row]
        assert table["record"].to_pylist() == [f"r{r}" for r in row]
        assert table["verdict"].to_pylist() == ["ok"] * 72
        assert table["quality"].to_pylist() == pa.concat_tables(scan)["quality"].to_pylist()
        for field in table.schema:
            plain = schema(SPEC).field(field.name).type
            coded = pa.dictionary(pa.int32(), pa.string())
            assert field.type == (coded if pa.types.is_string(plain) else plain)
    (folder,) = (tmp_path / "cache").iterdir()
    assert sorted(f.name for f in folder.iterdir()) == ["index.json", "rows.arrow", "windows.arrow"]
    assert folder.name == f"{corpus.hash[:16]}-{SPEC.hash}-v3"


@pytest.mark.parametrize("harm", ["flip", "cut", "remove", "mark"])
def test_a_damaged_file_is_refused_in_one_line(
    corpus: Corpus, judged: list[int], tmp_path: Path, harm: str
) -> None:
    table = index.build(corpus, SPEC, str(tmp_path / "cache")).table
    (folder,) = (tmp_path / "cache").iterdir()
    file = folder / ("index.json" if harm == "mark" else "rows.arrow")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= harm == "flip"
    file.write_bytes(data if harm == "flip" else data[: len(data) // 2])
    if harm == "remove":
        file.unlink()
    with pytest.raises(PlethoraError, match=rf"{folder.name} is corrupt: delete it, the next run") as caught:
        index.build(corpus, SPEC, str(tmp_path / "cache"))
    assert "\n" not in str(caught.value)
    shutil.rmtree(folder)
    assert index.build(corpus, SPEC, str(tmp_path / "cache")).table.equals(table)


def test_a_damaged_part_is_refused_in_one_line(
    corpus: Corpus, judged: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(parts, "merge", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        index.build(corpus, SPEC, str(cache))
    part = sorted(cache.glob("*-parts/*.parquet"))[2]
    data = bytearray(part.read_bytes())
    column = pq.ParquetFile(part).metadata.row_group(0).column(schema(SPEC).names.index("quality"))
    data[column.data_page_offset - 5] ^= 1  # in one of its pages
    part.write_bytes(data)
    with pytest.raises(PlethoraError, match=rf"{part.name} is corrupt: delete it, the next run"):
        index.build(corpus, SPEC, str(cache))
    part.unlink()
    assert index.build(corpus, SPEC, str(cache)).windows == 72


def test_processes_map_the_same_files_and_no_index_travels(
    corpus: Corpus, judged: list[int], tmp_path: Path
) -> None:
    found = index.build(corpus, SPEC, str(tmp_path / "cache"))
    assert found.table.num_rows == 72
    selection = found.selection("train", HALVES)
    selection.windows(np.arange(len(selection)))
    (folder,) = (tmp_path / "cache").iterdir()
    (tmp_path / "travels").write_bytes(pickle.dumps((found, selection)))
    assert len(pickle.dumps(found)) < 10_000
    assert vars(pickle.loads(pickle.dumps(found))).keys() == {"corpus", "spec", "given"}
    program = f"""
import json, pickle
found, selection = pickle.load(open({str(tmp_path / "travels")!r}, "rb"))
assert found.kept is selection.kept
maps = [line.split() for line in open("/proc/self/maps") if {str(folder)!r} in line]
told = {{"maps": sorted({{(m[5], int(m[4])) for m in maps}}), "ids": selection.source(1.0).ids[:].tolist()}}
print(json.dumps(told))
"""
    told = json.loads(subprocess.check_output([sys.executable, "-c", program], cwd=ROOT))
    files = [folder / name for name in ("rows.arrow", "windows.arrow")]
    assert told["maps"] == [[str(f), f.stat().st_ino] for f in files]
    assert told["ids"] == found.ids(found.select("train", HALVES)).tolist()
    mine = {
        line.split()[5] for line in Path("/proc/self/maps").read_text().splitlines() if str(folder) in line
    }
    assert mine == {str(f) for f in files}


def test_a_machine_fetches_an_index_out_of_a_bucket_once(
    corpus: Corpus, judged: list[int], moto: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    cache, fetched = f"s3://plethora/{tmp_path.name}", []
    download = storage.download
    monkeypatch.setattr(storage, "download", lambda *a: (fetched.append(a), download(*a)))
    found = [index.build(corpus, SPEC, cache) for _ in range(3)]
    assert len(fetched) == 1 and judged == list(range(6))
    table = index.build(corpus, SPEC).table
    assert found[0].table.equals(table)
    assert len(storage.listing(cache)) == 3  # the parts are gone
    (copies,) = tmp_path.glob("plethora-indexes-*")
    assert copies.stat().st_mode & 0o077 == 0
    (folder,) = (f for f in copies.iterdir() if f.is_dir())
    (other := copies / "old").mkdir()
    os.utime(other, (0, 0))
    (folder / "rows.arrow").write_bytes(b"damaged")
    assert index.build(corpus, SPEC, cache).table.equals(table)
    assert len(fetched) == 2 and not other.exists()


# ---------------------------------------------------------------- drawn tables


def drawn(seed: int) -> pa.Table:
    """Windows of few people in some row groups; now and then of a row whose windows are no grid."""
    rng = np.random.default_rng(seed)
    names = [hashlib.sha256(b"%d" % n).hexdigest()[:32] for n in range(5)]
    out: dict[str, list] = {name: [] for name in schema(TWO).names}
    for shard in sorted(rng.choice(6, rng.integers(0, 4), replace=False).tolist()):
        for group in range(rng.integers(1, 4)):
            for row in sorted(rng.choice(9, rng.integers(0, 4), replace=False).tolist()):
                n, start = int(rng.integers(1, 6)), float(rng.uniform(0, 100))
                offset = np.arange(n) * 0.1
                if rng.random() < 0.2:
                    offset = np.sort(rng.uniform(0, 9, n))
                out["shard"] += [shard] * n
                out["group"] += [group] * n
                out["row"] += [row] * n
                out["offset_s"] += offset.tolist()
                out["start_s"] += (start + offset).tolist()
                out["subject"] += [names[rng.integers(5)]] * n
                out["record"] += [f"r{rng.integers(9)}"] * n
                out["quality"] += [
                    None if rng.random() < 0.2 else float(np.float32(q)) for q in rng.random(n)
                ]
                for column in ("verdict", "verdict_ecg"):
                    out[column] += rng.choice(VERDICTS, n, p=(0.6, *[0.1] * 4)).tolist()
                out["inverted_ecg"] += (rng.random(n) < 0.5).tolist()
    return pa.table(out, schema=schema(TWO))


class Plain(Corpus):
    def __init__(self) -> None:
        super().__init__("nowhere", {"hash": "0123456789abcdef" * 4})


def merged(table: pa.Table, folder: Path, size: int) -> Index:
    """As `build` would put the table together out of parts of `size` windows (whole row groups)."""
    place = [tuple(p.values()) for p in table.select(["shard", "group"]).to_pylist()]
    borders, low = [0], 0
    for at in range(1, len(place)):
        if place[at] != place[at - 1] and at - low >= size:
            borders.append(low := at)
    (whole := folder / "whole").mkdir()
    (given := folder / "parts").mkdir()
    for number, (a, b) in enumerate(zip(borders, [*borders[1:], len(place)], strict=True)):
        (given / parts.name(number)).write_bytes(parts.encode(table.slice(a, b - a)))
    counts = parts.merge(str(given), len(borders), TWO, whole)
    assert counts[0] == table.num_rows and sorted(f.name for f in whole.iterdir()) == sorted(catalogue.FILES)
    return Index(Plain(), TWO, catalogue.in_memory(whole, 0.1))


def of_old(table: pa.Table, rows: np.ndarray) -> dict[str, list]:
    """What a selection held of these rows, and the counts of their row groups, worked out row by row."""
    told: dict[str, list] = {
        name: [] for name in ("shard", "group", "row", "offset_s", "subject", "has", "id")
    }
    plain = table.to_pylist()
    counts: dict[tuple, int] = {}
    for r in rows.tolist():
        one = plain[r]
        key = (one["shard"], one["group"])
        counts[key] = counts.get(key, 0) + 1
        for name in ("shard", "group", "row", "offset_s"):
            told[name].append(one[name])
        number = int(one["subject"][:16], 16)
        told["subject"].append(number - 2**64 * (number >= 2**63))
        told["has"].append(1 + 2 * (one["verdict_ecg"] == "ok"))
        x = (r + int("0123456789abcdef", 16)) % 2**64
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            x = ((x ^ (x >> shift)) * factor) % 2**64
        x ^= x >> 31
        told["id"].append(x - 2**64 * (x >= 2**63))
    return told | {"counts": list(counts.values()), "places": [list(k) for k in counts]}


def same(source: CorpusShare, selection: Selection, told: dict[str, list]) -> None:
    n = len(told["id"])
    found = selection.windows(order := np.random.default_rng(0).permutation(n))
    for name in ("shard", "group", "row", "offset_s", "subject", "has", "id"):
        assert getattr(found, name).tolist() == [told[name][i] for i in order], name
    assert found.id.dtype == found.subject.dtype == np.int64 and found.has.dtype == np.uint8
    assert source.counts.tolist() == told["counts"] and len(source) == len(selection) == n
    assert [list(p) for p in zip(*(x.tolist() for x in selection.groups()), strict=True)] == told["places"]
    assert source.ids[1:n].tolist() == told["id"][1:] and source.ids[order].tolist() == found.id.tolist()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([1, 4, 1000]), st.sampled_from([None, "train", "val"]))
def test_made_by_hand_or_out_of_parts_an_index_is_the_table_it_was_made_of(
    seed: int, size: int, part: str | None
) -> None:
    table = drawn(seed)
    hand = Index(Plain(), TWO, table)
    with tempfile.TemporaryDirectory() as folder:
        built = merged(table, Path(folder), size)
    assert built.table.cast(schema(TWO)).equals(table)
    plain = table.to_pylist()
    ok = [r["verdict"] == "ok" for r in plain]
    wanted = np.flatnonzero(
        [o and (part is None or assign(r["subject"], HALVES) == part) for o, r in zip(ok, plain, strict=True)]
    )
    target = np.where(np.random.default_rng(seed).random((len(table), 2)) < 0.6, np.nan, 1.0).astype(
        np.float32
    )
    for one in (hand, built, pickle.loads(pickle.dumps(built))):
        rows = one.select(part, HALVES)
        assert rows.tolist() == wanted.tolist()
        told = of_old(table, rows)
        assert one.has(rows).tolist() == told["has"] and one.ids(rows).tolist() == told["id"]
        selection = one.selection(part, HALVES)
        same(selection.source(1.0), selection, told)
        assert selection.rows(np.arange(len(selection))).tolist() == rows.tolist()
        for low, high in np.random.default_rng(seed).integers(0, len(selection) + 2, (5, 2)).tolist():
            assert selection.rows(slice(low, high)).tolist() == rows[low:high].tolist()
        assert selection.subjects() == {plain[r]["subject"] for r in rows}
        assert selection.windows(np.arange(len(selection))).target is None

        labelled = rows[np.isfinite(target[rows]).any(axis=1)]
        few = one.selection(part, HALVES, target)
        same(few.source(1.0), few, of_old(table, labelled))
        np.testing.assert_array_equal(few.windows(np.arange(len(few))).target, target[labelled])

        at = few.prepared_as(Prepared("", (), ())).windows(np.arange(len(few))).place
        places = [(r["shard"], r["group"]) for r in plain]
        rank = [sum(o and p == places[r] for o, p in zip(ok[:r], places[:r], strict=True)) for r in labelled]
        assert at is not None and at.tolist() == rank
    assert hand.summary() == built.summary()
    assert sum(built.summary()["windows"].values()) == len(table)
    used = [r for r in plain if r["verdict"] == r["verdict_ecg"] == "ok"]
    turned = sum(r["inverted_ecg"] for r in used)
    assert built.summary()["inverted ecg"] == {"yes": turned, "no": len(used) - turned}


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 40))
def test_what_is_looked_at_in_one_go_changes_nothing(seed: int, chunk: int) -> None:
    one = Index(Plain(), TWO, drawn(seed))
    with tempfile.TemporaryDirectory() as folder:
        built = merged(one.table, Path(folder), 4)
    whole = one.selection("train", HALVES)
    ledger = lambda ids: expected(Plan((CorpusShare(np.diff(whole.starts), ids),), 3, 4, 7, lanes=2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "CHUNK", chunk)
        patch.setattr(catalogue, "CHUNK", chunk)
        tables = list(built.tables())
        selection = one.selection("train", HALVES)
        assert selection.starts.tolist() == whole.starts.tolist() and selection.subjects() == whole.subjects()
        if len(selection):
            lazy = ledger(selection.source(1.0).ids)
    assert pa.concat_tables([table.cast(schema(TWO)) for table in tables]).equals(one.table)
    for table in tables:  # no more than was asked for, but a row group is whole
        groups = set(zip(table["shard"].to_pylist(), table["group"].to_pylist(), strict=True))
        assert len(table) <= chunk or len(groups) == 1
    if len(whole):
        assert lazy == ledger(one.ids(one.select("train", HALVES)))


def test_a_verdict_that_is_none_is_refused() -> None:
    table = pa.table({**drawn(5).to_pydict(), "verdict": ["good"] * len(drawn(5))}, schema=schema(TWO))
    with pytest.raises(ValueError, match="verdicts are ok, absent, flat, nan, quality, not"):
        Index(Plain(), TWO, table).select(None)
