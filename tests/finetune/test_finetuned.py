"""Heads that train the network: what only training can reach, from training subjects alone."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from finetune.__main__ import options_of, parser
from finetune.commands.compare import Compare
from finetune.evaluation import heads
from finetune.evaluation.heads import Head
from finetune.evaluation.kinds import Answer, Classes, Labels, Numbers
from finetune.evaluation.learner import Learner
from finetune.evaluation.options import NETWORK_HEADS
from finetune.probe import Folds, Probed
from tests.finetune.run import compare

RNG = np.random.default_rng(5)
WHO = np.repeat(np.arange(20), 12)
X = RNG.normal(size=(240, 1, 1, 24)).astype(np.float32)  # windows of one piece and one channel
AXES = np.linalg.svd(RNG.normal(size=(3, 24)))[2][:3]
SEEN = np.stack([AXES[0] + AXES[1], AXES[2]])  # the vector mixes what is asked for with something else
HIDDEN = X[:, 0, 0] @ AXES[0]
NUMBER = np.arange(240)[:, None]


def network() -> nn.Module:
    found = nn.Sequential(nn.Flatten(), nn.Linear(24, 2, bias=False))
    found[1].weight.data = torch.from_numpy(SEEN).float()  # type: ignore[union-attr]
    return found.eval()


def head(how: str, steps: int = 200, net: nn.Module | None = None) -> Head:
    learner = Learner(net or network(), [X], steps)
    rate = {"lora": 1.0, "full": 1e-2, "scratch": 1e-2}[how]
    return Head(getattr(learner, how), (rate,))


def fitted(answer: Answer, how: str, seed: int = 0, **more: Any) -> tuple[Probed, Folds]:
    folds = answer.folds(WHO, 2, 0)
    return answer.bent(head(how, **more), NUMBER, WHO, folds, seed), folds


@pytest.fixture(autouse=True)
def _fast_adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune.evaluation.learner.LORA_RATE", 1e-2)


@pytest.mark.parametrize("how", NETWORK_HEADS)
def test_a_network_learns_what_no_head_reads_in_its_vectors(how: str) -> None:
    answer = Numbers(100 + 10 * HIDDEN)
    found, folds = fitted(answer, how)
    error = np.abs(found.predicted - answer.y).mean()
    vectors = X[:, 0, 0] @ SEEN.T
    line = np.abs(answer.linear(vectors, WHO, folds, 0).predicted - answer.y).mean()
    mean = np.abs(answer.baseline(folds).predicted - answer.y).mean()
    assert mean > 1.2 * line and error < 0.5 * line


@pytest.mark.parametrize("count", [2, 3])
def test_classes_are_told_in_probabilities(count: int) -> None:
    code = np.digitize(HIDDEN, [0.0] if count == 2 else [-0.4, 0.4]).astype(float)
    found, _ = fitted(Classes(code, ["a", "b", "c"][:count]), "full")
    p = found.predicted
    assert p.shape == (240, 1 if count == 2 else 3) and (p >= 0).all() and (p <= 1).all()
    said = p[:, 0] > 0.5 if count == 2 else p.argmax(axis=1)
    assert (said == code).mean() > 0.74


def test_several_labels_are_learnt_together() -> None:
    hot = np.stack([HIDDEN > 0, X[:, 0, 0] @ SEEN[0] > 0], axis=1).astype(float)
    found, _ = fitted(Labels(hot, ["a", "b"]), "lora")
    assert ((found.predicted > 0.5) == hot).mean(axis=0).min() > 0.78


@pytest.mark.parametrize("how", NETWORK_HEADS)
def test_a_seed_gives_the_same_predictions_and_another_gives_others(how: str) -> None:
    answer = Numbers(HIDDEN)
    first, again, other = (fitted(answer, how, seed=s, steps=20)[0].predicted for s in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_no_fold_starts_from_what_another_has_learnt() -> None:
    net = network()
    before = {name: x.clone() for name, x in net.state_dict().items()}
    for how in NETWORK_HEADS:
        fitted(Numbers(HIDDEN), how, net=net, steps=20)
    assert all(torch.equal(x, net.state_dict()[name]) for name, x in before.items())


def test_only_training_subjects_are_learnt_from_and_others_of_them_stop_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    learnt: set[int] = set()
    true = Learner._inputs

    def spied(self: Learner, rows: np.ndarray, pieces: bool = True) -> list[torch.Tensor]:
        if not torch.is_inference_mode_enabled() and pieces:
            learnt.update(rows.tolist())
        return true(self, rows, pieces)

    monkeypatch.setattr(Learner, "_inputs", spied)
    train = np.flatnonzero(WHO < 15)
    data = heads.TrainingSet("number", NUMBER[train].astype(float), HIDDEN[train, None], WHO[train])
    head("full").predict(data, NUMBER[180:], 1e-2, 0)
    people = set(WHO[sorted(learnt)])
    assert len(people) == 12 and max(people) < 15  # 3 of 15 are held out whole


def test_noise_leaves_the_linear_head_as_it_was() -> None:
    """The best weights on held-out subjects are kept, the first among them: they cannot get worse."""
    answer = Numbers(RNG.normal(size=240))
    found, _ = fitted(answer, "full", steps=30)
    assert np.abs(found.predicted - answer.y).mean() < 1.1 * np.abs(answer.y - answer.y.mean()).mean()


def test_windows_that_only_name_their_subject_gain_nothing() -> None:
    named = np.zeros_like(X)
    named[np.arange(240), 0, 0, WHO] = 1
    level = RNG.normal(80, 12, 20)[WHO]
    learner = Learner(network(), [named], 100)
    answer = Numbers(level)
    folds = answer.folds(WHO, 4, 0)
    p = answer.bent(Head(learner.full, (1e-2,)), NUMBER, WHO, folds, 0).predicted
    mean = np.abs(answer.baseline(folds).predicted - level).mean()
    each = np.arange(240)  # the leaking protocol, to show that the leak is there
    leaking = answer.bent(Head(learner.full, (1e-1,)), NUMBER, each, answer.folds(each, 4, 0), 0).predicted
    assert np.abs(p - level).mean() > 0.8 * mean > 1.2 * np.abs(leaking - level).mean()


def test_a_setting_is_chosen_once_by_a_third_of_the_training_subjects() -> None:
    asked: list[tuple[float, int]] = []

    def far_from(part: heads.TrainingSet, x: np.ndarray, setting: float, seed: int) -> np.ndarray:
        asked.append((setting, len(np.unique(part.who))))
        return np.full((len(x), 1), setting)

    data = heads.TrainingSet("number", NUMBER.astype(float), np.full((240, 1), 16.0), WHO)
    assert heads._choose(Head(far_from, (4.0, 16.0), inner=1), data, 5, 0) == 16
    assert asked == [(4.0, 13), (16.0, 13)]


def test_one_subject_keeps_the_linear_head() -> None:
    data = heads.TrainingSet("number", NUMBER[:12].astype(float), HIDDEN[:12, None], WHO[:12])
    assert np.isfinite(head("full").predict(data, NUMBER[12:24], 1e-2, 0)).all()


# ---------------------------------------------------------------- in a table

PORT = """
import numpy as np

