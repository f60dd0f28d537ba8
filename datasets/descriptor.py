"""The description of a set of recordings: the TOML files in `datasets/corpora/`, strictly checked.

A file name may use the named groups of `records`: with `records = '(?P<record>bidmc(?P<n>\\d+))\\.hea'`,
`"bidmc_csv/bidmc_{n}_Fix.txt"` is the record's own text file.
"""

import re
import unicodedata
from typing import Literal

import pydantic

from cluster.config import Config
from cluster.terms import Audience
from datasets.schema import DERIVED, MODALITIES
from datasets.validity import Limits


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as wrong:
        raise ValueError(f"not a regular expression: {wrong}") from wrong
    return pattern


def _plain(unit: str) -> str:
    return unicodedata.normalize("NFKC", unit).replace("\u03bc", "u")


class Signal(Config):
    """How a modality is read from a source record."""

    channels: tuple[
        str | tuple[str, ...], ...
    ]  # the first choice that a record has is taken; a list: all of them,
    # together, as this modality's channels (an accelerometer's axes)
    # Hz that the source promises; a different rate is refused. A name: the variable, attribute or column of
    # the record's main file that states it. None: the rate that the file states or shows
    rate: float | str | None = None
    # share by which a record's rate may differ from `rate`; the record keeps its rate. None: not at all, or
    # 0.1 % if a column of times shows it
    rate_tolerance: float | None = pydantic.Field(default=None, ge=0, le=0.1)
    unit: str  # unit in the corpus
    units: dict[str, float]  # unit in the source -> factor to `unit`; a unit not listed is refused
    source_unit: str | None = None  # the source's unit, for formats that state none: one of `units`
    required: bool = False  # a record without it counts its hours as refused (missing_channel)
    missing: tuple[float | str, ...] = ()  # numbers (as stored) and words that mark missing values

    @pydantic.model_validator(mode="after")
    def _known_unit(self) -> "Signal":
        if self.source_unit is not None and self.source_unit not in self.units:
            raise ValueError(f"`source_unit` {self.source_unit!r} is not among the keys of `units`")
        return self

    @property
    def hz(self) -> float | None:
        """`rate` if it is a number."""
        return self.rate if isinstance(self.rate, float) else None

    def listed(self, unit: str) -> str:
        """The key of `units` that means `unit`, regardless of its encoding (u, µ or μ; Ω or the ohm sign);
        `unit` itself if there is none."""
        if unit in self.units:
            return unit
        return next((key for key in self.units if _plain(key) == _plain(unit)), unit)

    @property
    def choices(self) -> tuple[tuple[str, ...], ...]:
        """`channels`, each choice as a tuple of channel names."""
        return tuple((c,) if isinstance(c, str) else c for c in self.channels)


class Lookup(Config):
    """The cell of `column` in the row of a sheet (see `LabelTable`) whose `key` column equals `match`."""

    file: str
    key: str
    match: str = "{record}"
    column: str
    header: int = pydantic.Field(default=1, ge=1)
    delimiter: str | None = None


class SubjectRule(Config):
    """`pattern`'s group 1, searched in the text file `file`, or in the record's name if there is none; or the
    record's entry in the sheet `table`; or the group `group` of `records`."""

    file: str | None = None
    pattern: str = "^(.+)$"
    table: Lookup | None = None
    group: str | None = None
    _pattern = pydantic.field_validator("pattern")(_compiles)


class FieldRule(Config):
    """A label of the whole record: `pattern`'s group 1, in a text file or in the header's comment lines."""

    name: str
    pattern: str = r"^\s*(.*\S)"
    file: str | None = None  # None: the header's comments, one per line
    variable: str | None = None  # instead: a scalar or string of the record's main file (.mat)
    text: bool = False  # keep the text; else a number
    split: str | None = None  # separator of several words, each of which is a label
    values: dict[str, float] = {}  # words that mean numbers
    missing: tuple[str, ...] = ()  # words that mean no value
    unit: str | None = None
    _pattern = pydantic.field_validator("pattern")(_compiles)


class Named(Config):
    name: str
    unit: str


class Numerics(Config):
    """Slow numbers: sample i labels [i/rate, (i+1)/rate); NaN gives no label. A number with its own time
    (.vital) labels the time until the next one, at most `hold_s`."""

    record: str | None = None  # a companion record; None: tracks of the record's main file
    channels: dict[str, Named]
    hold_s: float = 2.0
    offset_s: float = 0.0  # added to their times


class Array(Config):
    """An array whose channels are unnamed (.mat, .npz, .hdf5, .pkl): `channels` names them."""

    variable: str
    channels: tuple[str, ...]
    axis: Literal[0, 1] = 0  # 0: a row is a channel; 1: a column is


