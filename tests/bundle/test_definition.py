"""The definition: its public facts, and what its reference computes and refuses."""

import json
import math
from pathlib import Path

import pytest
import torch
from bundle.dataset.oracle import execute_reference
from bundle.dataset.workload_table import DEFINITION
from flashinfer_bench.compile import BuilderRegistry
from toy_reference import FP8, real_definition, toy_definition, toy_inputs

ROOT = Path(__file__).resolve().parents[2]

BF16, F32 = torch.bfloat16, torch.float32


@pytest.fixture(scope="module")
def route():
    return execute_reference(real_definition(ROOT))["route"]


@pytest.fixture(scope="module")
def toy_run():
    return execute_reference(toy_definition(ROOT))["run"]


def test_public_facts():
    """The public definition, so that this one loads beside an official dataset."""

    def const(value):
        return {"type": "const", "value": value}

    def tensor(dtype, *shape):
        return {"shape": list(shape), "dtype": dtype}

    def scalar(dtype):
        return {"shape": None, "dtype": dtype}

    fp8, f32 = "float8_e4m3fn", "float32"
    definition = json.loads((ROOT / f"definitions/moe/{DEFINITION}.json").read_text("utf-8"))
    assert definition["name"] == "moe_fp8_block_scale_ds_routing_topk8_ng8_kg4_e32_h7168_i2048"
    assert definition["op_type"] == "moe"
    assert definition["tags"] == [
        "status:verified",
        "model:deepseek-v3",
        "model:deepseek-r1",
        "quantization:float8_e4m3fn",
        "fi_api:flashinfer.fused_moe.trtllm_fp8_block_scale_moe",
        "ep:8",
    ]
    axes = {
        "seq_len": {"type": "var"},
        "num_experts": const(256),
        "num_local_experts": const(32),
        "hidden_size": const(7168),
        "intermediate_size": const(2048),
        "gemm1_out_size": const(4096),
        "num_hidden_blocks": const(56),
        "num_intermediate_blocks": const(16),
        "num_gemm1_out_blocks": const(32),
    }
    inputs = {
        "routing_logits": tensor(f32, "seq_len", "num_experts"),
        "routing_bias": tensor("bfloat16", "num_experts"),
        "hidden_states": tensor(fp8, "seq_len", "hidden_size"),
        "hidden_states_scale": tensor(f32, "num_hidden_blocks", "seq_len"),
        "gemm1_weights": tensor(fp8, "num_local_experts", "gemm1_out_size", "hidden_size"),
        "gemm1_weights_scale": tensor(
            f32, "num_local_experts", "num_gemm1_out_blocks", "num_hidden_blocks"
        ),
        "gemm2_weights": tensor(fp8, "num_local_experts", "hidden_size", "intermediate_size"),
        "gemm2_weights_scale": tensor(
            f32, "num_local_experts", "num_hidden_blocks", "num_intermediate_blocks"
        ),
        "local_expert_offset": scalar("int32"),
        "routed_scaling_factor": scalar(f32),
    }
    for part in ("axes", "inputs", "outputs"):
        for facts in definition[part].values():
            assert facts.pop("description")
    # Lists: their order is the order of the arguments.
    assert list(definition["axes"].items()) == list(axes.items())
    assert list(definition["inputs"].items()) == list(inputs.items())
    assert definition["outputs"] == {"output": tensor("bfloat16", "seq_len", "hidden_size")}


def test_constraints_hold():
    definition = real_definition(ROOT)
    for constraint in definition.constraints:
        assert eval(constraint, {}, dict(definition.const_axes)), constraint


def test_reference_is_the_python_file():
    source = (ROOT / f"definitions/moe/{DEFINITION}.py").read_text("utf-8")
    assert real_definition(ROOT).reference == source, "run scripts/prepare.py --sync"


def test_reference_geometry_is_the_definition_s():
    names, axes = execute_reference(real_definition(ROOT)), real_definition(ROOT).const_axes
    for constant in ("NUM_EXPERTS", "NUM_LOCAL_EXPERTS", "HIDDEN_SIZE", "INTERMEDIATE_SIZE"):
        assert names[constant] == axes[constant.lower()]


