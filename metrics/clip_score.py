"""CLIP score: the cosine between an image's embedding and its prompt's.

Conventions:
    Images are float32 RGB in [0, 1], "batch 3 height width", or PIL images, also of different sizes. The library's
    own preprocessing takes PIL, so a tensor is first rounded to 8 bits, as it would be when saved as PNG.
    Embeddings are float32, of length 1, on the CPU. A score is the raw cosine in [-1, 1] of one image: no factor,
    no clamp; `percent` and `hessel` are views of it.
    A text longer than the context is cut at its end by the tokenizer: `truncated` says which ones are.
Ensembles, that is, which text a prompt is embedded as:
    plain  the prompt itself.
    ae80   the mean over the 80 ImageNet templates, of length 1 before and after. As there, "a a" and then "the a"
           become "a" wherever they occur, also across words: "a pizza and" is read as "a pizzand".
Metrics:
    clip_cos  of the whole prompt.
    min_half  the smaller cosine of a prompt's two `halves`: is one of two things neglected?
Source: github.com/yuval-alaluf/Attend-and-Excite, metrics/compute_clip_similarity.py and metrics/imagenet_utils.py
at 163efdf. It runs in float16 on a GPU and refuses a text that is too long.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import open_clip
import torch
from huggingface_hub import try_to_load_from_cache
from jaxtyping import Float
from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME
from open_clip.pretrained import download_pretrained_from_hf
from open_clip.tokenizer import HFTokenizer, SigLipTokenizer
from PIL import Image
from torch import Tensor

from metrics.protocols import ClipProtocol, Ensemble
from metrics.weights import as_tensors, verified

CONFIG = "open_clip_config.json"
QUICK = "-quickgelu"
CONJUNCTIONS = (" and ", " with ")
TOWERS = {  # text encoders of Stable Diffusion by their name on the hub, as open_clip calls them
    "openai/clip-vit-large-patch14": ("ViT-L-14-quickgelu", "openai"),
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": ("ViT-H-14", "laion2b_s32b_b79k"),
    "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k": ("ViT-bigG-14", "laion2b_s39b_b160k"),
}

Images = Float[Tensor, "batch 3 height width"] | Sequence[Image.Image]
Embeddings = Float[Tensor, "batch channel"]
Preprocess = Callable[[Image.Image], Tensor]
Tokenizer = open_clip.SimpleTokenizer | HFTokenizer | SigLipTokenizer


@dataclass(frozen=True)
class Clip:
    """A loaded CLIP, how it takes images and texts, and the protocol that it answers under."""

    model: open_clip.CLIP | open_clip.CustomTextCLIP
    preprocess: Preprocess
    tokenizer: Tokenizer
    protocol: ClipProtocol


def embed_images(clip: Clip, images: Images, batch: int = 32) -> Embeddings:
    """Return the images' embeddings.

    Args:
        clip: from `load_clip`.
        images: what to embed, at least one.
        batch: images in one forward pass.

    Raises:
        ValueError: no images, a tensor that is not RGB or leaves [0, 1], or no batch.
    """
    device = clip.model.logit_scale.device

    def embedded(part: Sequence[Image.Image]) -> Tensor:
        pixels = torch.stack([clip.preprocess(image) for image in part])
        return clip.model.encode_image(pixels.to(device), normalize=True)

    return _in_batches(embedded, _pictures(images), batch)


def embed_texts(clip: Clip, texts: Sequence[str], batch: int = 80) -> Embeddings:
    """Return the texts' embeddings, under the protocol's ensemble; a repeated text is embedded once.

    Args:
        clip: from `load_clip`.
        texts: what to embed, at least one.
        batch: wordings in one forward pass, at least all those of one text.

    Raises:
        ValueError: no texts, one string instead of some, or no batch.
    """
    if isinstance(texts, str):
        raise ValueError(f"texts must be a sequence of strings, got the string {texts!r}")
    device = clip.model.logit_scale.device
    each = len(wordings("", clip.protocol.ensemble))

    def embedded(part: Sequence[str]) -> Tensor:
        forms = [form for text in part for form in wordings(text, clip.protocol.ensemble)]
        tokens = clip.tokenizer(forms, clip.model.context_length)
        passed = clip.model.encode_text(tokens.to(device), normalize=True)
        return torch.nn.functional.normalize(passed.unflatten(0, (-1, each)).mean(1), dim=-1)

    row = {text: index for index, text in enumerate(dict.fromkeys(texts))}
    return _in_batches(embedded, list(row), batch, each)[[row[text] for text in texts]]


def wordings(text: str, ensemble: Ensemble) -> tuple[str, ...]:
    """Return what the text tower is given for a text: itself, or its 80 wordings."""
    if ensemble == "plain":
        return (text,)
    forms = (template(text) for template in open_clip.OPENAI_IMAGENET_TEMPLATES)
    return tuple(form.replace("a a", "a").replace("the a", "a") for form in forms)


def truncated(clip: Clip, texts: Sequence[str]) -> list[bool]:
    """Return for each text whether the model does not see all of it; of an ensemble, all of any wording."""
    length = clip.model.context_length

    def cut(forms: list[str]) -> bool:
        # one place more is padding for a text that fits, and holds one more word of a text that does not
        return not torch.equal(clip.tokenizer(forms, length), clip.tokenizer(forms, length + 1)[:, :length])

    def any_cut(text: str) -> bool:
        forms = list(wordings(text, clip.protocol.ensemble))
        return cut([max(forms, key=len)]) or cut(forms)  # a long text is slow to read, and 80 are slower

    if clip.protocol.ensemble == "plain" and texts:
        ones, longer = (clip.tokenizer(list(texts), length + more)[:, :length] for more in (0, 1))
        return (ones != longer).any(1).tolist()
    return [any_cut(text) for text in texts]


def clip_cos(image: Embeddings, text: Embeddings) -> Float[Tensor, " batch"]:
    """Return each image's raw cosine with its text, in [-1, 1]."""
    return torch.nn.functional.cosine_similarity(image, text, dim=-1)


