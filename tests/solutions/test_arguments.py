"""What is remembered of arguments that passed lets nothing else pass. Errors: test_layers."""

import pytest
import torch
from layers import DEVICE, TOY, inputs

from solutions.common import arguments as checks
from solutions.common.geometry import Geometry


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch):
    monkeypatch.setattr(checks, "_passed", {})


def tensors_of(seq_len: int = 6) -> list[torch.Tensor]:
    *tensors, _, _ = inputs(seq_len).values()
    shape = seq_len, TOY.hidden_size
    return [*tensors, torch.empty(shape, dtype=torch.bfloat16, device=DEVICE)]


def check(tensors, offset: int = 8, geometry: Geometry = TOY) -> tuple:
    return checks.check_arguments(geometry, tuple(tensors), offset)


@pytest.fixture
def looked_at(monkeypatch) -> list:
    """A mark for each call that is checked tensor by tensor."""
    marks, real = [], checks._check_each

    def counted(*arguments):
        marks.append(1)
        return real(*arguments)

    monkeypatch.setattr(checks, "_check_each", counted)
    return marks


def test_what_a_call_needs_is_returned():
    for seq_len in (6, 7, 6):
        tensors = tensors_of(seq_len)
        addresses, num_tokens, device = check(tensors)
        assert addresses == [tensor.data_ptr() for tensor in tensors]
        assert num_tokens == seq_len and device == tensors[0].device.index


@pytest.mark.skipif(checks.TensorGuards is None, reason="this PyTorch has no such guards")
def test_like_tensors_are_not_looked_at_again(looked_at):
    for _ in range(3):
        check(tensors_of(6))  # other memory, the same layout
        check(tensors_of(7))
    assert len(looked_at) == 2


def test_without_guards_every_call_is_looked_at(looked_at, monkeypatch):
    monkeypatch.setattr(checks, "TensorGuards", None)
    for _ in range(3):
        check(tensors_of())
    assert len(looked_at) == 3


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(checks, "MOST_GUARDS", 3)
    for seq_len in (1, 2, 3, 4, 5, 1):
        check(tensors_of(seq_len))
        assert len(checks._passed) <= 3


@pytest.mark.parametrize("position", range(9))
@pytest.mark.parametrize(
    "spoil",
    [
        lambda t: t.to(torch.float16),
        lambda t: t.view(torch.uint8).view(t.dtype)[..., :-16],
        lambda t: t.unsqueeze(0),
        lambda t: t.repeat_interleave(2, dim=-1)[..., ::2],
        lambda t: None,
        lambda t: t.to("meta"),
    ],
    ids=["dtype", "shape", "dimensions", "stride", "none", "device"],
)
def test_a_call_that_passed_excuses_no_other(position, spoil):
    tensors = tensors_of()
    check(tensors)
    tensors[position] = spoil(tensors[position])
    for _ in range(2):
        with pytest.raises((TypeError, ValueError), match=r": expected .*, got "):
            check(tensors)


def test_addresses_and_offset_are_checked_each_time():
    tensors = tensors_of()
    check(tensors)
    with pytest.raises(ValueError, match=r"local_expert_offset: expected .*\[0, 24\], got 25"):
        check(tensors, 25)
    memory = torch.empty(tensors[2].numel() + 8, dtype=torch.uint8, device=DEVICE)
    tensors[2] = memory[8:].view(torch.float8_e4m3fn).view(6, -1)
    with pytest.raises(ValueError, match="hidden_states: expected a 16-byte aligned address"):
        check(tensors)


def test_geometries_do_not_excuse_each_other():
    tensors = tensors_of()
    check(tensors)
    wide = Geometry(32, 8, 512, 128, 4, 2, 4)
    with pytest.raises(ValueError, match="hidden_states: expected shape"):
        check(tensors, geometry=wide)


@pytest.mark.gpu
def test_current_device_is_checked_each_time(monkeypatch):
    tensors = tensors_of()
    check(tensors)
    monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: 1)
    with pytest.raises(ValueError, match="routing_logits: expected the current device"):
        check(tensors)
