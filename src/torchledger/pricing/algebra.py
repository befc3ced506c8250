"""Rules of linear algebra: textbook counts of flops for each matrix of a batch.

Exact sums for what is a fixed loop (Cholesky, LU, substitution: LAPACK Working Note 41, appendix); leading terms as
in Golub and Van Loan, Matrix Computations (3rd edition: 5.2, 5.4.5, 8.3, 7.5.6) for what iterates or depends on
blocking. Numbers are counted as real ones. None of it is a contraction: macs are 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from torchledger.pricing import rules as r
from torchledger.record import Operation, TensorInfo

Size = tuple[int, int]


def matrix(operation: Operation) -> TensorInfo:
    """Return the tensor of matrices."""
    names = ("input2",) if operation.name == "cholesky_solve" else ("A", "LU", "LD", "input", "self")
    return r.need(operation, *names)


def size(operation: Operation) -> Size:
    """Return rows and columns."""
    shape = matrix(operation).shape
    return shape[-2], shape[-1]


def count(operation: Operation) -> int:
    """Return how many matrices there are."""
    return math.prod(matrix(operation).shape[:-2])


def lu(m: int, n: int) -> int:
    """Step k of min(m, n): m - k divisions, (m - k)(n - k) products and as many differences."""
    return sum((m - k) * (1 + 2 * (n - k)) for k in range(1, min(m, n) + 1))


def cholesky(n: int) -> int:
    """Column j: j root and divisions each over what is left, in all the sum of squares n (n + 1) (2 n + 1) / 6: n^3
    / 3."""
    return n * (n + 1) * (2 * n + 1) // 6


def substitution(n: int, columns: int, divides: bool = True) -> int:
    """Row i: i - 1 products and differences and a division: n^2 a column; n (n - 1) for ones on the diagonal."""
    return columns * (n * n if divides else n * (n - 1))


def qr(m: int, n: int) -> int:
    """Householder: 2 n^2 (m - n / 3) for m >= n, rows and columns exchanged else; as much again for a thin Q."""
    m, n = max(m, n), min(m, n)
    return 2 * n * n * (3 * m - n) // 3


def svd(m: int, n: int, vectors: bool, full: bool) -> int:
    """Golub and Reinsch: values 4 m n^2 - 4 n^3 / 3; with thin U and V 14 m n^2 + 8 n^3; full 4 m^2 n + 8 m n^2 + 9
    n^3."""
    m, n = max(m, n), min(m, n)
    if not vectors:
        return 4 * m * n * n - 4 * n**3 // 3
    return 4 * m * m * n + 8 * m * n * n + 9 * n**3 if full else 14 * m * n * n + 8 * n**3


def of_square(formula: Callable[[int], int]) -> r.Formula:
    """Return a formula of n for each matrix."""
    return lambda operation: count(operation) * formula(size(operation)[1])


def right_sides(operation: Operation) -> tuple[int, int]:
    """Return n and the columns to solve for, of all matrices together."""
    n = size(operation)[1]
    return n, r.out(operation).elements // n if n else 0


def solve(operation: Operation) -> int:
    """LU, then two substitutions for each right side, the first with ones on the diagonal: n (n - 1) + n^2."""
    n, columns = right_sides(operation)
    return count(operation) * lu(n, n) + substitution(n, columns) + substitution(n, columns, divides=False)


def solve_factored(divided: int) -> r.Formula:
    """Return two substitutions for each right side, `divided` of them with divisions."""

    def flops(operation: Operation) -> int:
        n, columns = right_sides(operation)
        return sum(substitution(n, columns, divides=place < divided) for place in range(2))

    return flops


def solve_triangular(operation: Operation) -> int:
    """One substitution for each right side: n^2, n (n - 1) for ones on the diagonal."""
    n, columns = right_sides(operation)
    return substitution(n, columns, divides=not operation.arguments.get("unitriangular"))


def qr_flops(operation: Operation) -> int:
    """R, and unless it alone is wanted a thin Q; a full Q of m by m 4 (m^2 n - m n^2 + n^3 / 3)."""
    (m, n), mode = size(operation), operation.arguments.get("mode", "reduced")
    factor = qr(m, n)
    q = 0 if mode == "r" else factor
    if mode == "complete" and m > n:
        q = 4 * (m * m * n - m * n * n) + 4 * n**3 // 3
    return count(operation) * (factor + q)


def svd_flops(operation: Operation) -> int:
    """See `svd`."""
    vectors, full = bool(operation.arguments.get("compute_uv", True)), bool(operation.arguments.get("full_matrices"))
    return count(operation) * svd(*size(operation), vectors, full)


def symmetric_eigenvalues(operation: Operation) -> int:
    """Tridiagonal form and QR: 4 n^3 / 3 for the values, 9 n^3 with vectors."""
    n = size(operation)[1]
    return count(operation) * (9 * n**3 if operation.arguments.get("compute_v", True) else 4 * n**3 // 3)


def least_squares(operation: Operation) -> int:
    """QR, then for each right side Q' b 4 m n - 2 n^2 and a substitution n^2 (m >= n)."""
    m, n = size(operation)
    columns = r.need(operation, "b").shape[-1]
    m, n = max(m, n), min(m, n)
    return count(operation) * (qr(m, n) + columns * (4 * m * n - n * n))


def pseudo_inverse(operation: Operation) -> int:
    """Thin singular value decomposition, singular values inverted and multiplied n + n^2, a product 2 m n^2."""
    m, n = max(size(operation)), min(size(operation))
    return count(operation) * (svd(m, n, True, False) + n + n * n + 2 * m * n * n)


