"""Index and stream on real Ray over a corpus whose samples say where they come from."""

import hashlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import PlethoraError
from datasets import index, raw, stream
from datasets.plan import CorpusShare, Part, Plan
from datasets.schema import content_hash, open_corpus, row_schema
from datasets.signal import Signal
from datasets.split import Split
from datasets.windows import WindowSpec

RATE, ROW_S = 10.0, 65.0
SPEC = WindowSpec(signals=(Signal(modality="ppg", rate=RATE),), window_s=10.0)


def write_corpus(folder: Path, shards: int = 3, groups: int = 2, rows: int = 2, first: int = 0) -> str:
    """Rows of 65 s (6 windows and a rest); every sample of a row is a saw over the row's own number."""
    (folder / "shards").mkdir(parents=True)
    number, entries = first, []
    for shard in range(shards):
        path = folder / "shards" / f"{shard}.parquet"
        with pq.ParquetWriter(path, row_schema(["ppg"])) as writer:
            for _ in range(groups):
                table = []
                for _ in range(rows):
                    x = (number * 100 + np.arange(int(ROW_S * RATE)) // 10).astype("<i2")
                    row = {"subject": hashlib.sha256(b"%d" % number).hexdigest()[:32], "record": f"r{number}"}
                    row |= {"start_s": 0.0, "duration_s": ROW_S, "ppg": x.tobytes(), "ppg_rate": RATE}
                    table.append(
                        row | {"ppg_scale": 1.0, "ppg_offset": 0.0, "ppg_unit": "x", "ppg_channels": 1}
                    )
                    number += 1
                writer.write_table(pa.Table.from_pylist(table, row_schema(["ppg"])))
        entries.append(
            {"path": f"shards/{shard}.parquet", "rows": groups * rows, "row_groups": [rows] * groups}
        )
    manifest = {"version": 1, "modalities": ["ppg"], "shards": entries, "key_id": f"{first}"}
    manifest |= dict.fromkeys(("source", "licence", "terms", "citation", "id_space"), "test")
    manifest |= {"subjects_published": True, "access": "open"}
    (folder / "corpus.json").write_text(json.dumps(manifest | {"hash": content_hash(manifest)}))
    return str(folder)


@pytest.fixture(scope="module")
def found(ray_session, tmp_path_factory) -> list[index.Index]:
    home = tmp_path_factory.mktemp("corpora")
    uris = [write_corpus(home / "a"), write_corpus(home / "b", shards=1, rows=3, first=100)]
    return [index.build(open_corpus(uri), SPEC) for uri in uris]


class Slow(stream.Reader):
    """Delays drawn afresh for every block, so that blocks finish out of order."""

    def read(self, number: int, ahead: bool = True) -> dict:
        time.sleep(np.random.default_rng().uniform(0, 0.2))
        return super().read(number, ahead)


class Signed(stream.Reader):
    """Says of each window which process read it."""

    def read(self, number: int, ahead: bool = True) -> dict:
        given = super().read(number, ahead)
        return given | {"reader": np.full(len(given["at"]), os.getpid())}


class Late(stream.Reader):
    """Gives every window a step too late."""

    def read(self, number: int, ahead: bool = True) -> dict:
        given = super().read(number, ahead)
        return given | {"step": given["step"] + 1}


class Told(stream.Reader):
    """Says that it reads."""

    reads = threading.Event()

    def read(self, number: int, ahead: bool = True) -> dict:
        self.reads.set()
        return super().read(number, ahead)


class Dying(stream.Reader):
    """Ends once as by `kill -9`, at its second block."""

    def read(self, number: int, ahead: bool = True) -> dict:
        mark = Path(self.selections[0].corpus.uri) / "killed"
        if number > 1 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(number, ahead)


def consume(  # type: ignore[no-untyped-def]
    found, world: int, actors: int = 1, reader=stream.Reader, self_read_mb=0.0, as_raw=False, **more
) -> list[list[dict]]:
    """What each worker sees, batch by batch, all of them at once."""
    how = stream.Actors(actors, 1, self_read_mb)
    plan, selections = planned(found, world, **more)

    def worker(rank: int) -> list[dict]:
        got = stream.batches(plan, rank, selections, SPEC, 12 // world, 1, how, as_raw, reader)
        return [{name: column.numpy().copy() for name, column in batch.items()} for batch in got]

    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(worker, range(world)))


def planned(found: list[index.Index], world: int, start: int = 0, weighs: float = 2.4e6) -> tuple[Plan, list]:
    selections = [i.selection(None, Split()) for i in found]
    made = [selection.source(weight) for selection, weight in zip(selections, (0.7, 0.3), strict=True)]
    sources = tuple(CorpusShare(source.counts, source.ids[:], source.weight) for source in made)
    # blocks of two or three steps
    return Plan(sources, 5, 12, 11, world, start, lanes=4, window_bytes=int(weighs)), selections


def test_the_index_lists_every_window_that_fits(found) -> None:
    assert [len(i.table) for i in found] == [12 * 6, 6 * 6]
    assert set(found[0].table["verdict"].to_pylist()) == {"ok"}
    assert found[0].table["offset_s"].to_pylist()[:7] == [0, 10, 20, 30, 40, 50, 0]


def test_window_ids_are_unique_over_corpora(found) -> None:
    ids = np.concatenate([i.ids(np.arange(len(i.table))) for i in found])
    assert len(np.unique(ids)) == len(ids)


def test_a_cached_index_is_read_and_equals_the_built_one(found, tmp_path) -> None:
    built = index.build(found[0].corpus, SPEC, str(tmp_path))
    cached = index.build(found[0].corpus, SPEC, str(tmp_path))
    assert built.table.equals(cached.table) and len(list(tmp_path.iterdir())) == 1


def test_an_index_holds_names_and_verdicts_as_codes_cached_or_not(found, tmp_path) -> None:
    tables = [found[0].table, *(index.build(found[0].corpus, SPEC, str(tmp_path)).table for _ in range(2))]
    for table in tables:
        for name in ("subject", "record", "verdict"):
            assert pa.types.is_dictionary(table.schema.field(name).type)


def test_the_windows_of_an_index_come_in_the_order_of_their_places_and_their_text_as_codes(found) -> None:
    assert not any(pa.types.is_string(field.type) for field in found[0].table.schema)
    place = [found[0].table[name].to_pylist() for name in ("shard", "group", "row", "offset_s")]
    assert list(zip(*place, strict=True)) == sorted(zip(*place, strict=True))


def test_row_groups_stay_apart_however_many_shards_there_are(found) -> None:
    table = found[0].table
    shards = pa.array(table["shard"].to_numpy() * 4096, pa.int32())
    far = table.set_column(table.column_names.index("shard"), "shard", shards)
    apart = index.Index(found[0].corpus, found[0].spec, far).selection(None, Split()).source(1.0)
    near = found[0].selection(None, Split()).source(1.0)
    assert np.array_equal(apart.counts, near.counts) and len(apart.counts) > 2


def test_the_split_puts_every_subject_on_one_side(found) -> None:
    sides = [found[0].select(side, Split(val=0.3, test=0.3)) for side in ("train", "val", "test")]
    assert sorted(np.concatenate(sides)) == list(range(72))
    subjects = [set(found[0].table["subject"].take(rows).to_pylist()) for rows in sides]
    assert not (subjects[0] & subjects[1] or subjects[0] & subjects[2] or subjects[1] & subjects[2])


def test_a_corpus_without_the_modality_is_refused_by_name(found) -> None:
    with pytest.raises(PlethoraError, match=r"has no ecg \(it has ppg\)"):
        index.build(found[0].corpus, WindowSpec(signals=(Signal(modality="ecg", rate=10),), window_s=5))


@pytest.mark.parametrize(
    ("world", "actors", "reader"),
    [(1, 1, Slow), (2, 1, stream.Reader), (2, 2, Slow), (1, 3, Slow), (1, 0, Slow), (2, 0, stream.Reader)],
)
def test_what_a_worker_sees_is_the_plan_whatever_the_actors_and_their_timing(
    found, world, actors, reader
) -> None:
    plan, _ = planned(found, world)
    seen = consume(found, world, actors, reader)
    expected: list[list] = [[] for _ in range(world)]
    for block in plan.blocks():
        rows = plan.rows(block)
        expected[block.rank] += zip(rows.step, rows.source, rows.position, strict=True)
    for rank in range(world):
        step, window, source = (
            np.concatenate([b[c] for b in seen[rank]]) for c in ("step", "window", "source")
        )
        assert step.tolist() == [s for s, _, _ in expected[rank]]
        assert source.tolist() == [s for _, s, _ in expected[rank]]
        assert window.tolist() == [plan.sources[s].ids[p] for _, s, p in expected[rank]]


def test_a_killed_transform_actor_changes_nothing_that_workers_see(found) -> None:
    whole, broken = consume(found, 2, actors=2), consume(found, 2, 2, Dying)
    assert (Path(found[0].corpus.uri) / "killed").exists()
    for a, b in zip(whole, broken, strict=True):
        assert [x["window"].tolist() for x in a] == [x["window"].tolist() for x in b]


@pytest.mark.parametrize("actors", [0, 1])
def test_windows_carry_the_samples_of_their_place(found, actors) -> None:
    plan, _ = planned(found, 1)
    for batch in consume(found, 1, actors)[0]:
        for x, source, window in zip(batch["ppg"], batch["source"], batch["window"], strict=True):
            position = int(np.flatnonzero(plan.sources[source].ids == window)[0])
            row = position // 6 + (100 if source else 0)
            want = np.repeat(row * 100 + (position % 6) * 10 + np.arange(10), 10).astype("<i2")
            assert x.shape == (1, 100) and (x[0] == want).all()


def test_a_resumed_stream_is_the_rest_of_the_unbroken_one(found) -> None:
    whole, rest = consume(found, 2), consume(found, 2, start=5)
    for rank in range(2):
        assert [b["window"].tolist() for b in rest[rank]] == [b["window"].tolist() for b in whole[rank][5:]]


@pytest.mark.parametrize("actors", [0, 1])
def test_a_stream_with_nothing_left_is_empty_and_does_not_hang(found, actors) -> None:
    plan, selections = planned(found, 2, start=11)
    assert not list(stream.batches(plan, 1, selections, SPEC, 6, 1, stream.Actors(actors, self_read_mb=0)))


def test_batches_refuse_windows_of_another_step(found) -> None:
    plan, selections = planned(found, 1, start=3)
    with pytest.raises(PlethoraError, match=r"delivered step \[4\] where 3 was due"):
        list(stream.batches(plan, 0, selections, SPEC, 12, 1, stream.Actors(0), reader=Late))


def test_batches_cut_out_of_blocks_are_their_rows_in_order() -> None:
    rng = np.random.default_rng(7)
    for size in (1, 3, 8):
        lengths = rng.integers(1, 12, 20).tolist()
        rows = np.split(np.arange(sum(lengths)), np.cumsum(lengths)[:-1])
        got = [x["step"].tolist() for x in stream.cut(({"step": r} for r in rows), size)]
        assert all(len(x) == size for x in got)
        assert [i for x in got for i in x] == list(range(sum(lengths) // size * size))


def test_workers_that_read_for_themselves_begin_before_they_are_asked_and_without_ray_data(
    found, monkeypatch
) -> None:
    plan, selections = planned(found, 1)
    monkeypatch.setattr(stream, "dataset", None)
    given = stream.batches(plan, 0, selections, SPEC, 12, 1, stream.Actors(0), reader=Told)
    assert Told.reads.wait(10)
    assert len(list(given)) == 11


def test_what_a_thread_makes_begins_before_it_is_asked_for_and_its_failure_comes_in_its_place() -> None:
    read = threading.Event()

    def blocks() -> Iterator[int]:
        read.set()
        yield from (0, 1, 2)

    items = stream.threaded(blocks())
    assert read.wait(10)
    assert list(items) == [0, 1, 2]
    broken = stream.threaded(int(x) for x in ("1", "no"))
    assert next(broken) == 1
    with pytest.raises(ValueError, match="no"):
        next(broken)
    first = stream.threaded(int(x) for x in ("no",))
    with pytest.raises(ValueError, match="no"):
        next(first)


@pytest.mark.parametrize("actors", [1, 2])
def test_a_worker_reads_the_first_blocks_itself_and_its_actors_each_their_lanes(found, actors) -> None:
    whole = consume(found, 1, 0)[0]
    plan, _ = planned(found, 1)
    how = stream.Actors(actors, 1, self_read_mb=13 * plan.window_bytes / 1e6)
    count = stream.self_read_blocks(plan, how)
    assert 0 < count < plan.count()
    shared = consume(found, 1, actors, Signed, self_read_mb=how.self_read_mb)[0]
    readers = np.concatenate([batch.pop("reader") for batch in shared])
    for a, b in zip(whole, shared, strict=True):
        assert a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)
    here = plan.block(0, count).first
    assert set(readers[:here]) == {os.getpid()} and os.getpid() not in readers[here:]
    who = []
    for k in range(actors):
        at = [
            plan.rows(plan.block(0, n), Part(k, actors)).at + plan.block(0, n).first
            for n in range(plan.count())
        ]
        who.append(set(readers[[x for x in np.concatenate(at) if x >= here]]))
    assert all(len(one) == 1 for one in who) and len(set.union(*who)) == actors


def test_transform_actors_run_on_nodes_with_the_labels_asked_for(found, ray_session) -> None:
    plan, selections = planned(found, 1)
    here = {"ray.io/node-id": ray_session.nodes()[0]["NodeID"]}
    how = stream.Actors(1, 1, 0, here)
    asked = stream.dataset(stream.Reader, (plan, 0, selections, SPEC, False, stream.WHOLE), 0, how)
    assert asked._logical_plan.dag.ray_remote_args["label_selector"] == here
    assert len(list(stream.batches(plan, 0, selections, SPEC, 12, 1, how))) == 11


@pytest.mark.parametrize("actors", [0, 2])
def test_windows_that_travel_raw_are_those_that_actors_prepare(found, actors) -> None:
    plain = consume(found, 1, 0)[0]
    carried = consume(found, 1, actors, as_raw=True)[0]
    for a, b in zip(plain, carried, strict=True):
        assert b["ppg"].dtype == np.int16
        again = raw.prepared(b, SPEC)
        assert np.array_equal(a["ppg"], again["ppg"]) and again["ppg"].dtype == np.float32
        assert all(np.array_equal(x, b[name]) for name, x in a.items() if name != "ppg")


def test_raw_windows_of_several_rates_are_joined_and_filled_up_with_zeros() -> None:
    blocks = [
        {"step": np.zeros(3, int), "ppg": np.full((3, 1, 4), 1, np.int16)},
        {"step": np.zeros(4, int), "ppg": np.full((4, 1, 6), 2, np.int16)},
    ]
    first, second, third = (b["ppg"].numpy()[:, 0] for b in stream.cut(iter([*blocks, blocks[0]]), 3))
    assert first.tolist() == [[1] * 4] * 3 and second.tolist() == [[2] * 6] * 3
    assert third.tolist() == [[2] * 6, [1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 0, 0]]


def test_blocks_of_which_an_actor_reads_nothing_are_whole(found) -> None:
    alone, shared = (consume(found, 2, actors, weighs=64e6)[1] for actors in (0, 2))  # a window a block
    for a, b in zip(alone, shared, strict=True):
        assert a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def test_more_actors_than_a_worker_has_lanes_are_named(found) -> None:
    plan, selections = planned(found, 2)
    with pytest.raises(
        PlethoraError, match=r"stream.actors = 3 is more than the 2 lanes .* stream.lanes = 4"
    ):
        stream.batches(plan, 0, selections, SPEC, 6, 1, stream.Actors(3, self_read_mb=0))


def test_row_groups_that_are_spilled_to_disk_give_the_same_windows(found, monkeypatch) -> None:
    whole = consume(found, 2, actors=0)
    monkeypatch.setattr(index.row_groups, "room", 0)
    index.row_groups.clear()
    spilled = consume(found, 2, actors=0)
    for a, b in zip(whole, spilled, strict=True):
        for x, y in zip(a, b, strict=True):
            assert x.keys() == y.keys() and all(np.array_equal(x[name], y[name]) for name in x)
    index.row_groups.clear()


def test_a_reader_holds_no_row_group_that_it_is_done_with(found) -> None:
    plan, selections = planned(found, 1)
    index.row_groups.clear()
    reader = stream.Reader(plan, 0, selections, SPEC)
    last = plan.count() - 1
    for number in range(last + 1):
        reader.read(number)
        block = plan.block(0, number)
        # and what it began to read of the next block
        ahead = plan.rows(plan.block(0, number + 1)) if number < last else None
        more = set() if ahead is None else groups_of(plan, ahead)
        assert len(index.row_groups._results) == len(plan.still_open(block) | more)
    index.row_groups.clear()


def groups_of(plan: Plan, rows) -> set[tuple[int, int]]:  # type: ignore[no-untyped-def]
    """(source, row group) of these windows."""
    return {
        (int(s), int(np.searchsorted(plan.sources[s].starts, p, "right")) - 1)
        for s, p in zip(rows.source, rows.position, strict=True)
    }
