"""python -m finetune evaluate | compare | embed | reconstruct | privacy: a bundle measured and put to use."""

import argparse
from collections.abc import Callable
from typing import Any

from cluster.cli import entry


def at_least(least: int) -> Callable[[str], int]:
    """For argparse: whole numbers from `least` on."""

    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least} on")
        return int(text)

    return number


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m finetune", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    one = commands.add_parser("evaluate", help="a task's table: this encoder beside four baselines")
    one.add_argument("--bundle", required=True, metavar="URI", help="a published bundle")
    one.add_argument("--corpus", required=True, metavar="URI", help="a corpus with the task's labels")
    one.add_argument("--task", required=True, metavar="NAME", help="a task of finetune/tasks, or a TOML file")
    one.add_argument("--out", metavar="DIR", help="also write report, results and pictures here")
    one.add_argument("--mode", metavar="NAME", help="the bundle's mode (default: its only one)")
    one.add_argument(
        "--subjects", choices=("unseen", "all"), default="unseen",
        help="unseen (default): leave out whom pretraining saw; all: keep them, with a warning",
    )  # fmt: skip
    one.add_argument("--folds", type=at_least(2), default=5, help="subject-disjoint folds (default 5)")
    one.add_argument("--seed", type=int, default=0, help="of folds and bootstrap (default 0)")
    _table_options(one)
    one.add_argument("--no-publish", action="store_true", help="write nothing beside the bundle")
    one.add_argument("--json", action="store_true", help="results as one JSON line at the end")

    some = commands.add_parser("compare", help="encoders on the same windows and folds: one table a task")
    some.add_argument("bundles", nargs="+", metavar="BUNDLE[#MODE]", help="published bundles")
    some.add_argument("--corpus", required=True, metavar="URI", help="a corpus with the tasks' labels")
    some.add_argument("--tasks", required=True, metavar="A,B", help="tasks of finetune/tasks, or TOML files")
    some.add_argument("--out", required=True, metavar="DIR", help="tables, predictions and picture go here")
    some.add_argument(
        "--subjects", choices=("unseen", "all"), default="unseen",
        help="unseen (default): leave out whom any encoder saw in pretraining; all: keep them",
    )  # fmt: skip
    some.add_argument("--folds", type=at_least(2), default=5, help="subject-disjoint folds (default 5)")
    some.add_argument("--seed", type=int, default=0, help="of folds and bootstrap (default 0)")
    _table_options(some)
    some.add_argument(
        "--predictions", action="append", default=[], metavar="FILE",
        help="another model's out-of-sample predictions as a row: Parquet with record, start_s, a column a "
        "task (again for more)",
    )  # fmt: skip
    some.add_argument("--json", action="store_true", help="results as one JSON line at the end")

    _shift_options(commands)
    _robustness_options(commands)
    _priors_options(commands)
    _vision_options(commands)
    _images_options(commands)
    two = commands.add_parser("embed", help="one vector a window, as Parquet")
    two.add_argument("--bundle", required=True, metavar="URI", help="a published bundle")
    two.add_argument(
        "--input", required=True, metavar="URI",
        help="a corpus, or an .npz with samples (`ppg`, (samples,) or (n, samples)) and `rate` in Hz; "
        "for several inputs each of them, and `ppg_rate`, `ecg_rate` where they differ",
    )  # fmt: skip
    two.add_argument("--out", required=True, metavar="URI", help="the Parquet file to write")
    two.add_argument("--window-s", type=float, metavar="S", help="window (default: the encoder's own)")
    two.add_argument("--hop-s", type=float, metavar="S", help="step between windows (default: the window)")
    two.add_argument("--mode", metavar="NAME", help="the bundle's mode (default: its only one)")
    two.add_argument("--force", action="store_true", help="replace --out if it exists")
    two.add_argument("--json", action="store_true", help="counts as one JSON line at the end")

    three = commands.add_parser("reconstruct", help="one signal from another, beside the true one")
    three.add_argument(
        "--bundle", required=True, metavar="URI", help="a published bundle with decoders (M2AE)"
    )
    three.add_argument(
        "--input", required=True, metavar="URI",
        help="a corpus with both signals, or an .npz with the given one (and, for figures, the true other)",
    )  # fmt: skip
    three.add_argument("--from", required=True, dest="source", metavar="MODALITY", help="the one given: ppg")
    three.add_argument(
        "--to", required=True, dest="target", metavar="MODALITY", help="the one to rebuild: ecg"
    )
    three.add_argument("--out", required=True, metavar="DIR", help="table, pictures and rebuilt windows")
    three.add_argument(
        "--subjects", choices=("unseen", "all"), default="unseen",
        help="unseen (default): leave out whom pretraining saw; all: keep them",
    )  # fmt: skip
    three.add_argument(
        "--windows", type=at_least(1), default=2000, help="at most so many, spread (default 2000)"
    )
    three.add_argument(
        "--folds", type=at_least(2), default=5, help="subject-disjoint, of the references (default 5)"
    )
    three.add_argument("--seed", type=int, default=0, help="of folds and bootstrap (default 0)")
    three.add_argument("--json", action="store_true", help="results as one JSON line at the end")

    four = commands.add_parser("privacy", help="whom a vector gives away, and how much of the waveform")
    four.add_argument("--bundle", required=True, metavar="URI", help="a published bundle")
    four.add_argument("--corpus", required=True, metavar="URI", help="a corpus with the encoder's signals")
    four.add_argument("--mode", metavar="NAME", help="the bundle's mode (default: its only one)")
    four.add_argument(
        "--window-s", type=float, metavar="S", help="window (default: the encoder's own, at most 30 s)"
    )
    four.add_argument("--gallery", metavar="N,N", help="sizes of N (default 2,5,10,… up to all subjects)")
    four.add_argument("--out", metavar="DIR", help="also write the card, results and pictures here")
    four.add_argument(
        "--subjects", choices=("unseen", "all"), default="unseen",
        help="unseen (default): leave out whom pretraining saw; all: keep them, with a warning",
    )  # fmt: skip
    four.add_argument(
        "--folds", type=at_least(2), default=5, help="subject-disjoint, of the decoders (default 5)"
    )
    four.add_argument("--seed", type=int, default=0, help="of folds, decoders and bootstrap (default 0)")
    four.add_argument("--no-publish", action="store_true", help="write nothing beside the bundle")
    four.add_argument("--json", action="store_true", help="results as one JSON line at the end")
    _compress_options(commands)
    return top


