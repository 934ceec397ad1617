"""Reading many files in processes of their own: none of them can take the run down, however broken it is."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, TimeoutError
from contextlib import contextmanager
from typing import Any, TypeVar

from pave.types import Item, UserError

T = TypeVar("T")


def read_all(
    read: Callable[[Item], T], items: Sequence[Item], workers: int, seconds: float
) -> Iterator[tuple[Item, T | UserError]]:
    """What `read` gives for each item, in order, at most two a worker ahead; 0 workers read in this process.

    A file that cannot be read, takes over `seconds` or kills its worker gives a UserError; the others go on.
    """
    if not workers:
        yield from ((item, _attempt(read, item)) for item in items)
        return
    from pebble import ProcessPool

    with one_thread_each(), ProcessPool(workers, context=multiprocessing.get_context("spawn")) as pool:
        ahead: deque[tuple[Item, Future]] = deque()
        try:
            for item in items:
                ahead.append((item, pool.schedule(_packed, args=[read, item], timeout=seconds)))
                if len(ahead) > 2 * workers:
                    yield _result(*ahead.popleft(), seconds)
            while ahead:
                yield _result(*ahead.popleft(), seconds)
        finally:
            pool.stop()


def _packed(read: Callable[[Item], T], item: Item) -> bytes:
    """Bytes, for tensors would come through torch's sockets, whose folders stay behind when a worker is killed."""
    return pickle.dumps(read(item))


def _attempt(read: Callable[[Item], T], item: Item) -> T | UserError:
    try:
        return read(item)
    except UserError as error:
        return error


def _result(item: Item, future: Future, seconds: float) -> tuple[Item, Any]:
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
def one_thread_each() -> Iterator[None]:
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
