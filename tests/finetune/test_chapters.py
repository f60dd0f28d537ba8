"""Diagnosis codes by chapter, and what shuffled labels reach."""

import numpy as np
import pytest

from finetune import metrics, probe
from finetune.evaluation import chapters, classes, multilabel
from finetune.evaluation.results import Chance, Interval
from finetune.reports import panels
from finetune.task import load_task

CHAPTERS = {
    "I50": "Circulatory",
    "icd10:I50.1": "Circulatory",
    "icd9:428": "Circulatory",
    "4280": "Circulatory",
    "E11": "Endocrine, nutritional, metabolic",
    "icd9:E849": "External causes",
    "V43": "External causes",
    "icd9:V43": "Factors influencing health",
    "D48": "Neoplasms",
    "D50": "Blood and immunity",
    "H60": "Ear",
    "O9A": "Pregnancy and childbirth",
    "AFIB": chapters.OTHER,
    "1AVB": chapters.OTHER,
    "heart failure": chapters.OTHER,
    "F": chapters.OTHER,
}


@pytest.mark.parametrize("label", CHAPTERS)
def test_a_code_belongs_to_the_chapter_of_its_version(label: str) -> None:
    assert chapters.chapter_of(label) == CHAPTERS[label]


CODES = {
    "icd9:428.0": "428",
    "ICD-9-CM: 42823": "428",
    "428.0": "428",
    "icd9:E849.0": "icd9:E849",
    "icd9:V43.3": "icd9:V43",
    "icd10:I50.9": "I50",
    "ICD10:i509": "I50",
    "I50.9-": "I50",
}


@pytest.mark.parametrize("text", CODES)
def test_a_code_is_cut_to_its_category_and_its_version_is_kept(text: str) -> None:
    task = load_task("diagnosis")
    assert multilabel.code_of(text, "r", task) == CODES[text]
    whole = multilabel.code_of(text, "r", task.model_copy(update={"digits": None}))
    assert chapters.chapter_of(whole) == chapters.chapter_of(CODES[text])