class Port:
    preprocessing = {"ppg": {"rate": 50.0, "window_s": 10.0}}

    def embed(self, x):
        return np.stack([x.std(axis=(1, 2)), x.max(axis=(1, 2))], axis=1)
"""


@pytest.fixture(scope="module")
def table(
    ray_session: Any, bundle: str, corpus: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("heads")
    (folder / "port.py").write_text(PORT)
    how = {"heads": ("linear", *NETWORK_HEADS), "ranks": (2,), "head_steps": 6, "folds": 3}
    found = compare(
        [bundle, f"{folder / 'port.py'}:Port"],
        corpus,
        ["heart_rate"],
        str(folder / "out"),
        few_shot=False,
        **how,
    )
    return found["tasks"][0]


def test_each_bundle_gets_a_row_a_head_with_what_was_adapted(table: dict[str, Any]) -> None:
    rows = {row["name"]: row for row in table["rows"]}
    for how in NETWORK_HEADS:
        figure = rows[f"tiny (ppg), {how}"]["metrics"]["mae"]
        assert figure["low"] <= figure["value"] <= figure["high"]
        assert f"tiny (ppg), {how}" in table["differences"]["tiny (ppg)"]
    assert rows["tiny (ppg), scratch"]["label"] == "tiny (ppg), trained from scratch"
    assert rows["tiny (ppg), lora"]["note"] == "adapters on 2 layers (rank 2: 390 parameters)"
    assert table["protocol"]["alphas"]["tiny (ppg), lora"] == [2.0, 2.0, 2.0]


def test_an_encoder_without_a_network_here_says_so_in_its_rows(table: dict[str, Any]) -> None:
    rows = {row["name"]: row for row in table["rows"]}
    for how in NETWORK_HEADS:
        row = rows[f"Port (ppg), {how}"]
        assert not row["metrics"] and "is no bundle that holds its network" in row["note"]
    assert "handcrafted, lora" not in rows


def test_the_command_line_takes_ranks_and_steps() -> None:
    line = ["compare", "a", "--corpus", "c", "--tasks", "sbp", "--out", "o", "--heads", "lora,full"]
    how = options_of(Compare, parser().parse_args([*line, "--rank", "4,8", "--head-steps", "50"])).how
    assert how == replace(how, ranks=(4, 8), head_steps=50) and how.network_heads == ("lora", "full")
    with pytest.raises(SystemExit):
        parser().parse_args([*line, "--rank", "0"])


def test_rows_of_folder_are_gone_after_the_table(table: dict[str, Any]) -> None:
    import tempfile

    assert not list(Path(tempfile.gettempdir()).glob("plethora-heads-*"))
