"""First calls and memory: what is counted, and processes that start from nothing."""

import json
import subprocess
from pathlib import Path

import footprint
import pytest
from bundle.probes.cases import named_cases
from bundle.probes.first_calls import Reading, taken
from bundle.probes.footprint import FootprintReport, footprint_sheets, mib
from bundle.probes.reporting import provenance


def test_kept_memory_counts_in_later_calls():
    # 100 of arguments; a call that peaks at 50 and keeps 20, then one that peaks at 60 more
    first = taken(Reading(100, 0, 100, 900), Reading(120, 150, 150, 845), 0, 0)
    assert first == {"peak_bytes": 50, "kept_bytes": 20, "others_bytes": 5}
    second = taken(Reading(220, 0, 250, 745), Reading(220, 280, 280, 715), 20, 0)
    assert second == {"peak_bytes": 80, "kept_bytes": 20, "others_bytes": 0}


def test_output_that_a_solution_makes_is_not_counted():
    memory = taken(Reading(100, 0, 100, 900), Reading(130, 150, 150, 850), 0, 30)
    assert memory == {"peak_bytes": 20, "kept_bytes": 0, "others_bytes": 0}


def test_processes_find_no_caches_but_each_others(monkeypatch):
    homes, files = [], []

    def run(command, env, **_):
        home = Path(env["HOME"])
        assert env["TMPDIR"] == str(home) and "TRITON_CACHE_DIR" not in env
        homes.append(home)
        files.append(sorted(path.name for path in home.iterdir()))
        (home / "compiled").touch()
        rows = [
            {"uuid": uuid, "first_call_s": 9.0 - len(homes), "peak_bytes": 7, "kept_bytes": 3,
             "others_bytes": 0}
            for uuid in command[5:]
        ]  # fmt: skip
        Path(command[4]).write_text(json.dumps(rows))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setenv("TRITON_CACHE_DIR", "/elsewhere")
    monkeypatch.setattr(footprint.subprocess, "run", run)
    cases = named_cases(["1", "7"])
    small, large = footprint.measure("one", cases, 60)
    assert files == [[], ["compiled", "result.json"]]
    assert homes[0] == homes[1] and not homes[0].exists()
    assert (small.first_call_s, small.again_s) == (8.0, 7.0)
    assert large.again_s is None and large.seq_len == 7


def test_process_that_fails(monkeypatch):
    done = subprocess.CompletedProcess([], 1, "Traceback\nValueError: no\n", "")
    monkeypatch.setattr(footprint.subprocess, "run", lambda *_, **__: done)
    with pytest.raises(RuntimeError, match="exit status 1: ValueError: no"):
        footprint.measure("one", named_cases(["1"]), 60)


def test_sheet_has_failures_too():
    report = FootprintReport(provenance=provenance("x"), planned=1)
    (sheet,) = footprint_sheets(report)
    assert sheet.rows == []
    assert [mib(size) for size in (0, 1 << 19, 3 << 20)] == ["0", "0.50", "3"]
