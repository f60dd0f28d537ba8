"""Several encoders on the same windows, folds and drawn subjects: one table a task."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from cluster import storage
from cluster.errors import PlethoraError
from datasets.schema import open_corpus
from finetune.encoder import BundleEncoder
from finetune.evaluate import about
from finetune.reports import bloodpressure, comparison, outputs
from finetune.study import Entrant, Options, study
from finetune.task import load_task


def compare(
    bundles: Sequence[str],
    corpus: str,
    tasks: Sequence[str],
    out: str,
    subjects: str = "unseen",
    folds: int = 5,
    seed: int = 0,
    **more: Any,
) -> dict[str, Any]:
    """Compare encoders, each BUNDLE or BUNDLE#MODE; write report.html and the files beside it (`outputs`) to
    `out`; return the results.

    A window counts where every encoder takes it; subjects whom any of them saw in pretraining are left out.
    `more`: the other fields of `table.Options`.
    """
    twice = [name for name, count in Counter([*bundles, *tasks]).items() if count > 1]
    if twice:
        raise PlethoraError(f"{twice[0]} is named twice: name each encoder and each task once")
    if not tasks:
        raise PlethoraError("--tasks names no task")
    questions, source = [load_task(name) for name in tasks], open_corpus(corpus)
    entrants = [*entrants_of([opened(name) for name in bundles])]
    outcomes = study(entrants, source, questions, Options(subjects, folds=folds, seed=seed, **more))
    results: dict[str, Any] = {
        "encoders": {e.name: about(e.encoder) for e in entrants},
        "corpus": outcomes[0].results["corpus"],
        "tasks": [outcome.results for outcome in outcomes],
    }
    for outcome in outcomes:
        bloodpressure.attach(outcome.results, outcome.windows, outcome.predicted, source)
        outcome.results["verdict"] = comparison.verdicts(outcome.results)
    outputs.write(results, outcomes, out)
    results["out"] = storage.normalise(out)
    return results


def opened(name: str) -> BundleEncoder:
    uri, mark, mode = name.rpartition("#")
    return BundleEncoder(uri, mode) if mark else BundleEncoder(name)


def entrants_of(encoders: Sequence[BundleEncoder]) -> list[Entrant]:
    """Encoders called by their run's name and mode; a number tells equals apart."""
    found: list[Entrant] = []
    seen: Counter[str] = Counter()
    for encoder in encoders:
        run = encoder.bundle.config.get("run", {})
        name = f"{run.get('name') or encoder.bundle.uri.rstrip('/').rpartition('/')[2]} ({encoder.mode})"
        seen[name] += 1
        name = f"{name} {seen[name]}" if seen[name] > 1 else name
        found.append(Entrant(encoder, name, name, f"{name}, untrained", f"{name}, untrained"))
    return found
