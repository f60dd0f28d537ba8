"""How many workers a run may have."""

from typing import Any

import pytest

from pretrain.config import RunConfig


def run(**more: Any) -> RunConfig:
    settings: dict[str, Any] = {"recipe": "x:Y", "corpus": "c", "name": "n", "steps": 1, "batch": 12}
    return RunConfig.model_validate(settings | more)


def test_a_range_of_workers_is_elastic_and_a_number_is_not() -> None:
    assert (run(workers=[1, 3]).fewest, run(workers=[1, 3]).most, run(workers=[1, 3]).elastic) == (1, 3, True)
    assert (run(workers=3).fewest, run(workers=3).most, run(workers=3).elastic) == (3, 3, False)
    assert not run(workers=[2, 2]).elastic


@pytest.mark.parametrize(("workers", "micro", "accumulation"), [(1, 2, 6), (2, 2, 3), (3, 2, 2)])
def test_an_elastic_run_takes_the_same_batch_with_any_count(
    workers: int, micro: int, accumulation: int
) -> None:
    now = run(workers=[1, 3], micro_batch=2).at(workers)
    assert (now.micro, now.accumulation) == (micro, accumulation)
    assert now.micro * now.accumulation * workers == now.batch
    alone = run(workers=[1, 3]).at(workers)
    assert (alone.micro, alone.accumulation) == (12 // workers, 1)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"workers": [4, 8], "batch": 8192}, "over workers = 5, 6, 7: the nearest batch that does is 8400"),
        ({"workers": [3, 2]}, r"workers = \[3, 2\]: give \[fewest, most\]"),
        ({"workers": [0, 2]}, r"workers = \[0, 2\]: give \[fewest, most\]"),
        ({"workers": [1, 3], "micro_batch": 4}, r"a worker's share of 6 windows \(batch 12 / workers 2\)"),
        ({"workers": 0}, "workers"),
        (
            {"workers": [1, 3], "stream": {"actors": 2, "lanes": 4}},
            "stream.actors = 2 is more than the 1 lanes .*: lower it, or raise stream.lanes = 4",
        ),
    ],
)
def test_a_range_that_cannot_work_says_why(more: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        run(**more)
