import subprocess
import sys
from dataclasses import replace

import golden
import pytest
import slow_regulation as slow
import slow_variants as variants
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.host_sync import HostSyncs
from regulate import FIXED, PAPER, AttentionRegulation
from regulate.kernels import gaussian_kernels
from regulate.objective import Objective, Problem, bias_of, distance, gradient, problem_of, solve, terms
from regulate.softmax import biased, members_of, reduced

CPU = torch.device("cpu")
OBJECTIVE = Objective()


def problem_for(scores, words, size, objective=OBJECTIVE, grid="inner", scale=1.0) -> Problem:
    """The problem of a batch of scores "batch head pixel token", in their own precision."""
    members = members_of(words, scores.shape[-1], CPU)
    parts = reduced(scores.transpose(-1, -2), members, spread=True)
    kernels = gaussian_kernels(*size, grid).to(scores.dtype) * scale
    return problem_of(parts, kernels, members.weights(scores.shape[1]).to(scores.dtype), objective)


def target_first(theta: torch.Tensor) -> torch.Tensor:
    """From "batch head target ..." to "target row kernel"."""
    return theta.flatten(3).permute(2, 0, 1, 3).flatten(1, 2).contiguous()


GOLDEN = golden.cases()


@pytest.mark.parametrize("case", GOLDEN, ids=[case.name for case in GOLDEN])
def test_bias_loss_and_probabilities_are_the_authors_own(case):
    """Steps 0, 1, 2 with their memory and decay; their solver, theta injected, before its cast to float16."""
    method, memory = AttentionRegulation(), None
    words = [[[position] for position in case.positions]]
    for step, given_ in enumerate(case.steps):
        scores, theta = given_.scores.double()[None], target_first(given_.theta.double()[None])
        problem = problem_for(scores, words, (case.height, case.width))
        solution = solve(problem, theta, OBJECTIVE, 1)
        loss = solution.terms.loss.mean(1)
        torch.testing.assert_close(loss[0], given_.losses[0], rtol=1e-6, atol=0)
        torch.testing.assert_close(loss[1], given_.losses.min(), rtol=1e-6, atol=0)
        assert int(solution.kept) == int(given_.losses.argmin())
        optimum = bias_of(solution.theta, problem.kernels)
        torch.testing.assert_close(optimum.transpose(0, 1).float(), given_.bias, rtol=1e-5, atol=1e-5)
        before = bias_of(theta, problem.kernels) if memory is None else memory
        mixed = (method.memory * before + (1 - method.memory) * optimum) * method.decay**step
        memory = optimum
        members = members_of(words, scores.shape[-1], CPU)
        probs = biased(scores.transpose(-1, -2), mixed, members).transpose(-1, -2)[0]
        kept = scores[0].softmax(-1)
        for end in (0, case.end):
            probs[..., end] = kept[..., end]
        torch.testing.assert_close(probs.float(), given_.probs, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("case", GOLDEN, ids=[case.name for case in GOLDEN])
def test_single_precision_stays_near_the_authors_numbers(case):
    """Rounding grows over the descent: theirs in float32 is off by up to 1e-4 too."""
    first = case.steps[0]
    problem = problem_for(first.scores[None], [[[p] for p in case.positions]], (case.height, case.width))
    loss = solve(problem, target_first(first.theta[None]), OBJECTIVE, 1).terms.loss.mean(1)
    torch.testing.assert_close(loss[1].double(), first.losses.min(), rtol=1e-5, atol=0)


SHAPES = st.sampled_from([(8, 8), (16, 16), (24, 24), (6, 9), (16, 12), (3, 20)])
WORDS = st.sampled_from([[[2]], [[2], [5]], [[1], [3], [4]], [[2, 3]], [[1, 4], [6]], [[5], [2, 3, 4]]])


def random_scores(seed: int, size, images=1, heads=2, tokens=9, dtype=torch.float64) -> torch.Tensor:
    chance = torch.Generator().manual_seed(seed)
    scores = 2 * torch.randn(images, heads, size[0] * size[1], tokens, generator=chance, dtype=torch.float64)
    scores[..., 0] += 4  # a start token takes most
    return scores.to(dtype)


def centres(size, whole=False) -> tuple[int, int]:
    sigma = max(1, min(size) // 16)
    return tuple(len(range(2 * sigma, side + whole, 2 * sigma)) for side in size)


def random_theta(seed: int, size, targets: int, images=1, heads=2, whole=False) -> torch.Tensor:
    chance = torch.Generator().manual_seed(seed + 1)
    return torch.rand(images, heads, targets, *centres(size, whole), generator=chance, dtype=torch.float64)


def slow_values(loss, scores, theta) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and gradient of each head of the first image, by autograd."""
    losses, slopes = [], []
    for head in range(scores.shape[1]):
        leaf = theta[0, head].clone().requires_grad_()
        value = loss(scores[0, head], leaf)
        losses.append(value.detach())
        slopes.append(torch.autograd.grad(value, leaf)[0].flatten(1))
    return torch.stack(losses), torch.stack(slopes, 1)  # "target head kernel"


def compare(problem, theta, objective, expected) -> None:
    """Loss and gradient in the problem's precision, held to the slow ones in float64."""
    state, slope = gradient(problem, target_first(theta).to(problem.kernels.dtype), objective)
    loss, slow_slope = expected
    torch.testing.assert_close(terms(problem, state, objective).loss.double(), loss, rtol=1e-5, atol=1e-12)
    near = 1e-5 * slow_slope.abs().max().item()
    torch.testing.assert_close(slope.double(), slow_slope, rtol=1e-5, atol=near)


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), size=SHAPES, words=WORDS, dtype=st.sampled_from([torch.float32, torch.float64]))
def test_loss_and_gradient_equal_autograd_over_all_tokens(seed, size, words, dtype):
    """In float32 too: the released loss, each word one target, of one piece or several."""
    scores, theta = random_scores(seed, size, dtype=dtype), random_theta(seed, size, len(words))
    expected = slow_values(
        lambda s, t: variants.fixed_loss(s, t, words, *size), scores.double(), theta.float().double()
    )
    compare(problem_for(scores, [words], size), theta.float(), OBJECTIVE, expected)


