"""Solutions in an engine: by flashinfer_bench.apply, and by FlashInfer's own trace_apply."""

import json
import math
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import engine_call
import pack as pack_script
import pytest
import torch
from bundle.dataset.workload_table import DEFINITION
from bundle.paths import ROOT
from engine_call import DEVICE, layer_inputs
from flashinfer_bench import ApplyConfig, apply, enable_apply
from flashinfer_bench.data import Solution, load_json_file
from toy_bundle import DEFINITION as TOY_DEFINITION
from toy_bundle import control, make_bundle
from trace_factory import make_trace, write_traces

from solutions.torch_moe.main import run as torch_moe

# no layer with an fp8 intermediate is within the defaults, and any number of tokens shall do
CONFIG = ApplyConfig(max_atol=math.inf, max_rtol=math.inf, on_miss_policy="use_def_best")


def write(monkeypatch, *arguments) -> int:
    monkeypatch.setattr(sys, "argv", ["pack.py", "--apply", *map(str, arguments)])
    return pack_script.main()


def traced_at_one_token(name: str, folder: Path) -> str:
    """The dataset at `folder`, its traces replaced by one of seq_len 1 of this solution."""
    shutil.rmtree(folder / "traces", ignore_errors=True)
    write_traces(folder, [make_trace(name, max_error=1e6)])
    return str(folder)


def expected(arguments: dict) -> torch.Tensor:
    output = torch.empty(arguments["hidden_states"].shape, dtype=torch.bfloat16, device=DEVICE)
    torch_moe(*arguments.values(), output)
    assert output.any(dim=1).all()
    return output


@pytest.mark.parametrize("seq_len", [1, 2], ids=["traced", "never_traced"])
def test_flashinfer_bench_applies_it(tmp_path, monkeypatch, seq_len):
    assert write(monkeypatch, "torch_moe", "--into", tmp_path / "out") == 0
    arguments = layer_inputs(seq_len)
    with enable_apply(traced_at_one_token("torch_moe", tmp_path / "out"), CONFIG):
        result = apply(DEFINITION, args=tuple(arguments.values()))
        given = torch.empty_like(result)
        apply(DEFINITION, args=(*arguments.values(), given))
    assert torch.equal(result, expected(arguments)) and torch.equal(given, result)


def substituted(tmp_path, monkeypatch, seq_len: int) -> torch.Tensor:
    """Result of FlashInfer's own function in a process that its environment alone configures."""
    monkeypatch.setenv("FLASHINFER_TRACE_APPLY", "1")
    monkeypatch.setenv("FLASHINFER_TRACE_APPLY_PATH", str(tmp_path / "out"))
    monkeypatch.setenv("HOME", str(tmp_path))  # it unpacks there
    command = [sys.executable, engine_call.__file__, str(seq_len), tmp_path / "result.pt"]
    child = subprocess.run(command, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    assert "'hit': 1" in child.stdout, child.stdout + child.stderr
    return torch.load(tmp_path / "result.pt")


needs_trace_apply = pytest.mark.skipif(
    find_spec("flashinfer") is None or find_spec("flashinfer.trace_apply") is None,
    reason="needs FlashInfer 0.7 or later",
)


@needs_trace_apply
def test_flashinfer_substitutes_it(tmp_path, monkeypatch):
    assert write(monkeypatch, "torch_moe", "--into", tmp_path / "out") == 0
    result = substituted(tmp_path, monkeypatch, 1)
    assert torch.equal(result, expected(layer_inputs(1)))


@pytest.mark.gpu
@needs_trace_apply
def test_flashinfer_substitutes_v3(tmp_path, monkeypatch):
    pytest.importorskip("cutlass")
    assert write(monkeypatch, "cutedsl_moe_fp8_v3", "--into", tmp_path / "out") == 0
    result, reference = substituted(tmp_path, monkeypatch, 7), expected(layer_inputs(7))
    assert (result.float() - reference.float()).norm() < 0.04 * reference.float().norm()


@pytest.mark.gpu
def test_flashinfer_bench_applies_v3(tmp_path, monkeypatch):
    pytest.importorskip("cutlass")
    assert write(monkeypatch, "cutedsl_moe_fp8_v3", "--into", tmp_path / "out") == 0
    arguments = layer_inputs(9)
    with enable_apply(traced_at_one_token("cutedsl_moe_fp8_v3", tmp_path / "out"), CONFIG):
        result = apply(DEFINITION, args=tuple(arguments.values()))
    reference = expected(arguments)
    assert (result.float() - reference.float()).norm() < 0.04 * reference.float().norm()


# The entry by itself


@pytest.fixture
def toy(tmp_path):
    return make_bundle(tmp_path / "bundle", {"good": control("good")})


def entry_of(folder) -> str:
    solution = load_json_file(Solution, folder / "solutions" / "good.json")
    return next(s.content for s in solution.sources if s.path == "engine_entry.py")


def test_what_an_engine_passes_besides_is_checked(toy, tmp_path, monkeypatch):
    assert write(monkeypatch, "good", "--local", toy) == 0
    names = {"__name__": "entry", "__file__": str(toy / "solutions" / "entry.py")}
    exec(entry_of(toy / "build" / "apply" / "good"), names)
    logits = torch.randn(3, 4)
    arguments = (logits, *(torch.randn(s) for s in [(3, 128), (4, 128, 128), (4,)]))
    result = names["run"](*arguments, 2.0, top_k=8, n_group=8, topk_group=4, other=None)
    assert result.shape == (3, 128) and result.dtype == torch.bfloat16
    for name, value in {"top_k": 6, "gemm1_alpha": torch.ones(4)}.items():
        with pytest.raises(ValueError, match=f"{name}: expected .*, got"):
            names["run"](*arguments, 2.0, **{name: value})


def test_dataset_holds_the_solution_alone(toy, tmp_path, monkeypatch):
    assert write(monkeypatch, "good", "--local", toy, "--into", tmp_path / "out") == 0
    files = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.json*")}
    assert files == {f"definitions/moe/{TOY_DEFINITION}.json", "solutions/good.json"}
    assert write(monkeypatch, "good", "--local", toy, "--into", tmp_path / "out") == 0


def test_only_traces_of_the_solution_come_along(toy, tmp_path, monkeypatch):
    write_traces(toy, [make_trace(name, definition=TOY_DEFINITION) for name in ("good", "other")])
    assert write(monkeypatch, "good", "--local", toy, "--into", tmp_path / "out") == 0
    (path,) = (tmp_path / "out" / "traces").rglob("*.jsonl")
    (trace,) = path.read_text().splitlines()
    assert json.loads(trace)["solution"] == "good"


def test_other_folders_are_left_alone(toy, tmp_path, monkeypatch, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("kept")
    assert write(monkeypatch, "good", "--local", toy, "--into", tmp_path / "mine") == 2
    assert "--into: expected a new folder" in capsys.readouterr().err
    assert (tmp_path / "mine" / "file").read_text() == "kept"


def test_the_bundle_is_no_place_for_it(monkeypatch, capsys):
    """Its solutions/ holds many, and FlashInfer takes one per definition."""
    assert write(monkeypatch, "torch_moe", "--into", ROOT) == 2
    assert "--into: expected a new folder" in capsys.readouterr().err
