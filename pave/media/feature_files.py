"""Read and write feature files: side tokens as safetensors with their origin; read any tensor file safely."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pave import __version__
from pave.types import Question, SideTokens, UserError
from pave.utils.atomic import atomic_file

METADATA_KEY = "pave"
"""The only entry of the header: several would come in any order, and the same tokens make different files."""


@dataclass(frozen=True)
class Meta:
    """The origin of a feature file's tokens, stored in its header as one JSON text."""

    side: str
    extractor: str
    """Id of the encoder; a side reads only what its own encoders wrote."""
    source: str
    """File name of the video, or name of the folder."""
    options: str = "{}"
    """Of the side-channel, as JSON."""
    weights: str = ""
    """sha256 of the encoder's tensors."""
    source_bytes: str = ""
    source_sha256: str = ""
    pave_version: str = __version__


class TensorFile(NamedTuple):
    """Content of a safetensors file."""

    state: dict[str, Tensor]
    metadata: dict[str, str]


def write(path: Path, tokens: SideTokens, meta: Meta) -> None:
    """Write tokens in their own dtype, whole or not at all. Raises UserError where the disk refuses."""
    state = {"x": tokens.x} if tokens.seconds is None else {"x": tokens.x, "seconds": tokens.seconds}
    write_safetensors(path, TensorFile(state, {METADATA_KEY: json.dumps(asdict(meta))}))


def feature_file(folder: Path, question: Question) -> Path:
    """Path of a question's features below a folder: our file, else an official .pt file or folder; it may not exist.

    The last part of `folder` may hold `*`: some data sets have a folder for each split.
    """
    name = question.features or Path(question.video).stem
    folders = sorted(folder.parent.glob(folder.name)) if "*" in folder.name else []
    candidates = [path / (name + suffix) for suffix in (".safetensors", ".pt", "") for path in folders or [folder]]
    return next((file for file in candidates if file.exists()), candidates[0])


def read(path: Path, extractors: Sequence[str]) -> SideTokens:
    """Read tokens in float32. Raises UserError: no such file, not a feature file, or of another extractor."""
    state, metadata = read_safetensors(path)
    extractor = _parse_header(path, metadata).get("extractor")
    if extractor not in extractors:
        expected = " or ".join(f"'{name}'" for name in extractors)
        raise UserError(f"{path}: made by extractor '{extractor}', expected {expected}; run `pave extract` again")
    if "x" not in state:
        raise UserError(f"{path}: has tensors {sorted(state)}, expected 'x'; run `pave extract` again")
    return SideTokens(state["x"].float(), state["seconds"].float() if "seconds" in state else None)


def stored_dtype(path: Path) -> str:
    """Dtype of the stored tokens, as safetensors names it, e.g. F16."""
    with safe_open(path, framework="pt") as file:
        return str(file.get_slice("x").get_dtype())


def read_meta(path: Path) -> Meta:
    """Read the origin of a feature file's tokens. Raises UserError: no such file, not a feature file."""
    _must_exist(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise UserError(_broken(path, error)) from error

    header = _parse_header(path, metadata)
    names = [field.name for field in fields(Meta)]
    missing = [name for name in names if name not in header]
    if missing:
        raise UserError(f"{path}: its header lacks {', '.join(missing)}; run `pave extract` again")
    return Meta(*(header[name] for name in names))


def _parse_header(path: Path, metadata: dict[str, str]) -> dict[str, str]:
    try:
        header = json.loads(metadata.get(METADATA_KEY, "{}"))
    except ValueError as error:
        raise UserError(f"{path}: its header is not valid JSON ({error}); run `pave extract` again") from error
    return header if isinstance(header, dict) else {}


def check_tokens(tokens: SideTokens, path: Path, dim: int) -> None:
    """Raises UserError unless tokens are finite float[K,P,dim], K, P >= 1, with a time for each step or none at all."""
    shape = tuple(tokens.x.shape)
    if len(shape) != 3:
        raise UserError(f"{path}: tokens of shape {shape}, expected (steps, tokens, width); extract it again")
    if not tokens.x.numel():
        raise UserError(f"{path}: tokens of shape {shape} are empty; extract it again or leave the video out")

    if shape[2] != dim:
        raise UserError(
            f"{path}: tokens of width {shape[2]}, this patch needs {dim}; extract with the encoder it names"
        )
    if not torch.isfinite(tokens.x).all():
        raise UserError(f"{path}: tokens hold NaN or infinity; extract it again")
    if tokens.seconds is not None and tokens.seconds.shape != shape[:1]:
        raise UserError(f"{path}: {len(tokens.seconds)} times for {shape[0]} steps; extract it again")


def write_safetensors(path: Path, content: TensorFile) -> None:
    """Write tensors with metadata, whole or not at all. Raises UserError where the disk refuses."""
    data = save({name: t.detach().cpu().contiguous() for name, t in content.state.items()}, content.metadata)
    try:
        with atomic_file(path) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}; free space or choose another folder") from error


def read_safetensors(path: Path) -> TensorFile:
    """Read all tensors and the metadata. Raises UserError: no such file, cut off or of another kind."""
    _must_exist(path)
    try:
        with safe_open(path, framework="pt") as file:
            return TensorFile({name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {})  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(_broken(path, error)) from error


def _broken(path: Path, error: Exception) -> str:
    return f"{path}: not a whole safetensors file: {error}; make or download it again"


def read_torch(path: Path) -> Any:
    """Read tensors and plain containers from a .pt or .pth file. Raises UserError: no such file, cut off or other."""
    _must_exist(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, RuntimeError, EOFError, LookupError, ValueError, AssertionError) as error:
        # Broken bytes may lead the unpickler anywhere.
        raise UserError(f"{path}: not a whole file of plain tensors; make or download it again") from error


def _must_exist(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"{path}: no such file")