def _compress_options(commands: Any) -> None:
    one = commands.add_parser("compress", help="an int8 bundle and a distilled student, and what they lose")
    one.add_argument("--bundle", required=True, metavar="URI[#MODE]", help="the bundle to make smaller")
    one.add_argument("--corpus", required=True, metavar="URI", help="to calibrate, distil and measure on")
    one.add_argument("--out", required=True, metavar="URI", help="the new bundles and the table go here")
    one.add_argument(
        "--task", nargs="+", default=[], metavar="NAME", help="tasks whose loss is measured (finetune/tasks)"
    )
    one.add_argument("--student", metavar="RUN.toml", help="also distil one: finetune/runs/distill/tiny.toml")
    one.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the student's run"
    )
    one.add_argument("--window-s", type=float, metavar="S", help="window (default: the encoder's own)")
    one.add_argument("--resume", action="store_true", help="go on in an --out that was left unfinished")
    one.add_argument("--folds", type=at_least(2), default=5, help="subject-disjoint folds (default 5)")
    one.add_argument("--seed", type=int, default=0, help="of folds and bootstrap (default 0)")
    one.add_argument("--json", action="store_true", help="results as one JSON line at the end")


def _images_options(commands: Any) -> None:
    one = commands.add_parser("images", help="a picture of what a vision backbone sees of real windows")
    one.add_argument("--corpus", required=True, metavar="URI", help="a corpus with PPG")
    one.add_argument("--out", required=True, metavar="FILE.png", help="the picture")
    one.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE",
        help="a constant of finetune/imaging.py: preset=ppg_bp, stride=8, …",
    )  # fmt: skip
    one.add_argument("--windows", type=at_least(1), default=3, help="how many (default 3)")
    one.add_argument("--seed", type=int, default=0, help="of the draw of windows (default 0)")
    one.add_argument("--json", action="store_true", help="sizes as one JSON line at the end")


