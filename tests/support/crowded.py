"""Call cutedsl_moe_fp8_v3 where the device has no room for all its blocks; prints "right" or what
is wrong. Without progress of the blocks that run it hangs: start it under `timeout`.

Arguments: "streams" T T (calls on two streams, of low and of high priority), or "part" N T ... (on
the Nth part of the multiprocessors, a green context).
"""

import sys

import deepgemm_standin
import sgl_standin
import torch

sgl_standin.install()
deepgemm_standin.install()  # for what `layers` imports, as in conftest.py

from real_layer import real_inputs, run_real  # noqa: E402

from solutions.cutedsl_moe_fp8_v3.main import run  # noqa: E402

CALLS = 200  # on each stream


def checked(result: tuple):
    """What a function of the driver gives, behind its status."""
    status, *values = result
    if int(status) != 0:
        raise RuntimeError(f"the driver says {status}")
    return values[0] if len(values) == 1 else values


def part_of_the_device(number: int) -> torch.cuda.Stream:
    """A stream whose kernels get a `number`th of the multiprocessors."""
    from cuda.bindings import driver

    device = checked(driver.cuDeviceGet(torch.cuda.current_device()))
    kind = driver.CUdevResourceType.CU_DEV_RESOURCE_TYPE_SM
    whole = checked(driver.cuDeviceGetDevResource(device, kind))
    most = whole.sm.smCount // number
    groups, *_ = checked(driver.cuDevSmResourceSplitByCount(1, whole, 0, most))
    description = checked(driver.cuDevResourceGenerateDesc([groups[0]], 1))
    flag = driver.CUgreenCtxCreate_flags.CU_GREEN_CTX_DEFAULT_STREAM
    context = checked(driver.cuGreenCtxCreate(description, device, flag))
    flag = driver.CUstream_flags.CU_STREAM_NON_BLOCKING
    return torch.cuda.ExternalStream(int(checked(driver.cuGreenCtxStreamCreate(context, flag, 0))))


def on_two_streams(calls: list) -> list:
    streams = torch.cuda.Stream(), torch.cuda.Stream(priority=-1)
    outputs = [torch.empty_like(arguments["hidden_states"], dtype=torch.bfloat16)
               for arguments in calls]  # fmt: skip
    for _ in range(CALLS):
        for stream, arguments, output in zip(streams, calls, outputs, strict=True):
            with torch.cuda.stream(stream):
                run(*arguments.values(), output)
    return outputs


def on_a_part(number: int, calls: list) -> list:
    with torch.cuda.stream(part_of_the_device(number)):
        return [run_real(run, arguments) for arguments in calls]


def main():
    case, *numbers = sys.argv[1], *map(int, sys.argv[2:])
    calls = [real_inputs(seq_len) for seq_len in (numbers if case == "streams" else numbers[1:])]
    expected = [run_real(run, arguments) for arguments in calls]
    torch.cuda.synchronize()
    outputs = on_two_streams(calls) if case == "streams" else on_a_part(numbers[0], calls)
    torch.cuda.synchronize()
    wrong = [len(right) for right, output in zip(expected, outputs, strict=True)
             if not torch.equal(right, output)]  # fmt: skip
    print(f"wrong at T = {wrong}" if wrong else "right")


if __name__ == "__main__":
    main()
