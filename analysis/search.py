"""Which constants of a method work best on some prompts: ablations, and a search.

    ablate(prompts, range(8), {"step_size": (25.0, 100.0), "until": (0.25, 0.5)}, "runs/ablation")
    search(prompts, range(8), "runs/search", trials=40)
    search_and_test(animal_pairs(), range(8), "runs/search")        # chosen on one half, tested on the other

Both are comparisons like any other (`analysis.compare`): the same rows in the same folder, so that they resume and
share what they have in common. What a search chose is to be tested on other prompts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from rich.console import Console

from analysis.compare import compare
from analysis.comparison import Compared, found_matrix, summary, tell
from analysis.plan import PLAIN, Plan, halves
from analysis.spaces import Range, Space, space_of
from analysis.workbench import Workbench
from metrics.protocols import DetectionProtocol
from regulate import AttentionRegulation, Given, Method
from regulate.applied import NotApplicable
from tracer.prompts import Prompt

if TYPE_CHECKING:
    from optuna import Study, Trial

SEED = 2403_06381
STARTUP, FINALISTS = 8, 3  # random trials before the sampler learns; trials that get all the seeds


@dataclass(frozen=True)
class Searched:
    """What a search found.

    Attributes:
        method: the best finalist.
        name: its trial.
        trials: a row per trial: its parameters, and its difference to plain on the first seeds.
        finalists: the best trials with all the seeds, as `analysis.comparison.summary` has them.
    """

    method: Method
    name: str
    trials: pd.DataFrame
    finalists: pd.DataFrame

    def _repr_html_(self) -> str:
        after = "<code>analysis.compare</code> tests <code>.method</code> on others; <code>.trials</code> has all"
        head = f"<p><b>{escape(self.name)}</b> was the best of {len(self.trials)}: {escape(str(self.method))}</p>"
        return f"{head}{self.finalists.round(4).to_html(index=False, border=0)}<p>{after}</p>"


def ablate(
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    factors: Mapping[str, Sequence[object]],
    out: str | Path,
    *,
    base: Method | None = None,
    model: str = "emoji",
    protocol: DetectionProtocol | None = None,
    steps: int = 25,
    console: Console | None = None,
) -> Compared:
    """Return how often each variant shows all targets, one hyper-parameter changed at a time.

    Args:
        prompts: with their targets.
        seeds: of each prompt.
        factors: values of the method's fields; the base's own value is not run twice.
        out: folder of the rows and of ``ablation.csv``.
        base: what is varied; regulation as released.
        model: as in `analysis.compare.compare`.
        protocol: likewise.
        steps: of the scheduler.
        console: where progress and the table go.

    Raises:
        ValueError: a factor is no hyper-parameter, or a value is not allowed; nothing is written then.
    """
    base = base or AttentionRegulation()
    _check(factors, base)
    methods = {"base": base} | {
        f"{name} = {_label(value)}": replace(base, **{name: value})
        for name, values in factors.items()
        for value in values
        if value != getattr(base, name)
    }
    bench = Workbench.loaded(prompts, out, model, protocol, console := console or Console())
    lines = summary(bench.rows_of(Plan(tuple(prompts), tuple(seeds), methods, steps)))
    bench.write("ablation.csv", lines)
    return tell(console, Compared(lines, f"ablation, {len(prompts)} prompts x {len(seeds)} seeds", Path(out)))


def search(
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    out: str | Path,
    *,
    space: Space | None = None,
    trials: int = 24,
    base: Method | None = None,
    model: str = "emoji",
    protocol: DetectionProtocol | None = None,
    steps: int = 25,
    given: Mapping[str, Given] | None = None,
    console: Console | None = None,
) -> Searched:
    """Search hyper-parameters with Optuna's TPE sampler for the best detection rate over plain, paired by image.

    A trial gets half of the seeds, the three best all of them. The sampler's seed is fixed: a search that was stopped
    runs through its finished trials from the rows that are there, and goes on.

    Args:
        prompts: to choose on, and on no others.
        seeds: of each prompt, at least two.
        out: folder of the rows, of ``trials.csv`` and of ``finalists.csv``.
        space: what is searched, by field of the method; by default what `analysis.spaces` has for it.
        trials: how many.
        base: gives what is not searched; regulation as released.
        model: as in `analysis.compare.compare`.
        protocol: likewise.
        steps: of the scheduler.
        given: what else is known of a prompt, by its text.
        console: where progress and the table go.

    Raises:
        ImportError: Optuna is not installed.
        ValueError: the space names no hyper-parameter, there are too few seeds or trials, or the method lacks what it
            needs for a prompt.
    """
    if len(seeds) < 2 or trials < 1:
        raise ValueError(f"a search needs at least two seeds and one trial, got {len(seeds)} and {trials}")
    base = base or AttentionRegulation()
    space = space_of(base) if space is None else space
    _check(space, base)
    study = _study()
    bench = Workbench.loaded(prompts, out, model, protocol, console := console or Console())
    half = tuple(seeds)[: len(seeds) // 2]
    wanted = _possible(bench, Plan(tuple(prompts), half, {"base": base}, steps, given=given or {}))
    methods: dict[str, Method] = {}
    lines = []
    for number in range(trials):
        trial, name = study.ask(), f"trial {number}"
        methods[name] = replace(base, **_suggested(trial, space))
        gain = _gain(bench, replace(wanted, methods={name: methods[name]}), name)
        study.tell(trial, gain)
        lines.append({"trial": name, "difference": gain} | trial.params)
        bench.write("trials.csv", pd.DataFrame(lines))
    table = pd.DataFrame(lines)
    best = table.sort_values("difference", ascending=False, kind="stable")["trial"][:FINALISTS]
    finals = replace(wanted, seeds=tuple(seeds), methods={name: methods[name] for name in best})
    finalists = summary(bench.rows_of(finals))
    bench.write("finalists.csv", finalists)
    title = f"finalists of {trials} trials, {len(prompts)} prompts x {len(seeds)} seeds"
    name = _best(tell(console, Compared(finalists, title, Path(out))).table)
    return Searched(methods[name], name, table, finalists)


def _best(finalists: pd.DataFrame) -> str:
    """Return the method of the largest difference to plain."""
    every = finalists[(finalists["pairs"] == "all") & (finalists["method"] != PLAIN)]
    return str(every.sort_values("difference", ascending=False, kind="stable")["method"].iloc[0])


def _gain(bench: Workbench, plan: Plan, name: str) -> float:
    """Return the difference of a plan's method to plain in the share of images that show all targets."""
    rows, texts = bench.rows_of(plan), [prompt.text for prompt in plan.prompts]
    rates = [found_matrix(rows, method, texts, plan.seeds).mean() for method in (name, PLAIN)]
    return float(rates[0] - rates[1])


