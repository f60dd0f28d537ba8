"""Commands as jobs of a Ray cluster: submit, follow, stop; a retried job is the same run, resumed.

A command whose run file names a run becomes the job ``<name>-1``. While that job is alive, submitting it
again follows it instead of starting a second one; afterwards it starts ``<name>-2`` with ``--resume``. Ray
itself never retries a job.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import re
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster import config, session
from cluster.errors import PlethoraError
from cluster.redact import redact

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

PORT = 8265
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
STOP_S = 60.0
_LOST = 30  # seconds that the head may be unreachable while a job is followed
# (package, verb) of the commands that train what their files name and take --resume, and of all that read one
_RESUME = {("pretrain", ""), ("finetune", "vision"), ("tuning", "")}
_READ_RUN_FILES = _RESUME | {("pretrain", "index"), ("pretrain", "materialize")}


@dataclass(frozen=True)
class Command:
    """The command of a job: ``python -m …`` and the run that it makes, if its run file names one."""

    argv: tuple[str, ...]
    run: str = ""
    storage: str = ""


@dataclass(frozen=True)
class Job:
    """A job for display. `exit_code`: of its command, None while it runs or if Ray does not report it."""

    id: str
    run: str
    status: str
    entrypoint: str
    started: float | None
    ended: float | None
    exit_code: int | None
    message: str


# ---------------------------------------------------------------- the command


def command(argv: Sequence[str]) -> Command:
    """`argv`, the words after ``--``, checked: a ``python -m …`` command of ours that can run on other
    machines.

    The name of the run comes from its run file and ``--set name=…``. PlethoraError: another program, a run
    file outside the checkout, a path that exists only on this machine, a secret among the words.
    """
    words = list(argv)
    if len(words) < 3 or Path(words[0]).name not in ("python", "python3") or words[1] != "-m":
        raise PlethoraError(
            f"`{shlex.join(words)}` is not a Plethora command: write -- python -m pretrain RUN.toml …"
        )
    package = words[2].split(".")[0]
    if not (session.ROOT / package / "__init__.py").is_file():
        raise PlethoraError(f"python -m {words[2]}: there is no such package in {session.ROOT}")
    if any(redact(word) != word for word in words):
        raise PlethoraError(
            f"the command holds a secret ({shlex.join(words)}), and the dashboard shows commands: "
            "give secrets to the nodes' environment"
        )
    words[0] = "python"
    for word in words[3:]:
        _there(word, word)
    files = [word for word in words[3:] if word.endswith(".toml")]
    if not files:
        return Command(tuple(words))
    file = (Path.cwd() / files[0]).resolve()
    if not file.is_relative_to(session.ROOT):
        raise PlethoraError(f"{files[0]} does not travel with the checkout {session.ROOT}: put it inside")
    for base in config.files(file):
        _there(str(base), files[0])
    words[words.index(files[0])] = file.relative_to(session.ROOT).as_posix()
    verb = words[3] if words[3].isalpha() else ""
    if (words[2], verb) not in _READ_RUN_FILES:
        return Command(tuple(words))
    table = config.read_toml(file, _sets(words))
    _shared(table, files[0])
    if (words[2], verb) not in _RESUME:
        return Command(tuple(words))
    return Command(tuple(words), str(table.get("name", "")), str(table.get("storage", "")))


def _there(word: str, named: str) -> None:
    """PlethoraError if a word of the command, or of a file that it names, is a path of this machine that is
    not in the job's copy of the checkout. An absolute path may be one that all nodes share."""
    value = word.rpartition("=")[2]
    for one in value.strip("[]").split(","):
        name = one.strip().strip("\"'")
        if "://" in name or not ("/" in name or name.endswith(".toml")):
            continue
        path = (Path.cwd() / name).resolve()
        inside = path.is_relative_to(session.ROOT)
        if not path.exists() or (os.path.isabs(name) and not inside):
            continue
        if not inside or not session.travels(path):
            what = name if named == word else f"{named}: {name}"
            raise PlethoraError(
                f"{what} does not travel with the checkout {session.ROOT}: what git ignores and what "
                "infra/runtime_env.yaml excludes stays on this machine; put it elsewhere in the checkout, or "
                "give s3://… or an absolute path that all nodes share"
            )


def _sets(words: Sequence[str]) -> list[str]:
    """The values of ``--set KEY=VALUE`` and ``--set=KEY=VALUE``."""
    after = [value for flag, value in itertools.pairwise(words) if flag == "--set"]
    return after + [word.removeprefix("--set=") for word in words if word.startswith("--set=")]


