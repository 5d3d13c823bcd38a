"""Folders and files from elsewhere: each bad one is named, and none stops, or reaches, another."""

import json
import os
import subprocess
import sys

import pytest
from bundle.dataset import packing
from bundle.dataset.loading import load_dataset
from bundle.dataset.manifest import PackError, read_config
from bundle.dataset.packing import pack_in_place, solution_folders
from bundle.paths import ROOT, BadInput
from toy_bundle import DEFINITION, add_solution, control, make_bundle, workload_row, write


def sparse(path, size):
    with path.open("wb") as file:
        file.truncate(size)


def config_of(folder, old, new):
    path = folder / "solution.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def chain(folder, count):
    """Modules that import each other one after the other."""
    for number in range(count):
        write(folder / f"m{number}.py", f"from .m{number + 1} import x\n")
    write(folder / f"m{count}.py", "x = 1\n")
    write(folder / "main.py", "from .m0 import x\n" + control("good"))


def enclose(path, before, after=""):
    path.write_text(before + path.read_text() + after)


def make_folder_of(path):
    path.unlink()
    path.mkdir()


# name of the case -> (what is done to a good folder, part of the message; None: still good)
CASES = {
    "link_out": (lambda f: (f / "data.txt").symlink_to("/etc/hostname"), "a link to /etc/hostname"),
    "main_is_link": (
        lambda f: ((f / "main.py").unlink(), (f / "main.py").symlink_to("/etc/hostname")),
        "a link to",
    ),
    "linked_folder": (lambda f: (f / "sub").symlink_to("/etc"), "a link to /etc"),
    "link_to_itself": (lambda f: (f / "x.py").symlink_to("x.py"), "x.py: "),
    "dangling": (lambda f: (f / "x.py").symlink_to("nowhere.py"), "No such file"),
    "link_inside": (lambda f: (f / "x.py").symlink_to("main.py"), None),
    "pipe": (lambda f: os.mkfifo(f / "x.py"), "expected a file, found a pipe"),
    "sparse": (lambda f: sparse(f / "w.bin", 3 << 30), "expected at most"),
    "large": (
        lambda f: [write(f / f"x{i}.txt", "x" * (3 << 20)) for i in range(6)],
        "bytes in all",
    ),
    "many": (lambda f: [write(f / f"x{i}.txt", "x") for i in range(2500)], "expected at most 2000"),
    "latin1_source": (lambda f: (f / "x.py").write_bytes(b"# \xe9"), "x.py: expected UTF-8"),
    "bom_source": (
        lambda f: (f / "main.py").write_bytes(b"\xef\xbb\xbf" + (f / "main.py").read_bytes()),
        None,
    ),
    "bom_config": (
        lambda f: (f / "solution.toml").write_bytes(
            b"\xef\xbb\xbf" + (f / "solution.toml").read_bytes()
        ),
        None,
    ),
    "latin1_config": (lambda f: (f / "solution.toml").write_bytes(b'name = "\xe9"'), "UTF-8"),
    "utf16_config": (
        lambda f: (f / "solution.toml").write_text("name = 1", "utf-16"),
        "expected UTF-8",
    ),
    "config_is_folder": (lambda f: make_folder_of(f / "solution.toml"), "found a folder"),
    "config_is_link": (
        lambda f: ((f / "solution.toml").unlink(), (f / "solution.toml").symlink_to("/etc/passwd")),
        "a link to /etc/passwd",
    ),
    "config_nested": (
        lambda f: (f / "solution.toml").write_text("x = " + "[" * 100_000),
        "solution.toml: ",
    ),
    "config_huge": (lambda f: sparse(f / "solution.toml", 1 << 30), "expected at most"),
    "config_long_key": (
        lambda f: (f / "solution.toml").write_text(".".join("a" * 20_000) + " = 1"),
        "expected at most 16384 bytes",
    ),
    "config_huge_number": (
        lambda f: (f / "solution.toml").write_text("x = " + "9" * 5000),
        "solution.toml: not TOML: ",
    ),
    "config_key_twice": (
        lambda f: config_of(f, "cpu = true", "cpu = true\ncpu = false"),
        "not TOML: ",
    ),
    "description_direction": (lambda f: config_of(f, "A test.", "A \u202etest."), "description: "),
    "install_escapes": (
        lambda f: config_of(f, "cpu = true", 'cpu = true\ninstall = "\\u001b[2J"'),
        "requires.install: ",
    ),
    "author_up": (lambda f: config_of(f, '"tests"', '".."'), "author: "),
    "author_path": (lambda f: config_of(f, '"tests"', '"a/b"'), "author: "),
    "definition_path": (lambda f: config_of(f, f'"{DEFINITION}"', '"../x"'), "definition: "),
    "module_empty": (
        lambda f: config_of(f, "cpu = true", 'cpu = true\nmodules = [""]\ninstall = "x"'),
        "requires.modules.0: ",
    ),
    "module_relative": (
        lambda f: config_of(f, "cpu = true", 'cpu = true\nmodules = [".foo"]\ninstall = "x"'),
        "requires.modules.0: ",
    ),
    "unary_minuses": (lambda f: write(f / "x.py", "-" * 200_000 + "1"), "x.py: "),
    "parentheses": (lambda f: write(f / "x.py", "(" * 5000), "x.py"),
    "many_fields": (  # minutes, if nobody stopped it
        lambda f: write(f / "x.py", "x = f'" + "{a}" * 1_300_000 + "'"),
        "x.py: Python cannot parse it: takes too much time or memory",
    ),
    "many_fields_in_many_files": (
        lambda f: [write(f / f"x{i}.py", "x = f'" + "{a}" * 40_000 + "'") for i in range(99)],
        "parsing this solution's Python takes more than 3 s",
    ),
    "many_lines": (lambda f: write(f / "x.py", "a\n" * (2 << 20)), "x.py: Python cannot parse it"),
    "large_source": (lambda f: write(f / "x.py", "# " + "x" * (2 << 20) + "\nx = 1\n"), None),
    "large_main": (lambda f: enclose(f / "main.py", "#" * 20_000 + "\n"), None),
    "large_wrong_main": (
        lambda f: enclose(f / "main.py", "#" * 20_000 + "\n", "\ndef run(x, *y, z): pass\n"),
        "but takes (x, *y, z)",
    ),
    "large_syntax_error": (
        lambda f: write(f / "x.py", "#" * 20_000 + "\nx = (\n"),
        "x.py:2: syntax error: '(' was never closed",
    ),
    "large_import": (
        lambda f: write(f / "x.py", "#" * 20_000 + "\nfrom .y import a\n"),
        "x.py:2: relative import of ",
    ),
    "nul_in_source": (lambda f: write(f / "x.py", "x = 1\0"), "x.py"),
    "long_chain": (lambda f: chain(f, 1500), None),
    "packed_is_folder": (lambda f: (f / "solution.json").mkdir(), "solution.json: cannot"),
    "json_source": (lambda f: write(f / "tuning.json", "{}"), "the harness takes any .json"),
    "hidden_folder": (lambda f: write(f / ".git" / "x.py", "(" * 99), None),
}


