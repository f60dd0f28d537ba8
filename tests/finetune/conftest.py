"""One synthetic corpus and one tiny bundle for all tests of this folder."""

from collections.abc import Iterator

import pytest

from tests.finetune import tiny


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Vectors and indexes of tests are kept for the run only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    """12 people, 36 minutes, with planted gaps and flat lines."""
    from datasets.synthetic import synthesize

    out = str(tmp_path_factory.mktemp("corpus") / "synthetic")
    synthesize(out, hours=0.6, subjects=12, seed=1, rates={"ppg": 125.0})
    return out


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A bundle that saw nobody of that corpus (its lineage names real people only)."""
    folder = tmp_path_factory.mktemp("bundle")
    return tiny.make_bundle(folder / "files", str(folder / "run" / "bundle"))


@pytest.fixture(scope="session")
def paired_corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    """12 people, 24 minutes of PPG at 125 Hz and ECG at 250 Hz, with planted gaps and flat lines."""
    from datasets.synthetic import synthesize

    out = str(tmp_path_factory.mktemp("paired") / "synthetic")
    synthesize(out, hours=0.4, subjects=12, seed=2, rates={"ppg": 125.0, "ecg": 250.0})
    return out


@pytest.fixture(scope="session")
def pair_bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A bundle with modes ppg, ecg and ppg+ecg that saw nobody of either corpus."""
    folder = tmp_path_factory.mktemp("pair")
    return tiny.make_pair_bundle(folder / "files", str(folder / "run" / "bundle"))
