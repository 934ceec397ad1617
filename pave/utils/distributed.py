"""Run in several processes: join the other ranks, and gather parameters that are sharded over them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from accelerate import DistributedType
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import TrainingArguments
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from pave.types import UserError


def join_ranks(arguments: TrainingArguments) -> str:
    """Join the other ranks and take this one's device, which loading the base relies on; returns a line about them.

    Raises UserError for several GPUs in one process, whose batches cannot be split.
    """
    device = arguments.device
    if device.type == "cpu":
        _prepare_cpu_rank(arguments)
    if arguments.n_gpu > 1:
        raise UserError(f"{arguments.n_gpu} GPUs but one process; start with scripts/train.sh, or hide all but one GPU")
    return f"{arguments.world_size} process(es), this one on {device}"


def _prepare_cpu_rank(arguments: TrainingArguments) -> None:
    """Do for CPU ranks what the Trainer does for GPU ranks alone."""
    if arguments.fsdp:
        # Else accelerate leaves FSDP out without a word: it shards only over GPUs.
        arguments.distributed_state.distributed_type = DistributedType.MULTI_GPU
    if arguments.deepspeed:
        import deepspeed

        deepspeed.init_distributed("gloo", auto_mpi_discovery=False)


def are_sharded(arguments: TrainingArguments) -> bool:
    """Whether each rank holds a part of every parameter; then all must call the same modules equally often."""
    return bool(arguments.fsdp) or is_deepspeed_zero3_enabled()


@contextmanager
def gathered(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Gather parameters that ZeRO-3 or FSDP2 shards, to be read inside. All ranks must enter."""
    if is_deepspeed_zero3_enabled():
        import deepspeed

        with deepspeed.zero.GatheredParameters(list(parameters.values())):
            yield
        return

    sharded = {name: parameter for name, parameter in parameters.items() if isinstance(parameter, DTensor)}
    for name, parameter in sharded.items():
        _set_parameter(model, name, nn.Parameter(parameter.full_tensor().detach(), requires_grad=False))
    yield
    for name, parameter in sharded.items():
        _set_parameter(model, name, parameter)


@contextmanager
def gathered_for_writing(tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Gather tensors that ZeRO-3 shards, to be written inside. All ranks must enter and write the same values."""
    if is_deepspeed_zero3_enabled():
        import deepspeed

        with deepspeed.zero.GatheredParameters(list(tensors.values()), modifier_rank=0):
            yield
        return
    yield


def _set_parameter(model: nn.Module, name: str, parameter: nn.Parameter) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, parameter)
