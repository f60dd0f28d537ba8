"""A bundle made small enough for a wearable: an int8 bundle and, on request, a distilled student, beside the
original in size, latency on one core, likeness of vectors, and what tasks lose.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cluster import bundle as bundles
from cluster import config as configuration
from cluster import storage
from cluster.errors import PlethoraError
from cluster.session import session
from datasets.index import build
from datasets.schema import Corpus, open_corpus
from datasets.windows import WindowSpec
from finetune.encoders.bundle import BundleEncoder, opened_bundle
from finetune.evaluation.compression import TaskLoss, measured, task_loss, unseen_rows
from finetune.evaluation.entrant import entrants_of
from finetune.evaluation.options import Options
from finetune.evaluation.study import study
from finetune.networks.int8 import publish_int8, split_of
from finetune.reports import comparison, compress_report
from finetune.reports.sheet import Sheet, write
from finetune.task import Task, load_task
from pretrain.config import RunConfig
from pretrain.planning.actors import with_actors


@dataclass(frozen=True)
class Compress:
    """`bundle`: BUNDLE or BUNDLE#MODE; `student`: a run file, `sets`: KEY=VALUE of that run; `window_s`: the
    encoder's own by default; `resume`: go on in an `out` that a broken command left.
    """

    bundle: str
    corpus: str
    out: str
    tasks: Sequence[str] = ()
    student: str | None = None
    sets: Sequence[str] = ()
    window_s: float | None = None
    resume: bool = False
    folds: int = 5
    seed: int = 0


def run(options: Compress) -> Sheet:
    """Publish `out`/int8/bundle and, with a student, `out`/<its name>/bundle; with tasks, write the tables of
    `compare` to `out`/compare.
    """
    out = storage.normalise(options.out)
    if not options.resume and storage.listing(out):
        raise PlethoraError(f"{out} exists: choose another --out, or go on in it with --resume")
    if options.sets and options.student is None:
        raise PlethoraError("--set is of a student's run: give --student RUN.toml as well")
    tasks = [load_task(name) for name in options.tasks]
    original, source = _original(options.bundle), open_corpus(options.corpus)
    original.check(source)
    window_s = _window(original, options.window_s)
    student = None
    if options.student is not None:
        student = student_run(options.student, original, source.uri, out, window_s, options.sets)
        student = with_actors(student)  # the session counts their CPUs
    uris = {"original": original.bundle.uri, "int8": storage.join(out, "int8", "bundle")}
    workers, actors, gpu = (
        (student.most, student.stream.count, student.resources.gpu) if student else (0, 2, 0)
    )
    with session(workers, max(actors, 2), gpu):
        index = build(source, WindowSpec(signals=original.signals, window_s=window_s))
        unseen_rows(index, [original], source, split_of(original))  # refuses before anything is made
        if not storage.exists(storage.join(uris["int8"], bundles.MARK)):
            publish_int8(original, source, index, uris["int8"], window_s)
        if student is not None:
            from pretrain import driver

            uris["student"] = driver.launch(student, options.resume)["bundle"]
        encoders = {name: BundleEncoder(uri, original.mode) for name, uri in uris.items()}
        losses = _losses(encoders, source, tasks, options, storage.join(out, "compare"))
        found = measured(encoders, source, index, window_s, losses)
    return compress_report.sheet(found, out)


def _original(name: str) -> BundleEncoder:
    """The bundle to make smaller. PlethoraError: it is int8 already, or gives no vectors."""
    uri = name.rpartition("#")[0] or name
    found = bundles.open(uri)
    if "quantised" in found.config:
        raise PlethoraError(f"{uri} is int8 already: compress the bundle that it was made from")
    if not found.described.modes:
        holds = f"decoders {', '.join(found.described.decoders)}" if found.described.decoders else "no ONNX"
        raise PlethoraError(
            f"{uri} (kind {found.config['kind']}) has no mode that gives vectors, only {holds}: "
            "compress an encoder's bundle"
        )
    return opened_bundle(name)


def _window(encoder: BundleEncoder, window_s: float | None) -> float:
    chosen = encoder.window_s if window_s is None else window_s
    if not encoder.min_s - 1e-6 <= chosen <= encoder.max_s + 1e-6:
        raise PlethoraError(
            f"--window-s {chosen:g}: the encoder takes {encoder.min_s:g} to {encoder.max_s:g} s at once"
        )
    return chosen


def student_run(
    path: str, teacher: BundleEncoder, corpus: str, out: str, window_s: float, sets: Sequence[str] = ()
) -> RunConfig:
    """A student's run: the file, below it what follows from the teacher (the teacher, its mode, the corpus,
    and the teacher's split, so that its test side stays unseen), on top `sets`; published under `out`.
    """
    given, split = configuration.read_toml(path, sets), split_of(teacher)
    method, sides = given.get("method", {}), given.get("split", {})
    below = [
        f"{key}={value}"
        for key, value, named in (
            ("corpus", corpus, "corpus" in given),
            ("method.window_s", window_s, "window_s" in method),
            ("split.seed", split.seed, "seed" in sides),
            ("split.val", split.val, "val" in sides),
            ("split.test", split.test, "test" in sides),
        )
        if not named
    ]
    always = [f"method.teacher={teacher.bundle.uri}", f"method.mode={teacher.mode}", f"storage={out}"]
    found = configuration.load(path, RunConfig, [*below, *sets, *always])
    if found.name in ("int8", "compare"):
        raise PlethoraError(f"{path}: name = {found.name!r} is taken in {out}: give the student another")
    from pretrain.recipe import build as build_recipe

    build_recipe(found.recipe, found.method, found.seed).windows()  # a mistake shows before anything is made
    return found


def _losses(
    encoders: Mapping[str, BundleEncoder], source: Corpus, tasks: Sequence[Task], options: Compress, out: str
) -> list[TaskLoss]:
    """What tasks lose; the whole tables, baselines included, go to `out`."""
    if not tasks:
        return []
    entrants = entrants_of(list(encoders.values()))
    how = Options(folds=options.folds, seed=options.seed, few_shot=False)
    outcomes = study(entrants, source, tasks, how)
    write(comparison.of_several(outcomes, {e.name: e.info for e in entrants}, out))
    entrant_of = {name: e.name for name, e in zip(encoders, entrants, strict=True)}
    return [task_loss(outcome.result, entrant_of) for outcome in outcomes]
