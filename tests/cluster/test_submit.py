"""What may become a job of a cluster, and what its run is called."""

from __future__ import annotations

import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster import session, submit
from cluster.errors import PlethoraError
from cluster.session import ROOT
from cluster.submit import Job, command, exit_code
from tests.pages import blocks, commands, worked

PRO = "pretrain/runs/sigma/pro.toml"
SHARED = ["--set", "corpus=s3://b/corpus", "--set", "storage=s3://b/runs"]


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_a_run_is_called_as_its_file_or_the_command_says() -> None:
    words = ["python", "-m", "pretrain", PRO, *SHARED, "--set", "method.tokenizer=s3://b/runs/t/bundle"]
    found = command(words)
    assert (found.run, found.storage) == ("sigma-pro", "s3://b/runs")
    assert found.argv == tuple(words)
    assert command([*words, "--set", "name=mine"]).run == "mine"
    assert command([*words, "--set=name=mine"]).run == "mine"
    assert command([*words[:3], "--resume", *words[3:]]).run == "sigma-pro"
    assert (
        command(["python", "-m", "tuning", "tuning/searches/prior_weight.toml", *SHARED]).run
        == "prior-weight"
    )


def test_a_run_file_is_named_from_the_checkout_wherever_one_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT / "pretrain/runs/sigma")
    words = ["/usr/bin/python3", "-m", "pretrain", "tokenizer.toml", *SHARED]
    assert command(words).argv[:4] == ("python", "-m", "pretrain", "pretrain/runs/sigma/tokenizer.toml")


