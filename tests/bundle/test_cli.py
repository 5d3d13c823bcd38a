"""Options that all scripts share, how they fail, and the list of them."""

import runpy
import subprocess
import sys

import pytest
from bundle import cli
from bundle.paths import ROOT, BadInput

SCRIPTS = sorted(path.name for path in (ROOT / "scripts").glob("*.py"))


def test_workloads_may_be_joined_by_commas():
    parser = cli.make_parser("Test.")
    cli.add_workloads(parser)
    assert parser.parse_args([]).workloads is None
    assert parser.parse_args(["--workloads", "1,7", "58"]).workloads == ["1", "7", "58"]


@pytest.mark.parametrize(
    "error, status, text",
    [
        (BadInput("--x: expected 1, got 2"), 2, "error: --x: expected 1, got 2\n"),
        (BadInput("a\nb\x1b[2J"), 2, "error: a\nb\\x1b[2J\n"),
        (FileNotFoundError(2, "No such file", "x"), 2, "error: [Errno 2] No such file: 'x'\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_what_is_wrong_is_told_in_one_way(error, status, text, capsys, monkeypatch):
    def main(arguments):
        raise error

    monkeypatch.setattr(cli, "open_output", lambda: None)
    with pytest.raises(SystemExit) as caught:
        cli.exit_with(main)
    assert caught.value.code == status and capsys.readouterr().err == text


def test_bench_lists_every_script_with_a_line():
    done = subprocess.run([ROOT / "scripts" / "bench", "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if line.strip()}
    for name in [*SCRIPTS, "bench", "check", "setup", "test"]:
        assert len(lines[f"scripts/{name}"]) > 3, name


@pytest.mark.parametrize("name", [name for name in SCRIPTS if name != "same_code.py"])
def test_every_script_has_help(name, capsys, monkeypatch):
    """Run here: starting a Python that imports PyTorch takes seconds, for each script."""
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(ROOT / "scripts" / name), run_name="__main__")
    assert caught.value.code in (None, 0) and capsys.readouterr().out.startswith("usage: ")
