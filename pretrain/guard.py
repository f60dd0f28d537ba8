"""Checks that a run's inputs and folder have not changed since it started: corpora, parent bundles, owner."""

import time

from cluster import owner, storage
from cluster.errors import PlethoraError
from datasets.schema import MANIFEST, Corpus, open_corpus
from pretrain import fingerprint
from pretrain.config import RunConfig
from pretrain.fingerprint import Fingerprint
from pretrain.recipe import Recipe

LOOK_S = 30.0


class Ended(PlethoraError):
    """The run is over on every rank, and restarting its workers would not help."""


class Guard:
    """Rank 0 checks. Every rank calls each method at the same step, and every rank raises `Ended` when
    something has changed.
    """

    def __init__(self, run: RunConfig, known: Fingerprint, token: str, rank: int) -> None:
        self.run, self.known, self.token, self.rank = run, known, token, rank
        self.home = storage.join(run.storage, run.name)
        self.looked = time.monotonic()

    def begin(self, recipe: Recipe) -> None:
        """When the workers start: check that nothing has changed since the run started."""
        self._agree(self._began(recipe) if self.rank == 0 else "")

    def read(self, corpora: list[Corpus]) -> None:
        """Check that this rank opened the corpora that the run started with, even if one was just
        replaced."""
        for corpus, known in zip(corpora, self.known.corpus, strict=True):
            if corpus.hash != known.hash:
                raise PlethoraError(f"corpus {corpus.uri} was replaced since run {self.run.name} began")

    def passing(self) -> None:
        """Between checkpoints: check if the last check is older than `LOOK_S`."""
        due = self.rank == 0 and time.monotonic() - self.looked > LOOK_S
        self._agree(self._look() if due else "")

    def saving(self) -> None:
        """Before a checkpoint: check that the windows read since the last one came from the same corpora, and
        that this run still owns its folder."""
        self._agree(self._look() if self.rank == 0 else "")

    def _agree(self, wrong: str) -> None:
        import torch.distributed as dist

        shared = [wrong]
        dist.broadcast_object_list(shared)
        if shared[0]:
            raise Ended(f"run {self.run.name} stopped: {shared[0]}")

    def _began(self, recipe: Recipe) -> str:
        if wrong := self._look():
            return wrong
        now = fingerprint.of(self.run, recipe)  # raises if the store is down: workers restart
        try:
            fingerprint.compare(self.run.name, self.known, now, lengthen=False)
        except PlethoraError as error:
            return str(error)
        for uri in self.run.corpora:
            vouched = {shard["path"]: shard.get("bytes", 0) for shard in open_corpus(uri).shards}
            sizes = storage.sizes(uri)
            for path, size in vouched.items():
                if size and sizes.get(path) != size:
                    return f"{storage.join(uri, path)} is not the file that its corpus.json vouches for"
        return ""

    def _look(self) -> str:
        """What has changed; "" also when the store does not answer, because reads and writes will then
        fail."""
        self.looked = time.monotonic()
        try:
            for corpus in self.known.corpus:
                mark = storage.join(corpus.uri, MANIFEST)
                if not storage.exists(mark):
                    return f"corpus {corpus.uri} was removed, or is being made again, since this run began"
                found = str(storage.read_json(mark).get("hash"))
                if found != corpus.hash:
                    return (
                        f"corpus {corpus.uri} was replaced since this run began (content {corpus.hash[:12]}, "
                        f"now {found[:12]}): bring it back and --resume, or start another run"
                    )
            if not owner.holds(self.home, self.token):
                return f"{self.home} belongs to another process now, or was removed"
        except PlethoraError:
            pass
        return ""
