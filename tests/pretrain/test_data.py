"""Which held-out windows come first, how often their row groups are read, what a window weighs on its way."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from datasets import catalogue, index
from datasets.schema import Corpus, open_corpus
from datasets.split import Split
from datasets.windows import Signal, WindowSpec
from pretrain.config import RunConfig
from pretrain.data import Data, _turn, open_data
from tests.datasets.test_index_files import here
from tests.datasets.test_stream import SPEC, write_corpus
from tests.pretrain.toy import Toy, ToyConfig


def test_each_subject_comes_once_before_any_comes_again() -> None:
    draw = np.random.default_rng(0)
    for n in (0, 1, 40):
        names = draw.integers(0, 7, n)
        wanted = [int((names[:i] == names[i]).sum()) for i in range(n)]
        assert _turn(names).tolist() == wanted


def test_blocks_are_cut_by_the_larger_of_a_windows_two_forms() -> None:
    spec = WindowSpec(signals=(Signal(modality="ecg", rate=100.0, channels=2),), window_s=10.0)
    run: Any = None

    def weighs(*rates: float) -> int:
        corpus = SimpleNamespace(shards=[{"rates": {"ecg": [rate]}} for rate in rates] + [{}])
        found: Any = SimpleNamespace(corpus=corpus)
        return Data(run, spec, [found]).window_bytes

    assert weighs() == weighs(125.0) == 2 * 1000 * 4  # float32 at 100 Hz
    assert weighs(125.0, 1000.0) == 2 * 10_000 * 2  # int16 at 1 kHz


@pytest.mark.parametrize("world", [1, 3])
@pytest.mark.parametrize("windows", [16, 1000])
def test_validation_reads_each_row_group_once_and_gives_the_windows_as_if_read_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: int, windows: int
) -> None:
    monkeypatch.setattr(index, "_judged", here)
    uris = [
        write_corpus(tmp_path / "a", rows=5),
        write_corpus(tmp_path / "b", shards=1, rows=4, first=100),
    ]
    found = [index.build(open_corpus(uri), SPEC, str(tmp_path / "cache")) for uri in uris]
    settings = {"recipe": "tests.pretrain.toy:Toy", "corpus": dict.fromkeys(uris, 0.5), "name": "x"}
    settings |= {"steps": 1, "batch": 12, "validate_windows": windows}
    run = RunConfig.model_validate(settings | {"split": Split(val=0.6, test=0.1)})
    data = Data(run, SPEC, found)

    reads: list[tuple[str, int, int]] = []
    read = Corpus.read_row_group

    def told(corpus: Corpus, shard: int, group: int, columns: Any = None) -> Any:
        reads.append((corpus.uri, shard, group))
        return read(corpus, shard, group, columns)

    for rank in range(world):
        index.few.clear()
        reads.clear()
        with monkeypatch.context() as patch:
            patch.setattr(Corpus, "read_row_group", told)
            given = data.validation(rank, world)
        one_by_one: dict[int, np.ndarray] = {}  # by name
        places: set[tuple[str, int, int]] = set()
        for number, one in enumerate(found):
            rows = data.rows(number, "val")
            its = rows[np.isin(one.ids(rows), given["window"])]
            one_by_one |= {int(one.ids(r)[0]): one.load(r)["ppg"][0] for r in its[:, None]}
            at = one.table.take(its)
            groups = zip(at["shard"].to_pylist(), at["group"].to_pylist(), strict=True)
            places |= {(one.corpus.uri, *group) for group in groups}
        assert len(given["window"]) > len(places) > 2
        assert given["ppg"].tobytes() == b"".join(one_by_one[w].tobytes() for w in given["window"].tolist())
        assert sorted(reads) == sorted(places)  # threads read ahead, so that one may be first


class Timed(Toy):
    """Learns when a window begins."""

    def __init__(self) -> None:
        super().__init__(ToyConfig(), 0)
        self.asked: list[int] = []

    def targets(self, corpus: Corpus, table: Any) -> np.ndarray:
        self.asked.append(len(table))
        return table["start_s"].to_numpy()[:, None]

    def told(self, targets: np.ndarray) -> None:
        pass


def test_targets_are_found_some_row_groups_at_a_time_and_the_whole_table_is_never_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "_judged", here)
    monkeypatch.setattr(catalogue, "CHUNK", 25)
    settings = {"recipe": "tests.pretrain.toy:Toy", "name": "x", "steps": 1, "batch": 12}
    settings |= {"corpus": write_corpus(tmp_path / "a"), "storage": str(tmp_path)}
    data = open_data(RunConfig.model_validate(settings), recipe := Timed())
    assert data.targets is not None and recipe.asked == [24, 24, 24]  # 12 windows a row group
    assert "table" not in vars(data.indexes[0]) and data.targets[0].dtype == np.float32
    np.testing.assert_array_equal(data.targets[0][:, 0], data.indexes[0].table["start_s"])
