"""Search files: what they say, and the error of a wrong one."""

import itertools
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster import config
from cluster.errors import PlethoraError
from pretrain.config import RunConfig
from tests.conftest import ROOT
from tuning.plan import read, toml
from tuning.space import grid, sample

BASE = """
recipe = "tests.pretrain.toy:Toy"
name = "toy"
corpus = "/corpus"
batch = 12
steps = 40
validate_every = 10
"""
SEARCH = """
name = "s"
base = "run.toml"
[objective]
metric = "loss/net"
mode = "min"
"""


@pytest.fixture
def plan_of(tmp_path: Path):
    """`read` of a search file whose [space] (and more) is given."""
    (tmp_path / "run.toml").write_text(BASE)

    def made(more: str, *sets: str, head: str = SEARCH) -> Any:
        (tmp_path / "search.toml").write_text(head + more)
        return read(str(tmp_path / "search.toml"), sets)

    return made


@pytest.mark.parametrize("path", sorted((ROOT / "tuning/searches").glob("*.toml")), ids=lambda p: p.name)
def test_every_shipped_search_is_one(path: Path) -> None:
    plan = read(str(path), ["corpus=/corpus"])
    assert plan.search.space
    assert plan.run({}, "name=t").corpus == "/corpus"


def test_keys_of_the_run_stand_beside_those_of_the_search_and_after_set(plan_of) -> None:
    plan = plan_of("[space]\noptim.lr = { loguniform = [1e-4, 1e-2] }\n[method]\ndropout = 0.5\n", "steps=7")
    run = plan.run({"optim.lr": 2e-3}, "name=t0001")
    assert (run.steps, run.method, run.optim.lr, run.name) == (7, {"dropout": 0.5}, 2e-3, "t0001")
    assert run.batch == 12  # from the run file below


def test_dotted_keys_may_be_written_in_each_way_that_toml_has(plan_of) -> None:
    bare = plan_of("[space]\noptim.lr = { uniform = [0.1, 0.2] }\n")
    quoted = plan_of('[space]\n"optim.lr" = { uniform = [0.1, 0.2] }\n')
    table = plan_of("[space.optim.lr]\nuniform = [0.1, 0.2]\n")
    assert bare.search.space == quoted.search.space == table.search.space


TOML_VALUES = st.recursive(
    st.one_of(
        st.booleans(),
        st.integers(-(2**60), 2**60),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF, exclude_characters="\x7f")),
        st.sampled_from(["true", "1e-3", "inf", "2026-01-01", "/a/b.c", "s3://bucket/x", "7", "a=b", ""]),
    ),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)


@settings(max_examples=300, deadline=None)
@given(TOML_VALUES)
def test_a_value_in_a_command_is_read_back_as_it_was(value: Any) -> None:
    found = config.table_of([f"a.b={toml(value)}"])["a"]["b"]
    assert found == value
    assert type(found) is type(value)


def test_a_trial_is_its_run_file_and_its_sets_and_nothing_else(plan_of, tmp_path: Path) -> None:
    plan = plan_of(
        "[space]\noptim.lr = { loguniform = [1e-4, 1e-2] }\nsize.choice.small = { method.dropout = 0.25 }\n",
        'corpus={"/a.b/c" = 1, "/d" = 2}',
    )
    values = {"optim.lr": 0.0012345678901234567, "size": "small"}
    sets = [*plan.fixed, *plan.sets(values), "name=x"]
    assert plan.run(values, "name=x") == config.load(tmp_path / "run.toml", RunConfig, sets)
    assert plan.run(values, "name=x").method == {"dropout": 0.25}
    assert plan.run(values, "name=x").corpora == {"/a.b/c": 1 / 3, "/d": 2 / 3}


CONDITIONAL = """[space]
method.dropout = { uniform = [0.0, 0.4], step = 0.2, when = { kind = ["b", "c"] } }
kind.choice.a = { optim.lr = 1e-3 }
kind.choice.b = { optim.lr = 2e-3 }
kind.choice.c = { optim.lr = 3e-3 }
seed = { int = [1, 2], when = { kind = "b" } }
"""


def test_a_grid_is_the_product_of_what_can_be_together(plan_of) -> None:
    plan = plan_of(CONDITIONAL + '[searcher]\nkind = "grid"\n')
    found = list(grid(plan.search.space))
    wanted = set()
    for kind, dropout, seed in itertools.product("abc", (0.0, 0.2, 0.4), (1, 2)):
        point = {"kind": kind}
        point |= {"method.dropout": dropout} if kind in "bc" else {}
        point |= {"seed": seed} if kind == "b" else {}
        wanted.add(tuple(sorted(point.items())))
    assert {tuple(sorted(p.items())) for p in found} == wanted
    assert len(found) == len(wanted) == 1 + 6 + 3


def test_a_key_is_picked_only_where_its_condition_holds(plan_of) -> None:
    asked: list[str] = []

    def pick(key: str, spread: Any) -> Any:
        asked.append(key)
        return "a" if key == "kind" else 1

    assert sample(plan_of(CONDITIONAL).search.space, pick) == {"kind": "a"}
    assert asked == ["kind"]


