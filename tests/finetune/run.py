"""Commands as a user runs them: the sheet is written, and what `--json` prints comes back."""

from collections.abc import Sequence
from typing import Any

from finetune.commands import compare as compare_command
from finetune.commands import evaluate as evaluate_command
from finetune.evaluation.options import Options
from finetune.reports.sheet import write


def evaluate(
    bundle: str, corpus: str, task: str, out: str | None = None, publish: bool = True, **how: Any
) -> dict[str, Any]:
    """`how`: fields of `Options`."""
    options = evaluate_command.Evaluate(bundle, corpus, task, out, publish=publish, how=Options(**how))
    return write(evaluate_command.run(options))


def compare(
    bundles: Sequence[str], corpus: str, tasks: Sequence[str], out: str, **how: Any
) -> dict[str, Any]:
    """`how`: fields of `Options`."""
    options = compare_command.Compare(bundles, corpus, tasks, out, Options(**how))
    return write(compare_command.run(options))
