"""Read many files in worker processes: no file can take the run down, however broken it is."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, TimeoutError
from contextlib import contextmanager
from typing import Any, TypeVar

from pave.types import MediaItem, UserError

T = TypeVar("T")


def read_all(
    read: Callable[[MediaItem], T], items: Sequence[MediaItem], workers: int, seconds: float
) -> Iterator[tuple[MediaItem, T | UserError]]:
    """Yield each item with what `read` makes of it, in order; workers are two items each ahead at most.

    An item that cannot be read, takes over `seconds` or kills its worker comes with a UserError, and the others go on.
    Without workers this process reads.
    """
    if not workers:
        for item in items:
            yield item, _try_read(read, item)
        return

    from pebble import ProcessPool

    with one_thread_per_process(), ProcessPool(workers, context=multiprocessing.get_context("spawn")) as pool:
        pending: deque[tuple[MediaItem, Future]] = deque()
        try:
            for item in items:
                pending.append((item, pool.schedule(_read_pickled, args=[read, item], timeout=seconds)))
                if len(pending) > 2 * workers:
                    yield _wait_for(*pending.popleft(), seconds)
            while pending:
                yield _wait_for(*pending.popleft(), seconds)
        finally:
            pool.stop()


def _read_pickled(read: Callable[[MediaItem], T], item: MediaItem) -> bytes:
    """Read as bytes: tensors would come through torch's sockets, whose folders stay behind when a worker is killed."""
    return pickle.dumps(read(item))


def _try_read(read: Callable[[MediaItem], T], item: MediaItem) -> T | UserError:
    try:
        return read(item)
    except UserError as error:
        return error


def _wait_for(item: MediaItem, future: Future, seconds: float) -> tuple[MediaItem, Any]:
    from pebble import ProcessExpired

    try:
        # Our own process wrote it, as any result that comes through a pool.
        return item, pickle.loads(future.result())
    except UserError as error:
        return item, error
    except TimeoutError:
        return item, UserError(
            f"{item.path}: reading took over {seconds:g} s; convert it, or allow more with --timeout"
        )
    except ProcessExpired as error:
        return item, UserError(f"{item.path}: reading it ended the process ({error}); convert it, or use fewer workers")


@contextmanager
def one_thread_per_process() -> Iterator[None]:
    """Started processes read the variable when they import numpy; more threads than cores make all of them slower."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before
