"""What a run must find as it was when it began: its corpora, what it is built on, a folder of its own."""

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
    """The run is over, and every rank says so: starting its workers again would not help."""


class Guard:
    """Rank 0 looks; every rank calls each method, at the same step, and raises `Ended` where something is
    not what it was.
    """

    def __init__(self, run: RunConfig, known: Fingerprint, token: str, rank: int) -> None:
        self.run, self.known, self.token, self.rank = run, known, token, rank
        self.home = storage.join(run.storage, run.name)
        self.looked = time.monotonic()

    def begin(self, recipe: Recipe) -> None:
        """When the workers start: nothing that the run began with is another thing by now."""
        self._agree(self._began(recipe) if self.rank == 0 else "")

    def read(self, corpora: list[Corpus]) -> None:
        """What this rank opened is what the run began with, also where that was replaced just now."""
        for corpus, known in zip(corpora, self.known.corpus, strict=True):
            if corpus.hash != known.hash:
                raise PlethoraError(f"corpus {corpus.uri} was replaced since run {self.run.name} began")

    def passing(self) -> None:
        """Now and then: look where the last look was a while ago."""
        due = self.rank == 0 and time.monotonic() - self.looked > LOOK_S
        self._agree(self._look() if due else "")

    def saving(self) -> None:
        """Before a checkpoint: what was read since the last one came from the same corpora, and the folder
        is still ours to write to."""
        self._agree(self._look() if self.rank == 0 else "")

    def _agree(self, wrong: str) -> None:
        import torch.distributed as dist

        told = [wrong]
        dist.broadcast_object_list(told)
        if told[0]:
            raise Ended(f"run {self.run.name} stopped: {told[0]}")

    def _began(self, recipe: Recipe) -> str:
        if wrong := self._look():
            return wrong
        now = fingerprint.of(self.run, recipe)  # a store that is away is raised: workers start again
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
        """What is wrong; "" also where the store does not answer: who reads or writes will find out."""
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
                        f"now {found[:12]}): bring it back and --resume, or begin another run"
                    )
            if not owner.holds(self.home, self.token):
                return f"{self.home} belongs to another process now, or was removed"
        except PlethoraError:
            pass
        return ""
