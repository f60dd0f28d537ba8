"""The run file: the complete configuration of a pretraining run, as frozen models."""

from math import lcm
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from cluster import storage
from cluster.config import Config
from datasets.plan import LANES, MIXED
from datasets.split import Split

if TYPE_CHECKING:
    from datasets.windows import WindowSpec

# Folders inside a run's folder: a run with such a name would write into another run's folder.
RESERVED = ("bundle", "evaluations", "owner", "telemetry")


class Optim(Config):
    """AdamW and its learning-rate schedule: linear warm-up, then cosine decay to `min_lr`, in optimizer
    steps."""

    lr: float = Field(default=1e-4, ge=0)
    lr_reference_batch: int | None = None  # if set, the rate is lr · √(batch / this): SIGMA's rule
    min_lr: float = 0.0
    warmup_epochs: float = 0.0
    warmup_steps: int | None = None  # if set, overrides warmup_epochs
    schedule: Literal["cosine", "constant"] = "cosine"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.05  # on matrices only, not on biases, norms and scales


class Engine(Config):
    """How modules are sharded. Stage 0 means plain DDP: DeepSpeed's stage 0 differs from 1-3 in bf16."""

    zero_stage: Literal[0, 1, 2, 3] = 1
    precision: Literal["auto", "fp32", "bf16-autocast"] = (
        "auto"  # auto: bf16-autocast on a GPU, fp32 on a CPU
    )
    clip: float = 1.0  # global gradient norm; 0: none
    offload: bool = False  # optimizer state in host memory (ZeRO only)


class Resources(Config):
    """Resources of one worker."""

    gpu: float = Field(default=0, ge=0)
    cpu: float = Field(default=1, ge=0)


class Stream(Config):
    """How windows reach the workers."""

    # transform actors per worker, one core each; 0: the worker reads in a thread; "auto": as many as keep a
    # GPU busy according to `pretrain plan`, and one for a worker without a GPU
    actors: Annotated[int, Field(ge=0)] | Literal["auto"] = 1
    on: dict[str, str] = Field(default_factory=dict)  # labels of the nodes that run transform actors
    # MB of prepared windows that a worker reads itself while its transform actors start
    self_read_mb: float = Field(default=500, ge=0)
    # where windows are filtered and resampled: in the transform actors (or the thread that replaces them), or
    # in the worker, on its device, so that int16 samples travel. auto: in the worker if it has a GPU and that
    # can do all steps of the signals (`Signal.fused`); "worker" has its host do the others
    prepare: Literal["auto", "actor", "worker"] = "auto"
    # row groups read at the same time, over all workers (a power of two): the number of subjects that a batch
    # mixes, and of decoded row groups in memory
    lanes: int = Field(default=LANES, ge=1)
    mixed: int = Field(default=MIXED, ge=1)  # row groups whose windows one lane mixes
    materialised: bool = False  # read the output of `python -m pretrain materialize`, without a transform

    @property
    def count(self) -> int:
        """Transform actors per worker. "auto" counts as 1 until the launch replaces it by a number."""
        return 1 if self.actors == "auto" else self.actors

    def sends_raw(self, device: str, spec: "WindowSpec") -> bool:
        """Whether windows of `spec` travel raw to workers on `device` ("cpu", "cuda")."""
        there = "worker" if device == "cuda" and all(s.fused for s in spec.signals) else "actor"
        return not self.materialised and (there if self.prepare == "auto" else self.prepare) == "worker"

    @field_validator("lanes")
    @classmethod
    def _halves_evenly(cls, lanes: int) -> int:
        if lanes & (lanes - 1):
            raise ValueError(f"{lanes} is not a power of two: 64 is usual")
        return lanes


class Select(Config):
    """Model selection by a validation metric. Off by default: the last weights are published."""

    metric: str = ""  # a validation figure, lower is better ("loss/net"): publish the best weights by it
    patience: int = Field(
        default=0, ge=0
    )  # consecutive worse validations, while the training loss falls, that stop the run; 0: never


