"""solution.toml and folders to the harness's JSON: what is packed, and what is refused."""

import json
import sys

import new_solution
import pack as pack_script
import pytest
from bundle.dataset.loading import load_definition
from bundle.dataset.packing import pack, pack_in_place, solution_folders
from bundle.paths import ROOT, BadInput
from flashinfer_bench.data import Solution, TraceSet, load_json_file
from toy_bundle import DEFINITION, add_solution, control, make_bundle, packed, write

RUN = "def run(routing_logits, hidden_states, weights, weights_scale, scaling_factor, output):\n"
MAIN = RUN + "    pass\n"


@pytest.fixture
def root(tmp_path):
    return make_bundle(tmp_path, {})


def paths_of(folder, root) -> list[str]:
    return [source.path for source in pack(folder, load_definition(root, DEFINITION)).sources]


def problems_of(root) -> list[str]:
    return pack_in_place(solution_folders(root), root)


def run_script(monkeypatch, *arguments) -> int:
    monkeypatch.setattr(sys, "argv", ["pack.py", *map(str, arguments)])
    return pack_script.main()


# What is packed


def test_only_imported_common_files_are_packed(root):
    common = root / "solutions" / "common"
    write(common / "a.py", "from .b import x\nfrom .deep import leaf\n")
    write(common / "b.py", "x = 1\n")
    write(common / "unused.py", "x = 1\n")
    write(common / "deep" / "__init__.py", "from .init import y\n")
    write(common / "deep" / "init.py", "y = 1\n")
    write(common / "deep" / "leaf.py", "from ... import common\nfrom ..b import x\n")
    write(common / "deep" / "unused.py", "")
    write(common / "lazy.py", "x = 1\n")
    lazy = "    from ..common.lazy import x\n    import torch\n    from .parts import gemm\n"
    folder = add_solution(root, "mine", "from ..common import a\n" + RUN + lazy)
    write(folder / "parts" / "__init__.py", "")
    write(folder / "parts" / "gemm.py", "from ...common.b import x\n")
    write(folder / "kernel.cu", "// CUDA\n")
    write(folder / "README.md", "notes\n")
    write(folder / "__pycache__" / "main.pyc", "cache\n")
    assert paths_of(folder, root) == [
        "common/a.py",
        "common/b.py",
        "common/deep/__init__.py",
        "common/deep/init.py",
        "common/deep/leaf.py",
        "common/lazy.py",
        "mine/kernel.cu",
        "mine/main.py",
        "mine/parts/gemm.py",
    ]


def test_module_wins_over_folder_without_init(root):
    """As Python has it: common/x.py is imported although a folder common/x/ is left over."""
    write(root / "solutions" / "common" / "x.py", "y = 1\n")
    write(root / "solutions" / "common" / "x" / "__pycache__" / "z.pyc", "cache\n")
    folder = add_solution(root, "mine", "from ..common.x import y\n" + MAIN)
    assert paths_of(folder, root) == ["common/x.py", "mine/main.py"]


def test_packing_is_deterministic(root):
    folder = add_solution(root, "mine", control("good"))
    assert problems_of(root) == []
    first = (folder / "solution.json").read_bytes()
    (folder / "solution.json").unlink()
    assert problems_of(root) == []
    assert (folder / "solution.json").read_bytes() == first
    solution = load_json_file(Solution, folder / "solution.json")
    assert solution.spec.entry_point == "mine/main.py::run"
    assert [source.path for source in solution.sources] == ["common/moe.py", "mine/main.py"]


def test_harness_loads_packed_bundle(root):
    add_solution(root, "one", control("good"))
    add_solution(root, "two", control("wrong_dtype"))
    packed(root)
    trace_set = TraceSet.from_path(str(root))
    styles = {s.name: s.spec.destination_passing_style for s in trace_set.solutions[DEFINITION]}
    assert styles == {"one": True, "two": False}
    assert len(trace_set.workloads[DEFINITION]) == 2


