"""Where the workers of a run meet: as Ray Train lets torch's workers meet, but at one address.

torch.distributed opens its store on every interface, and answers whoever connects. Here the first worker
binds it to the address by which Ray knows its machine, on one's own machine the loopback, and torch is handed
the socket.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from ray.train.torch import TorchConfig

# Ray names no public place for these two; its own backend, which is extended, is as private.
from ray.train.torch.config import _set_torch_distributed_env_vars, _TorchBackend

_held: list[dist.TCPStore] = []  # the server ends with the process that made it


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
        told = {"backend": backend_config.backend, "address": address, "port": port}
        told |= {"world_size": len(worker_group), "timeout_s": backend_config.timeout_s}
        ranks = range(len(worker_group))
        ray.get([worker_group.execute_single_async(rank, join, world_rank=rank, **told) for rank in ranks])


def open_store() -> tuple[str, int]:
    """Serve a store at this machine's address in Ray alone, while this process lives: (address, port)."""
    import ray

    address = ray.util.get_node_ip_address()
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listening = socket.create_server((address, 0), family=family, backlog=2048)
    port = listening.getsockname()[1]
    fd = listening.detach()
    _held.append(dist.TCPStore(address, port, is_master=True, wait_for_workers=False, master_listen_fd=fd))
    return address, port


def join(backend: str, address: str, port: int, world_rank: int, world_size: int, timeout_s: int) -> None:
    """Make this process rank `world_rank` of `world_size` that meet in the store at `address`:`port`."""
    os.environ.update(MASTER_ADDR=address, MASTER_PORT=str(port))  # what launchers tell, and libraries read
    timeout = timedelta(seconds=timeout_s)
    store = dist.TCPStore(address, port, world_size, timeout=timeout)
    dist.init_process_group(backend, store=store, rank=world_rank, world_size=world_size, timeout=timeout)
