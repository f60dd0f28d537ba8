"""`python -m cluster`: this machine, its runs, bundles, and jobs on a cluster."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from cluster.cli import entry

_COLOURS = {"ok": "\x1b[32m", "warn": "\x1b[33m", "fail": "\x1b[31m"}


def main(argv: list[str]) -> dict[str, Any] | None:
    parser = argparse.ArgumentParser(
        prog="python -m cluster", description="Machine, buckets, bundles and jobs."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    about = "check this machine and its store, with a remedy for each finding; exit 1 if any check fails"
    doctor = commands.add_parser("doctor", help=about, description=about)
    doctor.add_argument("--storage", metavar="URI", help="also test access and rights (a path or s3://…)")
    doctor.add_argument("--ray", action="store_true", help="also start (or join) Ray")
    doctor.add_argument(
        "--run", metavar="URI", help="instead: diagnose a run's bottleneck from its telemetry"
    )
    about = "read every byte of a bundle and compare it with its checksums"
    verify = commands.add_parser("verify", help=about, description=about)
    verify.add_argument("bundle", metavar="URI", help="the bundle (or evaluation): a path or s3://…")
    for command in (doctor, verify, *_jobs(commands)):
        command.add_argument("--json", action="store_true", help="end with one JSON object on stdout")
    arguments = parser.parse_args(argv)
    if arguments.command == "verify":
        return _verify(arguments.bundle)
    if arguments.command != "doctor":
        from cluster import submit

        return submit.run(arguments)
    if arguments.run:
        return _diagnose(arguments.run)
    return _doctor(arguments.storage, arguments.ray)


def _jobs(commands: Any) -> list[argparse.ArgumentParser]:
    """submit, status, logs, stop."""
    about = "run a command on a Ray cluster, with this checkout; the same run again is followed or resumed"
    submit = commands.add_parser("submit", help=about, description=about)
    submit.add_argument(
        "--wait", action="store_true", help="print the job's log until it ends, and exit with its code"
    )
    submit.add_argument("words", nargs=argparse.REMAINDER, metavar="-- python -m …", help="the command")
    about = "list the cluster's jobs, or show one"
    status = commands.add_parser("status", help=about, description=about)
    about = "print a job's output"
    logs = commands.add_parser("logs", help=about, description=about)
    logs.add_argument("--follow", action="store_true", help="follow the job to its end; exit with its code")
    about = "stop a job; submitting its run again resumes it"
    stop = commands.add_parser("stop", help=about, description=about)
    for command in (logs, stop):
        command.add_argument("job", metavar="JOB", help="its id, or the name of its run")
    status.add_argument("job", metavar="JOB", nargs="?", help="its id, or the name of its run")
    for command in (submit, status, logs, stop):
        command.add_argument(
            "--address",
            metavar="URL",
            help="the cluster's dashboard (default: RAY_API_SERVER_ADDRESS, else http://127.0.0.1:8265)",
        )
    return [submit, status, logs, stop]


def _diagnose(uri: str) -> dict[str, Any]:
    from cluster import diagnose

    found = diagnose.diagnose(uri)
    for line in diagnose.lines(found):
        print(line)
    return diagnose.as_dict(found)


def _verify(uri: str) -> dict[str, Any]:
    from cluster import bundle

    found = bundle.verify(uri)
    print(f"ok {found['uri']}: {found['kind']}, {found['files']} files, {found['bytes']:,} bytes")
    return found


def _doctor(storage_uri: str | None, start_ray: bool) -> dict[str, Any]:
    from cluster import doctor

    checks = []
    for check in doctor.examine(storage_uri, start_ray):
        checks.append(check)
        status = f"{check.status:<4}"
        if sys.stdout.isatty():
            status = f"{_COLOURS[check.status]}{status}\x1b[0m"
        print(f"{status}  {check.name:<16} {check.found}", flush=True)
        if check.remedy:
            print(f"      {'':<16} → {check.remedy}", flush=True)
    count = {status: sum(check.status == status for check in checks) for status in ("ok", "warn", "fail")}
    print(f"{count['ok']} ok, {count['warn']} to know, {count['fail']} to mend")
    return {"ok": count["fail"] == 0, "checks": [doctor.as_dict(check) for check in checks]}


if __name__ == "__main__":
    entry(main)