class RunConfig(Config):
    """One run. `batch`: windows per optimizer step, over all workers; the accumulation is derived."""

    EITHER = ("steps", "epochs")

    recipe: str  # "module:Class"
    method: dict[str, Any] = {}  # the recipe's Config
    corpus: (
        str | Annotated[dict[str, Annotated[float, Field(gt=0)]], Field(min_length=1)]
    )  # a URI, or URI = weight (expected share of windows)
    storage: str = "out/runs"
    name: str
    seed: int = Field(default=0, ge=0)
    workers: Annotated[int, Field(ge=1)] | tuple[int, int] = (
        1  # [fewest, most]: as many as the cluster can run
    )
    resize_every_s: float = Field(default=60.0, ge=0)  # how often an elastic run tries to grow
    resources: Resources = Resources()
    steps: int | None = Field(default=None, ge=1)
    epochs: float | None = Field(default=None, gt=0)
    epoch_windows: int | None = Field(default=None, ge=1)  # windows per epoch; default: the sum over corpora
    batch: int = Field(ge=1)
    micro_batch: int | None = Field(
        default=None, ge=1
    )  # windows per worker and backward pass; default: batch / workers
    optim: Optim = Optim()
    optim_of: dict[str, dict[str, Any]] = {}  # per-module overrides of optim, by module name
    engine: Engine = Engine()
    split: Split = Split()
    stream: Stream = Stream()
    validate_every: int = Field(default=500, ge=0)  # optimizer steps; 0: never
    validate_windows: int = 1024
    select: Select = Select()
    checkpoint_every: int = Field(default=500, ge=1)
    checkpoint_minutes: float = Field(
        default=0, ge=0
    )  # also when this many minutes have passed; 0: by steps only
    keep_checkpoints: int = Field(default=2, ge=2)  # at least 2: the newest may not be committed yet
    log_every: int = Field(default=10, ge=1)
    max_nonfinite: int = 10  # consecutive skipped steps that stop the run
    # restarts of the workers after failures, counted again from each committed checkpoint
    max_failures: int = Field(default=3, ge=0)

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, name: str) -> str:
        parts = name.split("/")
        if not name.isprintable() or "\\" in name or any(not p or p.startswith(".") for p in parts):
            raise ValueError(
                f"name = {name!r} names no folder below storage: use letters, digits, - _ . and /"
            )
        reserved = [part for part in parts if part in RESERVED or part.startswith("checkpoint_20")]
        if reserved:
            raise ValueError(f"name = {name!r}: `{reserved[0]}` is a folder inside runs: choose another word")
        return name

    @field_validator("corpus")
    @classmethod
    def _names_each_corpus_once(cls, corpus: str | dict[str, float]) -> str | dict[str, float]:
        known: dict[str, str] = {}
        for uri in corpus if isinstance(corpus, dict) else ():
            first = known.setdefault(storage.normalise(uri), uri)
            if first != uri:
                raise ValueError(
                    f"corpus names one folder twice, {first!r} and {uri!r}: name it once, with one weight"
                )
        return corpus

    @model_validator(mode="after")
    def _check(self) -> "RunConfig":
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give steps or epochs, one of them")
        if self.select.patience and not self.select.metric:
            raise ValueError("select.patience needs select.metric: the figure of validation to watch")
        if self.select.metric and not self.validate_every:
            raise ValueError("select.metric needs validation: set validate_every above 0")
        if isinstance(self.workers, tuple) and not 1 <= self.fewest <= self.most:
            raise ValueError(f"workers = {list(self.workers)}: give [fewest, most], 1 or more, in that order")
        counts = range(self.fewest, self.most + 1)
        wrong = [str(workers) for workers in counts if self.batch % workers]
        if wrong:
            whole = lcm(*counts)  # Ray starts any count of the range
            near = f": the nearest batch that does is {-(-self.batch // whole) * whole}"
            raise ValueError(
                f"batch = {self.batch} does not divide over workers = {', '.join(wrong)}"
                + near * isinstance(self.workers, tuple)
            )
        lanes = max(1, self.stream.lanes // self.most)
        if self.stream.count > lanes:
            raise ValueError(
                f"stream.actors = {self.stream.count} is more than the {lanes} lanes that one of {self.most} "
                f"workers reads: lower it, or raise stream.lanes = {self.stream.lanes}"
            )
        for workers in counts:
            if self.micro_batch and (self.batch // workers) % self.micro_batch:
                raise ValueError(
                    f"micro_batch = {self.micro_batch} does not divide a worker's share of "
                    f"{self.batch // workers} windows (batch {self.batch} / workers {workers})"
                )
        return self

    @property
    def fewest(self) -> int:
        """The minimum number of workers."""
        return self.workers[0] if isinstance(self.workers, tuple) else self.workers

    @property
    def most(self) -> int:
        """The maximum number of workers."""
        return self.workers[1] if isinstance(self.workers, tuple) else self.workers

    @property
    def elastic(self) -> bool:
        """Whether the run continues with fewer workers and grows again."""
        return self.fewest < self.most

    def at(self, workers: int) -> "RunConfig":
        """This run with a fixed number of workers."""
        return self.model_copy(update={"workers": workers})

    @property
    def micro(self) -> int:
        """Windows per worker and backward pass (for an elastic run: with the maximum number of workers)."""
        return self.micro_batch or self.batch // self.most

    @property
    def accumulation(self) -> int:
        """Backward passes per optimizer step."""
        return self.batch // self.most // self.micro

    @property
    def corpora(self) -> dict[str, float]:
        """{URI: weight}, weights summing to 1."""
        given = {self.corpus: 1.0} if isinstance(self.corpus, str) else self.corpus
        total = sum(given.values())
        return {uri: weight / total for uri, weight in given.items()}

    def optim_for(self, module: str) -> Optim:
        """`optim` with the overrides of `module`."""
        return Optim(**{**self.optim.model_dump(), **self.optim_of.get(module, {})})
