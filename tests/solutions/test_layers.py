"""Every layer of ours against the definition's reference, at the edges of its input space."""

import pytest
import torch
from layers import DEVICE, LAYERS, REFERENCE, TOY, assert_close, call, inputs, routed_to

from solutions.common.arguments import check_arguments

layers = pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS.keys())
ONE_OF_EACH = {name.partition("-")[0]: layer for name, layer in reversed(LAYERS.items())}
del ONE_OF_EACH["torch_moe"]
fused = pytest.mark.parametrize("layer", ONE_OF_EACH.values(), ids=ONE_OF_EACH.keys())


def expected(arguments: dict) -> torch.Tensor:
    return REFERENCE(**arguments)


@layers
@pytest.mark.parametrize("seq_len", [1, 7, 33])
def test_matches_reference(layer, seq_len):
    arguments = inputs(seq_len, seed=seq_len)
    assert_close(call(layer, arguments), expected(arguments))


@layers
def test_no_local_pair(layer):
    arguments = inputs(5, **routed_to([], 5))
    assert torch.equal(call(layer, arguments), torch.zeros_like(call(layer, arguments)))
    assert not expected(arguments).any()


@layers
def test_one_hot_expert(layer):
    arguments = inputs(40, **routed_to([11], 40))
    assert_close(call(layer, arguments), expected(arguments))


@layers
@pytest.mark.parametrize("offset", [0, 3, 12, 24])
def test_any_offset(layer, offset):
    """0 and 24 are the ends; 3 and 12 straddle two groups."""
    arguments = inputs(9, offset=offset)
    assert_close(call(layer, arguments), expected(arguments))


@layers
def test_ties(layer):
    """All scores equal: the lowest groups and experts win, as in the reference."""
    arguments = inputs(
        6,
        routing_logits=torch.zeros(6, 32),
        routing_bias=torch.zeros(32, dtype=torch.bfloat16),
        offset=0,
    )
    reference = expected(arguments)
    assert reference.any()
    assert_close(call(layer, arguments), reference)


@layers
def test_saturated_logits(layer):
    logits = torch.randn(6, 32)
    logits[0, 9:11], logits[1, 10], logits[2, :] = float("inf"), float("-inf"), 200.0
    arguments = inputs(6, routing_logits=logits)
    assert_close(call(layer, arguments), expected(arguments))


@layers
def test_very_negative_logits(layer):
    """Scores so small that the reference's 1e-20 in the divisor counts, or that vanish."""
    routing = routed_to(range(8, 16), 6)
    for token, logit in enumerate((-200.0, float("-inf"), -50.0, -45.0, -20.0)):
        routing["routing_logits"][token] = logit
    arguments = inputs(6, **routing)
    reference = expected(arguments)
    assert not reference[:2].any() and reference[2:].any(dim=1).all()
    actual = call(layer, arguments)
    for token in range(2, 6):  # of unlike magnitude
        assert_close(actual[[0, 1, token]], reference[[0, 1, token]])


@layers
@pytest.mark.parametrize(
    "place", ["hidden_states", "hidden_states_scale", "gemm1_weights_scale", "gemm2_weights"]
)
def test_nan_in_the_data_stays(layer, place):
    """In one token; or in the weights of one expert, which every token picks."""
    arguments = inputs(6, **routed_to([9], 6))
    tensor = arguments[place]
    if tensor.dtype is torch.float8_e4m3fn:
        tensor = tensor.view(torch.uint8)
    nan = {torch.uint8: 0x7F, torch.float32: float("nan")}[tensor.dtype]
    where = {"hidden_states": (3, 5), "hidden_states_scale": (0, 3)}.get(place, (1, 1, 1))
    tensor[where] = nan
    actual, reference = call(layer, arguments), expected(arguments)
    assert reference.isnan().any()
    assert torch.equal(actual.isnan(), reference.isnan())


