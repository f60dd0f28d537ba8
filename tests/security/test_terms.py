"""Data-use terms go with what was learned, and publishing stops where a source forbids it."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster import bundle, terms
from cluster.errors import PlethoraError
from datasets import index, judge
from datasets.ingest import read_descriptor
from datasets.schema import open_corpus
from datasets.windows import Signal, WindowSpec
from pretrain import card, driver, lineage
from pretrain.config import RunConfig
from pretrain.data import Data
from tests.datasets.test_stream import write_corpus
from tests.finetune import tiny
from tests.pages import blocks, worked
from tests.security import kit

ROOT = Path(__file__).resolve().parents[2]
SPEC = WindowSpec(signals=(Signal(modality="ppg", rate=10.0),), window_s=10.0)


@pytest.mark.parametrize(
    ("about", "who"),
    [
        ({"access": "open"}, "anyone"),
        ({"access": "open after accepting the agreement"}, "anyone"),
        ({"access": "credentialed: an account and a course"}, "approved"),
        ({"access": "unknown"}, "approved"),
        ({}, "approved"),
        ({"access": "open", "models": "nobody"}, "nobody"),
        ({"access": "on application", "models": "anyone"}, "anyone"),
        ({"access": "open", "models": "Nobody?"}, "anyone"),
    ],
)
def test_whom_a_corpus_lets_have_models(about: dict[str, Any], who: str) -> None:
    assert terms.audience(about) == who


def test_the_line_of_the_security_page_lets_a_run_publish_from_both_its_sources(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (shell,) = blocks(worked("docs/security.md"), "bash")
    name, _, value = shell.removeprefix("export ").strip().partition("=")
    known = [read_descriptor(str(ROOT / f"datasets/corpora/{source}.toml")) for source in value.split(",")]
    entries = [{"name": d.name, "access": d.access, "models": d.models, "terms": d.terms} for d in known]
    for entry in entries:
        with pytest.raises(PlethoraError, match=f"set {name}={entry['name']}"):
            terms.check([entry], "s3://bucket/runs")
    monkeypatch.setenv(name, value)
    terms.check(entries, "s3://bucket/runs")


def test_the_known_sets_that_forbid_sharing_are_for_the_approved() -> None:
    who = {}
    for path in (ROOT / "datasets/corpora").glob("*.toml"):
        found = read_descriptor(str(path))
        who[found.name] = terms.audience({"access": found.access, "models": found.models})
        assert ("no sharing" in found.terms) == (who[found.name] == "approved"), path
    kept = {"mesa", "mc_med", "aurora_bp", "empatica_e4"}
    assert {name for name, audience in who.items() if audience != "anyone"} == kept


def made(home: Path, **entry: Any) -> tuple[Path, str]:
    """A finished bundle folder whose lineage names such a corpus, and where it should go."""
    published = Path(tiny.make_bundle(home / "made", str(home / "first")))
    folder = Path(shutil.copytree(published, home / "again"))
    (folder / "_COMPLETE").unlink()
    kit.edit_json(folder / "lineage.json", lambda table: table["corpora"][0].update(entry))
    return folder, str(home / "second")


def test_what_a_source_forbids_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, uri = made(tmp_path, name="closed", models="nobody", terms="No derived models.")
    monkeypatch.setenv(terms.APPROVED, "closed")
    with pytest.raises(PlethoraError, match=r"closed forbids publishing.*No derived models") as caught:
        bundle.publish(folder, uri)
    assert "\n" not in str(caught.value) and not Path(uri).exists()


def test_a_model_for_the_approved_goes_where_only_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, uri = made(tmp_path, name="mesa", models="approved", terms="no sharing")
    monkeypatch.delenv(terms.APPROVED, raising=False)
    with pytest.raises(PlethoraError, match=f"{terms.APPROVED}=mesa"):
        bundle.publish(folder, uri)
    monkeypatch.setenv(terms.APPROVED, "mc_med, mesa")
    bundle.publish(folder, uri)
    assert bundle.verify(uri)["kind"] == "encoder"


def test_terms_are_handed_down_through_bundles(tmp_path: Path) -> None:
    folder, uri = made(tmp_path, name="open", models="anyone")
    above = {
        "corpora": [{"name": "closed", "models": "nobody", "hash": "0", "terms": "none", "subjects": ["s"]}]
    }
    handed = terms.inherited({"corpora": [], "inherited": terms.inherited(above)})
    assert handed == [{"name": "closed", "models": "nobody", "hash": "0", "terms": "none"}]
    kit.edit_json(folder / "lineage.json", lambda table: table.update(inherited=handed))
    with pytest.raises(PlethoraError, match="closed forbids"):
        bundle.publish(folder, uri)


def test_the_card_tells_the_terms_that_were_handed_down_and_whom_it_is_for(tmp_path: Path) -> None:
    handed = [
        {
            "name": "mesa",
            "source": "sleepdata",
            "licence": "agreement",
            "terms": "No sharing.",
            "hash": "1",
            "models": "approved",
        }
    ]
    folder = Path(tiny.make_bundle(tmp_path / "made", str(tmp_path / "b")))
    parts = [
        json.loads((folder / f"{n}.json").read_text())
        for n in ("config", "preprocessing", "lineage", "metrics")
    ]
    plain = card.render(*parts)
    parts[2]["inherited"] = handed
    told = card.render(*parts)
    assert "mesa" not in plain
    assert "those of mesa bind, too (agreement): No sharing." in told
    assert "**For those alone whom mesa (sleepdata) has approved.**" in told


def restricted(folder: Path, **change: Any) -> str:
    uri = write_corpus(folder, shards=1, groups=1, rows=6)
    return kit.seal_corpus(folder, lambda manifest: manifest.update(change)) and uri


def test_lineage_tells_each_corpus_and_what_the_methods_bundles_inherited(tmp_path: Path) -> None:
    uri = restricted(tmp_path / "c", name="mesa", access="on application")
    corpus = open_corpus(uri)
    table = index._scan({"shard": np.array([0]), "group": np.array([0])}, corpus, SPEC)
    found = index.Index(corpus, SPEC, table.cast(judge.schema(SPEC)))
    teacher = tiny.make_bundle(
        tmp_path / "made", str(tmp_path / "teacher"), tiny.lineage(name="vitaldb", models="anyone")
    )
    run = RunConfig(
        recipe="x:Y",
        name="n",
        corpus=uri,
        steps=1,
        batch=1,
        method={"deep": [{"teacher": teacher}], "rate": 5},
    )
    (entry,) = lineage.corpora(Data(run, SPEC, [found]))
    assert (entry["name"], entry["models"], entry["access"]) == ("mesa", "approved", "on application")
    (given,) = lineage.inherited(run)
    assert (given["name"], given["models"]) == ("vitaldb", "anyone") and "subjects" not in given
    json.dumps([entry, given])


def test_a_run_whose_model_could_not_be_published_does_not_start(ray_session: Any, tmp_path: Path) -> None:
    uri = restricted(tmp_path / "c", name="closed", models="nobody", terms="No derived models.")
    run = RunConfig(
        recipe="tests.pretrain.toy:Toy",
        name="n",
        corpus=uri,
        storage=str(tmp_path / "s"),
        steps=4,
        batch=4,
        validate_every=0,
        split={"val": 0.0, "test": 0.2},
    )
    with pytest.raises(PlethoraError, match="closed forbids publishing"):
        driver.launch(run)
    assert not (tmp_path / "s/n").exists()
