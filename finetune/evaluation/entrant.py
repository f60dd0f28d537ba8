"""The encoders of a table, and what their rows are called."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.errors import PlethoraError
from finetune.encoders.base import Encoder
from finetune.evaluation.lengths import fit
from finetune.evaluation.results import EncoderInfo
from finetune.task import Task


@dataclass(frozen=True)
class Entrant:
    """An encoder, and names and labels of its row and of that of its untrained twin."""

    encoder: Encoder
    name: str
    label: str
    twin: str
    twin_label: str

    @property
    def info(self) -> EncoderInfo:
        return EncoderInfo(self.encoder.uri, self.encoder.mode, self.encoder.dim)


def entrants_of(encoders: Sequence[Encoder]) -> list[Entrant]:
    """Encoders called by their run's name and mode; a number tells equals apart."""
    found: list[Entrant] = []
    count: Counter[str] = Counter()
    for encoder in encoders:
        name = encoder.name
        count[name] += 1
        name = f"{name} {count[name]}" if count[name] > 1 else name
        found.append(Entrant(encoder, name, name, f"{name}, untrained", f"{name}, untrained"))
    return found


def check_takes(entrants: Sequence[Entrant], task: Task) -> None:
    """PlethoraError when an encoder cannot answer the question at all."""
    for entrant in entrants:
        encoder = entrant.encoder
        if task.modality is not None and task.modality not in encoder.modalities:
            raise PlethoraError(
                f"task {task.name} is about {task.modality} itself, mode {encoder.mode!r} of "
                f"{encoder.uri} takes {encoder.modality}: choose another mode"
            )
        fit(encoder, task.window_s)  # refuses windows under its minimum