@settings(max_examples=20)
@given(
    seed=st.integers(0, 10_000),
    size=st.sampled_from([(8, 8), (6, 9), (16, 16)]),
    words=WORDS,
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_the_paper_s_loss_and_gradient_equal_autograd_over_all_tokens(seed, size, words, dtype):
    scale = 0.25
    scores = random_scores(seed, size, dtype=dtype)
    theta = random_theta(seed, size, len(words), whole=True)
    objective = replace(PAPER, proportion=0.002)
    expected = slow_values(
        lambda s, t: variants.paper_loss(s / scale, t, words, *size, scale, 0.002),
        scores.double(),
        theta.float().double(),
    )
    compare(problem_for(scores, [words], size, objective, "whole", scale), theta.float(), objective, expected)


@pytest.mark.parametrize("objective", [OBJECTIVE, FIXED, PAPER], ids=["published", "fixed", "paper"])
@pytest.mark.parametrize("words", [[[1], [3]], [[1, 2], [4]]])
def test_the_gradient_is_the_loss_s_derivative(objective, words):
    size = (6, 6)
    problem = problem_for(random_scores(3, size), [words], size, objective, scale=0.5)

    class Loss(torch.autograd.Function):
        @staticmethod
        def forward(ctx, theta):
            state, slope = gradient(problem, theta, objective)
            ctx.save_for_backward(slope)
            return terms(problem, state, objective).loss

        @staticmethod
        def backward(ctx, *grads):
            return grads[0][:, None] * ctx.saved_tensors[0]

    theta = target_first(random_theta(3, size, 2)).requires_grad_()
    assert torch.autograd.gradcheck(Loss.apply, (theta,))


def test_where_nothing_has_changed_the_deviation_and_its_gradient_are_zero():
    objective = replace(PAPER, proportion=0.0, level=0.0)
    problem = problem_for(random_scores(1, (8, 8)), [[[2], [5]]], (8, 8), objective, "whole")
    theta = torch.zeros(2, 2, 16, dtype=torch.float64)
    without = replace(objective, deviation=0.0)
    (state, slope), (_, slope_without) = gradient(problem, theta, objective), gradient(problem, theta, without)
    assert torch.equal(state.change, torch.zeros(2, dtype=torch.float64))
    assert torch.equal(slope, slope_without)


@settings(max_examples=20)
@given(seed=st.integers(0, 10_000), size=SHAPES, words=WORDS, step=st.sampled_from([0.1, 100.0, 1e4, 1e30]))
def test_what_is_kept_is_never_worse_than_the_start(seed, size, words, step):
    """Also where the step is so large that the descent leaves the finite numbers."""
    scores, theta = random_scores(seed, size, dtype=torch.float32), random_theta(seed, size, len(words)).float()
    problem = problem_for(scores, [words], size)
    solution = solve(problem, target_first(theta), replace(OBJECTIVE, step_size=step), 1)
    start, kept = solution.terms.loss.mean(1)
    assert kept <= start
    again, _ = gradient(problem, solution.theta, OBJECTIVE)
    torch.testing.assert_close(terms(problem, again, OBJECTIVE).loss.mean(), kept, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("size", [(8, 8), (16, 16)])
def test_the_solver_keeps_the_same_iterate_as_the_slow_version(size):
    scores, theta = random_scores(4, size), random_theta(4, size, 2)
    solution = solve(problem_for(scores, [[[2], [5]]], size), target_first(theta), OBJECTIVE, 1)
    expected, losses = slow.solve(scores[0], theta[0], [2, 5], *size)
    assert int(solution.kept) == losses.index(min(losses)) > 0
    torch.testing.assert_close(solution.theta, expected.flatten(2).transpose(0, 1), rtol=1e-5, atol=1e-7)


def test_images_of_one_batch_do_not_know_of_each_other():
    """Other targets, other numbers of them, words of other lengths."""
    size, words = (8, 8), [[[2], [5]], [[4]], [[1, 2], [3], [6]]]
    scores = random_scores(2, size, images=3)
    thetas = [random_theta(image, size, len(of_image)) for image, of_image in enumerate(words)]
    together = torch.zeros(3, 2, 3, *centres(size), dtype=torch.float64)
    for image, theta in enumerate(thetas):
        together[image, :, : theta.shape[2]] = theta[0]
    whole = solve(problem_for(scores, words, size), target_first(together), OBJECTIVE, 3)
    for image, theta in enumerate(thetas):
        one = problem_for(scores[image : image + 1], words[image : image + 1], size)
        alone = solve(one, target_first(theta), OBJECTIVE, 1)
        rows = slice(2 * image, 2 * image + 2)
        torch.testing.assert_close(whole.theta[: len(words[image]), rows], alone.theta, rtol=1e-9, atol=1e-12)
        assert whole.kept[image] == alone.kept[0]


@pytest.mark.parametrize("words", [[[2], [5]], [[2, 3], [5]]])
def test_the_distance_is_the_norm_over_all_tokens(words):
    size = (6, 9)
    scores, theta = random_scores(5, size), target_first(random_theta(5, size, 2))
    problem = problem_for(scores, [words], size)
    bias = bias_of(theta, problem.kernels)
    for head, found in enumerate(distance(problem.reduced, bias)):
        change = variants.probs_of(scores[0, head], bias[:, head], words) - scores[0, head].softmax(-1)
        torch.testing.assert_close(found, torch.linalg.vector_norm(change))
    with pytest.raises(ValueError, match="needs the scores reduced with their spread"):
        distance(replace(problem.reduced, spread=None), bias)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"quantile": 1.0}, "quantile must be between 0 and 1"),
        ({"proportion_of": "max"}, "proportion_of must be 'mean' or 'sum', got 'max'"),
        ({"iterations": 0}, "iterations must be at least 1"),
    ],
)
def test_objectives_that_are_none_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Objective(**wrong)


