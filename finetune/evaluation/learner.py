"""A network learns a task: a linear head on its vectors, then head and network together."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finetune.evaluation.heads import Kind, TrainingSet, loss
from finetune.networks import signal_lora

LORA_RATE = 1e-3  # of AdamW, for adapters
HEAD_RATE = 1e-3  # for the linear head beside them, or beside all weights
DECAY = 0.01
BATCH = 32
CHECKS = 10  # looks at the held-out subjects in a fit
PATIENCE = 3  # looks without a lower loss that end it
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)  # on the squared weights of the first linear head
FITTED, JUDGED = 4096, 512  # windows at most: for that head, for a look
CHUNK = 256


class Network(nn.Module):
    """(B, pieces, C, T) prepared signals → (B, columns): the encoder's vector, the mean over pieces, in
    standard deviations from its mean, through a linear layer.
    """

    mean: Tensor
    spread: Tensor

    def __init__(self, encode: nn.Module) -> None:
        super().__init__()
        self.encode = encode
        self.head: nn.Module = nn.Identity()
        self.register_buffer("mean", torch.zeros(1))
        self.register_buffer("spread", torch.ones(1))

    def vector(self, signals: Sequence[Tensor]) -> Tensor:
        many, pieces = signals[0].shape[:2]
        found = self.encode(*(x.flatten(0, 1) for x in signals)).float()
        return found.reshape(many, pieces, -1).mean(dim=1)

    def forward(self, signals: Sequence[Tensor]) -> Tensor:
        return self.head((self.vector(signals) - self.mean) / self.spread)


@dataclass(frozen=True)
class Targets:
    """What the network learns: numbers in standard deviations from their mean."""

    kind: Kind
    mean: float
    spread: float

    @staticmethod
    def of(data: TrainingSet) -> "Targets":
        if data.kind != "number":
            return Targets(data.kind, 0.0, 1.0)
        return Targets(data.kind, float(data.y.mean()), float(data.y.std()) or 1.0)

    def scaled(self, y_nc: np.ndarray) -> Tensor:
        return torch.from_numpy(((y_nc - self.mean) / self.spread).astype(np.float32))

    def loss(self, z_nc: Tensor, y_nc: Tensor) -> Tensor:
        if self.kind == "number":
            return F.smooth_l1_loss(z_nc, y_nc)
        if self.kind == "class":
            return F.cross_entropy(z_nc, y_nc)
        return F.binary_cross_entropy_with_logits(z_nc, y_nc)

    def predictions(self, z_nc: Tensor) -> np.ndarray:
        """In the task's unit, or probabilities."""
        z = z_nc.double()
        if self.kind == "number":
            return (z * self.spread + self.mean).numpy()
        return (z.softmax(dim=1) if self.kind == "class" else z.sigmoid()).numpy()


