"""A script: one toy run on a Ray cluster of three machines (raylets), one of which is killed on the way.

python -m tests.pretrain.lost_machine CORPUS STORAGE NAME [kill]
"""

import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from cluster.session import session
from pretrain import checkpoint, driver
from pretrain.config import RunConfig

STEPS, EVERY = 2000, 400


def main(corpus: str, storage: str, name: str, kill: bool) -> None:
    import ray
    from ray.cluster_utils import Cluster

    machines = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    for _ in range(2):
        machines.add_node(num_cpus=4)
    ray.init(address=machines.address)
    run = RunConfig.model_validate(
        {
            "recipe": "tests.pretrain.toy:Toy",
            "corpus": corpus,
            "storage": storage,
            "name": name,
            "steps": STEPS,
            "batch": 8,
            "workers": 2,
            "validate_every": 0,
            "checkpoint_every": EVERY,
            "optim": {"lr": 0.01},
            "engine": {"zero_stage": 0},
            "stream": {"self_read_mb": 0},
        }
    )
    if kill:
        threading.Thread(target=lose_one, args=(machines, f"{storage}/{name}"), daemon=True).start()
    with session():
        print(driver.launch(run)["bundle"])
    ray.shutdown()
    machines.shutdown()


def lose_one(machines: Any, home: str) -> None:
    """Kill the raylet of a machine that trains, and all that it runs, once a checkpoint is committed."""
    while (checkpoint.committed(home) or 0) < EVERY:
        time.sleep(0.1)
    for machine in machines.worker_nodes:
        raylet = psutil.Process(machine.all_processes["raylet"][0].process.pid)
        below = raylet.children(recursive=True)
        if any("RayTrainWorker" in "".join(p.cmdline()[:1]) for p in below):
            for process in [raylet, *below]:
                process.kill()
            Path(home, "lost").touch()
            return


if __name__ == "__main__":
    main(*sys.argv[1:4], kill="kill" in sys.argv)
