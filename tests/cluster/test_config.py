"""Configuration: files that extend files, settings from the command line, mistakes in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pydantic
import pytest

from cluster import config
from cluster.config import Config
from cluster.errors import PlethoraError


class Optim(Config):
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)


class Engine(Config):
    kind: Literal["ddp", "deepspeed"] = "deepspeed"
    zero_stage: int = pydantic.Field(default=1, ge=0, le=3)


class Signals(Config):
    signals: dict[str, Optim]


class Run(Config):
    name: str
    steps: int = 10
    optim: Optim = Optim()
    engine: Engine | None = None
    workers: int | tuple[int, int] = 1
    method: dict[str, Any] = {}
    corpus: str | dict[str, float] = ""

    @pydantic.model_validator(mode="after")
    def _steps_are_even(self) -> Run:
        if self.steps % 2:
            raise ValueError(f"steps = {self.steps} must be even")
        return self


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "base.toml").write_text('name = "base"\nsteps = 2\n[optim]\nlr = 2\n[method]\nwidth = 3\n')
    (tmp_path / "sub").mkdir()
    path = tmp_path / "sub/run.toml"
    path.write_text('extends = "../base.toml"\nsteps = 4\n[optim]\nbetas = [0.1, 0.2]\n')
    return path


def _mistake(path: Path, *sets: str) -> str:
    with pytest.raises(PlethoraError) as caught:
        config.load(path, Run, sets)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_file_is_laid_over_the_one_that_it_extends_table_by_table(file: Path) -> None:
    run = config.load(file, Run)
    assert (run.name, run.steps, run.optim.lr, run.optim.betas) == ("base", 4, 2.0, (0.1, 0.2))
    assert run.method == {"width": 3}


def test_sets_win_over_files_make_tables_and_are_read_as_toml(file: Path) -> None:
    sets = [
        "optim.lr=1e-4",
        "engine.zero_stage=3",
        "workers=[1, 4]",
        "method.a.b=true",
        "optim.betas = [0.5,0.6]",
    ]
    run = config.load(file, Run, sets)
    assert run.optim == Optim(lr=1e-4, betas=(0.5, 0.6))
    assert run.engine == Engine(zero_stage=3)
    assert run.workers == (1, 4)
    assert run.method == {"width": 3, "a": {"b": True}}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name=7", "7"),
        ("name=1.50", "1.50"),
        ("name=true", "true"),
        ("name='quoted'", "quoted"),
        ("name=a=b", "a=b"),
        ("name=s3://bucket/x-y", "s3://bucket/x-y"),
        ("name=", ""),
    ],
)
def test_a_set_of_a_text_key_keeps_the_text_as_typed(file: Path, text: str, expected: str) -> None:
    assert config.load(file, Run, [text]).name == expected


def test_a_key_that_holds_dots_is_put_in_quotes(file: Path) -> None:
    run = config.load(file, Run, ['corpus."s3://b/a.b"=0.25', 'corpus."x=y"=1'])
    assert run.corpus == {"s3://b/a.b": 0.25, "x=y": 1.0}


def test_later_sets_win(file: Path) -> None:
    assert config.load(file, Run, ["steps=6", "steps=8"]).steps == 8


def test_one_of_two_keys_takes_the_place_of_the_other_from_a_file_below(tmp_path: Path) -> None:
    class Timed(Config):
        EITHER = ("steps", "epochs")
        steps: int | None = None
        epochs: float | None = None
        batch: int = 1

    low, high = tmp_path / "low.toml", tmp_path / "high.toml"
    low.write_text("epochs = 3.0\nbatch = 2\n")
    high.write_text('extends = "low.toml"\nsteps = 5\n')
    assert config.load(high, Timed) == Timed(steps=5, batch=2)
    assert config.load(low, Timed, ["steps=7"]) == Timed(steps=7, batch=2)
    assert config.load(high, Timed, ["epochs=1"]) == Timed(epochs=1, batch=2)
    assert config.load(high, Timed, ["batch=4"]) == Timed(steps=5, batch=4)
    assert config.load(low, Timed, ["steps=7", "epochs=1"]) == Timed(steps=7, epochs=1, batch=2), (
        "which one is meant is the model's to ask"
    )


def test_a_model_is_frozen_and_validates_back_to_itself(file: Path) -> None:
    run = config.load(file, Run, ["engine.kind=ddp"])
    with pytest.raises(pydantic.ValidationError):
        run.steps = 3  # type: ignore[misc]
    assert config.validate(Run, run.model_dump(mode="json"), "again") == run
    assert config.validate(Run, run.model_dump(), "again") == run


@pytest.mark.parametrize(
    ("item", "key", "nearest"),
    [
        ("optim.lrr=1", "optim.lrr", "optim.lr"),
        ("optm.lr=1", "optm", "optim"),
        ("engine.zerostage=1", "engine.zerostage", "engine.zero_stage"),
        ("zero_stage=1", "zero_stage", "engine.zero_stage"),
        ("stesp=1", "stesp", "steps"),
    ],
)
def test_a_misspelled_key_names_the_nearest_one(file: Path, item: str, key: str, nearest: str) -> None:
    assert _mistake(file, item) == f"--set {item}: unknown key `{key}`, the nearest known one is `{nearest}`"


def test_a_misspelled_key_of_a_table_with_a_name_of_its_own_names_that_table() -> None:
    with pytest.raises(
        PlethoraError, match=r"`signals\.ppg\.lrr`, the nearest known one is `signals\.ppg\.lr`"
    ):
        config.validate(Signals, {"signals": {"ppg": {"lrr": 2}}}, "here")


def test_a_misspelled_key_names_the_file_that_holds_it(file: Path, tmp_path: Path) -> None:
    with (tmp_path / "base.toml").open("a") as base:
        base.write("[optm]\nlr = 1\n")
    said = _mistake(file)
    assert said.endswith("base.toml: unknown key `optm`, the nearest known one is `optim`")


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ("steps=many", "`steps`: input should be a valid integer, not 'many'"),
        ("steps=1.5", "`steps`: input should be a valid integer, not 1.5"),
        ("steps='4'", "`steps`: input should be a valid integer, not '4'"),
        ("steps=true", "`steps`: input should be a valid integer, not True"),
        ("optim=3", "`optim`: input should be an object, not 3"),
        ("optim.betas=[1]", "`optim.betas.1` is missing"),
        ("engine.zero_stage=4", "`engine.zero_stage`: input should be less than or equal to 3, not 4"),
        ("engine.kind=horovod", "`engine.kind`: input should be 'ddp' or 'deepspeed', not 'horovod'"),
        ("steps=3", "steps = 3 must be even"),
    ],
)
def test_a_wrong_value_is_one_line_with_the_key_and_the_value(file: Path, item: str, said: str) -> None:
    assert said in _mistake(file, item)


def test_several_mistakes_are_told_together_and_a_union_tells_once(file: Path) -> None:
    said = _mistake(file, "workers=[1]", "optim.lrr=1")
    assert said.count("workers") == 2  # the --set and the key
    assert "optim.lrr" in said


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("steps = 2\n")
    assert _mistake(tmp_path / "a.toml").endswith("a.toml: `name` is missing: set it")


@pytest.mark.parametrize("item", ["steps", "=3", "a b=1", "name.x=1"])
def test_a_malformed_set_shows_how_one_looks(file: Path, item: str) -> None:
    said = _mistake(file, item)
    assert said.startswith(f"--set {item}: ")


def test_broken_and_missing_files_and_circles_are_named(file: Path, tmp_path: Path) -> None:
    assert "no such file" in _mistake(tmp_path / "none.toml")
    (tmp_path / "broken.toml").write_text("a = = 1")
    assert "broken.toml: not valid TOML" in _mistake(tmp_path / "broken.toml")
    (tmp_path / "orphan.toml").write_text('extends = "gone.toml"')
    said = _mistake(tmp_path / "orphan.toml")
    assert "gone.toml: no such file (extended by" in said
    (tmp_path / "base.toml").write_text('extends = "sub/run.toml"')
    assert "runs in a circle" in _mistake(file)
    (tmp_path / "list.toml").write_text('extends = ["a"]')
    assert "one file name" in _mistake(tmp_path / "list.toml")


def test_read_toml_gives_the_merged_table_unchecked(file: Path) -> None:
    table = config.read_toml(file, ["optim.lr=5", "anything.goes='x'"])
    assert table["optim"] == {"lr": 5, "betas": [0.1, 0.2]}
    assert table["anything"] == {"goes": "x"}
    assert "extends" not in table


def test_validate_names_the_place_that_it_was_given() -> None:
    with pytest.raises(PlethoraError, match=r"^here: unknown key `nam`, the nearest known one is `name`"):
        config.validate(Run, {"nam": "x"}, "here")
