"""Bundles as functions from raw samples to vectors."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import signal

from cluster.errors import PlethoraError
from datasets.schema import Corpus, open_corpus
from finetune.encoders.base import pooled
from finetune.encoders.bundle import BundleEncoder, untrained
from pretrain import card
from tests.finetune import tiny


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("encoder")
    return tiny.make_bundle(folder / "files", str(folder / "run" / "bundle"))


@pytest.fixture(scope="module")
def encoder(bundle: str) -> BundleEncoder:
    return BundleEncoder(bundle)


def raw(n: int, seconds: float, rate: float) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.normal(0, 1, (n, 1, round(seconds * rate))).cumsum(-1) + 2000


def test_preparation_is_cut_filter_resample_in_that_order(encoder: BundleEncoder) -> None:
    x = raw(3, 31.0, 125)
    sos = signal.butter(2, [0.5, 8], btype="bandpass", fs=125, output="sos")
    expected = signal.resample(signal.sosfiltfilt(sos, x[..., : 30 * 125], axis=-1), 1500, axis=-1)
    np.testing.assert_allclose(encoder.prepare(x, 125), expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("rate", [17, 33.3, 50, 62.5, 125, 250, 1000])
@pytest.mark.parametrize("seconds", [2.0, 2.1, 3.9, 30, 60])
def test_every_rate_and_length_gives_whole_steps(encoder: BundleEncoder, rate: float, seconds: float) -> None:
    prepared = encoder.prepare(raw(1, np.ceil(seconds * rate) / rate, rate), rate)
    assert prepared.shape == (1, 1, int(seconds / 2) * 100)
    assert prepared.dtype == np.float32


@pytest.mark.parametrize("rate", [17.35, 23.977, 31.999, 49.9, 63.97, 64.04, 124.945])
def test_a_network_of_one_sample_a_step_gets_its_longest_and_shortest_window_whole(
    tmp_path: Path, rate: float
) -> None:
    """Steps finer than a raw sample: several lengths have the same number of raw samples."""
    fine = {"ppg": tiny.PREPROCESSING["ppg"] | {"multiple_s": 1 / 50, "max_s": 10.0, "window_s": 10.0}}
    encoder = BundleEncoder(tiny.make_bundle(tmp_path / "f", str(tmp_path / "b"), preprocessing=fine))
    for seconds in (2.0, 10.0):
        for n in {round(seconds * rate), int(np.ceil(seconds * rate - 0.5))}:
            assert encoder.prepare(raw(1, n / rate, rate), rate).shape == (1, 1, round(50 * seconds))
    for seconds in (3.3, 7.02):  # told how long they are
        x = raw(1, seconds, rate)
        assert encoder.prepare(x, rate, seconds).shape == (1, 1, round(50 * seconds))
        assert abs(encoder.prepare(x, rate).shape[-1] - 50 * seconds) <= 1 + 0.5 * 50 / rate


def test_one_sample_too_many_is_cut_and_more_are_refused(encoder: BundleEncoder) -> None:
    rate = 124.955  # 60 s are 7497.3 samples
    x = raw(1, 61, rate)
    most = int(np.ceil(60 * rate))  # 7498, as np.arange(0, 60, 1 / rate) has them
    whole = encoder.prepare(x[..., : most - 1], rate)
    assert whole.shape[-1] == 3000
    np.testing.assert_array_equal(encoder.prepare(x[..., :most], rate), whole)
    with pytest.raises(PlethoraError, match="longer than the encoder takes"):
        encoder.prepare(x[..., : most + 1], rate)


def test_no_windows_give_no_vectors(encoder: BundleEncoder, pair_bundle: str) -> None:
    assert encoder.embed(np.zeros((0, 1, 3748)), 124.945).shape == (0, 24)
    both = BundleEncoder(pair_bundle, "ppg+ecg")  # its ECG is turned upright
    x = {"ppg": np.zeros((0, 1, 1250)), "ecg": np.zeros((0, 1, 2500))}
    assert both.embed(x, {"ppg": 125.0, "ecg": 250.0}).shape == (0, 24)
    assert untrained(encoder.bundle.config, "ppg", seed=3)(np.zeros((0, 1, 500), np.float32)).shape == (0, 24)


def test_input_under_the_minimum_is_reflected_at_its_own_rate(encoder: BundleEncoder) -> None:
    x = raw(2, 1.2, 125)
    longer = np.concatenate([x, x[..., -2:-102:-1]], axis=-1)
    np.testing.assert_array_equal(encoder.prepare(x, 125), encoder.prepare(longer, 125))
    assert encoder.embed(raw(1, 0.3, 125), 125).shape == (1, 24)


def test_short_input_is_repeated_or_refused_where_the_bundle_says_so(tmp_path: Path) -> None:
    for short in ("repeat", "refuse"):
        told = {"ppg": tiny.PREPROCESSING["ppg"] | {"short": short}}
        uri = tiny.make_bundle(tmp_path / f"{short}-files", str(tmp_path / short), preprocessing=told)
        x = raw(1, 1.2, 125)
        if short == "refuse":
            with pytest.raises(PlethoraError, match=r"1.2 s are under the encoder's minimum of 2 s"):
                BundleEncoder(uri).prepare(x, 125)
        else:
            longer = np.concatenate([x, x[..., :100]], axis=-1)
            np.testing.assert_array_equal(
                BundleEncoder(uri).prepare(x, 125), BundleEncoder(uri).prepare(longer, 125)
            )


@pytest.mark.parametrize(
    ("x", "rate", "said"),
    [
        (
            np.zeros((1, 1, 500)),
            15,
            r"ppg at 15 Hz: the encoder has a band up to 8 Hz and needs more than 16 Hz",
        ),
        (np.zeros((1, 2, 500)), 50, r"takes \(n, 1, samples\), not \(1, 2, 500\)"),
        (np.full((1, 1, 500), np.nan), 50, "window 0 holds NaN"),
        (np.zeros((1, 1, 3050)), 50, r"61 s are longer than the encoder takes \(60 s\)"),
    ],
)
def test_what_cannot_be_matched_is_refused_in_one_line(
    encoder: BundleEncoder, x: np.ndarray, rate: float, said: str
) -> None:
    with pytest.raises(PlethoraError, match=said) as refused:
        encoder.prepare(x, rate)
    assert "\n" not in str(refused.value)


def test_vectors_do_not_depend_on_the_batch_and_equal_torch(encoder: BundleEncoder) -> None:
    x = encoder.prepare(raw(130, 4, 50), 50)
    together = encoder(x)
    net = tiny.Tiny(tiny.Tiny.Config(), 0).modules()["net"].tune()
    np.testing.assert_allclose(together, net(torch.from_numpy(x)).detach(), atol=1e-4)
    np.testing.assert_allclose(together[70:71], encoder(x[70:71]), atol=1e-5)


def test_a_bundles_declared_preprocessing_is_done_and_an_unknown_key_is_named(tmp_path: Path) -> None:
    more = {"normalise": "zscore", "filter": "chebyshev2", "attenuation": 20.0, "order": 4, "smooth_s": 0.05}
    told = {"ppg": tiny.PREPROCESSING["ppg"] | more | {"resample": "polyphase"}}
    uri = tiny.make_bundle(tmp_path / "files", str(tmp_path / "bundle"), preprocessing=told)
    x = raw(2, 10, 125)
    sos = signal.cheby2(4, 20, [0.5, 8], "bandpass", fs=125, output="sos")
    y = signal.filtfilt(np.full(6, 1 / 6), 1, signal.sosfiltfilt(sos, x, axis=-1), axis=-1)
    y = signal.resample_poly(y, 2, 5, axis=-1)
    y = (y - y.mean(-1, keepdims=True)) / y.std(-1, keepdims=True)
    np.testing.assert_allclose(BundleEncoder(uri).prepare(x, 125), y, atol=1e-5)
    wrong = {"ppg": told["ppg"] | {"wavelet": "db4"}}
    with pytest.raises(PlethoraError, match="ppg: unknown key `wavelet`: known are rate, band"):
        tiny.make_bundle(tmp_path / "other", str(tmp_path / "wrong"), preprocessing=wrong)


def test_an_unknown_mode_names_those_that_are_there(bundle: str) -> None:
    with pytest.raises(PlethoraError, match="no mode 'ecg': it has ppg"):
        BundleEncoder(bundle, "ecg")


def test_a_changed_byte_in_the_network_is_refused(tmp_path: Path) -> None:
    uri = tiny.make_bundle(tmp_path / "files", str(tmp_path / "bundle"))
    path = Path(uri, "ppg.onnx")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(PlethoraError, match=r"ppg\.onnx"):
        BundleEncoder(uri)


def test_the_untrained_encoder_has_the_weights_that_training_began_with(encoder: BundleEncoder) -> None:
    x = encoder.prepare(raw(5, 10, 50), 50)
    run = untrained(encoder.bundle.config, "ppg", seed=3)
    fresh = tiny.Tiny(tiny.Tiny.Config(), 3).modules()["net"]
    np.testing.assert_array_equal(run(x), fresh(torch.from_numpy(x)).detach().numpy())
    assert np.abs(run(x) - encoder(x)).max() > 0.1


def test_building_it_leaves_the_callers_random_numbers_alone(encoder: BundleEncoder) -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    untrained(encoder.bundle.config, "ppg", seed=3)
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)


def test_a_window_longer_than_the_encoder_takes_is_cut_and_averaged(encoder: BundleEncoder) -> None:
    assert [encoder.pieces(s) for s in (2, 60, 60.5, 150)] == [1, 1, 2, 3]
    x = encoder.prepare(raw(4, 60, 50), 50)
    halves = (encoder(x[..., :1500]) + encoder(x[..., 1500:])) / 2
    np.testing.assert_allclose(pooled(encoder, x, 2, 100), halves, atol=1e-5)
    with pytest.raises(PlethoraError, match="1 s are under the encoder's minimum of 2 s"):
        encoder.pieces(1)


# ---------------------------------------------------------------- several inputs


@pytest.fixture(scope="module")
def both(pair_bundle: str) -> BundleEncoder:
    return BundleEncoder(pair_bundle, "ppg+ecg")


def pair(n: int, seconds: float) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Raw PPG at 125 Hz and ECG at 250 Hz whose complexes point down."""
    ecg = np.zeros((n, 1, round(seconds * 250)))
    ecg[..., 100::200] = -5.0
    rng = np.random.default_rng(1)
    return {"ppg": raw(n, seconds, 125), "ecg": ecg + 0.1 * rng.normal(size=ecg.shape)}, {
        "ppg": 125.0,
        "ecg": 250.0,
    }


