"""One module a source format. Each offers

scan(root, descriptor) -> list[Source]      what there is, from headers alone
load(source, folder, descriptor) -> Recording     one record's samples and labels; raises Refused
"""

from types import ModuleType

from datasets.readers import edf, mat, table, vitaldb, wfdb

READERS: dict[str, ModuleType] = {"edf": edf, "mat": mat, "table": table, "vitaldb": vitaldb, "wfdb": wfdb}