def test_every_solution_of_this_bundle_packs():
    for folder in solution_folders(ROOT):
        solution = pack(folder, load_definition(ROOT, json_definition(folder)))
        assert solution.name == folder.name


def json_definition(folder) -> str:
    text = (folder / "solution.toml").read_text("utf-8")
    return text.split('definition = "')[1].split('"')[0]


# What is refused, and how


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ('author = "tests"', 'author = "tests"\nauthors = "x"', "authors: unknown key"),
        ("cpu = true", "gpu = true", "requires.gpu: unknown key"),
        ('author = "tests"\n', "", "author: missing key"),
        ('name = "mine"', 'name = "other"', "name: expected the folder's name"),
        ('language = "python"', 'language = "cutedsl"', "language: Input should be 'python'"),
        ('"main.py::run"', '"main.py"', "entry_point: String should match pattern"),
        ('"main.py::run"', '"kernel.py::run"', "entry_point: there is no file 'kernel.py'"),
        ('"main.py::run"', '"main.py::go"', "does not define a top-level function 'go'"),
        (f'"{DEFINITION}"', '"unknown"', f"has no 'unknown'; it has {DEFINITION}"),
        ("cpu = true", 'modules = ["x"]', "requires.install: expected a command"),
        ('name = "mine"', "name = mine", "not TOML: Invalid value (at line 1, column 8)"),
    ],
)
def test_config_errors_name_file_and_key(root, before, after, expected):
    config = add_solution(root, "mine", MAIN) / "solution.toml"
    text = config.read_text("utf-8")
    assert before in text
    config.write_text(text.replace(before, after), "utf-8")
    (problem,) = problems_of(root)
    assert problem.startswith(f"{config}: ")
    assert expected in problem


@pytest.mark.parametrize(
    ("main", "expected"),
    [
        ("", ": empty source"),
        ("def run(:\n", ":1: syntax error: invalid syntax"),
        ("import helper\n" + MAIN, ":1: absolute import of own module 'helper'"),
        ("from mine.helper import x\n" + MAIN, ":1: absolute import of own module 'mine.helper'"),
        ("from solutions.common import moe\n" + MAIN, ":1: absolute import of own module"),
        ("from common.moe import compute\n" + MAIN, ":1: absolute import of own module"),
        ("from .nothing import x\n" + MAIN, ":1: relative import of mine/nothing: there is no"),
        ("\nfrom ..common import x\n" + MAIN, ":2: relative import of common/x: there is no such"),
        ("from ..common.moe.x import y\n" + MAIN, ":1: relative import of common/moe/x: there is"),
        ("from ..other.main import run\n" + MAIN, ":1: imports other/main of another solution"),
        ("from ...above import x\n" + MAIN, ":1: relative import goes above solutions/"),
    ],
)
def test_source_errors_name_file_and_line(root, main, expected):
    add_solution(root, "other", MAIN)
    folder = add_solution(root, "mine", main)
    write(folder / "helper.py", "x = 1\n")
    problems = [p for p in problems_of(root) if "entry_point" not in p]
    assert len(problems) == 1
    assert problems[0].startswith(f"{folder / 'main.py'}{expected}")


@pytest.mark.parametrize(
    "parameters",
    [
        "routing_logits, hidden_states, weights, weights_scale, scaling_factor",
        "hidden_states, routing_logits, weights, weights_scale, scaling_factor, output",
        "routing_logits, hidden_states, weights, weights_scale, scaling_factor, output, tile=1",
        "routing_logits, hidden_states, weights, weights_scale, scaling_factor, output, *, tile=1",
        "*arguments, output",
    ],
)
def test_wrong_signature(root, parameters):
    folder = add_solution(root, "mine", f"\ndef run({parameters}):\n    pass  # , output)\n")
    (problem,) = problems_of(root)
    assert f"{folder / 'main.py'}:2: run must take exactly (routing_logits, " in problem


def test_json_in_a_solution_is_refused(root):
    write(add_solution(root, "mine", MAIN) / "tuning.json", "{}")
    (problem,) = problems_of(root)
    assert "tuning.json: the harness takes any .json below solutions/ for its own" in problem


