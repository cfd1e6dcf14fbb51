"""Every method and control by name: what it is, what it needs, where it comes from.

Conventions: a method under its plain name has the constants and habits that were released, under "-fixed" its faults
are mended; what the two differ by is said in the method's own file.
"""

from dataclasses import dataclass

from regulate import attend_and_excite, composable, conform, dense_diffusion, divide_and_bind, initno, syngen
from regulate.attention_regulation import FIXED, PAPER, RANDOM, AttentionRegulation
from regulate.controls import Balance, Boost, GuidanceScale
from regulate.method import Method
from regulate.predicated import PredicatedDiffusion
from regulate.t_sam import TSam

UNETS = "text-to-image pipelines with a UNet (SD 1.x, 2.x, SDXL)"
ANY_UNET = "any pipeline with a UNet that attends to text, image-to-image and inpainting too"
GROUPS = "targets; nouns with their modifiers are parsed, or given"


@dataclass(frozen=True)
class Entry:
    """One method.

    Attributes:
        method: with its constants.
        needs: of each prompt.
        source: paper, and code with its commit.
        licence: of the original code; all code here is our own.
        models: that it works with.
    """

    method: Method
    needs: str
    source: str
    licence: str
    models: str

    @property
    def mechanism(self) -> str:
        """The kinds of its interventions."""
        return ", ".join(self.method.kinds) or "none"


_REGULATION = ("targets", "arXiv 2403.06381; attention_regulation b66d9db", "MIT", ANY_UNET)
_COMPOSABLE = (
    "concepts: between 'and', 'with', '|', or given", "arXiv 2206.01714; code 77af82b",
    "MIT with restrictions on use", "text-to-image and other pipelines with a UNet and guidance",
)  # fmt: skip
_SYNGEN = (
    "nouns with modifiers, parsed or given; else a no-op", "arXiv 2306.08877; code 50b8eab", "none stated", UNETS,
)  # fmt: skip
_DENSE = ("a layout; else n/a", "arXiv 2308.12964; code 54a2ea6", "Apache 2.0", ANY_UNET)
_EXCITE = ("targets", "arXiv 2301.13826; code 163efdf, diffusers 0.42", "MIT", UNETS)
_CONFORM = ("two nouns or more, parsed or given; else a no-op", "arXiv 2312.06059; code 4ad0e37", "MIT", UNETS)
_BIND = (GROUPS, "arXiv 2307.10864", "AGPL 3.0", UNETS)
_INITNO = ("targets", "InitNO, CVPR 2024; code fa021c4", "Apache 2.0", UNETS)

CATALOGUE: dict[str, Entry] = {
    "plain": Entry(Method(), "nothing", "stock diffusers", "Apache 2.0", "all"),
    "regulation": Entry(AttentionRegulation(), *_REGULATION),
    "regulation-paper": Entry(PAPER, *_REGULATION),
    "regulation-fixed": Entry(FIXED, *_REGULATION),
    "composable": Entry(composable.Composable(), *_COMPOSABLE),
    "composable-fixed": Entry(composable.FIXED, *_COMPOSABLE),
    "syngen": Entry(syngen.SynGen(), *_SYNGEN),
    "syngen-fixed": Entry(syngen.FIXED, *_SYNGEN),
    "dense-diffusion": Entry(dense_diffusion.DenseDiffusion(), *_DENSE),
    "dense-diffusion-fixed": Entry(dense_diffusion.FIXED, *_DENSE),
    "attend-and-excite": Entry(attend_and_excite.AttendAndExcite(), *_EXCITE),
    "attend-and-excite-fixed": Entry(attend_and_excite.FIXED, *_EXCITE),
    "predicated": Entry(PredicatedDiffusion(), GROUPS, "arXiv 2311.16117", "no code released", UNETS),
    "conform": Entry(conform.Conform(), *_CONFORM),
    "conform-fixed": Entry(conform.FIXED, *_CONFORM),
    "t-sam": Entry(TSam(), "nothing but the prompt", "T-SAM, CVPR 2025; code 135fffb", "none stated", UNETS),
    "divide-and-bind": Entry(divide_and_bind.DivideAndBind(), *_BIND),
    "divide-and-bind-fixed": Entry(divide_and_bind.FIXED, *_BIND),
    "initno": Entry(initno.InitNO(), *_INITNO),
    "initno-fixed": Entry(initno.FIXED, *_INITNO),
    "random-bias": Entry(RANDOM, "targets", "control: regulation without its descent", "ours", ANY_UNET),
    "boost": Entry(Boost(), "targets", "control: a constant on the targets' scores", "ours", ANY_UNET),
    "balance": Entry(Balance(), "two targets", "control: dominance itself, evened out", "ours", ANY_UNET),
    "guidance-scale": Entry(GuidanceScale(), "nothing", "control: stronger guidance", "ours", "all with guidance"),
}
METHODS: dict[str, Method] = {name: entry.method for name, entry in CATALOGUE.items()}
