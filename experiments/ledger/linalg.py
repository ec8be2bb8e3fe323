"""Factorisations, solves and matrix functions, priced by the formulas of the textbooks, without lower-order terms."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, log2, prod

import torch
from torch import Tensor

from experiments.ledger.price import Call, Price, Rule, priced

# Up to this 1-norm a Taylor polynomial of degree 18 gives the exponential to single precision.
_TAYLOR_REACH = 3.010066362817634


def _matrices(x: Tensor) -> int:
    return prod(x.shape[:-2])


def _square(numerator: int, denominator: int = 1) -> Callable[[Call], int]:
    """``numerator/denominator``·n³ a matrix, n the larger side."""

    def count(call: Call) -> int:
        x: Tensor = call.first()
        return _matrices(x) * (numerator * max(x.shape[-2:]) ** 3 // denominator)

    return count


def _tall(x: Tensor) -> tuple[int, int, int]:
    """Number of matrices, longer side, shorter side."""
    return _matrices(x), max(x.shape[-2:]), min(x.shape[-2:])


def _lu(call: Call) -> int:
    batch, m, n = _tall(call.first())
    return batch * ((3 * m * n * n - n**3) // 3)


def _determinant(call: Call) -> int:
    return _lu(call) + call.first().shape[-1] * _matrices(call.first())


def _columns(matrix: Tensor, right: Tensor, left: bool) -> int:
    """Right-hand sides over the whole batch; a batch of vectors has no dimension of columns."""
    if right.ndim == 1 or (right.ndim == matrix.ndim - 1 and right.shape[:-1] == matrix.shape[:-2]):
        return max(_matrices(matrix), right.numel() // matrix.shape[-1])
    return prod(torch.broadcast_shapes(matrix.shape[:-2], right.shape[:-2])) * right.shape[-1 if left else -2]


def _substitution(times: int) -> Callable[[Call], int]:
    """``times``·n² a right-hand side."""

    def count(call: Call) -> int:
        matrix, right = _system(call)
        return times * matrix.shape[-1] ** 2 * _columns(matrix, right, call["left"] is not False)

    return count


def _system(call: Call) -> tuple[Tensor, Tensor]:
    """The matrix and the right-hand sides, under the names that the operators give them."""
    named = [call[name] for name in ("A", "LU", "LD", "input2") if call[name] is not None]
    matrix = named[0] if named else call.first()
    return matrix, call.first() if call["B"] is None else call["B"]


def _solve(call: Call) -> int:
    return _lu(call) + _substitution(2)(call)


def _reflections(batch: int, m: int, n: int, k: int) -> int:
    """Making or multiplying out ``k`` Householder reflections of an m×n matrix."""
    return batch * ((12 * m * n * k - 6 * (m + n) * k * k + 4 * k**3) // 3)


def _geqrf(call: Call) -> int:
    x: Tensor = call.first()
    m, n = x.shape[-2:]
    return _reflections(_matrices(x), m, n, min(m, n))


def _qr(call: Call) -> int:
    x: Tensor = call.first()
    m, n = x.shape[-2:]
    k = min(m, n)
    mode = call["mode"]
    width = 0 if mode == "r" else m if mode == "complete" else k
    return _geqrf(call) + (_reflections(_matrices(x), m, width, k) if width else 0)


def _multiplied_out(call: Call) -> int:
    reflectors: Tensor = call.first()
    m, n = reflectors.shape[-2:]
    return _reflections(_matrices(reflectors), m, n, call["tau"].shape[-1])


def _applied(call: Call) -> int:
    reflectors, other = call.first(), call["input3"]
    k, length = call["input2"].shape[-1], reflectors.shape[-2]
    width = other.shape[-1] if call["left"] else other.shape[-2]
    return _matrices(reflectors) * width * (4 * length * k - 2 * k * k)


def _svd(call: Call) -> int:
    batch, m, n = _tall(call.first())
    return batch * (4 * m * m * n + 22 * n**3 if call["full_matrices"] else 6 * m * n * n + 20 * n**3)


def _pinv(call: Call) -> int:
    batch, m, n = _tall(call.first())
    return batch * (6 * m * n * n + 20 * n**3 + 2 * m * n * n + m * n)


def _least_squares(call: Call) -> int:
    matrix, right = call.first(), call.args[1]
    batch, m, n = _tall(matrix)
    columns = _columns(matrix, right, True) // max(batch, 1)
    return _reflections(batch, m, n, n) + batch * columns * (4 * m * n - n * n)


def _exponential(call: Call) -> int:
    x: Tensor = call.first()
    squarings = 0
    if not x.is_meta and x.numel():
        with torch.no_grad():
            norms = x.abs().sum(-2).amax(-1).flatten().tolist()
        squarings = sum(ceil(log2(max(norm / _TAYLOR_REACH, 1))) for norm in norms)
    return 2 * x.shape[-1] ** 3 * (5 * _matrices(x) + squarings)


def _crossed(call: Call) -> int:
    return (14 if call.out.is_complex() else 3) * call.out.numel()


def _rule(text: str, count: Callable[[Call], int], because: str) -> Price:
    # The leading terms are multiply-adds, and one of complex numbers is four.
    return Price(
        Rule(text, lambda call: (4 if call.first().is_complex() else 1) * count(call)), because=because
    )


_MEMBERS: tuple[tuple[Price, str], ...] = (
    (_rule("n³/3", _square(1, 3), "Cholesky, or LDLᵀ"), "linalg_cholesky_ex cholesky linalg_ldl_factor_ex"),
    (_rule("m·n² - n³/3, m ≥ n", _lu, "Gaussian elimination"), "linalg_lu_factor_ex linalg_lu"),
    (
        _rule("m·n² - n³/3 + n", _determinant, "Gaussian elimination, the diagonal multiplied"),
        "_linalg_det _linalg_slogdet",
    ),
    (_rule("2·n³/3 + 2·n²·columns", _solve, "elimination, two substitutions"), "_linalg_solve_ex"),
    (
        _rule("2·n²·columns", _substitution(2), "two substitutions"),
        "linalg_lu_solve linalg_ldl_solve cholesky_solve _cholesky_solve_helper",
    ),
    (_rule("n²·columns", _substitution(1), "one substitution"), "linalg_solve_triangular triangular_solve"),
    (_rule("2·n³", _square(2), "elimination, n right-hand sides"), "linalg_inv_ex"),
    (_rule("2·n³/3", _square(2, 3), "inverse from a Cholesky factor"), "cholesky_inverse"),
    (_rule("2·m·n² - 2·n³/3, m ≥ n", _geqrf, "Householder reflections"), "geqrf"),
    (
        _rule("4·m·n² - 4·n³/3, m ≥ n; half of it for R alone", _qr, "reflections, then multiplied out"),
        "linalg_qr",
    ),
    (
        _rule("4·m·n·k - 2·(m + n)·k² + 4·k³/3", _multiplied_out, "k reflections multiplied out"),
        "linalg_householder_product",
    ),
    (_rule("width·(4·m·k - 2·k²)", _applied, "k reflections applied"), "ormqr"),
    (
        _rule(
            "6·m·n² + 20·n³; all of U 4·m²·n + 22·n³",
            _svd,
            "Golub and Van Loan, R-SVD, m ≥ n",
        ),
        "_linalg_svd",
    ),
    (_rule("8·m·n² + 20·n³ + m·n", _pinv, "singular values, then one product"), "linalg_pinv"),
    (_rule("9·n³", _square(9), "Golub and Van Loan, symmetric QR iteration with vectors"), "_linalg_eigh"),
    (
        _rule("25·n³", _square(25), "Golub and Van Loan, QR iteration with vectors"),
        "linalg_eig _linalg_eigvals linalg_eigvals.out",
    ),
    (
        _rule("2·m·n² - 2·n³/3 + columns·(4·m·n - n²)", _least_squares, "QR, reflections, substitution"),
        "linalg_lstsq",
    ),
    (
        _rule("10·n³ + 2·n³ a squaring", _exponential, "Taylor polynomial of degree 18 in five products"),
        "linalg_matrix_exp",
    ),
    (Price(Rule("3·outputs", _crossed), because="two products and a difference"), "linalg_cross"),
)

PRICES: dict[str, Price] = {
    name: price for price, names in _MEMBERS for name in priced(price, *names.split())
}
