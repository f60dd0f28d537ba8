"""python -m tests.cases [--cases DIR] [--only NAME]: recordings as people have them, against right values.

Runs each case of `../shared/cases` (recordings that its own script writes, with its own descriptor), compares
what comes out with the right value, prints a table, and exits with 1 where one is missed. Two cases need the
bundle that `make demo` publishes, or another one in BUNDLE.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from cluster.session import session
from tests.cases_kit import ROOT, Case, Check, Checks, near, published_bundle, says


def bp_readings_averaged(case: Case) -> Checks:
    bundle = published_bundle()
    case.ingest(case.make())
    corpus = next(case.work.glob("*/corpus"))
    out = case.work / "eval"
    case.command(
        "finetune",
        "evaluate",
        "--bundle",
        bundle,
        "--corpus",
        str(corpus),
        "--task",
        "sbp",
        "--no-publish",
        "--no-few-shot",
        "--out",
        str(out),
    )
    judged = pq.read_table(out / "predictions.parquet")
    targets = judged["target"].to_numpy()
    yield near("readings judged", judged.num_rows, 80, 0)
    yield near("mean distance of a reading from 136 mmHg", float(np.abs(targets - 136).mean()), 20, 1e-6)
    report = (out / "report.md").read_text()
    claim = "no subject has two separate reference readings"
    yield Check(f"the report says {claim!r}", "no", "yes" if claim in report else "no", claim not in report)


def clock_drift(case: Case) -> Checks:
    corpus = case.ingest(case.make())
    for m, rate, off in (("ppg", 64, 11.25), ("acc", 32, 9.0)):
        yield near(f"the tap in {m}", corpus.peak("s1", m), 14_370, 1 / rate, "s")
        yield near(f"the largest correction of {m}, as stated", corpus.moved.get(m, 0), off, 0.02, "s")


def layouts_not_taken(case: Case) -> Checks:
    root = case.make()
    for file in "abcd":
        corpus = case.ingest(root, f"{file}.toml")
        records = {w.record for w in corpus.waves}
        for path in sorted(root.glob(f"{file}_*")):
            stem = path.name.split(".")[0]
            mine = [r for r in records if r.startswith(stem)]
            line = corpus.said(stem)
            plain = line.isprintable() and "CSV" not in line
            right = bool(mine) or bool(line and plain and "corrupt" not in line)
            seconds = sum(corpus.seconds(r) for r in mine)
            got = f"{len(mine)} records, {seconds:g} s" if mine else line[:160] or "nothing"
            yield Check(path.name, "read, or one line on what to do", got, right)


def mat_says_its_own_rate(case: Case) -> Checks:
    root = case.make()
    plain = case.ingest(root)
    yield near("seconds of the file at 125 Hz", plain.seconds("r125"), 60, 0.01)
    line = plain.said("r250")
    yield near("seconds of the file at 250 Hz, where the descriptor says 125", plain.seconds("r250"), 0, 0)
    yield says("why it is refused", line, "bad_rate", "250")
    named = case.ingest(root, change=lambda text: text.replace("rate = 125", 'rate = "Fs"'))
    rates = {w.record: w.rate for w in named.waves}
    yield Check(
        "rates by the files' own variable", "125 and 250", f"{rates}", rates == {"r125": 125, "r250": 250}
    )


def messages_without_the_fact(case: Case) -> Checks:
    corpus = case.ingest(case.make())
    line = corpus.error or " ".join(corpus.problems)
    yield says("channels that the file has", corpus.said("name") or line, "EKG")
    yield says("its unit", corpus.said("unit") or line, "µV")
    yield says("its rate", corpus.said("rate") or line, "256")


def missing_marker_kept(case: Case) -> Checks:
    root = case.make()
    for what, change in (
        ("by the file's own attribute", str),
        ("by the key", lambda text: text.replace("rate = 100", "rate = 100\nmissing = [-32768]")),
    ):
        corpus = case.ingest(root, change=change)
        nan = sum(seconds for *_, seconds, reason in corpus.rejects if reason == "nan")
        yield near(f"seconds missing, {what}", nan, 4, 1e-6)
        yield near(f"least sample, {what}", min(w.x.min() for w in corpus.waves), -1000, 1e-6)


def odd_rate_windows(case: Case) -> Checks:
    bundle = published_bundle()
    (case.work / "in").mkdir()
    subprocess.run([sys.executable, str(case.folder / "make.py"), str(case.work)], check=True)
    case.ingest(case.work / "in")
    corpus = next(case.work.glob("*/corpus"))
    for into, source, more in (
        ("corpus", str(corpus), ["--window-s", "30", "--hop-s", "30"]),
        ("arrays", str(case.work / "rows.npz"), []),
    ):
        out = str(case.work / f"{into}.parquet")
        case.command("finetune", "embed", "--bundle", bundle, "--input", source, "--out", out, *more)
    text = case.script("check.py", str(case.work), bundle)
    far = re.search(r"largest difference ([\d.e+-]+)", text)
    yield near("corpus against arrays", float(far.group(1)) if far else np.nan, 0, 1e-3)
    samples = re.search(r"raw ones: (\d+)", text)
    yield near("samples out of the card's code", float(samples.group(1)) if samples else np.nan, 1500, 0)


def one_outlier_refuses_all(case: Case) -> Checks:
    corpus = case.ingest(case.make())
    for record in ("clean", "one_spike", "one_sentinel", "off_skin_half_a_second"):
        yield near(f"seconds kept of {record}", corpus.seconds(record), 600, 1)


def quantised_by_the_worst_hour(case: Case) -> Checks:
    root = case.make()
    corpus = case.ingest(root)
    for w in corpus.waves:
        source = np.loadtxt(root / f"{w.record}.csv", skiprows=1)
        source = source[round(w.start_s * w.rate) :][: len(w.x)]
        off = float(np.abs(source - w.x[:, 0]).max() / np.ptp(source))
        yield near(f"{w.record} from {w.start_s:g} s: error, share of the row's range", off, 0, 1e-4)


def rate_of_each_device(case: Case) -> Checks:
    root = case.make()
    for what, change in (
        ("no rate", lambda text: text.replace("rate = 55\n", "")),
        ("rate_tolerance = 0.01", lambda text: text.replace("rate = 55", "rate = 55\nrate_tolerance = 0.01")),
    ):
        corpus = case.ingest(root, change=change)
        for record, rate in (("dev1", 54.77), ("dev2", 54.96)):
            own = [w.rate for w in corpus.waves if w.record == record]
            yield near(f"{record}, {what}: rate", own[0] if own else np.nan, rate, 1e-3, "Hz")
            yield near(f"{record}, {what}: seconds", corpus.seconds(record), 370, 1)


def rates_without_a_common_grid(case: Case) -> Checks:
    corpus = case.ingest(case.make())
    yield near("seconds of PPG at 64 Hz", corpus.seconds("night"), 60, 1)
    yield near("seconds of effort at 12.5 Hz", corpus.seconds("night", "resp"), 60, 1)


def time_column_origin(case: Case) -> Checks:
    corpus = case.ingest(case.make())
    for m in ("ppg", "acc"):
        yield near(f"the tap in {m}", corpus.peak("s1", m), 10, 0.011, "s")
    hr = [(a, b, v) for _, name, a, b, v in corpus.labels if name == "hr"]
    yield Check("labels of heart rate", "72 in 10..20 s", f"{hr}", hr == [(10, 20, 72), (20, 30, 73)])


def wfdb_skew(case: Case) -> Checks:
    root = case.make()
    corpus = case.ingest(root)
    x = np.fromfile(root / "skewed.dat", "<i2").reshape(-1, 2)[:, 1]
    resp = [w for w in corpus.waves if (w.record, w.modality) == ("skewed", "resp")]
    got = np.concatenate([w.x[:, 0] for w in resp]) if resp else np.zeros(0)
    right = len(got) >= len(x) - 4 and np.allclose(got[: len(x) - 4] * 1000, x[4:], atol=1e-6)
    yield Check("RESP of `skewed` lies four samples earlier", "yes", "yes" if right else "no", bool(right))
    yield near("seconds of its ECG", corpus.seconds("skewed", "ecg"), 40, 1e-6)
    yield near("seconds of `plain`'s ECG", corpus.seconds("plain", "ecg"), 40, 1e-6)


def decimal_comma_without_header(case: Case) -> Checks:
    text = case.script("1_decimal_comma_without_header.py")
    spread = re.search(r"spread (\S+) -> (\S+)", text)
    right = bool(spread) and spread.group(1) == spread.group(2)
    yield Check("a spread as written, or a refusal", "one", text[:120].strip(), right or "decimal" in text)


def wfdb_unit_beyond_ascii(case: Case) -> Checks:
    text = case.script("2_wfdb_unit_beyond_ascii.py")
    largest = {m[0]: float(m[1]) for m in re.findall(r"(\w+) largest value in the corpus ([\d.]+)", text)}
    yield near("largest value of `micro`", largest.get("micro", np.nan), 0.9, 0.05, "mV")
    yield Check(
        "ohms are refused by name",
        "Ω",
        "taken" if "ohm" in largest else text[:90],
        "ohm" not in largest and "Ω" in text,
    )


def vitaldb_clock(case: Case) -> Checks:
    text = case.script("3_vitaldb_clock.py")
    late = {m[0]: float(m[1]) for m in re.findall(r"(\w+) samples .* lies (\S+) s late", text)}
    yield near(
        "the track after a packet that repeats 10 samples is late by", late.get("again", np.nan), 0, 1e-9, "s"
    )
    kept = re.search(r"hours kept \{[^}]*'ppg': ([\d.]+)", text)
    hours = (4 * 20 + 7200) / 3600
    yield near("hours of PPG kept", float(kept.group(1)) if kept else np.nan, hours, 2 / 3600)


def csv_marks_of_missing(case: Case) -> Checks:
    text = case.script("8_csv_marks_of_missing.py")
    kept = re.search(r"hours kept \{'ppg': ([\d.]+)", text)
    yield near(
        "hours kept of four records of 8.4 s each",
        float(kept.group(1)) if kept else np.nan,
        4 * 8.4 / 3600,
        1e-4,
    )


def zero3_bf16_selected_weights(case: Case) -> Checks:
    text = case.script("zero3_bf16_selected_weights.py")
    yield says("weights kept as the best", text.strip(), "0.0 ", "bfloat16: False")


def codebook_ema_a_micro_batch(case: Case) -> Checks:
    text = case.script("codebook_ema_a_micro_batch.py")
    first = re.findall(
        r"dead_share ([\d.]+) micro-batches a step (\d).*step 1: (\d+) \| used on .*?: (\d+)", text
    )
    alike: dict[str, list[tuple[int, int]]] = {}
    for dead, _, distinct, used in first:
        alike.setdefault(dead, []).append((int(distinct), int(used)))
    for dead, (one, eight) in alike.items():
        close = one[0] == eight[0] and abs(one[1] - eight[1]) <= max(4, one[1] // 5)
        yield Check(f"codes with 1 and 8 micro-batches, dead_share {dead}", "alike", f"{one} {eight}", close)


def submit_of_an_ignored_run_file(case: Case) -> Checks:
    mine = ROOT / "out" / "runs" / "mine.toml"
    mine.parent.mkdir(parents=True, exist_ok=True)
    mine.write_text('recipe = "pretrain.recipes.sigma:Tokenizer"\n')
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "cluster",
            "submit",
            "--address",
            "http://127.0.0.1:9",
            "--",
            "python",
            "-m",
            "pretrain",
            "out/runs/mine.toml",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    line = (done.stdout + done.stderr).strip()
    mine.unlink()
    yield says("submit of out/runs/mine.toml", line, "out/runs/mine.toml")
    yield Check("its exit", "not 0", f"{done.returncode}", done.returncode != 0)


def vit_names(case: Case) -> Checks:
    text = case.script("vit_names.py")
    for line in text.strip().splitlines():
        yield Check(
            "a name of timm",
            "made, or one line",
            line[:150],
            "TRACEBACK" not in line and not line[:1].isdigit(),
        )


CASES: dict[str, Callable[[Case], Checks]] = {
    name.__name__: name
    for name in (
        bp_readings_averaged,
        clock_drift,
        layouts_not_taken,
        mat_says_its_own_rate,
        messages_without_the_fact,
        missing_marker_kept,
        odd_rate_windows,
        one_outlier_refuses_all,
        quantised_by_the_worst_hour,
        rate_of_each_device,
        rates_without_a_common_grid,
        time_column_origin,
        wfdb_skew,
    )
}
FORMATS = (decimal_comma_without_header, wfdb_unit_beyond_ascii, vitaldb_clock, csv_marks_of_missing)
STACK = (zero3_bf16_selected_weights, codebook_ema_a_micro_batch, submit_of_an_ignored_run_file, vit_names)
CASES |= {f"formats/{each.__name__}": each for each in FORMATS} | {
    f"stack/{each.__name__}": each for each in STACK
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.cases", description=__doc__)
    parser.add_argument("--cases", default=str(ROOT.parent / "shared" / "cases"), help="the folder of cases")
    parser.add_argument("--only", help="run those whose name holds this")
    options = parser.parse_args()
    os.environ.setdefault("PLETHORA_SUBJECT_KEY", "0" * 32)
    if not Path(options.cases).is_dir():
        parser.error(f"no cases at {options.cases}: name their folder with --cases")
    chosen = {name: run for name, run in CASES.items() if (options.only or "") in name}
    if not chosen:
        parser.error(f"no case is called like {options.only!r}; there are {', '.join(CASES)}")
    folders = {name: Path(options.cases) / name.split("/")[0] for name in chosen}
    if not any(folder.is_dir() for folder in folders.values()):
        parser.error(f"none of these cases lies in {options.cases}: name their folder with --cases")
    missed = 0
    with session(workers=1, actors=2):
        for name, run in chosen.items():
            with tempfile.TemporaryDirectory() as work:
                try:
                    checks = list(run(Case(folders[name], Path(work))))
                except Exception as error:  # a case that cannot be run is missed; the others go on
                    detail = getattr(error, "stderr", None) or str(error)
                    checks = [Check("run", "to its end", detail.strip()[-160:], False)]
            for check in checks:
                missed += not check.good
                mark = "ok    " if check.good else "MISSED"
                print(f"{mark} {name:36} {check.what}: {check.got}   (right: {check.right})", flush=True)
    print(f"\n{missed} missed" if missed else "\nall right")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
