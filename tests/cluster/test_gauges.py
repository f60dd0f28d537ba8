"""What a run tells has one gauge, whose name and labels are known beforehand."""

from __future__ import annotations

import time
from typing import Any

import pytest

from cluster.gauges import GAUGES, Gauges, of


@pytest.mark.parametrize(
    ("told", "gauge", "labels"),
    [
        ("train/loss/student", "loss", {"part": "train", "module": "student"}),
        ("val/loss/student", "loss", {"part": "val", "module": "student"}),
        ("train/lr/net", "learning_rate", {"module": "net"}),
        ("train/grad_norm/net", "grad_norm", {"module": "net"}),
        ("train/data_wait", "data_wait", {}),
        ("train/time/compute", "time_share", {"phase": "compute"}),
        ("train/tokens_per_s", "tokens_per_s", {}),
        ("val/codebook_usage", "codebook_usage", {}),
        ("train/teacher_entropy", "mask_entropy", {}),
        ("val/teacher_entropy", "value", {"part": "val", "name": "teacher_entropy"}),
        ("train/index_consistency", "value", {"part": "train", "name": "index_consistency"}),
        ("train/loss_hidden", "value", {"part": "train", "name": "loss_hidden"}),
        ("alone", "value", {"part": "", "name": "alone"}),
    ],
)
def test_every_number_that_a_run_tells_has_a_gauge(told: str, gauge: str, labels: dict[str, str]) -> None:
    assert of(told) == (gauge, labels)
    assert set(labels) == set(GAUGES[gauge].labels)


def test_what_was_set_once_is_repeated_until_the_end_for_ray_forgets_it(ray_session: Any) -> None:
    heard = []

    class Ear:
        def set(self, value: float, tags: dict[str, str]) -> None:
            heard.append((value, tags))

    told = Gauges("run", repeat_s=0.01)
    told._known["kept_hours"] = Ear()
    told.set("kept_hours", 1.5, corpus="c", modality="ppg")
    told.set("kept_hours", 2.5, corpus="c", modality="ecg")
    while len(heard) < 6:
        time.sleep(0.01)
    told.close()
    first = (1.5, {"corpus": "c", "modality": "ppg"})
    second = (2.5, {"corpus": "c", "modality": "ecg"})
    assert heard.count(first) >= 2 and heard.count(second) >= 2
    assert len(heard) == heard.count(first) + heard.count(second)
    before = len(heard)
    time.sleep(0.1)
    assert len(heard) == before, "it ends with close"


def test_a_gauge_that_nobody_knows_or_other_labels_are_refused(ray_session: Any) -> None:
    with pytest.raises(KeyError):
        Gauges("run").set("typo", 1.0)
    with pytest.raises(KeyError, match="has the labels"):
        Gauges("run").set("loss", 1.0, part="train")
