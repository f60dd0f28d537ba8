"""SIGMA's priors and masks in two classes of windows: against plain loops, and with a planted difference."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy import stats

from cluster.errors import PlethoraError
from finetune.commands import priors as command
from finetune.evaluation import priors
from finetune.evaluation.choose import Windows
from finetune.reports import priors_report
from finetune.reports.sheet import write
from finetune.task import load_task
from pretrain.recipes.sigma import Masked, MaskedConfig

SMALL: dict[str, Any] = {
    "window_s": 60,
    "codebook_size": 8,
    "max_patches": 30,
    "conv_channels": 4,
    "dim": 8,
    "depth": 1,
    "heads": 2,
    "teacher_dim": 8,
    "teacher_depth": 1,
    "teacher_heads": 2,
}


def recipe(**changed: Any) -> Masked:
    return Masked(MaskedConfig(**(SMALL | changed)), 0)


def waves(n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    t = np.arange(3000) / 50
    beat = np.sin(2 * np.pi * 1.1 * t + rng.random((n, 1)) * 6) + 0.4 * np.sin(4.4 * np.pi * t)
    return ((beat * (1 + 0.5 * rng.random((n, 3000)))) + 3)[:, None]


def loop_prior(x: np.ndarray) -> np.ndarray:
    """The prior of one window's 30 patches in float64, term by term (DESIGN 8.1)."""
    x = (x - x.min()) / (x.max() - x.min())
    cut = x.reshape(30, 100)
    s = np.array([p.std() for p in cut])
    mad = np.median(np.abs(s - np.median(s)))
    z = 0.6745 * (s - np.median(s)) / mad
    amp = np.exp(-0.2 * z**2) / (1 + np.exp(-50 * (s - 0.05))) / (1 + np.exp(5 * (s - 2)))
    skew = np.tanh(np.abs([stats.skew(p, bias=False) for p in cut]))
    return 0.5 * amp + 0.5 * skew


def test_priors_are_those_of_a_plain_loop() -> None:
    x, of = waves(3), recipe(masking="prior")
    found = priors.measured(x, of, {}, draws=2, seed=0)
    assert np.allclose(found.prior, [loop_prior(w[0]) for w in x], atol=1e-4)
    assert set(found.hidden) == {"random", "prior"}


def test_masks_hide_what_the_recipe_hides() -> None:
    x, of = waves(6), recipe(mask_ratio=0.5, unmask=0.3, max_run=29)
    found = priors.measured(x, of, of.modules(), draws=400, seed=0)
    assert set(found.hidden) == {"random", "prior", "trained"}
    for hidden in found.hidden.values():  # 15 of 30 drawn, 30 % of them shown again
        assert hidden.mean() == pytest.approx(0.35, abs=0.01)
    assert np.abs(found.hidden["random"] - 0.35).max() < 0.12
    for window, weighted in zip(found.prior, found.hidden["prior"], strict=True):
        assert stats.spearmanr(window, weighted).statistic > 0.9
    bare = recipe(mask_ratio=0.5, unmask=0.0, max_run=1)
    runs = priors.measured(x, bare, bare.modules(), draws=100, seed=0).hidden["random"]
    assert runs.mean() < 0.4  # the second of two neighbours is shown again


def test_the_event_is_the_tasks_own_window_at_the_end() -> None:
    task = load_task("alarm_truth")
    assert priors.event_patches(task, 30, 2.0).sum() == 5 and priors.event_patches(task, 30, 2.0)[-5:].all()
    assert priors.event_patches(task, 30, 4.0).sum() == 3
    whole = task.model_copy(update={"until_s": None, "hop_s": 10.0})
    assert priors.event_patches(whole, 30, 2.0).all()


def drawn(shift: float = 0.0, seed: int = 0) -> tuple[priors.Patches, Windows, np.ndarray]:
    """60 windows of 60 records; in class 1 the prior of the last 5 patches is higher by `shift`."""
    rng = np.random.default_rng(seed)
    y = np.repeat([0.0, 1.0], 30)
    prior = rng.uniform(0.2, 0.6, (60, 30))
    prior[30:, -5:] += shift
    hidden = {"random": np.full((60, 30), 0.35), "prior": prior / 2, "trained": prior / 3}
    names = np.array([f"r{i}" for i in range(60)])
    event = np.arange(30) >= 25
    return priors.Patches(prior, hidden), Windows(np.arange(60), y, names, names, np.zeros(60)), event


