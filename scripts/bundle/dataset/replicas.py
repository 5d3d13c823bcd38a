"""Replicas of the official routing tensors: other logits, the same load on the local experts.

The official workloads' routing tensors cannot be redistributed. workloads/moe/<DEFINITION>.csv says
what their routing does to the local experts, and this module makes logits and a bias of its own
whose routing does the same: as many experts hit, as many (token, expert) pairs, as large a largest
expert.

A replica has the same bytes on every machine and under every version of Python, NumPy and PyTorch.
Randomness is the raw output of the Philox-4x64 generator (Salmon et al., SC 2011) keyed with the
replica's UUID, logits are integers times 2^-20, and what decides them uses only IEEE-754 `+ - * /`
in float64, each of which has exactly one right result. The committed SHA-256 digests prove it.
"""

from __future__ import annotations

import csv
import hashlib
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import numpy as np
from safetensors import SafetensorError, deserialize

from ..files import replace_file
from .workload_table import DEFINITION, Row, read_table, table_path

if TYPE_CHECKING:
    import torch

NUM_EXPERTS = 256
NUM_LOCAL_EXPERTS = 32
NUM_GROUPS = 8
GROUP_SIZE = NUM_EXPERTS // NUM_GROUPS
TOPK_GROUPS = 4
TOP_K = 8

# Logits are multiples of 2^-20 below 16 in magnitude: exact in fp32. The lowest 8 bits hold the
# expert's index, and all later changes are multiples of 2^8 steps, so no two logits of a token tie.
LOGIT_SCALE = 2.0**-20
LOW_BITS = NUM_EXPERTS - 1
# Bias: +-1 ... +-64 times 2^-11, exact in bf16.
BIAS_SCALE = 2.0**-11
# Least distance of each score from the threshold that decides over it, 8000 times the rounding of
# an fp32 sigmoid: CPUs and GPUs route alike.
MARGIN = 2.0**-10
MAX_PUSHES = 64

MISSING = "missing"

LOGGER = logging.getLogger(__name__)


# --- making a replica ------------------------------------------------------------------------


def bell(random: np.random.Philox, *shape: int) -> np.ndarray:
    """Roughly normal int64 numbers: sums of four uniform 16-bit ones; mean 0, deviation 37837."""
    raw = random.random_raw(int(np.prod(shape))).reshape(shape)
    parts = [(raw >> np.uint64(shift)) & np.uint64(0xFFFF) for shift in (0, 16, 32, 48)]
    return np.sum([part.astype(np.int64) for part in parts], axis=0) - 2 * 0xFFFF


