"""The way from a bundle and a corpus to a privacy card, and what the card may say."""

import contextlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cluster import bundle as bundles
from cluster.errors import PlethoraError
from datasets import index as indexes
from datasets.index import Index
from datasets.judge import schema
from datasets.schema import Corpus, open_corpus
from datasets.split import corpus_subjects
from datasets.windows import WindowSpec
from finetune.__main__ import main
from finetune.commands import privacy as command
from finetune.encoders.bundle import BundleEncoder
from finetune.evaluation import identify, inversion, privacy_data
from finetune.evaluation import privacy as statistics
from finetune.evaluation.people import NOBODY
from finetune.evaluation.privacy import PrivacyOutcome
from finetune.metrics import Interval
from finetune.reports import privacy_plots, privacy_report, sheet
from tests.finetune import tiny

ROOT = Path(__file__).parents[2]


def scanned(corpus: Corpus, spec: WindowSpec) -> Index:
    """What `datasets.index.build` gives, without Ray."""
    places = [(s, g) for s, e in enumerate(corpus.shards) for g in range(len(e["row_groups"]))]
    batch = dict(zip(("shard", "group"), np.array(places).T, strict=True))
    table = pa.concat_tables([schema(spec).empty_table(), indexes._scan(batch, corpus, spec)])
    keys = [(c, "ascending") for c in ("shard", "group", "row", "offset_s")]
    return Index(corpus, spec, table.sort_by(keys).combine_chunks())


