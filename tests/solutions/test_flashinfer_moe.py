"""What solutions/flashinfer_moe hands to FlashInfer, and what it makes of the results.

On the CPU stand-ins take the place of FlashInfer's functions. Each binds its arguments to the
signature of the installed package's function, and computes what that function documents. To try
another version of FlashInfer, put it first on PYTHONPATH.
"""

from inspect import signature

import pytest
import torch
import torch.nn.functional as F
from layers import DEVICE, REFERENCE, ROUTES, TOY, assert_close, at_toy, call, inputs, routed_to
from real_layer import assert_close_to_torch, real_inputs, run_real

pytest.importorskip("flashinfer")

from solutions.common.geometry import DEEPSEEK_V3_EP8
from solutions.flashinfer_moe import blackwell, hopper, main
from solutions.torch_moe import main as torch_moe

FP8, FP32, BF16, INT32 = torch.float8_e4m3fn, torch.float32, torch.bfloat16, torch.int32


class StandIn:
    """Takes the place of a FlashInfer function; `calls` are the arguments it was called with."""

    def __init__(self, real, compute):
        self._real = real
        self._signature = signature(real)
        self._compute = compute
        self.calls = []

    def __call__(self, *arguments, **keywords):
        if keywords.pop("skip_check", False):  # of FlashInfer's decorator, not in the signature
            assert hasattr(self._real, "is_compute_capability_supported")
        bound = self._signature.bind(*arguments, **keywords)
        bound.apply_defaults()
        self.calls.append(bound.arguments)
        return self._compute(bound.arguments)


def check_tensor(tensor, dtype, *shape):
    assert tensor.dtype is dtype and tensor.shape == shape and tensor.is_contiguous()


