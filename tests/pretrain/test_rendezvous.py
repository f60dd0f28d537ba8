"""Workers of a run meet at one address, on one's own machine at the loopback."""

from typing import Any

import psutil

from cluster import session
from pretrain.rendezvous import Rendezvous


def meet(config: dict[str, Any]) -> dict[str, Any]:
    """The sum over ranks of 1, and where this rank listens."""
    import ray.train
    import torch
    import torch.distributed as dist

    ones = torch.ones(1)
    dist.all_reduce(ones)
    told: list[Any] = [None] * dist.get_world_size()
    ports = psutil.Process().net_connections(kind="inet")
    dist.all_gather_object(told, [p.laddr.ip for p in ports if p.status == psutil.CONN_LISTEN])
    return {"sum": ones.item(), "listening": told} if ray.train.get_context().get_world_rank() == 0 else {}


def test_workers_meet_and_nothing_of_theirs_listens_beyond_loopback(ray_session: Any, tmp_path: Any) -> None:
    import ray.train
    from ray.train.torch import TorchTrainer

    loop: Any = meet
    found = TorchTrainer(
        loop,
        train_loop_config={},
        torch_config=Rendezvous(backend="gloo"),
        scaling_config=session.scaling(2, 0),
        run_config=ray.train.RunConfig(name="meet", storage_path=str(tmp_path)),
    ).fit()
    value: Any = found.return_value
    assert value["sum"] == 2
    assert all(value["listening"]), "a rank's own sockets are seen"
    assert {ip.removeprefix("::ffff:") for rank in value["listening"] for ip in rank} == {"127.0.0.1"}
