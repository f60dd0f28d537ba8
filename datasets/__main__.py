"""python -m datasets synthesize | probe | ingest | inspect"""

import argparse
import re
from pathlib import Path
from typing import Any

from cluster import redact
from cluster.cli import entry
from cluster.errors import PlethoraError

SHOWN = 20  # maximum lines of refusals, and of repairs


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m datasets", description="Make corpora from recordings, and inspect them."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, what: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=what, description=what)
        command.add_argument("--json", action="store_true", help="one JSON object as the last line of stdout")
        return command

    make = add("synthesize", "Make a corpus of synthetic people with known heart rate, pressure, breathing…")
    make.add_argument("--hours", type=float, required=True, help="total hours of recording")
    make.add_argument("--subjects", type=int, required=True, help="how many people")
    make.add_argument("--seed", type=int, default=0, help="same seed, same bytes (default 0)")
    make.add_argument("--out", required=True, help="folder or s3://… of the corpus")
    make.add_argument("--force", action="store_true", help="replace an existing corpus")
    make.add_argument("--noise", type=float, default=1.0, help="sensor noise relative to a good monitor (1)")
    shares = {"motion": 0.02, "gaps": 0.003, "flats": 0.003, "clips": 0.001}
    for name, default in shares.items():
        make.add_argument(
            f"--{name}", type=float, default=default, help=f"share of time with {name} ({default})"
        )
    for name, default in {"af": 0.12, "ectopy": 0.12}.items():
        make.add_argument(
            f"--{name}", type=float, default=default, help=f"share of people with {name} ({default})"
        )
    make.add_argument("--wavelengths", type=int, default=1, choices=(1, 2), help="2: PPG red beside infrared")

    read = add("ingest", "Read source recordings into a corpus, with a ledger of everything refused.")
    read.add_argument(
        "descriptor", help="what the recordings are: datasets/corpora/NAME.toml, or your own file"
    )
    read.add_argument(
        "--root", required=True, help="folder, s3://…, https://… (any URL of fsspec) with the source files"
    )
    read.add_argument("--out", required=True, help="folder or s3://… of the corpus")
    read.add_argument("--force", action="store_true", help="replace an existing corpus of other input")

    ask = add("probe", "Show what recordings contain, and write a first descriptor.")
    ask.add_argument(
        "files", nargs="+", metavar="FILE", help="files, or a folder: reads one file of each kind"
    )
    ask.add_argument("--write", metavar="TOML", help="write a descriptor for them: check it, then ingest")
    ask.add_argument(
        "--signal",
        action="append",
        default=[],
        metavar="MODALITY=CHANNEL",
        help="assign a channel to a modality",
    )

    look = add("inspect", "Show what is in a corpus; --plot draws it.")
    look.add_argument("corpus", help="folder or s3://… of the corpus")
    look.add_argument("--plot", metavar="PNG", help="write a picture")
    return parser


def main(argv: list[str]) -> dict[str, Any]:
    """Run one command; returns what --json prints."""
    args = _parser().parse_args(argv)
    given = {k: v for k, v in vars(args).items() if k not in ("command", "json")}
    if args.command == "inspect":
        return _inspect(args.corpus, args.plot, args.json)
    if args.command == "probe":
        return _probe(args.files, args.write, args.signal, args.json)
    if args.command == "ingest":
        from datasets.ingest import ingest

        made = ingest(given.pop("descriptor"), **given)
    else:
        from datasets.synthetic import synthesize

        made = synthesize(given.pop("out"), **given)
    if not args.json:
        _report(made)
    return made


def _probe(files: list[str], write: str | None, signals: list[str], as_json: bool) -> dict[str, Any]:
    from datasets import probe

    if write and Path(write).exists():
        raise PlethoraError(f"--write {write}: the file exists and may have been edited: name another file")
    if write and not Path(write).absolute().parent.is_dir():
        raise PlethoraError(f"--write {write}: its folder does not exist: create it, or name another")
    named = dict(word.partition("=")[::2] for word in signals)
    found = probe.probe(files)
    if not as_json:
        print(redact.lines(probe.report(found)))
    made: dict[str, Any] = {"files": [probe.facts(one) for one in found], "descriptor": write}
    if write:
        name = re.sub(r"\W+", "_", Path(write).stem).strip("_").lower() or "recordings"
        Path(write).write_text(probe.descriptor(found, name, named))
        if not as_json:
            root = Path(files[0]) if Path(files[0]).is_dir() else Path(files[0]).parent
            print(
                f"\n{write}: check it, then: python -m datasets ingest {write} --root {root} --out out/{name}"
            )
    return made


def _inspect(uri: str, picture: str | None, as_json: bool) -> dict[str, Any]:
    from datasets import inspect

    about = inspect.describe(uri)
    if not as_json:
        print(inspect.table(about))
    if picture:
        inspect.plot(uri, picture)
        about["plot"] = picture
        if not as_json:
            print(f"\n  picture: {picture}")
    return about


def _report(made: dict[str, Any]) -> None:
    from datasets.assemble import folded
    from datasets.inspect import table

    if made["already_there"]:
        print("already there, made of the same input: left as it is")
    print(table(made))
    for messages in (made["problems"], made["notes"]):
        lines = folded(messages)
        print("".join(f"  {line}\n" for line in lines[:SHOWN]), end="")
        if len(lines) > SHOWN:
            print(f"  … and {len(lines) - SHOWN} more")


if __name__ == "__main__":
    entry(main)
