"""The picture sheet of a corpus's windows."""

from pathlib import Path

import pytest
from matplotlib import image

from cluster.errors import PlethoraError
from datasets.schema import open_corpus
from datasets.windows import Signal, WindowSpec
from finetune.__main__ import main
from finetune.evaluation.sample import sound_windows

SPEC = WindowSpec(signals=(Signal(modality="ppg", rate=40, band=(0.5, 8.0)),), window_s=10)


def test_the_command_draws_real_windows_and_says_their_sizes(corpus, tmp_path, capsys):
    out = str(tmp_path / "new" / "sheet.png")
    results = main(["images", "--corpus", corpus, "--out", out, "--windows", "2", "--set", "stride=8"])
    assert results["sizes"] == {"stft": [65, 76], "complex": [65, 76], "recurrence": [150, 150]}
    assert results["windows"] == 2 and "2 windows of 30 s at 40 Hz" in capsys.readouterr().out
    drawn = image.imread(out)
    assert drawn.shape[0] > 400 and drawn[..., :3].std() > 0.05


def test_windows_are_of_different_subjects_first_and_the_seeds(corpus):
    found = open_corpus(corpus)
    names = [name for _, name in sound_windows(found, SPEC, 5, 0)]
    assert len({name.splitlines()[0] for name in names}) == 5
    assert names == [name for _, name in sound_windows(found, SPEC, 5, 0)]
    assert names != [name for _, name in sound_windows(found, SPEC, 5, 1)]
    everybody = sound_windows(found, SPEC, 14, 0)  # 12 people
    assert len({name for _, name in everybody}) == len(everybody) == 14


def test_mistakes_are_one_line(corpus, tmp_path):
    out = str(tmp_path / "a.png")
    for given, message in (
        (["--out", str(tmp_path / "a.pdf")], "ends in .png"),
        (["--out", out, "--set", "window_s=1"], "too few for n_fft"),
        (["--out", out, "--set", "sride=3"], "the nearest known one is `stride`"),
        (
            ["--out", out, "--set", "window_s=100000", "--set", "hop=1000000", "--set", "stride=1000"],
            "no sound",
        ),
    ):
        with pytest.raises(PlethoraError, match=message) as error:
            main(["images", "--corpus", corpus, *given])
        assert "\n" not in str(error.value)
    assert not Path(out).exists()
