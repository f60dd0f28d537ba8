import json

import matplotlib.image
import numpy as np
import pytest

from cluster.errors import PlethoraError
from datasets import __main__ as command
from datasets.inspect import beat_quality
from datasets.synthetic import synthesize


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    out = str(tmp_path_factory.mktemp("i") / "c")
    synthesize(out, hours=0.1, subjects=4, gaps=0.02, flats=0.03, clips=0.01, motion=0.1)
    return out


def test_the_table_says_subjects_hours_rejects_and_labels(corpus, capsys):
    about = command.main(["inspect", corpus])
    text = capsys.readouterr().out
    assert "4 subjects" in text and "hours in" in text
    for m in ("ppg", "ecg", "abp", "resp"):
        line = next(line for line in text.splitlines() if line.strip().startswith(m))
        assert f"{about['counts']['hours'][m]:.4f}" in line
    for reasons in about["rejects"].values():
        assert all(reason in text for reason in reasons)
    assert f"hr {about['labels']['hr']:,}" in text


def test_with_json_only_the_object_goes_to_stdout(corpus, capsys):
    about = command.main(["inspect", corpus, "--json"])
    assert capsys.readouterr().out == ""
    assert json.loads(json.dumps(about))["counts"]["subjects"] == 4


@pytest.mark.parametrize("faults", [True, False])
def test_the_picture_is_drawn_with_and_without_rejects(corpus, tmp_path, faults):
    uri = corpus
    if not faults:
        uri = str(tmp_path / "clean")
        synthesize(uri, hours=0.02, subjects=2, gaps=0, flats=0, clips=0, rates={"ppg": 50.0})
    command.main(["inspect", uri, "--plot", str(tmp_path / "pictures" / "p.png"), "--json"])
    image = matplotlib.image.imread(tmp_path / "pictures" / "p.png")
    assert image.shape[0] > 500 and image.shape[1] > 1000
    assert image[..., :3].std() > 0.05


def test_a_picture_must_be_a_png_and_a_corpus_must_be_there(corpus, tmp_path):
    with pytest.raises(PlethoraError, match=r"\.png"):
        command.main(["inspect", corpus, "--plot", str(tmp_path / "p.pdf")])
    with pytest.raises(PlethoraError, match="no corpus at"):
        command.main(["inspect", str(tmp_path / "nothing")])


def test_regularity_is_near_one_for_a_pulse_and_near_zero_for_noise():
    t = np.arange(0, 80, 0.01)
    assert beat_quality(np.sin(2 * np.pi * 1.3 * t), 100).min() > 0.95
    assert beat_quality(np.random.default_rng(0).standard_normal(len(t)), 100).max() < 0.4
    assert len(beat_quality(np.zeros(10), 100)) == 0
    assert beat_quality(np.zeros(800), 100).tolist() == [0.0]