def trtllm(a: dict) -> torch.Tensor:
    """trtllm_fp8_block_scale_moe, from its docstring: [up; gate] rows, scales [H / 128, T]."""
    assert a["routing_method_type"] == 2 and a["weight_layout"] == 0
    assert a["use_shuffled_weight"] is False and a["do_finalize"] is True
    num_tokens, h = a["hidden_states"].shape
    experts, i = a["local_num_experts"], a["intermediate_size"]
    check_tensor(a["routing_logits"], FP32, num_tokens, a["num_experts"])
    check_tensor(a["routing_bias"], BF16, a["num_experts"])
    check_tensor(a["hidden_states"], FP8, num_tokens, h)
    check_tensor(a["hidden_states_scale"], FP32, h // 128, num_tokens)
    check_tensor(a["gemm1_weights"], FP8, experts, 2 * i, h)
    check_tensor(a["gemm1_weights_scale"], FP32, experts, 2 * i // 128, h // 128)
    check_tensor(a["gemm2_weights"], FP8, experts, h, i)
    check_tensor(a["gemm2_weights_scale"], FP32, experts, h // 128, i // 128)
    assert a["n_group"] == TOY.num_groups and a["topk_group"] == TOY.num_top_groups
    assert a["top_k"] == TOY.top_k and a["num_experts"] == TOY.num_experts
    assert a["tune_max_num_tokens"] >= 14107
    output = torch.full((num_tokens, h), float("nan"), dtype=BF16, device=DEVICE)
    torch_moe.moe(
        TOY,
        (a["routing_logits"], a["routing_bias"], a["hidden_states"], a["hidden_states_scale"],
         a["gemm1_weights"], a["gemm1_weights_scale"], a["gemm2_weights"],
         a["gemm2_weights_scale"], a["local_expert_offset"], a["routed_scaling_factor"]),
        output,
    )  # fmt: skip
    return output


def topk(a: dict) -> None:
    """fused_topk_deepseek: fills its two outputs."""
    num_tokens = a["scores"].shape[0]
    check_tensor(a["scores"], FP32, num_tokens, TOY.num_experts)
    check_tensor(a["bias"], BF16, TOY.num_experts)
    check_tensor(a["topk_values"], FP32, num_tokens, TOY.top_k)
    check_tensor(a["topk_indices"], INT32, num_tokens, TOY.top_k)
    assert a["n_group"] == TOY.num_groups and a["topk_group"] == TOY.num_top_groups
    assert a["topk"] == TOY.top_k
    ids, weights = torch_moe.route(a["scores"], a["bias"], a["routed_scaling_factor"], TOY)
    a["topk_indices"].copy_(ids)
    a["topk_values"].copy_(weights)


def cutlass(a: dict) -> None:
    """cutlass_fused_moe with DeepSeek's block scales, without its fp8 rounding of activations."""
    assert a["use_deepseek_fp8_block_scale"] is True and a["output_dtype"] is BF16
    x, ids, weights = a["input"], a["token_selected_experts"], a["token_final_scales"]
    w31, w2 = a["fc1_expert_weights"], a["fc2_expert_weights"]
    w31_scale, w2_scale = a["quant_scales"]
    num_tokens, h = x.shape
    experts, _, i = w2.shape
    check_tensor(x, BF16, num_tokens, h)
    check_tensor(ids, INT32, num_tokens, TOY.top_k)
    check_tensor(weights, FP32, num_tokens, TOY.top_k)
    check_tensor(w31, FP8, experts, 2 * i, h)
    check_tensor(w2, FP8, experts, h, i)
    check_tensor(w31_scale, FP32, experts, 2 * i // 128, h // 128)
    check_tensor(w2_scale, FP32, experts, h // 128, i // 128)
    check_tensor(a["output"], BF16, num_tokens, h)
    assert experts * a["ep_size"] == TOY.num_experts  # how the library counts all experts
    assert ids.min() >= 0 and ids.max() < TOY.num_experts
    assert all(len(set(row)) == TOY.top_k for row in ids.tolist())
    total = torch.zeros(num_tokens, h, device=DEVICE)
    for expert in range(experts):
        w = torch_moe.dequantize(w31[expert], w31_scale[expert], 128)
        up, gate = F.linear(x.float(), w).chunk(2, dim=-1)
        y = F.linear(F.silu(gate) * up, torch_moe.dequantize(w2[expert], w2_scale[expert], 128))
        mine = ids == a["ep_rank"] * experts + expert
        total += y * (weights * mine).sum(1, keepdim=True)
    a["output"].copy_(total)


def blackwell_layer(monkeypatch, takes_output: bool, wrap=lambda result: result):
    """The Blackwell layer on a stand-in for a FlashInfer that takes `output`, or that does not."""
    real = blackwell.trtllm_fp8_block_scale_moe

    def with_output(output=None, **keywords):
        output.copy_(stand_in(**keywords))

    stand_in = StandIn(real, lambda a: wrap(trtllm(a)))
    monkeypatch.setattr(blackwell, "_TAKES_OUTPUT", takes_output)
    monkeypatch.setattr(
        blackwell, "trtllm_fp8_block_scale_moe", with_output if takes_output else stand_in
    )
    monkeypatch.setattr(blackwell, "_tuned", set())
    return at_toy(blackwell.moe)


def hopper_layer(monkeypatch):
    for name, compute in {"fused_topk_deepseek": topk, "cutlass_fused_moe": cutlass}.items():
        monkeypatch.setattr(hopper, name, StandIn(getattr(hopper, name), compute))
    return at_toy(hopper.moe)


LAYERS = {
    "blackwell-takes-output": lambda m: blackwell_layer(m, True),
    "blackwell-returns-tensor": lambda m: blackwell_layer(m, False),
    "blackwell-returns-list": lambda m: blackwell_layer(m, False, lambda result: [result]),
    "hopper": hopper_layer,
}


@pytest.fixture(params=LAYERS.values(), ids=LAYERS.keys())
def layer(request, monkeypatch):
    return request.param(monkeypatch)


@pytest.mark.parametrize("seq_len", [1, 7, 33])
def test_matches_reference(layer, seq_len):
    arguments = inputs(seq_len, seed=seq_len)
    assert_close(call(layer, arguments), REFERENCE(**arguments))


@pytest.mark.parametrize("offset", [0, 3, 12, 24])
def test_any_offset(layer, offset):
    """0 and 24 are the ends; 3 and 12 are no multiple of the 8 local experts."""
    arguments = inputs(9, offset=offset)
    assert_close(call(layer, arguments), REFERENCE(**arguments))


def test_no_local_pair(layer):
    assert not call(layer, inputs(5, **routed_to([], 5))).any()


def test_tensors_go_to_the_library_as_they_are(monkeypatch):
    """No copy of the weights and scales, which are a second pass over 1.4 GB."""
    arguments = inputs(7)
    call(hopper_layer(monkeypatch), arguments)
    (seen,) = hopper.cutlass_fused_moe.calls
    assert seen["fc1_expert_weights"] is arguments["gemm1_weights"]
    assert seen["fc2_expert_weights"] is arguments["gemm2_weights"]
    assert seen["quant_scales"][0] is arguments["gemm1_weights_scale"]
    assert seen["quant_scales"][1] is arguments["gemm2_weights_scale"]
    call(blackwell_layer(monkeypatch, False), arguments)
    (seen,) = blackwell.trtllm_fp8_block_scale_moe.calls
    assert all(seen[n] is arguments[n] for n in arguments if "hidden" in n or "gemm" in n)


def test_hopper_dequantises(monkeypatch):
    arguments = inputs(33)
    call(hopper_layer(monkeypatch), arguments)
    (seen,) = hopper.cutlass_fused_moe.calls
    scale = arguments["hidden_states_scale"].t()
    exact = torch_moe.dequantize(arguments["hidden_states"], scale, TOY.block)
    # Triton's interpreter truncates to bf16, a device rounds
    assert torch.allclose(seen["input"].float(), exact, rtol=2**-7, atol=0)


def test_takes_output_is_read_off_the_installed_function():
    parameters = signature(blackwell.trtllm_fp8_block_scale_moe).parameters
    assert ("output" in parameters) == blackwell._TAKES_OUTPUT
    if blackwell._TAKES_OUTPUT:
        signature(blackwell.trtllm_fp8_block_scale_moe).bind_partial(output=None)


def test_tunes_once(monkeypatch):
    """In one call per device the autotuner is on."""
    modes = []

    class Autotune:
        def __init__(self, tune):
            self.tune = tune

        def __enter__(self):
            modes.append(self.tune)

        def __exit__(self, *_):
            pass

    layer = blackwell_layer(monkeypatch, False)
    signature(blackwell.autotune).bind(True)
    monkeypatch.setattr(blackwell, "autotune", Autotune)
    for _ in range(3):
        call(layer, inputs(2))
    assert modes == [True]


@pytest.mark.parametrize(
    "capability, layer",
    [((9, 0), hopper.moe), ((10, 0), blackwell.moe), ((10, 3), blackwell.moe)],
    ids=["sm_90", "sm_100", "sm_103"],
)
def test_layer_by_device(monkeypatch, capability, layer):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(hopper, "require_module", lambda: None)
    assert main._layer.__wrapped__(torch.device("cuda", 0)) is layer


def test_other_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    with pytest.raises(RuntimeError, match="expected a device of sm_90, sm_100 .*, got sm_89"):
        main._layer.__wrapped__(torch.device("cuda", 0))


@pytest.mark.parametrize("built", [True, False])
def test_module_must_be_built(monkeypatch, built):
    class Module:
        name = "fused_moe_90"
        is_compiled = built

    monkeypatch.setattr(hopper, "gen_cutlass_fused_moe_sm90_module", Module)
    if built:
        hopper.require_module()
    else:
        with pytest.raises(RuntimeError, match="fused_moe_90 is not built: run python scripts/bu"):
            hopper.require_module()


# From here on the real functions, at the real geometry.

TOLERANCE = 0.08  # the activations are rounded to fp8 twice, each time at 3 % of their size


@pytest.mark.gpu
@pytest.mark.parametrize("seq_len, offset", [(1, 0), (15, 224), (40, 100), (80, 32), (1000, 3)])
def test_real_layer(seq_len, offset):
    assert_close_to_torch(main.run, real_inputs(seq_len, offset=offset), TOLERANCE)


@pytest.mark.gpu
@pytest.mark.parametrize("seq_len", [1, 33])
def test_real_layer_without_local_pair(seq_len):
    routing = routed_to([], seq_len, DEEPSEEK_V3_EP8, offset=64)
    assert not run_real(main.run, real_inputs(seq_len, routing)).any()


@pytest.mark.gpu
def test_real_layer_with_one_hot_expert():
    routing = routed_to([70], 200, DEEPSEEK_V3_EP8, offset=64)
    assert_close_to_torch(main.run, real_inputs(200, routing), TOLERANCE)


@pytest.mark.gpu
def test_real_hopper_routing():
    """10,000 tokens; in every third one each score occurs four times, in two groups."""
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("the Blackwell layer routes inside its one call")
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(10_000, 256, generator=generator)
    quarter = torch.randn(logits[::3].shape[0], 4, 1, 16, generator=generator)
    logits[::3] = quarter.expand(-1, 4, 2, 16).reshape(-1, 128).repeat(1, 2)
    bias = torch.randn(16, generator=generator).repeat(16).mul(0.1).to(BF16)
    logits, bias = logits.to(DEVICE), bias.to(DEVICE)
    weights = torch.empty(10_000, 8, device=DEVICE)
    ids = torch.empty(10_000, 8, dtype=INT32, device=DEVICE)
    hopper.fused_topk_deepseek(logits, bias, 8, 4, 8, 2.5, weights, ids)
    expected_ids, expected_weights = ROUTES[DEEPSEEK_V3_EP8](logits, bias, 2.5)
    ids, order = ids.long().sort(dim=1)
    expected_ids, expected_order = expected_ids.sort(dim=1)
    assert torch.equal(ids, expected_ids)
    assert torch.allclose(
        weights.gather(1, order), expected_weights.gather(1, expected_order), rtol=1e-5
    )
