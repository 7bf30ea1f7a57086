"""Makes the decoder read only the rows of `W_dec` whose feature is on: exact, and in standard operators.

A token with L0 features on needs L0 of the `d_sae` rows. The pass finds them by reading the activations once.

    few tokens    The features that are on for any of the tokens: their columns of acts_post times their rows of W.
    many tokens   The features of each token. Tokens are sorted by their number of features, so that a block of tokens
                  needs little padding. Block by block the rows are gathered, few enough to stay in the cache, and
                  multiplied. A rare token with so many features that its block would gather more than all of W is
                  multiplied by all of W instead, so that it does not widen its block.
    many on       The dense product, as before.
"""

import math

import onnx_ir as ir

from .tools.building import INT64, Nodes
from .tools.parameters import is_matrix, rows_of, whole
from .tools.sign import is_nonnegative

SMALL_BATCH = 16
"""Largest number of tokens whose features are searched together. From 8 to 64 the time is the same within 2 %."""

BLOCK = 16
"""Tokens whose rows are gathered at a time: 16 * L0 rows, a few megabytes. From 16 to 64 the time varies by 3 %."""

GROUPS = (64, 8)
"""Sizes of the groups of features in the search: first which groups of 64 are not all zero, then which of 8."""

# The dense product of T tokens costs as much as gathering about (0.5 + T / 50) * d_sae rows of W.
ROWS_PER_TOKEN, ROWS = 96, 8
"""The product is dense where more than T * d_sae / 96 + d_sae / 8 rows would be gathered."""

GROUPS_PER_ROW = 3, 4
"""Scattered features lie in about three quarters as many groups. The search ends where more groups are on than that."""


def decode_sparsely(model: ir.Model, acts_post: str) -> ir.Model:
    """Replace every product of the activations named `acts_post` with a parameter, `acts_post @ W + b`."""
    acts = ir.convenience.create_value_mapping(model.graph)[acts_post]
    for product in [use.node for use in acts.uses()]:
        if _multiplies_rows(product, acts):
            _SparseProduct(model.graph, product).replace()
    return model


def _multiplies_rows(node: ir.Node, acts: ir.Value) -> bool:
    """Tell whether a node is `acts @ W + b` with a parameter W that has one row per feature."""
    return node.op_type == "Gemm" and node.inputs[0] is acts and is_matrix(node.inputs[1]) and not node.attributes