@pytest.fixture(scope="module")
def all_at_once(tmp_path_factory):
    """Every bad folder in one dataset, between two good ones; its problems and packed solutions."""
    names = ["a_good", *CASES, "z_good"]
    root = make_bundle(tmp_path_factory.mktemp("bundle"), dict.fromkeys(names, control("good")))
    for name, (spoil, _) in CASES.items():
        spoil(root / "solutions" / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "PARSE_SECONDS", 3.0)
        problems = pack_in_place(solution_folders(root), root)
    packed = {p.parent.name for p in root.glob("solutions/*/solution.json") if p.is_file()}
    return root, problems, packed


@pytest.mark.parametrize("name", CASES)
def test_bad_folder_is_named(all_at_once, name):
    root, problems, packed = all_at_once
    expected = CASES[name][1]
    own = [problem for problem in problems if str(root / "solutions" / name) + "/" in problem + "/"]
    if expected is None:
        assert own == [] and name in packed
    else:
        assert any(expected in problem for problem in own), own
        assert name not in packed


def test_bad_folders_stop_no_other(all_at_once):
    root, _, packed = all_at_once
    assert {"a_good", "z_good"} <= packed
    problems = []
    dataset = load_dataset(root, problems)
    loaded = {solution.name for solution in dataset.solutions[DEFINITION]}
    assert loaded == packed
    assert any("json_source/tuning.json" in problem for problem in problems)
    text = "".join(path.read_text() for path in root.glob("solutions/*/solution.json")
                   if path.is_file())  # fmt: skip
    assert "root:x:0" not in text


