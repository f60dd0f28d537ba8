"""Every known set: its descriptor is complete, and files laid out as published give what is in them."""

import pickle
from pathlib import Path

import h5py
import numpy as np
import openpyxl
import pytest
import wfdb

from datasets import ingest, jobs
from datasets.ingest import read_descriptor
from datasets.readers import READERS
from datasets.schema import open_corpus, waveform

CORPORA = Path(__file__).resolve().parents[2] / "datasets" / "corpora"
TRIED = {"bidmc", "cinc2015", "empatica_e4", "ieee_spc_2015", "ppg_bp"}


@pytest.mark.parametrize("path", sorted(CORPORA.glob("*.toml")), ids=lambda path: path.stem)
def test_every_descriptor_says_what_one_may_do_and_who_reads_it(path):
    known = read_descriptor(path)
    assert known.name == path.stem and known.reader in READERS
    for said in (known.source, known.licence, known.terms, known.citation, known.access, known.id_space):
        assert said.strip()
    for signal in known.signals.values():
        assert signal.units and signal.choices
    assert path.stem in TRIED or "# untried here: no copy of" in path.read_text()


def test_the_table_of_sets_in_the_documents_names_them_all():
    text = (CORPORA.parents[1] / "docs" / "data.md").read_text()
    assert [p.stem for p in sorted(CORPORA.glob("*.toml")) if f"| `{p.stem}` |" not in text] == []


@pytest.fixture
def ingested(tmp_path, monkeypatch):
    """Ingest what a test wrote below `tmp_path / "root"` with a known descriptor: (summary, rows, labels)."""
    monkeypatch.setenv("PLETHORA_SUBJECT_KEY", "a test's key")
    run = jobs.run
    monkeypatch.setattr(jobs, "run", lambda work, tasks, label, n: run(work, tasks, label, n, True))

    def read(name):
        made = ingest.ingest(CORPORA / f"{name}.toml", str(tmp_path / "root"), str(tmp_path / "out"))
        corpus = open_corpus(str(tmp_path / "out"))
        rows = {row["record"]: row for row in corpus.read_row_group(0, 0).to_pylist()}
        labels = {}
        for label in corpus.labels().to_pylist():
            value = label["text"] if label["value"] is None else label["value"]
            labels.setdefault((label["record"], label["name"]), []).append(value)
        return made, rows, labels

    (tmp_path / "root").mkdir()
    read.root = tmp_path / "root"
    return read


def wave(row, m):
    return waveform(row[m], row[f"{m}_scale"], row[f"{m}_offset"], row[f"{m}_channels"])


def write_wfdb(path, names, rate, units, x):
    path.parent.mkdir(parents=True, exist_ok=True)
    wfdb.wrsamp(
        path.name,
        fs=rate,
        units=units,
        sig_name=names,
        p_signal=x,
        fmt=["16"] * len(names),
        write_dir=str(path.parent),
    )


def noise(*shape):
    return np.random.default_rng(1).normal(0, 1, shape)


def test_ppg_bp_reads_counts_and_the_workbook_below_its_title(ingested):
    folder = ingested.root / "0_subject"
    folder.mkdir()
    x = np.random.default_rng(2).integers(1900, 2100, 2100)
    for record in ("2_1", "2_2", "3_1"):
        (folder / f"{record}.txt").write_text("\t".join(f"{v}.0" for v in x) + "\t")
    book = openpyxl.Workbook()
    known = read_descriptor(CORPORA / "ppg_bp.toml").tables[0]
    names = ["Num.", "subject_ID", *known.columns]
    book.active.append(["Cardiovascular Dataset Information File"])
    book.active.append(names)
    cells = {"Systolic Blood Pressure(mmHg)": 161, "Sex(M/F)": "Female", "Diabetes": None, "Age(year)": 45}
    book.active.append([1, 2, *(cells.get(name, 7) for name in known.columns)])
    book.save(ingested.root / "PPG-BP dataset.xlsx")
    made, rows, labels = ingested("ppg_bp")
    assert made["counts"]["subjects"] == 2 and made["counts"]["records"] == 3
    assert np.array_equal(wave(rows["2_1"], "ppg")[0], x) and rows["2_1"]["ppg_rate"] == 1000
    assert labels["2_2", "sbp"] == [161] and labels["2_2", "sex"] == ["F"]
    assert labels["2_1", "diabetes"] == ["none"] and labels["2_1", "age"] == [45]
    assert ("3_1", "sbp") not in labels
    assert [p["record"] for p in made["problems"]] == ["3_1"] and "nothing for 3" in made["problems"][0][
        "detail"
    ]


