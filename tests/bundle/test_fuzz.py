"""Every reader takes mutated files: it reads them, or names them in one of the bundle's errors."""

import json
import random
import resource
import time
from functools import partial

import pytest
from bundle.comparison.traces import load_traces
from bundle.dataset.loading import load_dataset
from bundle.dataset.manifest import read_config
from bundle.dataset.packing import pack_in_place, solution_folders
from bundle.paths import ROOT, BadInput
from bundle.probes.gemm import GemmReport
from bundle.probes.store import load
from toy_bundle import DEFINITION, control, make_bundle

SHARE, WHOLE = 60, 4000  # files per reader; five readers
SECONDS = 20.0  # of the processor for one file: many times what the slowest takes
MEMORY_KIB = 2 << 20  # more than before
PIECES = [
    b"\x00", b"\xff", b"\xef\xbb\xbf", b"\n", b"{", b"[", b'"', b"\\u0000", b"\\ud800", b"NaN",
    b"-1", b"1e999", b"9" * 5000, b"[" * 3000, b"null", b"true", b"\x1b[2J", b"../..", b"'''",
    b"{}" * 500, "größe\u2028".encode(),
]  # fmt: skip


def mutated(content: bytes, draw: random.Random) -> bytes:
    """`content` with a few pieces cut out, doubled, swapped or put in."""
    data = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(data) + 1)
        length = draw.choice([1, 1, 2, 10, 200])
        kind = draw.randrange(5)
        if kind == 0:
            del data[at : at + length]
        elif kind == 1:
            data[at:at] = draw.choice(PIECES)
        elif kind == 2:
            data[at : at + length] = data[at : at + length] * 2
        elif kind == 3 and at < len(data):
            data[at] = draw.randrange(256)
        else:
            data[at : at + length] = draw.choice(PIECES)
    return bytes(data[: draw.randrange(len(data) + 1)] if draw.random() < 0.05 else data)


@pytest.fixture(scope="module")
def readers(tmp_path_factory):
    """name -> (file, its good content, what reads it)."""
    folder = tmp_path_factory.mktemp("fuzz")
    root = make_bundle(folder / "bundle", {"one": control("good")})
    assert pack_in_place(solution_folders(root), root) == []
    lines = next((ROOT / "traces").rglob("*.jsonl")).read_bytes().splitlines(keepends=True)
    traces, report = folder / "traces.jsonl", folder / "gemm-x.jsonl"
    rows = next((ROOT / "docs" / "data").glob("gemm-*.jsonl")).read_bytes().splitlines(True)
    config = root / "solutions" / "one" / "solution.toml"
    definition = root / "definitions" / "moe" / f"{DEFINITION}.json"
    workloads = root / "workloads" / "moe" / f"{DEFINITION}.jsonl"
    return {
        "config": (config, config.read_bytes(), partial(read_config, config.parent)),
        "definition": (definition, definition.read_bytes(), partial(load_dataset, root)),
        "workloads": (workloads, workloads.read_bytes(), partial(load_dataset, root)),
        "traces": (traces, b"".join(lines[:3]), partial(load_traces, [traces])),
        "report": (report, b"".join(rows[:4]), partial(load, GemmReport, report)),
    }


def fuzz(readers, name, count):
    path, content, read = readers[name]
    folder = path.parents[3] if "bundle" in path.parts else path.parent
    draw = random.Random(name)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused = 0
    for number in range(count):
        data = mutated(content, draw)
        path.write_bytes(data)
        said, start = str(folder), time.process_time()
        try:
            read()
        except BadInput as error:
            refused += 1
            said = str(error)
        finally:
            path.write_bytes(content)
        assert str(folder) in said, (number, data, said)
        assert time.process_time() - start < SECONDS, (number, data)
    read()  # the good file still is
    assert refused > count // 4
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEMORY_KIB


NAMES = ["config", "definition", "workloads", "traces", "report"]


@pytest.mark.parametrize("name", NAMES)
def test_some_mutated_files(readers, name):
    fuzz(readers, name, SHARE)


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", NAMES)
def test_20000_mutated_files(readers, name):
    fuzz(readers, name, WHOLE)


def test_mutation_changes_files():
    draw = random.Random(0)
    content = json.dumps({"a": [1, 2, 3]}).encode()
    assert len({mutated(content, draw) for _ in range(100)}) > 80
