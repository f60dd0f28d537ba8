"""What the largest trial of a search needs, and how many trials the cluster can run at once."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from cluster.errors import PlethoraError
from pretrain.planning.actors import with_actors
from tuning.plan import Plan, ends


@dataclass(frozen=True)
class Resources:
    """Needs of the largest trial. `most`: the workers that it can use, where it can run with fewer
    (`workers`)."""

    workers: int
    most: int
    actors: int
    cpu: float  # a worker
    gpu: float  # a worker

    @classmethod
    def of(cls, plan: Plan) -> Resources:
        points = [{}, *(values for _, values in ends(plan))]
        runs = [plan.run(values, "name=t") for values in points]
        return cls(
            workers=max(run.fewest for run in runs),
            most=max(run.most for run in runs),
            actors=max(with_actors(run).stream.count for run in runs),
            cpu=max(run.resources.cpu for run in runs),
            gpu=max(run.resources.gpu for run in runs),
        )

    def concurrent(self, plan: Plan, ray: Any) -> int:
        """Trials that the cluster can run at once. PlethoraError: not even one, or no node has what a worker
        needs (Ray would wait forever)."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        limits = [plan.search.budget.concurrent]
        trial = {"CPU": self.workers * (self.cpu + self.actors), "GPU": self.workers * self.gpu}
        for name, amount in {"CPU": self.cpu, "GPU": self.gpu}.items():
            key, largest = f"resources.{name.lower()}", max((node.get(name, 0) for node in nodes), default=0)
            if amount > largest:
                raise PlethoraError(
                    f"{plan.path}: {key} = {amount:g} a worker, and the largest node of this cluster has "
                    f"{largest:g}: lower it, or add a larger node"
                )
        for name, amount in trial.items():
            total = sum(node.get(name, 0) for node in nodes)
            if amount > total:
                raise PlethoraError(
                    f"{plan.path}: a trial of {self.workers} workers takes {amount:g} {name}s, and the "
                    f"cluster has {total:g}: lower workers or resources.{name.lower()}, or add nodes"
                )
            # the streams of all trials together need one CPU to spare, or never start
            limits += [max(1, int((total - (name == "CPU")) // amount))] if amount else []
        found = min(limits)
        if found < plan.search.budget.concurrent:
            line = f"search {plan.search.name}: the cluster has room for {found} trials at once"
            print(line, file=sys.stderr, flush=True)
        return found
