"""One module per source format, each with

scan(root, descriptor) -> list[RecordFile]        the records, from headers only
load(source, folder, descriptor) -> Recording     one record's samples and labels; raises Refused
"""

from types import ModuleType

from datasets.readers import dicom, edf, empatica, ishne, mat, table, vitaldb, wfdb

READERS: dict[str, ModuleType] = {
    "dicom": dicom,
    "edf": edf,
    "empatica": empatica,
    "ishne": ishne,
    "mat": mat,
    "table": table,
    "vitaldb": vitaldb,
    "wfdb": wfdb,
}