CHEST = {"ECG": (700, 1), "Resp": (700, 1)}
WRIST = {"BVP": (64, 1), "ACC": (32, 3)}


def pickled(path, seconds, **more):
    """A pickle laid out as the authors of PPG-DaLiA and WESAD do."""
    rng = np.random.default_rng(3)

    def drawn(kinds):
        return {m: rng.integers(-64, 64, (seconds * rate, n)).astype(float) for m, (rate, n) in kinds.items()}

    held = {"subject": path.stem, "signal": {"chest": drawn(CHEST), "wrist": drawn(WRIST)}, **more}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(held, protocol=2))
    return held["signal"]


def test_ppg_dalia_is_read_from_its_pickles_with_heart_rate_and_activity(ingested):
    activity = np.repeat([0, 1, 1, 4], 8)[:, None]  # of 2 s each at 4 Hz
    said = {"label": np.array([61.5, 70.25]), "activity": activity, "rpeaks": np.arange(9)}
    signal = pickled(ingested.root / "S1" / "S1.pkl", 12, **said, questionnaire={"AGE": 34})
    (ingested.root / "S1" / "S1_quest.csv").write_text("# SUBJECT_ID, S1\n# AGE, 34\n# GENDER, m\n")
    _, rows, labels = ingested("ppg_dalia")
    assert np.allclose(wave(rows["S1"], "ppg")[0], signal["wrist"]["BVP"][:, 0])
    assert np.allclose(wave(rows["S1"], "acc"), signal["wrist"]["ACC"].T)  # stored in g
    assert np.allclose(wave(rows["S1"], "ecg")[0], signal["chest"]["ECG"][:, 0])
    assert labels["S1", "hr"] == [61.5, 70.25] and labels["S1", "activity"] == ["sitting", "cycling"]
    assert labels["S1", "age"] == [34] and labels["S1", "sex"] == ["m"]
    times = open_corpus(str(ingested.root.parent / "out")).labels(["hr", "activity"]).to_pylist()
    assert [(t["name"], t["start_s"], t["end_s"]) for t in times] == [
        ("activity", 2.0, 6.0),
        ("activity", 6.0, 8.0),
        ("hr", 0.0, 8.0),
        ("hr", 2.0, 10.0),
    ]


def test_wesad_is_read_from_its_pickles_with_the_protocols_conditions(ingested):
    label = np.repeat([0, 1, 2, 6, 3], 1400)
    signal = pickled(ingested.root / "WESAD" / "S2" / "S2.pkl", 10, label=label)
    (ingested.root / "WESAD" / "S2" / "S2_readme.txt").write_text("### Personal information\nAge: 27\n")
    _, rows, labels = ingested("wesad")
    assert rows["S2"]["ppg_rate"] == 64 and rows["S2"]["ecg_rate"] == 700
    assert np.allclose(wave(rows["S2"], "acc"), signal["wrist"]["ACC"].T / 64)  # stored as the device does
    assert labels["S2", "condition"] == ["baseline", "stress", "amusement"] and labels["S2", "age"] == [27]
    times = open_corpus(str(ingested.root.parent / "out")).labels(["condition"]).to_pylist()
    assert np.allclose([(t["start_s"], t["end_s"]) for t in times], [(2, 4), (4, 6), (8, 10)], atol=1e-6)


@pytest.mark.parametrize("device", ["S1_E4", "S1_E4_Data"])
def test_the_wrists_raw_files_beside_the_pickles_are_an_e4_export(ingested, device):
    folder = ingested.root / "S1" / device
    folder.mkdir(parents=True)
    bvp, acc = np.round(noise(640), 2), np.random.default_rng(3).integers(-64, 64, (320, 3))
    (folder / "BVP.csv").write_text("1495437325.0\n64.0\n" + "".join(f"{v}\n" for v in bvp))
    rows = "".join(f"{a},{b},{c}\n" for a, b, c in acc)
    (folder / "ACC.csv").write_text("1495437325.0, 1495437325.0, 1495437325.0\n32.0, 32.0, 32.0\n" + rows)
    _, rows, _ = ingested("empatica_e4")
    assert np.allclose(wave(rows[device], "ppg")[0], bvp, atol=1e-3)
    assert np.allclose(wave(rows[device], "acc"), acc.T / 64)


