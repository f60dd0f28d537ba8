"""The probe of a trial's bundle: its training subjects, its held-out subjects, and what damage does."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.errors import PlethoraError
from datasets.schema import open_corpus
from datasets.split import Split, assign
from finetune.encoders.bundle import BundleEncoder
from finetune.probe import ALPHAS
from finetune.task import load_task
from pretrain.config import RunConfig
from tests.finetune import tiny
from tuning.config import Objective
from tuning.probe import ProbeData, check, probe

SPLIT = Split(val=0.3, test=0.2)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    from datasets.synthetic import synthesize

    home = tmp_path_factory.mktemp("objective")
    corpus = str(home / "corpus")
    synthesize(corpus, hours=0.6, subjects=12, seed=1, rates={"ppg": 125.0})
    return RunConfig(
        recipe="x:Y",
        corpus={corpus: 1.0},
        storage=str(home / "runs"),
        name="t",
        steps=1,
        batch=1,
        split=SPLIT,
    )


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("bundle")
    return tiny.make_bundle(folder / "files", str(folder / "run" / "bundle"))


def heart_rate(**more: Any) -> Objective:
    return Objective(**{"task": "heart_rate", "metric": "mae", "mode": "min", **more})


@pytest.mark.parametrize("part", ["val", "test"])
def test_the_probe_is_trained_on_training_subjects_and_judged_on_the_part_alone(
    run: RunConfig, bundle: str, part: str, ray_session: Any
) -> None:
    """Against scikit-learn's ridge, at one of the strengths that the probe may choose."""
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    found = probe(heart_rate(), run, bundle, part)
    (uri,) = run.corpora
    data = ProbeData.of(BundleEncoder(bundle), open_corpus(uri), load_task("heart_rate"), run, part)
    who = data.windows.subject
    assert {assign(s, SPLIT) for s in who[data.judged]} == {part}
    assert {assign(s, SPLIT) for s in who[~data.judged]} == {"train"}
    x, y = data.vectors.astype(np.float64), data.windows.target
    errors = []
    for alpha in ALPHAS:
        model = make_pipeline(StandardScaler(), Ridge(alpha)).fit(x[~data.judged], y[~data.judged])
        errors.append(np.abs(model.predict(x[data.judged]) - y[data.judged]).mean())
    assert np.abs(np.array(errors) - found).min() < 1e-4


def test_damage_is_done_to_the_judged_windows_alone_and_several_kinds_are_averaged(
    run: RunConfig, bundle: str, ray_session: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded: list[int] = []
    embed = ProbeData.embed
    monkeypatch.setattr(
        ProbeData, "embed", lambda h, p, rows: (embedded.append(len(rows)), embed(h, p, rows))[1]
    )
    clean = probe(heart_rate(), run, bundle, "val")
    (whole,) = embedded
    motion, rate = ({"motion": 2.0}, {"wrong_rate": 0.2})
    alone = [probe(heart_rate(damage=d), run, bundle, "val") for d in (motion, rate)]
    assert embedded[1] == embedded[3] == whole and 0 < embedded[2] == embedded[4] < whole
    assert min(alone) != clean and alone[0] != alone[1]
    assert probe(heart_rate(damage=motion | rate), run, bundle, "val") == pytest.approx(np.mean(alone))


def test_mistakes_are_reported_before_any_trial() -> None:
    for more, said in (
        ({"task": "heart_rat"}, "heart_rate"),
        ({"metric": "auroc"}, "task heart_rate has no metric 'auroc', it has mae"),
        ({"damage": {"shaking": 1.0}}, "unknown damage 'shaking'; there are motion"),
        ({"damage": {"motion": -1}}, "motion = -1: give a severity above 0"),
        ({"damage": {"motion": "much"}}, "motion = 'much': give a severity above 0"),
    ):
        with pytest.raises(PlethoraError, match=said):
            check(heart_rate(**more))


def test_missing_subjects_or_labels_are_reported(run: RunConfig, bundle: str, ray_session: Any) -> None:
    with pytest.raises(PlethoraError, match=r"no corpus of the run has the label"):
        probe(Objective(task="alarm_truth", metric="auroc", mode="max"), run, bundle, "val")
    nobody = run.model_copy(update={"split": Split(val=0.0, test=0.2)})
    with pytest.raises(PlethoraError, match=r"0 subjects of val .* change split.val"):
        probe(heart_rate(), nobody, bundle, "val")


def test_an_adapter_is_refused_and_its_own_figures_named(run: RunConfig, tmp_path: Path) -> None:
    from pretrain.publish import write_bundle
    from tests.finetune.test_supervised import vision
    from tests.finetune.tiny import lineage

    recipe = vision()
    net = recipe.modules()["net"]
    state = {"net": {k: p for k, p in net.named_parameters() if p.requires_grad}}
    about = {"recipe": "finetune.supervised:Vision", "method": recipe.config.model_dump(mode="json")}
    about |= {"seed": 1, "name": "v", "split": {}}
    metrics: dict[str, Any] = {"first": {}, "last": {}, "history": []}
    uri = str(tmp_path / "run" / "bundle")
    write_bundle(uri, recipe.encoder({"net": net}), state, {"net": 1}, about, lineage(), metrics, {})
    with pytest.raises(PlethoraError, match=r"is an adapter.*mae/heart_rate"):
        probe(heart_rate(), run, uri, "val")
