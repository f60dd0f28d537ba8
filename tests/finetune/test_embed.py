"""Corpora and arrays → Parquet of vectors."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster import storage
from cluster.errors import PlethoraError
from datasets.schema import open_corpus, waveform
from finetune.commands.embed import Embed, run
from finetune.encoders.bundle import BundleEncoder
from finetune.reports.sheet import write
from tests.finetune import tiny


def embed(bundle: str, source: str, out: str, **more: Any) -> dict[str, Any]:
    return write(run(Embed(bundle, source, out, **more)))


@pytest.fixture
def arrays(tmp_path: Path) -> tuple[Path, np.ndarray]:
    x = np.random.default_rng(0).normal(size=(3, 3750)).cumsum(1)
    np.savez(tmp_path / "x.npz", ppg=x, rate=125)
    return tmp_path / "x.npz", x


def vectors(path: Path) -> np.ndarray:
    return np.stack(pq.read_table(path)["embedding"].to_numpy())


def test_a_corpus_gives_a_row_a_window_equal_to_the_encoder_on_its_raw_samples(
    ray_session: Any, bundle: str, corpus: str, tmp_path: Path
) -> None:
    counts = embed(bundle, corpus, str(tmp_path / "e.parquet"), window_s=20)
    table = pq.read_table(tmp_path / "e.parquet")
    assert table.num_rows == counts["windows"] > 50
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), 24)
    assert table.schema.names == ["subject", "record", "start_s", "embedding"]
    assert table.schema.metadata[b"plethora.bundle"].decode() == bundle
    rows = open_corpus(corpus).read_row_group(0, 0).to_pylist()
    encoder, checked = BundleEncoder(bundle), 0
    for line in table.slice(0, 20).to_pylist():
        for row in rows:
            at = line["start_s"] - row["start_s"]
            if row["record"] == line["record"] and 0 <= at <= row["duration_s"] - 20:
                x = waveform(row["ppg"], row["ppg_scale"], row["ppg_offset"], 1)[:, round(at * 125) :][
                    :, :2500
                ]
                np.testing.assert_allclose(encoder.embed(x[None], 125)[0], line["embedding"], atol=1e-4)
                checked += 1
    assert checked >= 15


def test_arrays_give_the_encoders_own_vectors(
    bundle: str, arrays: tuple[Path, np.ndarray], tmp_path: Path
) -> None:
    path, x = arrays
    counts = embed(bundle, str(path), str(tmp_path / "e.parquet"))
    np.testing.assert_allclose(
        vectors(tmp_path / "e.parquet"), BundleEncoder(bundle).embed(x[:, None], 125), atol=1e-6
    )
    assert (counts["windows"], counts["window_s"]) == (3, 30)


def test_one_long_array_is_cut_into_windows_and_the_unused_end_is_said(bundle: str, tmp_path: Path) -> None:
    x = np.random.default_rng(1).normal(size=125 * 150 + 250).cumsum()
    np.savez(tmp_path / "x.npz", ppg=x, rate=125.0)
    counts = embed(bundle, str(tmp_path / "x.npz"), str(tmp_path / "e.parquet"), window_s=20, hop_s=10)
    table = pq.read_table(tmp_path / "e.parquet")
    assert table["start_s"].to_pylist() == [10.0 * i for i in range(14)]
    assert counts["unused_tail_s"] == 2
    third = BundleEncoder(bundle).embed(x[None, None, 2500:5000], 125)
    np.testing.assert_allclose(vectors(tmp_path / "e.parquet")[2], third[0], atol=1e-6)
    counts = embed(bundle, str(tmp_path / "x.npz"), str(tmp_path / "own.parquet"))
    assert (counts["windows"], counts["window_s"], counts["unused_tail_s"]) == (2, 60, 32)


def test_arrays_under_the_minimum_are_reflected_as_the_bundle_says(bundle: str, tmp_path: Path) -> None:
    x = np.random.default_rng(1).normal(size=150)
    np.savez(tmp_path / "x.npz", ppg=x, rate=125)
    embed(bundle, str(tmp_path / "x.npz"), str(tmp_path / "e.parquet"))
    assert vectors(tmp_path / "e.parquet").shape == (1, 24)


def test_an_existing_file_is_replaced_only_by_force(
    bundle: str, arrays: tuple[Path, np.ndarray], tmp_path: Path
) -> None:
    out = tmp_path / "e.parquet"
    out.write_bytes(b"mine")
    with pytest.raises(PlethoraError, match=r"exists.*--force"):
        embed(bundle, str(arrays[0]), str(out))
    assert out.read_bytes() == b"mine"
    embed(bundle, str(arrays[0]), str(out), force=True)
    assert vectors(out).shape == (3, 24)


def test_a_failing_run_leaves_no_file_and_keeps_the_old_one(bundle: str, tmp_path: Path) -> None:
    x = np.ones((3, 500))
    x[2, 7] = np.nan
    np.savez(tmp_path / "x.npz", ppg=x, rate=125)
    out = tmp_path / "out" / "e.parquet"
    with pytest.raises(PlethoraError, match=r"x.npz, row 2: .*NaN"):
        embed(bundle, str(tmp_path / "x.npz"), str(out))
    assert not out.parent.exists() or not list(out.parent.iterdir())


@pytest.mark.parametrize(
    ("held", "said"),
    [
        ({"ppg": np.zeros(500)}, "has no rate"),
        ({"x": np.zeros(500), "rate": 125}, "has no ppg .only x, rate."),
        ({"ppg": np.array([{"a": 1}], dtype=object), "rate": 125}, "cannot be read as plain arrays"),
        ({"ppg": np.zeros((2, 3, 4)), "rate": 125}, "must be .samples,. or .n, samples. numbers"),
        ({"ppg": np.array(["a"]), "rate": 125}, "numbers"),
        ({"ppg": np.zeros(500), "rate": 0}, "rate 0 is not a sampling rate"),
        ({"ppg": np.zeros(500), "rate": 12}, "ppg at 12 Hz: the encoder has a band up to 8 Hz"),
    ],
)
def test_arrays_that_cannot_be_used_are_one_clear_line(
    bundle: str, tmp_path: Path, held: dict[str, Any], said: str
) -> None:
    np.savez(tmp_path / "x.npz", **held)
    with pytest.raises(PlethoraError, match=said) as refused:
        embed(bundle, str(tmp_path / "x.npz"), str(tmp_path / "e.parquet"))
    assert "\n" not in str(refused.value)


def test_a_file_that_is_no_npz_and_one_that_is_not_there_are_said(bundle: str, tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(b"not a zip")
    with pytest.raises(PlethoraError, match="cannot be read as plain arrays"):
        embed(bundle, str(tmp_path / "x.npz"), str(tmp_path / "e.parquet"))
    with pytest.raises(PlethoraError, match="no file"):
        embed(bundle, str(tmp_path / "y.npz"), str(tmp_path / "e.parquet"))


def test_windows_that_the_encoder_cannot_take_are_refused(
    ray_session: Any, bundle: str, corpus: str, arrays: tuple[Path, np.ndarray], tmp_path: Path
) -> None:
    out = str(tmp_path / "e.parquet")
    for window_s, said in ((90.0, "longer than the encoder takes"), (1.0, "under the encoder's minimum")):
        with pytest.raises(PlethoraError, match=said):
            embed(bundle, corpus, out, window_s=window_s)
    with pytest.raises(PlethoraError, match="holds 30 s per row, less than --window-s 40"):
        embed(bundle, str(arrays[0]), out, window_s=40)
    with pytest.raises(PlethoraError, match="--hop-s 0"):
        embed(bundle, str(arrays[0]), out, hop_s=0)


def test_bundle_and_output_may_lie_in_a_bucket(
    moto: dict[str, str], arrays: tuple[Path, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    uri = tiny.make_bundle(tmp_path / "files", "s3://plethora/run/bundle")
    out = "s3://plethora/vectors/e.parquet"
    embed(uri, str(arrays[0]), out)
    with pytest.raises(PlethoraError, match="exists"):
        embed(uri, str(arrays[0]), out)
    table = pq.read_table(pa.BufferReader(storage.read_bytes(out)))
    expected = BundleEncoder(uri).embed(arrays[1][:, None], 125)
    np.testing.assert_allclose(np.stack(table["embedding"].to_numpy()), expected, atol=1e-6)


def test_two_signals_of_an_array_file_are_embedded_together(pair_bundle: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    x = {"ppg": rng.normal(size=(2, 125 * 50)).cumsum(1), "ecg": rng.normal(size=(2, 250 * 50))}
    np.savez(tmp_path / "x.npz", **x, ppg_rate=125, ecg_rate=250)
    out = str(tmp_path / "e.parquet")
    counts = embed(pair_bundle, str(tmp_path / "x.npz"), out, window_s=20, hop_s=15, mode="ppg+ecg")
    assert (counts["windows"], counts["window_s"], counts["unused_tail_s"]) == (6, 20, 0)
    second = {m: y[:, None, 15 * r : 35 * r] for (m, y), r in zip(x.items(), (125, 250), strict=True)}
    expected = BundleEncoder(pair_bundle, "ppg+ecg").embed(second, {"ppg": 125.0, "ecg": 250.0})
    np.testing.assert_allclose(vectors(tmp_path / "e.parquet")[[1, 4]], expected, atol=1e-6)

    same = {"ppg": x["ppg"], "ecg": x["ecg"][:, ::2]}
    np.savez(tmp_path / "same.npz", **same, rate=125)
    embed(pair_bundle, str(tmp_path / "same.npz"), str(tmp_path / "s.parquet"), mode="ppg+ecg")
    expected = BundleEncoder(pair_bundle, "ppg+ecg").embed({m: y[:, None] for m, y in same.items()}, 125)
    np.testing.assert_allclose(vectors(tmp_path / "s.parquet"), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("held", "said"),
    [
        ({"ppg": np.zeros(500), "ecg": np.zeros(500), "ppg_rate": 125}, "has no rate .only ppg, ecg, ppg_r"),
        ({"ppg": np.zeros(500), "rate": 125}, r"has no ecg .*ppg_rate=hertz, ecg_rate=hertz"),
        ({"ppg": np.zeros(500), "ecg": np.zeros(800), "rate": 125}, "ppg 1 rows of 4 s, ecg 1 rows of 6.4"),
        ({"ppg": np.zeros((2, 500)), "ecg": np.zeros(500), "rate": 125}, "ppg 2 rows of 4 s, ecg 1 rows"),
    ],
)
def test_two_signals_that_do_not_fit_together_are_one_clear_line(
    pair_bundle: str, tmp_path: Path, held: dict[str, Any], said: str
) -> None:
    np.savez(tmp_path / "x.npz", **held)
    with pytest.raises(PlethoraError, match=said) as refused:
        embed(pair_bundle, str(tmp_path / "x.npz"), str(tmp_path / "e.parquet"), mode="ppg+ecg")
    assert "\n" not in str(refused.value)


def test_a_corpus_is_embedded_where_it_holds_both_signals(
    ray_session: Any, pair_bundle: str, paired_corpus: str, corpus: str, tmp_path: Path
) -> None:
    embed(pair_bundle, paired_corpus, str(tmp_path / "e.parquet"), window_s=20, mode="ppg+ecg")
    found = pq.read_table(tmp_path / "e.parquet").to_pylist()
    assert len(found) > 30
    encoder, checked = BundleEncoder(pair_bundle, "ppg+ecg"), 0
    rows = open_corpus(paired_corpus).read_row_group(0, 0).to_pylist()
    for line in found[:15]:
        for row in rows:
            at = line["start_s"] - row["start_s"]
            inside = row["record"] == line["record"] and -1e-6 <= at <= row["duration_s"] - 20
            if inside and row["ppg"] and row["ecg"]:
                x = {}
                for m, rate in (("ppg", 125), ("ecg", 250)):
                    wave = waveform(row[m], row[f"{m}_scale"], row[f"{m}_offset"], 1)
                    x[m] = wave[None, :, round(at * rate) :][..., : 20 * rate]
                vector = encoder.embed(x, {"ppg": 125.0, "ecg": 250.0})[0]
                np.testing.assert_allclose(vector, line["embedding"], atol=2e-4)
                checked += 1
    assert checked >= 8
    with pytest.raises(PlethoraError, match=r"has no ecg .it has ppg., which mode 'ppg\+ecg'"):
        embed(pair_bundle, corpus, str(tmp_path / "n.parquet"), mode="ppg+ecg")
