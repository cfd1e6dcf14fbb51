"""The same experiments in the emoji world, on its own small model: they run here, and say nothing of Stable Diffusion.

Conventions: 25 steps of DPM-Solver, guidance 5, four seeds a prompt, one batch. Methods are compared with the constants
of `TUNED`, each the best of six settings on 24 prompts that are in none of the sets, the mended preset among them (see
``benchmarks/methods.py``); ablations vary the released ones.
"""

from dataclasses import replace

from analysis.experiments.experiment import Experiment, Part
from analysis.experiments.paper import beta, curves_of, guidance_sweep, until
from regulate import FIXED, AttentionRegulation, Method
from regulate.attend_and_excite import FIXED as ATTEND
from regulate.composable import Composable
from regulate.controls import Balance, Boost
from regulate.dense_diffusion import DenseDiffusion
from regulate.syngen import FIXED as SYNGEN
from tracer.capture import Capture
from tracer.prompts import TEMPLATES, Prompt

FOUR = (0, 1, 2, 3)
PAIR = Prompt("elephant", "an elephant with glasses", ("elephant", "glasses"), "after arXiv 2403.06381")
STEPS = (0, 2, 4, 8, 12, 16, 20, 24)
LOOKED_AT = Capture(tokens="targets", heads="mean", steps=STEPS)
FINE = ("down_blocks.0.*", "up_blocks.1.*")  # the 16x16 maps, of as many pixels as Stable Diffusion's
REGULATION = AttentionRegulation()
TUNED: dict[str, Method] = {
    "composable": Composable("shared"),
    "syngen": replace(SYNGEN, entities=True, step_size=0.1 * SYNGEN.step_size, until=0.25),
    "attend-and-excite": replace(ATTEND, step_size=0.1 * ATTEND.step_size),
    "dense-diffusion": DenseDiffusion(phrases_alone=False),
    "regulation": replace(FIXED, layers=FINE, step_size=25.0),
}
WITHOUT_LAYOUT = {name: method for name, method in TUNED.items() if name != "dense-diffusion"}
LAYERS: dict[str, Method] = {
    "last down, first up": REGULATION,
    "first down": replace(REGULATION, layers="down_blocks.0.*"),
    "last down": replace(REGULATION, layers="down_blocks.1.*"),
    "middle": replace(REGULATION, layers="mid_block.*"),
    "first up": replace(REGULATION, layers="up_blocks.0.*"),
    "last up": replace(REGULATION, layers="up_blocks.1.*"),
    "all": replace(REGULATION, layers="*"),
}
DOSES: dict[str, Method] = {
    **{
        f"balance {strength}": Balance(strength) for strength in (-1.0, -0.5, 0.5, 1.0)
    },  # dominance, and hardly what all targets get
    **{f"boost {amount}": Boost(amount, "*", None, 1.0) for amount in (0.5, 1.0, 2.0)},  # moves all targets alike
    **{f"regulation {size}": replace(TUNED["regulation"], step_size=size) for size in (6.25, 12.5, 25.0, 50.0, 100.0)},
}
TRACED = {name: TUNED[name] for name in ("syngen", "attend-and-excite", "regulation")}  # composable cannot be


def _templates(name: str, methods: dict[str, Method], **more: object) -> Part:
    return Part(name, "A&E-style (276)", TEMPLATES, methods, **({"seeds": FOUR} | more))


def _variants(name: str, question: str, methods: dict[str, Method]) -> Experiment:
    shows = ("method-table", "forest", *curves_of(methods), "outcomes")
    return Experiment(name, question, (_templates("templates", methods, spread=66),), shows)


TABLE_SHOWS = ("method-table", "forest", "pareto", "outcomes", "thresholds", "seeds", "grid")
EXPERIMENTS: tuple[Experiment, ...] = (
    Experiment(
        "emoji-table1",
        "How do the methods compare in CLIP score, detection rate, LPIPS and overhead?",
        (_templates("templates", TUNED),),
        TABLE_SHOWS,
        takes="27 minutes on two cores of an Intel Xeon, on two of an AMD EPYC above an hour, by its first batches",
    ),
    Experiment(
        "emoji-table2",
        "Do the images stay as good as they were? FID to scenes that no training saw",
        (Part("scenes", "Scenes (3,000)", "emoji-scenes", WITHOUT_LAYOUT, (0,), batch=1, own_seeds=True),),
        ("set-table", "method-table"),
        reference="emoji-scenes",
    ),
    Experiment(
        "emoji-layout",
        "And where every prompt has a layout?",
        (Part("layouts", "Layouts (250)", "emoji-layouts", TUNED, FOUR),),
        TABLE_SHOWS,
    ),
    Experiment(
        "emoji-figure1",
        "The same noise, with and without regulation, and with edits switched off on the way",
        (Part("pairs", "Pairs", (PAIR,), {"regulation": REGULATION} | until((0.1, 0.25)), tuple(range(16))),),
        ("pairs", "method-table"),
    ),
    Experiment(
        "emoji-figure2",
        "How much attention does each word get, where the image fails and where it succeeds?",
        (Part("violins", "Violins", (PAIR,), {}, tuple(range(16)), traced={"plain": Capture(steps=(0, 12))}),),
        ("violins",),
    ),
    Experiment(
        "emoji-figure3",
        "Where do the targets' maps lie after the optimisation, step by step?",
        (
            Part(
                "maps", "Maps", (PAIR,), {"regulation": REGULATION}, FOUR,
                traced={n: Capture(tokens="targets", steps=(0, 4, 8, 12, 24)) for n in ("plain", "regulation")},
            ),
        ),
        ("maps",),
    ),
    Experiment(
        "emoji-figure4",
        "What do the methods' images look like?",
        (_templates("grid", WITHOUT_LAYOUT, spread=12, seeds=(0, 1)),),
        ("grid",),
    ),
    _variants("emoji-ablation-layers", "Which layers should be edited?", LAYERS),
    _variants("emoji-ablation-steps", "For how long should they be edited?", until((0.1, 0.25, 0.5, 0.75, 1.0))),
    _variants("emoji-ablation-beta", "How near to the model's maps should an edit stay?", beta((0.0, 0.1, 1.0, 10.0))),
    _variants(
        "emoji-guidance-sweep", "Does a larger guidance scale cure neglect?", guidance_sweep((2.0, 3.5, 5.0, 7.5, 10.0))
    ),
    Experiment(
        "emoji-dominance",
        "Does dominance go with missing objects, and foretell them? Where? What do methods change of it?",
        (
            _templates(
                "templates", TRACED, traced={name: LOOKED_AT for name in ("plain", *TRACED)},
            ),
        ),
        (
            "dominance", "companions", "same-word", "prediction", "heads", "changes", "pointing", "pointing-truth",
            "method-table",
        ),
    ),
    Experiment(
        "emoji-dose",
        "Does dominance cause what is missing? Made smaller and larger, from the same noise",
        (
            _templates(
                "templates", DOSES, spread=66, traced={name: LOOKED_AT for name in ("plain", *DOSES)},
            ),
        ),
        ("dose", "method-table"),
    ),
)  # fmt: skip
