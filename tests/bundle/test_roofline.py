"""The floor against the figures measured and tabulated for the 19 workloads."""

import pytest
from bundle.comparison.floor import Gpu, MoeGeometry, regime_of
from bundle.comparison.routings import OFFICIAL, REPLICAS, load_routings
from bundle.dataset.workload_table import DEFINITION, read_table
from bundle.paths import ROOT, BadInput

# seq_len: floor in us on an H200, worked out by hand from 44.04 MB per expert, 88.1 MFLOP per
# pair, 4.36 TB/s and 1430 TFLOP/s.
FLOORS = {1: 30, 7: 71, 14: 121, 32: 222, 58: 263, 80: 283, 901: 323, 11948: 642, 14107: 992}


def test_geometry_comes_from_the_name():
    geometry = MoeGeometry.of_definition(DEFINITION)
    assert (geometry.hidden_size, geometry.intermediate_size) == (7168, 2048)
    assert geometry.expert_bytes == 4096 * 7168 + 7168 * 2048
    assert geometry.pair_flop == pytest.approx(88.1e6, rel=1e-3)
    assert MoeGeometry.of_definition("gemm_n4096_k7168") is None
    assert MoeGeometry.of_definition("moe_bf16_e32_h7168_i2048") is None


def test_floors_of_the_real_workloads():
    gpu = Gpu(bandwidth_tbs=4.36, fp8_tflops=1430, source="an earlier measurement")
    geometry, routings = MoeGeometry.of_definition(DEFINITION), load_routings(ROOT)
    rows = {row.seq_len: row for row in read_table(ROOT)}
    for seq_len, expected in FLOORS.items():
        routing = routings[rows[seq_len].uuid]
        floor = geometry.floor_us(gpu, routing.active_experts, routing.pairs)
        assert floor == pytest.approx(expected, abs=0.5), seq_len


def test_official_workloads_and_replicas_share_a_routing_but_not_a_set():
    routings = load_routings(ROOT)
    for row in read_table(ROOT):
        official, replica = routings[row.official_uuid], routings[row.uuid]
        assert (official.workload_set, replica.workload_set) == (OFFICIAL, REPLICAS)
        assert official.pairs == replica.pairs == row.local_pairs
    assert len(routings) == 38


def test_a_broken_table_is_an_error_with_its_line(tmp_path):
    table = tmp_path / f"workloads/moe/{DEFINITION}.csv"
    table.parent.mkdir(parents=True)
    header = (ROOT / f"workloads/moe/{DEFINITION}.csv").read_text().splitlines()[0]
    table.write_text(f"{header}\nnot-a-uuid,1,2,3,4,5,6,exact\n")
    with pytest.raises(BadInput, match="line 2"):
        load_routings(tmp_path)


@pytest.mark.parametrize(
    "seq_len, label",
    [
        (0, "T <= 32"),
        (32, "T <= 32"),
        (33, "T 33-80"),
        (80, "T 33-80"),
        (81, "T 81-10000"),
        (901, "T 81-10000"),
        (10_000, "T 81-10000"),
        (10_001, "T > 10000"),
        (14_107, "T > 10000"),
    ],
)
def test_regimes(seq_len, label):
    assert regime_of(seq_len) == label
