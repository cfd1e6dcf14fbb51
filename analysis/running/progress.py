"""How far a generation is, read from the files that its workers write, wherever they are."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from analysis.running.estimate import estimate, in_words
from analysis.running.ledger import over, rows_of
from analysis.running.units import Unit

ESTIMATED_EVERY = 20.0  # seconds: it reads what was timed


@contextmanager
def generating(
    run: Path, units: Sequence[Unit], workers: int, console: Console, check: Callable[[Sequence[Unit]], None]
) -> Iterator[Callable[[], None]]:
    """Show a bar over the units of a run, and yield what looks at the files and moves it.

    Args:
        run: folder of the run.
        units: that are to be done.
        workers: that share them.
        console: where the bar is shown.
        check: is shown what is left every now and then, and may raise.
    """
    columns = TextColumn("batches"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[left]}")
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        task = progress.add_task("batches", total=len(units), left="")
        last = monotonic()

        def tick() -> None:
            nonlocal last
            past = over(run)
            waiting = [unit for unit in units if unit.key not in past]
            progress.update(task, completed=len(units) - len(waiting))
            if monotonic() - last > ESTIMATED_EVERY or not waiting:
                last = monotonic()
                seconds = estimate(run, rows_of(run), waiting, workers).seconds
                progress.update(task, left=f"{in_words(seconds)} left" if waiting else "")
                check(waiting)

        tick()
        yield tick
        tick()