def test_commands_that_make_no_run_have_no_name() -> None:
    corpus = "datasets/corpora/bidmc.toml"
    for words in (["cluster", "doctor"], ["pretrain", "index", PRO, *SHARED], ["datasets", "ingest", corpus]):
        assert command(["python", "-m", *words]).run == ""


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["rm", "-rf", "/"], "is not a Plethora command"),
        (["python", "script.py"], "is not a Plethora command"),
        (["python", "-m", "http.server"], "there is no such package"),
        (["python", "-m", "pretrain", "/etc/other.toml"], "does not travel with the checkout"),
        (["python", "-m", "pretrain", PRO], "storage = out/runs would lie in the job's own copy"),
        (
            ["python", "-m", "pretrain", PRO, "--set", "storage=s3://b/r", "--set", "corpus=out/c"],
            "corpus = out/c",
        ),
        (
            [
                "python",
                "-m",
                "pretrain",
                PRO,
                "--set",
                "storage=/nfs",
                "--set",
                'corpus={"s3://b/c"=1,"out/d"=2}',
            ],
            "corpus = out/d",
        ),
        (
            ["python", "-m", "pretrain", PRO, *SHARED, "--set", "method.tokenizer=out/runs/t/bundle"],
            "method.tokenizer = out/runs/t/bundle",
        ),
    ],
)
def test_a_command_that_cannot_work_elsewhere_is_one_clear_line(words: list[str], says: str) -> None:
    with pytest.raises(PlethoraError) as refused:
        command(words)
    assert says in str(refused.value)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small checkout with files that travel and files that do not."""
    root = tmp_path / "checkout"
    run = 'name = "mine"\ncorpus = "s3://b/c"\nstorage = "s3://b/r"\n'
    texts = {
        ".gitignore": "*.local.toml\n/drafts/\n",
        "pretrain/__init__.py": "",
        "finetune/__init__.py": "",
        "datasets/__init__.py": "",
        "runs/.gitignore": "scratch*\n",
        "runs/mine.toml": run,
        "runs/mine.local.toml": run,
        "runs/scratch.toml": run,
        "drafts/mine.toml": run,
        "out/runs/mine.toml": run,
        "runs/child.toml": 'extends = "../drafts/mine.toml"\n',
        "drafts/task.toml": 'name = "t"\n',
        "runs/labelled.toml": run + '[method]\ntasks = ["heart_rate", "drafts/task.toml"]\n',
        "drafts/weights.safetensors": "",
        "deep/er/mine.toml": run,
    }
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "infra").mkdir()
    (root / "infra/runtime_env.yaml").write_text((ROOT / "infra/runtime_env.yaml").read_text())
    (tmp_path / "elsewhere.toml").write_text(run)
    monkeypatch.setattr(session, "ROOT", root)
    monkeypatch.chdir(root)
    return root


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["pretrain", "out/runs/mine.toml"], "out/runs/mine.toml"),
        (["pretrain", "--resume", "drafts/mine.toml"], "drafts/mine.toml"),
        (["pretrain", "runs/mine.local.toml"], "runs/mine.local.toml"),
        (["pretrain", "runs/scratch.toml"], "runs/scratch.toml"),
        (["pretrain", "runs/child.toml"], "runs/child.toml: "),
        (["pretrain", "runs/labelled.toml"], "runs/labelled.toml: method.tasks"),
        (
            ["pretrain", "runs/mine.toml", "--set", "backbone.weights=drafts/weights.safetensors"],
            "drafts/weights.safetensors",
        ),
        (["datasets", "ingest", "drafts/mine.toml", "--root", "s3://b/x"], "drafts/mine.toml"),
        (["finetune", "compare", "s3://b/e", "--tasks", "heart_rate,drafts/task.toml"], "drafts/task.toml"),
        (["finetune", "evaluate", "--task=drafts/task.toml"], "drafts/task.toml"),
        (["pretrain", "../elsewhere.toml"], "../elsewhere.toml"),
    ],
)
def test_a_file_that_stays_on_this_machine_is_named_before_anything_is_sent(
    checkout: Path, words: list[str], named: str
) -> None:
    with pytest.raises(PlethoraError) as refused:
        command(["python", "-m", *words])
    said = str(refused.value)
    assert named in said and "does not travel with the checkout" in said and "\n" not in said


def test_a_file_of_the_checkout_travels_and_what_is_not_here_may_be_there(checkout: Path) -> None:
    for words in (
        ["pretrain", "runs/mine.toml"],
        ["pretrain", "deep/er/mine.toml"],
        ["finetune", "evaluate", "--bundle", "/nfs/b", "--out", "out/new"],
    ):
        assert command(["python", "-m", *words]).argv


def test_what_travels_is_what_ray_packs(checkout: Path, tmp_path: Path) -> None:
    from ray._private.runtime_env.packaging import _zip_files

    packed = tmp_path / "packed.zip"
    _zip_files(str(checkout), session.runtime_env()["excludes"], str(packed), include_gitignore=True)
    names = {name for name in zipfile.ZipFile(packed).namelist() if not name.endswith("/")}
    files = [p for p in checkout.rglob("*") if p.is_file()]
    assert {p.relative_to(checkout).as_posix() for p in files if session.travels(p)} == names
    assert "runs/mine.toml" in names and "out/runs/mine.toml" not in names


def test_a_secret_never_becomes_part_of_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLETHORA_SUBJECT_KEY", "a-planted-subject-key")
    with pytest.raises(PlethoraError, match="holds a secret") as refused:
        command(["python", "-m", "pretrain", PRO, *SHARED, "--set", "name=a-planted-subject-key"])
    assert "planted" not in str(refused.value)


class Cluster:
    """The Jobs API as submit uses it, in memory: jobs end when a test says so."""

    def __init__(self) -> None:
        self.known: list[SimpleNamespace] = []
        self.envs: list[dict[str, Any]] = []

    def get_address(self) -> str:
        return "http://head:8265"

    def list_jobs(self) -> list[SimpleNamespace]:
        return list(reversed(self.known))  # Ray gives no order

    def submit_job(
        self, *, entrypoint: str, submission_id: str | None, runtime_env: dict, metadata: dict
    ) -> str:
        name = submission_id or f"raysubmit_{len(self.known)}"
        if any(one.submission_id == name for one in self.known):
            raise RuntimeError(f"Job with submission_id {name} already exists")
        self.envs.append(runtime_env)
        self.known.append(
            SimpleNamespace(
                submission_id=name,
                status=SimpleNamespace(value="RUNNING"),
                entrypoint=entrypoint,
                metadata=metadata,
                start_time=1000 * len(self.known),
                end_time=None,
                driver_exit_code=None,
                message=None,
            )
        )
        return name


def test_the_same_run_again_is_the_same_job_while_it_lives_and_a_resume_afterwards() -> None:
    at: Any = Cluster()
    what = command(["python", "-m", "pretrain", "pretrain/runs/sigma/tokenizer.toml", *SHARED])
    first, new = submit.submit(at, what)
    assert (first.id, new) == ("sigma-tokenizer-1", True)
    assert first.entrypoint.endswith("--resume")
    assert submit.submit(at, what) == (first, False)
    at.known[0].status.value = "FAILED"
    second, new = submit.submit(at, what)
    assert (second.id, new) == ("sigma-tokenizer-2", True)
    assert submit.job(at, "sigma-tokenizer").id == "sigma-tokenizer-2"
    assert submit.job(at, "sigma-tokenizer-1").status == "FAILED"
    with pytest.raises(
        PlethoraError, match=r"nothing: no such job or run .*sigma-tokenizer-1, sigma-tokenizer-2"
    ):
        submit.job(at, "nothing")


def test_a_command_without_a_run_is_a_new_job_each_time_and_takes_no_resume() -> None:
    at: Any = Cluster()
    what = command(["python", "-m", "cluster", "doctor"])
    names = {submit.submit(at, what)[0].id for _ in range(2)}
    assert len(names) == 2
    assert at.known[0].entrypoint == "python -m cluster doctor"


def test_what_travels_is_the_checkout_without_secrets() -> None:
    at: Any = Cluster()
    submit.submit(at, command(["python", "-m", "cluster", "doctor"]))
    assert Path(at.envs[0]["working_dir"]) == ROOT
    assert "env_vars" not in at.envs[0]


@pytest.mark.parametrize(
    ("status", "told", "ours"),
    [("SUCCEEDED", 0, 0), ("FAILED", 2, 2), ("FAILED", None, 1), ("STOPPED", -15, 1), ("SUCCEEDED", None, 0)],
)
def test_the_exit_code_is_that_of_the_command(status: str, told: int | None, ours: int) -> None:
    assert exit_code(Job("j", "", status, "", None, None, told, "")) == ours


def test_the_run_of_the_cluster_page_may_become_a_job_and_is_called_as_the_page_says() -> None:
    (shell,) = blocks(worked("docs/cluster.md"), "bash")
    words = commands(shell)
    assert [found[:2] for found in words if found[0] == "cluster"] == [
        ["cluster", verb] for verb in ("submit", "status", "logs", "doctor", "stop")
    ]
    found = command(["python", "-m", *words[1]])
    assert (found.run, found.storage) == ("pro", "s3://bucket/runs")
    assert words[2][2] == words[3][2] == words[5][2] == found.run
    assert words[4][3] == f"{found.storage}/{found.run}"
