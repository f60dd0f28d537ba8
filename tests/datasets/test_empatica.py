"""Avro files as Empatica's EmbracePlus writes them, made with fastavro."""

import numpy as np
import pytest

from datasets.readers import empatica as reader
from tests.datasets import recordings
from tests.datasets.edf_files import TEXT

fastavro = pytest.importorskip("fastavro", reason="fastavro is not installed")

START = 1_700_000_000_000_000  # microseconds
DESCRIPTOR = (
    TEXT.partition("[signals.ecg]")[0].replace('"edf"', '"empatica"').replace("[eb]df", "avro")
    + """
[signals.ppg]
channels = ["bvp"]
unit = "nW"
units = { nW = 1 }
source_unit = "nW"
required = true

[signals.acc]
channels = [["accelerometer_x", "accelerometer_y", "accelerometer_z"]]
unit = "g"
units = { g = 1 }
"""
)
USE = recordings.Use(reader, DESCRIPTOR)
scan, load, path = USE.one, USE.sound, recordings.path_of("n1.avro")


def schema(params):
    limits = [{"name": n, "type": "float" if n == "conversionFactor" else "int"} for n in params]
    stream = [{"name": "timestampStart", "type": "long"}, {"name": "samplingFrequency", "type": "float"}]
    axes = [{"name": a, "type": {"type": "array", "items": "int"}} for a in "xyz"]
    imu = {"name": "imuParams", "type": {"type": "record", "name": "Params", "fields": limits}}
    value = {"name": "values", "type": {"type": "array", "items": "float"}}

    def record(name, fields):
        return {"name": name, "type": {"type": "record", "name": name + "_t", "fields": fields}}

    raw = [record("accelerometer", [*stream, imu, *axes]), record("bvp", [*stream, value])]
    version = [{"name": n, "type": "int"} for n in ("major", "minor", "patch")]
    return {
        "type": "record",
        "name": "Session",
        "fields": [record("schemaVersion", version), record("rawData", raw)],
    }


def write(path, version=(6, 4), params=None, bvp_late_s=0.0, codec="deflate"):
    """Returns the floats of the pulse and the counts of the accelerometer (samples, axes)."""
    params = params or {"physicalMin": -16, "physicalMax": 16, "digitalMin": -32768, "digitalMax": 32767}
    rng = np.random.default_rng(3)
    bvp = rng.normal(0, 50, 640).astype(np.float32)
    acc = rng.integers(-4000, 4000, (640, 3))
    start = {"timestampStart": START, "samplingFrequency": 64.0}
    late = start | {"timestampStart": START + round(bvp_late_s * 1e6)}
    axes = {a: acc[:, i].tolist() for i, a in enumerate("xyz")}
    record = {
        "schemaVersion": {"major": version[0], "minor": version[1], "patch": 0},
        "rawData": {
            "accelerometer": start | {"imuParams": params} | axes,
            "bvp": late | {"values": bvp.tolist()},
        },
    }
    with open(path, "wb") as file:
        fastavro.writer(file, fastavro.parse_schema(schema(params)), [record], codec=codec)
    return bvp, acc


@pytest.mark.parametrize(
    ("version", "params", "factor"),
    [((6, 4), None, 32 / 65535), ((6, 5), {"conversionFactor": 0.00048828125}, 0.00048828125)],
)
def test_the_pulse_is_kept_and_counts_become_g_by_the_schemas_rule(tmp_path, path, version, params, factor):
    bvp, acc = write(path, version, params)
    got = load(tmp_path)
    assert np.array_equal(got.signals["ppg"].x_tc[:, 0], bvp) and got.signals["ppg"].rate == 64
    found = got.signals["acc"]
    assert np.array_equal(found.x_tc, acc) and found.scale == pytest.approx(factor)
    assert got.origin == START / 1e6


def test_a_sensor_that_begins_later_is_missing_until_then(tmp_path, path):
    bvp, _ = write(path, bvp_late_s=2.5)
    ppg = load(tmp_path).signals["ppg"]
    assert np.flatnonzero(ppg.missing).tolist() == list(range(160))
    assert np.array_equal(ppg.x_tc[160:, 0], bvp)


def test_counts_without_a_factor_another_avro_and_another_file_are_refused(tmp_path, path):
    write(path, (6, 5))
    assert scan(tmp_path)[2].refused == {"acc": "bad_scale"}
    with open(path, "wb") as file:
        one = {"type": "record", "name": "R", "fields": [{"name": "a", "type": "int"}]}
        fastavro.writer(file, fastavro.parse_schema(one), [{"a": 1}])
    assert "not a session of an Empatica" in scan(tmp_path)[2].broken[1]
    path.write_bytes(path.read_bytes()[:40])
    assert scan(tmp_path)[2].broken[0] == "corrupt"
    path.write_bytes(b"PAR1" + bytes(300))
    assert "Parquet" in scan(tmp_path)[2].broken[1]
