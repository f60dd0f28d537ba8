"""The shipped searches: every key is one of the run's, and every trial's command validates."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from cluster import config
from cluster.errors import PlethoraError
from pretrain.config import RunConfig
from pretrain.recipe import load
from tests.conftest import ROOT
from tests.pages import blocks, commands, worked
from tuning.plan import Plan, ends, read
from tuning.space import grid, sample

SEARCHES = sorted((ROOT / "tuning" / "searches").glob("*.toml"))
CORPUS = 'corpus={"here"=0.5, "there"=0.5}'


@pytest.fixture(params=SEARCHES, ids=lambda path: path.stem)
def plan(request: pytest.FixtureRequest) -> Plan:
    return read(str(request.param), [CORPUS])


def points(plan: Plan) -> list[dict[str, Any]]:
    """Every end of every key, under values at which it is asked for, the others at their first."""
    found = []
    for _, wanted in ends(plan):
        found.append(sample(plan.search.space, lambda k, s, w=wanted: w.get(k, s.ends()[0])))
    return found


def command(plan: Plan, values: dict[str, Any]) -> list[str]:
    """A trial's, as a person would type it."""
    sets = [item for pair in [*plan.fixed, *plan.sets(values), "name=t"] for item in ("--set", pair)]
    return shlex.split(shlex.join(["python", "-m", "pretrain", plan.base, *sets]))


def test_every_key_of_the_space_changes_the_run_and_every_command_gives_that_run(plan: Plan) -> None:
    runs = {}
    for values in points(plan):
        whole = plan.run(values, "name=t")
        config.validate(load(whole.recipe).Config, whole.method, plan.path)  # type: ignore[attr-defined]
        typed = command(plan, values)
        sets = [typed[i + 1] for i, word in enumerate(typed) if word == "--set"]
        assert config.load(typed[3], RunConfig, sets) == whole
        runs[json.dumps(values, sort_keys=True)] = whole.model_dump_json()
        print(shlex.join(typed))
    assert len(set(runs.values())) == len(runs)
    assert set().union(*(json.loads(v) for v in runs)) == set(plan.search.space)


def test_a_misspelt_key_in_any_of_them_is_told_with_the_nearest(plan: Plan, tmp_path: Path) -> None:
    key = next(k for k, s in plan.search.space.items() if not s.tables)
    text = Path(plan.path).read_text().replace(f'base = "{plan.search.base}"', f'base = "{plan.base}"')
    wrong = tmp_path / "search.toml"
    wrong.write_text(text.replace(f"\n{key} = ", f"\n{key}s = "))
    with pytest.raises(PlethoraError, match=key.rpartition(".")[2]):
        read(str(wrong), [CORPUS])


def test_what_judges_is_there_and_scheduling_goes_by_what_is_known_in_time(plan: Plan) -> None:
    run = plan.run({}, "name=t")
    for asked in plan.search.objective:
        if asked.task:
            assert run.split.val >= 0.2  # few people judge badly
    if plan.search.searcher.kind == "grid":
        assert len(list(grid(plan.search.space))) == plan.search.budget.trials


def test_the_issues_searches_are_all_there() -> None:
    issue = "lora_rank prior_weight prior_weight_robustness scale tokenizer_phase window_length"
    assert {path.stem for path in SEARCHES} >= {*issue.split(), "masking_vitals", "temperature_batch"}


def test_the_search_of_the_tuning_page_varies_its_run_by_every_key(tmp_path: Path) -> None:
    (text,), (shell,) = blocks(worked("docs/tuning.md"), "toml"), blocks(worked("docs/tuning.md"), "bash")
    (typed,) = commands(shell)
    (tmp_path / typed[1]).parent.mkdir(parents=True)
    (tmp_path / "pretrain").symlink_to(ROOT / "pretrain")
    (tmp_path / typed[1]).write_text(text, encoding="utf-8")
    plan = read(str(tmp_path / typed[1]), [typed[i + 1] for i, word in enumerate(typed) if word == "--set"])
    assert plan.search.budget.trials == 4
    runs = {json.dumps(v): plan.run(v, "name=t").model_dump_json() for v in points(plan)}
    assert len(set(runs.values())) == len(runs) > len(plan.search.space)
