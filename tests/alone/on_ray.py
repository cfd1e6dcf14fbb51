"""What `test_ray.py` runs in a process of its own: the small run on a cluster, a worker of which is killed on the way.

Usage: python on_ray.py ADDRESS MODEL OUT. Writes ``OUT/board.pickle`` and ``OUT/killed``.
"""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import psutil
import ray
import small_runs

from analysis.running.ledger import done
from analysis.running.run import How


def workers() -> list[int]:
    """Return the processes of the cluster's workers that are at a job."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any("ray::Worker.do" in word for word in process.info["cmdline"] or ()):
            found.append(process.pid)
    return found


def kill_one(out: Path) -> None:
    """Kill a worker once some batches are done and some are not."""
    end = time.monotonic() + 300
    while time.monotonic() < end:
        runs = list(out.glob("small-*"))
        if runs and 2 <= len(done(runs[0])) < 20 and len(found := workers()) == 2:
            os.kill(found[0], signal.SIGKILL)
            (out / "killed").write_text(str(found[0]))
            return
        time.sleep(0.02)


def main() -> None:
    address, model, out = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    ray.init(address=address, log_to_driver=False)
    killer = threading.Thread(target=kill_one, args=[out])
    killer.start()
    results = small_runs.Quiet()(small_runs.eight(model), out, How(workers=2, engine="ray"))
    killer.join()
    results.parts[0].board.to_pickle(out / "board.pickle")


if __name__ == "__main__":
    main()
