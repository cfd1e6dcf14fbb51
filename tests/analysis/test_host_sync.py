"""What would wait for a graphics card, or copy to or from one, is seen without one."""

import warnings
from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from analysis.host_sync import HostSyncs, cuda_sync_warnings
from regulate import METHODS, applied
from regulate.kernels import gaussian_kernels
from regulate.objective import Objective, bias_of, problem_of, solve
from regulate.softmax import Members, biased, members_of, reduced
from tracer.attention import attending
from tracer.tap import Tap

CPU = torch.device("cpu")
X = torch.arange(12.0).view(3, 4)
WAITING = {
    "item": lambda: X.sum().item(),
    "bool": lambda: bool((X > 3).any()),
    "nonzero": lambda: torch.nonzero(X),
    "mask": lambda: X[X > 3],
    "mask of several values": lambda: X.clone().index_put_((X > 9,), torch.ones(2)),
    "repeat": lambda: X.repeat_interleave(torch.tensor([1, 2, 1]), 0),
    "unique": lambda: X.unique(),
    "copy away": lambda: X.to("meta"),
    "number away": lambda: torch.tensor(2.0).to("meta"),
    "copy onto": lambda: torch.empty(3, 4, device="meta").copy_(X),
}
QUIET = {
    "repeat of known size": lambda: X.repeat_interleave(torch.tensor([1, 2, 1]), 0, output_size=4),
    "mask filled with a number": lambda: X.clone().index_put_((X > 9,), torch.tensor(1.0)),
    "index": lambda: X[1:, [0, 1]],
    "number on the CPU": lambda: torch.empty(3, device="meta") * torch.tensor(2.0),
    "made there": lambda: torch.zeros(3, device="meta").add_(1),
    "where": lambda: torch.where(X > 3, X, 0).topk(2),
}


@pytest.mark.parametrize("name", WAITING)
def test_what_waits_or_copies_is_found_once(name):
    with HostSyncs() as syncs:
        WAITING[name]()
    assert len(syncs.found) == 1


@pytest.mark.parametrize("name", QUIET)
def test_what_does_neither_is_not_found(name):
    with HostSyncs() as syncs:
        QUIET[name]()
    assert syncs.found == []


def as_on_a_card(thing):
    """Return a dataclass whose tensors lie on a card, without their values; call it inside a FakeTensorMode."""
    if isinstance(thing, Tensor):
        return torch.empty(thing.shape, dtype=thing.dtype, device="cuda")
    changed = {f.name: getattr(thing, f.name) for f in fields(thing)}
    return replace(thing, **{k: as_on_a_card(v) for k, v in changed.items() if isinstance(v, (Tensor, Members))})


def test_the_solver_neither_waits_nor_copies_on_the_cpu_or_a_card():
    members, kernels = members_of([[[2], [5]]], 77, CPU), gaussian_kernels(16, 16)
    given = [torch.zeros(1, 20, 77, 256), kernels, members.weights(20), torch.zeros(2, 20, len(kernels))]

    def work(members, scores, kernels, weights, start):
        solution = solve(problem_of(reduced(scores, members), kernels, weights, Objective()), start, Objective(), 1)
        return biased(scores, bias_of(solution.theta, kernels), members)

    with HostSyncs() as syncs:
        assert work(members, *given).isfinite().all()
    assert syncs.found == ["aten._local_scalar_dense.default"]  # of the assertion itself
    with FakeTensorMode():
        on_a_card = [as_on_a_card(thing) for thing in (members, *given)]
        with HostSyncs() as syncs:
            assert work(*on_a_card).device.type == "cuda"
            on_a_card[1].cpu()
    assert syncs.found == ["aten._to_copy.default between cpu and cuda:0"]  # of the last line


def test_an_edit_after_the_first_step_neither_waits_nor_copies_on_a_card(tiny_pipe):
    taps: list[Tap] = []
    with applied(tiny_pipe, METHODS["regulation"], "a cat and a dog", ["cat", "dog"], [7]) as run:
        edit, *_ = METHODS["regulation"].interventions(tiny_pipe, run.subjects, run.passes)
        with attending(tiny_pipe.unet, edit.sites, record=lambda tap, _: taps.append(tap)):
            tiny_pipe("a cat and a dog", num_inference_steps=4, generator=run.generators, output_type="latent")
        run.passes.step = 0
        assert edit.edit(taps[0]) is not None
        regulator = edit.edit
        run.passes.step = 1
        with FakeTensorMode(), HostSyncs() as syncs:
            layer = as_on_a_card(regulator.layers[taps[0].site])
            regulator.layers[taps[0].site] = layer
            edited = regulator(replace(as_on_a_card(taps[0])))
            solved = edited.solved()
    assert edited.probs.device.type == "cuda"
    assert {column.device.type for column in solved.values()} == {"cuda"}
    assert syncs.found == []


def test_what_cuda_says_of_waiting_is_kept_and_other_warnings_are_passed_on(monkeypatch):
    modes: list[object] = []
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    outside = warnings.catch_warnings(record=True, action="always")
    with outside as caught, cuda_sync_warnings(torch.device("cuda")) as said:
        warnings.warn("called a synchronizing CUDA operation (Triggered internally)", stacklevel=1)
        warnings.warn("another", stacklevel=1)
    assert [line.startswith("CUDA: waited at ") for line in said] == [True]
    assert [str(warning.message) for warning in caught] == ["another"]
    assert modes == ["warn", 0]
    with cuda_sync_warnings(CPU) as said:
        pass
    assert said == []
    assert modes == ["warn", 0]
