"""`pave extract`: from a folder of media to a store, one feature file an item, that says where each came from."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from tqdm import tqdm

from pave import config as configs
from pave.data import visual_token_cache
from pave.media import feature_files
from pave.media.worker_pool import read_all
from pave.types import Item, SideTokens, UserError
from pave.utils import registry
from pave.utils.atomic import atomic_file

log = logging.getLogger(__name__)
VIDEOS = {".mp4", ".avi", ".mkv", ".webm", ".mov", ".mpg", ".mpeg", ".gif", ".flv", ".ts"}
MANIFEST = "store.json"
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
    """What was read of an item."""

    inputs: Any
    bytes: int
    sha256: str


def main(
    side: str,
    source: Path,
    out: Path,
    weights: str,
    options: Sequence[str] = (),
    settings: Settings = DEFAULT,
    part: tuple[int, int] = (0, 1),
) -> int:
    """Write out/NAME.safetensors for this part (i of n) of the items of a folder or list; what is there is kept.

    Returns how many were written. UserError for a store of other features, and at the end if any item failed;
    failures.jsonl names each, notes.jsonl what was unusual.
    """
    plugin = plugin_of(side)
    chosen = configs.options(plugin.Options, options)
    found = items(plugin, source)
    mine = found[part[0] :: part[1]]
    encoder = plugin.build(Path(configs.resolve(weights)), chosen, torch.device(settings.device)).eval()
    meta = feature_files.Meta(
        side, plugin.extractor(chosen), "", json.dumps(dataclasses.asdict(chosen), sort_keys=True), fingerprint(encoder)
    )
    _claim(out, meta, settings.dtype)
    todo = [item for item in mine if not is_done(out, item)]
    log.info("%d items, %d of them here, %d already extracted", len(found), len(mine), len(mine) - len(todo))
    failures, notes, waited = {}, {}, 0.0
    start = mark = time.perf_counter()
    read = functools.partial(_read, plugin.reader(encoder, chosen))
    bar = tqdm(total=len(todo), desc=f"extract {side}", unit="item")
    for item, got in read_all(read, todo, settings.workers, settings.timeout):
        waited += time.perf_counter() - mark
        try:
            if isinstance(got, UserError):
                raise got
            tokens = _stored(plugin.encode(got.inputs, encoder, chosen), item.path, DTYPES[settings.dtype])
        except UserError as error:
            failures[item.name] = str(error)
            log.warning("%s", error)
        else:
            feature_files.write(target(out, item), tokens, _made(meta, item, got))
            if hasattr(plugin, "note") and (note := plugin.note(got.inputs)):
                notes[item.name] = note
        bar.update()
        mark = time.perf_counter()
    bar.close()
    share = waited / max(time.perf_counter() - start, 1e-9)
    log.info("%d written; the encoder waited for files %.0f %% of the time", len(todo) - len(failures), 100 * share)
    _report(out, "failures", failures, part)
    _report(out, "notes", notes, part)
    if failures:
        first = next(iter(failures.values()))
        raise UserError(f"{out}: {len(failures)} of {len(todo)} items failed, named in failures.jsonl, as: {first}")
    return len(todo)


def plugin_of(side: str) -> Any:
    """The plugin of a side-channel, or what keeps the tokens of the key frames themselves. UserError: unknown."""
    return visual_token_cache if side == "video" else registry.load("sides", side)


def items(plugin: Any, source: Path) -> list[Item]:
    """What a side extracts from a folder or list, by name. UserError if there is nothing or a name comes twice."""
    if source.is_file():
        found = _listed(source)
    elif not source.is_dir():
        raise UserError(f"{source}: no such folder or list")
    else:
        found = sorted(plugin.find(source) if hasattr(plugin, "find") else videos(source))
    if not found:
        raise UserError(f"{source}: nothing to extract; see `pave extract --help` for what this side reads")
    for item, following in itertools.pairwise(found):
        if item.name == following.name:
            raise UserError(
                f"{item.path} and {following.path}: both would be '{item.name}'; give one, or a list of names"
            )
    return found


def videos(folder: Path) -> list[Item]:
    """All videos below a folder, named by their path below it without suffix."""
    files = (f for f in folder.rglob("*") if f.suffix.lower() in VIDEOS and not f.name.startswith("."))
    return [Item(f.relative_to(folder).with_suffix("").as_posix(), f) for f in files]


def _listed(file: Path) -> list[Item]:
    """One path a line, relative to the list; after a tab the name, which else is the file's own."""
    rows = [line.split("\t") for line in file.read_text().splitlines() if line.strip()]
    return sorted(Item(row[1] if len(row) > 1 else Path(row[0]).stem, file.parent / row[0]) for row in rows)


