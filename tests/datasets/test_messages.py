"""What a person reads of refused recordings: what the file has, the key to change, a line a cause."""

import copy
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from cluster.errors import PlethoraError
from cluster.redact import printable
from datasets import inspect
from datasets.__main__ import _report
from datasets.assemble import _nothing, folded
from datasets.descriptor import Signal
from datasets.ingest import read_descriptor
from datasets.readers import mat
from datasets.readers.base import Draft, Promise, Refused, Root
from datasets.write import ShardReport
from tests.datasets import recordings

ECG = Signal(channels=("ECG",), rate=250.0, unit="mV", units={"mV": 1, "V": 1000}, required=True)
EVIL = "\x1b[31mE\x9bK\u202eG\n\u200b" + "x" * 500


def words(found, signal=ECG, has=()):
    draft = Draft(Root("."), "a", "a", {}, lambda names: Path(), ["a"], whole=Fraction(60))
    draft.promise("ecg", signal, found, has)
    return draft.refused.get("ecg"), draft.words.get("ecg"), draft.seconds["ecg"]


def test_a_missing_channel_is_answered_with_the_names_that_the_file_has():
    assert words(None, has=["EKG", "SpO₂"]) == (
        "missing_channel",
        "the file has 'EKG', 'SpO₂', not ECG: put the right name into `channels` in [signals.ecg]",
        60,
    )
    many = words(None, has=[f"c{i}" for i in range(25)])[1]
    assert "'c19' and 5 more" in many and "c20" not in many
    assert words(None)[1].startswith("the file names no channel, not ECG")


@pytest.mark.parametrize(
    ("found", "reason", "said"),
    [
        (Promise(900, Fraction(250), "µV"), "unit_mismatch", "'µV', not mV, V: add 'µV' with"),
        (Promise(900, Fraction(250), ""), "unit_mismatch", "no unit: set `source_unit` to one of mV, V"),
        (Promise(900, Fraction(256), "mV"), "bad_rate", "256 Hz, not 250: change `rate`, or allow"),
        (Promise(900, Fraction(500), "mV"), "bad_rate", "500 Hz, not 250: change `rate` in [signals.ecg]"),
        (Promise(900, Fraction(100001, 400), "mV"), "bad_rate", "250.0025 Hz, not 250"),
        (Promise(900, None, "mV"), "bad_rate", "states no usable rate"),
    ],
)
def test_another_unit_or_rate_is_answered_with_the_files_own_and_the_key(found, reason, said):
    why, text, _ = words(found)
    assert why == reason and said in text and text.endswith("in [signals.ecg]")


def test_words_without_a_key_name_no_table():
    draft = Draft(Root("."), "a", "a", {}, lambda names: Path(), ["a"])
    draft.refuse("ecg", "bad_time", "time runs back")
    assert draft.words == {"ecg": "time runs back"}


def test_a_refusal_that_goes_to_another_process_keeps_its_signal():
    why = Refused("corrupt", "a.dat is odd")
    why.modality = "ppg"
    same = copy.copy(why)  # as a process would send it
    assert (same.reason, same.detail, same.modality) == ("corrupt", "a.dat is odd", "ppg")


def test_forty_records_with_one_cause_are_one_line():
    problems = [{"record": f"r{i}", "detail": f"truncated: r{i}.dat ends early"} for i in range(40)]
    problems += [{"record": "r7", "detail": "label hr: 'x' is not a number"}] * 2
    problems += [{"record": f"q{i}", "detail": "ecg: missing_channel"} for i in range(2)]
    assert folded(problems) == [
        "r0 and 39 more records: truncated: r0.dat ends early",
        "r7: label hr: 'x' is not a number",
        "q0 and 1 more record: ecg: missing_channel",
    ]


def test_where_nothing_is_kept_the_error_says_every_cause():
    problems = [
        {"record": f"r{i}", "detail": f"ecg: bad_rate (the file's rate is {i % 12} Hz)"} for i in range(36)
    ]
    text = _nothing("/out", [ShardReport(0, records_in=36, problems=problems)])
    assert text.startswith("nothing to keep for /out: every record was refused (36 in all): r0 and 2 more")
    assert "is 9 Hz); 2 other causes" in text and "is 10 Hz" not in text


