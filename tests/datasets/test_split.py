from collections import Counter

import pytest

from cluster import config
from cluster.errors import PlethoraError
from datasets import schema
from datasets.split import Split, assign, corpus_subjects, overlap
from datasets.synthetic import KEY, Recipe, _name, synthesize

PEOPLE = [schema.hash_subject(b"k", "x", str(i)) for i in range(5000)]


def test_shares_are_kept_and_the_sides_are_disjoint():
    counts = Counter(assign(p, Split(val=0.1, test=0.2)) for p in PEOPLE)
    assert counts["val"] / 5000 == pytest.approx(0.1, abs=0.02)
    assert counts["test"] / 5000 == pytest.approx(0.2, abs=0.02)
    assert sum(counts.values()) == 5000


def test_a_person_has_one_side_whatever_the_corpus_and_another_seed_deals_anew():
    one, two = Split(seed=0), Split(seed=1)
    assert [assign(p, one) for p in PEOPLE] == [assign(p, one) for p in PEOPLE]
    moved = sum(assign(p, one) != assign(p, two) for p in PEOPLE)
    assert 0.3 < moved / 5000 < 0.6


def test_a_smaller_share_to_train_on_is_part_of_every_larger_one_and_moves_nobody_else():
    sides = {share: {p: assign(p, Split(train=share)) for p in PEOPLE} for share in (0.1, 0.5, 1.0)}
    trained = {share: {p for p, s in of.items() if s == "train"} for share, of in sides.items()}
    assert trained[0.1] < trained[0.5] < trained[1.0]
    assert len(trained[0.1]) / len(trained[1.0]) == pytest.approx(0.1, abs=0.02)
    for side in ("val", "test"):
        people = [{p for p, s in of.items() if s == side} for of in sides.values()]
        assert people[0] == people[1] == people[2]
    assert set(sides[0.1].values()) == {"train", "val", "test", "spare"} > set(sides[1.0].values())


def test_shares_that_leave_nobody_to_train_on_are_refused():
    with pytest.raises(PlethoraError, match="leaves no subject to train on"):
        config.validate(Split, {"val": 0.5, "test": 0.5}, "run.toml")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    out = str(tmp_path_factory.mktemp("s") / "c")
    synthesize(out, hours=0.02, subjects=4, gaps=0, flats=0, clips=0)
    return schema.open_corpus(out)


def real(corpus, **changes):
    about = {"id_space": "mimic", "key_id": "k1", "subjects_published": True}
    return schema.Corpus(corpus.uri, corpus.manifest | about | changes)


def test_subjects_of_a_corpus_are_those_with_rows(corpus):
    recipe = Recipe(hours=0.02, subjects=4)
    assert corpus_subjects(corpus) == {_name(recipe, i) for i in range(4)}


def test_same_key_and_space_prove_shared_or_none(corpus):
    known = real(corpus)
    inside = next(iter(corpus_subjects(known)))
    found = overlap([inside, "f" * 32], "k1", "mimic", True, known)
    assert (found.kind, found.shared) == ("shared", {inside})
    assert overlap(["f" * 32], "k1", "mimic", True, known).kind == "none"


@pytest.mark.parametrize(
    ("key_id", "id_space", "published", "changes", "why"),
    [
        ("k2", "mimic", True, {}, "different keys"),
        ("k1", "vitaldb", True, {}, "different spaces"),
        ("k1", "mimic", False, {}, "publishes no subject ids"),
        ("k1", "mimic", True, {"subjects_published": False}, "publishes no subject ids"),
    ],
)
def test_what_cannot_be_proven_is_unknown_and_never_none(corpus, key_id, id_space, published, changes, why):
    found = overlap(["f" * 32], key_id, id_space, published, real(corpus, **changes))
    assert found.kind == "unknown"
    assert why in found.why


def test_made_up_people_overlap_with_nobody_real(corpus):
    assert overlap(["f" * 32], "k1", "mimic", False, corpus).kind == "none"
    assert overlap(["f" * 32], schema.key_id(KEY), "synthetic", True, real(corpus)).kind == "none"


def test_two_synthetic_corpora_compare_like_any(corpus):
    same = corpus_subjects(corpus)
    assert overlap(same, schema.key_id(KEY), "synthetic", True, corpus).kind == "shared"
    other = [_name(Recipe(hours=1, subjects=4, seed=9), i) for i in range(4)]
    assert overlap(other, schema.key_id(KEY), "synthetic", True, corpus).kind == "none"
