"""The tensors of one encoder out of a checkpoint of any form; what else the checkpoint holds is not read."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from pave.media import feature_files
from pave.types import UserError
from pave.utils.json_files import read_json

M = TypeVar("M", bound=nn.Module)
Rename = Callable[[str], str | None]
"""The name that an encoder has for a tensor of a checkpoint, None for those of others."""

FILES = ("model.safetensors", "pytorch_model.bin")
EXPECTED = "a file of a published checkpoint; download it again"


def after_prefix(prefixes: Sequence[str], unused: str = r"(?!)") -> Rename:
    """Rename tensors to what follows one of the prefixes; those whose new name matches `unused` are left out."""

    def rename(name: str) -> str | None:
        for prefix in prefixes:
            if name.startswith(prefix):
                new_name = name.removeprefix(prefix)
                return None if re.search(unused, new_name) else new_name
        return None

    return rename


def select(path: Path, rename: Rename) -> dict[str, Tensor]:
    """Copy, in float32, the tensors of a file, or of a folder with one file or parts with an index.

    Raises UserError: no such file or folder, a part of it missing or damaged, no weights in it.
    """
    state: dict[str, Tensor] = {}
    for part in parts(path, rename):
        state |= {name: tensor.to(torch.float32, copy=True) for name, tensor in part.items()}
    return state


def parts(path: Path, rename: Rename) -> Iterator[dict[str, Tensor]]:
    """Yield the same tensors file by file, as they are stored."""
    for file in _weight_files(path, rename):
        yield dict(_read_tensors(file, rename))


def config(path: Path) -> dict[str, Any]:
    """Read config.json of a checkpoint folder, or beside a file; {} where there is none. Raises UserError."""
    file = (path if path.is_dir() else path.parent) / "config.json"
    return read_json(file, EXPECTED) if file.is_file() else {}


def count_layers(names: Iterable[str]) -> int:
    """How many `encoder.layers.N` are among the names."""
    return len({name.split(".")[2] for name in names if name.startswith("encoder.layers.")})


def check(path: Path, encoder: str, actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise UserError naming tensors that are missing, unexpected or misshapen."""
    common = actual.keys() & expected.keys()
    problems = {
        "missing": sorted(expected.keys() - actual.keys()),
        "unexpected": sorted(actual.keys() - expected.keys()),
        "misshapen": sorted(name for name in common if expected[name].shape != actual[name].shape),
    }
    if any(problems.values()):
        text = "; ".join(f"{len(n)} {kind}, such as {', '.join(n[:3])}" for kind, n in problems.items() if n)
        raise UserError(f"{path}: not {encoder}: {text}; give the checkpoint as published")


def fill(module: M, path: Path, encoder: str, state: Mapping[str, Tensor]) -> M:
    """Put tensors into a module, which may lie on the meta device, in eval mode. Raises UserError as `check`."""
    check(path, encoder, state, module.state_dict())
    module.load_state_dict(state, assign=True)
    return module.eval()


def _weight_files(path: Path, rename: Rename) -> list[Path]:
    if not path.is_dir():
        return [path]

    for name in FILES:
        if (path / name).is_file():
            return [path / name]
        index = path / f"{name}.index.json"
        if index.is_file():
            file_names = read_json(index, EXPECTED).get("weight_map")
            if not isinstance(file_names, dict):
                raise UserError(f"{index}: has no table 'weight_map'; expected {EXPECTED}")
            return sorted({path / file for tensor, file in file_names.items() if rename(tensor)})
    raise UserError(f"{path}: no weights in it; expected {' or '.join(FILES)}, or their parts with an index")


def _read_tensors(file: Path, rename: Rename) -> Iterator[tuple[str, Tensor]]:
    """New names and tensors of one file; those of a .bin stay on the disk until they are copied."""
    if file.suffix == ".safetensors" and file.is_file():
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118
                    if new_name := rename(name):
                        yield new_name, tensors.get_tensor(name)
        except SafetensorError as error:
            raise UserError(f"{file}: not a whole safetensors file: {error}; download it again") from error
        return

    state = feature_files.read_torch(file)
    if not isinstance(state, dict):
        raise UserError(f"{file}: holds a {type(state).__name__}, expected named tensors")
    for name, tensor in state.items():
        if isinstance(tensor, Tensor) and (new_name := rename(name)):
            yield new_name, tensor
