"""Who is served when: one thread does the work, one request after the other, and only so many may wait."""

from __future__ import annotations

import logging
import math
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from threading import BoundedSemaphore, Event, Lock
from typing import Any

from pave.inference.limits import RequestRefused
from pave.types import UserError

log = logging.getLogger(__name__)

Emit = Callable[[Any], None]
IsStopped = Callable[[], bool]
Work = Callable[[Emit, IsStopped], None]


class QueueSlot:
    """A place in the queue with a private folder; both are given back once."""

    def __init__(self, folder: Path, give_back: Callable[[], None]) -> None:
        self.folder, self._give_back = folder, give_back
        self._lock, self._closed = Lock(), False
        folder.mkdir(mode=0o700, parents=True)

    def close(self) -> None:
        """Delete the folder and free the place."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        shutil.rmtree(self.folder)
        self._give_back()


class Job:
    """What a request's work has put, as it comes."""

    def __init__(self) -> None:
        self.events: SimpleQueue[Any] = SimpleQueue()
        self.stop = Event()
        """Set by who does not want the rest."""

    def __iter__(self) -> Iterator[Any]:
        """All that the work puts; raises what it raised."""
        while (event := self.events.get()) is not self:
            if isinstance(event, Exception):
                raise event
            yield event


class JobQueue:
    """Hands out slots, and does their work in one thread: requests never meet inside the model."""

    def __init__(self, folder: Path, waiting: int) -> None:
        self.folder = folder
        self._free = BoundedSemaphore(waiting + 1)
        self._places = waiting + 1
        self._worker = ThreadPoolExecutor(1, "pave-desk")
        self._seconds = 1.0
        """What a request took lately."""

    def slot(self) -> QueueSlot:
        """A place and a folder. Refused where too many wait."""
        if not self._free.acquire(blocking=False):
            wait = max(1, math.ceil(self._seconds * self._places))
            raise RequestRefused(429, f"{self._places} requests are being served or wait; come again in {wait} s", wait)
        return QueueSlot(self.folder / "requests" / uuid.uuid4().hex, self._free.release)

    def start(self, slot: QueueSlot, work: Work) -> Job:
        """Do the work when its turn comes; the slot is closed before its end is told."""
        job = Job()
        self._worker.submit(self._run, slot, job, work)
        return job

    def close(self) -> None:
        """Finish what is being worked on, and nothing else."""
        self._worker.shutdown(cancel_futures=True)

    def _run(self, slot: QueueSlot, job: Job, work: Work) -> None:
        start = time.monotonic()
        last: Any = job
        try:
            if not job.stop.is_set():
                work(job.events.put, job.stop.is_set)
        except UserError as error:
            last = self._without_folders(error)
        except Exception as error:
            # Whatever one request meets, the next is served.
            log.exception("a request failed")
            last = error
        finally:
            self._seconds = (self._seconds + time.monotonic() - start) / 2
            slot.close()
            job.events.put(last)

    def _without_folders(self, error: UserError) -> RequestRefused:
        """The same with files named as the sender knows them."""
        text = re.sub(rf"{re.escape(str(self.folder))}/(?:[^/\s:]+/)*", "", str(error))
        return RequestRefused(error.status if isinstance(error, RequestRefused) else 400, text)