def test_packed_file_that_is_a_link_is_replaced(tmp_path):
    root = make_bundle(tmp_path / "b", {"one": control("good")})
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (root / "solutions" / "one" / "solution.json").symlink_to(victim)
    assert pack_in_place(solution_folders(root), root) == []
    assert victim.read_text() == "precious"
    assert not (root / "solutions" / "one" / "solution.json").is_symlink()


def test_nothing_is_written_if_nothing_changed(tmp_path):
    root = make_bundle(tmp_path, {"one": control("good")})
    pack_in_place(solution_folders(root), root)
    path = root / "solutions" / "one" / "solution.json"
    before = path.stat().st_ino, path.stat().st_mtime_ns
    pack_in_place(solution_folders(root), root)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == before
    assert [p.name for p in path.parent.iterdir() if p.name[0] == "."] == []


def test_many_imports_are_followed(tmp_path):
    root = make_bundle(tmp_path, {"one": control("good")})
    chain(root / "solutions" / "one", 100)
    assert pack_in_place(solution_folders(root), root) == []


def test_config_error_is_a_pack_error(tmp_path):
    folder = add_solution(tmp_path, "one", control("good"))
    (folder / "solution.toml").write_bytes(b"\xff")
    with pytest.raises(PackError, match="expected UTF-8"):
        read_config(folder)


@pytest.mark.parametrize(
    "path, content, expected",
    [
        (f"definitions/moe/{DEFINITION}.json", b"\xff\xfe{}", "expected UTF-8 text"),
        (f"definitions/moe/{DEFINITION}.json", b"[" * 100_000, "json"),
        (f"workloads/moe/{DEFINITION}.jsonl", b"\xff\xfe{}", "expected UTF-8 text"),
        (f"workloads/moe/{DEFINITION}.jsonl", b"{" * 100_000, "jsonl:1: "),
    ],
)
def test_bad_file_of_the_dataset_is_named(tmp_path, path, content, expected):
    root = make_bundle(tmp_path, {})
    (root / path).write_bytes(content)
    with pytest.raises(BadInput, match=expected) as error:
        load_dataset(root)
    assert str(root / path) in str(error.value)


def test_bad_definition_stops_no_other(tmp_path):
    root = make_bundle(tmp_path, {"one": control("good")})
    (root / "definitions" / "moe" / "broken.json").write_bytes(b"\xe9")
    (root / "workloads" / "moe" / "broken.jsonl").write_bytes(b"\xe9")
    pack_in_place(solution_folders(root), root)
    problems = []
    dataset = load_dataset(root, problems)
    assert [solution.name for solution in dataset.solutions[DEFINITION]] == ["one"]
    assert len(problems) == 2 and all("broken.json" in problem for problem in problems)


@pytest.mark.parametrize("path", ["/etc/hostname", "../../x.safetensors", "blob/../../x"])
def test_blob_outside_the_dataset_is_refused(tmp_path, path):
    root = make_bundle(tmp_path, {})
    row = workload_row(3)
    row["workload"]["inputs"]["routing_logits"]["path"] = path
    write(root / "workloads" / "moe" / f"{DEFINITION}.jsonl", json.dumps(row))
    with pytest.raises(BadInput, match="inputs.routing_logits.path: expected one in"):
        load_dataset(root)


@pytest.mark.parametrize("field, value", [("name", "../evil"), ("op_type", "../..")])
def test_definition_that_names_another_place_is_refused(tmp_path, field, value):
    root = make_bundle(tmp_path, {})
    path = root / "definitions" / "moe" / f"{DEFINITION}.json"
    write(path, json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(BadInput):
        load_dataset(root)


def test_refused_new_solution_leaves_nothing(tmp_path):
    before = sorted(ROOT.glob("solutions/*"))
    command = [sys.executable, ROOT / "scripts" / "new_solution.py", "torch"]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 2 and "absolute import" in finished.stderr
    assert sorted(ROOT.glob("solutions/*")) == before
