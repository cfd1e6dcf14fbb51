"""From a model's name to its pipeline: a short name, a local folder, a hub id, or a single file.

Conventions: weights are read as safetensors only, never unpickled. What is traced of a hub model names the commit that
was loaded: "owner/name@commit".
"""

import re
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from tracer.bars import no_loading_bars
from tracer.folders import emoji_world
from tracer.hub import (
    PICKLES,
    HubModel,
    KnownModel,
    fetched,
    known_models,
    parts_of,
    pickled,
    said,
    source_of,
    without_vocabulary,
)
from tracer.single_file import load_single_file
from tracer.sites import denoiser

__all__ = ["KnownModel", "known_models", "load_pipeline", "model_name"]


def load_pipeline(
    name: str | Path = "emoji",
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    config: str | Path | None = None,
) -> DiffusionPipeline:
    """Return a text-to-image pipeline with its progress bar off.

    Args:
        name: a short name of `known_models`, a local folder in diffusers' layout, a hub id "owner/name" or
            "owner/name@revision", or a single ``.safetensors`` file of Stable Diffusion 1.x, 2.x or XL. Of a file that
            has both, the averaged (EMA) weights are taken, as in the published folders.
        device: where to put it.
        dtype: of its weights, whichever the files hold.
        config: for a single file: a folder in diffusers' layout, a short name or a hub id; of it the configurations,
            the scheduler and the tokenizers are taken, no weights. By default ``sd15`` or ``sdxl``, if that is cached
            or can be fetched.

    Raises:
        FileNotFoundError: there is no such file, `name` is a folder that holds no pipeline, or a hub id that can
            neither be found nor fetched; says what to download.
        ValueError: the weights are pickles, or a single file is of no known family or does not fit `config`.
    """
    path = Path(name)
    if path.suffix in (".safetensors", *PICKLES) and not path.is_dir():
        pipe = load_single_file(path, dtype, config)
    elif config is not None:
        raise ValueError(f"config must be left out unless name is a .safetensors file, got name {str(name)!r}")
    else:
        with no_loading_bars(str(name) == "emoji"):
            pipe = _from_name(str(name), dtype)
    pipe.set_progress_bar_config(disable=True)
    return _laid_out(pipe.to(device))


def model_name(pipe: DiffusionPipeline) -> str:
    """Return what a trace calls a pipeline's model: "emoji", "owner/name@commit", a path, or "unnamed"."""
    name = str(pipe.name_or_path or "unnamed")
    if Path(name) == emoji_world() / "sd":
        return "emoji"
    # A pipeline that diffusers loaded keeps the hub id alone; the path of its network has the commit.
    path = Path(str(getattr(denoiser(pipe).config, "_name_or_path", ""))).as_posix()
    found = re.search(rf"/models--{re.escape(name.replace('/', '--'))}/snapshots/([0-9a-f]{{40}})(/|$)", path)
    return f"{name}@{found[1]}" if found else name


def _laid_out(pipe: DiffusionPipeline) -> DiffusionPipeline:
    """Return the pipeline with its weights as its device reads them fastest."""
    if model_name(pipe) == "emoji" and pipe.device.type == "cpu":
        for network in (denoiser(pipe), pipe.vae):
            network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue, reportArgumentType]
    return pipe


def _from_name(name: str, dtype: torch.dtype) -> DiffusionPipeline:
    """Load a short name, a folder or a hub id."""
    source = source_of(name)
    folder = source if isinstance(source, Path) else fetched(source)
    parts = parts_of(folder)
    variant = _variant(folder, parts, name)
    without = {"safety_checker": None} if "safety_checker" in parts else {}  # SDXL and the like have none to leave out
    try:
        if lacking := without_vocabulary(folder, parts):
            raise FileNotFoundError(f"{lacking} has no vocabulary")
        pipe = DiffusionPipeline.from_pretrained(folder, dtype=dtype, use_safetensors=True, variant=variant, **without)
    except OSError as error:
        if isinstance(source, HubModel):
            raise source.missing(f"what is there is not all ({said(error)})") from error
        raise FileNotFoundError(f"folder {name!r} is no whole pipeline: {said(error)}") from error
    if isinstance(source, HubModel):
        pipe.register_to_config(_name_or_path=f"{source.hub_id}@{folder.name}")
    return pipe


def _variant(folder: Path, parts: dict[str, Any], name: str) -> str | None:
    """Return "fp16" if a part's weights are there in no other form."""
    variant = None
    for part in sorted(set(parts) - {"safety_checker"}):
        files = [path.name for path in (folder / part).glob("*") if path.is_file()]
        weights = [file for file in files if file.endswith(".safetensors")]
        if not weights and any(file.endswith(PICKLES) for file in files):
            raise pickled(name, part)
        if weights and all(".fp16" in file for file in weights):
            variant = "fp16"
    return variant
