"""`pave extract`: from a folder of media to a store, one feature file an item, that says where each came from."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from tqdm import tqdm

from pave import config as configs
from pave.data import visual_token_cache
from pave.media import feature_files
from pave.media.worker_pool import read_all
from pave.sides.base import SideChannel, get_side
from pave.types import MediaItem, SideTokens, UserError
from pave.utils.atomic import write_text
from pave.utils.json_files import read_json

log = logging.getLogger(__name__)

MANIFEST = "store.json"
EXPECTED = "what `pave extract` writes into its folder"
MANIFEST_KEYS = ("side", "extractor", "options", "weights", "dtype")
"""What is the same for all feature files of a store."""
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


class Settings(NamedTuple):
    """How the work is done; nothing of it changes a feature but `dtype`."""

    device: str = "cpu"
    workers: int = 1
    """Processes that decode; 0 decodes in this one, where a broken file may end the run."""
    timeout: float = 600
    """Seconds for reading one item."""
    dtype: str = "float16"
    """Of the stored tokens."""


DEFAULT = Settings()


class Source(NamedTuple):
    """The encoder's inputs from one item, and the bytes they came from."""

    inputs: Any
    bytes: int
    sha256: str


class Outcome(NamedTuple):
    """Messages about items, by the name of the item."""

    failures: dict[str, str]
    notes: dict[str, str]


def main(
    side_name: str,
    source: Path,
    out: Path,
    weights: str,
    overrides: Sequence[str] = (),
    settings: Settings = DEFAULT,
    part: tuple[int, int] = (0, 1),
) -> int:
    """Write out/NAME.safetensors for this part (i of n) of the items of a folder or list; finished ones are kept.

    Returns how many were written; failures.jsonl names each item that failed, notes.jsonl what was unusual.
    Raises UserError for a store of other features, and at the end if any item failed.
    """
    side = side_to_extract(side_name)
    options = configs.options(side.options_type, overrides)
    all_items = list_items(side, source)
    items = all_items[part[0] :: part[1]]

    encoder = side.build(Path(configs.resolve(weights)), options, torch.device(settings.device)).eval()
    options_json = json.dumps(dataclasses.asdict(options), sort_keys=True)
    meta = feature_files.Meta(side_name, side.extractor(options), "", options_json, encoder_hash(encoder))
    _claim_store(out, meta, settings.dtype)

    pending = [item for item in items if not is_extracted(out, item)]
    done = len(items) - len(pending)
    log.info("%d items, %d of them here, %d already extracted", len(all_items), len(items), done)
    outcome = _extract(pending, side, options, encoder, meta, out, settings)
    _write_lines(out, "failure", outcome.failures, part)
    _write_lines(out, "note", outcome.notes, part)

    if outcome.failures:
        count, first = len(outcome.failures), next(iter(outcome.failures.values()))
        raise UserError(f"{out}: {count} of {len(pending)} items failed, named in failures.jsonl, as: {first}")
    return len(pending)


def _extract(
    items: Sequence[MediaItem],
    side: SideChannel,
    options: Any,
    encoder: nn.Module,
    meta: feature_files.Meta,
    out: Path,
    settings: Settings,
) -> Outcome:
    """Encode and store items while worker processes read the next ones; a failure does not end the run."""
    outcome = Outcome({}, {})
    read = partial(_read, side.reader(encoder, options))
    waiting = 0.0
    start = last = time.perf_counter()

    with tqdm(total=len(items), desc=f"extract {meta.side}", unit="item") as bar:
        for item, source in read_all(read, items, settings.workers, settings.timeout):
            waiting += time.perf_counter() - last
            try:
                if isinstance(source, UserError):
                    raise source
                tokens = side.encode(source.inputs, encoder, options)
                tokens = _converted(tokens, item.path, DTYPES[settings.dtype])
            except UserError as error:
                outcome.failures[item.name] = str(error)
                log.warning("%s", error)
            else:
                source_meta = {"source_bytes": str(source.bytes), "source_sha256": source.sha256}
                item_meta = dataclasses.replace(meta, source=item.path.name, **source_meta)
                feature_files.write(feature_path(out, item), tokens, item_meta)
                if note := side.note(source.inputs):
                    outcome.notes[item.name] = note
            bar.update()
            last = time.perf_counter()

    share = waiting / max(time.perf_counter() - start, 1e-9)
    written = len(items) - len(outcome.failures)
    log.info("%d written; the encoder waited for files %.0f %% of the time", written, 100 * share)
    return outcome


def side_to_extract(name: str) -> SideChannel:
    """The side-channel of a name, or for `video` the key frames themselves. Raises UserError: unknown."""
    return visual_token_cache.SideChannel() if name == "video" else get_side(name)


