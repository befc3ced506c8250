"""Linear algebra: fixed loops carried out with numbers that count, leading terms as the textbook has them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from counting import Array, counting, flops, numbers, random, root, values
from dispatching import dispatched
from torch import Tensor

from torchledger.pricing.algebra import RULES
from torchledger.pricing.convention import State
from torchledger.pricing.full import price

aten = torch.ops.aten


def definite(n: int, *batch: int) -> Tensor:
    x = random(*batch, n, n)
    return x @ x.mT + n * torch.eye(n)


def price_of(name: str, function: Callable[..., Any], *tensors: Tensor) -> dict[str, int]:
    (operation,) = [one for one in dispatched(lambda: function(*tensors)) if one.name == name]
    priced = price(operation)
    assert priced.state is State.PRICED
    assert priced.amounts["macs"] == 0, "no contraction"
    return dict(priced.amounts)


def cholesky(a: Array) -> Array:
    """Right-looking: a root, divisions, and what is left less the outer product of the column, its lower half."""
    n = len(a)
    for j in range(n):
        a[j, j] = root(a[j, j])
        for i in range(j + 1, n):
            a[i, j] = a[i, j] / a[j, j]
        for k in range(j + 1, n):
            for i in range(k, n):
                a[i, k] = a[i, k] - a[i, j] * a[k, j]
    return a


def lu(a: Array) -> Array:
    """Without pivots."""
    m, n = a.shape
    for k in range(min(m, n)):
        for i in range(k + 1, m):
            a[i, k] = a[i, k] / a[k, k]
            for j in range(k + 1, n):
                a[i, j] = a[i, j] - a[i, k] * a[k, j]
    return a


def forwards(a: Array, b: Array, has_ones: bool = False) -> Array:
    for column in range(b.shape[1]):
        for i in range(len(a)):
            for j in range(i):
                b[i, column] = b[i, column] - a[i, j] * b[j, column]
            if not has_ones:
                b[i, column] = b[i, column] / a[i, i]
    return b


def backwards(a: Array, b: Array) -> Array:
    return forwards(a[::-1, ::-1], b[::-1])[::-1]


@pytest.mark.parametrize("n", [1, 2, 5])
def test_cholesky(n: int) -> None:
    a = definite(n)
    with counting() as counts:
        made = cholesky(numbers(a))
    torch.testing.assert_close(values(made).tril(), torch.linalg.cholesky(a), rtol=1e-4, atol=1e-4)
    amounts = price_of("linalg_cholesky_ex", torch.linalg.cholesky, a)
    assert amounts["flops"] == flops(counts) == n * (n + 1) * (2 * n + 1) // 6
    assert amounts["bytes_read"] == amounts["bytes_written"] == amounts["activation_bytes"] == 4 * n * n


@pytest.mark.parametrize(("m", "n"), [(4, 4), (5, 3), (3, 5), (1, 1)])
def test_lu(m: int, n: int) -> None:
    x = random(m, n)
    with counting() as counts:
        lu(numbers(x))
    assert price_of("linalg_lu_factor_ex", torch.linalg.lu_factor, x)["flops"] == flops(counts)


@pytest.mark.parametrize("columns", [1, 3])
def test_solving(columns: int) -> None:
    a, b = definite(4), random(4, columns)
    with counting() as counts:
        factors = lu(numbers(a))
        result = backwards(factors, forwards(factors, numbers(b), has_ones=True))
    torch.testing.assert_close(values(result), torch.linalg.solve(a, b), rtol=1e-4, atol=1e-4)
    assert price_of("_linalg_solve_ex", torch.linalg.solve, a, b)["flops"] == flops(counts)
    with counting() as counts:
        forwards(factors, numbers(b), has_ones=True)
        backwards(factors, numbers(b))
    packed = torch.linalg.lu_factor(a)
    assert price_of("linalg_lu_solve", lambda b: torch.linalg.lu_solve(*packed, b), b)["flops"] == flops(counts)


def test_substitution() -> None:
    a, b = definite(4).tril(), random(4, 3)
    with counting() as counts:
        result = forwards(numbers(a), numbers(b))
    torch.testing.assert_close(values(result), torch.linalg.solve_triangular(a, b, upper=False), rtol=1e-4, atol=1e-4)
    triangular = lambda a, b: torch.linalg.solve_triangular(a, b, upper=False)  # noqa: E731
    assert price_of("linalg_solve_triangular", triangular, a, b)["flops"] == flops(counts) == 3 * 4 * 4
    ones = lambda a, b: torch.linalg.solve_triangular(a, b, upper=False, unitriangular=True)  # noqa: E731
    assert price_of("linalg_solve_triangular", ones, a, b)["flops"] == 3 * 4 * 3
    assert price_of("triangular_solve", lambda a, b: torch.triangular_solve(b, a, upper=False), a, b)["flops"] == 48
    # both factors
    assert price_of("cholesky_solve", lambda a, b: torch.cholesky_solve(b, a), a, b)["flops"] == 2 * 48
    helper = lambda a, b: aten._cholesky_solve_helper(b, a, False)  # noqa: E731
    assert price_of("_cholesky_solve_helper", helper, a, b)["flops"] == 2 * 48


def test_each_matrix_of_a_batch_counts() -> None:
    one = price_of("_linalg_solve_ex", torch.linalg.solve, definite(4), random(4, 2))["flops"]
    six = price_of("_linalg_solve_ex", torch.linalg.solve, definite(4, 2, 3), random(2, 3, 4, 2))["flops"]
    assert six == 6 * one
    vector = price_of("_linalg_solve_ex", torch.linalg.solve, definite(4), random(4))["flops"]
    column = price_of("_linalg_solve_ex", torch.linalg.solve, definite(4), random(4, 1))["flops"]
    assert vector == column


LU6 = sum((6 - k) + 2 * (6 - k) ** 2 for k in range(1, 7))
A, TALL = definite(6), random(9, 6)

# Golub and Van Loan's leading terms, for a matrix of 6 by 6 or 9 by 6
LEADING: list[tuple[str, Callable[..., Any], tuple[Tensor, ...], int]] = [
    ("linalg_inv_ex", torch.linalg.inv, (A,), 2 * 6**3),
    ("_linalg_det", torch.linalg.det, (A,), LU6 + 5),
    ("_linalg_slogdet", torch.linalg.slogdet, (A,), LU6 + 6 + 5 + 6 + 5),
    ("linalg_qr", torch.linalg.qr, (TALL,), 2 * (2 * 36 * (9 - 2))),  # 2 n^2 (m - n / 3), R and a thin Q
    ("linalg_qr", lambda x: torch.linalg.qr(x, "r"), (TALL,), 2 * 36 * (9 - 2)),
    ("linalg_qr", lambda x: torch.linalg.qr(x, "complete"), (TALL,), 504 + 4 * (81 * 6 - 9 * 36) + 288),
    ("linalg_qr", torch.linalg.qr, (TALL.T,), 2 * 504),  # rows and columns exchanged
    ("geqrf", torch.geqrf, (TALL,), 504),
    ("_linalg_svd", lambda x: aten._linalg_svd(x, False, False), (TALL,), 4 * 9 * 36 - 4 * 72),
    ("_linalg_svd", lambda x: torch.linalg.svd(x, full_matrices=False), (TALL,), 14 * 9 * 36 + 8 * 216),
    ("_linalg_svd", torch.linalg.svd, (TALL,), 4 * 81 * 6 + 8 * 9 * 36 + 9 * 216),
    ("_linalg_svd", torch.linalg.svd, (TALL.T,), 4 * 81 * 6 + 8 * 9 * 36 + 9 * 216),
    ("_linalg_eigh", torch.linalg.eigh, (A,), 9 * 216),
    ("_linalg_eigh", lambda x: aten._linalg_eigh(x, "L", False), (A,), 4 * 72),
    ("linalg_eig", torch.linalg.eig, (A,), 25 * 216),
    ("_linalg_eigvals", aten._linalg_eigvals, (A,), 10 * 216),
    ("linalg_lstsq", torch.linalg.lstsq, (TALL, random(9, 2)), 504 + 2 * (4 * 54 - 36)),
    ("linalg_matrix_exp", torch.linalg.matrix_exp, (A,), 10 * 216),
    ("linalg_householder_product", lambda x: torch.linalg.householder_product(x, torch.ones(6)), (TALL,), 504),
    ("ormqr", lambda x, y: torch.ormqr(x, torch.ones(6), y), (TALL, random(9, 2)), 4 * 9 * 2 * 6 - 2 * 2 * 36),
    ("cholesky_inverse", torch.cholesky_inverse, (A,), 2 * 72),
    ("linalg_ldl_factor_ex", torch.linalg.ldl_factor, (A,), 6 * 7 * 13 // 6),
    ("trace", torch.trace, (A,), 5),
    ("linalg_lu", torch.linalg.lu, (A,), LU6),
]


@pytest.mark.parametrize(("name", "function", "given", "expected"), LEADING)
def test_leading_terms(name: str, function: Any, given: Any, expected: int) -> None:
    assert price_of(name, function, *given)["flops"] == expected


def test_by_products_are_not_written() -> None:
    """Pivots and error codes are by-products, factors beside a solution too."""
    solved = price_of("_linalg_solve_ex", torch.linalg.solve, A, random(6, 2))
    assert solved["bytes_written"] == solved["activation_bytes"] == 4 * 12
    assert price_of("_linalg_slogdet", torch.linalg.slogdet, A)["bytes_written"] == 2 * 4
    assert price_of("linalg_inv_ex", torch.linalg.inv, A)["bytes_written"] == 4 * 36


FACTORED: list[tuple[Callable[..., Any], tuple[Tensor, ...]]] = [
    (torch.linalg.pinv, (TALL,)),
    (lambda a, b: torch.linalg.ldl_solve(*torch.linalg.ldl_factor(a.detach()), b.detach()), (A, random(6, 2))),
    (lambda a: torch.lu_unpack(*torch.linalg.lu_factor(a)), (A,)),
    (torch.cholesky_solve, (random(6, 2), A)),
    (torch.linalg.matrix_rank, (A,)),
    (torch.linalg.cond, (A,)),
    (lambda a: torch.linalg.matrix_power(a, 3), (A,)),
    (torch.linalg.tensorinv, (definite(6).reshape(2, 3, 6),)),
    (torch.linalg.multi_dot, ([A, TALL.T, TALL],)),
    (torch.logdet, (A,)),
    (torch.cov, (TALL,)),
    (torch.corrcoef, (TALL,)),
]


@pytest.mark.parametrize(("function", "given"), FACTORED)
@pytest.mark.parametrize("is_trained", [False, True])
def test_functions_hold_no_unknown_operation(function: Any, given: Any, is_trained: bool) -> None:
    def run() -> None:
        leaves = [t.detach().clone().requires_grad_(is_trained) if isinstance(t, Tensor) else t for t in given]
        made = function(*leaves)
        made = made if isinstance(made, Tensor) else made[-1]
        if is_trained and made.requires_grad:
            made.sum().backward()

    found = {one.name: price(one).state for one in dispatched(run)}
    assert found and State.UNKNOWN not in found.values(), found


@pytest.mark.parametrize("function", [torch.linalg.svd, torch.linalg.eigh, torch.linalg.qr, torch.linalg.solve])
def test_backward_of_factors_is_known(function: Any) -> None:
    given = [A.clone().requires_grad_()] + [random(6, 2)] * (function is torch.linalg.solve)

    def run() -> None:
        made = function(*given)
        (made if isinstance(made, Tensor) else made[1]).sum().backward()

    found = {one.name: price(one).state for one in dispatched(run)}
    assert State.UNKNOWN not in found.values(), found


def test_rules_of_this_file_are_all_called() -> None:
    called = {name for name, *_ in LEADING} | {"linalg_cholesky_ex", "linalg_lu_factor_ex", "_linalg_solve_ex"}
    called |= {"linalg_lu_solve", "linalg_solve_triangular", "triangular_solve", "_cholesky_solve_helper"}
    for function, given in FACTORED:
        called |= {one.name for one in dispatched(lambda f=function, g=given: f(*g))}
    called |= {one.name for one in dispatched(lambda: (aten.cholesky(A), aten.linalg_eigvals(A)))}
    assert set(RULES) <= called | {"linalg_eigvals"}