@dataclass(frozen=True)
class Learner:
    """A network that is trained on some windows and predicts others: `heads.Predict` on window numbers.

    The network stays in eval mode, but from scratch: statistics of a few people would take the place of what
    its batch norms know.
    """

    network: nn.Module
    signals: Sequence[np.ndarray]
    steps: int
    done: Callable[[], None] = lambda: None  # called after each fit

    def lora(self, data: TrainingSet, test_m1: np.ndarray, rank: float, seed: int) -> np.ndarray:
        return self._fitted(data, test_m1, LORA_RATE, seed, rank=int(rank))

    def full(self, data: TrainingSet, test_m1: np.ndarray, rate: float, seed: int) -> np.ndarray:
        return self._fitted(data, test_m1, rate, seed)

    def scratch(self, data: TrainingSet, test_m1: np.ndarray, rate: float, seed: int) -> np.ndarray:
        return self._fitted(data, test_m1, rate, seed, scratch=True)

    def _fitted(
        self,
        data: TrainingSet,
        test_m1: np.ndarray,
        rate: float,
        seed: int,
        rank: int | None = None,
        scratch: bool = False,
    ) -> np.ndarray:
        rows, test = data.x[:, 0].astype(int), test_m1[:, 0].astype(int)
        held = data.folds(5, seed)[:1]
        # with nobody to hold out there is nothing to stop by: no training beyond the linear head
        learn, stop = held[0] if held else (np.arange(len(rows)), np.arange(len(rows)))
        targets = Targets.of(data.at(learn))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = Network(copy.deepcopy(self.network)).to(_device())
            if rank is None:
                net.encode.requires_grad_(True)
            else:
                signal_lora.add(net.encode, self._inputs(rows[:1], pieces=False), rank)
            shown, judged = _spread_out(learn, FITTED), _spread_out(stop, JUDGED)
            self._fit_linear(net, targets, rows, data.y, shown, judged, data.kind)
            if held:
                self._train(net, targets, rows, data.y, learn, judged, rate, scratch, seed)
        self.done()
        return targets.predictions(self._outputs(net, test))

    def _fit_linear(
        self,
        net: Network,
        targets: Targets,
        rows: np.ndarray,
        y: np.ndarray,
        shown: np.ndarray,
        judged: np.ndarray,
        kind: Kind,
    ) -> None:
        """The head of the network as it is; held-out subjects choose how much its weights are shrunk."""
        vectors = self._outputs(net, rows[shown])
        net.mean, spread = vectors.mean(dim=0), vectors.std(dim=0, correction=0)
        net.spread = torch.where(spread > 1e-6 * vectors.abs().amax(dim=0), spread, torch.ones_like(spread))
        x = (vectors - net.mean) / net.spread
        other = (self._outputs(net, rows[judged], linear=False) - net.mean) / net.spread
        wanted, best, kept = targets.scaled(y[shown]), np.inf, None
        for penalty in PENALTIES:
            head = nn.Linear(x.shape[1], y.shape[1])
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
            lbfgs = torch.optim.LBFGS(head.parameters(), max_iter=100, line_search_fn="strong_wolfe")

            def closure(head: nn.Linear = head, penalty: float = penalty) -> Tensor:
                head.zero_grad()
                found = targets.loss(head(x), wanted) + penalty * head.weight.square().sum()
                found.backward()
                return found

            lbfgs.step(closure)
            with torch.no_grad():
                now = loss(kind, targets.predictions(head(other)), y[judged])
            if kept is None or now < best:
                best, kept = now, head
        assert kept is not None
        net.head = kept
        net.to(_device())

    def _train(
        self,
        net: Network,
        targets: Targets,
        rows: np.ndarray,
        y: np.ndarray,
        learn: np.ndarray,
        judged: np.ndarray,
        rate: float,
        scratch: bool,
        seed: int,
    ) -> None:
        """The head with the network; the weights with the lowest loss on held-out subjects are kept."""
        encode = [p for p in net.encode.parameters() if p.requires_grad]
        groups = [{"params": encode, "lr": rate}, {"params": list(net.head.parameters()), "lr": HEAD_RATE}]
        optimizer = torch.optim.AdamW(groups, weight_decay=DECAY)
        warmup = max(self.steps // 10, 1)
        ramp = torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda step: min((step + 1) / warmup, 0.5 + 0.5 * float(np.cos(np.pi * step / self.steps))),
        )
        wanted, rng = targets.scaled(y), np.random.default_rng([seed, 0xF7])
        order = np.concatenate([rng.permutation(learn) for _ in range(self._passes(len(learn)))])

        def judge() -> float:
            return loss(targets.kind, targets.predictions(self._outputs(net, rows[judged])), y[judged])

        best, kept, waited = judge(), copy.deepcopy(net.state_dict()), 0
        every = max(self.steps // CHECKS, 1)
        for step in range(self.steps):
            part = order[step * BATCH : (step + 1) * BATCH]
            net.encode.train(scratch)
            found = targets.loss(net(self._inputs(rows[part])), wanted[part].to(_device()))
            optimizer.zero_grad()
            found.backward()
            nn.utils.clip_grad_norm_(encode, 1.0)
            optimizer.step()
            ramp.step()
            if (step + 1) % every:
                continue
            now = judge()
            waited += 1
            if now < best:
                best, kept, waited = now, copy.deepcopy(net.state_dict()), 0
            if waited == PATIENCE:
                break
        net.load_state_dict(kept)

    def _passes(self, many: int) -> int:
        return -(-self.steps * BATCH // many)

    def _inputs(self, rows: np.ndarray, pieces: bool = True) -> list[Tensor]:
        return [x.to(_device()) for x in tensors(self.signals, rows, pieces)]

    @torch.inference_mode()
    def _outputs(self, net: Network, rows: np.ndarray, linear: bool = True) -> Tensor:
        """(n, columns) of the head, or (n, dim) vectors; of a network without a head, vectors."""
        net.eval()
        run = net if linear and not isinstance(net.head, nn.Identity) else net.vector
        parts = [run(self._inputs(rows[low : low + CHUNK])).cpu() for low in range(0, len(rows), CHUNK)]
        return torch.cat(parts)


def tensors(signals: Sequence[np.ndarray], rows: np.ndarray, pieces: bool = True) -> list[Tensor]:
    """(n, pieces, C, T) of these windows, or (n, C, T) of their first pieces, a tensor an input."""
    found = [torch.from_numpy(np.ascontiguousarray(x[rows])) for x in signals]
    return found if pieces else [x[:, 0] for x in found]


def _spread_out(rows: np.ndarray, most: int) -> np.ndarray:
    """At most so many of the rows, evenly."""
    return rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).round().astype(int)]


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