class Trace(Config):
    """A label per window: value i of `variable` labels [i * step_s, i * step_s + window_s); NaN gives
    none. With `words` the values are codes: a stretch of one code is one label, its word; codes that are not
    listed give none."""

    name: str
    unit: str | None = None
    variable: str
    words: dict[str, str] = {}
    file: str | None = None  # None: the record's main file
    window_s: float = pydantic.Field(gt=0)
    step_s: float = pydantic.Field(gt=0)
    offset_s: float = 0.0  # added to their times

    @pydantic.model_validator(mode="after")
    def _codes_are_numbers(self) -> "Trace":
        if (self.unit is None) != bool(self.words):
            raise ValueError("a trace has a `unit`, or `words` for its codes")
        for code in self.words:
            float(code)
        return self


class Clocked(Config):
    """Which clock the times of labels follow.

    `clock`: "start" counts from the record's first sample, "record" is the record's own clock (its column of
    times; seconds since 1970). None: dates and times of day follow the record's clock; numbers do so if that
    clock counts from no date, or if they are so large (1e8 s) that they count from 1970; otherwise they count
    from the start.
    """

    clock: Literal["start", "record"] | None = None
    offset_s: float = 0.0  # added to their times
    # the line of their file whose first cell gives the file's start on the record's clock: times count from
    # there
    start_line: int | None = pydantic.Field(default=None, ge=1)


class Column(Config):
    """A label from a column of a sheet. A cell is looked up first in `values` (words that mean numbers) or
    `words` (words that mean other words), then in `missing`; an empty cell gives no label.

    `split`: separator of the words in a cell with several; each is a label and is looked up separately;
    brackets around the cell and quotes around a word are removed."""

    name: str
    unit: str | None = None
    text: bool = False
    split: str | None = pydantic.Field(default=None, min_length=1)
    values: dict[str, float] = {}
    words: dict[str, str] = {}
    missing: tuple[str, ...] = ()

    @pydantic.model_validator(mode="after")
    def _split_is_for_texts(self) -> "Column":
        if self.split is not None and not self.text:
            raise ValueError("`split` is for words: set text = true")
        return self


class LabelTable(Clocked):
    """Labels from a sheet: CSV, tab-separated text, .xlsx (values as stored, no formula is run), .parquet.

    `key`: the column that identifies a row's record, and `match` its value; None: every row is the record's.
    Times are columns `start` and `end` (or start + `window_s`) in `unit_s` seconds, or row i starts at
    i * `step_s` (or i / the rate in Hz that line `rate_line` states). A row lasts until its `end`, or for
    `window_s`, or for a step. Cells may be dates or times of day. Without times, the row labels the whole
    record; of several rows each text is a label, and a number must be the same in all.
    """

    file: str
    columns: dict[str, Column]
    key: str | None = None
    match: str = "{record}"
    header: int = pydantic.Field(default=1, ge=0)  # line of the column names; 0: they are 1, 2, …
    skip: int = pydantic.Field(default=0, ge=0)  # lines after it that hold no labels
    delimiter: str | None = None  # None: a tab in .tsv and .txt, else a comma
    sheet: str | None = None  # of a workbook; None: its first
    start: str | None = None
    end: str | None = None
    unit_s: float = pydantic.Field(default=1.0, gt=0)
    window_s: float | None = pydantic.Field(default=None, gt=0)
    step_s: float | None = pydantic.Field(default=None, gt=0)
    rate_line: int | None = pydantic.Field(default=None, ge=1)

    @property
    def timed(self) -> bool:
        """Whether the rows have times."""
        return self.start is not None or self.step_s is not None or self.rate_line is not None

    @pydantic.model_validator(mode="after")
    def _known_times(self) -> "LabelTable":
        ends = self.end is not None or self.window_s is not None or self.rate_line is not None
        starts = sum(key is not None for key in (self.start, self.step_s, self.rate_line))
        if self.timed != ends or starts > 1:
            raise ValueError("times need one of `start`, `step_s`, `rate_line` and one of `end`, `window_s`")
        if self.start_line is not None and not self.timed:
            raise ValueError("`start_line` needs times: `start`, `step_s` or `rate_line`")
        return self


class Events(Clocked):
    """Moments (breaths, beats) as labels with start = end and a text: `text`, else the annotation's text.

    From a column of sample numbers (or times) in a sheet, or from a WFDB annotation file ({stem}.atr).
    """

    name: str
    file: str
    column: str | None = None  # None: a WFDB annotation file
    text: str | None = None
    header: int = pydantic.Field(default=1, ge=0)  # line of the column names; 0: they are 1, 2, …
    skip: int = pydantic.Field(default=0, ge=0)  # lines after it that hold no events
    rate: float | None = pydantic.Field(default=None, gt=0)  # ticks a second; None: as stated
    symbols: tuple[str, ...] = ()  # only annotations of these symbols