def test_the_solver_reads_no_number_and_runs_without_data():
    """On the meta device there is nothing to read: what needs a value there raises."""
    members = members_of([[[2], [5]], [[3, 4]]], 77, torch.device("meta"))
    scores = torch.empty(2, 20, 77, 256, device="meta")
    parts = reduced(scores, members, spread=True)
    kernels = torch.empty(49, 256, device="meta")
    for objective in (OBJECTIVE, PAPER):
        problem = problem_of(parts, kernels, members.weights(20), objective)
        solution = solve(problem, torch.empty(2, 40, 49, device="meta"), objective, 2)
        assert solution.theta.shape == (2, 40, 49)
        assert biased(scores, bias_of(solution.theta, kernels), members).shape == scores.shape


def test_the_solver_waits_for_no_device():
    problem = problem_for(random_scores(1, (8, 8), dtype=torch.float32), [[[2], [5]]], (8, 8))
    with HostSyncs() as syncs:
        solve(problem, target_first(random_theta(1, (8, 8), 2).float()), OBJECTIVE, 1)
    assert syncs.found == []


COMPILED = """
from dataclasses import replace
import torch
from regulate import PAPER
from regulate.kernels import gaussian_kernels
from regulate.objective import Objective, optimum
from regulate.softmax import members_of

chance = torch.Generator().manual_seed(0)
members = members_of([[[2], [5]]], 9, torch.device("cpu"))
scores = torch.randn(1, 2, 9, 64, generator=chance)
for whole in (Objective(), PAPER):
    objective = replace(whole, iterations=3)
    kernels = gaussian_kernels(8, 8, getattr(whole, "grid", "inner"))
    theta = torch.rand(2, 2, len(kernels), generator=chance) * (whole != PAPER)  # the paper's starts at zero
    given = scores, members, kernels, members.weights(2), theta, objective
    compiled, eager = torch.compile(optimum, fullgraph=True, dynamic=False)(*given), optimum(*given)
    torch.testing.assert_close(compiled.theta, eager.theta, rtol=1e-4, atol=1e-4)
    assert torch.equal(compiled.kept, eager.kept)
    print("the same")
"""


def test_compiled_as_one_graph_it_gives_the_same():
    """In a process of its own: the checks of shapes, which tests put on every function, do not compile."""
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, check=False)
    assert done.stdout.split("\n") == ["the same", "the same", ""], done.stderr
