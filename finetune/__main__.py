"""python -m finetune COMMAND: a published bundle measured and put to use, or trained on labels."""

import argparse
from collections.abc import Callable
from typing import Any

from cluster.cli import entry

MODE = "the bundle's mode (default: its only one)"
TASK = "a task of finetune/tasks, or a TOML file"


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m finetune", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (
        _evaluate, _compare, _shift, _robustness, _priors, _vision, _images, _embed, _reconstruct, _compress,
        _privacy,
    ):  # fmt: skip
        add(commands)
    return top


def main(argv: list[str]) -> dict[str, Any]:
    given = parser().parse_args(argv)
    work: Callable[[argparse.Namespace], dict[str, Any]] = given.work
    return work(given)


# ---------------------------------------------------------------- commands: options, and what they do


def _evaluate(commands: Any) -> None:
    def work(given: argparse.Namespace) -> dict[str, Any]:
        from finetune.evaluate import evaluate

        return evaluate(
            given.bundle, given.corpus, given.task, given.out, given.subjects, given.folds, given.seed,
            given.mode, not given.no_publish, **_chosen(given),
        )  # fmt: skip

    one = _command(commands, "evaluate", work, "a task's table: this encoder beside its baselines")
    one.add_argument("--bundle", required=True, metavar="URI", help="a published bundle")
    one.add_argument("--corpus", required=True, metavar="URI", help="a corpus with the task's labels")
    one.add_argument("--task", required=True, metavar="NAME", help=TASK)
    one.add_argument("--out", metavar="DIR", help="also write report, results and pictures here")
    one.add_argument("--mode", metavar="NAME", help=MODE)
    one.add_argument("--no-publish", action="store_true", help="write nothing beside the bundle")
    _subjects(one)
    _table(one)
    _folds(one)


def _compare(commands: Any) -> None:
    def work(given: argparse.Namespace) -> dict[str, Any]:
        from finetune.compare import compare

        return compare(
            given.bundles, given.corpus, _names(given.tasks), given.out, given.subjects, given.folds,
            given.seed, predictions=tuple(given.predictions), **_chosen(given),
        )  # fmt: skip

    one = _command(
        commands, "compare", work, "encoders on the same windows and folds: a table a task, a page"
    )
    one.add_argument("bundles", nargs="+", metavar="BUNDLE[#MODE]", help="published bundles")
    one.add_argument("--corpus", required=True, metavar="URI", help="a corpus with the tasks' labels")
    one.add_argument("--tasks", required=True, metavar="A,B", help="tasks of finetune/tasks, or TOML files")
    one.add_argument("--out", required=True, metavar="DIR", help="page, tables, predictions and picture")
    one.add_argument(
        "--predictions", action="append", default=[], metavar="FILE",
        help="another model's out-of-sample predictions as a row: Parquet with record, start_s, a column a "
        "task (again for more)",
    )  # fmt: skip
    _subjects(one)
    _table(one)
    _folds(one)


def _shift(commands: Any) -> None:
    def work(given: argparse.Namespace) -> dict[str, Any]:
        from finetune.shift import shift

        names = _names(given.tasks)
        return shift(given.bundles, given.fit, given.test, names, given.out, _held_options(given))

    one = _command(commands, "shift", work, "probes fitted on one corpus, tested on another")
    one.add_argument("bundles", nargs="+", metavar="BUNDLE[#MODE]", help="published bundles")
    one.add_argument("--fit", required=True, metavar="URI", help="the corpus that probes are fitted on")
    one.add_argument("--test", required=True, metavar="URI", help="the corpus that they are tested on")
    one.add_argument("--tasks", required=True, metavar="A,B", help="tasks of finetune/tasks, or TOML files")
    one.add_argument("--out", required=True, metavar="DIR", help="table, predictions and picture go here")
    _held(one)
    _folds(one)