def test_harness_builds_the_reference():
    definition, inputs = toy_definition(ROOT), toy_inputs(5)
    reference = BuilderRegistry.get_instance().build_reference(definition)
    output = reference(*inputs.values())
    assert output.shape == (5, 256) and output.dtype == BF16
    assert torch.equal(output, execute_reference(definition)["run"](**inputs))


# --- values ----------------------------------------------------------------------------------


def route_token_float64(logits, bias, groups, top_groups, top_k):
    """{expert: weight before scaling} of one token; lists of floats; lowest index wins a tie."""
    scores = [1 / (1 + math.exp(-logit)) for logit in logits]
    ranking = [score + b for score, b in zip(scores, bias, strict=True)]
    size = len(ranking) // groups
    group_scores = [sum(sorted(ranking[g * size : g * size + size])[-2:]) for g in range(groups)]
    kept = sorted(range(groups), key=lambda g: (-group_scores[g], g))[:top_groups]
    candidates = [e for e in range(len(ranking)) if e // size in kept]
    chosen = sorted(candidates, key=lambda e: (-ranking[e], e))[:top_k]
    total = sum(scores[e] for e in chosen)
    return {e: scores[e] / total for e in chosen}


def layer_float64(inputs, local_experts=8, groups=4, top_groups=2, top_k=4):
    """The toy layer in float64, token by token, expert by expert, block by block."""
    seq_len = len(inputs["routing_logits"])
    output = torch.zeros(seq_len, 256, dtype=torch.float64)
    bias = inputs["routing_bias"].double().tolist()

    def scaled_rows(weights, scales, vector):
        result = torch.zeros(len(weights), dtype=torch.float64)
        for row in range(0, len(weights), 128):
            for column in range(0, weights.shape[1], 128):
                block = weights[row : row + 128, column : column + 128].double()
                part = block @ vector[column : column + 128]
                result[row : row + 128] += scales[row // 128, column // 128].double() * part
        return result

    for token in range(seq_len):
        logits = inputs["routing_logits"][token].double().tolist()
        hidden = inputs["hidden_states"][token].double()
        for block in range(2):
            hidden[128 * block : 128 * block + 128] *= inputs["hidden_states_scale"][block, token]
        weights = route_token_float64(logits, bias, groups, top_groups, top_k)
        for expert, weight in weights.items():
            local = expert - inputs["local_expert_offset"]
            if not 0 <= local < local_experts:
                continue
            gemm1, gemm2 = inputs["gemm1_weights"][local], inputs["gemm2_weights"][local]
            first = scaled_rows(gemm1, inputs["gemm1_weights_scale"][local], hidden)
            up, gate = first[:256], first[256:]
            activated = gate / (1 + torch.exp(-gate)) * up
            second = scaled_rows(gemm2, inputs["gemm2_weights_scale"][local], activated)
            output[token] += weight * inputs["routed_scaling_factor"] * second
    return output


@pytest.mark.parametrize("offset", [0, 8, 24, 3, 13])
def test_values_against_a_float64_loop(toy_run, offset):
    """Offsets 3 and 13 straddle two routing groups of 8."""
    inputs = toy_inputs(60, offset)
    expected = layer_float64(inputs)
    assert (expected != 0).any(dim=1).sum() > 20
    # bf16 output: half a unit in the last of 8 places; fp32 sums: far below.
    torch.testing.assert_close(toy_run(**inputs).double(), expected, rtol=2**-8, atol=1e-3)


def test_ranks_cover_the_layer(toy_run):
    """Each (token, expert) pair belongs to exactly one rank."""
    inputs = toy_inputs(60)
    names = execute_reference(toy_definition(ROOT))
    ids, _ = names["route"](inputs["routing_logits"], inputs["routing_bias"], 2.5)
    hits = torch.zeros(60, 4, dtype=torch.bool).scatter_(1, ids // 8, True)
    for rank in range(4):
        output = toy_run(**inputs | {"local_expert_offset": 8 * rank})
        assert torch.equal((output != 0).any(dim=1), hits[:, rank])


def test_negative_scales_are_arithmetic(toy_run):
    """Minus a minus is a plus: with both operands of GEMM1 negated nothing changes."""
    inputs = toy_inputs(20)
    negated = {k: -inputs[k] for k in ("hidden_states_scale", "gemm1_weights_scale")}
    assert torch.equal(toy_run(**inputs | negated), toy_run(**inputs))
    negated = {"gemm2_weights_scale": -inputs["gemm2_weights_scale"]}
    assert torch.equal(toy_run(**inputs | negated), -toy_run(**inputs))


def test_no_tokens(toy_run):
    output = toy_run(**toy_inputs(0))
    assert output.shape == (0, 256) and output.dtype == BF16


def test_strides_do_not_matter(toy_run):
    inputs = toy_inputs(9)
    strided = dict(inputs)
    for name in ("routing_logits", "hidden_states_scale", "gemm1_weights_scale"):
        strided[name] = inputs[name].mT.contiguous().mT
        assert not strided[name].is_contiguous()
    assert torch.equal(toy_run(**strided), toy_run(**inputs))


def test_same_bits_twice(toy_run):
    assert torch.equal(toy_run(**toy_inputs(100)), toy_run(**toy_inputs(100)))


# --- routing ---------------------------------------------------------------------------------


def test_route_against_float64(route):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(200, 256, generator=generator)
    bias = (0.05 * torch.randn(256, generator=generator)).to(BF16)
    ids, weights = route(logits, bias, 2.5)
    assert ids.dtype == torch.int64 and weights.dtype == F32
    for token in range(200):
        expected = route_token_float64(
            logits[token].double().tolist(), bias.double().tolist(), 8, 4, 8
        )
        assert ids[token].tolist() == list(expected)
        assert weights[token].tolist() == pytest.approx([2.5 * w for w in expected.values()])


def test_weights_leave_the_bias_out(route):
    """The bias changes who is chosen, never by how much they count."""
    bias = torch.zeros(256, dtype=BF16)
    bias[40:48] = 4
    ids, weights = route(torch.zeros(1, 256), bias, 2.0)
    assert ids.tolist() == [list(range(40, 48))]
    assert weights.tolist() == [[0.25] * 8]


def test_ties_go_to_the_lowest_index(route):
    no_bias = torch.zeros(256, dtype=BF16)
    logits = torch.zeros(2, 256)
    logits[1, 200] = 1  # group 6; the other three kept groups are the lowest of the equal ones
    logits[1, 64:96] = -1  # so group 2 is not among them, and group 3 is
    logits[1, 0:30] = -1
    logits[1, 32:62] = -1
    ids, _ = route(logits, no_bias, 2.5)
    assert ids[0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert ids[1].tolist() == [200, 30, 31, 62, 63, 96, 97, 98]


def test_groups_rank_by_their_two_best(route):
    """One excellent expert does not carry its group past groups with two good ones."""
    logits = torch.full((1, 256), -4.0)
    logits[0, [0, 1, 32, 33, 64, 65, 96, 97]] = 1.0
    logits[0, 128] = 5.0
    ids, _ = route(logits, torch.zeros(256, dtype=BF16), 2.5)
    assert sorted(ids[0].tolist()) == [0, 1, 32, 33, 64, 65, 96, 97]


# --- NaN and Inf: what arithmetic gives ------------------------------------------------------


def local_rows(inputs):
    """Which tokens of the toy inputs hit a local expert (bool), and their ids [T, 4]."""
    names = execute_reference(toy_definition(ROOT))
    ids, _ = names["route"](inputs["routing_logits"], inputs["routing_bias"], 2.5)
    local = ids - inputs["local_expert_offset"]
    return ((local >= 0) & (local < 8)).any(dim=1), local


def test_nan_logit_spoils_its_token_only(toy_run):
    """NaN ranks first, and makes the sum that all weights of the token are divided by a NaN."""
    inputs = toy_inputs(20)
    clean = toy_run(**inputs)
    inputs["routing_logits"][3, 8] = float("nan")
    output = toy_run(**inputs)
    assert output[3].isnan().all()
    others = torch.arange(20) != 3
    torch.testing.assert_close(output[others], clean[others])


@pytest.mark.parametrize("logit, score", [(float("inf"), 1.0), (float("-inf"), 0.0)])
def test_infinite_logit_is_a_score_of_one_or_zero(route, logit, score):
    logits = torch.zeros(1, 256)
    logits[0, :2] = logit
    ids, weights = route(logits, torch.zeros(256, dtype=BF16), 1.0)
    assert ({0, 1} <= set(ids[0].tolist())) == (score == 1.0)
    assert weights.isfinite().all()
    assert weights.sum().item() == pytest.approx(1.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_bad_activation_scale_spoils_its_token_only(toy_run, value):
    inputs = toy_inputs(20)
    hit, _ = local_rows(inputs)
    token = int(hit.nonzero()[0])
    inputs["hidden_states_scale"][0, token] = value
    finite = toy_run(**inputs).isfinite()
    assert not finite[token].any()
    assert finite[torch.arange(20) != token].all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_bad_weight_scale_spoils_its_expert_s_tokens_only(toy_run, value):
    inputs = toy_inputs(20)
    _, local = local_rows(inputs)
    expert = next(e for e in range(8) if (local == e).any())
    inputs["gemm2_weights_scale"][expert, 1, 0] = value
    finite = toy_run(**inputs).isfinite()
    spoilt = (local == expert).any(dim=1)
    assert finite[~spoilt].all()
    assert finite[:, :128].all()  # the block's rows are output columns 128 to 255
    assert not finite[spoilt, 128:].any()


# --- bad arguments, on the real geometry (meta tensors: nothing is allocated) -----------------

SHAPES = {
    "routing_logits": ((5, 256), F32),
    "routing_bias": ((256,), BF16),
    "hidden_states": ((5, 7168), FP8),
    "hidden_states_scale": ((56, 5), F32),
    "gemm1_weights": ((32, 4096, 7168), FP8),
    "gemm1_weights_scale": ((32, 32, 56), F32),
    "gemm2_weights": ((32, 7168, 2048), FP8),
    "gemm2_weights_scale": ((32, 56, 16), F32),
}


def meta_arguments():
    arguments = {n: torch.empty(s, dtype=d, device="meta") for n, (s, d) in SHAPES.items()}
    return arguments | {"local_expert_offset": 32, "routed_scaling_factor": 2.5}


def complaint(**bad) -> str:
    run = execute_reference(real_definition(ROOT))["run"]
    with pytest.raises(ValueError, match="expected") as caught:
        run(**meta_arguments() | bad)
    return str(caught.value)


def test_good_arguments_are_accepted():
    check_arguments = execute_reference(real_definition(ROOT))["check_arguments"]
    tensors = {name: meta_arguments()[name] for name in SHAPES}
    for offset in (0, 1, 31, 32, 224):
        check_arguments(tensors, offset, 2.5)


@pytest.mark.parametrize("name", SHAPES)
def test_wrong_dtype(name):
    shape, dtype = SHAPES[name]
    tensor = torch.empty(shape, dtype=torch.float16, device="meta")
    expected = f"{name}: expected dtype {dtype}, got torch.float16"
    assert complaint(**{name: tensor}) == expected


@pytest.mark.parametrize("name", SHAPES)
def test_wrong_shape(name):
    shape, dtype = SHAPES[name]
    wrong = (*shape[:-1], shape[-1] + 1)
    tensor = torch.empty(wrong, dtype=dtype, device="meta")
    assert complaint(**{name: tensor}) == f"{name}: expected shape {shape}, got {wrong}"


@pytest.mark.parametrize("name", SHAPES)
def test_not_a_tensor(name):
    assert complaint(**{name: [1.0]}) == f"{name}: expected a torch.Tensor, got list"


def test_logits_of_wrong_rank():
    logits = torch.empty(256, device="meta")
    expected = "routing_logits: expected shape ('seq_len', 256), got (256,)"
    assert complaint(routing_logits=logits) == expected


@pytest.mark.parametrize("name", list(SHAPES)[1:4])
def test_wrong_device(name):
    shape, dtype = SHAPES[name]
    tensor = torch.empty(shape, dtype=dtype)
    assert complaint(**{name: tensor}) == f"{name}: expected device meta, got cpu"


@pytest.mark.parametrize("offset", [-1, 225, 256, 32.0, None])
def test_wrong_offset(offset):
    expected = f"local_expert_offset: expected an int in [0, 224], got {offset!r}"
    assert complaint(local_expert_offset=offset) == expected


def test_wrong_scaling_factor():
    expected = "routed_scaling_factor: expected a number, got str"
    assert complaint(routed_scaling_factor="2.5") == expected