def _shared(table: dict[str, Any], file: str) -> None:
    """PlethoraError if a run would read from or write to the current folder of this machine: a job starts in
    a copy of the checkout that is deleted with it."""

    def strings(value: Any, key: str) -> Iterator[tuple[str, str]]:
        if isinstance(value, str):
            yield key, value
        elif isinstance(value, dict):
            for name, inner in value.items():
                if key == "corpus":
                    yield key, name
                yield from strings(inner, f"{key}.{name}" if key else name)
        elif isinstance(value, list):
            for inner in value:
                yield from strings(inner, key)

    for key, value in [("storage", table.get("storage", "out/runs")), *strings(table, "")]:
        relative = value and "://" not in value and not os.path.isabs(os.path.expanduser(value))
        place = key in ("storage", "corpus") or value.startswith("out/")
        if relative and place:
            raise PlethoraError(
                f"{file}: {key} = {value} would lie in the job's own copy of the checkout, which ends with "
                f"it: give s3://… or an absolute path that all nodes share (--set {key}=…)"
            )
        if relative:
            _there(value, f"{file}: {key}")


# ---------------------------------------------------------------- jobs


def client(address: str | None) -> JobSubmissionClient:
    """The Jobs API at `address` (``http://host:8265``; else RAY_API_SERVER_ADDRESS, RAY_ADDRESS, or this
    machine). PlethoraError: nobody answers there, or it refuses our token."""
    session.quiet_ray()
    import requests
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    where = (
        address
        or os.environ.get("RAY_API_SERVER_ADDRESS")
        or _dashboard(os.environ.get("RAY_ADDRESS", ""))
        or f"http://127.0.0.1:{PORT}"
    )
    if "://" not in where:
        where = f"http://{where}"
    session.enable_tokens()
    try:
        return JobSubmissionClient(where)
    except AuthenticationError as error:
        message = str(error).splitlines()[0]
        raise PlethoraError(
            f"{where} refuses access ({message}): set RAY_AUTH_TOKEN, or put the cluster's token into "
            f"{session.token_path()}"
        ) from error
    except (ConnectionError, requests.RequestException, RuntimeError, ValueError) as error:
        message = (str(error) or type(error).__name__).splitlines()[0]
        raise PlethoraError(
            f"{where}: no Ray cluster answers there ({message}): give --address http://HEAD:{PORT}, "
            "through a tunnel where it is not this machine"
        ) from error


def _dashboard(ray_address: str) -> str:
    """RAY_ADDRESS if it names a dashboard; a GCS address does not."""
    return ray_address if ray_address.startswith(("http://", "https://")) else ""


def jobs(at: JobSubmissionClient) -> list[Job]:
    """The cluster's submitted jobs, oldest first."""
    found = [_job(details) for details in at.list_jobs() if details.submission_id]
    return sorted(found, key=lambda job: (job.started or 0.0, job.id))


def job(at: JobSubmissionClient, name: str) -> Job:
    """The job with id `name`, else the newest job of the run `name`."""
    known = jobs(at)
    found = [one for one in known if one.id == name] or [one for one in known if one.run == name]
    if not found:
        last = ", ".join(one.id for one in known[-5:]) or "none"
        raise PlethoraError(f"{name}: no such job or run on {at.get_address()} (the last ones: {last})")
    return found[-1]


def _job(details: JobDetails) -> Job:
    metadata = details.metadata or {}
    seconds = [None if ms is None else ms / 1000 for ms in (details.start_time, details.end_time)]
    return Job(
        id=str(details.submission_id),
        run=metadata.get("run", ""),
        status=str(details.status.value),
        entrypoint=details.entrypoint,
        started=seconds[0],
        ended=seconds[1],
        exit_code=details.driver_exit_code,
        message=" ".join((details.message or "").split()),
    )


def submit(at: JobSubmissionClient, what: Command) -> tuple[Job, bool]:
    """Start `what`, or find the job that is already making the same run: (job, whether it is new)."""
    mine = [one for one in jobs(at) if what.run and one.run == what.run]
    alive = [one for one in mine if one.status not in ENDED]
    if alive:
        return alive[-1], False
    words = list(what.argv)
    if what.run and "--resume" not in words:
        words.append("--resume")  # starts afresh if there is nothing to resume
    metadata = {"run": what.run, "storage": what.storage} if what.run else {}
    table = session.runtime_env()
    wanted = f"{_identifier(what.run)}-{len(mine) + 1}" if what.run else None
    try:
        found = at.submit_job(
            entrypoint=shlex.join(words), submission_id=wanted, runtime_env=table, metadata=metadata
        )
    except RuntimeError as error:
        with contextlib.suppress(PlethoraError):  # another submitter of the same run was first
            return job(at, wanted or ""), False
        message = str(error).splitlines()[0]
        raise PlethoraError(f"{at.get_address()} did not take the job: {message}") from error
    return job(at, found), True


