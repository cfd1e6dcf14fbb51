"""The experiments of arXiv 2403.06381, on the models that it names; they need these models and a graphics card.

Conventions: ten images a prompt, 50 steps, guidance 7.5, constants as released. The paper says of none of its
protocols which checkpoint or threshold was used; ours are named under each table. Prompt sets of others are read from
files in the user's folder of data, see `analysis.prompts.sets`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from analysis.experiments.experiment import Experiment, Part
from regulate import METHODS, PAPER, AttentionRegulation, Method, combined
from regulate.controls import GuidanceScale
from tracer.capture import Capture
from tracer.prompts import Prompt

BASELINES = ("composable", "syngen", "dense-diffusion", "attend-and-excite")
COMPARED: dict[str, Method] = {name: METHODS[name] for name in (*BASELINES, "regulation")}
WITHOUT_LAYOUT = {name: method for name, method in COMPARED.items() if name != "dense-diffusion"}
MODELS = {"sd14": "SD 1.4", "sd15": "SD 1.5", "sd2": "SD 2", "sd21": "SD 2.1"}
TEN = tuple(range(10))
AE = {"path": "a.e_prompts.txt"}
COCO = {"descriptions": "testset.pkl", "images": "testset_layout.tar.gz"}
ELEPHANT = Prompt("elephant", "A painting of an elephant with glasses", ("elephant", "glasses"), "arXiv 2403.06381")
BEDROOM = Prompt("bedroom", "A bedroom with a book on the bed", ("book", "bed"), "arXiv 2403.06381")


def _part(name: str, title: str, prompts: str | tuple[Prompt, ...], methods: dict[str, Method], **more: object) -> Part:
    defaults = {"model": "sd2", "seeds": TEN, "steps": 50, "guidance": 7.5, "batch": 5}
    return Part(name, title, prompts, methods, **(defaults | more))


def _a_e(name: str, title: str, methods: dict[str, Method], **more: object) -> Part:
    return _part(name, title, "attend-and-excite", methods, files=AE, **more)


def _variants(name: str, question: str, methods: dict[str, Method]) -> Experiment:
    shows = ("method-table", "forest", *curves_of(methods), "pareto", "outcomes")
    return Experiment(name, question, (_a_e("a-e", "A&E", methods, spread=60),), shows, world="real")


REGULATION = AttentionRegulation()
UNTIL, BETA = (0.1, 0.25, 0.5, 0.75, 1.0), (0.0, 0.01, 0.1, 1.0, 10.0)
LAYERS: dict[str, Method] = {
    "last down, first up": REGULATION,
    "last down": replace(REGULATION, layers="down_blocks.2.*"),
    "middle": replace(REGULATION, layers="mid_block.*"),
    "first up": replace(REGULATION, layers="up_blocks.1.*"),
    "second up": replace(REGULATION, layers="up_blocks.2.*"),
    "all": replace(REGULATION, layers="*"),
}


def until(shares: Sequence[float], method: AttentionRegulation = REGULATION) -> dict[str, Method]:
    """Return regulation whose edits stop after these shares of the steps."""
    return {f"until {share}": replace(method, until=share) for share in shares}


def beta(values: Sequence[float], method: AttentionRegulation = PAPER) -> dict[str, Method]:
    """Return regulation as printed, with these weights of the distance from the model's own maps (eq. 8)."""
    return {f"beta {value}": replace(method, deviation=value) for value in values}


def curves_of(methods: Mapping[str, Method]) -> tuple[str, ...]:
    """Return the show of curves, for methods that are one constant's values."""
    return ("curves",) if all(name[-1].isdigit() for name in methods) else ()


def guidance_sweep(scales: Sequence[float], method: AttentionRegulation = REGULATION) -> dict[str, Method]:
    """Return each guidance scale alone, and with regulation."""
    alone: dict[str, Method] = {f"guidance {scale}": GuidanceScale(scale) for scale in scales}
    both: dict[str, Method] = {f"regulation at {scale}": combined(GuidanceScale(scale), method) for scale in scales}
    return alone | both


TABLE_SHOWS = ("method-table", "forest", "pareto", "outcomes", "thresholds", "seeds", "grid")
EXPERIMENTS: tuple[Experiment, ...] = (
    Experiment(
        "table1",
        "How do the methods compare in CLIP score, detection rate, LPIPS and overhead? (Table 1)",
        (_part("coco", "COCO", "coco-layouts", COMPARED, files=COCO), _a_e("a-e", "A&E", COMPARED)),
        TABLE_SHOWS,
        world="real",
    ),
    Experiment(
        "table2",
        "Do the images stay as good as they were? FID to photographs (Table 2)",
        (
            _part(
                "captions", "COCO captions", "coco-captions", WITHOUT_LAYOUT, seeds=(0,), own_seeds=True, batch=1,
                options={"targets": "auto"}, files={"path": "captions_val2014.json"},
            ),
        ),
        ("set-table", "method-table"),
        reference="val2014",
        world="real",
    ),
    Experiment(
        "table3",
        "Does the order hold across models? (Table 3, and the appendix's tables of every model)",
        tuple(_a_e(model, title, COMPARED, model=model) for model, title in MODELS.items()),
        ("model-tables", "method-table", "forest"),
        world="real",
    ),
    Experiment(
        "figure1",
        "The same noise, with and without regulation, and with edits switched off on the way (Figure 1)",
        (_part("pairs", "Pairs", (ELEPHANT, BEDROOM), {"regulation": REGULATION} | until((0.1, 0.25))),),
        ("pairs", "method-table"),
        world="real",
    ),
    Experiment(
        "figure2",
        "How much attention does each word get, where the image fails and where it succeeds? (Figure 2)",
        (_part("violins", "Violins", (ELEPHANT,), {}, batch=1, traced={"plain": Capture(steps=(0, 24))}),),
        ("violins",),
        world="real",
    ),
    Experiment(
        "figure3",
        "Where do the targets' maps lie after the optimisation, step by step? (Figure 3)",
        (
            _part(
                "maps", "Maps", (BEDROOM,), {"regulation": REGULATION}, seeds=(0, 1), batch=1,
                traced={name: Capture(tokens="targets", steps=(0, 8, 16, 24, 49)) for name in ("plain", "regulation")},
            ),
        ),
        ("maps",),
        world="real",
    ),
    Experiment(
        "figure4",
        "What do the methods' images look like? (Figure 4)",
        (_a_e("grid", "A&E", WITHOUT_LAYOUT, spread=12, seeds=(0, 1), batch=2),),
        ("grid",),
        world="real",
    ),
    _variants("ablation-layers", "Which layers should be edited? (section 4.3)", LAYERS),
    _variants("ablation-steps", "For how long should they be edited? (section 4.3)", until(UNTIL)),
    _variants("ablation-beta", "How near should the edit stay to the model's own maps? (section 4.3)", beta(BETA)),
    _variants(
        "guidance-sweep", "Does a larger guidance scale cure neglect?", guidance_sweep((3.0, 5.0, 7.5, 10.0, 15.0))
    ),
)  # fmt: skip