def _robustness(commands: Any) -> None:
    def work(given: argparse.Namespace) -> dict[str, Any]:
        from finetune.robustness import robustness

        kinds = _names(given.kinds)
        return robustness(given.bundles, given.corpus, given.task, given.out, _held_options(given), kinds)

    one = _command(commands, "robustness", work, "probes of clean windows, tested on damaged ones")
    one.add_argument("bundles", nargs="+", metavar="BUNDLE[#MODE]", help="published bundles")
    one.add_argument("--corpus", required=True, metavar="URI", help="a corpus with the task's labels")
    one.add_argument("--task", required=True, metavar="NAME", help=TASK)
    one.add_argument("--out", required=True, metavar="DIR", help="tables and curves go here")
    one.add_argument(
        "--kinds", default="", metavar="A,B",
        help="of motion, wander, clipping, dropouts, wrong_rate, inverted (default: all)",
    )  # fmt: skip
    _held(one)
    _folds(one, seed_of="folds, damage and bootstrap")


def _priors(commands: Any) -> None:
    def work(given: argparse.Namespace) -> dict[str, Any]:
        from finetune.priors import priors

        return priors(given.bundle, given.corpus, given.out, given.task, given.by, given.draws, given.seed)

    one = _command(commands, "priors", work, "what SIGMA's priors and masks make of two classes of windows")
    one.add_argument("bundle", metavar="BUNDLE", help="a bundle of SIGMA's masked stage")
    one.add_argument("--corpus", required=True, metavar="URI", help="a corpus with the task's labels")
    one.add_argument("--out", required=True, metavar="DIR", help="table, patches and picture go here")
    one.add_argument(
        "--task", default="alarm_truth", metavar="NAME", help="two classes (default alarm_truth)"
    )
    one.add_argument("--by", metavar="LABEL", help="also by this label of whole records: alarm")
    one.add_argument("--draws", type=at_least(1), default=64, help="masks a window (default 64)")
    one.add_argument("--seed", type=int, default=0, help="of masks and bootstrap (default 0)")


def _vision(commands: Any) -> None:
    def work(given: argparse.Namespace) -> dict[str, Any]:
        from finetune.vision import main as supervised

        return supervised(given)

    about = "train on labels: images of PPG, or an encoder under an MLP"
    one = _command(commands, "vision", work, about, aliases=["tune"])
    one.add_argument("run", nargs="?", metavar="RUN.toml", help="the run, as in finetune/runs/")
    _set(one, "override a key: method.mode=full")
    one.add_argument("--resume", action="store_true", help="go on from the last checkpoint, if there is one")
    one.add_argument(
        "--transfer", metavar="BUNDLE", help="instead of a run: judge this adapter on --corpus as it is"
    )
    one.add_argument("--merge", metavar="BUNDLE", help="instead of a run: this adapter as one ONNX in --out")
    one.add_argument("--corpus", metavar="URI", help="of --transfer")
    one.add_argument(
        "--weights", metavar="PATH", help="of --transfer and --merge: where the base's weights lie now"
    )
    one.add_argument("--out", metavar="DIR", help="also write figures, predictions and split here")


def _images(commands: Any) -> None:
    def work(given: argparse.Namespace) -> dict[str, Any]:
        from finetune.reports.image_sheet import sheet

        return sheet(given.corpus, given.out, given.set, given.windows, seed=given.seed)

    one = _command(commands, "images", work, "a picture of what a vision backbone sees of real windows")
    one.add_argument("--corpus", required=True, metavar="URI", help="a corpus with PPG")
    one.add_argument("--out", required=True, metavar="FILE.png", help="the picture")
    _set(one, "a constant of finetune/imaging.py: preset=ppg_bp, stride=8, …")
    one.add_argument("--windows", type=at_least(1), default=3, help="how many (default 3)")
    one.add_argument("--seed", type=int, default=0, help="of the draw of windows (default 0)")


