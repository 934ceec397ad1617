"""The tensors of one encoder out of a checkpoint of more, whatever form it has; what else it holds is not read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pave.media import feature_files
from pave.types import UserError

Rename = Callable[[str], str | None]
"""The name that an encoder has for a tensor of a checkpoint, None for those of others."""

FILES = ("model.safetensors", "pytorch_model.bin")


def select(path: Path, rename: Rename) -> dict[str, Tensor]:
    """Copies in float32 of the tensors of a file, or of a folder with one file or parts with an index.

    UserError: no such file or folder, a part of it missing or damaged, no weights in it.
    """
    state: dict[str, Tensor] = {}
    for part in parts(path, rename):
        state |= {name: tensor.to(torch.float32, copy=True) for name, tensor in part.items()}
    return state


def parts(path: Path, rename: Rename) -> Iterator[dict[str, Tensor]]:
    """The same file by file, as they are stored."""
    for file in _parts(path, rename):
        yield dict(_tensors(file, rename))


def config(path: Path) -> dict[str, Any]:
    """config.json of a checkpoint folder, or beside a file; {} where there is none. UserError: not JSON."""
    file = (path if path.is_dir() else path.parent) / "config.json"
    return _json(file) if file.is_file() else {}


def layers(names: Iterable[str]) -> int:
    """How many `encoder.layers.N` are among the names."""
    return len({name.split(".")[2] for name in names if name.startswith("encoder.layers.")})


def check(path: Path, what: str, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """UserError naming tensors that are missing, left over or of the wrong shape."""
    problems = {
        "missing": sorted(wanted.keys() - found.keys()),
        "unexpected": sorted(found.keys() - wanted.keys()),
        "misshapen": sorted(n for n in wanted.keys() & found.keys() if wanted[n].shape != found[n].shape),
    }
    if any(problems.values()):
        text = "; ".join(f"{len(n)} {kind}, such as {', '.join(n[:3])}" for kind, n in problems.items() if n)
        raise UserError(f"{path}: not {what}: {text}; give the checkpoint as published")


def _parts(path: Path, rename: Rename) -> list[Path]:
    if not path.is_dir():
        return [path]
    for name in FILES:
        if (path / name).is_file():
            return [path / name]
        index = path / f"{name}.index.json"
        if index.is_file():
            places = _json(index).get("weight_map")
            if not isinstance(places, dict):
                raise UserError(f"{index}: has no weight_map; download it again")
            return sorted({path / file for tensor, file in places.items() if rename(tensor)})
    raise UserError(f"{path}: no weights in it; expected {' or '.join(FILES)}, or their parts with an index")


def _tensors(file: Path, rename: Rename) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of one file; those of a .bin stay on the disk until they are copied."""
    if file.suffix == ".safetensors" and file.is_file():
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118
                    if new := rename(name):
                        yield new, tensors.get_tensor(name)
        except SafetensorError as error:
            raise UserError(f"{file}: not a whole safetensors file: {error}; download it again") from error
        return
    state = feature_files.read_torch(file)
    if not isinstance(state, dict):
        raise UserError(f"{file}: holds a {type(state).__name__}, expected named tensors")
    for name, tensor in state.items():
        if isinstance(tensor, Tensor) and (new := rename(name)):
            yield new, tensor


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        raise UserError(f"{file}: not valid JSON: {error}; download it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{file}: holds a {type(content).__name__}, expected settings by name; download it again")
    return content
