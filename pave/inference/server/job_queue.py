"""The queue of the server: one thread does the work, one request after another, and only so many may wait."""

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
from threading import BoundedSemaphore, Lock
from threading import Event as Flag

from pave.inference.limits import RequestRefused
from pave.inference.provenance import Provenance
from pave.inference.session import Answer
from pave.types import UserError

log = logging.getLogger(__name__)

Event = tuple[str, Provenance | Answer | str]
"""`facts` with the Provenance; then for `answer` and `base` pieces of text, and the whole Answer at the end."""
Emit = Callable[[Event], None]
IsStopped = Callable[[], bool]
Work = Callable[[Emit, IsStopped], None]


class QueueSlot:
    """A place in the queue with a private folder; `close` gives both back, once."""

    def __init__(self, folder: Path, release: Callable[[], None]) -> None:
        self.folder, self._release = folder, release
        self._lock, self._is_closed = Lock(), False
        folder.mkdir(mode=0o700, parents=True)

    def close(self) -> None:
        """Delete the folder and free the place."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
        shutil.rmtree(self.folder)
        self._release()


class Job:
    """The events of one request, as its work emits them."""

    def __init__(self) -> None:
        self.events: SimpleQueue[Event | Exception | None] = SimpleQueue()
        """Ends with an Exception, or None."""
        self.stop = Flag()
        """Set by a client that does not want the remaining events."""

    def __iter__(self) -> Iterator[Event]:
        """Yield all events; raises what the work raised."""
        while (event := self.events.get()) is not None:
            if isinstance(event, Exception):
                raise event
            yield event


class JobQueue:
    """Hands out slots, and does their work in one thread: requests never meet inside the model."""

    def __init__(self, folder: Path, max_waiting: int) -> None:
        self.folder = folder
        self._num_slots = max_waiting + 1
        self._free = BoundedSemaphore(self._num_slots)
        self._worker = ThreadPoolExecutor(1, "pave-jobs")
        self._mean_seconds = 1.0
        """Running mean of the time that a request takes."""

    def slot(self) -> QueueSlot:
        """Take a place and a folder. Raises RequestRefused where too many requests wait."""
        if not self._free.acquire(blocking=False):
            wait = max(1, math.ceil(self._mean_seconds * self._num_slots))
            text = f"{self._num_slots} requests are being served or wait; come again in {wait} s"
            raise RequestRefused(429, text, wait)
        return QueueSlot(self.folder / "requests" / uuid.uuid4().hex, self._free.release)

    def start(self, slot: QueueSlot, work: Work) -> Job:
        """Do the work when its turn comes; the slot is closed before the job's last event."""
        job = Job()
        self._worker.submit(self._run, slot, job, work)
        return job

    def close(self) -> None:
        """Finish the running job and drop those that wait."""
        self._worker.shutdown(cancel_futures=True)

    def _run(self, slot: QueueSlot, job: Job, work: Work) -> None:
        start = time.monotonic()
        error: Exception | None = None
        try:
            if not job.stop.is_set():
                work(job.events.put, job.stop.is_set)
        except UserError as user_error:
            error = self._without_folders(user_error)
        except Exception as failure:
            # Whatever one request meets, the next is served.
            log.exception("a request failed")
            error = failure
        finally:
            self._mean_seconds = (self._mean_seconds + time.monotonic() - start) / 2
            slot.close()
            job.events.put(error)

    def _without_folders(self, error: UserError) -> RequestRefused:
        """The same error with files named as the sender knows them."""
        text = re.sub(rf"{re.escape(str(self.folder))}/(?:[^/\s:]+/)*", "", str(error))
        return RequestRefused(error.status if isinstance(error, RequestRefused) else 400, text)