@pytest.mark.parametrize("seconds", [1.2, 10.0, 31.3])
def test_a_mode_of_two_inputs_equals_the_cards_own_code(
    pair_bundle: str, both: BundleEncoder, seconds: float
) -> None:
    x, rate = pair(3, seconds)
    code = card.snippet("ppg+ecg", both.bundle.config, both.bundle.preprocessing)
    names: dict = {}
    exec(code.replace('Path(".")', f'Path("{pair_bundle}")'), names)
    expected = names["embed"]({m: y[:, 0] for m, y in x.items()}, rate)
    np.testing.assert_allclose(both.embed(x, rate), expected, atol=1e-4)
    assert expected.shape == (3, 24)


def test_both_inputs_reach_the_network_each_by_its_name(both: BundleEncoder, pair_bundle: str) -> None:
    x, rate = pair(2, 10)
    alone = [BundleEncoder(pair_bundle, m).embed(x[m], rate[m]) for m in ("ppg", "ecg")]
    assert np.abs(alone[0] - alone[1]).max() > 0.1
    np.testing.assert_allclose(both.embed(x, rate), (alone[0] + alone[1]) / 2, atol=1e-5)
    np.testing.assert_allclose(pooled(both, both.prepare(x, rate), 1, 100), both.embed(x, rate), atol=1e-5)