def test_means_and_differences_are_those_of_a_loop_and_a_planted_one_is_found() -> None:
    patches, windows, event = drawn(0.1)
    found = priors.summary(patches, windows, event, ["no", "yes"], 0)
    rows = {row.name: row for row in found.table}
    y = windows.target
    expected = {
        "prior_event": patches.prior[:, 25:].mean(1),
        "prior_rest": patches.prior[:, :25].mean(1),
        "hidden_prior": 50 * patches.prior[:, 25:].mean(1),
        "apart_trained": 100 / 3 * (patches.prior[:, 25:].mean(1) - patches.prior[:, :25].mean(1)),
        "chosen_prior": (patches.prior**2).sum(1) / patches.prior.sum(1) - patches.prior.mean(1),
    }
    for name, value in expected.items():
        for k in (0, 1):
            assert rows[name].classes[k].value == pytest.approx(value[y == k].mean())
        apart = rows[name].difference
        assert apart.value == pytest.approx(value[y == 1].mean() - value[y == 0].mean())
        assert apart.low <= apart.value <= apart.high
    assert rows["prior_event"].difference.low > 0 > rows["prior_rest"].difference.low
    assert found.counts == {"no": 30, "yes": 30}
    assert found.quantiles["yes"][2] == pytest.approx(np.median(patches.prior[30:, 25:]))
    said = priors_report.verdicts(found, ("no", "yes"))
    assert "more often than where no" in said[0] and "is higher where yes" in said[-1]


def test_without_a_difference_none_is_claimed() -> None:
    claimed = 0
    for seed in range(20):
        found = priors.summary(*drawn(seed=seed), ["no", "yes"], seed)
        said = priors_report.verdicts(found, ("no", "yes"))
        claimed += "cannot be told apart" not in said[-1]
    assert claimed <= 3


@pytest.fixture
def task(tmp_path: Path) -> str:
    path = tmp_path / "sex.toml"
    path.write_text(
        'name = "sex"\ntitle = "Sex"\nkind = "binary"\nlabel = "sex"\npositive = "F"\nwindow_s = 10\n'
        'until_s = 120\nmetrics = ["auroc"]\n'
    )
    return str(path)


def test_a_run_writes_table_patches_and_picture(
    ray_session: Any, bundle: str, corpus: str, task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = recipe()
    monkeypatch.setattr(command, "open_masked", lambda uri: (of, of.modules()))
    out = tmp_path / "out"
    results = write(command.run(command.Priors(bundle, corpus, str(out), task, by="sex", draws=4)))
    beside = {"priors.md", "report.html", "results.json", "patches.parquet", "priors.png"}
    assert {p.name for p in out.iterdir()} == beside
    assert results["event_patches"] == 5 and sum(results["counts"].values()) == results_windows(out)
    table = pq.read_table(out / "patches.parquet").to_pandas()
    last = table[table["event"]].groupby("record")["start_s"]
    assert (last.min() == 110).all() and (last.max() == 118).all()
    assert {"prior", "hidden_random", "hidden_prior", "hidden_trained"} <= set(table.columns)
    assert "hidden, event" in (out / "priors.md").read_text() and "By sex" in (out / "priors.md").read_text()
    json.loads((out / "results.json").read_text())


def results_windows(out: Path) -> int:
    return len(pq.read_table(out / "patches.parquet")) // 30


def test_what_cannot_be_shown_is_one_clear_line(bundle: str, corpus: str, task: str, tmp_path: Path) -> None:
    with pytest.raises(PlethoraError, match=r"tiny:Tiny: priors are SIGMA's"):
        command.run(command.Priors(bundle, corpus, str(tmp_path / "out"), task))
    with pytest.raises(PlethoraError, match="is regression: priors are told apart in two classes"):
        command.widened(load_task("heart_rate"), 60)
    with pytest.raises(PlethoraError, match=r"ends at 300 s of a record, SIGMA's windows are 400 s"):
        command.widened(load_task("alarm_truth"), 400)
