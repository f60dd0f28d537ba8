"""The plan is pure: these tests draw corpora, seeds, world sizes and positions."""

import pickle
from collections import Counter, OrderedDict
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import PlethoraError
from datasets.ledger import expected, tally
from datasets.plan import BLOCK_BYTES, CorpusShare, Part, Plan, backwards, steps_for


def source(n: int, groups: int, weight: float = 1.0, salt: int = 0) -> CorpusShare:
    """`n` windows in `groups` row groups, some of them empty."""
    rng = np.random.default_rng([n, groups, salt])
    counts = np.bincount(rng.integers(0, groups, n), minlength=groups)
    return CorpusShare(counts, rng.integers(-(2**62), 2**62, n), weight)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    world = draw(st.sampled_from([1, 2, 3, 4]))
    sources = tuple(
        source(
            draw(st.integers(1, 90)), draw(st.integers(1, 30)), draw(st.sampled_from([0.2, 1.0, 3.0])), salt=i
        )
        for i in range(draw(st.integers(1, 3)))
    )
    return Plan(
        sources,
        seed=draw(st.integers(0, 9)),
        batch=12 * draw(st.integers(1, 3)),
        steps=draw(st.integers(1, 17)),
        world=world,
        lanes=draw(st.sampled_from([1, 2, 8, 64])),
        mixed=draw(st.integers(1, 3)),
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
    slots, turns = np.arange(plan.lanes), np.full(plan.lanes, plan.batch * plan.steps // plan.lanes)
    for number, s in enumerate(plan.sources):
        passes = Counter(p for (n, p, _) in seen if n == number)
        # window k of a corpus is the (k // lanes)th of slot k % lanes: all have had what the slowest has
        had = plan.given(number, slots, turns)
        assert np.ptp(had) <= len(plan.sources) - 1  # a rounding for each corpus but one
        for p in range(int(had.min()) * plan.lanes // len(s)):
            assert passes[p] == len(s)


@settings(max_examples=60, deadline=None)
@given(plans())
def test_the_order_is_that_of_a_plain_loop_over_lanes(plan: Plan) -> None:
    plan = replace(plan, sources=plan.sources[:1], world=1)
    (s,) = plan.sources
    starts = np.concatenate(([0], np.cumsum(s.counts)))

    def lanes_of(pass_: int) -> list[list[int]]:
        """Each lane's windows in order."""
        turn = np.random.default_rng([plan.seed, 0, 0, pass_]).permutation(len(s.counts))
        line = [(rank, int(starts[g] + k)) for rank, g in enumerate(turn) for k in range(s.counts[g])]
        lanes, begin = [], 0
        for lane in range(plan.lanes):
            end = begin + len(s) // plan.lanes + (lane < len(s) % plan.lanes)
            mine, begin = line[begin:end], end
            first = mine[0][0] if mine else 0
            reels: OrderedDict[int, list[int]] = OrderedDict()
            for rank, position in mine:
                reels.setdefault((rank - first + plan.mixed - 1) // plan.mixed, []).append(position)
            order = []
            for reel, of_it in enumerate(reels.values()):
                draw = np.random.default_rng([plan.seed, 1, 0, pass_, lane, reel])
                order += [of_it[i] for i in draw.permutation(len(of_it))]
            lanes.append(order)
        return lanes

    wanted = []
    pass_ = 0
    while len(wanted) < plan.steps * plan.batch:
        lanes = lanes_of(pass_)
        wanted += [(pass_, lanes[j % plan.lanes].pop(0)) for j in range(len(s))]
        pass_ += 1
    got = [(p, w) for _, _, p, w in consumed(plan)[0]]
    assert got == wanted[: len(got)]


@settings(max_examples=40, deadline=None)
@given(plans(), st.sampled_from([1, 2, 3, 4]))
def test_the_windows_of_a_step_do_not_depend_on_the_world_size(plan: Plan, world: int) -> None:
    assert by_step(plan) == by_step(replace(plan, world=world))


@settings(max_examples=40, deadline=None)
@given(plans(), st.integers(0, 16), st.sampled_from([1, 2, 3, 4]))
def test_resuming_reads_exactly_the_suffix(plan: Plan, start: int, world: int) -> None:
    rest = replace(plan, world=world, start=start)
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
    assert counted == expected(plan, until)


@settings(max_examples=30, deadline=None)
@given(plans())
def test_blocks_are_small_and_as_large_as_they_may_be(plan: Plan) -> None:
    for rank in range(plan.world):
        sizes = [len(plan.rows(block).step) for block in plan.blocks(rank)]
        assert sum(sizes) == plan.steps * plan.share
        assert all(n * plan.window_bytes <= BLOCK_BYTES or n == 1 for n in sizes)
        assert sizes[0] <= plan.share  # the first step comes soon
        later = [n for n, b in zip(sizes, plan.blocks(rank), strict=True) if b.first >= plan.share]
        assert later[:-1] == [later[0]] * (len(later) - 1) if later else True
        room = max(1, int(BLOCK_BYTES // plan.window_bytes))
        assert len(later) < 2 or later[0] > min(room, plan.share) // 2


def test_corpora_are_mixed_by_weight_at_every_step() -> None:
    plan = Plan((source(1000, 9, 0.75), source(40, 3, 0.25, 1)), seed=0, batch=64, steps=40)
    for step in by_step(plan).values():
        assert abs(sum(n for (s, _, _), n in step.items() if s == 1) - 16) <= 12
    total = Counter()
    for step in by_step(plan).values():
        total += step
    assert sum(1 for s, _, _ in total if s == 1) == round(0.25 * 64 * 40)


def test_passes_are_permuted_afresh() -> None:
    plan = Plan((source(64, 8),), seed=0, batch=16, steps=8)
    order = [row[3] for row in consumed(plan)[0]]
    assert sorted(order[:64]) == sorted(order[64:]) and order[:64] != order[64:]


@pytest.mark.parametrize(
    ("batch", "world"),
    [(2048, 1), (2048, 4), (2048, 8), (2048, 64), (8250, 1), (8250, 3), (8250, 6), (16_712, 8), (96, 3)],
)
def test_a_row_group_is_read_about_once_by_all_workers_together(batch: int, world: int) -> None:
    plan = Plan((source(1_500_000, 1100),), 3, batch, 10**4, world, window_bytes=25_000)
    group_of = np.repeat(np.arange(1100), plan.sources[0].counts)
    plan = replace(plan, steps=1_500_000 // batch)
    fetched, most = 0, 0
    for rank in range(world):
        kept: set[int] = set()
        for block in plan.blocks(rank):
            used = set(np.unique(group_of[plan.rows(block).position]).tolist())
            fetched += len(used - kept)
            kept = {group for _, group in plan.still_open(block)}
            most = max(most, len(kept | used))
    shared = sum(k * 64 % world != 0 for k in range(world))  # lanes that a cut between workers goes through
    assert fetched <= plan.reads(0, 0) + shared * (1100 / 64 + 2) + 2 * world
    assert fetched <= (1.15 if shared else 1.1) * 1100
    assert most <= 2.1 * plan.mixed * (64 / world + 1)


@settings(max_examples=60, deadline=None)
@given(plans())
def test_what_is_still_open_after_a_block_is_what_has_begun_and_goes_on(plan: Plan) -> None:
    def reel_of(s: int, p: int, position: int) -> tuple[int, int, int, int, int]:
        """(corpus, pass, lane, reel, row group) of a window."""
        order, source = plan.order(s, p), plan.sources[s]
        group = int(np.searchsorted(source.starts, position, "right")) - 1
        place = order.begin[order.turn.tolist().index(group)] + position - source.starts[group]
        lane = next(k for k, borders in enumerate(order.reels) if borders[0] <= place < borders[-1])
        return s, p, lane, int(np.searchsorted(order.reels[lane], place, "right")), group

    for rank in range(plan.world):
        blocks = list(plan.blocks(rank))
        seen = [
            {reel_of(int(s), int(p), int(w)) for s, p, w in zip(r.source, r.pass_, r.position, strict=True)}
            for r in (plan.rows(block) for block in blocks)
        ]
        for number, block in enumerate(blocks):
            begun = {reel[:4] for of_block in seen[: number + 1] for reel in of_block}
            later = {reel for of_block in seen[number + 1 :] for reel in of_block}
            assert {(s, group) for s, *reel, group in later if (s, *reel) in begun} <= plan.still_open(block)


def test_cuts_between_workers_stay_in_one_lane() -> None:
    for batch, world in ((8250, 3), (16_712, 8), (2048, 64), (1000, 5)):
        plan = Plan((source(100_000, 90),), 0, batch, 400, world)
        lanes = [set() for _ in range(world)]
        for rank in range(world):
            slot, _, _ = plan._places(np.arange(400), rank)
            lanes[rank] = set(slot.tolist())
        assert sum(map(len, lanes)) <= 64 + world - 1


def test_a_batch_holds_many_people() -> None:
    counts = np.full(2000, 1400)
    plan = Plan((CorpusShare(counts, np.arange(counts.sum())),), 0, 2048, 10)
    person = np.repeat(np.arange(2000) // 5, 1400)  # stays of 20 hours: five row groups, 7,000 windows
    for block in replace(plan, start=400, steps=410).blocks():
        rows = plan.rows(block)
        for step in np.unique(rows.step):
            count = np.bincount(person[rows.position[rows.step == step]])
            assert (count > 0).sum() >= 90
            assert (count * (count - 1)).sum() / (2048 * 2047) <= 0.02


def test_a_plan_travels_without_its_orders() -> None:
    plan = Plan((CorpusShare(np.full(30_000, 1400), np.empty(0, np.int64)),), 0, 2048, 10**6)
    before = len(pickle.dumps(plan))
    rows = plan.rows(next(plan.blocks()))
    again = pickle.loads(pickle.dumps(plan))
    assert before < 1e6 and len(pickle.dumps(plan)) - before < 1e6
    assert np.array_equal(again.rows(next(again.blocks())).position, rows.position)


def test_the_other_order_of_bits_is_its_own_inverse() -> None:
    for n in (1, 2, 8, 64):
        assert backwards(backwards(np.arange(n))).tolist() == list(range(n))
    assert backwards(np.arange(8)).tolist() == [0, 4, 2, 6, 1, 5, 3, 7]


def test_lanes_that_are_no_power_of_two_are_named() -> None:
    with pytest.raises(PlethoraError, match=r"stream.lanes = 48 is not a power of two"):
        Plan((source(9, 2),), seed=0, batch=10, steps=1, lanes=48)


def test_a_batch_that_does_not_divide_over_the_workers_is_named() -> None:
    with pytest.raises(PlethoraError, match="batch = 10 does not divide over workers = 3"):
        Plan((source(9, 2),), seed=0, batch=10, steps=1, world=3)


def test_steps_cover_the_epochs_asked_for() -> None:
    assert steps_for(1, 100, 32) == 4 and steps_for(2.5, 100, 50) == 5


@settings(max_examples=30, deadline=None)
@given(plans(), st.integers(1, 4), st.integers(0, 40), st.integers(0, 5))
def test_the_parts_of_a_block_are_its_rows_cut_by_lane(
    plan: Plan, count: int, first_rows: int, start: int
) -> None:
    plan = replace(plan, first_rows=first_rows, start=start)
    for rank in range(plan.world):
        slots = [set(plan.slots(rank, Part(k, count)).tolist()) for k in range(count)]
        assert sum(map(len, slots)) == len(set.union(*slots)) == len(plan.slots(rank))
        for block in plan.blocks(rank):
            whole = plan.rows(block)
            parts = [plan.rows(block, Part(k, count)) for k in range(count)]
            assert sorted(np.concatenate([part.at for part in parts])) == list(range(len(whole.step)))
            for part in parts:
                for name in ("source", "position", "pass_", "step"):
                    assert np.array_equal(getattr(part, name), getattr(whole, name)[part.at])
            opened = [plan.still_open(block, Part(k, count)) for k in range(count)]
            assert set.union(*opened) == plan.still_open(block)


@settings(max_examples=30, deadline=None)
@given(plans(), st.integers(0, 40), st.integers(0, 20))
def test_blocks_follow_each_other_and_the_first_step_comes_in_small_ones(
    plan: Plan, first_rows: int, start
) -> None:
    plan = replace(plan, first_rows=first_rows, start=start)
    for rank in range(plan.world):
        blocks = list(plan.blocks(rank))
        assert len(blocks) == plan.count() and [plan.block(rank, k) for k in range(len(blocks))] == blocks
        ends = [b.last for b in blocks]
        assert [b.first for b in blocks] == [start * plan.share, *ends[:-1]][: len(blocks)]
        assert not blocks or ends[-1] == plan.steps * plan.share
        assert all(b.last > b.first for b in blocks)
        for b in blocks:
            if first_rows and b.first < (start + 1) * plan.share:
                assert b.last - b.first <= first_rows and b.last <= (start + 1) * plan.share