def below(random: np.random.Philox, limit: int, *shape: int) -> np.ndarray:
    """Uniform int64 numbers in [0, limit)."""
    raw = random.random_raw(int(np.prod(shape))).reshape(shape)
    return (raw % np.uint64(limit)).astype(np.int64)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)) in float64 for |x| < 16, within 1e-9, with the same bits everywhere.

    exp(y) = exp(y / 256)^256, the inner one by its Taylor polynomial of degree 6: no libm.
    """
    y = logits / -256.0
    exp = 1.0 + y / 6.0
    for divisor in (5.0, 4.0, 3.0, 2.0, 1.0):
        exp = 1.0 + exp * y / divisor
    for _ in range(8):
        exp = exp * exp
    return 1.0 / (1.0 + exp)


def top2_sums(ranking: np.ndarray) -> np.ndarray:
    """The sum of the two largest along the last axis."""
    largest = np.partition(ranking, -2, axis=-1)[..., -2:]
    return largest[..., 0] + largest[..., 1]


def draw_loads(row: Row, random: np.random.Philox) -> np.ndarray:
    """Tokens of each active local expert, falling; the expected ones fall off linearly."""
    active, largest = row.active_local_experts, row.max_tokens_per_expert
    loads = np.ones(active, dtype=np.int64)
    if row.max_tokens_is_exact:
        loads[0] = largest
    if not loads.sum() <= row.local_pairs <= active * largest:
        raise ValueError(
            f"{row.name}: local_pairs: expected {loads.sum()} to {active * largest} for "
            f"{active} active experts of at most {largest} tokens, got {row.local_pairs}"
        )
    while (missing := row.local_pairs - loads.sum()) > 0:
        # The smaller of two uniform numbers gives the first expert twice the mean; a share of
        # largest / mean - 1 of such numbers gives it about the largest load.
        one, other = below(random, active, 2, missing)
        skewed = below(random, row.local_pairs, missing) < active * largest - row.local_pairs
        for expert in np.where(skewed, np.minimum(one, other), one):
            loads[expert] += loads[expert] < largest
    return np.sort(loads)[::-1]


def choose_pairs(logits: np.ndarray, popularity: np.ndarray, loads: np.ndarray) -> np.ndarray:
    """Which tokens go to which local expert: [T, NUM_LOCAL_EXPERTS] bool.

    The more popular an expert, the larger its load; it takes the tokens that like it best. At most
    7 of a token's 8 experts are local, so that another rank's expert always marks the threshold.
    """
    pairs = np.zeros(logits.shape, dtype=bool)
    by_popularity = np.argsort(-popularity, kind="stable")
    for expert, load in zip(by_popularity[: len(loads)], loads, strict=True):
        tokens = np.flatnonzero(pairs.sum(axis=1) < TOP_K - 1)
        keenest = np.argsort(-logits[tokens, expert], kind="stable")[:load]
        pairs[tokens[keenest], expert] = True
    return pairs


def push(
    logits: np.ndarray,
    todo: np.ndarray,
    step: np.ndarray,
    wrong: Callable[[np.ndarray], np.ndarray],
) -> None:
    """Add step[i] to logits[i], in place, until wrong(i) is false, for each index i of todo."""
    for _ in range(MAX_PUSHES):
        todo = todo[wrong(todo)]
        if not todo.size:
            return
        logits[todo] += step[todo]
    raise RuntimeError(f"{todo.size} logits are still on the wrong side after {MAX_PUSHES} pushes")


def make_routing(row: Row) -> tuple[np.ndarray, np.ndarray]:
    """The replica's routing_logits [seq_len, 256] and routing_bias [256], both float32.

    Draw natural logits, choose the local pairs among the largest, then move just the logits that
    are on the wrong side of their token's thresholds, each by a random distance.
    """
    if row.local_expert_offset % GROUP_SIZE:
        raise ValueError(
            f"{row.name}: local_expert_offset: expected a multiple of {GROUP_SIZE} (the local "
            f"experts are one routing group), got {row.local_expert_offset}"
        )
    seq_len = row.seq_len
    local = slice(row.local_expert_offset, row.local_expert_offset + NUM_LOCAL_EXPERTS)
    random = np.random.Philox(key=UUID(row.uuid).int)

    bias_units = 1 + below(random, 64, NUM_EXPERTS)
    bias = bias_units * (1 - 2 * below(random, 2, NUM_EXPERTS)) * BIAS_SCALE

    # Mean -1.5; deviations: popularity of an expert 0.5, liking of a group by a token 0.36,
    # noise 0.94.
    popularity = 14 * bell(random, NUM_EXPERTS)
    liking = 10 * bell(random, seq_len, NUM_GROUPS).repeat(GROUP_SIZE, axis=1)
    logits = popularity + liking + 26 * bell(random, seq_len, NUM_EXPERTS) - (3 << 19)
    logits = (logits & ~LOW_BITS) | np.arange(NUM_EXPERTS)
    # Lengths of single moves: 1/16 to 3/16.
    expert_step = (LOW_BITS + 1) * (256 + below(random, 512, seq_len, NUM_EXPERTS))
    group_step = (LOW_BITS + 1) * (256 + below(random, 512, seq_len, NUM_GROUPS))

    loads = draw_loads(row, random)
    pairs = choose_pairs(logits[:, local], popularity[local], loads)
    num_local = pairs.sum(axis=1)

    # The groups that a token keeps: its best four, the local one in any case where it has pairs.
    ranking = sigmoid(logits * LOGIT_SCALE) + bias
    group_scores = top2_sums(ranking.reshape(seq_len, NUM_GROUPS, GROUP_SIZE))
    group_scores[num_local > 0, row.local_expert_offset // GROUP_SIZE] = np.inf
    best_groups = np.argsort(-group_scores, axis=1, kind="stable")[:, :TOPK_GROUPS]
    kept = np.zeros((seq_len, NUM_GROUPS), dtype=bool)
    np.put_along_axis(kept, best_groups, True, axis=1)

    # The other ranks' experts in these groups fill the places left; the threshold lies between the
    # last one in and the first one out.
    candidates = kept.repeat(GROUP_SIZE, axis=1)
    others = np.where(candidates, ranking, -np.inf)
    others[:, local] = -np.inf
    falling = -np.sort(-others, axis=1)
    tokens = np.arange(seq_len)
    threshold = (falling[tokens, TOP_K - 1 - num_local] + falling[tokens, TOP_K - num_local]) / 2
    chosen = others > threshold[:, None]
    chosen[:, local] = pairs

    flat, step = logits.reshape(-1), expert_step.reshape(-1)

    def excess(index: np.ndarray) -> np.ndarray:
        token, expert = np.divmod(index, NUM_EXPERTS)
        return sigmoid(flat[index] * LOGIT_SCALE) + bias[expert] - threshold[token]

    push(flat, np.flatnonzero(chosen), step, lambda index: excess(index) < MARGIN)
    push(flat, np.flatnonzero(candidates & ~chosen), -step, lambda index: excess(index) > -MARGIN)

    # Groups not kept sink below the lowest group kept.
    by_group, by_group_step = logits.reshape(-1, GROUP_SIZE), group_step.reshape(-1, 1)
    bias_by_group = bias.reshape(NUM_GROUPS, GROUP_SIZE)

    def group_score(index: np.ndarray) -> np.ndarray:
        scores = sigmoid(by_group[index] * LOGIT_SCALE)
        return top2_sums(scores + bias_by_group[index % NUM_GROUPS])

    kept_scores = group_score(np.flatnonzero(kept)).reshape(seq_len, TOPK_GROUPS)
    limit = kept_scores.min(axis=1) - MARGIN
    push(
        by_group,
        np.flatnonzero(~kept),
        -by_group_step,
        lambda index: group_score(index) > limit[index // NUM_GROUPS],
    )
    if np.abs(logits).max() >= 1 << 24:
        raise RuntimeError(f"{row.name}: logits: expected below 16 in magnitude, got larger ones")
    return (logits * LOGIT_SCALE).astype(np.float32), bias.astype(np.float32)


def check_routing(row: Row, topk_ids: torch.Tensor) -> None:
    """Raise RuntimeError unless topk_ids [T, TOP_K] loads the local experts as the table says."""
    local = topk_ids.flatten() - row.local_expert_offset
    local = local[(local >= 0) & (local < NUM_LOCAL_EXPERTS)]
    loads = local.bincount(minlength=NUM_LOCAL_EXPERTS)
    active, largest = int((loads > 0).sum()), int(loads.max())
    if row.max_tokens_is_exact:
        largest_is_right = largest == row.max_tokens_per_expert
    else:
        largest_is_right = largest <= row.max_tokens_per_expert
    for name, right, actual in (
        ("local_pairs", len(local) == row.local_pairs, len(local)),
        ("active_local_experts", active == row.active_local_experts, active),
        ("max_tokens_per_expert", largest_is_right, largest),
    ):
        if not right:
            raise RuntimeError(f"{row.name}: {name}: expected {getattr(row, name)}, got {actual}")


# --- files -----------------------------------------------------------------------------------


def tensors_digest(content: bytes) -> str:
    """SHA-256 of the tensors in a safetensors file's content; its header's layout may differ.

    Raises safetensors.SafetensorError if the content is damaged.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(deserialize(content)):
        digest.update(f"{name} {tensor['dtype']} {tensor['shape']}\n".encode())
        digest.update(tensor["data"])
    return digest.hexdigest()


