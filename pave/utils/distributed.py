"""Several processes: how they must be started, and parameters that are split over them made whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from accelerate import DistributedType
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import TrainingArguments
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from pave.types import UserError


def join(arguments: TrainingArguments) -> str:
    """Join the other ranks and take this one's device, which loading the base relies on; says what there is.

    Raises UserError for several GPUs in one process: its batches cannot be split.
    """
    device = arguments.device
    if device.type == "cpu":
        _rehearse(arguments)
    if arguments.n_gpu > 1:
        raise UserError(f"{arguments.n_gpu} GPUs but one process; start with scripts/train.sh, or hide all but one GPU")
    return f"{arguments.world_size} process(es), this one on {device}"


def _rehearse(arguments: TrainingArguments) -> None:
    """What CPU ranks need beyond what the Trainer does for GPU ranks."""
    if arguments.fsdp:
        # Else accelerate leaves FSDP out without a word: it shards only over what it takes for GPUs.
        arguments.distributed_state.distributed_type = DistributedType.MULTI_GPU
    if arguments.deepspeed:
        import deepspeed

        deepspeed.init_distributed("gloo", auto_mpi_discovery=False)


def are_split(arguments: TrainingArguments) -> bool:
    """Whether each rank holds a part of every parameter, so that all must call the same modules equally often."""
    return bool(arguments.fsdp) or is_deepspeed_zero3_enabled()


@contextmanager
def whole(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Inside, parameters that ZeRO-3 or FSDP2 split are whole on every rank, to be read. All ranks must come along."""
    if is_deepspeed_zero3_enabled():
        import deepspeed

        with deepspeed.zero.GatheredParameters(list(parameters.values())):
            yield
        return
    split = {name: p for name, p in parameters.items() if isinstance(p, DTensor)}
    for name, parameter in split.items():
        _put(model, name, nn.Parameter(parameter.full_tensor().detach(), requires_grad=False))
    yield
    for name, parameter in split.items():
        _put(model, name, parameter)


@contextmanager
def writable(tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, what ZeRO-3 split as the base was loaded is whole. All ranks must come along, with one value."""
    if is_deepspeed_zero3_enabled():
        import deepspeed

        with deepspeed.zero.GatheredParameters(list(tensors.values()), modifier_rank=0):
            yield
        return
    yield


def _put(model: nn.Module, name: str, parameter: nn.Parameter) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, parameter)