def drawn(people: int, codes: int, linked: int, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Vectors, labels (comorbid: all share a person's frailty), and subjects; the first labels are in the
    vectors."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(people, 12))
    frailty = 0.5 * rng.normal(size=people)
    score = 0.7 * rng.normal(size=(people, codes)) + frailty[:, None]
    score[:, :linked] += 1.5 * x[:, :linked]
    hot = (score > np.quantile(score, rng.uniform(0.75, 0.9, codes))).astype(float)
    return x, hot, np.array([f"s{i:04d}" for i in range(people)])


def numbered(folds: probe.Folds, rows: int) -> np.ndarray:
    fold = np.full(rows, -1)
    for number, (_, test) in enumerate(folds):
        fold[test] = number
    return fold


def test_labels_in_the_vectors_are_found_and_the_others_stay_within_chance() -> None:
    x, hot, who = drawn(400, 60, 8)
    folds = probe.grouped_folds(who, 5, 0)
    names = [f"I{k:02d}" for k in range(60)]
    predicted = {
        "encoder": multilabel.probe_each(x, hot, who, folds, 0).predicted,
        "mean": multilabel.prevalence(hot, folds).predicted,
    }
    chance = {"encoder": chapters.by_chance(hot, x, who, numbered(folds, 400), (0.7, 0.8), 0)}
    beside = multilabel.label_tables(hot, names, predicted, who, metrics.draw_weights(400, 200), chance)
    scores, by_chance = beside.per_label["encoder"], beside.chance["encoder"]
    assert chapters.found(scores, by_chance) == names[:8]
    inside = [s.chance[0] <= s.auroc.value <= s.chance[1] for s in scores[8:] if s.chance]
    assert len(inside) == 52
    assert np.mean(inside) >= 0.85
    assert beside.above["encoder"]["0.7"] >= 8 > by_chance.above["0.7"].high
    assert [(c.name, c.labels) for c in beside.chapters] == [("Circulatory", 60)]


def test_the_band_is_that_of_a_probe_which_learns_anew_from_shuffled_labels() -> None:
    """Labels of nobody's vectors: as many lie outside the band as 95 % says, over five draws of people."""
    outside = []
    for seed in range(5):
        x, hot, who = drawn(200, 30, 0, seed)
        folds = probe.grouped_folds(who, 5, seed)
        base = multilabel.prevalence(hot, folds).predicted
        p = multilabel.probe_each(x, hot, who, folds, 0).predicted
        real = chapters._auroc(hot == 1, classes.evidence(p, base))
        chance, (low, high) = chapters.by_chance(hot, x, who, numbered(folds, 200), (0.7,), 0)
        outside += ((real < low) | (real > high)).tolist()
        assert real.max() < chance.bound + 0.03
    assert 0.01 <= np.mean(outside) <= 0.1


def test_a_shuffle_gives_each_person_all_labels_of_another() -> None:
    """Of two people one trains: as it is, or exchanged, whatever their numbers of rows."""
    who, fold = np.array(["a", "a", "a", "b", "b"]), np.array([-1, -1, -1, 0, 0])
    x = np.array([[1.0], [2.0], [4.0], [0.0], [1.0]])
    hot = np.array([[1, 0], [0, 1], [0, 1], [0, 1], [1, 0]], float)
    _, band = chapters.by_chance(hot, x, who, fold, (0.7,), 0)
    # as it is: a's label 0 (1, 0, 0) falls with x, b's (0, 1) rises; exchanged: (0, 1, 0) and (1, 0) fall
    assert band[:, 0].tolist() == [0.0, 1.0]


def test_a_chapters_figure_is_the_mean_over_its_labels() -> None:
    rng = np.random.default_rng(0)
    auroc = {"row": rng.uniform(0.4, 0.95, (4, 51))}
    lines = chapters.table(["I10", "I50", "icd9:428", "J45"], auroc, (0.7,))
    assert [(line.name, line.labels) for line in lines] == [
        ("Circulatory", 3),
        ("Respiratory", 1),
        ("All", 4),
    ]
    means = auroc["row"][:3].mean(0)
    low, high = np.percentile(means[1:], [2.5, 97.5])
    found = lines[0].auroc["row"]
    assert (found.value, found.low, found.high) == pytest.approx((means[0], low, high))
    assert lines[0].above["row"]["0.7"].value == (auroc["row"][:3, 0] > 0.7).sum()


def test_a_label_is_found_where_it_passes_the_best_of_all_by_chance() -> None:
    scores = [
        multilabel.LabelScore(name, 9, Interval(value, value, value))
        for name, value in (("a", 0.8), ("b", 0.6))
    ]
    assert chapters.found(scores, Chance(200, {}, 0.7)) == ["a"]


def test_all_labels_share_the_strength_that_the_commonest_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    x, hot, who = drawn(120, 6, 2)
    monkeypatch.setattr(multilabel, "CHOOSING", 3)
    folds = probe.grouped_folds(who, 3, 0)
    found = multilabel.probe_each(x, hot, who, folds, 0)
    train, test = folds[0]
    common = np.argsort(-hot[train].mean(0), kind="stable")[:3]
    losses = []
    for k in common:
        code = hot[train, k].astype(int)
        inner = probe.class_inner_folds(code, who[train], probe.inner_count(folds), 0)
        losses.append(probe.inner_losses(x[train], code, inner, [slice(None)]))
    assert found.alphas[0] == probe.STRENGTHS[int(np.argmin(np.sum(losses, axis=0)))]
    assert len(found.alphas) == 3
    for k in range(6):
        code = hot[train, k].astype(int)
        p = probe.logistic_probabilities(x[train], code, x[test], (found.alphas[0],))[0, :, 1]
        assert found.predicted[test, k] == pytest.approx(p)


def test_names_of_dots_that_lie_together_are_written_once() -> None:
    x, y = np.array([0.9, 0.91, 0.5, 0.9]), np.array([25.0, 24.9, 24.9, 10.0])
    assert panels.apart(x, y, [0, 1, 2, 3]) == [0, 2, 3]