class _SparseProduct:
    """Replaces one product `acts [T, S] @ W [S, D] + b` by a sparse product."""

    def __init__(self, graph: ir.Graph, product: ir.Node) -> None:
        acts, weights = product.inputs[:2]
        assert acts is not None
        assert acts.type is not None
        assert weights is not None
        assert weights.shape is not None
        self.graph, self.product, self.acts, self.weights = graph, product, acts, weights
        self.bias = product.inputs[2:]
        self.d_sae, self.d_out = (int(size) for size in weights.shape.numpy())
        self.type = acts.type
        # Both sums are zero only if all values are, and NaN if a value is; ReduceSum takes half the time.
        self.size = "ReduceSum" if is_nonnegative(acts) else "ReduceL1"

    def replace(self) -> None:
        """Insert the search before the product, and put the choice between sparse and dense in its place."""
        at, output = Nodes(self.graph, before=self.product), self.product.outputs[0]
        self.tokens = at("Shape", [self.acts], start=0, end=1)
        per_token = at("Mul", [self.tokens, at.vector([self.d_sae // ROWS_PER_TOKEN])])
        self.limit = at("Add", [per_token, at.vector([self.d_sae // ROWS])])
        is_few = at("LessOrEqual", [self.tokens, at.vector([SMALL_BATCH])])
        n, self.feature, self.token, self.value, self.counts = at.if_else(
            is_few, [INT64, INT64, INT64, self.type, INT64], self._search_together, self._search
        )

        def sparse(at: Nodes) -> list[ir.Value]:
            return list(at.if_else(is_few, [self.type], self._product_together, self._product_in_blocks))

        def dense(at: Nodes) -> list[ir.Value]:
            return [at("Gemm", [self.acts, whole(at, self.weights), *self.bias])]

        (chosen,) = at.if_else(at("LessOrEqual", [n, self.limit]), [self.type], sparse, dense)
        chosen.shape = output.shape
        ir.convenience.replace_nodes_and_values(self.graph, self.product, [self.product], [], [output], [chosen])

    def _search_together(self, at: Nodes) -> list[ir.Value]:
        """Return the number of features that are on for any token, and the features."""
        # The sum over tokens is a product with ones: ONNX Runtime is four times slower at reducing the first axis.
        ones = at("Expand", [at.number(1, self.acts), at("Concat", [at.vector([1]), self.tokens], axis=0)])
        sizes = at("MatMul", [ones, self.acts if self.size == "ReduceSum" else at("Abs", [self.acts])])
        on, n = self._unless_too_many(at, sizes, self.limit)
        feature = at("Gather", [at("NonZero", [on]), at.scalar(1)])
        token, counts = at("Identity", [at.vector([])]), at("Identity", [at.vector([])])
        return [n, feature, token, at("Expand", [at.number(0, self.acts), at.vector([0])]), counts]

    def _search(self, at: Nodes) -> list[ir.Value]:
        """Return how many (token, feature) pairs are on, their features, tokens and values, and counts per token."""
        cells, width, numbers = self.acts, self.d_sae, []
        token = feature = None
        for size in dict.fromkeys([*(math.gcd(self.d_sae, size) for size in GROUPS), 1]):
            parts, most, on = width // size, self.limit, cells
            if size > 1:
                on = at(self.size, [at("Reshape", [cells, at.vector([0, parts, size])]), at.vector([2])], keepdims=0)
            if size > 1 and token is None:
                some, of = GROUPS_PER_ROW
                most = at("Div", [at("Mul", [self.limit, at.vector([some])]), at.vector([of])])
            on, number = self._unless_too_many(at, on, most)
            found = at("NonZero", [on])
            row, part = at("Gather", [found, at.scalar(0)]), at("Gather", [found, at.scalar(1)])
            member = at("Add", [at("Mul", [row, at.scalar(parts)]), part])
            cells, width = at("Gather", [at("Reshape", [cells, at.vector([-1, size])]), member]), size
            if token is None or feature is None:
                token, feature = row, part
            else:
                token = at("Gather", [token, row])
                feature = at("Add", [at("Mul", [at("Gather", [feature, row]), at.scalar(parts)]), part])
            # A search that ended early counts as if all features were on.
            too_many = at("Greater", [number, most])
            numbers.append(at("Where", [too_many, at("Mul", [self.tokens, at.vector([self.d_sae])]), number]))
        assert token is not None
        assert feature is not None
        n = at("Max", numbers)
        counts = at("ScatterElements", [at("Expand", [at.vector([0]), self.tokens]), token,
                                        at("Expand", [at.vector([1]), at("Shape", [token])])],
                    axis=0, reduction="add")  # fmt: skip
        return [n, feature, token, at("Reshape", [cells, at.vector([-1])]), counts]

    def _unless_too_many(self, at: Nodes, sizes: ir.Value, most: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Return which sizes are not zero, or an empty tensor if more than `most` are; and how many are, `[1]`."""
        on = at.cast(sizes, ir.DataType.BOOL)
        number = at("ReduceSum", [at.cast(on, ir.DataType.FLOAT)], keepdims=0)
        number = at("Reshape", [at.cast(number, ir.DataType.INT64), at.vector([1])])
        few_enough = at("LessOrEqual", [number, most])
        rows = at("Where", [few_enough, at("Shape", [on], start=0, end=1), at.vector([0])])
        return at("Slice", [on, at.vector([0]), rows]), number

    def _product_together(self, at: Nodes) -> list[ir.Value]:
        """Return the product of the columns and rows of the features that are on for any token, `[T, D]`."""
        columns = at("Gather", [self.acts, self.feature], axis=1)
        return [at("Gemm", [columns, rows_of(at, self.weights, self.feature), *self.bias])]

    def _product_in_blocks(self, at: Nodes) -> list[ir.Value]:
        """Return the product of each token's values and rows, block by block, `[T, D]`."""
        zero, one = at.vector([0]), at.vector([1])
        heavy = at("Greater", [self.counts, at.vector([max(1, self.d_sae // BLOCK)])])

        # Blocks of equal size, with tokens of many features first; `rank` is the place of a token in that order.
        blocks = at("Div", [at("Add", [self.tokens, at.vector([BLOCK - 1])]), at.vector([BLOCK])])
        size = at("Div", [at("Sub", [at("Add", [self.tokens, blocks]), one]), blocks])
        light = at("Where", [heavy, zero, self.counts])
        ordered, order = at.multi_output("TopK", [light, self.tokens], 2, axis=0)
        every_token = at("Range", [at.scalar(0), at("Squeeze", [self.tokens]), at.scalar(1)])
        rank = at("ScatterElements", [order, order, every_token], axis=0)
        empty = at("Sub", [at("Mul", [blocks, size]), self.tokens])
        by_block = at("Reshape", [at("Pad", [ordered, at("Concat", [zero, empty], axis=0)]),
                                  at("Concat", [blocks, size], axis=0)])  # fmt: skip
        width = at("Max", [at("Gather", [by_block, at.scalar(0)], axis=1), one])

        # The slot of each feature of each token: a block is [size, width], and blocks follow each other.
        areas = at("Mul", [width, size])
        ends = at("CumSum", [areas, at.scalar(0)])
        starts = at("Sub", [ends, areas])
        total = at("Gather", [ends, at("Sub", [blocks, one])])
        block = at("Div", [rank, size])
        lane = at("Sub", [rank, at("Mul", [block, size])])
        first = at("Add", [at("Gather", [starts, block]), at("Mul", [lane, at("Gather", [width, block])])])
        before = at("CumSum", [self.counts, at.scalar(0)], exclusive=1)
        offset = at("Where", [heavy, total, at("Sub", [first, before])])  # heavy tokens go past the end
        index = at("Range", [at.scalar(0), at("Squeeze", [at("Shape", [self.token])]), at.scalar(1)])
        slot = at("Min", [at("Add", [index, at("Gather", [offset, self.token])]), total])
        room = at("Add", [total, one])
        features = at("ScatterElements", [at("Expand", [zero, room]), slot, self.feature], axis=0)
        values = at("ScatterElements", [at("Expand", [at.number(0, self.acts), room]), slot, self.value], axis=0)

        starts, ends = (at("Unsqueeze", [bounds, one]) for bounds in (starts, ends))
        shape = at("Concat", [size, at.vector([-1, self.d_out])], axis=0)
        row_shape = at("Concat", [size, at.vector([1, -1])], axis=0)

        def product(at: Nodes, block: ir.Value) -> ir.Value:
            start, end = at("Gather", [starts, block]), at("Gather", [ends, block])
            rows = rows_of(at, self.weights, at("Slice", [features, start, end]))
            return at("MatMul", [at("Reshape", [at("Slice", [values, start, end]), row_shape]),
                                 at("Reshape", [rows, shape])])  # fmt: skip

        stacked = at.loop(at("Squeeze", [blocks]), self.type, product)
        sums = at("Gather", [at("Reshape", [stacked, at.vector([-1, self.d_out])]), rank])
        sums = at("Add", [sums, *self.bias]) if self.bias else sums
        which = at("Reshape", [at("NonZero", [heavy]), at.vector([-1])])

        def with_heavy(at: Nodes) -> list[ir.Value]:
            dense = self._multiply_densely(at, at("Gather", [self.acts, which]))
            return [at("ScatterND", [sums, at("Unsqueeze", [which, one]), dense])]

        is_heavy = at("Greater", [at("Shape", [which]), zero])
        (sums,) = at.if_else(is_heavy, [self.type], with_heavy, lambda at: [at("Identity", [sums])])
        return [sums]

    def _multiply_densely(self, at: Nodes, acts: ir.Value) -> ir.Value:
        """Return the dense product `acts @ W + b` for heavy tokens.

        It is computed as the transpose of `W.T @ acts.T + b`. ONNX Runtime packs a copy of a second factor that is a
        parameter when it loads the graph, which is not worth the memory for a product that is rarely run; without the
        copy the product takes up to twice the time. The bias keeps ONNX Runtime's optimiser from swapping the factors
        back.
        """
        product = at("Gemm", [whole(at, self.weights), acts], transA=1, transB=1)
        if self.bias:
            product = at("Add", [product, at("Unsqueeze", [*self.bias, at.vector([1])])])
        return at("Transpose", [product], perm=[1, 0])