@layers
def test_nan_logit_spoils_its_token_only(layer):
    if DEVICE == "cuda" and layer is LAYERS["sglang_fp8_blockwise_moe"]:
        pytest.skip("what sgl-kernel's moe_fused_gate picks for NaN logits is not defined")
    arguments = inputs(6, **routed_to(range(8, 16), 6))
    arguments["routing_logits"][2, 9] = float("nan")
    actual, reference = call(layer, arguments), expected(arguments)
    assert reference[2].isnan().all() and actual[2].isnan().all()
    others = [0, 1, 3, 4, 5]
    assert_close(actual[others], reference[others])


@layers
def test_nonfinite_scale_spoils_its_token_only(layer):
    """The reference gives NaN or Inf there; fp8 requantisation turns both into NaN."""
    arguments = inputs(6, **routed_to(range(8, 16), 6))
    arguments["hidden_states_scale"][0, 3] = float("inf")
    actual, reference = call(layer, arguments), expected(arguments)
    assert not reference[3].isfinite().any() and not actual[3].isfinite().any()
    others = [0, 1, 2, 4, 5]
    assert_close(actual[others], reference[others])


@layers
def test_zero_activations(layer):
    hidden = torch.zeros(4, 256).to(torch.float8_e4m3fn)
    arguments = inputs(4, hidden_states=hidden)
    assert not call(layer, arguments).any()


@layers
def test_repeated_calls_give_the_same_bits(layer):
    seq_len, repeats = (33, 100) if DEVICE == "cuda" else (7, 2)
    arguments = inputs(seq_len, seed=5)
    first = call(layer, arguments)
    assert first.any() and all(torch.equal(first, call(layer, arguments)) for _ in range(repeats))


def wrong_dtype(t):
    return t.to(torch.float16)


def wrong_shape(t):
    return t[:-1].clone()


def wrong_stride(t):
    return t.repeat_interleave(2, dim=-1)[..., ::2]


def not_a_tensor(t):
    return None


@pytest.mark.parametrize(
    "spoil, error, wording",
    [
        (wrong_dtype, TypeError, "expected dtype .*, got torch.float16"),
        (wrong_shape, ValueError, "expected shape .*, got"),
        (wrong_stride, ValueError, "expected a contiguous tensor, got strides"),
        (not_a_tensor, TypeError, "expected a torch.Tensor, got NoneType"),
    ],
)
@pytest.mark.parametrize("position", range(9))
def test_bad_tensor_is_named(position, spoil, error, wording):
    arguments = inputs(6)
    names = [*[*arguments][:8], "output"]
    tensors = [arguments[name] for name in names[:8]]
    tensors.append(torch.empty(6, TOY.hidden_size, dtype=torch.bfloat16, device=DEVICE))
    check_arguments(TOY, tuple(tensors), 8)
    tensors[position] = spoil(tensors[position])
    if position == 0 and spoil is wrong_shape:  # T is read off the logits: the others mismatch
        wording, position = "expected shape .*, got", 2
    with pytest.raises(error, match=f"{names[position]}: {wording}"):
        check_arguments(TOY, tuple(tensors), 8)


def test_misaligned_tensor_is_named():
    arguments = inputs(6)
    tensors = [arguments[name] for name in [*arguments][:8]]
    tensors.append(torch.empty(6, TOY.hidden_size, dtype=torch.bfloat16, device=DEVICE))
    shifted = torch.empty(tensors[2].numel() + 1, dtype=torch.uint8, device=DEVICE)
    tensors[2] = shifted[1:].view(torch.float8_e4m3fn).view(6, -1)
    with pytest.raises(ValueError, match="hidden_states: expected a 16-byte aligned address"):
        check_arguments(TOY, tuple(tensors), 8)


@pytest.mark.gpu
@fused
def test_no_host_synchronisation(layer):
    arguments = inputs(33)
    call(layer, arguments)  # compiles
    output = torch.empty(33, TOY.hidden_size, dtype=torch.bfloat16, device=DEVICE)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        layer(*arguments.values(), output)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@fused
def test_other_stream(layer):
    arguments = inputs(33)
    reference = call(layer, arguments)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        outputs = [call(layer, arguments) for _ in range(10)]
    stream.synchronize()
    assert all(torch.equal(reference, output) for output in outputs)
