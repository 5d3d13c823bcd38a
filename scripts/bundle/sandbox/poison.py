"""What outputs hold before a call: what is still there afterwards was never written."""

import torch

# A NaN of each dtype that no computation produces: what still holds it was never written.
POISON = {
    torch.bfloat16: (torch.int16, 0x7FB5),
    torch.float16: (torch.int16, 0x7EB5),
    torch.float32: (torch.int32, 0x7FB5_A5A5),
    torch.float64: (torch.int64, 0x7FF5_A5A5_A5A5_A5A5),
    torch.float8_e4m3fn: (torch.int8, 0x7F),
    torch.float8_e5m2: (torch.int8, 0x7D),
}


def poison(output: torch.Tensor) -> None:
    """Fill a floating-point output with a NaN of its own, others with their least value."""
    if output.dtype in POISON:
        integers, pattern = POISON[output.dtype]
        output.view(integers).fill_(pattern)
    else:
        output.fill_(False if output.dtype is torch.bool else torch.iinfo(output.dtype).min)


def never_written(output: torch.Tensor) -> torch.Tensor:
    """Which elements of `output` still hold the poison."""
    if output.dtype not in POISON:
        return torch.zeros(output.shape, dtype=torch.bool)
    integers, pattern = POISON[output.dtype]
    return output.view(integers) == pattern


def poisoned_like(output: torch.Tensor) -> torch.Tensor:
    """A new tensor of this dtype and shape, poisoned."""
    new = torch.empty_like(output)
    poison(new)
    return new
