"""The command that profiles one call: tools that only write reports, a GPU that is not there."""

import json
import re
import shlex
import sys
from types import SimpleNamespace

import profile_call
import pytest
import torch
from bundle import cli
from bundle.hardware import Device
from bundle.probes import one_call
from bundle.probes.cases import named_cases

H100 = Device("NVIDIA H100", 90)
TIME, DRAM, TENSOR = profile_call.METRICS
NCU = f"""==PROF== a line before the table
"ID","Kernel Name","{TIME}","{DRAM}","{TENSOR}"
"","","ns","%","%"
"0","route(int, int)","10,000","20.5","0"
"1","gemm","30000","80.5","40"
"""
NSYS = """Processing [report.sqlite] with [cuda_gpu_kern_sum.py]...

Time (%),Total Time (ns),Instances,Avg (ns),Name
75.0,30000,2,15000.0,"gemm<a, b>"
25.0,10000,1,10000.0,route

"""
CLEAN, DIRTY = (f"========= ERROR SUMMARY: {n}\n" for n in ("0 errors", "7 errors"))


class Tools:
    """Executables by the tools' names: they record how they are called, then do as told."""

    def __init__(self, folder):
        self.folder, self.calls = folder, folder / "calls.jsonl"

    def add(self, name, option, report="a report", prints="", status=0):
        """option: the one that names the report; its file gets `report` unless that is None."""
        path = self.folder / name
        path.write_text(
            f"#!{sys.executable}\n"
            "import json, os, sys\n"
            "arguments = sys.argv[1:]\n"
            f"with open({str(self.calls)!r}, 'a') as file:\n"
            "    file.write(json.dumps([arguments, os.environ.get('PYTHONPATH')]) + '\\n')\n"
            f"if {option!r} not in arguments:\n"
            f"    sys.stdout.write({prints!r})\n"
            f"elif {report!r} is not None:\n"
            f"    open(arguments[arguments.index({option!r}) + 1], 'w').write({report!r})\n"
            f"if {option!r} in arguments:\n"
            "    print('what the tool said')\n"
            f"    sys.exit({status})\n"
        )
        path.chmod(0o755)

    def called(self):
        return [json.loads(line)[0] for line in self.calls.read_text().splitlines()]


