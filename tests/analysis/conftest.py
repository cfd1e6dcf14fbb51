"""A detector of random weights, as a folder, and a trace of two runs with it."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from transformers import (
    CLIPTokenizer,
    Owlv2Config,
    Owlv2ForObjectDetection,
    Owlv2ImageProcessor,
    Owlv2Processor,
)

from analysis.score_images import score_images
from metrics.protocols import DetectionProtocol
from metrics.weights import Detector, load_detector
from regulate import METHODS, Request, generate
from tracer.capture import Capture
from tracer.store import Store

PROMPT, TARGETS, SEEDS, STEPS = "a cat and an elephant", ("cat", "elephant"), (3, 5, 8), 4


@pytest.fixture(scope="session")
def tiny_protocol(clip_vocabulary, tmp_path_factory: pytest.TempPathFactory) -> DetectionProtocol:
    """The protocol of a random OWLv2 of 8x8 boxes at 64 px, whose scores spread around its threshold."""
    ids = {"bos_token_id": 49_406, "eos_token_id": 49_407, "pad_token_id": 0}
    size = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    text = {"vocab_size": 49_408, "max_position_embeddings": 16} | size | ids
    vision = {"image_size": 64, "patch_size": 8} | size
    model = Owlv2ForObjectDetection(Owlv2Config(text_config=text, vision_config=vision, projection_dim=32))
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        if parameter.ndim > 1:  # with their usual small weights all boxes would be alike
            parameter.data.normal_(0, 0.5, generator=generator)
    tokenizer = CLIPTokenizer(*clip_vocabulary, model_max_length=16, pad_token="!")
    processor = Owlv2Processor(Owlv2ImageProcessor(size={"height": 64, "width": 64}), tokenizer)
    folder = tmp_path_factory.mktemp("detector")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return DetectionProtocol(checkpoint=str(folder), threshold=0.5, world="emoji")


@pytest.fixture(scope="session")
def tiny_detector(tiny_protocol: DetectionProtocol) -> Detector:
    """The detector of `tiny_protocol`."""
    return load_detector(tiny_protocol)


@dataclass(frozen=True)
class Traced:
    """A trace of three images, plain and regulated, with exact maps, and their detections."""

    store: Store
    plain: int
    regulated: int
    protocol: DetectionProtocol
    request: Request
    pictures: dict[tuple[str, int], np.ndarray]  # by (method, seed)
    sha256: dict[tuple[str, int], str]


@pytest.fixture(scope="session")
def traced(tiny_pipe, tiny_detector: Detector, tmp_path_factory: pytest.TempPathFactory):
    """See `Traced`."""
    request = Request(PROMPT, TARGETS, SEEDS, steps=STEPS, batch=2)
    with Store.create(tmp_path_factory.mktemp("trace") / "trace.duckdb") as store:
        runs, pictures, hashes = [], {}, {}
        for name in ("plain", "regulation"):
            made = generate(tiny_pipe, request, METHODS[name], store, Capture(tokens="all", precision="float32"))
            score_images(store, tiny_detector, dict(zip(made.sha256, made.images, strict=True)), TARGETS)
            runs.append(made.run_id)
            pictures |= {(name, s): np.asarray(i) for s, i in zip(SEEDS, made.images, strict=True)}
            hashes |= {(name, s): sha for s, sha in zip(SEEDS, made.sha256, strict=True)}
        yield Traced(store, *runs, tiny_detector.protocol, request, pictures, hashes)