class Table(Config):
    """The layout of files for the reader `table`: text (also .gz), .parquet, .npy, .npz, HDF5, .pkl.

    The array of a .npy file is channel 1 if it has one dimension, else `array` in [[arrays]]; the fields of a
    .npy file of records are channels. Cells like NA, NULL or `-` are missing samples (`marks.NOTHING`).
    """

    delimiter: str | None = None  # None: a tab in .tsv and .txt, else a comma, or ; where decimal = ","
    decimal: Literal[".", ","] = "."  # set "." if lines such as 12,50 without names are two numbers
    header: int = pydantic.Field(default=1, ge=0)  # line of the channel names; 0: they are 1, 2, …
    skip: int = pydantic.Field(default=0, ge=0)  # lines after it that hold no samples
    layout: Literal["columns", "row"] = "columns"  # row: all numbers of the file are channel 1
    # column of times (numbers, ISO 8601, Parquet's types): must rise; places the samples, in all files on one
    # clock; gaps are missing samples
    time: str | None = None
    time_unit_s: float = pydantic.Field(default=1.0, gt=0)  # of numeric times
    # instead: the line whose first cell gives a file's start, and the line that states its rate (Hz)
    start_line: int | None = pydantic.Field(default=None, ge=1)
    rate_line: int | None = pydantic.Field(default=None, ge=1)
    files: dict[str, str] = {}  # modality -> file, if it is not the main file
    ids: str | None = None  # .npz, .hdf5 of many records: the variable of their names (numbers or words),
    # along the first axis of all others; {id} in file names and matches

    @pydantic.model_validator(mode="after")
    def _known_comma(self) -> "Table":
        if self.decimal == "," and self.delimiter == ",":
            raise ValueError("a comma cannot be both `decimal` and `delimiter`")
        return self

    @pydantic.model_validator(mode="after")
    def _one_clock(self) -> "Table":
        if self.time is not None and self.start_line is not None:
            raise ValueError("`time` and `start_line` both say when a file begins: drop one")
        return self


class Derive(Config):
    """Labels to derive (`datasets/labels.py`), each from the modality or the events given here."""

    hr: Literal["ecg"] | None = None
    bp: Literal["abp"] | None = None
    rr: str | None = None  # the name of [[events]]: breaths
    stretch_s: float = pydantic.Field(default=10.0, gt=0)
    breath_stretch_s: float = pydantic.Field(default=30.0, gt=0)  # 10 s hold two breaths: too few


class Descriptor(Config):
    """One set of recordings: its source and terms, and how its files are read."""

    name: str
    source: str
    licence: str
    terms: str
    citation: str
    access: str
    models: Audience | None = None  # who may have models of it; None: anyone if access begins with "open"
    reader: str
    records: str  # regular expression over paths below the root, with a group `record`
    id_space: str
    subjects_published: bool
    subject: SubjectRule = SubjectRule()
    signals: dict[str, Signal]
    fields: tuple[FieldRule, ...] = ()
    numerics: Numerics | None = None
    traces: tuple[Trace, ...] = ()
    annotations: str | None = None  # keep the file's annotations (EDF+) as labels of this name
    arrays: tuple[Array, ...] = ()
    # .mat: an array whose every part is a record: a struct of a struct array, a cell of a cell array, or a
    # row or column of a matrix (see `elements_axis`)
    elements: str | None = None
    elements_axis: Literal[0, 1] | None = None  # of a matrix: 0, a row is a record; 1, a column
    table: Table = Table()
    tables: tuple[LabelTable, ...] = ()
    events: tuple[Events, ...] = ()
    derive: Derive = Derive()
    segment_s: float = 3600.0
    limits: Limits = Limits()
    _records = pydantic.field_validator("records")(_compiles)

    @pydantic.field_validator("signals")
    @classmethod
    def _known_modalities(cls, signals: dict[str, Signal]) -> dict[str, Signal]:
        unknown = sorted(set(signals) - set(MODALITIES))
        if unknown or not signals:
            raise ValueError(
                f"no modality {', '.join(unknown) or 'given'}; known are {', '.join(MODALITIES)}"
            )
        return signals

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> "Descriptor":
        lacking = sorted({m for m in (self.derive.hr, self.derive.bp) if m} - set(self.signals))
        if lacking:
            raise ValueError(f"[derive] needs the modality {', '.join(lacking)}, which [signals] lacks")
        if self.subject.group and f"(?P<{self.subject.group}>" not in self.records:
            raise ValueError(f"[subject] group = {self.subject.group!r}: `records` has no such group")
        if self.derive.rr and self.derive.rr not in {e.name for e in self.events}:
            raise ValueError(f"[derive] rr = {self.derive.rr!r}: no [[events]] have this name")
        given = {rule.name for rule in self.fields} | {rule.name for rule in self.traces}
        given |= {rule.name for rule in self.events}
        given |= {column.name for table in self.tables for column in table.columns.values()}
        given |= {named.name for named in self.numerics.channels.values()} if self.numerics else set()
        posing = sorted(name for name in given if name.endswith(DERIVED))
        if posing:
            raise ValueError(f"label {', '.join(posing)}: {DERIVED} marks what ingest derives itself")
        return self

    @pydantic.field_validator("records")
    @classmethod
    def _names_the_record(cls, pattern: str) -> str:
        if "(?P<record>" not in pattern:
            raise ValueError("needs a group (?P<record>...) that names the record")
        return pattern