def test_the_untrained_network_of_two_inputs_is_fed_in_its_own_order(both: BundleEncoder) -> None:
    prepared = both.prepare(*pair(5, 10))
    fresh = tiny.TinyPair(tiny.TinyPair.Config(), 3).modules()["net"]
    expected = fresh(*(torch.from_numpy(prepared[m]) for m in ("ppg", "ecg"))).detach().numpy()
    run = untrained(both.bundle.config, "ppg+ecg", seed=3)
    np.testing.assert_array_equal(run(dict(reversed(prepared.items()))), expected)


def test_inputs_that_do_not_belong_together_are_refused_in_one_line(
    both: BundleEncoder, pair_bundle: str
) -> None:
    x, rate = pair(2, 10)
    for bad, rates, said in (
        (x["ppg"], rate, "takes ppg and ecg together: give a dict"),
        ({"ppg": x["ppg"]}, rate, "no ecg is given"),
        (x, {"ppg": 125.0}, "the rate of ecg is missing"),
        (x | {"ecg": x["ecg"][..., :2000]}, rate, r"of the same time, not ppg 2 x 10 s, ecg 2 x 8 s"),
        (x | {"ecg": x["ecg"][:1]}, rate, "ppg 2 x 10 s, ecg 1 x 10 s"),
        (x, {"ppg": 125.0, "ecg": 90.0}, "ecg at 90 Hz: the encoder needs at least 100 Hz"),
    ):
        with pytest.raises(PlethoraError, match=said) as refused:
            both.prepare(bad, rates)
        assert "\n" not in str(refused.value)
    with pytest.raises(PlethoraError, match=r"3 modes \(ppg, ecg, ppg\+ecg\): choose one as BUNDLE#MODE"):
        BundleEncoder(pair_bundle)


def test_a_corpus_without_ecg_or_with_too_slow_a_one_gets_one_clear_line(
    both: BundleEncoder, corpus: str
) -> None:
    found = open_corpus(corpus)
    with pytest.raises(PlethoraError, match=r"has no ecg \(it has ppg\), which mode 'ppg\+ecg' of"):
        both.check(found)
    slow = dict(found.manifest) | {"modalities": ["ppg", "ecg"], "shards": [{"rates": {"ecg": [62.5, 90]}}]}
    with pytest.raises(PlethoraError, match=r"has ecg at 90 Hz at most, mode .* needs at least 100 Hz"):
        both.check(Corpus(found.uri, slow))
