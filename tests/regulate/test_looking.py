"""A pass that is made for its maps: it ends behind the last of them, unless somebody wants the rest."""

import torch

from metrics.machine import counting
from regulate import METHODS, Request, generate
from tracer.capture import Capture
from tracer.store import Store

REQUEST = Request("a cat and a dog", ("cat", "dog"), seeds=(3, 4), steps=4)


def made(pipe, **more):
    """Return the images' hashes, how many passes were begun, and how many of them came to their end."""
    ends = []
    handle = pipe.unet.conv_out.register_forward_hook(lambda *_: ends.append(torch.is_grad_enabled()))
    try:
        with counting(pipe.unet) as count:
            images = generate(pipe, REQUEST, METHODS["divide-and-bind"], **more)
    finally:
        handle.remove()
    return images.sha256, count, ends


def test_a_pass_for_maps_ends_behind_the_last_of_them_and_the_image_is_that_of_whole_passes(tiny_pipe, tmp_path):
    alone, count, ends = made(tiny_pipe)
    with Store.create(tmp_path / "trace.duckdb") as store:
        recorded, counted, whole = made(tiny_pipe, trace=store, capture=Capture(precision="none", tokens="targets"))
    assert recorded == alone
    assert (count.passes, count.with_gradient) == (counted.passes, counted.with_gradient)
    assert count.with_gradient > 0
    assert ends == [False] * REQUEST.steps  # of the sampling passes alone
    assert whole.count(True) == count.with_gradient
    assert whole.count(False) == REQUEST.steps
