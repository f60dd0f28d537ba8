"""`python -m cluster`: look at this machine (doctor), look at a bundle (verify)."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from cluster.cli import entry

_COLOURS = {"ok": "\x1b[32m", "warn": "\x1b[33m", "fail": "\x1b[31m"}


def main(argv: list[str]) -> dict[str, Any] | None:
    parser = argparse.ArgumentParser(prog="python -m cluster", description="Machine, buckets and bundles.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    about = "check this machine and its store, with a remedy for each finding; exit 1 if any check fails"
    doctor = commands.add_parser("doctor", help=about, description=about)
    doctor.add_argument("--storage", metavar="URI", help="also try reach and rights there (a path or s3://…)")
    doctor.add_argument("--ray", action="store_true", help="also start (or join) Ray")
    about = "read every byte of a bundle and compare it with its sums"
    verify = commands.add_parser("verify", help=about, description=about)
    verify.add_argument("bundle", metavar="URI", help="the bundle (or evaluation): a path or s3://…")
    for command in (doctor, verify):
        command.add_argument("--json", action="store_true", help="end with one JSON object on stdout")
    arguments = parser.parse_args(argv)
    if arguments.command == "verify":
        return _verify(arguments.bundle)
    return _doctor(arguments.storage, arguments.ray)


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
