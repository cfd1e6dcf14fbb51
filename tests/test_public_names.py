import importlib

import pytest

PUBLIC = {
    "tracer": {
        "EVERYTHING", "Capture", "Prompt", "Recorder", "Store", "attending", "attention_sites", "load_pipeline",
        "load_prompts", "recording",
    },
    "regulate": {
        "FIXED", "METHODS", "PAPER", "AttentionRegulation", "Given", "Method", "Request", "applied", "combined",
        "generate",
    },
    "analysis": {"Compared", "Searched", "ablate", "compare", "demo", "explore", "search"},
    "metrics": {
        "Detection", "DetectionProtocol", "detect", "detection_rate", "found", "load_detector", "known_protocols",
        "read_folder", "score", "score_set",
    },
}  # fmt: skip


@pytest.mark.parametrize("package", PUBLIC)
def test_a_package_offers_the_names_that_its_docstring_promises_and_no_others(package):
    module = importlib.import_module(package)
    assert set(module.__all__) == PUBLIC[package]
    assert all(getattr(module, name).__doc__ for name in module.__all__)
