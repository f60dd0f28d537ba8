"""python -m tuning SEARCH.toml: run a search; or report on one, or follow it."""

import argparse

from cluster.cli import entry

ABOUT = """\
Search over run files: Ray Tune runs the trials, stops the poor ones early, and the best trial is printed as a
command. Everything is written under <storage>/<name of the search>. docs/tuning.md explains the search file.
`python -m tuning report URI` rewrites search.html, and `python -m tuning watch URI` follows a search: both
also while it runs, on any machine that can read its storage."""
VERBS = {
    "report": "Write the search.html of a search, finished or not.",
    "watch": "Follow a search, wherever it runs, until it ends. Ctrl-C leaves it running.",
}


def main(argv: list[str]) -> dict | None:
    verb = argv[0] if argv and argv[0] in VERBS else ""
    parser = argparse.ArgumentParser(
        prog=f"python -m tuning {verb}".strip(), description=VERBS.get(verb, ABOUT)
    )
    if verb:
        parser.add_argument("search", metavar="URI", help="the folder of the search, <storage>/<name>")
    else:
        sets = "override a key of the search (budget.trials=8) or of its runs (corpus=URI, steps=100)"
        parser.add_argument("search", metavar="SEARCH.toml", help="a search file, as in tuning/searches/")
        parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=sets)
        resume = "continue the search from what it has written, if anything"
        parser.add_argument("--resume", action="store_true", help=resume)
    last = "print one JSON object as the last line on stdout"
    parser.add_argument("--json", action="store_true", help=last)
    given = parser.parse_args(argv[1:] if verb else argv)
    if verb == "watch":
        from tuning.live import watch

        return watch(given.search)
    if verb == "report":
        from tuning.report import report

        page = report(given.search)
        print(page)
        return {"report": page}
    from tuning.search import search

    return search(given.search, given.set, given.resume)


if __name__ == "__main__":
    entry(main)
