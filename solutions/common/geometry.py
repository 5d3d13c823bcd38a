"""The one geometry of this operator, and how many rows there can be."""

from dataclasses import dataclass


@dataclass(frozen=True, eq=False)  # by identity, as every call looks things up by its geometry
class Geometry:
    """Sizes of a DeepSeek-V3-style MoE layer under expert parallelism.

    Names follow the flashinfer-bench definition; the letters used in shapes elsewhere are
    T (tokens), E (local experts), H (hidden_size), I (intermediate_size).
    """

    num_experts: int
    num_local_experts: int
    hidden_size: int
    intermediate_size: int
    num_groups: int
    num_top_groups: int
    top_k: int
    block: int = 128  # one scale covers 1 x block activations and block x block weights

    @property
    def group_size(self) -> int:
        """Experts per routing group."""
        return self.num_experts // self.num_groups


DEEPSEEK_V3_EP8 = Geometry(
    num_experts=256,
    num_local_experts=32,
    hidden_size=7168,
    intermediate_size=2048,
    num_groups=8,
    num_top_groups=4,
    top_k=8,
)


def max_rows(geometry: Geometry, num_tokens: int) -> int:
    """Most rows there can be: all of a token's experts are local."""
    return num_tokens * min(geometry.top_k, geometry.num_local_experts)


def max_aligned_rows(geometry: Geometry, num_tokens: int, row_alignment: int) -> int:
    """As `max_rows`, with the gaps that let each expert begin at a multiple of row_alignment."""
    rows = max_rows(geometry, num_tokens)
    gaps = min(rows, geometry.num_local_experts) * (row_alignment - 1)
    return (rows + gaps) // row_alignment * row_alignment
