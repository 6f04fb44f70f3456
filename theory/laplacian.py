"""Linear systems of the Laplacian of a weighted graph plus a ridge, in float64 by SciPy.

The Laplacian L has (L x)_a = Σ_b c_ab (x_a − x_b). A graph of K nodes and E edges is three arrays
``[E]``: the two ends of every edge, and its weight c >= 0.
"""

import numpy as np
from jaxtyping import Float, Int
from scipy import sparse
from scipy.sparse import csgraph
from scipy.sparse import linalg as sparse_linalg

PRECONDITIONERS = {"diagonal": 200, "tree": 1000, "whole": 1000}
"""Preconditioners that conjugate gradients try in turn, with the most iterations of each.

Random graphs need little more than the diagonal, while their factors fill in. The heaviest spanning
tree serves weights of very different sizes. Long thin graphs need the factors, which are sparse.
"""

Nodes = Int[np.ndarray, " E"]


def gather(
    first: Nodes, second: Nodes, flow: Float[np.ndarray, " E"], num_nodes: int
) -> Float[np.ndarray, " K"]:
    """Add up at every node the flow of its edges: + where it is the first end, − the second."""
    return np.bincount(first, flow, num_nodes) - np.bincount(second, flow, num_nodes)


def solve(
    first: Nodes,
    second: Nodes,
    weights: Float[np.ndarray, " E"],
    ridge: float,
    target: Float[np.ndarray, " K"],
    untried: list[str],
) -> Float[np.ndarray, " K"]:
    """Solve (L + ridge I) x = target by preconditioned conjugate gradients.

    The target must sum to 0 over every connected part of the graph. The solution is up to a
    constant on each, with a residual of 1e-12 of the target's. ``untried`` names `PRECONDITIONERS`,
    in their order; those that fail are removed from the list, so that the next system of a similar
    graph does not try them again.
    """
    num_nodes = len(target)
    diagonal = np.bincount(first, weights, num_nodes) + np.bincount(second, weights, num_nodes)
    # The scaled system has diagonal 1, so light nodes count as much as heavy ones.
    scale = 1 / np.sqrt(np.where(diagonal + ridge > 0, diagonal + ridge, 1.0))

    def apply(values: np.ndarray) -> np.ndarray:
        values = scale * values
        flow = weights * (values[first] - values[second])
        return scale * (gather(first, second, flow, num_nodes) + ridge * values)

    matrix = sparse_linalg.LinearOperator((num_nodes,) * 2, matvec=apply, dtype=np.float64)
    solution = None
    while True:
        inverse, most = None, PRECONDITIONERS[untried[0]]
        if untried[0] != "diagonal":
            links = sparse.coo_array((-weights, (first, second)), matrix.shape).tocsr()
            inverse = _invert(links, scale, only_tree=untried[0] == "tree")
        solution, failed = sparse_linalg.cg(
            matrix, scale * target, solution, rtol=1e-12, maxiter=most, M=inverse
        )
        if not failed or len(untried) == 1:
            return scale * solution
        del untried[0]


def _invert(
    links: sparse.csr_array, scale: Float[np.ndarray, " K"], only_tree: bool
) -> sparse_linalg.LinearOperator:
    """Return the inverse of the scaled matrix, or of that of its heaviest spanning tree alone."""
    if only_tree:
        links = csgraph.minimum_spanning_tree(links)
    diagonal = sparse.diags_array(scale)
    # The matrix may not see constants; a diagonal a little above 1 keeps it invertible.
    raised = (1 + 1e-11) * sparse.eye_array(len(scale))
    matrix = (diagonal @ (links + links.T) @ diagonal + raised).tocsr()
    # Leaves before branches: in this order the factors of a tree do not fill in.
    order = csgraph.reverse_cuthill_mckee(matrix, symmetric_mode=True)
    factors = sparse_linalg.splu(
        matrix[order][:, order].tocsc(),
        permc_spec="NATURAL" if only_tree else "MMD_AT_PLUS_A",
        diag_pivot_thresh=0.0,
        options={"SymmetricMode": True},
    )
    back = np.argsort(order)
    return sparse_linalg.LinearOperator(
        matrix.shape, matvec=lambda values: factors.solve(values[order])[back], dtype=np.float64
    )