def list_items(side: SideChannel, source: Path) -> list[MediaItem]:
    """List what a side extracts from a folder or list, by name. Raises UserError: nothing, or one name twice."""
    if source.is_file():
        items = _read_list(source)
    elif source.is_dir():
        items = sorted(side.find_items(source))
    else:
        raise UserError(f"{source}: no such folder or list")
    if not items:
        raise UserError(f"{source}: nothing to extract; see `pave extract --help` for what this side reads")

    for item, following in itertools.pairwise(items):
        if item.name == following.name:
            raise UserError(
                f"{item.path} and {following.path}: both would be '{item.name}'; give one, or a list of names"
            )
    return items


def _read_list(file: Path) -> list[MediaItem]:
    """One path a line, relative to the list; after a tab the name, by default the file's own."""
    items = []
    for line in file.read_text().splitlines():
        if line.strip():
            path, *names = line.split("\t")
            items.append(MediaItem(names[0] if names else Path(path).stem, file.parent / path))
    return sorted(items)


def feature_path(out: Path, item: MediaItem) -> Path:
    """The feature file of an item."""
    return out / f"{item.name}.safetensors"


def is_extracted(out: Path, item: MediaItem) -> bool:
    """Whether the store holds this item, made from a source of the size it has now."""
    path = feature_path(out, item)
    if not path.exists():
        return False
    try:
        meta = feature_files.read_meta(path)
    except UserError as error:  # cut off or foreign: it is made again
        log.warning("%s", error)
        return False
    return meta.source_bytes == str(_size(item.path))


def encoder_hash(encoder: nn.Module) -> str:
    """sha256 of all tensors of an encoder, whatever file they came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def process_part(environment: Mapping[str, str]) -> tuple[int, int]:
    """This process's part, i of n, under torchrun or in a SLURM array; elsewhere everything, 0 of 1."""
    if "RANK" in environment:
        return int(environment["RANK"]), int(environment["WORLD_SIZE"])
    if "SLURM_ARRAY_TASK_ID" in environment:
        first = int(environment["SLURM_ARRAY_TASK_MIN"])
        return int(environment["SLURM_ARRAY_TASK_ID"]) - first, int(environment["SLURM_ARRAY_TASK_COUNT"])
    return 0, 1


def _read(read: Callable[[Path], Any], item: MediaItem) -> Source:
    """In a worker process."""
    return Source(read(item.path), _size(item.path), file_hash(item.path))


def file_hash(path: Path) -> str:
    """sha256 of a file; of a folder, which may hold gigabytes, that of the names and sizes in it."""
    digest = hashlib.sha256()
    if path.is_dir():
        for file in _files_below(path):
            digest.update(f"{file.relative_to(path).as_posix()} {file.stat().st_size}\n".encode())
        return digest.hexdigest()

    with path.open("rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _files_below(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


def _size(path: Path) -> int:
    """Bytes of a file or of all files of a folder; 0 if there is none."""
    if path.is_dir():
        return sum(file.stat().st_size for file in _files_below(path))
    return path.stat().st_size if path.exists() else 0


def _claim_store(out: Path, meta: feature_files.Meta, dtype: str) -> None:
    """Write the manifest of a new store. Raises UserError if the store holds features of another kind."""
    path = out / MANIFEST
    expected = {**dataclasses.asdict(meta), "dtype": dtype}
    if path.exists():
        actual = read_json(path, "the manifest of a store of features", MANIFEST_KEYS)
        different = [f"{key} {actual[key]}" for key in MANIFEST_KEYS if actual[key] != expected[key]]
        if different:
            raise UserError(
                f"{path}: this store holds features with {', '.join(different)}; choose another folder, or delete "
                "this one"
            )
        return

    for file in out.glob("*"):
        if file.suffix in (".safetensors", ".pt"):
            raise UserError(
                f"{file}: features are there that have no {MANIFEST} to tell what they are; choose another folder"
            )
    write_text(path, json.dumps(expected, indent=1))


def _converted(tokens: SideTokens, path: Path, dtype: torch.dtype) -> SideTokens:
    """Tokens in the type of the store, in which a value may be too large. Raises UserError for infinity and NaN."""
    tokens = tokens._replace(x=tokens.x.to(dtype))
    feature_files.check_tokens(tokens, path, tokens.x.shape[-1])
    return tokens


def _write_lines(out: Path, kind: str, texts: Mapping[str, str], part: tuple[int, int]) -> None:
    """Write out/KINDs.jsonl, or one a part; an older file goes."""
    path = out / (f"{kind}s.jsonl" if part[1] == 1 else f"{kind}s-{part[0]}.jsonl")
    path.unlink(missing_ok=True)
    if texts:
        write_text(path, "".join(json.dumps({"item": name, kind: text}) + "\n" for name, text in texts.items()))
