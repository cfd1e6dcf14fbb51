"""From a model's name to its pipeline: the emoji world, a local folder, or a hub id.

Conventions: weights are read as safetensors only; the emoji world loads through the same call as real checkpoints.
"""

from pathlib import Path

import torch
from diffusers import DiffusionPipeline

from tracer.folders import emoji_world


def load_pipeline(
    name: str = "emoji", device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> DiffusionPipeline:
    """Return a text-to-image pipeline with its progress bar off.

    Args:
        name: "emoji" for the embedded world, a local folder in diffusers' layout, or a hub id.
        device: where to put it.
        dtype: of its weights.

    Raises:
        FileNotFoundError: `name` is a folder that holds no pipeline, or a hub id that can neither be found nor fetched.
    """
    folder = emoji_world() / "sd" if name == "emoji" else Path(name)
    if folder.is_dir() and not (folder / "model_index.json").is_file():
        raise FileNotFoundError(f"folder {name!r} is no diffusers pipeline: it has no model_index.json")
    try:
        source = folder if folder.is_dir() else name
        parts = DiffusionPipeline.load_config(source)  # SDXL and the like have no safety checker to leave out
        without = {"safety_checker": None} if "safety_checker" in parts else {}
        pipe = DiffusionPipeline.from_pretrained(source, dtype=dtype, use_safetensors=True, **without)
    except (OSError, ValueError) as error:  # diffusers says ValueError for a name that cannot be a hub id
        raise FileNotFoundError(
            f"model {name!r} is neither 'emoji', nor a local folder, nor a hub model that can be fetched from here; "
            "download it where there is a network (huggingface-cli download) and give its folder"
        ) from error
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)