def digests_path(root: Path) -> Path:
    return root / f"workloads/moe/{DEFINITION}.digests.csv"


def expected_digests(root: Path) -> dict[Row, str]:
    """The committed digest of each row's tensors. Raises ValueError if they do not match up."""
    with digests_path(root).open(newline="", encoding="utf-8") as file:
        digests = {line["uuid"]: line["tensors_sha256"] for line in csv.DictReader(file)}
    rows = read_table(root)
    if set(digests) != {row.uuid for row in rows}:
        raise ValueError(
            f"{digests_path(root)}: expected one digest for the replica of each row of "
            f"{table_path(root)}, got others; after a change run scripts/prepare.py --sync"
        )
    return {row: digests[row.uuid] for row in rows}


def find_bad_blobs(root: Path) -> dict[Row, str]:
    """The rows whose blob is missing or not what it should be, and in what way."""
    bad = {}
    for row, expected in expected_digests(root).items():
        try:
            actual = tensors_digest((root / row.blob).read_bytes())
        except FileNotFoundError:
            bad[row] = MISSING
        except SafetensorError as error:
            bad[row] = f"expected tensors with SHA-256 {expected}, got a damaged file: {error}"
        else:
            if actual != expected:
                bad[row] = f"expected tensors with SHA-256 {expected}, got {actual}"
    return bad


def reference_route(root: Path) -> Callable:
    """The function `route` of the definition's reference."""
    from flashinfer_bench.data import Definition, load_json_file

    from .oracle import execute_reference

    definition = load_json_file(Definition, root / f"definitions/moe/{DEFINITION}.json")
    return execute_reference(definition)["route"]


def serialize_routing(row: Row, route: Callable) -> bytes:
    """The replica as a safetensors file. `route` is the reference's: it must agree with the row."""
    import torch
    from safetensors.torch import save

    logits, bias = (torch.from_numpy(array) for array in make_routing(row))
    bias = bias.to(torch.bfloat16)
    check_routing(row, route(logits, bias, row.routed_scaling_factor)[0])
    return save({"routing_logits": logits, "routing_bias": bias})


def write_blobs(root: Path, rows: Iterable[Row]) -> list[Path]:
    """Generate the blobs of these rows, and return their paths.

    Nothing is lost by overwriting: a blob holds only what this module generates.
    Raises RuntimeError if a replica does not come out with its committed digest.
    """
    route, digests = reference_route(root), expected_digests(root)
    written = []
    for row in rows:
        content = serialize_routing(row, route)
        actual = tensors_digest(content)
        if actual != digests[row]:
            raise RuntimeError(
                f"{row.name}: expected tensors with SHA-256 {digests[row]}, generated {actual}"
            )
        path = root / row.blob
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, content)  # others may be making the same one
        written.append(path)
    return written


def prepare(root: Path) -> list[Path]:
    """Generate the blobs that are missing or damaged, the latter with a warning; their paths.

    A dataset without our table (the official one, say) has no replicas: nothing to do.
    """
    if not table_path(root).exists():
        return []
    bad = find_bad_blobs(root)
    for row, reason in bad.items():
        if reason != MISSING:
            LOGGER.warning("%s: %s; generating it again", root / row.blob, reason)
    return write_blobs(root, bad) if bad else []
