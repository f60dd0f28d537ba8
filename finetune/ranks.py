"""The recipe of adapters of several ranks trained at once: `finetune.supervised:Vision` with `ranks`.

Every adapter is a module of its own, with its own engine, and is published as the bundle that a run of that
rank alone gives, down to its run file: see finetune/networks/ranks_net.py for how they share one backbone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from cluster.errors import PlethoraError
from finetune import targets
from finetune.networks.lora import LoRAConfig
from finetune.networks.ranks_net import Adapter, Together
from finetune.networks.tuned import Predictor
from finetune.supervised import Vision, VisionRunConfig, scatter
from pretrain.engine import load_trained
from pretrain.recipe import Encoder, StepResult


class RanksConfig(VisionRunConfig):
    """As Vision's; `lora.r` stands back behind `ranks`. Rank r is the module "r<r>", so that `optim_of` may
    give it a learning rate, and `select.metric = "loss/*"` chooses the weights of each by its own loss."""

    ranks: tuple[int, ...] = Field((2, 4, 8, 16), min_length=1)
    alphas: tuple[int, ...] = ()  # one a rank; none: lora.alpha for all

    @model_validator(mode="after")
    def _ranks(self) -> RanksConfig:
        if self.mode != "lora":
            raise ValueError(f'ranks are of LoRA: mode = "{self.mode}" has none')
        if min(self.ranks) < 1 or len(set(self.ranks)) < len(self.ranks):
            raise ValueError(f"ranks = {list(self.ranks)}: each once, and at least 1")
        if self.alphas and len(self.alphas) != len(self.ranks):
            raise ValueError(
                f"alphas = {list(self.alphas)}: give one for each of the {len(self.ranks)} ranks"
            )
        return self

    @property
    def members(self) -> dict[str, LoRAConfig]:
        """{module: its adapter}."""
        alphas = self.alphas or (self.lora.alpha,) * len(self.ranks)
        return {
            f"r{r}": self.lora.model_copy(update={"r": r, "alpha": alpha})
            for r, alpha in zip(self.ranks, alphas, strict=True)
        }


class Member(nn.Module):
    """What trains of one adapter. Called, it hands its tensors out, in the order of `names`, and says whether
    autocast was on: what is shared runs outside of any engine, and as this one would."""

    def __init__(self, start: Adapter) -> None:
        super().__init__()
        self.names = tuple(start)
        self.tensors = nn.ParameterList([nn.Parameter(start[name]) for name in self.names])

    def forward(self) -> tuple[list[Tensor], bool]:
        if any(p.shape == (0,) for p in self.tensors):
            raise PlethoraError(
                "engine.zero_stage = 3 shards what several ranks share: set engine.zero_stage to 0, 1 or 2"
            )
        return [p.view_as(p) for p in self.tensors], torch.is_autocast_enabled(self.tensors[0].device.type)


class Ranks(Vision):
    Config = RanksConfig

    def modules(self) -> dict[str, nn.Module]:
        return {name: Member(start) for name, start in self._together().start.items()}

    def frozen(self) -> dict[str, nn.Module]:
        return {"net": Predictor(self._together(), self._heads(), self.config.standardise)}

    def _together(self) -> Together:
        columns = {h.name: h.columns for h in self._heads()}
        return Together(self.config, self.config.members, columns, self.seed)

    def losses(
        self, modules: Mapping[str, nn.Module], frozen: Mapping[str, nn.Module], batch: dict, step: int
    ) -> StepResult:
        """One pass over what is shared gives every gradient; each engine then gets a loss of its adapter's
        value whose own gradient is that one."""
        training, net, names = torch.is_grad_enabled(), frozen["net"], list(self.config.members)
        assert isinstance(net, Predictor)
        given = {name: modules[name]() for name in names}
        leaves = {name: [p.detach().requires_grad_(training) for p in ps] for name, (ps, _) in given.items()}
        body: Any = net.body
        half = any(on for _, on in given.values())
        with torch.autocast(batch["ppg"].device.type, torch.bfloat16, enabled=half):
            found = body(
                [dict(zip(body.start[n], leaves[n], strict=True)) for n in names],
                batch["ppg"],
                **(self.more(batch, step) if training else {}),
            )
        told = [y.float() * net.std + net.mean for y in found]
        target, c = batch["target"], self.config
        losses = {
            name: targets.task_losses(y, target, self.heads, c.beta, c.standardise).mean()
            for name, y in zip(names, told, strict=True)
        }
        values = {name: loss.detach() for name, loss in losses.items()}
        if training:
            flat = [leaf for name in names for leaf in leaves[name]]
            gradients = iter(torch.autograd.grad(torch.stack(list(losses.values())).sum(), flat))
            for name in names:
                dot = torch.stack([(p * next(gradients)).sum() for p in given[name][0]]).sum()
                losses[name] = dot + (values[name] - dot.detach())
        wrong = [targets.errors(y.detach(), target, self.heads) for y in told]
        sums = torch.stack([v.double() for v in values.values()]) * len(target)
        best = int(sums.argmin())
        return StepResult(
            losses=losses,
            counts={
                "errors": torch.stack(wrong).flatten(),
                "loss": torch.cat([sums, sums.new_tensor([len(target)])]),
            },
            figures={} if training else {"predicted": lambda: scatter(told[best], target, self.heads)},
        )

    def summary(self, counts: Mapping[str, Tensor]) -> dict[str, float]:
        """Each figure of a run of one rank, as `<figure>/<module>`, and the best one's as `<figure>`."""
        names = list(self.config.members)
        *sums, windows = counts["loss"].tolist()
        found = {"loss/net": min(sums) / windows}
        for name, errors in zip(names, counts["errors"].view(len(names), 2, -1), strict=True):
            for figure, value in super().summary({"errors": errors}).items():
                found[f"{figure}/{name}"] = value
                found[figure] = min(value, found.get(figure, value))
        return found

    def check(self) -> list[str]:
        lines = self.alone(list(self.config.members)[-1])[2].check()
        return [
            *lines,
            f"together: ranks {', '.join(map(str, self.config.ranks))} on one copy of the backbone",
        ]

    def encoder(self, modules: Mapping[str, nn.Module]) -> Encoder:
        """Of the first of `modules`, as a run of its rank alone gives it; publishing asks for each."""
        name, member = next(iter(modules.items()))
        alone = self.alone(name)[2]
        nets = alone.modules()
        load_trained(nets["net"], self.weights_alone(name, member.state_dict())["net"])
        return alone.encoder(nets)

    # -- each as if trained alone (pretrain.recipe.Several)

    def alone(self, name: str) -> tuple[str, dict[str, Any], Vision]:
        member = self.config.members[name]
        given = self.config.model_dump(mode="json", exclude={"ranks", "alphas"})
        method = given | {"lora": member.model_dump(mode="json")}
        recipe = Vision(VisionRunConfig(**method), self.seed)
        recipe.heads, recipe.classes = self.heads, self.classes
        return "finetune.supervised:Vision", method, recipe

    def weights_alone(self, name: str, weights: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        modules = self.alone(name)[2].modules()
        found = {k: b for k, b in modules["net"].named_buffers() if k in ("mean", "std")}
        trained = [k for k, p in modules["net"].named_parameters() if p.requires_grad]
        found |= {key: weights[f"tensors.{number}"] for number, key in enumerate(trained)}
        return {"net": found}

    def figures_alone(self, name: str, found: Mapping[str, float]) -> dict[str, float]:
        names = self.config.members
        own = {k.removesuffix(f"/{name}"): v for k, v in found.items() if k.endswith(f"/{name}")}
        shared = {k: v for k, v in found.items() if k.rpartition("/")[2] not in names and k not in own}
        own["loss/net"] = own.pop("loss", own.get("loss/net", float("nan")))
        return shared | own
