"""docs/first-hour-on-a-b200.md: each of its commands is one that exists and does something."""

import re
import shlex
import subprocess
import sys

import pytest
from bundle.dataset.packing import solution_folders
from bundle.paths import ROOT

pytestmark = pytest.mark.long  # each command is a process that imports PyTorch

PAGE = ROOT / "docs" / "first-hour-on-a-b200.md"
GPU_TOOLS = {"nvidia-smi"}


def commands() -> list[list[str]]:
    """The page's indented lines as words, without what limits their time."""
    text = PAGE.read_text("utf-8").replace("\\\n", " ")
    lines = [
        shlex.split(line, comments=True) for line in re.findall(r"^    (.+)$", text, re.MULTILINE)
    ]
    return [words[2:] if words[0] == "timeout" else words for words in lines]


TESTS = [words[3:] for words in commands() if words[:3] == ["python", "-m", "pytest"]]
SCRIPTS = [
    words[1:] if words[0] == "python" else words
    for words in commands()
    if words[:3] != ["python", "-m", "pytest"] and words[0] not in GPU_TOOLS
]


def output(*command: str) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_page_has_commands():
    assert len(TESTS) > 5 and len(SCRIPTS) > 5


@pytest.mark.parametrize("arguments", TESTS, ids=" ".join)
def test_there_are_such_tests(arguments):
    """pytest exits with 5 if it selects none."""
    output(sys.executable, "-m", "pytest", "--collect-only", "-p", "no:cacheprovider", *arguments)


@pytest.mark.parametrize("words", SCRIPTS, ids=" ".join)
def test_there_are_such_scripts(words):
    """With these options and solutions."""
    script, *arguments = words
    assert (ROOT / script).is_file()
    names = {folder.name for folder in solution_folders(ROOT)}
    given = [word for word in arguments if re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)+", word)]
    assert set(given) <= names
    options = {word for word in arguments if word.startswith("--")}
    if options:
        python = () if script == "scripts/bench" else (sys.executable,)
        told = output(*python, script, "--help")
        assert options <= set(re.findall(r"--[a-z-]+", told))
