"""The declaration of preprocessing in a bundle: written once, read once, and refused by name."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import PlethoraError
from datasets.declared import entry_of, signal_of
from datasets.signal import LATEST, Signal
from tests.datasets.test_published_filters import ECGFOUNDER, FIR, PAPAGEI, PULSEPPG

OLD = {  # of a bundle of version 1, as `pretrain.publish` wrote it
    "rate": 50.0,
    "band": [0.5, 8.0],
    "order": 3,
    "kind": "butterworth",
    "filter": "butterworth",
    "phase": "zero (sosfiltfilt)",
    "resample": "fft",
    "sequence": ["cut", "filter at the native rate", "resample"],
    "normalise": "in the model",
}
LENGTHS = {
    "window_s": 10.0,
    "min_s": 2.0,
    "max_s": 10.0,
    "multiple_s": 0.02,
    "short": "reflect",
    "unit": "any",
}
MORE: list[dict[str, Any]] = [
    FIR | {"taper": "kaiser", "beta": 5.0, "phase": "delayed"},
    FIR | {"band": (0.5, None), "taper": "hann"},
    {"rate": 50.0, "band": (0.5, 8.0), "sequence": ("resample", "filter", "normalise")},
    {"rate": 50.0, "sequence": ("normalise", "resample", "filter"), "normalise": "minmax_signed"},
    {"rate": 50.0, "sequence": ("filter", "normalise", "resample")},
    {"rate": 250.0, "band": (0.5, None), "upright": True, "notch": 60.0, "normalise": "minmax"},
]


def test_a_signal_of_version_1_is_written_as_before_and_read_as_before() -> None:
    signal = Signal(modality="ppg", rate=50.0, band=(0.5, 8.0), order=3)
    assert entry_of(signal) == OLD and signal_of("ppg", OLD | LENGTHS, "x") == signal
    ecg = Signal(
        modality="ecg", rate=500.0, band=(0.5, None), order=5, notch=50.0, upright=True, min_rate=125.0
    )
    told = OLD | {"rate": 500.0, "band": [0.5, None], "order": 5, "notch": 50.0, "upright": True}
    told |= {"min_rate": 125.0, "sequence": [*OLD["sequence"], "turn upright"]}
    assert entry_of(ecg) == told and signal_of("ecg", told, "x") == ecg
    bare = {"rate": 50, "band": [0.5, 8], "order": None, "notch": None, "upright": None, "min_rate": None}
    assert signal_of("ppg", bare, "x") == Signal(modality="ppg", rate=50.0, band=(0.5, 8.0))
    assert signal_of("ppg", {"rate": 40, "band": None, "normalise": "none"}, "x").band is None


@pytest.mark.parametrize("told", [PAPAGEI, ECGFOUNDER, PULSEPPG, *MORE])
def test_what_is_declared_is_read_back_and_only_what_is_set_is_written(told: dict[str, Any]) -> None:
    signal = Signal(modality="ppg", **told)
    entry = entry_of(signal)
    assert signal_of("ppg", entry | LENGTHS, "x") == signal
    later = set(LATEST) - {"filter", "phase", "resample", "sequence"}
    assert later & set(entry) == later & set(told)


@settings(max_examples=50, deadline=None)
@given(
    sequence=st.permutations(["filter", "resample", "normalise"]),
    normalise=st.sampled_from(["none", "minmax", "minmax_signed", "zscore"]),
    upright=st.booleans(),
)
def test_a_sequence_survives_its_words(sequence: list, normalise: str, upright: bool) -> None:
    told = {"sequence": tuple(sequence), "normalise": normalise}
    if upright and sequence[-1] == "normalise":
        told["upright"] = True
    signal = Signal(modality="ecg", rate=50.0, **told)
    assert signal_of("ecg", entry_of(signal), "x") == signal


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tapper": "hann"}, r"unknown key `tapper`: did you mean `taper`\? known are rate, band, filter, "),
        ({"wavelet": "db4"}, "unknown key `wavelet`: known are rate, band, filter, "),
        (
            {"filter": "bessel"},
            r"`filter`: input should be 'butterworth', 'chebyshev2' or 'fir', not 'bessel'",
        ),
        ({"resample": "spline"}, r"`resample`: input should be 'fft', 'polyphase' or 'linear', not 'spline'"),
        ({"normalise": "robust"}, r"`normalise`: .*'zscore', not 'robust'"),
        ({"phase": "minimum"}, "`phase` is 'minimum': known are zero, delayed"),
        ({"sequence": ["cut", "detrend", "resample"]}, "unknown step 'detrend': known are cut, "),
        ({"sequence": "cut"}, "`sequence` must be a list of steps"),
        ({"sequence": ["cut", "resample"]}, "must name filter, resample and normalise, each once"),
        ({"filter": "fir", "taps": 100}, "taps must be odd"),
        ({"filter": "fir", "taps": 10**9 + 1}, "`taps`: input should be less than or equal to 100001"),
        ({"attenuation": "20"}, "`attenuation`: input should be a valid number, not '20'"),
        ({"rate": None}, "`rate` is missing"),
        ({"sequence": ["resample", "filter"], "band": [0.5, 30.0]}, "does not fit a signal of 50 Hz"),
    ],
)
def test_what_nobody_can_do_is_one_line_with_the_file_the_key_and_what_is_known(
    change: dict[str, Any], says: str
) -> None:
    with pytest.raises(PlethoraError, match=says) as caught:
        signal_of("ppg", OLD | change, "s3://b/preprocessing.json")
    assert str(caught.value).startswith("s3://b/preprocessing.json, ppg: ") and "\n" not in str(caught.value)