def halves(prompt: str) -> tuple[str, str] | None:
    """Return a prompt's two parts around " and ", else around " with ", None if it has neither.

    Of more than two parts the first two, as in the source.
    """
    for conjunction in CONJUNCTIONS:
        if conjunction in prompt:
            first, second, *_ = prompt.split(conjunction)
            return first, second
    return None


def min_half(image: Embeddings, first: Embeddings, second: Embeddings) -> Float[Tensor, " batch"]:
    """Return each image's smaller cosine with the `halves` of its prompt, in [-1, 1]."""
    return torch.minimum(clip_cos(image, first), clip_cos(image, second))


def percent(cosine: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return 100 cos, image by image unclamped: the scale of torchmetrics and HEIM."""
    return 100 * cosine


def hessel(cosine: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return 2.5 max(cos, 0): the scale of CLIPScore.

    Its texts begin with "A photo depicts ", its model is ViT-B/32: the scale alone makes no CLIPScore.

    Source: arXiv 2104.08718, section 3.
    """
    return 2.5 * cosine.clamp(min=0)


def circular(protocol: ClipProtocol, text_encoder: str) -> str | None:
    """Return a note if the scorer reads texts by the generator's own text encoder, else None.

    Args:
        protocol: the scorer's.
        text_encoder: the generator's, by its name on the hub, e.g. "laion/CLIP-ViT-H-14-laion2B-s32B-b79K".
    """
    if TOWERS.get(text_encoder) != (protocol.checkpoint, protocol.pretrained):
        return None
    return (
        f"{protocol.checkpoint} ({protocol.pretrained}) is the text encoder of the generator itself: "
        "a prompt that it misreads is misread by the score as well"
    )


@torch.no_grad()
def _in_batches(embedded: Callable[[Sequence], Tensor], items: Sequence, batch: int, each: int = 1) -> Tensor:
    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    if not items:
        raise ValueError("there must be at least one image or text to embed, got none")
    step = max(1, batch // each)
    parts = [embedded(items[start : start + step]) for start in range(0, len(items), step)]
    return torch.cat([part.float().cpu() for part in parts])


def _pictures(images: Images) -> Sequence[Image.Image]:
    if not isinstance(images, Tensor):
        return images
    levels = [(image.permute(1, 2, 0) * 255).round().byte().cpu() for image in as_tensors(images)]
    return [Image.fromarray(level.numpy()) for level in levels]


def load_clip(protocol: ClipProtocol, device: str | torch.device = "cpu", download: bool = False) -> Clip:
    """Return the CLIP of a protocol, in float32; its protocol has the weights' hash.

    Args:
        protocol: which one.
        device: where to put it.
        download: fetch weights that are not on this machine.

    Raises:
        FileNotFoundError: the weights are not here; says what to download.
        ValueError: open_clip has no such model, its activation is not the one that the weights were trained with,
            or the weights are others than the protocol says or do not fit.
    """
    path = _file(protocol, download)
    digest = verified(path, protocol.weights)
    name, source = protocol.checkpoint, {}
    if protocol.pretrained is None:
        name = f"local-dir:{path.parent}"
    else:  # the file whose hash was taken: by its tag, open_clip would ask the hub for a newer one
        tag = open_clip.get_pretrained_cfg(name, protocol.pretrained)
        source = {f"image_{key}": tag[key] for key in ("mean", "std", "interpolation", "resize_mode")}
        source["pretrained"] = str(path)
    try:
        with torch.random.fork_rng(devices=[]):  # weights are drawn before they are read
            loaded = open_clip.create_model_from_pretrained(name, precision="fp32", device=device, **source)
    except RuntimeError as error:
        raise ValueError(f"{path.name} must hold the weights of {protocol.checkpoint!r}, but {error}") from error
    model, preprocess = cast(tuple[open_clip.CLIP, Preprocess], loaded)
    tokenizer = _tokenizer(name, download)
    return Clip(model.eval().requires_grad_(False), preprocess, tokenizer, replace(protocol, weights=digest))


def _tokenizer(name: str, download: bool) -> Tokenizer:
    texts = (open_clip.get_model_config(name) or {})["text_cfg"]
    if "hf_tokenizer_name" not in texts:
        return cast(open_clip.SimpleTokenizer, open_clip.get_tokenizer(name))
    try:
        return cast(HFTokenizer, open_clip.get_tokenizer(name, local_files_only=not download))
    except (OSError, ValueError) as error:  # transformers says the one or the other
        raise FileNotFoundError(f"the tokenizer of {name!r} ({texts['hf_tokenizer_name']}) is not here") from error


def weights_of(protocol: ClipProtocol, download: bool = False) -> str:
    """Return the SHA-256 of a CLIP's weights, without loading them.

    Raises:
        FileNotFoundError: the weights are not here; says what to download.
        ValueError: as `load_clip`.
    """
    return verified(_file(protocol, download), protocol.weights)


def _file(protocol: ClipProtocol, download: bool) -> Path:
    if protocol.pretrained is None:
        folder = Path(protocol.checkpoint)
        lacking = [name for name in (CONFIG, HF_SAFE_WEIGHTS_NAME) if not (folder / name).is_file()]
        if lacking:
            raise FileNotFoundError(f"folder {str(folder)!r} holds no CLIP as open_clip saves it: no {lacking[0]}")
        return folder / HF_SAFE_WEIGHTS_NAME
    _check(protocol.checkpoint, protocol.pretrained)
    tag = open_clip.get_pretrained_cfg(protocol.checkpoint, protocol.pretrained)
    repository, _, name = tag["hf_hub"].rpartition("/")
    name = name or HF_WEIGHTS_NAME
    safe = HF_SAFE_WEIGHTS_NAME if name == HF_WEIGHTS_NAME else name.replace(".bin", ".safetensors")
    for file in (safe, name):  # open_clip's order
        found = try_to_load_from_cache(repository, file, revision=protocol.revision)
        if isinstance(found, str):
            return Path(found)
    if not download:
        raise FileNotFoundError(
            f"CLIP {protocol.checkpoint!r} ({protocol.pretrained}) is not on this machine; download it once with "
            f"`hf download {repository} {safe}` where there is a network, or give the path of a local folder as the "
            "protocol's checkpoint, and None as pretrained"
        )
    return Path(download_pretrained_from_hf(repository, name, protocol.revision))


def _check(name: str, tag: str) -> None:
    config = open_clip.get_model_config(name)
    if config is None:
        raise ValueError(f"checkpoint must be a model that open_clip knows (or pretrained None), got {name!r}")
    if not open_clip.is_pretrained_cfg(name, tag):
        tags = open_clip.list_pretrained_tags_by_model(name.removesuffix(QUICK))
        raise ValueError(f"pretrained must be one of {', '.join(tags)} for {name!r}, got {tag!r}")
    if "hf_model_name" in config["text_cfg"]:
        raise ValueError(f"checkpoint must have a text tower of open_clip's own, got {name!r}")
    quick = open_clip.get_pretrained_cfg(name, tag).get("quick_gelu", False)
    if quick != config.get("quick_gelu", False):  # open_clip only warns, and all scores come out wrong
        right = name + QUICK if quick else name.removesuffix(QUICK)
        kinds = ("QuickGELU", "GELU") if quick else ("GELU", "QuickGELU")
        raise ValueError(f"checkpoint must be {right!r}: {tag!r} was trained with {kinds[0]}, {name!r} has {kinds[1]}")