def summary(**more):
    counts = {"subjects": 1, "records": 1, "records_in": 1, "rows": 1, "hours": {"ppg": 1.0}}
    hours = {"hours_in": {"ppg": 1.0}, "hours_refused": {"ppg": 0.0}, "rejects": {}, "bridged_gaps": {}}
    about = {
        "name": EVIL,
        "uri": "/x",
        "licence": EVIL,
        "access": "a",
        "source": "s",
        "hash": "h",
        "key_id": "k",
    }
    about |= {"id_space": "i", "subjects_published": True, "modalities": ["ppg"], "rates": {"ppg": [100]}}
    lists = {"problems": [], "notes": [], "already_there": False}
    return {"counts": counts, "shards": 1, "bytes": 1, "labels": {EVIL: 3}, **hours, **about, **lists, **more}


def test_what_a_file_says_moves_no_cursor_and_letters_stay(capsys):
    line = {"record": EVIL, "detail": EVIL}
    _report(summary(problems=[line], notes=[line]))
    shown = capsys.readouterr().out
    shown += str(PlethoraError(EVIL)) + Refused("corrupt", EVIL).detail + words(None, has=[EVIL])[1]
    shown += words(Promise(1, Fraction(250), EVIL))[1] + inspect.table(summary())
    assert all(c.isprintable() or c == "\n" for c in shown) and "x" * 100 in shown
    assert printable("Ω µ é 中文 ñ ½ °") == "Ω µ é 中文 ñ ½ °"
    assert len(printable("x" * 9000, 50)) == 50


def test_notes_are_shown_after_the_problems(capsys):
    note = {"record": "r1", "detail": "1 packet received twice was used once"}
    _report(summary(problems=[{"record": "r2", "detail": "truncated"}], notes=[note]))
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2:] == ["  r2: truncated", "  r1: 1 packet received twice was used once"]


def test_a_record_that_breaks_before_its_channels_are_looked_at_counts_its_length(tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "root/r1.x").write_bytes(b"x")
    known = read_descriptor(recordings.descriptor(tmp_path, DESCRIPTOR))

    def look(draft, descriptor):
        draft.whole = Fraction(1800)
        raise Refused("corrupt", f"{EVIL} is odd")

    from datasets.readers import base

    (source,) = base.scan(Root(str(tmp_path / "root")), known, look)
    assert source.seconds == {"ecg": 1800} and source.broken[0] == "corrupt"
    assert source.broken[1].isprintable()


DESCRIPTOR = """
name = "odd"
source = "made in a test"
licence = "none"
terms = "none"
citation = "none"
access = "open"
reader = "edf"
records = '(?P<record>[^/]+)\\.(x|edf|mat)'
id_space = "odd"
subjects_published = true

[signals.ecg]
channels = ["ECG"]
rate = 100
unit = "mV"
source_unit = "mV"
units = { mV = 1 }
required = true

[signals.ppg]
channels = ["PPG"]
rate = 100
unit = "au"
source_unit = "au"
units = { au = 1 }
"""


def test_one_broken_element_of_a_mat_file_leaves_the_others_and_counts_its_hours(tmp_path):
    from scipy.io import savemat

    (tmp_path / "root").mkdir()
    sound = {"ECG": np.arange(6000.0), "PPG": np.arange(6000.0)}
    broken = {"ECG": np.zeros((3, 5)), "PPG": np.arange(3000.0)}
    both = np.zeros((1, 3), [("ECG", object), ("PPG", object)])
    for i, one in enumerate((sound, broken, sound)):
        both[0, i] = (one["ECG"], one["PPG"])
    savemat(tmp_path / "root/m.mat", {"recs": both})
    text = DESCRIPTOR.replace('"edf"\n', '"mat"\nelements = "recs"\n', 1)
    found = recordings.Use(mat, text).all(tmp_path)[2]
    assert [s.seconds for s in found] == [
        {"ecg": 60, "ppg": 60},
        {"ppg": 30, "ecg": Fraction(5, 100)},
        {"ecg": 60, "ppg": 60},
    ]
    assert [set(s.refused) for s in found] == [set(), {"ecg", "ppg"}, set()]
