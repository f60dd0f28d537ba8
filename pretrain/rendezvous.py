"""The rendezvous of a run's workers: Ray Train's, but bound to one address.

torch.distributed opens its store on every interface and answers any client. Here the first worker binds it to
the address by which Ray knows its machine (the loopback on a single machine) and passes the socket to torch.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from ray.train.torch import TorchConfig

# Ray has no public names for these two; the backend that we extend is private, too.
from ray.train.torch.config import _set_torch_distributed_env_vars, _TorchBackend

_stores: list[dist.TCPStore] = []  # keeps the servers alive until this process ends


@dataclass
class Rendezvous(TorchConfig):
    """A TorchConfig whose store listens on one address."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return _Backend


class _Backend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        import ray

        worker_group.execute(_set_torch_distributed_env_vars)
        address, port = worker_group.execute_single(0, open_store)
        settings = {"backend": backend_config.backend, "address": address, "port": port}
        settings |= {"world_size": len(worker_group), "timeout_s": backend_config.timeout_s}
        ranks = range(len(worker_group))
        ray.get(
            [worker_group.execute_single_async(rank, join, world_rank=rank, **settings) for rank in ranks]
        )


def open_store() -> tuple[str, int]:
    """Serve a store at this machine's Ray address only, until this process ends. Returns (address, port)."""
    import ray

    address = ray.util.get_node_ip_address()
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listening = socket.create_server((address, 0), family=family, backlog=2048)
    port = listening.getsockname()[1]
    fd = listening.detach()
    _stores.append(dist.TCPStore(address, port, is_master=True, wait_for_workers=False, master_listen_fd=fd))
    return address, port


def join(backend: str, address: str, port: int, world_rank: int, world_size: int, timeout_s: int) -> None:
    """Join the process group as rank `world_rank` of `world_size`, through the store at `address`:`port`."""
    os.environ.update(
        MASTER_ADDR=address, MASTER_PORT=str(port)
    )  # launchers set these, and libraries read them
    timeout = timedelta(seconds=timeout_s)
    store = dist.TCPStore(address, port, world_size, timeout=timeout)
    dist.init_process_group(backend, store=store, rank=world_rank, world_size=world_size, timeout=timeout)
