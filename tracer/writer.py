"""One thread that writes, off the generation path, what others hand it, in their order.

Conventions: a job is a function without arguments. The queue is bounded: a writer that falls behind makes the
generation wait, memory does not grow. The first job that raises stops the writing; jobs after it are dropped,
and its error is raised at the next call from the generating thread.
"""

import threading
import weakref
from collections.abc import Callable
from queue import Queue

Job = Callable[[], None]
DEPTH = 4  # passes of the model that may wait


class TraceNotWritten(RuntimeError):
    """The trace could not be written, on a full disk for example; the error behind it is the cause."""


class Writer:
    """A writing thread with a bounded queue."""

    def __init__(self, depth: int = DEPTH):
        """Start the thread; `depth` jobs may wait before `submit` does."""
        self._jobs: Queue[Job | None] = Queue(depth)
        self._errors: list[BaseException] = []
        # A daemon: a forgotten writer does not keep the process alive; the finalizer still lets it finish.
        self._thread = threading.Thread(target=_write, args=(self._jobs, self._errors), name="trace", daemon=True)
        self._thread.start()
        self._stop = weakref.finalize(self, _finish, self._jobs, self._thread)

    def submit(self, job: Job) -> None:
        """Hand over a job; waits while the queue is full.

        Raises:
            TraceNotWritten: an earlier job failed.
        """
        self.check()
        self._jobs.put(job)

    def wait(self) -> None:
        """Wait until every job handed over so far is done.

        Raises:
            TraceNotWritten: one of them failed.
        """
        done = threading.Event()
        self.submit(done.set)
        # a job that failed leaves the rest undone, this one too
        while not done.wait(0.05):
            self.check()

    def close(self) -> None:
        """Wait until every job is done, and stop the thread; never raises a job's error, see `check`."""
        self._stop()

    def check(self) -> None:
        """Raise the error of the job that failed, if one did.

        Raises:
            TraceNotWritten: from the job's own error.
        """
        if self._errors:
            error = self._errors[0]
            told = "" if isinstance(error, TraceNotWritten) else "the trace could not be written: "
            raise TraceNotWritten(f"{told}{error}") from error


def _write(jobs: Queue[Job | None], errors: list[BaseException]) -> None:
    while (job := jobs.get()) is not None:
        if errors:
            continue  # go on emptying the queue: a full one would block the thread that is to hear of it
        try:
            job()
        except BaseException as error:  # whatever it is, the generating thread must hear of it
            errors.append(error)


def _finish(jobs: Queue[Job | None], thread: threading.Thread) -> None:
    jobs.put(None)
    thread.join()