def test_folder_without_config(root):
    write(root / "solutions" / "mine" / "main.py", MAIN)
    assert problems_of(root) == [f"{root / 'solutions' / 'mine'}: missing solution.toml"]


def test_all_errors_of_a_solution_are_listed(root):
    add_solution(root, "mine", "import mine\nfrom .nothing import x\n")
    assert len(problems_of(root)) == 3


# The script


def test_one_bad_solution_stops_no_other(root, monkeypatch, capsys):
    good, bad = add_solution(root, "good", MAIN), add_solution(root, "bad", MAIN)
    assert run_script(monkeypatch, "--local", root) == 0
    assert (bad / "solution.json").exists()
    write(bad / "main.py", "import bad\n" + MAIN)
    assert run_script(monkeypatch, "--local", root) == 1
    output = capsys.readouterr()
    assert "bad/main.py:1: absolute import" in output.err
    assert str(good / "solution.json") in output.out
    assert not (bad / "solution.json").exists(), "the harness would run the old version"


def test_json_of_deleted_solution_is_removed(root, monkeypatch):
    folder = add_solution(root, "gone", MAIN)
    foreign = root / "solutions" / "author" / "solution.json"
    assert run_script(monkeypatch, "--local", root) == 0
    write(foreign, (folder / "solution.json").read_text())
    for name in ("main.py", "solution.toml"):
        (folder / name).unlink()
    assert run_script(monkeypatch, "--local", root) == 0
    assert not (folder / "solution.json").exists()
    assert foreign.exists(), "not written by this script"


def test_named_solutions_only(root, monkeypatch, capsys):
    one, two = add_solution(root, "one", MAIN), add_solution(root, "two", MAIN)
    assert run_script(monkeypatch, "--local", root, "--solutions", "two") == 0
    assert (two / "solution.json").exists() and not (one / "solution.json").exists()
    assert run_script(monkeypatch, "--local", root, "--solutions", "three") == 2
    assert "expected some of one, two, got three" in capsys.readouterr().err


def test_into_another_dataset(root, tmp_path_factory, monkeypatch, capsys):
    add_solution(root, "mine", control("good"))
    clone = make_bundle(tmp_path_factory.mktemp("clone"), {})
    assert run_script(monkeypatch, "--local", root, "--into", clone) == 0
    path = clone / "solutions" / "tests" / "moe" / DEFINITION / "mine.json"
    assert capsys.readouterr().out.strip() == str(path)
    assert [s.name for s in TraceSet.from_path(str(clone)).solutions[DEFINITION]] == ["mine"]
    assert not (root / "solutions" / "mine" / "solution.json").exists()


def test_into_dataset_without_the_definition(root, tmp_path_factory, monkeypatch, capsys):
    add_solution(root, "mine", MAIN)
    other = tmp_path_factory.mktemp("other")
    assert run_script(monkeypatch, "--local", root, "--into", other) == 2
    assert "no definitions/ in it" in capsys.readouterr().err
    write(other / "definitions" / "gemm" / "x.json", json.dumps({"name": "x"}))
    assert run_script(monkeypatch, "--local", root, "--into", other) == 1
    assert f"has no '{DEFINITION}'; it has x" in capsys.readouterr().err
    assert not (other / "solutions").exists()


def test_new_solution_is_a_working_copy(tmp_path):
    root = make_bundle(tmp_path, {"torch_moe": control("good")})
    new_solution.create("my_kernel", root)
    (solution,) = [s for s in packed(root) if s.name == "my_kernel"]
    assert solution.spec.entry_point == "my_kernel/main.py::run"
    assert "common/moe.py" in [source.path for source in solution.sources]


@pytest.mark.parametrize("name", ["torch_moe", "common", "my-kernel", "../x", "1st", ""])
def test_new_solution_refuses_bad_names(tmp_path, name):
    root = make_bundle(tmp_path, {"torch_moe": control("good")})
    with pytest.raises(BadInput, match="^NAME: "):
        new_solution.create(name, root)
