"""Rank among N against plain enumeration of galleries, who is enrolled on what, and the error rates."""

from itertools import combinations

import numpy as np
import pytest

from finetune.evaluation import identify
from finetune.metrics import draw_weights, mean_interval


def enumerated(row: np.ndarray, own: int, size: int, rank: int) -> float:
    """Share of all galleries of `size` with `own` in which it takes one of the first `rank` places."""
    others = [i for i in range(len(row)) if i != own]
    found = []
    for gallery in combinations(others, size - 1):
        better = sum(row[i] > row[own] for i in gallery)
        tied = sum(row[i] == row[own] for i in gallery)
        found.append(np.mean([better + place < rank for place in range(tied + 1)]))
    return float(np.mean(found))


@pytest.mark.parametrize("rank", [1, 2, 5])
@pytest.mark.parametrize("levels", [3, 1000])  # 3: many ties
def test_rank_among_n_is_the_mean_over_all_galleries(rank: int, levels: int) -> None:
    rng = np.random.default_rng(levels + rank)
    values, own = rng.integers(0, levels, (9, 8)) / 7, np.array([0, 0, 1, 2, 3, 4, 5, 6, 7])
    sizes = list(range(2, 9))
    found = identify.hits(identify.Scores(values, own), sizes, rank)
    for i, size in enumerate(sizes):
        each = [enumerated(row, mine, size, rank) for row, mine in zip(values, own, strict=True)]
        expected = [np.mean([e for e, mine in zip(each, own, strict=True) if mine == s]) for s in range(8)]
        np.testing.assert_allclose(found[:, i], expected, atol=1e-12)


def recordings(subjects: int, windows: int = 12) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    subject = np.repeat([f"s{i:02}" for i in range(subjects)], windows)
    return subject, subject, np.tile(np.arange(windows) * 30.0, subjects)


@pytest.mark.parametrize("attack", identify.ATTACKS)
def test_vectors_that_are_all_the_same_give_chance(attack: str) -> None:
    subject, record, start = recordings(7)
    split = identify.sides(subject, record, start, 30.0)
    same = np.full((len(subject), 5), 0.1) * np.arange(1, 6)
    found = identify.scores(same, subject, split, attack)
    sizes = [2, 3, 7]
    np.testing.assert_allclose(identify.hits(found, sizes), np.tile(1 / np.array(sizes), (7, 1)))
    np.testing.assert_allclose(identify.hits(found, [7], 5), 5 / 7)
    assert identify.equal_error_rate(found, draw_weights(7, 50)).value == pytest.approx(0.5)


@pytest.mark.parametrize("attack", identify.ATTACKS)
def test_vectors_that_name_the_subject_are_found_always(attack: str) -> None:
    subject, record, start = recordings(7)
    split = identify.sides(subject, record, start, 30.0)
    noise = 1e-3 * np.random.default_rng(0).normal(size=(len(subject), 7))
    named = (subject[:, None] == np.unique(subject)) + noise
    found = identify.scores(named, subject, split, attack)
    assert (identify.hits(found, [2, 5, 7]) == 1).all()
    assert identify.equal_error_rate(found, draw_weights(7, 50)).high == 0


def test_noise_is_found_by_chance() -> None:
    subject, record, start = recordings(40)
    split = identify.sides(subject, record, start, 30.0)
    x = np.random.default_rng(1).normal(size=(len(subject), 16))
    found = identify.scores(x, subject, split)
    for size in (2, 10, 40):
        hits = mean_interval(identify.hits(found, [size])[:, 0], draw_weights(40))
        assert hits.low <= 1 / size <= hits.high
    rate = identify.equal_error_rate(found, draw_weights(40))
    assert rate.low <= 0.5 <= rate.high


def test_enrolled_and_probe_windows_never_touch() -> None:
    rng = np.random.default_rng(2)
    subject, record, start, width = [], [], [], 10.0
    for i in range(60):
        for r in range(rng.integers(1, 4)):
            room = 200 if i % 3 else 4
            count = rng.integers(1, room + 1)
            at = np.sort(rng.choice(room, count, replace=False)) * 5.0 + 60  # neighbours overlap by half
            subject += [f"s{i}"] * count
            record += [f"s{i}r{r}"] * count
            start += at.tolist()
    who, what, when = np.array(subject), np.array(record), np.array(start)
    order = rng.permutation(len(who))
    split = identify.sides(who[order], what[order], when[order], width)
    assert not (split.enrol & split.probe).any()
    assert set(split.names) | set(split.left_out) == set(subject)
    assert set(split.gap_s) and set(split.apart) and set(split.left_out)
    for name in split.names:
        early, late = ((who[order] == name) & side for side in (split.enrol, split.probe))
        assert early.any() and late.any()
        if name in split.apart:
            assert not set(what[order][early]) & set(what[order][late])
        else:
            gap = when[order][late].min() - when[order][early].max() - width
            assert gap == pytest.approx(split.gap_s[name]) and gap >= width - 1e-6


def test_scaling_leaves_out_the_probes_own_subject() -> None:
    subject, record, start = recordings(6)
    split = identify.sides(subject, record, start, 30.0)
    x = np.random.default_rng(3).normal(size=(len(subject), 4)) * [1, 10, 100, 1000] + 50
    found = identify.scores(x, subject, split)
    mine, names = subject == "s02", np.unique(subject)
    others = x[split.enrol & ~mine]
    z = (x - others.mean(0)) / others.std(0)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    for column, name in enumerate(names):
        centre = z[split.enrol & (subject == name)].mean(0)
        expected = z[split.probe & mine] @ (centre / np.linalg.norm(centre))
        np.testing.assert_allclose(found.values[found.true_column == 2, column], expected, atol=1e-10)


def test_missing_values_and_constant_columns_change_nothing() -> None:
    subject, record, start = recordings(6)
    split = identify.sides(subject, record, start, 30.0)
    x = np.random.default_rng(4).normal(size=(len(subject), 4))
    padded = np.column_stack([x, np.full(len(x), 0.3), np.full(len(x), np.nan)])
    np.testing.assert_allclose(
        identify.scores(padded, subject, split).values, identify.scores(x, subject, split).values, atol=1e-12
    )


def test_equal_error_rate_is_where_a_scan_of_thresholds_finds_it() -> None:
    rng = np.random.default_rng(5)
    own = np.repeat(np.arange(20), 4)
    values = rng.normal(size=(80, 20)) + 1.5 * (own[:, None] == np.arange(20))
    is_own = own[:, None] == np.arange(20)
    gaps = []
    for level in np.sort(values.ravel()):
        accepted, rejected = (values[~is_own] >= level).mean(), (values[is_own] < level).mean()
        gaps.append((abs(accepted - rejected), (accepted + rejected) / 2))
    found = identify.equal_error_rate(identify.Scores(values, own), draw_weights(20))
    assert found.value == pytest.approx(min(gaps)[1], abs=0.01)
    assert found.low <= found.value <= found.high


def test_a_subject_counts_once_however_many_probes_it_has() -> None:
    values = np.array([[1.0, 0.0]] * 9 + [[1.0, 0.0]])
    hits = identify.hits(identify.Scores(values, np.array([0] * 9 + [1])), [2])
    assert hits[:, 0].tolist() == [1.0, 0.0]
    assert mean_interval(hits[:, 0], draw_weights(2)).value == 0.5