LR = "[space]\noptim.lr = { loguniform = [1e-4, 1e-2] }\n"
WRONG = {
    "an unknown key": (
        "[space]\noptim.lrr = { uniform = [0.1, 0.2] }\n",
        ["toml: space.optim.lrr: unknown", "`optim.lr`"],
    ),
    "an unknown key of the method": (
        "[space]\nmethod.dropot = { uniform = [0.1, 0.2] }\n",
        ["space.method.dropot", "`dropout`"],
    ),
    "a value of the wrong type": (
        "[space]\nbatch = { uniform = [1.5, 3.5] }\n",
        ["space.batch", "integer, not 1.5"],
    ),
    "a batch that does not divide": ("workers = 5\n" + LR, ["batch = 12", "workers = 5"]),
    "reversed bounds": ("[space]\noptim.lr = { uniform = [2, 1] }\n", ["space.optim.lr", "lower bound"]),
    "equal bounds": ("[space]\nseed = { int = [2, 2] }\n", ["space.seed", "lower bound"]),
    "a logarithm of zero": ("[space]\noptim.lr = { loguniform = [0, 1] }\n", ["above 0"]),
    "an int of fractions": ("[space]\nseed = { int = [1.5, 3] }\n", ["space.seed", "two integers"]),
    "one bound": ("[space]\noptim.lr = { uniform = [0.1] }\n", ["space.optim.lr", "two numbers"]),
    "no values": ("[space]\nseed = { choice = [] }\n", ["space.seed", "at least one"]),
    "two kinds": ("[space]\nseed = { int = [1, 2], choice = [1] }\n", ["exactly one"]),
    "a misspelt kind": ("[space]\noptim.lr = { unifrom = [1, 2] }\n", ["optim.lr", "uniform"]),
    "a plain value": ("[space]\nseed = 3\n", ["space.seed", "choice"]),
    "an empty space": ("[space]\n", ["[space] is empty"]),
    "a condition on nothing": (
        "[space]\nseed = { int = [1, 2], when = { optim.rl = 1 } }\noptim.lr = { uniform = [1, 2] }\n",
        ["`optim.rl`", "`optim.lr`"],
    ),
    "conditions in a circle": (
        "[space]\nseed = { int = [1, 2], when = { batch = 12 } }\n"
        "batch = { choice = [12, 24], when = { seed = 1 } }\n",
        ["circle", "seed", "batch"],
    ),
    "a grid without steps": (LR + '[searcher]\nkind = "grid"\n', ["optim.lr", "step"]),
    "a start outside": (LR + "[searcher]\nstart = [{ optim.lr = 1.0 }]\n", ["start", "optim.lr = 1.0"]),
    "a start of no key": (LR + "[searcher]\nstart = [{ optim.rl = 1.0 }]\n", ["`optim.rl`", "`optim.lr`"]),
    "a removed recipe": (
        'recipe = "finetune.ranks:Ranks"\n' + LR,
        ["finetune.ranks:Ranks", "was removed", "method.lora.r"],
    ),
    "no validation": ("validate_every = 0\n" + LR, ["validate_every = 0"]),
    "a key of nothing": ("budgt = 3\n" + LR, ["`budgt`", "`budget`"]),
    "an unknown key of the search": (LR + "[budget]\ntrails = 3\n", ["`budget.trails`", "`budget.trials`"]),
    "a probe without a figure for ASHA": (
        "[objective]\ntask = 'heart_rate'\nmetric = 'mae'\nmode = 'min'\n" + LR,
        ["scheduler.metric"],
    ),
}


@pytest.mark.parametrize("case", WRONG, ids=lambda name: name.replace(" ", "_"))
def test_a_wrong_search_is_one_line(plan_of, case: str) -> None:
    more, words = WRONG[case]
    more, space, rest = more.partition("[") if not more.startswith("[") else ("", "", more)
    head = 'name = "s"\nbase = "run.toml"\n' + more if "[objective]" in rest else SEARCH
    if more and head is SEARCH:
        head = more + SEARCH
    with pytest.raises(PlethoraError) as error:
        plan_of(space + rest, head=head)
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_key_is_reported_where_it_was_given(tmp_path: Path) -> None:
    path = tmp_path / "search.toml"
    path.write_text(SEARCH + LR)
    with pytest.raises(PlethoraError, match=r"^--set corpu=/c: unknown key `corpu`, .*`corpus`$"):
        read(str(path), ["corpu=/c"])
    path.write_text('corpu = "/c"\n' + SEARCH + LR)
    with pytest.raises(PlethoraError, match=r"search\.toml: unknown key `corpu`"):
        read(str(path))


def test_a_missing_base_is_reported(tmp_path: Path) -> None:
    (tmp_path / "search.toml").write_text(SEARCH + LR)
    with pytest.raises(PlethoraError, match=r"run\.toml.*no such run file"):
        read(str(tmp_path / "search.toml"))


def test_the_example_in_the_docstring_is_a_search(tmp_path: Path) -> None:
    import tuning.plan as plan

    lines = (plan.__doc__ or "").splitlines()
    shown = "\n".join(line[4:] for line in lines if line.startswith("    "))
    shown = shown.replace("../../", f"{ROOT}/")
    tomllib.loads(shown)
    (tmp_path / "example.toml").write_text(shown)
    assert len(read(str(tmp_path / "example.toml"), ["corpus=/c"]).search.space) == 6