def _shift_options(commands: Any) -> None:
    one = commands.add_parser("shift", help="probes fitted on one corpus, tested on another")
    one.add_argument("bundles", nargs="+", metavar="BUNDLE[#MODE]", help="published bundles")
    one.add_argument("--fit", required=True, metavar="URI", help="the corpus that probes are fitted on")
    one.add_argument("--test", required=True, metavar="URI", help="the corpus that they are tested on")
    one.add_argument("--tasks", required=True, metavar="A,B", help="tasks of finetune/tasks, or TOML files")
    one.add_argument("--out", required=True, metavar="DIR", help="table, predictions and picture go here")
    _held_options(one)


def _robustness_options(commands: Any) -> None:
    one = commands.add_parser("robustness", help="probes of clean windows, tested on damaged ones")
    one.add_argument("bundles", nargs="+", metavar="BUNDLE[#MODE]", help="published bundles")
    one.add_argument("--corpus", required=True, metavar="URI", help="a corpus with the task's labels")
    one.add_argument("--task", required=True, metavar="NAME", help="a task of finetune/tasks, or a TOML file")
    one.add_argument("--out", required=True, metavar="DIR", help="tables and curves go here")
    one.add_argument(
        "--kinds", default="", metavar="A,B",
        help="of motion, wander, clipping, dropouts, wrong_rate, inverted (default: all)",
    )  # fmt: skip
    _held_options(one)


def _held_options(one: argparse.ArgumentParser) -> None:
    """What shift and robustness share."""
    one.add_argument(
        "--allow-overlap", action="store_true",
        help="keep subjects that pretraining saw (default: they are left out); figures then flatter",
    )  # fmt: skip
    one.add_argument("--window-s", type=float, metavar="S", help="window (default: the task's)")
    one.add_argument(
        "--cache", metavar="URI", help="where vectors are kept (default ~/.cache/plethora/vectors)"
    )
    one.add_argument("--folds", type=at_least(2), default=5, help="subject-disjoint folds (default 5)")
    one.add_argument("--seed", type=int, default=0, help="of folds, damage and bootstrap (default 0)")
    one.add_argument("--json", action="store_true", help="results as one JSON line at the end")


def _priors_options(commands: Any) -> None:
    one = commands.add_parser("priors", help="what SIGMA's priors and masks make of two classes of windows")
    one.add_argument("bundle", metavar="BUNDLE", help="a bundle of SIGMA's masked stage")
    one.add_argument("--corpus", required=True, metavar="URI", help="a corpus with the task's labels")
    one.add_argument("--out", required=True, metavar="DIR", help="table, patches and picture go here")
    one.add_argument(
        "--task", default="alarm_truth", metavar="NAME", help="two classes (default alarm_truth)"
    )
    one.add_argument("--by", metavar="LABEL", help="also by this label of whole records: alarm")
    one.add_argument("--draws", type=at_least(1), default=64, help="masks a window (default 64)")
    one.add_argument("--seed", type=int, default=0, help="of masks and bootstrap (default 0)")
    one.add_argument("--json", action="store_true", help="results as one JSON line at the end")


def _vision_options(commands: Any) -> None:
    one = commands.add_parser(
        "vision", aliases=["tune"], help="train on labels: images of PPG, or an encoder under an MLP"
    )
    one.add_argument("run", nargs="?", metavar="RUN.toml", help="the run, as in finetune/runs/")
    one.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a key: method.mode=full"
    )
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
    one.add_argument("--json", action="store_true", help="results as one JSON line at the end")