def _embed(commands: Any) -> None:
    def work(given: argparse.Namespace) -> dict[str, Any]:
        from finetune.embed import embed

        counts = embed(
            given.bundle, given.input, given.out, given.window_s, given.hop_s, given.mode, given.force
        )
        refused = ", ".join(f"{reason} {count}" for reason, count in counts["refused"].items()) or "none"
        tail = counts.get("unused_tail_s", 0)
        unused = f"; the last {tail:g} s of each row fill no window and are not used" if tail else ""
        print(f"{counts['windows']} windows of {counts['window_s']:g} s → {counts['dim']} numbers each")
        print(f"refused: {refused}{unused}")
        print(f"written: {counts['out']}")
        return counts

    one = _command(commands, "embed", work, "one vector a window, as Parquet")
    one.add_argument("--bundle", required=True, metavar="URI", help="a published bundle")
    one.add_argument(
        "--input", required=True, metavar="URI",
        help="a corpus, or an .npz with samples (`ppg`, (samples,) or (n, samples)) and `rate` in Hz; "
        "for several inputs each of them, and `ppg_rate`, `ecg_rate` where they differ",
    )  # fmt: skip
    one.add_argument("--out", required=True, metavar="URI", help="the Parquet file to write")
    one.add_argument("--window-s", type=float, metavar="S", help="window (default: the encoder's own)")
    one.add_argument("--hop-s", type=float, metavar="S", help="step between windows (default: the window)")
    one.add_argument("--mode", metavar="NAME", help=MODE)
    one.add_argument("--force", action="store_true", help="replace --out if it exists")


def _reconstruct(commands: Any) -> None:
    def work(given: argparse.Namespace) -> dict[str, Any]:
        from finetune.reconstruct import reconstruct

        return reconstruct(
            given.bundle, given.input, given.source, given.target, given.out, given.subjects, given.windows,
            given.folds, given.seed,
        )  # fmt: skip

    one = _command(commands, "reconstruct", work, "one signal from another, beside the true one")
    one.add_argument("--bundle", required=True, metavar="URI", help="a published bundle with decoders (M2AE)")
    one.add_argument(
        "--input", required=True, metavar="URI",
        help="a corpus with both signals, or an .npz with the given one (and, for figures, the true other)",
    )  # fmt: skip
    one.add_argument("--from", required=True, dest="source", metavar="MODALITY", help="the one given: ppg")
    one.add_argument("--to", required=True, dest="target", metavar="MODALITY", help="the one to rebuild: ecg")
    one.add_argument("--out", required=True, metavar="DIR", help="table, pictures and rebuilt windows")
    one.add_argument(
        "--windows", type=at_least(1), default=2000, help="at most so many, spread (default 2000)"
    )
    _subjects(one)
    _folds(one, "subject-disjoint, of the references")


def _compress(commands: Any) -> None:
    def work(given: argparse.Namespace) -> dict[str, Any]:
        from finetune.compress import compress

        return compress(
            given.bundle, given.corpus, given.out, given.task, given.student, given.set, given.window_s,
            given.resume, given.folds, given.seed,
        )  # fmt: skip

    one = _command(commands, "compress", work, "an int8 bundle and a distilled student, and what they lose")
    one.add_argument("--bundle", required=True, metavar="URI[#MODE]", help="the bundle to make smaller")
    one.add_argument("--corpus", required=True, metavar="URI", help="to calibrate, distil and measure on")
    one.add_argument("--out", required=True, metavar="URI", help="the new bundles and the table go here")
    one.add_argument(
        "--task", nargs="+", default=[], metavar="NAME", help="tasks whose loss is measured (finetune/tasks)"
    )
    one.add_argument("--student", metavar="RUN.toml", help="also distil one: finetune/runs/distill/tiny.toml")
    _set(one, "override a key of the student's run")
    one.add_argument("--window-s", type=float, metavar="S", help="window (default: the encoder's own)")
    one.add_argument("--resume", action="store_true", help="go on in an --out that was left unfinished")
    _folds(one)


