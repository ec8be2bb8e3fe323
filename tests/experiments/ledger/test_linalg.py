"""Factorisations by the formulas of the textbooks, and that no function of torch.linalg, fft or special is missed."""

import pytest
import torch

from experiments.ledger import Ledger

B, N, M, K = 2, 6, 9, 3
RANDOM = torch.Generator().manual_seed(0)
SQUARE = torch.rand(B, N, N, generator=RANDOM) + 3 * torch.eye(N)
SYMMETRIC = SQUARE @ SQUARE.mT
TALL = torch.rand(B, M, N, generator=RANDOM)
RIGHT = torch.rand(B, N, K, generator=RANDOM)
X = torch.rand(4, 8, generator=RANDOM) * 0.8 + 0.1
linalg, fft, special = torch.linalg, torch.fft, torch.special


def flops(function, *args):
    with Ledger() as ledger:
        function(*args)
    return ledger.flops


@pytest.mark.parametrize(
    ("function", "args", "expected"),
    [
        (linalg.cholesky_ex, (SYMMETRIC,), N**3 // 3),
        (linalg.lu_factor_ex, (SQUARE,), 2 * N**3 // 3),
        (linalg.lu_factor_ex, (TALL,), M * N**2 - N**3 // 3),
        (linalg.solve, (SQUARE, RIGHT), 2 * N**3 // 3 + 2 * N * N * K),
        (linalg.solve, (SQUARE, RIGHT[..., 0]), 2 * N**3 // 3 + 2 * N * N),
        (linalg.inv, (SQUARE,), 2 * N**3),
        (linalg.det, (SQUARE,), 2 * N**3 // 3 + N),
        (lambda a, b: torch.cholesky_solve(b, a), (SQUARE, RIGHT), 2 * N * N * K),
        (lambda a, b: linalg.solve_triangular(a, b, upper=True), (SQUARE, RIGHT), N * N * K),
        (lambda a, b: linalg.solve_triangular(a, b.mT, upper=True, left=False), (SQUARE, RIGHT), N * N * K),
        (lambda a: linalg.qr(a, "r"), (TALL,), 2 * M * N**2 - 2 * N**3 // 3),
        (linalg.qr, (TALL,), 4 * M * N**2 - 4 * N**3 // 3),
        (linalg.svdvals, (TALL,), 6 * M * N**2 + 20 * N**3),
        (lambda a: linalg.svd(a, full_matrices=False), (TALL,), 6 * M * N**2 + 20 * N**3),
        (linalg.svd, (TALL.mT,), 4 * M**2 * N + 22 * N**3),
        (linalg.eigh, (SYMMETRIC,), 9 * N**3),
        (linalg.eigvalsh, (SYMMETRIC,), 9 * N**3),
        (linalg.eig, (SQUARE,), 25 * N**3),
        (linalg.eigvals, (SQUARE,), 25 * N**3),
        # The 1-norm of the first is below the reach of the polynomial, that of the second needs three squarings.
        (torch.matrix_exp, (torch.eye(N).expand(B, N, N),), 10 * N**3),
        (torch.matrix_exp, (16 * torch.eye(N).expand(B, N, N),), 16 * N**3),
    ],
)
def test_textbook_formulas(function, args, expected):
    assert flops(function, *args) == B * expected


def test_backward_of_a_solve_is_a_solve_with_the_same_factors():
    a, b = SQUARE.clone().requires_grad_(), RIGHT.clone().requires_grad_()
    with Ledger() as ledger:
        linalg.solve(a, b).backward(torch.ones_like(b))
    # two substitutions for the gradient of b, its product with the solution and a sign for that of a
    assert ledger.by_phase["backward"] == B * (2 * N * N * K + 2 * N * N * K + N * N)


def test_distances_cost_the_same_whichever_way_they_are_computed():
    few, many = torch.rand(20, 5), torch.rand(30, 5)
    for left, right in ((few, few), (many, many)):
        assert flops(torch.cdist, left, right) == 3 * len(left) * len(right) * 5
    assert flops(torch.pdist, few) == 3 * 20 * 19 // 2 * 5


def differentiable(function):
    def run(*args):
        args = [x.clone().requires_grad_() for x in args]
        out = function(*args)
        outs = [y for y in (out if isinstance(out, tuple) else (out,)) if y.requires_grad]
        torch.autograd.backward(outs, [torch.ones_like(y) for y in outs])

    return run


LINALG = """
    cond det eig eigvals inv lu lu_factor matrix_exp matrix_norm matrix_rank norm pinv qr slogdet svd svdvals
    vector_norm cholesky eigh eigvalsh
"""
FFT = (
    "fft ifft rfft irfft hfft ihfft fft2 ifft2 rfft2 irfft2 fftn ifftn rfftn irfftn hfft2 fftshift ifftshift"
)
SPECIAL = """
    digamma entr erf erfc erfcx erfinv exp2 expit expm1 gammaln i0 i0e i1 i1e log1p log_ndtr logit ndtr ndtri psi
    round sinc airy_ai bessel_j0 bessel_j1 bessel_y0 bessel_y1 modified_bessel_i0 modified_bessel_i1
    modified_bessel_k0 modified_bessel_k1 scaled_modified_bessel_k0 scaled_modified_bessel_k1 spherical_bessel_j0
"""
OF_TWO = """
    gammainc gammaincc xlog1py xlogy zeta chebyshev_polynomial_t chebyshev_polynomial_u chebyshev_polynomial_v
    chebyshev_polynomial_w hermite_polynomial_h hermite_polynomial_he laguerre_polynomial_l legendre_polynomial_p
    shifted_chebyshev_polynomial_t
"""
ALL = [(linalg, name, (SYMMETRIC,)) for name in LINALG.split()]
ALL += [(fft, name, (X,)) for name in FFT.split()]
ALL += [(special, name, (X,)) for name in SPECIAL.split()]
ALL += [(special, name, (X + 1, X + 1)) for name in OF_TWO.split()]


@pytest.mark.parametrize(("module", "name", "args"), ALL, ids=[name for _, name, _ in ALL])
def test_every_function_is_priced_with_and_without_gradients(module, name, args):
    function = getattr(module, name)
    assert flops(function, *args) > 0 or "shift" in name or name == "matrix_rank"
    try:
        differentiable(function)(*args)
    except RuntimeError:
        return  # torch has no gradient for it
    flops(differentiable(function), *args)


SCANS = ["cumsum", "cumprod", "logcumsumexp", "cummax", "cummin"]
SELECTIONS = ["sort", "median", "nanmedian", "mode", "argsort", "unique_consecutive", "unique"]
SUMS = ["std", "var_mean", "prod", "nansum", "aminmax", "diff", "trapezoid", "cov", "corrcoef", "histc"]


@pytest.mark.parametrize("name", [*SCANS, *SELECTIONS, *SUMS])
def test_scans_selections_and_statistics_are_priced(name):
    function = getattr(torch, name)
    assert flops(function, X, -1) > 0 if name in SCANS else flops(function, X) > 0


def test_complex_numbers_are_two_numbers():
    z, real = torch.complex(X, X), X
    n = X.numel()
    assert flops(torch.add, z, z) == 2 * n
    assert flops(torch.mul, z, z) == 6 * n
    assert flops(torch.mul, z, real) == flops(torch.mul, z, 2.0) == 2 * n
    assert flops(torch.sum, z) == 2 * n
    assert flops(torch.mm, z, z.T) == 4 * flops(torch.mm, real, real.T) == 8 * 4 * 4 * 8


@pytest.mark.parametrize(
    "function",
    [
        linalg.cholesky,
        linalg.inv,
        linalg.qr,
        linalg.eigh,
        linalg.eigvals,
        linalg.pinv,
        linalg.matrix_exp,
        lambda a: linalg.solve(a, a[..., :K]),
        lambda a: linalg.solve_triangular(a, a[..., :K], upper=True),
        lambda a: torch.cholesky_solve(a[..., :K], a),
    ],
)
def test_complex_matrices_cost_four_times_as_much(function):
    assert flops(function, SYMMETRIC.cfloat()) == 4 * flops(function, SYMMETRIC)


def test_eigenvalues_into_a_place_for_results():
    place = torch.empty(B, N, dtype=torch.cfloat)
    assert flops(lambda: linalg.eigvals(SQUARE, out=place)) == flops(linalg.eigvals, SQUARE) == B * 25 * N**3