@pytest.fixture
def tools(tmp_path, monkeypatch):
    (folder := tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(profile_call, "REPORTS", tmp_path / "profile")
    monkeypatch.setattr(profile_call, "current_device", lambda: H100)
    return Tools(folder)


def refusal(arguments, capsys, monkeypatch):
    monkeypatch.setattr(cli, "open_output", lambda: None)
    monkeypatch.setattr(sys, "argv", ["profile_call.py", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.exit_with(profile_call.main)
    assert caught.value.code == 2
    return capsys.readouterr().err


def uuid_of(seq_len):
    (case,) = named_cases([seq_len])
    return case.uuid


def test_ncu(tools, tmp_path, capsys):
    tools.add("ncu", "--export", prints=NCU)
    assert profile_call.main(["torch_moe", "7", "--kernel", "gemm|route"]) == 0
    report = tmp_path / "profile" / f"torch_moe-7-{uuid_of('7')[:8]}.ncu-rep"
    assert report.read_text() == "a report" and list(report.parent.iterdir()) == [report]
    collect, read = tools.called()
    text = shlex.join(collect)
    assert "--profile-from-start off --target-processes all" in text
    assert collect[collect.index("--kernel-name") + 1] == "regex:gemm|route"
    assert collect[collect.index("--metrics") + 1].split(",") == [TIME, DRAM, TENSOR]
    child = [sys.executable, "-m", "bundle.probes.one_call", "torch_moe", uuid_of("7"), "3"]
    assert collect[-6:] == child
    assert read[:2] == ["--import", str(report)]
    shown = capsys.readouterr()
    assert [line.split() for line in shown.out.splitlines()] == [
        ["us", "DRAM", "%", "tensor", "%", "kernel"],
        ["10.0", "20.5", "0.0", "route(int,", "int)"],
        ["30.0", "80.5", "40.0", "gemm"],
        ["40.0", "65.5", "30.0", "the", "whole", "call"],
        ["report:", str(report)],
    ]
    assert text in shown.err  # to be repeated by hand


def test_ncu_without_a_filter_or_a_tensor_pipe(tools, capsys):
    tools.add("ncu", "--export", prints=NCU.replace('"40"', '"n/a"'))
    assert profile_call.main(["torch_moe", uuid_of("7")]) == 0
    assert "--kernel-name" not in tools.called()[0]
    lines = [line.split()[:4] for line in capsys.readouterr().out.splitlines()]
    assert lines[2:4] == [["30.0", "80.5", "-", "gemm"], ["40.0", "65.5", "-", "the"]]


def test_nsys(tools, tmp_path, capsys):
    tools.add("nsys", "--output", prints=NSYS)
    assert profile_call.main(["torch_moe", "7", "--tool", "nsys"]) == 0
    collect, read = tools.called()
    assert "--capture-range cudaProfilerApi" in shlex.join(collect) and collect[-1] == "3"
    assert "cuda_gpu_kern_sum" in read and read[-1].endswith(".nsys-rep")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1:4] == [
        ["30.0", "2", "gemm<a,", "b>"],
        ["10.0", "1", "route"],
        ["40.0", "3", "all", "of", "these"],
    ]
    assert profile_call.main(["torch_moe", "7", "--tool", "nsys", "--kernel", "^route$"]) == 0
    assert "gemm" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "said, ends, status, shown",
    [(CLEAN, 0, 0, "0 errors"), (DIRTY, 0, 1, "7 errors"), (DIRTY, 1, 1, "7 errors")],
)
def test_sanitizer(tools, said, ends, status, shown, capsys):
    tools.add("compute-sanitizer", "--log-file", report=said, status=ends)
    assert profile_call.main(["torch_moe", "7", "--tool", "sanitizer"]) == status
    assert capsys.readouterr().out.startswith(f"{shown} in all kernels but PyTorch's own\nreport: ")
    (collect,) = tools.called()
    assert "--kernel-name-exclude kns=at6native" in shlex.join(collect) and collect[-1] == "0"


def test_sanitizer_checks_the_kernels_asked_for(tools):
    tools.add("compute-sanitizer", "--log-file", report=CLEAN)
    profile_call.main(["torch_moe", "7", "--tool", "sanitizer", "--kernel", "mine"])
    (collect,) = tools.called()
    assert "regex=mine" in collect and "--kernel-name-exclude" not in collect


@pytest.mark.parametrize(
    "does",
    [
        {"report": None},
        {"status": 9},
        {"report": "no summary", "tool": "sanitizer"},
        {"report": CLEAN, "status": 1, "tool": "sanitizer"},
    ],
)
def test_a_tool_that_fails_leaves_the_last_report(tools, tmp_path, does, capsys, monkeypatch):
    tool = does.pop("tool", "ncu")
    executable, option = {
        "ncu": ("ncu", "--export"),
        "sanitizer": ("compute-sanitizer", "--log-file"),
    }[tool]
    (tmp_path / "profile").mkdir()
    suffix = profile_call.SUFFIXES[tool]
    last = tmp_path / "profile" / f"torch_moe-7-{uuid_of('7')[:8]}{suffix}"
    last.write_text("the last one")
    tools.add(executable, option, **does)
    error = refusal(["torch_moe", "7", "--tool", tool], capsys, monkeypatch)
    assert f"error: {executable}: expected " in error and "what the tool said" in error
    assert last.read_text() == "the last one"


@pytest.mark.parametrize(
    "tool, option, prints, text",
    [
        ("ncu", "--export", "==WARNING== nothing\n", "expected a table that begins with ID"),
        (
            "ncu",
            "--export",
            NCU.replace(TIME, "other"),
            f"expected kernels with {TIME}, got 0 of 2",
        ),
        ("nsys", "--output", "SKIPPED: no kernels\n", "expected a table that begins with Time (%)"),
    ],
)
def test_reports_without_kernels(tools, tool, option, prints, text, capsys, monkeypatch):
    tools.add(tool, option, prints=prints)
    assert text in refusal(["torch_moe", "7", "--tool", tool], capsys, monkeypatch)


@pytest.mark.parametrize(
    "arguments, text",
    [
        (["torch_moe", "8"], "WORKLOAD: expected some of .*, or uuids; got 8"),
        (["none_such", "7"], "SOLUTION: expected some of .*torch_moe.*; got none_such"),
        (["torch_moe", "7", "--tool", "nsys"], "--tool nsys: expected nsys on PATH, found none"),
        (["torch_moe", "7", "--tool", "sanitizer"], "expected compute-sanitizer on PATH"),
        (["torch_moe", "7", "--tool", "gdb"], "argument --tool: invalid choice: 'gdb'"),
        (["torch_moe", "7", "--kernel", "("], "--kernel: expected a regular expression, got '[(]'"),
    ],
)
def test_refusals(tools, arguments, text, capsys, monkeypatch):
    tools.add("ncu", "--export")
    assert re.search(text, refusal(arguments, capsys, monkeypatch))
    assert not tools.calls.exists() and not profile_call.REPORTS.exists()


def test_no_gpu(tools, capsys, monkeypatch):
    monkeypatch.setattr(profile_call, "current_device", lambda: Device("CPU", None))
    assert "expected a CUDA device" in refusal(["torch_moe", "7"], capsys, monkeypatch)


def test_the_profiled_call_is_warm_alone_and_complete(monkeypatch):
    done = []

    def noting(name):
        return lambda *arguments, **options: done.append(name)

    arguments = {"hidden_states": torch.zeros(7, 4)}
    monkeypatch.setattr(one_call, "current_device", lambda: H100)
    monkeypatch.setattr(one_call, "solutions_here", lambda device, names: [noting(names[0])])
    monkeypatch.setattr(
        one_call, "Arguments", lambda device: SimpleNamespace(of=lambda case: arguments)
    )
    empty = SimpleNamespace(zero_=noting("clear the cache"))
    monkeypatch.setattr(torch, "empty", lambda *size, **options: empty)
    monkeypatch.setattr(torch.cuda, "synchronize", noting("wait"))
    monkeypatch.setattr(torch.cuda.profiler, "start", noting("start"))
    monkeypatch.setattr(torch.cuda.profiler, "stop", noting("stop"))
    one_call.main(["mine", uuid_of("7"), "2"])
    assert done == ["mine", "mine", "clear the cache", "wait", "start", "mine", "wait", "stop"]
