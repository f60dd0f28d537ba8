"""python -m finetune COMMAND: a published bundle measured and put to use, or trained on labels."""

import argparse
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, get_type_hints

from cluster.cli import entry
from finetune.evaluation.options import RANKS, STEPS

MODE = "the bundle's mode (default: its only one)"
ENCODER = (
    "BUNDLE[#MODE], FILE.py:Class, module:Class, FILE.onnx or a Hugging Face folder "
    "(docs/adding_an_encoder.md)"
)
SHIPPED = Path(__file__).resolve().parents[1] / "bundles" / "plethora-small" / "bundle"
TASK = "a task of finetune/tasks, or a TOML file"
Parser = argparse.ArgumentParser


def main(argv: list[str]) -> dict[str, Any]:
    """Run a command and write its sheet. Commands are imported when they are asked for: `--help` is fast."""
    given = parser().parse_args(argv)
    run = import_module(f"finetune.commands.{given.module}").run
    sheet = run(options_of(get_type_hints(run)["options"], given))
    from finetune.reports.sheet import write

    return write(sheet)


def options_of(kind: Any, given: argparse.Namespace) -> Any:
    """The options `kind`, a dataclass, filled by name from the command line; dataclasses in it likewise."""
    hints, values = get_type_hints(kind), {}
    for field in fields(kind):
        if is_dataclass(hints[field.name]):
            values[field.name] = options_of(hints[field.name], given)
        elif field.name in given:
            values[field.name] = getattr(given, field.name)
    return kind(**values)


