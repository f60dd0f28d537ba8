"""Vectors by Ray Data actors: those of the encoder itself, once, and again only where something changed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.errors import PlethoraError
from datasets.schema import open_corpus
from finetune.encoders.bundle import BundleEncoder
from finetune.evaluation import features, vectors
from finetune.evaluation.choose import Places, place
from finetune.evaluation.lengths import fit
from finetune.evaluation.vectors import VectorSource, cached_vectors
from finetune.task import load_task


@pytest.fixture(scope="module")
def placed(ray_session: Any, bundle: str, corpus: str) -> tuple[Places, BundleEncoder, np.ndarray]:
    encoder = BundleEncoder(bundle)
    task = load_task("heart_rate").model_copy(update={"window_s": 10.0, "hop_s": 10.0})
    places = place(open_corpus(corpus), {"a": encoder}, task)
    return places, encoder, places.views["a"].select(None)


def sources(encoder: BundleEncoder) -> list[VectorSource]:
    uri, mode, hash_, how = encoder.bundle.uri, encoder.mode, encoder.bundle.hash, fit(encoder, 10.0)
    return [
        VectorSource("a", "a", uri, mode, hash_, how),
        VectorSource("b", "a", uri, mode, hash_, how, untrained=True, seed=3),
        VectorSource("handcrafted"),
    ]


def test_they_are_the_encoders_own_and_are_computed_once(
    ray_session: Any,
    placed: tuple[Places, BundleEncoder, np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    places, encoder, rows = placed
    calls: list[int] = []
    plain = vectors._computed
    monkeypatch.setattr(
        vectors, "_computed", lambda jobs, at: calls.extend(len(j.new) for j in jobs) or plain(jobs, at)
    )
    cache = str(tmp_path)
    some = cached_vectors(places, rows[:40], sources(encoder), cache)
    np.testing.assert_allclose(some["a"], encoder(places.views["a"].load(rows[:40])["ppg"]), atol=1e-5)
    assert places.pulses is not None
    wave = places.pulses.load(rows[:40])["ppg"][:, 0]
    np.testing.assert_allclose(some["handcrafted"], features.handcrafted(wave, 50.0), atol=1e-6)
    assert not np.allclose(some["a"], some["b"])
    assert calls == [40, 40] and len(list(tmp_path.iterdir())) == 3

    again = cached_vectors(places, rows[:40], sources(encoder), cache)
    assert calls == [40, 40]
    for name, x in some.items():
        np.testing.assert_array_equal(again[name], x)

    more = cached_vectors(places, rows[20:60], sources(encoder), cache)
    assert calls == [40, 40, 20, 20]  # only what is new
    np.testing.assert_array_equal(more["a"][:20], some["a"][20:])


def test_the_name_of_a_cached_file_follows_all_that_the_vectors_depend_on(
    placed: tuple[Places, BundleEncoder, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    places, encoder, _ = placed
    view = places.views["a"]
    one = sources(encoder)[0]
    changed = [
        VectorSource("a", "a", one.uri, one.mode, "0" * 64, one.fit),
        VectorSource("a", "a", one.uri, "ecg", one.hash, one.fit),
        VectorSource("a", "a", one.uri, one.mode, one.hash, fit(encoder, 30.0)),
        VectorSource("a", "a", one.uri, one.mode, one.hash, one.fit, untrained=True),
        VectorSource("a", "a", one.uri, one.mode, one.hash, one.fit, untrained=True, seed=1),
    ]
    names = {source.key(view.corpus, view.spec) for source in [one, *changed]}
    names.add(one.key(view.corpus, view.spec.model_copy(update={"hop_s": 5.0})))
    monkeypatch.setattr(vectors, "code", lambda: "another filter")
    names.add(one.key(view.corpus, view.spec))
    assert len(names) == 8
    moved = VectorSource("z", "a", "/elsewhere/bundle", one.mode, one.hash, one.fit)  # the same bundle's copy
    assert moved.key(view.corpus, view.spec) == one.key(view.corpus, view.spec)


def test_a_corrupt_file_is_one_clear_line(
    ray_session: Any, placed: tuple[Places, BundleEncoder, np.ndarray], tmp_path: Path
) -> None:
    places, encoder, rows = placed
    one = sources(encoder)[:1]
    view = places.views["a"]
    (tmp_path / f"{one[0].key(view.corpus, view.spec)}.parquet").write_bytes(b"not parquet")
    with pytest.raises(PlethoraError, match="is corrupt: delete it"):
        cached_vectors(places, rows[:4], one, str(tmp_path))


def test_actors_that_take_over_give_the_same_vectors_in_the_same_order(
    ray_session: Any,
    placed: tuple[Places, BundleEncoder, np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    places, encoder, rows = placed
    alone = cached_vectors(places, rows[:40], sources(encoder), str(tmp_path / "alone"))
    monkeypatch.setattr(vectors, "CHUNK", 16)
    monkeypatch.setattr(vectors, "PATIENCE_S", -1.0)  # after the first 16 windows
    shared = cached_vectors(places, rows[:40], sources(encoder), str(tmp_path / "shared"))
    assert list(shared) == list(alone)
    for name, x in alone.items():
        np.testing.assert_allclose(shared[name], x, rtol=1e-4, atol=1e-5)