def _identifier(run: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "-", run)


def follow(at: JobSubmissionClient, name: str) -> Job:
    """Copy the job's output to stdout until it ends; a short outage of the head is waited out."""
    seen, lost_at = 0, None
    while True:
        try:
            seen = asyncio.run(_copy(at, name, seen))
            found = _job(at.get_job_info(name))
            lost_at = None
        except Exception as error:  # the client's errors have no common class (aiohttp, requests, Ray)
            lost_at = lost_at or time.monotonic()
            if time.monotonic() - lost_at > _LOST:
                raise PlethoraError(
                    f"{at.get_address()} stopped answering while job {name} ran: look again with "
                    f"python -m cluster status {name}"
                ) from error
            time.sleep(1)
            continue
        if found.status in ENDED:
            return found
        time.sleep(1)


async def _copy(at: JobSubmissionClient, name: str, seen: int) -> int:
    """Print the job's log after its first `seen` characters while the connection lasts."""
    at_character = 0
    async for text in at.tail_job_logs(name):
        fresh = text[max(0, seen - at_character) :]
        at_character += len(text)
        if fresh:
            print(fresh, end="", flush=True)
            seen = at_character
    return seen


def stop(at: JobSubmissionClient, name: str, seconds: float = STOP_S) -> Job:
    """Stop the job and wait until it has ended. Its run can be resumed from its last checkpoint."""
    found = job(at, name)
    if found.status not in ENDED:
        at.stop_job(found.id)
        ends = time.monotonic() + seconds
        while (found := job(at, found.id)).status not in ENDED:
            if time.monotonic() > ends:
                raise PlethoraError(f"job {found.id} did not stop in {seconds:g} s: stop it again")
            time.sleep(0.5)
    return found


def exit_code(found: Job) -> int:
    """The exit code for a caller that waited: the command's own, else 0 for success and 1 otherwise."""
    if found.exit_code is not None and found.exit_code >= 0:
        return found.exit_code
    return 0 if found.status == "SUCCEEDED" else 1


def line(found: Job) -> str:
    """A job in one line for people."""
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(found.started)) if found.started else "-"
    code = "" if found.exit_code is None else f" (exit {found.exit_code})"
    why = f"  {found.message[:160]}" if found.status == "FAILED" else ""
    return f"{found.status + code:<18} {found.id:<28} {when}  {found.entrypoint}{why}"


# ---------------------------------------------------------------- commands


def run(arguments: Any) -> dict[str, Any]:
    """`python -m cluster submit | status | logs | stop`."""
    return {"submit": _submit, "status": _status, "logs": _logs, "stop": _stop}[arguments.command](arguments)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _submit(arguments: Any) -> dict[str, Any]:
    words = arguments.words[1:] if arguments.words[:1] == ["--"] else arguments.words
    what = command(words)
    at = client(arguments.address)
    found, new = submit(at, what)
    if new:
        _say(f"job {found.id} submitted to {at.get_address()}: {found.entrypoint}")
    else:
        _say(f"run {what.run} is already job {found.id}, {found.status}: no new job was started")
    if not arguments.wait:
        _say(f"follow: python -m cluster logs {found.id} --follow; stop: python -m cluster stop {found.id}")
        return asdict(found) | {"new": new}
    return _followed(at, found) | {"new": new}


def _followed(at: JobSubmissionClient, found: Job) -> dict[str, Any]:
    try:
        found = follow(at, found.id)
    except KeyboardInterrupt:
        _say(f"job {found.id} continues on the cluster; stop it: python -m cluster stop {found.id}")
        raise
    code = exit_code(found)
    if code:
        _say(f"job {found.id} {found.status}: {found.message or 'no message'}")
    return asdict(found) | {"exit_code": code}


def _status(arguments: Any) -> dict[str, Any]:
    at = client(arguments.address)
    found = [job(at, arguments.job)] if arguments.job else jobs(at)
    for one in found:
        print(line(one))
    if not found:
        print(f"no jobs on {at.get_address()}")
    return {"jobs": [asdict(one) for one in found]}


def _logs(arguments: Any) -> dict[str, Any]:
    at = client(arguments.address)
    found = job(at, arguments.job)
    if arguments.follow:
        return _followed(at, found)
    print(at.get_job_logs(found.id), end="")
    return {"job": found.id}


def _stop(arguments: Any) -> dict[str, Any]:
    at = client(arguments.address)
    found = stop(at, arguments.job)
    print(line(found))
    return {"job": asdict(found)}
