"""python -m pretrain RUN.toml | plan RUN.toml --hours H | index RUN.toml | import KIND FILE --out URI"""

import argparse

from cluster import config
from cluster.cli import entry


def main(argv: list[str]) -> dict | None:
    if argv[:1] == ["import"]:
        from pretrain.importing import run as importing

        return importing.main(argv[1:])
    if argv[:1] == ["plan"]:
        from pretrain.planning import command

        return command.main(argv[1:])
    verb = argv.pop(0) if argv[:1] in (["index"], ["materialize"]) else "train"
    parser = argparse.ArgumentParser(
        prog=f"python -m pretrain{'' if verb == 'train' else f' {verb}'}",
        description={
            "train": "Pretrain from a run file: index, stream, train, publish a bundle. "
            "`python -m pretrain index RUN.toml` only builds the window index; "
            "`python -m pretrain plan --help` explains how to estimate a run's time and cost; "
            "`python -m pretrain import --help` explains how to import published weights.",
            "index": "Build (or read) the window index of a run's corpora and count its windows.",
            "materialize": "Write a run's windows as fixed-shape columns in its storage, with what its "
            "recipe precomputes (token ids, priors); train on them with --set stream.materialised=true.",
        }[verb],
    )
    parser.add_argument("run", metavar="RUN.toml", help="the run, as in pretrain/runs/")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a key: optim.lr=1e-3"
    )
    if verb == "train":
        parser.add_argument(
            "--resume",
            action="store_true",
            help="continue from the last intact checkpoint, if any, with the run's original settings",
        )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line on stdout"
    )
    given = parser.parse_args(argv)

    from pretrain.config import RunConfig

    run = config.load(given.run, RunConfig, given.set)
    from pretrain import driver  # torch and Ray take seconds: report a mistake in the run file first

    if verb == "materialize":
        from pretrain.materialize import materialize

        return materialize(run)
    return driver.launch(run, given.resume) if verb == "train" else driver.index(run)


if __name__ == "__main__":
    entry(main)
