"""How a run that Ray gave up is told, and what dead writers leave."""

import errno
from pathlib import Path

import pytest
from ray.exceptions import RayActorError
from ray.train import ControllerError, WorkerGroupError

from cluster.errors import PlethoraError
from pretrain import checkpoint, driver
from pretrain.config import RunConfig

RUN = RunConfig(recipe="x:Y", corpus="c", name="night", steps=1, batch=1)


class Fails:
    """A trainer whose run ends with this."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def fit(self) -> None:
        raise self.error


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (WorkerGroupError("…", {1: PlethoraError("s3://b/x: is unavailable")}), "s3://b/x: is unavailable"),
        (WorkerGroupError("…", {0: OSError(errno.ENOSPC, "No space left on device")}), "No space left"),
        (ControllerError(PlethoraError("/d/list.json: No space left on device")), "/d/list.json: No space"),
        (ControllerError(OSError("AWS Error SLOW_DOWN during\nPutObject")), "SLOW_DOWN during PutObject"),
        (RayActorError(error_msg="gone"), "the process that watches its workers is gone"),
    ],
)
def test_what_a_user_can_mend_is_one_line_that_names_the_way_on(error: Exception, says: str) -> None:
    with pytest.raises(PlethoraError) as caught:
        driver.fitted(Fails(error), RUN)
    told = str(caught.value)
    assert told.startswith("run night") and says in told and told.endswith("--resume") and "\n" not in told


def test_a_mistake_in_code_keeps_its_traceback() -> None:
    with pytest.raises(WorkerGroupError):
        driver.fitted(Fails(WorkerGroupError("…", {0: FileNotFoundError(2, "no such file")})), RUN)


def test_what_dead_writers_leave_is_removed_and_nothing_else(tmp_path: Path) -> None:
    left = ["checkpoint_2026-01-01_00-00-00.000000/half.pt", ".bundle.0a1b2c3d.part/x.json"]
    kept = ["bundle/_COMPLETE", "telemetry/metrics.jsonl", "checkpointed.txt"]
    for name in [*left, *kept]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert checkpoint.collect(str(tmp_path)) == sorted(name.split("/")[0] for name in left)
    found = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file())
    assert found == sorted(kept)


@pytest.mark.parametrize(("workers", "asked"), [(2, 3.0), ((1, 2), 3.0 + 2)])
def test_a_worker_gets_the_cpus_that_the_run_names_and_an_elastic_one_those_of_its_stream(
    workers: int | tuple[int, int], asked: float, tmp_path: Path
) -> None:
    given = {
        "workers": workers,
        "batch": 4,
        "resources": {"cpu": 3.0},
        "stream": {"actors": 2},
        "storage": str(tmp_path),
    }
    run = RunConfig.model_validate(RUN.model_dump() | given)
    scaling = driver.trainer(run, {}).scaling_config
    assert (scaling.num_workers, scaling.resources_per_worker) == (workers, {"CPU": asked})