def test_aurora_bp_measurements_find_their_pressures(ingested):
    folder = ingested.root / "measurements_auscultatory" / "a000"
    folder.mkdir(parents=True)
    x = noise(5000, 6) * [1, 100, 1, 1, 1, 1] + [6, -581000, 2900, 0, 0, 1]
    lines = ["t\tekg\toptical\tpressure\taccel_x\taccel_y\taccel_z"]
    lines += ["\t".join(f"{v:.7g}" for v in (i / 500 or 1.1369e-13, *row)) for i, row in enumerate(x)]
    name = "a000.initial.Calibration_start_1"
    (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    (ingested.root / "measurements_auscultatory.tsv").write_text(
        "pid\tmeasurement\tsbp\tdbp\toptical_quality\twaveform_file_path\n"
        f"a000\tCalibration start 1\t110.0\t0.0\t-1.0\tmeasurements_auscultatory/a000/{name}.tsv\n"
    )
    (ingested.root / "participants.tsv").write_text(
        "pid\tage\theight\tweight\tgender\tself_report_htn\na000\t56.0\t63.0\t108.0\tF\tnorm\n"
    )
    made, rows, labels = ingested("aurora_bp")
    assert made["problems"] == [] and made["counts"]["hours"]["ppg"] == pytest.approx(10 / 3600)
    assert np.allclose(wave(rows[name], "ppg")[0], -x[:, 1], atol=0.3)
    assert labels[name, "sbp"] == [110] and (name, "dbp") not in labels
    assert labels[name, "age"] == [56] and labels[name, "sex"] == ["F"]


def test_code15_takes_the_padding_out_and_refuses_the_exam_that_is_none(ingested):
    x = np.zeros((3, 4096, 12), np.float32)
    x[0, 48:4048], x[1, 648:3448] = noise(4000, 12), noise(2800, 12)
    with h5py.File(ingested.root / "exams_part0.hdf5", "w") as file:
        file["tracings"], file["exam_id"] = x, np.array([1169160, 2873686, 0])
    columns = "exam_id,age,is_male,1dAVb,RBBB,LBBB,SB,ST,AF,patient_id,normal_ecg"
    line = "{},38,True,False,False,False,False,False,True,{},False\n"
    (ingested.root / "exams.csv").write_text(
        f"{columns}\n" + line.format(1169160, 77) + line.format(2873686, 78)
    )
    made, rows, labels = ingested("code15")
    assert made["counts"]["hours"]["ecg"] == pytest.approx((2800 + 4096) / 400 / 3600)
    assert made["rejects"]["ecg"]["no_subject"] == pytest.approx(4096 / 400 / 3600)
    assert made["rejects"]["ecg"]["flat"] == pytest.approx(1296 / 400 / 3600)
    assert rows["exams_part0_2873686"]["duration_s"] == 7
    assert np.allclose(wave(rows["exams_part0_1169160"], "ecg")[0], x[0, :, 1], atol=1e-3)
    assert labels["exams_part0_1169160", "af"] == [1] and labels["exams_part0_1169160", "sex"] == ["M"]


def test_ptb_xl_has_lead_ii_first_and_its_patients_from_the_sheet(ingested):
    leads = ["I", "II", "III", "AVR", "AVL", "AVF", "V1", "V2", "V3", "V4", "V5", "V6"]
    x = noise(5000, 12)
    for n in (1, 2):
        write_wfdb(ingested.root / f"records500/00000/0000{n}_hr", leads, 500, ["mV"] * 12, x)
    (ingested.root / "ptbxl_database.csv").write_text(
        "ecg_id,patient_id,age,sex,height,weight,report,strat_fold,scp_codes\n"
        "1,15709.0,300.0,1,,63.0,sinusrhythmus,3,\"{'NORM': 100.0, 'SR': 0.0}\"\n"
        "2,15709.0,56.0,0,,,x,3,\"{'IMI': 15.0, 'ASMI': 0.0, 'LAFB': 100.0, 'AFIB': 0.0}\"\n"
    )
    made, rows, labels = ingested("ptb_xl")
    assert made["counts"]["subjects"] == 1 and made["counts"]["records"] == 2
    assert np.allclose(wave(rows["00001_hr"], "ecg")[0], x[:, 1], atol=1e-3)
    assert labels["00001_hr", "age"] == [90] and labels["00001_hr", "sex"] == ["F"]
    assert labels["00001_hr", "scp_codes"] == ["NORM", "SR"]
    assert labels["00001_hr", "superclass"] == ["NORM"] and labels["00001_hr", "strat_fold"] == [3]
    assert labels["00002_hr", "superclass"] == ["MI", "CD"]


def test_but_ppg_and_mc_med_records_lie_in_folders_and_find_their_subjects(ingested):
    write_wfdb(
        ingested.root / "100001/100001_PPG", ["PPG_R", "PPG_G", "PPG_B"], 30, ["NU"] * 3, noise(300, 3)
    )
    (ingested.root / "quality-hr-ann.csv").write_text("\ufeffID,Quality,HR\n100001,1,78\n")
    made, rows, labels = ingested("but_ppg")
    assert rows["100001_PPG"]["ppg_channels"] == 3 and made["counts"]["subjects"] == 1
    assert labels["100001_PPG", "hr"] == [78] and labels["100001_PPG", "quality"] == [1]


def test_mc_med_visits_are_of_patients(ingested):
    for csn in ("99123", "99124"):
        write_wfdb(
            ingested.root / f"data/waveforms/{csn[-3:]}/{csn}/Pleth/{csn}_1",
            ["Pleth"],
            125,
            ["NU"],
            noise(1250, 1),
        )
    (ingested.root / "data" / "visits.csv").write_text("MRN,CSN,Age,Gender\n5,99123,40,F\n5,99124,41,F\n")
    made, _, labels = ingested("mc_med")
    assert made["counts"]["subjects"] == 1 and made["counts"]["records"] == 2
    assert labels["99124_1", "age"] == [41]


def test_mimic_iv_patients_are_in_the_path(ingested):
    for stay in ("81739927", "81739928"):
        folder = ingested.root / f"waves/p100/p10014354/{stay}"
        write_wfdb(folder / stay, ["Pleth"], 124.945, ["NU"], noise(1250, 1))
        write_wfdb(folder / f"{stay}_0000", ["Pleth"], 124.945, ["NU"], noise(1250, 1))
    made, _, _ = ingested("mimic4_waveform")
    assert made["counts"]["records_in"] == 2 and made["counts"]["subjects"] == 1


def test_bidmc_breaths_of_two_people_become_events_and_one_rate(ingested, data):
    folder = ingested.root / "bidmc_csv"
    folder.mkdir()
    for name in ("bidmc12.hea", "bidmc12.dat", "bidmc12n.hea", "bidmc12n.dat"):
        (ingested.root / name).symlink_to(data / "bidmc" / name)
    for name in ("bidmc_12_Fix.txt", "bidmc_12_Breaths.csv"):
        (folder / name).symlink_to(data / "bidmc" / "bidmc_csv" / name)
    made, _, labels = ingested("bidmc")
    raw = np.genfromtxt(folder / "bidmc_12_Breaths.csv", delimiter=",", skip_header=1)
    counts = {w: labels["bidmc12", "breath"].count(w) for w in ("ann1", "ann2")}
    assert counts == {w: int(np.isfinite(raw[:, i]).sum()) for i, w in enumerate(("ann1", "ann2"))}
    rates = labels["bidmc12", "rr_derived"]
    expected = 60 / (np.nanmedian(np.diff(raw[:, 0])) / 125)
    assert len(rates) > 12 and np.median(rates) == pytest.approx(expected, rel=0.05)
    found = {c["derived"]: c for c in made["agreement"]}
    assert found["hr_derived"]["n"] > 40 and found["hr_derived"]["mae"] < 2
