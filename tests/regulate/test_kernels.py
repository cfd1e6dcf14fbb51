import pytest
import slow_regulation as slow
import slow_variants as variants
import torch

from regulate.kernels import gaussian_kernels

SIZES = [((16, 16), (7, 7)), ((8, 8), (3, 3)), ((24, 24), (11, 11)), ((8, 12), (3, 5)), ((32, 32), (7, 7))]


@pytest.mark.parametrize(("size", "grid"), SIZES)
def test_kernels_stand_where_the_released_code_puts_them(size, grid):
    kernels = gaussian_kernels(*size)
    assert len(kernels) == grid[0] * grid[1]
    theta = torch.rand(1, *grid, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(theta.flatten(1) @ kernels, slow.bias_map(theta, *size))


@pytest.mark.parametrize(("size", "grid"), [((16, 16), (8, 8)), ((8, 8), (4, 4)), ((6, 9), (3, 4))])
def test_kernels_stand_where_the_paper_prints_them(size, grid):
    kernels = gaussian_kernels(*size, "whole")
    assert len(kernels) == grid[0] * grid[1]
    theta = torch.rand(1, *grid, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(theta.flatten(1) @ kernels, variants.whole_grid(theta, *size))


def test_a_map_that_holds_no_centre_is_refused():
    with pytest.raises(ValueError, match="maps must be large enough to hold a kernel, 3x3, got 2x8"):
        gaussian_kernels(2, 8)
