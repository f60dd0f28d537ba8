"""python -m tuning SEARCH.toml: many runs, the best one, and how it was found."""

import argparse

from cluster.cli import entry


def main(argv: list[str]) -> dict | None:
    if argv[:1] in (["report"], ["watch"]):
        return of_search(*argv)
    parser = argparse.ArgumentParser(
        prog="python -m tuning",
        description="Search over run files: trials, early stopping, the best one's command; what is written "
        "lies under <storage>/<name of the search>. docs/tuning.md explains the search file. "
        "`python -m tuning report URI` writes search.html anew, `python -m tuning watch URI` follows a "
        "search; both also while it runs, from anywhere that sees its storage.",
    )
    parser.add_argument("search", metavar="SEARCH.toml", help="the search, as in tuning/searches/")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE",
        help="override a key of the search (budget.trials=8) or of its runs (corpus=URI, steps=100)",
    )  # fmt: skip
    parser.add_argument(
        "--resume", action="store_true", help="go on from what the search has written, if anything"
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line on stdout"
    )
    given = parser.parse_args(argv)

    from tuning.search import search

    return search(given.search, given.set, given.resume)


def of_search(verb: str, *argv: str) -> dict:
    what = {
        "report": "Write search.html of a search, finished or not.",
        "watch": "Follow a search, started anywhere, until it ends. Ctrl-C leaves the search alone.",
    }
    parser = argparse.ArgumentParser(prog=f"python -m tuning {verb}", description=what[verb])
    parser.add_argument("search", metavar="URI", help="its folder, <storage>/<name>")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line on stdout"
    )
    given = parser.parse_args(argv)
    if verb == "watch":
        from tuning.table import watch

        return watch(given.search)
    from tuning.report import report

    page = report(given.search)
    print(page)
    return {"report": page}


if __name__ == "__main__":
    entry(main)