def search_and_test(
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    out: str | Path,
    *,
    trials: int = 24,
    base: Method | None = None,
    model: str = "emoji",
    protocol: DetectionProtocol | None = None,
    steps: int = 25,
    console: Console | None = None,
) -> tuple[Searched, Compared]:
    """Search on half of the prompts, and compare what was found with the base on the other half.

    Args:
        prompts: both halves together, see `analysis.plan.halves`.
        seeds: as in `search`.
        out: as in `search`; the comparison is ``summary.csv``.
        trials: as in `search`.
        base: as in `search`.
        model: as in `search`.
        protocol: as in `search`.
        steps: as in `search`.
        console: as in `search`.

    Raises:
        ImportError: as in `search`. ValueError: as in `search`, or too few prompts to halve.
    """
    tune, test = halves(prompts)
    if not tune or not test:
        raise ValueError(f"prompts must be enough for two halves, got {len(prompts)}")
    base, how = base or AttentionRegulation(), {"model": model, "protocol": protocol, "steps": steps}
    found = search(tune, seeds, out, trials=trials, base=base, console=console, **how)
    tested = compare(test, seeds, {"published": base, "searched": found.method}, out, console=console, **how)
    return found, tested


def _possible(bench: Workbench, plan: Plan) -> Plan:
    """Return the plan.

    Raises:
        NotApplicable: a method lacks what it needs for one of its prompts.
    """
    for name, reason in bench.lacking(plan).items():
        raise NotApplicable(f"{plan.methods[name].name} cannot be searched: {reason}")
    return plan


def _check(names: Mapping[str, object], base: Method) -> None:
    known = [field.name for field in fields(base)]
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"{', '.join(unknown)} is no hyper-parameter; those are {', '.join(known)}")


def _study() -> "Study":
    try:
        import optuna
    except ImportError as error:
        raise ImportError("a search needs Optuna: pip install 'attnreg[search]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=SEED, n_startup_trials=STARTUP)
    return optuna.create_study(direction="maximize", sampler=sampler)


def _suggested(trial: "Trial", space: Space) -> dict[str, object]:
    """Return a trial's value of each field."""
    values: dict[str, object] = {}
    for name, choice in space.items():
        if isinstance(choice, Range):
            values[name] = trial.suggest_float(name, choice.low, choice.high, log=choice.log)
        else:
            values[name] = choice[trial.suggest_categorical(name, list(choice))]
    return values


def _label(value: object) -> str:
    return str(value)
