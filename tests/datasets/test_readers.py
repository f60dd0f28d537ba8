"""The WFDB reader: samples unchanged, labels as published, and what it refuses."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import wfdb

from cluster.errors import PlethoraError
from datasets.ingest import read_descriptor
from datasets.readers import wfdb as reader
from datasets.readers.base import Refused, Root
from datasets.readers.wfdb_layout import read_layout
from tests.datasets import recordings
from tests.datasets.recordings import DESCRIPTOR, waves, write_record

ROOT = Path(__file__).resolve().parents[2]


USE = recordings.Use(reader, DESCRIPTOR)
scan, load = USE.all, USE.load


def one(folder, text=DESCRIPTOR, **more):
    x = more.pop("x", {"PLETH": waves(10, 100, 1), "ABP": waves(10, 100, 2)})
    write_record(folder / "root", 1, "ann", x, **more)
    known, root, sources = scan(folder, text)
    return known, root, sources[0]


def test_samples_are_the_files_own_integers_with_their_gain_and_baseline(tmp_path):
    x = waves(10, 100, 1)
    known, root, source = one(tmp_path, x={"PLETH": x})
    ppg = load(known, root, source).signals["ppg"]
    assert np.array_equal(ppg.x_tc[:, 0], x)
    assert np.allclose(ppg.x_tc[:, 0] * ppg.scale + ppg.offset, (x - 17) / 200)
    assert (ppg.rate, ppg.unit) == (Fraction(100), "au")


def test_a_number_that_the_descriptor_names_is_a_missing_sample_as_the_file_stores_it(tmp_path):
    x = waves(10, 100, 1)
    x[300:340] = -9999
    text = DESCRIPTOR.replace('channels = ["PLETH"]', 'channels = ["PLETH"]\nmissing = [-9999]')
    got = load(*one(tmp_path, text, x={"PLETH": x})).signals["ppg"]
    assert np.flatnonzero(got.missing).tolist() == list(range(300, 340))


def test_headers_alone_tell_subject_hours_and_files(tmp_path):
    _, _, source = one(tmp_path)
    assert (source.record, source.subject) == ("r1", "ann")
    assert source.seconds == {"ppg": Fraction(10), "abp": Fraction(10)}
    assert {name for name, _ in source.files} == {"r1.hea", "about/1.txt", "r1.dat", "r1n.hea", "r1n.dat"}


def test_the_first_channel_of_the_preferred_names_is_taken_and_named(tmp_path):
    art, abp = waves(10, 100, 5), waves(10, 100, 6)
    known, root, source = one(tmp_path, x={"ART": art, "PLETH": waves(10, 100, 1), "ABP": abp})
    got = load(known, root, source)
    assert np.array_equal(got.signals["abp"].x_tc[:, 0], abp)
    assert {label.name: label.values for label in got.labels}["abp_channel"] == ["ABP"]


def test_a_listed_unit_is_converted_exactly_and_an_unlisted_one_refuses_the_modality(tmp_path):
    known, root, source = one(tmp_path / "kpa", units={"ABP": "kPa"})
    abp = load(known, root, source).signals["abp"]
    assert abp.unit == "mmHg"
    assert abp.scale == pytest.approx(7.50062 / 200)
    assert abp.offset == pytest.approx(-7.50062 * 17 / 200)
    known, root, source = one(tmp_path / "volt", units={"ABP": "V"})
    assert source.refused == {"abp": "unit_mismatch"}
    assert set(load(known, root, source).signals) == {"ppg"}


@pytest.fixture(autouse=True)
def folders(tmp_path):
    for name in ("kpa", "volt"):
        (tmp_path / name).mkdir()


def test_another_rate_than_promised_is_refused(tmp_path):
    _, _, source = one(tmp_path, rate=50)
    assert source.refused == {"ppg": "bad_rate"}
    assert source.seconds["ppg"] == Fraction(20)


def test_a_missing_rate_is_refused_and_not_guessed(tmp_path):
    one(tmp_path)
    header = tmp_path / "root" / "r1.hea"
    lines = header.read_text().splitlines()
    header.write_text("\n".join(["r1 2", *lines[1:]]) + "\n")
    source = scan(tmp_path)[2][0]
    assert source.refused == {"ppg": "bad_rate", "abp": "bad_rate"}
    assert source.seconds["ppg"] == Fraction(10)  # at the rate that the descriptor promises
    assert source.seconds["abp"] == 0  # no rate anywhere


def test_a_required_channel_that_is_missing_counts_its_hours_and_an_optional_one_is_just_not_there(tmp_path):
    _, _, source = one(tmp_path, x={"ABP": waves(10, 100, 1)})
    assert source.refused == {"ppg": "missing_channel"}
    assert source.seconds["ppg"] == Fraction(10)
    (tmp_path / "b").mkdir()
    _, _, source = one(tmp_path / "b", x={"PLETH": waves(10, 100, 1)})
    assert source.refused == {}
    assert set(source.seconds) == {"ppg"}


def test_a_truncated_signal_file_is_refused_with_the_hours_that_its_header_promises(tmp_path):
    one(tmp_path)
    dat = tmp_path / "root" / "r1.dat"
    dat.write_bytes(dat.read_bytes()[:-2])
    source = scan(tmp_path)[2][0]
    assert source.broken and source.broken[0] == "truncated"
    assert source.seconds == {"ppg": Fraction(10), "abp": Fraction(10)}


def test_a_missing_signal_file_and_an_unreadable_header_are_refused(tmp_path):
    one(tmp_path)
    (tmp_path / "root" / "r1.dat").unlink()
    assert scan(tmp_path)[2][0].broken[0] == "missing_file"
    (tmp_path / "root" / "r1.hea").write_bytes(b"\x00\x01 not a header")
    assert scan(tmp_path)[2][0].broken[0] in ("corrupt", "unsupported")


def test_a_changed_byte_breaks_the_checksum_and_refuses_the_record(tmp_path):
    known, root, source = one(tmp_path)
    dat = tmp_path / "root" / "r1.dat"
    data = bytearray(dat.read_bytes())
    data[100] ^= 0x40
    dat.write_bytes(bytes(data))
    with pytest.raises(Refused, match="corrupt: the checksum of channel"):
        load(known, root, source)


def test_broken_numerics_lose_labels_and_say_so_but_not_the_waveform(tmp_path):
    known, root, source = one(tmp_path)
    dat = tmp_path / "root" / "r1n.dat"
    dat.write_bytes(dat.read_bytes()[:4])
    got = load(known, root, source)
    assert "ppg" in got.signals
    assert "hr" not in {label.name for label in got.labels}
    assert len(got.problems) == 1 and "r1n" in got.problems[0]


def test_numerics_label_their_second_and_missing_ones_label_nothing(tmp_path):
    known, root, source = one(tmp_path)
    hr = next(label for label in load(known, root, source).labels if label.name == "hr")
    assert hr.start_s.tolist() == [0, *range(2, 10)]
    assert (hr.end_s - hr.start_s).tolist() == [1] * 9
    assert np.allclose(hr.values, [70, *range(72, 80)], atol=0.01)


def test_fields_are_numbers_or_words_known_words_become_numbers_unknown_ones_a_problem(tmp_path):
    def fields(age):
        known, root, source = one(tmp_path, age=age)
        got = load(known, root, source)
        return {label.name: label.values[0] for label in got.labels}, got.problems

    assert fields("50")[0]["age"] == 50
    assert fields("90+")[0]["age"] == 90
    assert fields("50")[0]["ward"] == "west"
    assert "age" not in fields("NaN")[0] and not fields("NaN")[1]
    assert "age" not in fields("old")[0] and "'old'" in fields("old")[1][0]


def test_a_record_whose_subject_is_not_named_is_refused(tmp_path):
    one(tmp_path)
    (tmp_path / "root" / "about" / "1.txt").write_text("Age: 50\n")
    source = scan(tmp_path)[2][0]
    assert source.broken[0] == "no_subject"
    assert source.seconds == {"ppg": 10, "abp": 10}  # its hours are in the ledger all the same


def test_files_behind_links_count_with_their_own_size(tmp_path):
    one(tmp_path)
    dat = tmp_path / "root" / "r1.dat"
    dat.rename(tmp_path / "store.dat")
    dat.symlink_to(tmp_path / "store.dat")
    assert scan(tmp_path)[2][0].broken is None


def test_a_root_without_files_and_one_without_matching_files_are_named(tmp_path):
    known = read_descriptor(recordings.descriptor(tmp_path))
    with pytest.raises(PlethoraError, match="nowhere"):
        Root(str(tmp_path / "nowhere"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x.csv").write_text("1")
    with pytest.raises(PlethoraError, match="is it the folder of little"):
        reader.scan(Root(str(tmp_path / "other")), known)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("unit = ", "unitt = ", "unit"),
        ('reader = "wfdb"', 'reader = "wfbd"', r"no reader 'wfbd'; there are .*wfdb"),
        ("[signals.abp]", "[signals.abq]", "abq"),
        ("(?P<record>r(?P<n>", "(?P<recor>r(?P<n>", "record"),
        ("(?P<n>", "(?P<n", "regular expression"),
    ],
)
def test_a_mistake_in_a_descriptor_is_one_line(tmp_path, old, new, message):
    with pytest.raises(PlethoraError, match=message.replace("(", r"\(")) as caught:
        read_descriptor(recordings.descriptor(tmp_path, DESCRIPTOR.replace(old, new)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["bidmc", "cinc2015"])
def test_our_descriptors_read_every_real_record_to_the_sample(data, name):
    known = read_descriptor(ROOT / "datasets" / "corpora" / f"{name}.toml")
    root = Root(str(data / name))
    sources = reader.scan(root, known)
    assert len(sources) == len(list((data / name).glob("*.hea"))) / (2 if known.numerics else 1)
    assert not [s for s in sources if s.broken or s.refused]
    for source in sources[:: len(sources) // 4]:
        got = load(known, root, source)
        truth = wfdb.rdrecord(str(data / name / source.stem))
        words = {label.name: label.values[0] for label in got.labels}
        for m, s in got.signals.items():
            x = np.where(s.missing, np.nan, s.x_tc[:, 0] * s.scale + s.offset)
            channel = truth.sig_name.index(words[f"{m}_channel"])
            assert np.allclose(x, truth.p_signal[:, channel], equal_nan=True, rtol=1e-9, atol=1e-9)


def test_bidmc_subjects_are_mimic_ids_and_fewer_than_records(data):
    known = read_descriptor(ROOT / "datasets" / "corpora" / "bidmc.toml")
    sources = reader.scan(Root(str(data / "bidmc")), known)
    assert all(s.subject.startswith("s") and s.subject[1:].isdigit() for s in sources)
    assert len({s.subject for s in sources}) < len(sources)


def test_samples_are_those_of_wfdb_itself_on_real_records(data):
    for folder, stem, channels in (
        ("bidmc", "bidmc03", [1, 0]),
        ("bidmc", "bidmc03n", [0]),
        ("cinc2015", "a123l", [2, 3]),
    ):
        layout = read_layout(f"{stem}.hea", lambda _, at=data / folder: at, _sizes(data / folder, stem))
        found = reader._read(data / folder, layout, layout.pieces[0], channels)
        want = wfdb.rdrecord(
            str(data / folder / stem), channels=channels, physical=False, smooth_frames=False
        )
        for a, b in zip(found, want.e_d_signal, strict=True):
            np.testing.assert_array_equal(a.x, b)


def _sizes(folder, stem):
    return {p.name: p.stat().st_size for p in folder.glob(f"{stem}.*")}
