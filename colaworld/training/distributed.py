"""The processes that train together, as one object that the loop asks. Alone, it does nothing.

    processes = Distributed(device)      after torch.distributed.init_process_group, or without it
    model = processes.shard(model)       equal weights, shared statistics, the generator in pieces
    processes.agree(flag)                True where it is True on any process

Every method but the plain values is collective: all processes call it, in the same order.
Not here: who starts processes and initialises torch.distributed, and which batches each one reads.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from colaworld.config import ConfigError
from colaworld.models.latent_action.quantizers.step_stats import gather_rows
from colaworld.training.config import TrainingConfig
from colaworld.training.protocols import RunFolderError
from colaworld.training.sharding import SHARDED, is_sharded, shard_generator, wants_shards

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

T = TypeVar("T")
_BUCKET = 64 << 20  # bytes of gradients that are summed in one message


class Distributed:
    """All processes of torch.distributed's default group, or this one alone.

    Args:
        device: where they train.
        alone: leave other processes out.

    `group` and `mesh` (one dimension, "data") are None alone. Only the main process writes files.
    """

    def __init__(self, device: torch.device | str = "cpu", *, alone: bool = False) -> None:
        self.device = torch.device(device)
        self.rank, self.world_size = 0, 1
        self.group: dist.ProcessGroup | None = None
        self.mesh: DeviceMesh | None = None
        self._host: dist.ProcessGroup | None = None  # for what lives on the CPU: flags, objects
        if not alone and dist.is_available() and dist.is_initialized():
            self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
            self.group = dist.group.WORLD
            self.mesh = dist.init_device_mesh(
                self.device.type, (self.world_size,), mesh_dim_names=("data",)
            )
            gloo = "gloo" in dist.get_backend_config()
            self._host = self.group if gloo else dist.new_group(backend="gloo")

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks to the person."""
        return self.rank == 0

    # -- the model and its state -------------------------------------------------------------

    def shard(
        self, model: nn.Module, training: TrainingConfig | None = None, *, bf16: bool = False
    ) -> nn.Module:
        """`model` on the device for training by all processes, from the main one's values: replicated,
        the generator in pieces where `training.parallel` says so.

        Modules with a `set_process_group` (quantizers) get the group.

        Args:
            model: equal on all processes but for its values. One that is too large for a GPU comes on
                the CPU.
            training: its `parallel` and `compile`; None replicates.
            bf16: forward passes will be in bfloat16.

        Raises:
            ConfigError: the model cannot be sharded as asked.
        """
        if self.group is None:
            return model.to(self.device)
        sharded = training is not None and wants_shards(model, training.parallel, self.device.type)
        if not sharded:
            model.to(self.device)
        with torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                here = self._host if tensor.device.type == "cpu" else self.group
                dist.broadcast(tensor, src=0, group=here)
        if training is not None and sharded:
            if training.compile == "full":
                raise ConfigError(
                    "training.compile: expected no or blocks, got full: the video model is in pieces "
                    "(training.parallel.shard), which are gathered block by block"
                )
            shard_generator(model, self._sharding_mesh(training), training.parallel, bf16=bf16)
            for name, child in model.named_children():
                if name != SHARDED:
                    child.to(self.device)
        for module in model.modules():
            join: Any = getattr(module, "set_process_group", None)
            if join is not None:
                join(self.group)
        return model

    def _sharding_mesh(self, training: TrainingConfig) -> DeviceMesh:
        replicas = training.parallel.replicas
        if replicas == 1:
            assert self.mesh is not None
            return self.mesh
        if self.world_size % replicas:
            raise ConfigError(
                f"training.parallel.replicas: expected a divisor of the {self.world_size} processes, "
                f"got {replicas}"
            )
        return dist.init_device_mesh(
            self.device.type,
            (replicas, self.world_size // replicas),
            mesh_dim_names=("replicas", "data"),
        )

    @torch.no_grad()
    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by its mean over processes, once per step.

        A sharded parameter (DTensor) is passed over: its backward pass has reduced the gradient.
        The same parameters must have gradients on every process.
        """
        if self.group is None:
            return
        gradients = [p.grad for p in parameters if p.grad is not None and not is_sharded(p)]
        for bucket in _buckets(gradients):
            flat = torch.cat([g.flatten() for g in bucket])
            dist.all_reduce(flat, group=self.group)
            flat /= self.world_size
            parts = flat.split([g.numel() for g in bucket])
            torch._foreach_copy_(bucket, [p.view_as(g) for p, g in zip(parts, bucket, strict=True)])

    # -- numbers -----------------------------------------------------------------------------

    def mean(self, values: Tensor) -> Tensor:
        """The mean over processes, with the same bits on each. For decisions and for logs."""
        if self.group is None:
            return values
        total = values.clone()
        dist.all_reduce(total, group=self.group)
        return total / self.world_size

    def gather_rows(self, rows: Tensor) -> Tensor:
        """Rows [M, ...] of every process, in the order of the clips' slots: [M * world_size, ...].

        Row i of rank r becomes row i * world_size + r. Equal M everywhere.
        """
        return gather_rows(rows, self.group)

    # -- decisions and files -----------------------------------------------------------------

    def agree(self, flag: bool) -> bool:
        """True on every process as soon as `flag` is True on one."""
        if self._host is None:
            return flag
        raised = torch.tensor(int(flag))
        dist.all_reduce(raised, op=dist.ReduceOp.MAX, group=self._host)
        return bool(raised)

    def gather(self, value: T) -> list[T]:
        """A small plain value of every process, in rank order."""
        if self._host is None:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self._host)
        return values

    def on_main(self, call: Callable[[], T]) -> T:
        """Let the main process alone do something while the others wait.

        Returns on every process what `call()` returns there, and raises on every process what it
        raises, so that no process waits for one that has given up.
        """
        if self._host is None:
            return call()
        outcome: list[Any] = [None, None]
        if self.is_main:
            try:
                outcome[0] = call()
            except Exception as error:
                outcome[1] = _sendable(error)
        dist.broadcast_object_list(outcome, src=0, group=self._host)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    def on_each(self, call: Callable[[], T]) -> T:
        """Let every process do something of its own, in which none waits for another.

        Returns what `call()` returns here. Where it raises on one, all raise: that one what it met,
        the others the same in words (RunFolderError or what derives from it), with its rank.
        """
        if self._host is None:
            return call()
        result, error = None, None
        try:
            result = call()
        except Exception as caught:
            error = caught
        kind = type(error) if isinstance(error, RunFolderError) else RunFolderError
        failures = self.gather(None if error is None else (kind, str(error) or repr(error)))
        if error is not None:
            raise error
        for rank, failure in enumerate(failures):
            if failure is not None:
                kind, said = failure
                raise kind(f"process {rank}: {said}")
        return result  # type: ignore[return-value]

    def beside(self, timeout: float) -> Distributed:
        """The same processes for calls from another thread: they have a group of their own, in which each
        waits `timeout` seconds at most."""
        other = copy.copy(self)
        if self._host is not None:
            wait = timedelta(seconds=timeout)
            other._host = dist.new_group(backend="gloo", timeout=wait)
        return other

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self._host is not None:
            dist.barrier(group=self._host)


def _buckets(gradients: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """In order, of one dtype each, up to _BUCKET bytes: hundreds of small messages wait, few large flow."""
    bucket: list[Tensor] = []
    size = 0
    for gradient in gradients:
        other = bucket and bucket[0].dtype != gradient.dtype
        if bucket and (other or size + gradient.nbytes > _BUCKET):
            yield bucket
            bucket, size = [], 0
        bucket.append(gradient)
        size += gradient.nbytes
    if bucket:
        yield bucket


def _sendable(error: Exception) -> Exception:
    """The error as other processes can have it: of a class that cannot be made anew, the words."""
    try:
        pickle.loads(pickle.dumps(error))  # of our own making
    except Exception:
        return RunFolderError(f"{type(error).__name__}: {error}")
    return error


def whole_tensor(value: Any) -> Tensor:
    """All of a sharded tensor (collective), any other as it is."""
    return value.full_tensor() if is_sharded(value) else value


@torch.no_grad()
def zero_rows(value: Any, rows: Tensor) -> None:
    """Set rows [M] of `value` to 0, numbered over the whole tensor; each process zeroes its own."""
    if not is_sharded(value):
        value[rows] = 0
        return
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    chosen = torch.zeros(value.shape[0], dtype=torch.bool, device=rows.device)
    chosen[rows] = True
    placements = [p if p == Shard(0) else Replicate() for p in value.placements]
    own = distribute_tensor(chosen, value.device_mesh, placements, src_data_rank=None)
    value.to_local()[own.to_local()] = 0