def privacy(bundle: str, corpus: str, **options: Any) -> dict[str, Any]:
    return sheet.write(command.run(command.Privacy(bundle, corpus, **options)))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No Ray, and decoders that hardly learn."""
    monkeypatch.setattr(command, "build", scanned)
    monkeypatch.setattr(command, "session", lambda **_: contextlib.nullcontext())
    monkeypatch.setattr(inversion, "STEPS", 20)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("privacy") / "card"


@pytest.fixture(scope="module")
def results(ray_session: Any, bundle: str, corpus: str, out: Path) -> dict[str, Any]:
    given = ["--bundle", bundle, "--corpus", corpus, "--window-s", "10", "--out", str(out), "--folds", "3"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inversion, "STEPS", 40)
        return main(["privacy", *given])


@pytest.fixture(scope="module")
def outcome(bundle: str, corpus: str) -> PrivacyOutcome:
    """The same with decoders that hardly learn."""
    encoder = BundleEncoder(bundle)
    index = scanned(open_corpus(corpus), WindowSpec(signals=encoder.signals, window_s=10))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inversion, "STEPS", 20)
        return statistics.outcome(encoder, index, NOBODY, [], folds=3, seed=0)


def card_of(outcome: PrivacyOutcome) -> str:
    return sheet.markdown(privacy_report.card(outcome, None, None))


def test_the_command_writes_card_results_and_pictures_and_publishes_them_beside_the_bundle(
    results: dict[str, Any], out: Path, bundle: str
) -> None:
    names = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    pictures = {"plots/rank.png", "plots/inversion_ppg.png"}
    assert names == {"privacy.md", "report.html", "results.json"} | pictures
    assert bundles.verify(results["published"])["kind"] == "evaluation"
    assert Path(results["published"]).parent == Path(bundle).parent / "evaluations"
    assert json.loads((out / "results.json").read_text())["verdict"] == results["verdict"]


def test_every_kind_of_vector_has_its_curve_and_chance_stands_beside_it(
    results: dict[str, Any], out: Path
) -> None:
    found = results["identification"]
    assert [row["name"] for row in found["rows"]] == list(identify.LABELS)
    assert found["sizes"] == [2, 5, 10, 12] and found["notes"] == {}
    for row in found["rows"]:
        values = [i["value"] for i in row["rank1"]]
        assert values == sorted(values, reverse=True)
        assert all(i["low"] <= i["value"] <= i["high"] for i in [*row["rank1"], *row["rank5"], row["eer"]])
    card = (out / "privacy.md").read_text()
    assert "| 10 | 10 % |" in card and "| 12 | 8.3 % |" in card


def test_an_encoder_of_the_pulses_rate_knows_people_again_and_gives_their_spectrum_away(
    results: dict[str, Any],
) -> None:
    first = results["identification"]["rows"][0]["rank1"]
    assert first[-1]["low"] > 1 / 12
    spectrum = results["inversion"]["ppg"]["spectrum"]
    assert spectrum["gain_r"]["ridge"]["low"] > 0
    assert any("above chance: the vector re-identifies" in sentence for sentence in results["verdict"])


def test_the_card_says_which_gap_lay_between_and_what_was_not_tried(
    results: dict[str, Any], out: Path
) -> None:
    card = (out / "privacy.md").read_text()
    how = results["protocol"]
    assert how["one_record"] == 12 and how["gap_s"]["least"] >= 10
    assert "gap between the two at least" in card and "never that no more does" in card
    for sentence in privacy_report.NOT_TRIED:
        assert sentence in card
    assert "preserving" not in card.lower() and "anonym" not in card.lower()


def test_where_no_ids_are_published_the_card_speaks_of_records(outcome: PrivacyOutcome) -> None:
    result = outcome.result
    nameless = replace(result, corpus=replace(result.corpus, subjects_published=False))
    card = card_of(replace(outcome, result=nameless))
    assert "RECORDS are re-identified here, not persons" in card
    assert "Among N = 12 records" in card and "its own record" in card
    assert "RECORDS" not in card_of(outcome)


def test_a_claim_needs_its_whole_interval_on_one_side(outcome: PrivacyOutcome) -> None:
    result, zero = outcome.result, Interval(0.1, -0.1, 0.3)
    found = result.identification
    encoder = found.rows[0]
    doubtful = replace(encoder, rank1=(*encoder.rank1[:-1], replace(encoder.rank1[-1], low=0.01)))
    identification = replace(
        found,
        rows=(doubtful, *found.rows[1:]),
        differences={**found.differences, "raw": zero},
    )
    inverted = {
        name: replace(target, gain_r=dict.fromkeys(target.gain_r, zero))
        for name, target in result.inversion["ppg"].items()
    }
    changed = replace(result, identification=identification, inversion={"ppg": inverted})
    claims = " ".join(privacy_report.verdicts(changed))
    assert "not distinguishable from chance" in claims and "above chance" not in claims
    assert "cannot be told apart from the raw waveform" in claims
    assert "reveals part of it" not in claims and "a trace" not in claims
    sure = {
        name: replace(t, gain_r=dict.fromkeys(t.gain_r, Interval(0.2, 0.1, 0.3)))
        for name, t in inverted.items()
    }
    claims = " ".join(privacy_report.verdicts(replace(changed, inversion={"ppg": sure})))
    assert "recover nothing" not in claims


def test_subjects_that_pretraining_saw_are_left_out_or_warned_of(
    quick: None, corpus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = open_corpus(corpus)
    people = sorted(corpus_subjects(found))
    about = tiny.lineage(found.manifest, people[:5])
    uri = tiny.make_bundle(tmp_path / "files", str(tmp_path / "seen" / "bundle"), about)
    results = privacy(uri, corpus, window_s=10, folds=3, publish=False)
    assert results["counts"]["subjects"] == 7 and "published" not in results
    assert set(results["identification"]["per_subject"]) == set(people[5:])
    printed = capsys.readouterr().out
    assert "left out as seen: 5 subjects" in printed and "WARNING" not in printed
    assert not (tmp_path / "seen" / "evaluations").exists()

    out = tmp_path / "out"
    options = {"window_s": 10, "folds": 3, "gallery": "3,9", "allow_overlap": True, "publish": False}
    results = privacy(uri, corpus, out=str(out), **options)
    assert results["identification"]["sizes"] == [3, 9] and results["counts"]["subjects"] == 12
    warning = "subjects that pretraining saw are NOT left out (5 known): figures may flatter"
    assert results["warnings"] == [warning]
    tables = 2  # ranks, inversion
    assert capsys.readouterr().out.count(f"WARNING: {warning}") == tables
    assert (out / "privacy.md").read_text().count(f"**WARNING**: {warning}") == tables
    assert warning in (out / "report.html").read_text()


def test_a_mode_of_two_inputs_is_searched_and_inverted_to_both(
    quick: None, paired_corpus: str, pair_bundle: str, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"window_s": 8, "folds": 3, "publish": False}
    results = privacy(pair_bundle, paired_corpus, mode="ppg+ecg", out=str(tmp_path / "out"), **options)
    assert [row["name"] for row in results["identification"]["rows"]] == list(identify.LABELS)
    assert set(results["inversion"]) == {"ppg", "ecg"}
    pictures = {p.name for p in (tmp_path / "out" / "plots").iterdir()}
    assert pictures == {"rank.png", "inversion_ppg.png", "inversion_ecg.png"}
    alone = privacy(pair_bundle, paired_corpus, mode="ecg", **options)
    assert set(alone["inversion"]) == {"ecg"} and "handcrafted" in alone["identification"]["notes"]


def test_vectors_and_targets_are_those_of_the_windows_themselves(
    corpus: str, paired_corpus: str, bundle: str, pair_bundle: str
) -> None:
    for uri, mode, where in ((bundle, "ppg", corpus), (pair_bundle, "ppg+ecg", paired_corpus)):
        encoder = BundleEncoder(uri, mode)
        index = scanned(open_corpus(where), WindowSpec(signals=encoder.signals, window_s=10))
        rows = index.select(None)[3:40:7]
        found = privacy_data.embedded(index, rows, encoder)
        prepared = index.load(rows)
        expected = encoder(prepared if len(prepared) > 1 else prepared["ppg"])
        np.testing.assert_allclose(found.vectors["encoder"], expected, atol=1e-5)
        for m in encoder.modalities:
            wave = inversion.waveform(prepared[m][:, 0], encoder.signal.rate)
            assert np.array_equal(found.targets[m]["waveform"], wave)


def test_no_subject_fills_the_card_and_windows_keep_their_sides(
    corpus: str, bundle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(privacy_data, "SIDE", 3)
    monkeypatch.setattr(privacy_data, "MAX_SUBJECTS", 8)
    encoder = BundleEncoder(bundle)
    index = scanned(open_corpus(corpus), WindowSpec(signals=encoder.signals, window_s=10))
    chosen = privacy_data.choose(index, NOBODY, 0)
    assert len(set(chosen.subject)) == 8 and chosen.drawn_from == 12
    split, start = chosen.sides, index.table["start_s"].to_numpy()[chosen.rows]
    assert not (split.enrol & split.probe).any() and (~(split.enrol | split.probe)).any()
    for name in split.names:
        early, late = (start[(chosen.subject == name) & side] for side in (split.enrol, split.probe))
        assert 1 <= len(early) <= 3 and 1 <= len(late) <= 3
        assert late.min() - early.max() >= 20 - 1e-6  # a window and a gap of one at least


def test_waveforms_of_a_corpus_that_is_not_open_are_not_published(
    quick: None, corpus: str, bundle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def restricted(uri: str) -> Corpus:
        return Corpus(uri, open_corpus(uri).manifest | {"access": "credentialed"})

    monkeypatch.setattr(command, "open_corpus", restricted)
    results = privacy(bundle, corpus, window_s=10, folds=3, out=str(tmp_path / "out"))
    assert (tmp_path / "out" / "plots" / "inversion_ppg.png").is_file()
    published = Path(results["published"])
    assert (published / "plots" / "rank.png").is_file()
    assert not (published / "plots" / "inversion_ppg.png").exists()
    assert "inversion_ppg.png" not in (published / "privacy.md").read_text()
    assert "access to the corpus is not open" in (published / "privacy.md").read_text()


def test_the_pictured_window_is_the_typical_one_of_its_subject() -> None:
    r = np.array([0.9, 0.5, 0.1, 0.3, 0.2, 0.1, 0.0])
    subject = np.array(["a"] * 3 + ["b"] * 3 + ["c"])
    expected = [("best subject", 1), ("upper third", 4), ("worst subject", 6)]
    assert privacy_plots.typical(r, subject) == expected


def test_mistakes_are_one_line_each(quick: None, bundle: str, corpus: str, tmp_path: Path) -> None:
    found = open_corpus(corpus)
    about = tiny.lineage(found.manifest, sorted(corpus_subjects(found))[:10])
    most = tiny.make_bundle(tmp_path / "files", str(tmp_path / "most" / "bundle"), about)
    for uri, more, message in (
        (most, {"window_s": 10}, "2 subjects can be enrolled and probed .* 10 were seen .*at least 3"),
        (bundle, {"window_s": 120}, "0 subjects can be enrolled and probed .* have too short a record"),
        (bundle, {"gallery": "2,x"}, "--gallery 2,x: must be whole numbers of 2 or more"),
        (bundle, {"gallery": "1,5"}, "--gallery 1,5: must be whole numbers"),
        (bundle, {"gallery": "40", "window_s": 10}, "--gallery 40: only 12 subjects can be searched"),
        (bundle, {"window_s": -1}, "--window-s -1: must be above 0"),
        (bundle, {"window_s": 1}, "under the encoder's minimum of 2 s"),
        (bundle, {"mode": "ecg"}, "has no mode 'ecg'"),
    ):
        with pytest.raises(PlethoraError, match=message) as refused:
            privacy(uri, corpus, publish=False, **more)
        assert "\n" not in str(refused.value)


def test_the_shell_gets_one_line_and_a_status(bundle: str, tmp_path: Path) -> None:
    given = ["--bundle", bundle, "--corpus", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "finetune", "privacy", *given], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: no corpus at") and done.stderr.count("\n") == 1