def parser() -> Parser:
    top = Parser(prog="python -m finetune", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (about, add) in COMMANDS.items():
        aliases = ["tune"] if name == "vision" else []
        one = commands.add_parser(name, help=about, description=about, aliases=aliases)
        one.set_defaults(module=name.replace("-", "_"))
        one.add_argument("--json", action="store_true", help="results as one JSON line at the end")
        add(one)
    return top


# ---------------------------------------------------------------- each command's arguments


def _evaluate(one: Parser) -> None:
    one.add_argument("--bundle", required=True, metavar="ENCODER", help=ENCODER)
    one.add_argument("--corpus", required=True, metavar="URI", help="a corpus with the task's labels")
    one.add_argument("--task", required=True, metavar="NAME", help=TASK)
    one.add_argument("--out", metavar="DIR", help="also write report, results and pictures here")
    one.add_argument("--mode", metavar="NAME", help=MODE)
    _publish(one)
    _table(one)


def _compare(one: Parser) -> None:
    one.add_argument("bundles", nargs="+", metavar="ENCODER", help=ENCODER)
    one.add_argument("--corpus", required=True, metavar="URI", help="a corpus with the tasks' labels")
    _tasks(one)
    one.add_argument("--out", required=True, metavar="DIR", help="page, tables, predictions and picture")
    one.add_argument(
        "--predictions",
        action="append",
        default=[],
        metavar="FILE",
        help="another model's out-of-sample predictions as a row: Parquet with record, start_s, a column a "
        "task (again for more)",
    )
    _table(one)


def _leaderboard(one: Parser) -> None:
    about = "a folder that `compare` or `evaluate` wrote: results.json and predictions.parquet"
    one.add_argument("folders", nargs="+", metavar="DIR", help=about)
    one.add_argument("--out", required=True, metavar="DIR", help="page, table and picture go here")


def _shift(one: Parser) -> None:
    one.add_argument("bundles", nargs="+", metavar="ENCODER", help=ENCODER)
    one.add_argument("--fit", required=True, metavar="URI", help="the corpus that probes are fitted on")
    one.add_argument("--test", required=True, metavar="URI", help="the corpus that they are tested on")
    _tasks(one)
    one.add_argument("--out", required=True, metavar="DIR", help="table, predictions and picture go here")
    _task_windows(one)
    _folds(one)


def _robustness(one: Parser) -> None:
    one.add_argument("bundles", nargs="+", metavar="ENCODER", help=ENCODER)
    one.add_argument("--corpus", required=True, metavar="URI", help="a corpus with the task's labels")
    one.add_argument("--task", required=True, metavar="NAME", help=TASK)
    one.add_argument("--out", required=True, metavar="DIR", help="tables and curves go here")
    kinds = "of motion, wander, clipping, dropouts, wrong_rate, inverted (default: all)"
    one.add_argument("--kinds", type=names, default=(), metavar="A,B", help=kinds)
    _task_windows(one)
    _folds(one, seed_of="folds, damage and bootstrap")


def _priors(one: Parser) -> None:
    one.add_argument("bundle", metavar="BUNDLE", help="a bundle of SIGMA's masked stage")
    one.add_argument("--corpus", required=True, metavar="URI", help="a corpus with the task's labels")
    one.add_argument("--out", required=True, metavar="DIR", help="table, patches and picture go here")
    one.add_argument(
        "--task", default="alarm_truth", metavar="NAME", help="two classes (default alarm_truth)"
    )
    one.add_argument("--by", metavar="LABEL", help="also by this label of whole records: alarm")
    one.add_argument("--draws", type=at_least(1), default=64, help="masks a window (default 64)")
    one.add_argument("--seed", type=int, default=0, help="of masks and bootstrap (default 0)")


def _vision(one: Parser) -> None:
    one.add_argument("run", nargs="?", metavar="RUN.toml", help="the run, as in finetune/runs/")
    _sets(one, "override a key: method.mode=full")
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


def _images(one: Parser) -> None:
    one.add_argument("--corpus", required=True, metavar="URI", help="a corpus with PPG")
    one.add_argument("--out", required=True, metavar="FILE.png", help="the picture")
    _sets(one, "a constant of finetune/imaging.py: preset=ppg_bp, stride=8, …")
    one.add_argument("--windows", type=at_least(1), default=3, help="how many (default 3)")
    one.add_argument("--seed", type=int, default=0, help="of the draw of windows (default 0)")


def _import_vision(one: Parser) -> None:
    one.add_argument("file", metavar="FILE.onnx", help="a graph with a DINOv2-shaped ViT")
    one.add_argument(
        "--as", required=True, dest="name", metavar="NAME", help="timm's name: vit_small_patch14_dinov2"
    )
    one.add_argument("--out", required=True, metavar="DIR", help="model.safetensors and origin.json go here")
    _sets(one, "an option of timm's model, for sizes of your own: embed_dim=96")
    for name in ("licence", "origin"):
        about = f"{name} of the weights, as their publisher states it (default: not stated)"
        one.add_argument(f"--{name}", default=argparse.SUPPRESS, metavar="TEXT", help=about)


def _embed(one: Parser) -> None:
    one.add_argument(
        "--bundle",
        default=f"{SHIPPED}#ppg",
        metavar="ENCODER",
        help=f"{ENCODER}; default: the encoder that ships with Plethora, bundles/plethora-small",
    )
    one.add_argument(
        "--input",
        required=True,
        metavar="URI",
        help="a corpus, or an .npz with samples (`ppg`, (samples,) or (n, samples)) and `rate` in Hz; "
        "for several inputs each of them, and `ppg_rate`, `ecg_rate` where they differ",
    )
    one.add_argument("--out", required=True, metavar="URI", help="the Parquet file to write")
    one.add_argument("--window-s", type=float, metavar="S", help="window (default: the encoder's own)")
    one.add_argument("--hop-s", type=float, metavar="S", help="step between windows (default: the window)")
    one.add_argument("--mode", metavar="NAME", help=MODE)
    one.add_argument("--force", action="store_true", help="replace --out if it exists")


def _reconstruct(one: Parser) -> None:
    one.add_argument("--bundle", required=True, metavar="URI", help="a published bundle with decoders (M2AE)")
    one.add_argument(
        "--input",
        required=True,
        metavar="URI",
        help="a corpus with both signals, or an .npz with the given one (and, for figures, the true other)",
    )
    one.add_argument("--from", required=True, dest="source", metavar="MODALITY", help="the one given: ppg")
    one.add_argument("--to", required=True, dest="target", metavar="MODALITY", help="the one to rebuild: ecg")
    one.add_argument("--out", required=True, metavar="DIR", help="table, pictures and rebuilt windows")
    one.add_argument(
        "--windows", type=at_least(1), default=2000, help="at most so many, spread (default 2000)"
    )
    _allow_overlap(one)
    _folds(one, "subject-disjoint, of the references")


def _compress(one: Parser) -> None:
    one.add_argument("--bundle", required=True, metavar="URI[#MODE]", help="the bundle to make smaller")
    one.add_argument("--corpus", required=True, metavar="URI", help="to calibrate, distil and measure on")
    one.add_argument("--out", required=True, metavar="URI", help="the new bundles and the table go here")
    one.add_argument(
        "--task",
        nargs="+",
        default=[],
        dest="tasks",
        metavar="NAME",
        help="tasks whose loss is measured (finetune/tasks)",
    )
    one.add_argument("--student", metavar="RUN.toml", help="also distil one: finetune/runs/distill/tiny.toml")
    _sets(one, "override a key of the student's run")
    one.add_argument("--window-s", type=float, metavar="S", help="window (default: the encoder's own)")
    one.add_argument("--resume", action="store_true", help="go on in an --out that was left unfinished")
    _folds(one)


def _privacy(one: Parser) -> None:
    one.add_argument("--bundle", required=True, metavar="ENCODER", help=ENCODER)
    one.add_argument("--corpus", required=True, metavar="URI", help="a corpus with the encoder's signals")
    one.add_argument("--mode", metavar="NAME", help=MODE)
    one.add_argument(
        "--window-s", type=float, metavar="S", help="window (default: the encoder's own, at most 30 s)"
    )
    one.add_argument("--gallery", metavar="N,N", help="sizes of N (default 2,5,10,… up to all subjects)")
    one.add_argument("--out", metavar="DIR", help="also write the card, results and pictures here")
    _publish(one)
    _allow_overlap(one)
    _folds(one, "subject-disjoint, of the decoders", "folds, decoders and bootstrap")


COMMANDS: dict[str, tuple[str, Callable[[Parser], None]]] = {
    "evaluate": ("a task's table: this encoder beside its baselines", _evaluate),
    "compare": ("encoders on the same windows and folds: a table a task, a page", _compare),
    "leaderboard": ("many comparisons on one board: ranks with intervals, task by task", _leaderboard),
    "shift": ("probes fitted on one corpus, tested on another", _shift),
    "robustness": ("probes of clean windows, tested on damaged ones", _robustness),
    "priors": ("what SIGMA's priors and masks make of two classes of windows", _priors),
    "vision": ("train on labels: images of PPG, or an encoder under an MLP", _vision),
    "images": ("a picture of what a vision backbone sees of real windows", _images),
    "import-vision": ("a ViT in an ONNX file as weights for `vision`", _import_vision),
    "embed": ("one vector a window, as Parquet", _embed),
    "reconstruct": ("one signal from another, beside the true one", _reconstruct),
    "compress": ("an int8 bundle and a distilled student, and what they lose", _compress),
    "privacy": ("re-identification from vectors, and how much of the waveform they reveal", _privacy),
}


# ---------------------------------------------------------------- arguments of several commands


def at_least(least: int) -> Callable[[str], int]:
    """For argparse: whole numbers from `least` on."""

    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of {least} or more")
        return int(text)

    return number


def names(text: str) -> tuple[str, ...]:
    """For argparse: ``A,B``."""
    return tuple(name for name in text.split(",") if name)


def ranks(text: str) -> tuple[int, ...]:
    """For argparse: ``4,8``."""
    return tuple(at_least(1)(rank) for rank in text.split(","))


def _tasks(one: Parser) -> None:
    about = "tasks of finetune/tasks, or TOML files"
    one.add_argument("--tasks", type=names, required=True, metavar="A,B", help=about)


def _sets(one: Parser, about: str) -> None:
    one.add_argument("--set", action="append", default=[], dest="sets", metavar="KEY=VALUE", help=about)


def _publish(one: Parser) -> None:
    about = "write nothing beside the bundle"
    one.add_argument("--no-publish", action="store_false", dest="publish", help=about)


def _folds(one: Parser, about: str = "subject-disjoint folds", seed_of: str = "folds and bootstrap") -> None:
    one.add_argument("--folds", type=at_least(2), default=5, help=f"{about} (default 5)")
    one.add_argument("--seed", type=int, default=0, help=f"of {seed_of} (default 0)")


def _allow_overlap(one: Parser) -> None:
    one.add_argument(
        "--allow-overlap",
        action="store_true",
        help="keep subjects that pretraining saw; every table then says that its figures flatter",
    )


def _task_windows(one: Parser) -> None:
    """Of evaluations whose windows are a task's."""
    _allow_overlap(one)
    one.add_argument("--window-s", type=float, metavar="S", help="window (default: the task's)")
    where = "where vectors are kept (default ~/.cache/plethora/vectors)"
    one.add_argument("--cache", metavar="URI", help=where)


def _table(one: Parser) -> None:
    """Of whole tables."""
    _task_windows(one)
    one.add_argument(
        "--heads",
        type=names,
        default=("linear",),
        metavar="A,B",
        help="heads of each encoder, a row each: linear (always there), forest, mlp on its vectors; lora, "
        "full train its network, scratch the same one untrained (default linear)",
    )
    about = "ranks among which the lora head chooses (default 4,16)"
    one.add_argument("--rank", type=ranks, dest="ranks", metavar="N,N", default=RANKS, help=about)
    one.add_argument(
        "--head-steps",
        type=at_least(1),
        default=STEPS,
        metavar="N",
        help=f"training steps at most, a fit of a head that trains the network (default {STEPS})",
    )
    one.add_argument(
        "--published-protocol",
        action="store_true",
        help="also the leaking window-level folds of many papers, marked as such",
    )
    one.add_argument(
        "--split",
        metavar="FILE",
        help='one given split instead of folds: JSON {"train": [...], "test": [...]} of subjects or records; '
        "or LABEL=VALUE: records with this label are the test side",
    )
    less = "no curves over fewer training subjects"
    one.add_argument("--no-few-shot", action="store_false", dest="few_shot", help=less)
    _folds(one)


if __name__ == "__main__":
    entry(main)
