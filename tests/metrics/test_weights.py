"""Loading a detector: what is not there, or is something else, is named; protocols tell rates apart."""

import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Owlv2ForObjectDetection, Owlv2Processor

from metrics.protocols import DetectionProtocol, emoji_detection
from metrics.weights import load_detector
from tracer.folders import emoji_world


@pytest.fixture
def copied(tmp_path):
    """A copy of the emoji world's detector that a test may spoil, and its protocol."""
    folder = tmp_path / "owlv2"
    shutil.copytree(emoji_world() / "owlv2", folder)
    return folder, replace(emoji_detection(), checkpoint=str(folder))


def test_a_checkpoint_that_is_not_here_names_what_to_download(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"hf download nobody/owlv2-nowhere"):
        load_detector(DetectionProtocol(checkpoint="nobody/owlv2-nowhere"))


def test_a_folder_that_is_no_checkpoint_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no complete OWLv2 checkpoint"):
        load_detector(DetectionProtocol(checkpoint=str(tmp_path)))


def test_another_kind_of_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "clip_text_model"}')
    with pytest.raises(ValueError, match="must be an OWLv2 model"):
        load_detector(DetectionProtocol(checkpoint=str(tmp_path)))


def test_weights_other_than_the_protocol_says_are_refused(copied):
    folder, protocol = copied
    weights = load_file(folder / "model.safetensors")
    save_file({name: value + 1 for name, value in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="SHA-256"):
        load_detector(protocol)


def test_missing_weights_are_an_error_not_a_warning(copied):
    folder, protocol = copied
    weights = load_file(folder / "model.safetensors")
    del weights["box_head.dense0.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks the weights .*box_head"):
        load_detector(replace(protocol, weights=None))


def test_the_emoji_detector_loads_without_our_code_in_float32():
    folder = emoji_world() / "owlv2"
    model = Owlv2ForObjectDetection.from_pretrained(folder, local_files_only=True)
    processor = Owlv2Processor.from_pretrained(folder, local_files_only=True)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert processor.tokenizer.model_max_length == 16
    ours = load_detector().model.state_dict()
    assert all(torch.equal(value, ours[name]) for name, value in model.state_dict().items())
