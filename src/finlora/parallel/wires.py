"""What processes tell each other: sums in few large messages, tensors by name, a value from the first to all."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist

from ..errors import FinloraError

BUCKET = 1 << 25  # bytes of one message
ASK = 0.05  # seconds between two looks at what the first process has done
_TOLD = itertools.count()

Named = dict[str, dict[str, torch.Tensor]]  # group -> name -> tensor


def _buckets(tensors: Iterable[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Tensors of one type and device, as many as fill a message."""
    held: dict[tuple, list[torch.Tensor]] = {}
    sizes: dict[tuple, int] = {}
    for t in tensors:
        key = (t.dtype, t.device)
        held.setdefault(key, []).append(t)
        sizes[key] = sizes.get(key, 0) + t.nbytes
        if sizes[key] >= BUCKET:
            yield held.pop(key)
            del sizes[key]
    yield from held.values()


@torch.no_grad()
def _each(tensors: Iterable[torch.Tensor], exchange: Callable[[torch.Tensor], Any]) -> None:
    for some in _buckets(tensors):
        flat = torch.cat([t.reshape(-1) for t in some])
        exchange(flat)
        for t, part in zip(some, flat.split([t.numel() for t in some])):
            t.copy_(part.view_as(t))


def add_up(tensors: Iterable[torch.Tensor], group: Any = None) -> None:
    """Replace each tensor, in place, by its sum over the processes of `group`."""
    _each(tensors, lambda flat: dist.all_reduce(flat, group=group))


def broadcast(tensors: Iterable[torch.Tensor]) -> None:
    """Give all processes the first one's values, in place."""
    _each([t.detach() for t in tensors], lambda flat: dist.broadcast(flat, src=0))


def totals(values: Iterable[float], group: Any = None, largest: bool = False) -> list[float]:
    """The sums of a few numbers (or the largest of each) over the processes of `group`, in float64."""
    table = torch.tensor(list(values), dtype=torch.float64, device=_device())
    dist.all_reduce(table, op=dist.ReduceOp.MAX if largest else dist.ReduceOp.SUM, group=group)
    return table.tolist()


def _device() -> torch.device:
    """Where a small message lies: the GPU where there is one, since NCCL's groups know no other."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def told(work: Callable[[], Any] | None, store: Any = None) -> Any:
    """What `work()` gives in the first process, in all of them (`None` stands in the others); a FinloraError is told too.

    store: what the others ask until the work is done, however long it takes: a collective gives up after the group's timeout.
    """
    box: list[Any] = [None]
    failed: FinloraError | None = None
    done = f"told {next(_TOLD)}"
    if work is not None:
        try:
            box = [(True, work())]
        except FinloraError as error:
            failed, box = error, [(False, (error.message, error.hint))]
        finally:
            if store is not None:
                store.set(done, "yes")
    while store is not None and not store.check([done]):
        time.sleep(ASK)
    dist.broadcast_object_list(box, src=0)
    if failed is not None:
        raise failed
    fine, value = box[0]
    if not fine:
        raise FinloraError(*value)
    return value


def agree(value: Any) -> None:
    """Raises: FinloraError in every process where `value` reads differently in any two of them."""
    texts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(texts, repr(value))
    odd = [rank for rank, text in enumerate(texts) if text != texts[0]]
    if odd:
        raise FinloraError(f"process {odd[0]} has another model, other settings or other examples than process 0", "start all from the same spec and the same data")


def collected(named: Named, sends: bool) -> Named:
    """All that processes with `sends` have, merged, in the first process (which must be one of them); nothing elsewhere.

    named: on the CPU. Where several have a tensor of one name, the first process of them is heard.
    """
    rank, size = dist.get_rank(), dist.get_world_size()
    own = [(group, name, tuple(t.shape), t.dtype) for group, some in named.items() for name, t in some.items()] if sends else []
    lists: list[Any] | None = [None] * size if rank == 0 else None
    dist.gather_object(own, lists, dst=0)
    if rank:
        for group, name, _, _ in own:
            if (value := named[group][name]).numel():
                dist.send(_bytes(value), dst=0)
        return {}
    assert lists is not None
    out = {group: dict(some) for group, some in named.items()}
    for other in range(1, size):
        for group, name, shape, dtype in lists[other]:
            value = torch.empty(shape, dtype=dtype)
            if value.numel():
                dist.recv(_bytes(value), src=other)
            out.setdefault(group, {}).setdefault(name, value)
    return out


def _bytes(value: torch.Tensor) -> torch.Tensor:
    """Any tensor as a line of bytes, which every backend can send."""
    return value.detach().contiguous().reshape(-1).view(torch.uint8)
