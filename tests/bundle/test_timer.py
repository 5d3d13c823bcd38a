"""The instrument: on a device with its own clock, then on a GPU with a kernel of known time."""

import time
from statistics import median

import pytest
import torch
from bundle.probes.device import CudaDevice, Sensors
from bundle.probes.profiler import profile
from bundle.probes.timer import LONGEST_REST_US, READINGS, REST, Timer
from fake_device import FakeDevice, launches


@pytest.fixture
def device():
    return FakeDevice()


def test_cold_times_leave_out_the_host(device):
    call = launches(device, 10, 20, host_us=700)
    (times,) = Timer(device).cold([call], [3])
    assert times.us == [30, 30, 30] and times.hidden


def test_counting_the_launch_adds_the_host_up_to_the_first_kernel(device):
    call = launches(device, 100, 20, host_us=700)
    timer = Timer(device, iterations=4)
    assert timer.median_us(call, count_launch=False) == 120
    assert timer.median_us(call) == 700 + device.launch_us + 120


def test_every_cold_call_follows_a_cleared_cache_and_a_rest(device):
    Timer(device).cold([launches(device, 40)], [2])
    rest = f"rest {REST * 40:g}"
    assert device.log[2:] == ["clear", "spin", "work", rest, "clear", "spin", "work", rest]


def test_a_slow_call_is_not_followed_by_a_long_rest(device):
    Timer(device).cold([launches(device, 1e6)], [1])
    assert device.log[-1] == f"rest {LONGEST_REST_US:g}"


def test_calls_take_turns(device):
    names = []
    calls = [lambda name=name: names.append(name) for name in "ab"]
    found = Timer(device).cold(calls, [3, 1])
    assert "".join(names) == "aab" + "abaa"  # first to see how long the host takes
    assert [len(times.us) for times in found] == [3, 1]


def test_a_call_that_waits_is_told_apart(device):
    def call() -> None:
        device.work(10)
        device.wait()
        device.host += 50
        device.work(10)

    waiting, other = Timer(device).cold([call, launches(device, 10)], [3, 3])
    assert not waiting.hidden and other.hidden
    assert waiting.us == [10 + 50 + device.launch_us + 10] * 3


def test_a_host_that_is_slow_once_is_hidden_by_a_longer_spin(device):
    durations = iter([1, 1, 900] + [100] * 10)  # the first two tell how long it takes

    def call() -> None:
        device.host += next(durations)
        device.work(10)

    (times,) = Timer(device).cold([call], [3])
    assert times.us == [10, 10, 10] and times.hidden


def test_sustained_calls_have_no_pause_and_read_the_sensors_while_more_run(device):
    device.readings = [Sensors(1900, 600.0), Sensors(1500, 700.0), Sensors(1400, 680.0)]
    found = Timer(device).sustained(launches(device, 50), 20)
    assert found.us == pytest.approx(50, abs=1)
    assert (found.sm_mhz, found.watts) == (1600, 660.0)
    assert device.log == ["work"] * (20 + READINGS)


def test_sustained_calls_of_a_slow_host_take_its_time(device):
    found = Timer(device).sustained(launches(device, 5, host_us=95), 50)
    assert found.us == pytest.approx(100, rel=0.01)
    assert found.sm_mhz is None and found.watts is None


def test_the_hosts_time_is_taken_on_an_idle_device(device):
    call = launches(device, 1000, 1000, host_us=30)
    assert Timer(device).host_us(call, 3) == [30 + 2 * device.launch_us] * 3


def test_rounds_fit_into_the_time(device):
    timer = Timer(device)
    assert timer.rounds_in(22_000, 100, most=50) == 20  # 100 us and ten times as long a rest
    assert timer.rounds_in(1e9, 100, most=50) == 50
    assert timer.rounds_in(10, 1e6, most=50) == 1


# On a GPU --------------------------------------------------------------------------------------

US = 200.0
HOST_US = 400.0


@pytest.fixture
def known():
    """A call of a kernel that takes US, launched after HOST_US of the host's work."""
    from known_kernel import busy

    out = torch.zeros(1, dtype=torch.int64, device="cuda")

    def call() -> None:
        end = time.perf_counter() + HOST_US / 1e6
        while time.perf_counter() < end:
            pass
        busy(out, US)

    call()
    return call


def about(us: float):
    """What was measured may be a launch longer, and the global timer advances in steps of 1 us."""
    return pytest.approx(us + 6.0, abs=8.0)


@pytest.mark.gpu
def test_a_known_kernel_takes_its_time_and_the_host_is_hidden(known):
    timer = Timer()
    (times,) = timer.cold([known], [15])
    assert times.hidden and median(times.us) == about(US)
    assert timer.median_us(known, count_launch=False) == about(US)


@pytest.mark.gpu
def test_a_known_kernel_on_an_idle_gpu_counts_the_host(known):
    timer = Timer()
    host = median(timer.host_us(known, 5))
    assert host >= HOST_US
    assert HOST_US + US <= timer.median_us(known) < HOST_US + US + 120


@pytest.mark.gpu
def test_a_known_kernel_without_pause_takes_the_longer_of_host_and_gpu(known):
    from known_kernel import busy

    out = torch.zeros(1, dtype=torch.int64, device="cuda")
    found = Timer().sustained(lambda: busy(out, US), 300)
    assert found.us == about(US)
    if found.sm_mhz is not None:
        assert 100 < found.sm_mhz < 3000 and 10 < found.watts < 2000
    assert HOST_US <= Timer().sustained(known, 100).us < HOST_US + 120


@pytest.mark.gpu
def test_a_known_kernel_replayed_from_a_graph_takes_its_time(known):
    timer = Timer()
    replay = timer.device.capture(known)
    (times,) = timer.cold([replay], [15])
    assert times.hidden and median(times.us) == about(US)
    assert median(timer.host_us(replay, 5)) < HOST_US


@pytest.mark.gpu
def test_a_call_that_waits_cannot_be_captured_and_is_not_hidden(known):
    def waiting() -> None:
        known()
        torch.cuda.synchronize()

    timer = Timer()
    with pytest.raises(RuntimeError):
        timer.device.capture(waiting)
    (times,) = timer.cold([waiting], [3])
    assert not times.hidden
    known()
    torch.cuda.synchronize()  # the failed capture left nothing behind


@pytest.mark.gpu
def test_the_profiler_tells_when_the_first_kernel_was_launched(known):
    (calls,) = profile([known], 3)
    for call in calls:
        (launch,) = call.launches
        assert launch.us == about(US)
    assert HOST_US <= median(call.first_launch_us for call in calls) < HOST_US + 120


@pytest.mark.gpu
def test_spinning_takes_as_long_as_asked():
    device = CudaDevice()
    for us in (50.0, 500.0):
        device.spin(us)
        start = device.mark()
        device.spin(us)
        end = device.mark()
        device.synchronize()
        assert device.us_between(start, end) == pytest.approx(us, rel=0.3)
