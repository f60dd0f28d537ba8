"""The plan is pure: these tests draw corpora, seeds, world sizes and positions."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import PlethoraError
from datasets.plan import Plan, Source, _Key, _pass_order, steps_for, tally


def source(n: int, groups: int, weight: float = 1.0, salt: int = 0) -> Source:
    rng = np.random.default_rng([n, groups, salt])
    return Source(np.sort(rng.integers(0, groups, n)), rng.integers(-(2**62), 2**62, n), weight)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    world = draw(st.sampled_from([1, 2, 3, 4]))
    sources = tuple(
        source(
            draw(st.integers(1, 90)), draw(st.integers(1, 7)), draw(st.sampled_from([0.2, 1.0, 3.0])), salt=i
        )
        for i in range(draw(st.integers(1, 3)))
    )
    return Plan(
        sources,
        seed=draw(st.integers(0, 9)),
        batch=12 * draw(st.integers(1, 3)),
        steps=draw(st.integers(1, 17)),
        world=world,
        shuffle_windows=draw(st.sampled_from([1, 40, 200])),
        window_bytes=draw(st.sampled_from([4, 10**7])),
    )


def consumed(plan: Plan) -> list[list[tuple[int, int, int, int]]]:
    """What each worker sees, in order: blocks dealt round-robin."""
    seen: list[list] = [[] for _ in range(plan.world)]
    for number, block in enumerate(plan.blocks()):
        assert number % plan.world == block.rank
        rows = plan.rows(block)
        seen[block.rank] += zip(rows.step, rows.source, rows.pass_, rows.position, strict=True)
    return seen


def by_step(plan: Plan) -> dict[int, Counter]:
    out: dict[int, Counter] = {}
    for worker in consumed(plan):
        for step, *window in worker:
            out.setdefault(int(step), Counter())[tuple(map(int, window))] += 1
    return out


@settings(max_examples=60, deadline=None)
@given(plans())
def test_every_worker_sees_its_share_of_every_step_in_order(plan: Plan) -> None:
    for worker in consumed(plan):
        steps = [row[0] for row in worker]
        assert steps == sorted(steps)
        assert Counter(steps) == {s: plan.batch // plan.world for s in range(plan.start, plan.steps)}


@settings(max_examples=60, deadline=None)
@given(plans())
def test_no_window_comes_twice_in_a_pass_and_a_finished_pass_misses_none(plan: Plan) -> None:
    seen = Counter()
    for step in by_step(plan).values():
        seen += step
    assert set(seen.values()) == {1}
    for number, s in enumerate(plan.sources):
        passes = Counter(p for (n, p, _) in seen if n == number)
        for p in range(max(passes, default=0)):
            assert passes[p] == len(s)


@settings(max_examples=40, deadline=None)
@given(plans(), st.sampled_from([1, 2, 3, 4]))
def test_the_windows_of_a_step_do_not_depend_on_the_world_size(plan: Plan, world: int) -> None:
    other = Plan(
        plan.sources, plan.seed, plan.batch, plan.steps, world, 0, plan.shuffle_windows, plan.window_bytes
    )
    assert by_step(plan) == by_step(other)


@settings(max_examples=40, deadline=None)
@given(plans(), st.integers(0, 16), st.sampled_from([1, 2, 3, 4]))
def test_resuming_reads_exactly_the_suffix(plan: Plan, start: int, world: int) -> None:
    rest = Plan(
        plan.sources, plan.seed, plan.batch, plan.steps, world, start, plan.shuffle_windows, plan.window_bytes
    )
    assert by_step(rest) == {k: v for k, v in by_step(plan).items() if k >= start}


@settings(max_examples=30, deadline=None)
@given(plans(), st.integers(0, 17))
def test_the_expected_ledger_is_what_the_workers_count(plan: Plan, until: int) -> None:
    until = min(until, plan.steps)
    counted: dict = {}
    for worker in consumed(plan):
        for step, s, p, position in worker:
            if step < until:
                ids = plan.sources[s].ids[[position]]
                tally(counted, np.array([s]), np.array([p]), ids)
    assert counted == plan.expected(until)


@settings(max_examples=30, deadline=None)
@given(plans())
def test_blocks_of_one_span_have_equal_rows_and_stay_small(plan: Plan) -> None:
    rows: dict[int, set[int]] = {}
    for block in plan.blocks():
        n = len(plan.rows(block).step)
        rows.setdefault(block.span, set()).add(n)
        assert n * plan.window_bytes <= 100e6 or n == 1
    assert all(len(sizes) == 1 for sizes in rows.values())


def test_corpora_are_mixed_by_weight_at_every_step() -> None:
    plan = Plan(
        (source(1000, 9, 0.75), source(40, 3, 0.25, 1)), seed=0, batch=64, steps=40, shuffle_windows=640
    )
    for step in by_step(plan).values():
        assert abs(sum(n for (s, _, _), n in step.items() if s == 1) - 16) <= 12
    total = Counter()
    for step in by_step(plan).values():
        total += step
    assert sum(1 for s, _, _ in total if s == 1) == round(0.25 * 64 * 40)


def test_passes_are_permuted_afresh() -> None:
    plan = Plan((source(64, 8),), seed=0, batch=16, steps=8, shuffle_windows=16)
    order = [row[3] for row in consumed(plan)[0]]
    assert sorted(order[:64]) == sorted(order[64:]) and order[:64] != order[64:]


def test_a_pass_orders_windows_by_their_groups_turn_and_then_by_a_draw_of_their_own() -> None:
    for seed, (n, groups) in enumerate([(1, 1), (500, 1), (300, 300), (5000, 40)]):
        given = source(n, groups)
        if seed % 2:  # in any order
            given = Source(np.random.default_rng(seed).permutation(given.group), given.ids)
        rng = np.random.default_rng([seed, 0, 2, 1])
        drawn = rng.random(n)
        _, number = np.unique(given.group, return_inverse=True)
        wanted = np.lexsort((drawn, rng.permutation(number.max() + 1)[number]))
        assert np.array_equal(_pass_order(_Key(given), seed, 2, 1), wanted)


def test_a_worker_reads_few_row_groups_a_block() -> None:
    plan = Plan((source(4096, 64),), seed=0, batch=64, steps=64, world=4, shuffle_windows=1024)
    touched = [len(np.unique(plan.sources[0].group[plan.rows(b).position])) for b in plan.blocks()]
    assert np.mean(touched) <= 256 / 64 + 2.5  # 256 windows a block, 64 a group, and the two cut ones


def test_a_batch_that_does_not_divide_over_the_workers_is_named() -> None:
    with pytest.raises(PlethoraError, match="batch = 10 does not divide over workers = 3"):
        Plan((source(9, 2),), seed=0, batch=10, steps=1, world=3)


def test_steps_cover_the_epochs_asked_for() -> None:
    assert steps_for(1, 100, 32) == 4 and steps_for(2.5, 100, 50) == 5


@pytest.mark.parametrize(("world", "start"), [(1, 0), (2, 3), (3, 7)])
def test_after_a_block_comes_the_next_one_of_its_worker(world, start) -> None:
    source = Source(np.arange(90) // 9, np.arange(90))
    plan = Plan((source,), 1, 6, 40, world, start, shuffle_windows=30, window_bytes=int(3e7))
    for rank in range(world):
        blocks = list(plan.blocks(rank))
        assert max(b.parts for b in blocks) > 1
        assert [plan.after(b) for b in blocks] == [*blocks[1:], None]