def target(out: Path, item: Item) -> Path:
    """The feature file of an item."""
    return out / f"{item.name}.safetensors"


def is_done(out: Path, item: Item) -> bool:
    """Whether the store holds this item, made from a source of the size it has now."""
    path = target(out, item)
    if not path.exists():
        return False
    try:
        made = feature_files.read_meta(path)
    except UserError as error:
        log.warning("%s", error)
        return False
    return made.source_bytes == str(_size(item.path))


def fingerprint(encoder: nn.Module) -> str:
    """sha256 of all tensors of an encoder, whatever file they came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def parts(environment: Mapping[str, str]) -> tuple[int, int]:
    """This process's part: i of n under torchrun, or in a SLURM array; the whole elsewhere."""
    if "RANK" in environment:
        return int(environment["RANK"]), int(environment["WORLD_SIZE"])
    if "SLURM_ARRAY_TASK_ID" in environment:
        first = int(environment["SLURM_ARRAY_TASK_MIN"])
        return int(environment["SLURM_ARRAY_TASK_ID"]) - first, int(environment["SLURM_ARRAY_TASK_COUNT"])
    return 0, 1


def _read(read: Callable[[Path], Any], item: Item) -> Source:
    """In a worker process: the inputs of the encoder, and which bytes they came from."""
    return Source(read(item.path), _size(item.path), _digest(item.path))


def _digest(path: Path) -> str:
    """sha256 of a file; of a folder, which may hold gigabytes, that of the names and sizes in it."""
    if path.is_dir():
        listing = "".join(f"{f.relative_to(path).as_posix()} {f.stat().st_size}\n" for f in _files(path))
        return hashlib.sha256(listing.encode()).hexdigest()
    with path.open("rb") as handle:
        digest = hashlib.sha256()
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _files(folder: Path) -> list[Path]:
    return sorted(f for f in folder.rglob("*") if f.is_file())


def _size(path: Path) -> int:
    """Bytes of a file or of all files of a folder; 0 if there is none."""
    if path.is_dir():
        return sum(file.stat().st_size for file in _files(path))
    return path.stat().st_size if path.exists() else 0


def _claim(out: Path, meta: feature_files.Meta, dtype: str) -> None:
    """One store holds features of one kind. UserError if this one holds another."""
    path = out / MANIFEST
    text = json.dumps({**dataclasses.asdict(meta), "dtype": dtype}, indent=1)
    if path.exists():
        theirs, ours = json.loads(path.read_text()), json.loads(text)
        other = [k for k in ("side", "extractor", "options", "weights", "dtype") if theirs[k] != ours[k]]
        if other:
            was = ", ".join(f"{k} {theirs[k]}" for k in other)
            raise UserError(f"{path}: this store holds features with {was}; choose another folder, or delete this one")
        return
    if strange := next((file for file in out.glob("*") if file.suffix in (".safetensors", ".pt")), None):
        raise UserError(
            f"{strange}: features are there that have no {MANIFEST} to tell what they are; choose another folder"
        )
    with atomic_file(path) as temporary:
        temporary.write_text(text)


def _stored(tokens: SideTokens, path: Path, dtype: torch.dtype) -> SideTokens:
    """In the type of the store, in which a value may be too large. UserError where they are no tokens."""
    tokens = tokens._replace(x=tokens.x.to(dtype))
    feature_files.check(tokens, path, tokens.x.shape[-1])
    return tokens


def _made(meta: feature_files.Meta, item: Item, got: Source) -> feature_files.Meta:
    return dataclasses.replace(meta, source=item.path.name, source_bytes=str(got.bytes), source_sha256=got.sha256)


def _report(out: Path, kind: str, lines: Mapping[str, str], part: tuple[int, int]) -> None:
    """out/KIND.jsonl, or one a part; an older one goes."""
    path = out / (f"{kind}.jsonl" if part[1] == 1 else f"{kind}-{part[0]}.jsonl")
    path.unlink(missing_ok=True)
    if lines:
        text = "".join(json.dumps({"item": name, kind.removesuffix("s"): line}) + "\n" for name, line in lines.items())
        with atomic_file(path) as temporary:
            temporary.write_text(text)
