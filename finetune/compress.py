"""A bundle made small enough for a wearable: an int8 bundle and, on request, a distilled student, beside the
original in size, latency on one core, likeness of vectors, and what tasks lose.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cluster import bundle as bundles
from cluster import config as configuration
from cluster import storage
from cluster.errors import PlethoraError
from cluster.session import session
from datasets.index import Index, build
from datasets.schema import Corpus, open_corpus
from datasets.split import Split
from datasets.windows import WindowSpec
from finetune.compare import compare, opened
from finetune.encoder import BundleEncoder
from finetune.evaluation.choose import seen_by_any, seen_by_pretraining
from finetune.networks.int8 import publish_int8, sample, split_of
from finetune.networks.quantize import Graph, fidelity
from finetune.reports import compress_report
from finetune.task import load_task
from pretrain.config import RunConfig
from pretrain.planning.actors import with_actors

HELD = 512  # windows at most on which vectors are compared
ROUNDS, WARM, BUDGET_S = 300, 10, 30.0  # of the latency: windows, windows before, seconds at most


def compress(
    bundle: str,
    corpus: str,
    out: str,
    tasks: Sequence[str] = (),
    student: str | None = None,
    sets: Sequence[str] = (),
    window_s: float | None = None,
    resume: bool = False,
    folds: int = 5,
    seed: int = 0,
) -> dict[str, Any]:
    """Publish `out`/int8/bundle and, with a run file `student`, `out`/<its name>/bundle; write compress.md
    and results.json to `out`, and with `tasks` the tables of `compare`; return the results.

    bundle: BUNDLE or BUNDLE#MODE; window_s: the encoder's own by default; resume: go on in an `out` that a
    broken command left; sets: KEY=VALUE of the student's run.
    """
    out = storage.normalise(out)
    if not resume and storage.listing(out):
        raise PlethoraError(f"{out} exists: choose another --out, or go on in it with --resume")
    if sets and student is None:
        raise PlethoraError("--set is of a student's run: give --student RUN.toml as well")
    for name in tasks:
        load_task(name)
    original, source = _original(bundle), open_corpus(corpus)
    original.check(source)
    window_s = _window(original, window_s)
    run = None if student is None else student_run(student, original, source.uri, out, window_s, sets)
    run = run and with_actors(run)  # the session counts their CPUs
    uris = {"original": original.bundle.uri, "int8": storage.join(out, "int8", "bundle")}
    workers, actors, gpu = (run.most, run.stream.count, run.resources.gpu) if run else (0, 2, 0)
    with session(workers, max(actors, 2), gpu):
        index = build(source, WindowSpec(signals=original.signals, window_s=window_s))
        held_out(index, [original], source, split_of(original))
        if not storage.exists(storage.join(uris["int8"], bundles.MARK)):
            publish_int8(original, source, index, uris["int8"], window_s)
        if run is not None:
            from pretrain import driver

            uris["student"] = driver.launch(run, resume)["bundle"]
        encoders = {row: BundleEncoder(uri, original.mode) for row, uri in uris.items()}
        tables = _tables(encoders, corpus, tasks, storage.join(out, "compare"), folds, seed)
        results = _measured(encoders, source, index, window_s)
    results["tasks"] = tables
    results["out"] = out
    compress_report.write(results, out)
    return results


def _original(name: str) -> BundleEncoder:
    """The bundle that is to be made smaller. PlethoraError where there is nothing to make smaller."""
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
    return opened(name)


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
    """The run of a student: the file, below it what follows from the teacher (who, which mode, the corpus
    and the teacher's own split, so that its test side stays unseen), on top `sets`; published under `out`.
    """
    given, split = configuration.read_toml(path, sets), split_of(teacher)
    method, own = given.get("method", {}), given.get("split", {})
    below = [
        f"{key}={value}"
        for key, value, named in (
            ("corpus", corpus, "corpus" in given),
            ("method.window_s", window_s, "window_s" in method),
            ("split.seed", split.seed, "seed" in own),
            ("split.val", split.val, "val" in own),
            ("split.test", split.test, "test" in own),
        )
        if not named
    ]
    always = [f"method.teacher={teacher.bundle.uri}", f"method.mode={teacher.mode}", f"storage={out}"]
    run = configuration.load(path, RunConfig, [*below, *sets, *always])
    if run.name in ("int8", "compare"):
        raise PlethoraError(f"{path}: name = {run.name!r} is taken in {out}: give the student another")
    from pretrain.recipe import build as build_recipe

    build_recipe(run.recipe, run.method, run.seed).windows()  # a mistake is told before anything is made
    return run


# ---------------------------------------------------------------- measuring


def held_out(
    index: Index, encoders: Sequence[BundleEncoder], source: Corpus, split: Split | None = None
) -> tuple[np.ndarray, Any]:
    """Rows of the index of subjects that no encoder saw (and who are on the test side of `split`), and the
    overlap. PlethoraError when there are none.
    """
    seen = seen_by_any([seen_by_pretraining(e.bundle, source) for e in encoders])
    rows = index.select(None if split is None else "test", split)
    subject = index.table["subject"].to_pylist()
    keep = np.array([subject[row] not in seen.subjects for row in rows], bool)
    if keep.sum() < 2:
        raise PlethoraError(
            f"{source.uri} has {int(keep.sum())} windows of subjects that no encoder saw and that the "
            "bundle's split keeps for tests: nothing could be measured, use a corpus with more subjects"
        )
    return rows[keep], seen


def _measured(
    encoders: Mapping[str, BundleEncoder], source: Corpus, index: Index, window_s: float
) -> dict[str, Any]:
    """Everything but the tasks: sizes, latency, likeness on windows of subjects that none of them saw."""
    original = encoders["original"]
    rows, seen = held_out(index, list(encoders.values()), source)
    held = sample(index, original, rows, HELD)
    paths = {row: _model(e) for row, e in encoders.items()}
    graphs = {row: Graph(path) for row, path in paths.items()}
    vectors = {row: graph(held.feed) for row, graph in graphs.items()}
    spent = latency(graphs, held.feed)
    table = []
    for row, encoder in encoders.items():
        table.append({
            "name": row, "uri": encoder.bundle.uri, "run": encoder.bundle.config.get("run", {}).get("name"),
            "bytes": paths[row].stat().st_size,
            "bundle_bytes": sum(storage.sizes(encoder.bundle.uri).values()),
            **spent[row],
            **({} if row == "original" else fidelity(vectors["original"], vectors[row])),
        })  # fmt: skip
    return {
        "bundle": original.bundle.uri, "mode": original.mode, "dim": original.dim, "window_s": window_s,
        "corpus": {"uri": source.uri, "hash": source.hash, "source": source.manifest["source"]},
        "held_out": {"windows": held.windows, "subjects": len(held.subjects)},
        "overlap": {"kind": seen.kind, "why": list(seen.why)},
        "quantised": encoders["int8"].bundle.config["quantised"],
        "rows": table,
    }  # fmt: skip


def _model(encoder: BundleEncoder) -> Path:
    return encoder.bundle.path(encoder.bundle.config["modes"][encoder.mode]["file"])


def latency(graphs: Mapping[str, Graph], feed: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """{row: {"ms": median over single windows on one core, "ms_ratio": median ratio to the first row}}.

    All take each window in turn, so that what else the machine does meets all of them alike.
    """
    spent: dict[str, list[float]] = {row: [] for row in graphs}
    count, began = len(next(iter(feed.values()))), time.perf_counter()
    for number in range(WARM + ROUNDS):
        one = {name: x[number % count][None] for name, x in feed.items()}
        for row, graph in graphs.items():
            start = time.perf_counter()
            graph.run(one)
            if number >= WARM:
                spent[row].append(time.perf_counter() - start)
        if number > WARM and time.perf_counter() - began > BUDGET_S:
            break
    first = np.array(next(iter(spent.values())))
    return {
        row: {"ms": 1e3 * float(np.median(s)), "ms_ratio": float(np.median(np.array(s) / first))}
        for row, s in spent.items()
    }


def _tables(
    encoders: Mapping[str, BundleEncoder], corpus: str, tasks: Sequence[str], out: str, folds: int, seed: int
) -> list[dict[str, Any]]:
    """Of each task its main metric and what the smaller rows lose: paired differences row − original over
    the same windows, folds and drawn subjects. The whole tables are written to `out`.
    """
    if not tasks:
        return []
    names = [f"{e.bundle.uri}#{e.mode}" for e in encoders.values()]
    results = compare(names, corpus, tasks, out, folds=folds, seed=seed, few_shot=False)
    called = {about["uri"]: name for name, about in results["encoders"].items()}
    of = {row: called[e.bundle.uri] for row, e in encoders.items()}
    smaller = {row: name for row, name in of.items() if row != "original"}
    found = []
    for table in results["tasks"]:
        rows = {row["name"]: row["metrics"] for row in table["rows"]}
        main = table["task"]["main"]
        found.append({
            "task": table["task"], "counts": table["counts"], "warnings": table.get("warnings", []),
            "rows": {row: rows[name][main] for row, name in of.items()},
            "differences": {n: table["differences"][name][of["original"]] for n, name in smaller.items()},
        })  # fmt: skip
    return found
