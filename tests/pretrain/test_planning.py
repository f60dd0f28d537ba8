"""A plan counts what the run will do, and refuses what cannot fit."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cluster import config
from cluster.errors import PlethoraError
from datasets.plan import CorpusShare, Plan
from datasets.signal import Signal
from datasets.windows import WindowSpec
from pretrain.config import RunConfig
from pretrain.planning import command, local
from pretrain.planning import plan as planning
from pretrain.planning.actors import needed, with_actors
from pretrain.planning.assume import assumptions
from pretrain.planning.memory import largest_micro, peak
from pretrain.planning.meter import Meter
from pretrain.planning.probe import Cost, made_up, probe
from pretrain.planning.rehearse import rehearsal
from pretrain.planning.speed import step_time

RUNS = Path(__file__).resolve().parents[2] / "pretrain" / "runs"
TINY = RUNS / "sigma" / "tiny_tokenizer.toml"
SMALL = ["workers=8", "batch=64", 'corpus="none"']


def small(*sets: str) -> RunConfig:
    return config.load(TINY, RunConfig, [*SMALL, *sets])


@pytest.fixture(scope="module")
def cost() -> Cost:
    return probe(rehearsal(small()), bf16=False)


def test_operations_and_live_bytes_are_those_of_a_sum_by_hand():
    x = torch.randn(64, 256)
    w = torch.randn(512, 256, requires_grad=True)
    meter = Meter()
    with meter:
        y = x @ w.T  # 64 x 512
        kept = meter.live
        (y.square().sum()).backward()
    del y
    flops = sum(f for f, _ in meter.kernels)
    assert flops == 2 * 64 * 256 * 512 * 2  # forward, and the weights' gradient; the input wants none
    assert kept == 64 * 512 * 4
    assert meter.live == 512 * 256 * 4  # the gradient stays
    assert meter.peak >= 3 * 64 * 512 * 4  # y, its square, the gradient of y


def test_what_came_from_outside_is_not_counted_when_it_is_changed_in_place():
    x = torch.zeros(1000)
    meter = Meter()
    with meter:
        x.add_(1)
    assert meter.live == meter.peak == 0


def test_held_memory_of_a_large_micro_batch_follows_from_two_small_ones(cost):
    recipe = rehearsal(small())
    modules, frozen = recipe.modules(), recipe.frozen()
    for number in range(2):
        meter = Meter()
        with meter:
            result = recipe.losses(modules, frozen, made_up(recipe.windows(), 40), 10**9)
            for loss in result.losses.values():
                loss.backward()
        assert number or meter.peak  # the first one leaves the gradients
    assert cost.held_at(40) == pytest.approx(meter.peak, rel=0.03)


def test_a_masked_stage_without_a_tokenizer_yet_is_planned_with_the_papers():
    masked = config.load(RUNS / "sigma" / "tiny.toml", RunConfig, ['corpus="none"', "method.tokenizer="])
    assert rehearsal(masked).frozen()["tokenizer"].quantizer is not None
    named = masked.model_copy(update={"method": masked.method | {"tokenizer": "nowhere"}})
    with pytest.raises(PlethoraError, match="nowhere"):
        rehearsal(named).frozen()


def test_windows_and_steps_are_those_of_hour_long_rows():
    run = config.load(RUNS / "sigma" / "pro.toml", RunConfig, ['corpus="none"'])
    spec = rehearsal(run).windows()
    given = assumptions("h100", spec, ["accepted=0.9"])
    work = planning._work(run, spec, 1000, {"ppg": 125.0}, given, None)
    assert work.windows == 1000 * 15 * 0.9
    assert work.train_windows == round(work.windows * 0.7)
    assert work.steps == -(-work.train_windows * 80 // 8192)
    with pytest.raises(PlethoraError, match="more hours"):
        planning._work(run, spec, 10, {"ppg": 125.0}, given, None)


def test_rereads_are_those_of_a_plan_read_block_by_block():
    run = small("stream.lanes=8", "workers=2")
    spec = rehearsal(run).windows()
    raw = 2 * 125 * 60.0
    n = 50_000
    again = planning.reread(run, spec, raw, n)
    a_group = round(planning.GROUP_BYTES / raw)
    counts = np.full(-(-n // a_group), a_group)
    counts[-1] = n - counts[:-1].sum()
    batch = run.batch
    plan = Plan(
        (CorpusShare(counts, np.arange(n)),), run.seed, batch, n // batch, 2, 0, 8, run.stream.mixed, 4
    )
    opened, kept = 0, [[], []]  # what each worker opens, and closes when its windows are all used
    group_of = np.repeat(np.arange(len(counts)), counts)
    for block in plan.blocks():
        rows = plan.rows(block)
        here = group_of[rows.position[rows.pass_ == 0]]
        for g in dict.fromkeys(here.tolist()):
            opened += g not in kept[block.rank]
        kept[block.rank] = [*kept[block.rank], *here.tolist()]
    assert 1 <= opened / len(counts) <= again <= 1 + 8 / len(counts)


def test_more_sharding_and_more_workers_never_need_more(cost):
    for workers in (2, 4, 8):
        kept = [peak(cost, stage, workers, 8, 1, laid=False).kept for stage in (1, 2, 3)]
        assert kept == sorted(kept, reverse=True)
    for stage in (1, 2, 3):
        totals = [peak(cost, stage, n, 8, 2, laid=False).total for n in (1, 2, 4, 8)]
        assert totals == sorted(totals, reverse=True)
        assert peak(cost, stage, 4, 8, 1, offload=True).total <= peak(cost, stage, 4, 8, 1).total


def test_an_accelerator_lays_out_deepspeeds_buckets_at_most_two_gigabytes_a_module(cost):
    few = cost.trained
    many = {"student": 300_000_000, "tokenizer": 700_000_000}
    for trained, at_once, kept in ((few, max(few.values()), sum(few.values())), (many, 500e6, 800e6)):
        sized = replace(cost, trained=trained)
        for stage, numbers in ((0, 0), (1, at_once), (2, at_once), (3, kept)):
            laid, asked = (peak(sized, stage, 1, 8, 2, laid=laid).scratch for laid in (True, False))
            assert laid - asked == 4 * numbers


def test_the_largest_micro_batch_fits_and_the_next_one_does_not(cost):
    room = peak(cost, 1, 8, 16, 4, laid=False).total
    found = largest_micro(cost, 1, 8, 64, room, laid=False)
    assert found == 16
    assert peak(cost, 1, 8, 32, 2, laid=False).total > room
    assert largest_micro(cost, 1, 8, 64, 1e6) == 0


def test_a_run_that_cannot_fit_is_refused_with_a_way_out_that_holds():
    run = small("workers=1", "batch=512", "engine.zero_stage=0")
    half = peak(probe(rehearsal(run), bf16=True), 0, 1, 256, 2).total * 1.1 + 1e5
    tight = [f"gpu.memory_gb={half / 1e9}", "gpu.reserve_gb=0"]
    refused = planning.plan(run, 50, None, "l4", tight)
    assert refused.refused
    assert "cannot fit" in refused.refused
    way = refused.refused.partition("way out: ")[2].split("; or ")[0]
    key, _, value = way.partition(" = ")
    assert key == "micro_batch", way
    cured = planning.plan(run.model_copy(update={key: int(value)}), 50, None, "l4", tight)
    assert not cured.refused
    assert cured.chosen["raw"].micro == int(value) == 256


def test_a_kernel_takes_the_slower_of_arithmetic_and_memory_and_no_less_than_its_start(cost):
    spec = rehearsal(small()).windows()
    shares = ["gpu.matrix_share=1", "gpu.memory_share=1"]
    given = assumptions("l4", spec, ["gpu.bf16=1", "gpu.memory_gb_s=1", "gpu.kernel_us=7", *shares])
    kernels = (((0.0, 3e9), (0.0, 1.0)), ((0.0, 0.0), (2e9, 1e6)), ((0.0, 1.0), (0.0, 1.0)))
    made = replace(cost, kernels=kernels)
    found = step_time(made, given, True, 0, 1, micro=4, accumulation=3)
    assert found.compute == pytest.approx(3 * (12e9 / 1e12 + (2e9 + 4e6) / 1e9 + 7e-6))
    assert found.talk == 0


def test_the_knee_is_where_doubling_stops_paying():
    point = planning.Point(1, 8, 1, 1.0, 1.0, 0.0, "compute", 0.0)
    hours = {1: 100.0, 2: 51.0, 4: 27.0, 8: 19.0, 16: 18.0}
    points = [replace(point, workers=n, run_s=t) for n, t in hours.items()]
    planned = planning.Planned.__new__(planning.Planned)
    object.__setattr__(planned, "curve", {"raw": points})
    found = planned.knee("raw")
    assert found is not None
    assert found.workers == 4


def test_an_assumption_is_replaced_by_name_and_a_misspelled_one_is_told():
    spec = rehearsal(small()).windows()
    assert assumptions("h100", spec, ["gpu.price_h=9"])["gpu.price_h"].value == 9
    with pytest.raises(PlethoraError, match=r"nearest is gpu\.price_h"):
        assumptions("h100", spec, ["gpu.price=9"])
    with pytest.raises(PlethoraError, match="there is h200"):
        assumptions("h1000", spec, [])


def test_a_batch_that_does_not_divide_is_told_with_one_that_does():
    with pytest.raises(PlethoraError, match="64 does not divide over 6 GPUs: "):
        planning.sized(small(), 6)


def test_the_command_plans_a_run_file_without_a_corpus(capsys):
    told = command.main([str(TINY), "--hours", "500", "--gpus", "4", "--json"])
    shown = capsys.readouterr().err
    assert told["ok"]
    assert told["workers"] == 4
    assert told["knee"]["raw"] in [p["workers"] for p in told["curve"]["raw"]]
    assert all(f"  {name} " in shown for name in told["assumptions"])  # each is visible
    json.dumps(told, allow_nan=False)


def test_a_core_prepares_windows_here():
    spec = rehearsal(small()).windows()
    assert local.prepare_rate(spec, {"ppg": 125.0}, seconds=0.1) > 10
    assert local.copy_rate(spec, seconds=0.1) > local.prepare_rate(spec, {"ppg": 125.0}, seconds=0.1)


def test_automatic_actors_are_one_without_a_gpu_and_with_one_what_its_step_takes(monkeypatch) -> None:
    run = small("stream.actors=auto")
    assert with_actors(run).stream.actors == 1
    on_gpu = run.model_copy(update={"resources": run.resources.model_copy(update={"gpu": 1.0})})
    monkeypatch.setattr(local, "actor_rate", lambda *_: 50.0)
    many = with_actors(on_gpu).stream.actors
    monkeypatch.setattr(local, "actor_rate", lambda *_: 1e9)
    assert many > with_actors(on_gpu).stream.actors == 1
    fixed = run.model_copy(update={"stream": run.stream.model_copy(update={"actors": 3})})
    assert with_actors(fixed) is fixed


def test_actors_are_whole_and_no_more_than_lanes() -> None:
    assert needed(1000, 400, 64) == 3 and needed(10, 400, 64) == 1 and needed(1e6, 400, 8) == 8


def test_an_actor_reads_each_window_and_prepares_it_unless_it_travels_raw(monkeypatch) -> None:
    spec = WindowSpec(signals=(Signal(modality="ppg", rate=50.0, band=(0.5, 8.0)),), window_s=30.0)
    assert local._read_seconds(spec, {"ppg": 125.0}, 0.01) > 0  # of real Parquet
    monkeypatch.setattr(local, "_read_seconds", lambda *_: 0.001)
    monkeypatch.setattr(local, "prepare_rate", lambda *_: 250.0)
    monkeypatch.setattr(local, "copy_rate", lambda *_: 7.0)
    rates = [
        local.actor_rate(spec, {}, raw, ready)
        for raw, ready in ((True, False), (False, False), (False, True))
    ]
    assert rates == pytest.approx([1000, 200, 7])