def householder_product(operation: Operation) -> int:
    """k reflections of an m by n matrix, built up from the last: 4 m n k - 2 (m + n) k^2 + 4 k^3 / 3."""
    (m, n), k = size(operation), r.need(operation, "tau").shape[-1]
    return count(operation) * (4 * m * n * k - 2 * (m + n) * k * k + 4 * k**3 // 3)


def reflected(operation: Operation) -> int:
    """k reflections of length m applied to n columns: 4 m n k - 2 n k^2."""
    other, k = r.need(operation, "input3"), r.need(operation, "input2").shape[-1]
    m, n = other.shape[-2:] if operation.arguments.get("left", True) else other.shape[:-3:-1]
    return math.prod(other.shape[:-2]) * (4 * m * n * k - 2 * n * k * k)


# (operations, flops for an n by n matrix, derivation)
OF_SQUARES: tuple[tuple[str, Callable[[int], int], str], ...] = (
    ("linalg_cholesky_ex cholesky", cholesky, "n (n + 1) (2 n + 1) / 6, n^3 / 3 at first: Cholesky"),
    ("cholesky_inverse", lambda n: 2 * n**3 // 3, "2 n^3 / 3: the factor inverted and multiplied"),
    ("linalg_inv_ex", lambda n: 2 * n**3, "2 n^3: LU, and both factors inverted"),
    ("linalg_ldl_factor_ex", cholesky, "n (n + 1) (2 n + 1) / 6, as Cholesky"),
    ("_linalg_det", lambda n: lu(n, n) + max(n - 1, 0), "LU 2 n^3 / 3 at first, then n - 1 products"),
    (
        "_linalg_slogdet",
        lambda n: lu(n, n) + max(4 * n - 2, 0),
        "LU; signs n, their product n - 1, logarithms n, sum n - 1",
    ),
    ("linalg_eig", lambda n: 25 * n**3, "25 n^3: Hessenberg form and QR, with vectors"),
    ("linalg_eigvals _linalg_eigvals", lambda n: 10 * n**3, "10 n^3: Hessenberg form and QR, values alone"),
    (
        "linalg_matrix_exp",
        lambda n: 10 * n**3,
        "10 n^3: five products of a Taylor polynomial; squarings depend on values",
    ),
    ("trace", lambda n: max(n - 1, 0), "n - 1"),
)


def _table() -> dict[str, r.Rule]:
    table: dict[str, r.Rule] = {}
    for names, formula, text in OF_SQUARES:
        results = 2 if names == "linalg_eig" or "slogdet" in names else 1
        table |= dict.fromkeys(names.split(), _results(text, of_square(formula), results))
    factor = "step k of min(m, n): m - k divisions, 2 (m - k) (n - k) products and differences"
    factored = _results(factor, lambda o: count(o) * lu(*size(o)), 2)
    table |= {"linalg_lu_factor_ex": factored, "linalg_lu": _results(factor, factored.flops or r.nothing, 3)}
    text = "LU 2 n^3 / 3 at first, and 2 n^2 - n a right side"
    table["_linalg_solve_ex"] = _results(text, solve, 1)
    table["linalg_lu_solve"] = r.Rule("2 n^2 - n a right side: two substitutions", r.nothing, solve_factored(1))
    table["linalg_ldl_solve"] = r.Rule(
        "2 n^2 - n a right side: two substitutions, n over D", r.nothing, solve_factored(1)
    )
    solved = r.Rule("2 n^2 a right side: two substitutions", r.nothing, solve_factored(2))
    table |= {"cholesky_solve": solved, "_cholesky_solve_helper": solved}
    table["linalg_solve_triangular"] = r.Rule("n^2 a right side: one substitution", r.nothing, solve_triangular)
    table["triangular_solve"] = _results("n^2 a right side: one substitution", solve_triangular, 1)
    text = "Householder: 2 n^2 (m - n / 3) for R, as much for a thin Q; a full one 4 (m^2 n - m n^2 + n^3 / 3)"
    table["linalg_qr"] = r.Rule(text, r.nothing, qr_flops)
    text = "Householder: 2 n^2 (m - n / 3)"
    table["geqrf"] = r.Rule(text, r.nothing, lambda o: count(o) * qr(*size(o)))
    table["linalg_householder_product"] = r.Rule(
        "k reflections: 4 m n k - 2 (m + n) k^2 + 4 k^3 / 3", r.nothing, householder_product
    )
    table["ormqr"] = r.Rule("k reflections of n columns: 4 m n k - 2 n k^2", r.nothing, reflected)
    text = "values 4 m n^2 - 4 n^3 / 3; with thin U, V 14 m n^2 + 8 n^3; full 4 m^2 n + 8 m n^2 + 9 n^3"
    table["_linalg_svd"] = r.Rule(text, r.nothing, svd_flops)
    table["_linalg_eigh"] = r.Rule("values 4 n^3 / 3; with vectors 9 n^3", r.nothing, symmetric_eigenvalues)
    text = "QR 2 n^2 (m - n / 3); a right side 4 m n - n^2"
    table["linalg_lstsq"] = _results(text, least_squares, 1)
    text = "thin singular value decomposition 14 m n^2 + 8 n^3, inverted n, scaled n^2, a product 2 m n^2"
    table["linalg_pinv"] = r.Rule(text, r.nothing, pseudo_inverse)
    table["lu_unpack"] = r.Rule("moved: 0 flops", flops=r.nothing)
    return table


def _results(text: str, flops: r.Formula, results: int) -> r.Rule:
    """Return the rule of an operation whose first outputs are results and the others by-products."""

    def written(operation: Operation) -> int:
        """Results."""
        return sum(output.tensor.distinct_bytes for output in operation.outputs[:results])

    return r.Rule(text, r.nothing, flops, r.inputs_bytes, written, results)


RULES: Mapping[str, r.Rule] = _table()