def _table_options(one: argparse.ArgumentParser) -> None:
    """What evaluate and compare share, beyond subjects, folds and seed."""
    one.add_argument(
        "--allow-overlap", action="store_true",
        help="keep subjects that pretraining saw; every table then says that its figures flatter",
    )  # fmt: skip
    one.add_argument(
        "--published-protocol", action="store_true",
        help="also the leaking window-level folds of many papers, marked as such",
    )  # fmt: skip
    one.add_argument(
        "--split", metavar="FILE",
        help='one given split instead of folds: JSON {"train": [...], "test": [...]} of subjects or records',
    )  # fmt: skip
    one.add_argument("--window-s", type=float, metavar="S", help="window (default: the task's)")
    one.add_argument("--no-few-shot", action="store_true", help="no curves over fewer training subjects")
    one.add_argument(
        "--cache", metavar="URI", help="where vectors are kept (default ~/.cache/plethora/vectors)"
    )


def _chosen(given: argparse.Namespace) -> dict[str, Any]:
    """`_table_options` as fields of `finetune.table.Options`."""
    return {
        "allow_overlap": given.allow_overlap, "published_protocol": given.published_protocol,
        "split": given.split, "window_s": given.window_s, "few_shot": not given.no_few_shot,
        "cache": given.cache,
    }  # fmt: skip


def main(argv: list[str]) -> dict[str, Any]:
    given = parser().parse_args(argv)
    if given.command == "embed":
        from finetune.embed import embed

        counts = embed(
            given.bundle, given.input, given.out, given.window_s, given.hop_s, given.mode, given.force
        )
        refused = ", ".join(f"{reason} {count}" for reason, count in counts["refused"].items()) or "none"
        print(f"{counts['windows']} windows of {counts['window_s']:g} s → {counts['dim']} numbers each")
        print(f"refused: {refused}" + _tail(counts))
        print(f"written: {counts['out']}")
        return counts
    if given.command == "reconstruct":
        from finetune.reconstruct import reconstruct

        return reconstruct(
            given.bundle, given.input, given.source, given.target, given.out, given.subjects, given.windows,
            given.folds, given.seed,
        )  # fmt: skip
    if given.command == "privacy":
        from finetune.privacy import privacy

        return privacy(
            given.bundle, given.corpus, given.mode, given.window_s, given.gallery, given.out, given.subjects,
            given.folds, given.seed, not given.no_publish,
        )  # fmt: skip
    if given.command in ("vision", "tune"):
        from finetune.vision import main as supervised

        return supervised(given)
    if given.command in ("shift", "robustness"):
        from finetune.table import Options

        options = Options(
            allow_overlap=given.allow_overlap, folds=given.folds, seed=given.seed, window_s=given.window_s,
            cache=given.cache,
        )  # fmt: skip
    if given.command == "shift":
        from finetune.shift import shift

        names = [name for name in given.tasks.split(",") if name]
        return shift(given.bundles, given.fit, given.test, names, given.out, options)
    if given.command == "robustness":
        from finetune.robustness import robustness

        kinds = [name for name in given.kinds.split(",") if name]
        return robustness(given.bundles, given.corpus, given.task, given.out, options, kinds)
    if given.command == "images":
        from finetune.image_sheet import sheet

        return sheet(given.corpus, given.out, given.set, given.windows, seed=given.seed)
    if given.command == "priors":
        from finetune.priors import priors

        return priors(given.bundle, given.corpus, given.out, given.task, given.by, given.draws, given.seed)
    if given.command == "compare":
        from finetune.compare import compare

        tasks = [name for name in given.tasks.split(",") if name]
        return compare(
            given.bundles, given.corpus, tasks, given.out, given.subjects, given.folds, given.seed,
            predictions=tuple(given.predictions), **_chosen(given),
        )  # fmt: skip
    if given.command == "compress":
        from finetune.compress import compress

        return compress(
            given.bundle, given.corpus, given.out, given.task, given.student, given.set, given.window_s,
            given.resume, given.folds, given.seed,
        )  # fmt: skip
    from finetune.evaluate import evaluate

    return evaluate(
        given.bundle, given.corpus, given.task, given.out, given.subjects, given.folds, given.seed,
        given.mode, not given.no_publish, **_chosen(given),
    )  # fmt: skip


def _tail(counts: dict[str, Any]) -> str:
    tail = counts.get("unused_tail_s", 0)
    return f"; the last {tail:g} s of each row fill no window and are not used" if tail else ""


if __name__ == "__main__":
    entry(main)