def _privacy(commands: Any) -> None:
    def work(given: argparse.Namespace) -> dict[str, Any]:
        from finetune.privacy import privacy

        return privacy(
            given.bundle, given.corpus, given.mode, given.window_s, given.gallery, given.out, given.subjects,
            given.folds, given.seed, not given.no_publish,
        )  # fmt: skip

    one = _command(commands, "privacy", work, "whom a vector gives away, and how much of the waveform")
    one.add_argument("--bundle", required=True, metavar="URI", help="a published bundle")
    one.add_argument("--corpus", required=True, metavar="URI", help="a corpus with the encoder's signals")
    one.add_argument("--mode", metavar="NAME", help=MODE)
    one.add_argument(
        "--window-s", type=float, metavar="S", help="window (default: the encoder's own, at most 30 s)"
    )
    one.add_argument("--gallery", metavar="N,N", help="sizes of N (default 2,5,10,… up to all subjects)")
    one.add_argument("--out", metavar="DIR", help="also write the card, results and pictures here")
    one.add_argument("--no-publish", action="store_true", help="write nothing beside the bundle")
    _subjects(one)
    _folds(one, "subject-disjoint, of the decoders", "folds, decoders and bootstrap")


# ---------------------------------------------------------------- what several commands take


def at_least(least: int) -> Callable[[str], int]:
    """For argparse: whole numbers from `least` on."""

    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least} on")
        return int(text)

    return number


def _command(
    commands: Any, name: str, work: Callable[[argparse.Namespace], dict[str, Any]], about: str, **more: Any
) -> argparse.ArgumentParser:
    one: argparse.ArgumentParser = commands.add_parser(name, help=about, description=about, **more)
    one.set_defaults(work=work)
    one.add_argument("--json", action="store_true", help="results as one JSON line at the end")
    return one


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _set(one: argparse.ArgumentParser, about: str) -> None:
    one.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=about)


def _folds(
    one: argparse.ArgumentParser, about: str = "subject-disjoint folds", seed_of: str = "folds and bootstrap"
) -> None:
    one.add_argument("--folds", type=at_least(2), default=5, help=f"{about} (default 5)")
    one.add_argument("--seed", type=int, default=0, help=f"of {seed_of} (default 0)")


def _subjects(one: argparse.ArgumentParser) -> None:
    one.add_argument(
        "--subjects", choices=("unseen", "all"), default="unseen",
        help="unseen (default): leave out whom pretraining saw; all: keep them, with a warning",
    )  # fmt: skip


def _held(one: argparse.ArgumentParser) -> None:
    """Of evaluations whose windows are a task's."""
    one.add_argument(
        "--allow-overlap", action="store_true",
        help="keep subjects that pretraining saw; every table then says that its figures flatter",
    )  # fmt: skip
    one.add_argument("--window-s", type=float, metavar="S", help="window (default: the task's)")
    one.add_argument(
        "--cache", metavar="URI", help="where vectors are kept (default ~/.cache/plethora/vectors)"
    )


def _held_options(given: argparse.Namespace) -> Any:
    from finetune.evaluation.table import Options

    return Options(
        allow_overlap=given.allow_overlap, folds=given.folds, seed=given.seed, window_s=given.window_s,
        cache=given.cache,
    )  # fmt: skip


def _table(one: argparse.ArgumentParser) -> None:
    """Of whole tables."""
    _held(one)
    one.add_argument(
        "--published-protocol", action="store_true",
        help="also the leaking window-level folds of many papers, marked as such",
    )  # fmt: skip
    one.add_argument(
        "--split", metavar="FILE",
        help='one given split instead of folds: JSON {"train": [...], "test": [...]} of subjects or records',
    )  # fmt: skip
    one.add_argument("--no-few-shot", action="store_true", help="no curves over fewer training subjects")


def _chosen(given: argparse.Namespace) -> dict[str, Any]:
    """`_table` as fields of `finetune.evaluation.table.Options`."""
    return {
        "allow_overlap": given.allow_overlap, "published_protocol": given.published_protocol,
        "split": given.split, "window_s": given.window_s, "few_shot": not given.no_few_shot,
        "cache": given.cache,
    }  # fmt: skip


if __name__ == "__main__":
    entry(main)
