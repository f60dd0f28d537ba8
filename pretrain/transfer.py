"""Transfer of micro-batches from the stream to the device, overlapped with the previous step."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from datasets import raw
from datasets.stream import threaded
from datasets.windows import WindowSpec

Batch = Mapping[str, Tensor]


def arriving(
    given: Iterator[Batch], spec: WindowSpec, device: torch.device, as_raw: bool
) -> Iterator[tuple[Batch, dict[str, Tensor]]]:
    """Yields each batch of `given` as a pair: on the host, and on `device` with windows (n, channels,
    samples) float32.

    as_raw: `given` yields raw windows, which are prepared on the device (on a CPU with NumPy, as transform
    actors do). A thread works one batch ahead.
    """
    if device.type == "cuda":
        return _received(threaded(_sent(given, spec, device, as_raw)), device)
    return threaded(_prepared(given, spec, as_raw)) if as_raw else ((batch, dict(batch)) for batch in given)


def _prepared(
    given: Iterator[Batch], spec: WindowSpec, as_raw: bool
) -> Iterator[tuple[Batch, dict[str, Tensor]]]:
    for batch in given:
        windows = raw.prepared({name: x.numpy() for name, x in batch.items()}, spec)
        yield batch, _others(batch, spec) | {name: torch.from_numpy(x) for name, x in windows.items()}


def _others(batch: Batch, spec: WindowSpec) -> dict[str, Tensor]:
    """The columns of a batch of raw windows other than the windows."""
    left_out = {s.modality + part for s in spec.signals for part in ("", *raw.GAINS)}
    return {name: x for name, x in batch.items() if name not in left_out}


Sent = tuple[Batch, dict[str, Tensor], torch.cuda.Event]


def _sent(given: Iterator[Batch], spec: WindowSpec, device: torch.device, as_raw: bool) -> Iterator[Sent]:
    """Batches being copied on a side stream. Pinned memory comes from torch's pool, which reuses it only
    after the copy has finished."""
    from datasets import device as on_device

    side = torch.cuda.Stream(device)
    for batch in given:
        with torch.cuda.stream(side):
            plain = _others(batch, spec) if as_raw else batch
            there = {name: x.pin_memory().to(device, non_blocking=True) for name, x in plain.items()}
            if as_raw:
                there |= on_device.batch_on(device, spec, batch)
            yield batch, there, side.record_event()


def _received(given: Iterator[Sent], device: torch.device) -> Iterator[tuple[Batch, dict[str, Tensor]]]:
    for batch, there, done in given:
        main = torch.cuda.current_stream(device)
        main.wait_event(done)
        for x in there.values():
            x.record_stream(main)  # otherwise its memory could be reused while in use
        yield batch, there
