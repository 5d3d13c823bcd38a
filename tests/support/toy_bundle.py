"""A dataset small enough for tests, with a definition that the harness treats as fp8 MoE."""

import json
from pathlib import Path

import torch
from bundle.dataset.loading import load_definition
from bundle.dataset.packing import pack, pack_in_place, solution_folders
from flashinfer_bench.data import Solution
from safetensors.torch import save_file

TESTS = Path(__file__).parent
DEFINITION = "toy_moe_fp8_block_scale"
EXPERTS, HIDDEN = 4, 128
INPUTS = "routing_logits, hidden_states, weights, weights_scale, scaling_factor"


def control(name: str) -> str:
    """The main.py of a control solution."""
    return (TESTS / "controls" / f"{name}.py").read_text("utf-8")


def make_bundle(
    root: Path, solutions: dict[str, str], num_tokens: tuple[int, ...] = (3, 8)
) -> Path:
    """A bundle at `root` with main.py texts by solution name; returns `root`."""
    definition = {
        "name": DEFINITION,
        "op_type": "moe",
        "axes": {
            "seq_len": {"type": "var"},
            "num_experts": {"type": "const", "value": EXPERTS},
            "hidden_size": {"type": "const", "value": HIDDEN},
        },
        "inputs": {
            "routing_logits": {"shape": ["seq_len", "num_experts"], "dtype": "float32"},
            "hidden_states": {"shape": ["seq_len", "hidden_size"], "dtype": "float8_e4m3fn"},
            "weights": {
                "shape": ["num_experts", "hidden_size", "hidden_size"],
                "dtype": "float8_e4m3fn",
            },
            "weights_scale": {"shape": ["num_experts"], "dtype": "float32"},
            "scaling_factor": {"shape": None, "dtype": "float32"},
        },
        "outputs": {"output": {"shape": ["seq_len", "hidden_size"], "dtype": "bfloat16"}},
        "reference": (TESTS / "toy" / "reference.py").read_text("utf-8"),
    }
    write(root / "definitions" / "moe" / f"{DEFINITION}.json", json.dumps(definition))
    rows = [workload_row(tokens) for tokens in num_tokens]
    write(root / "workloads" / "moe" / f"{DEFINITION}.jsonl", "\n".join(map(json.dumps, rows)))
    (root / "blob").mkdir()
    for tokens in num_tokens:
        logits = torch.randn(tokens, EXPERTS, generator=torch.Generator().manual_seed(tokens))
        save_file({"routing_logits": logits}, root / "blob" / f"{tokens}.safetensors")
    write(root / "solutions" / "common" / "moe.py", (TESTS / "toy" / "moe.py").read_text("utf-8"))
    for name, main in solutions.items():
        add_solution(root, name, main)
    return root


def workload_row(num_tokens: int) -> dict:
    return {
        "definition": DEFINITION,
        "workload": {
            "uuid": f"workload-{num_tokens}",
            "axes": {"seq_len": num_tokens},
            "inputs": {
                "routing_logits": {
                    "type": "safetensors",
                    "path": f"blob/{num_tokens}.safetensors",
                    "tensor_key": "routing_logits",
                },
                "hidden_states": {"type": "random"},
                "weights": {"type": "random"},
                "weights_scale": {"type": "random"},
                "scaling_factor": {"type": "scalar", "value": 2.5},
            },
        },
    }


def add_solution(root: Path, name: str, main: str, config: str = "") -> Path:
    """Add a solution folder that runs anywhere; `config` holds further lines of solution.toml.

    It is value returning if its main.py says so by not naming an output.
    """
    folder = root / "solutions" / name
    write(folder / "main.py", main)
    write(
        folder / "solution.toml",
        f'name = "{name}"\ndescription = "A test."\nauthor = "tests"\n'
        f'definition = "{DEFINITION}"\nlanguage = "python"\nentry_point = "main.py::run"\n'
        f'target_hardware = ["cpu", "cuda"]\n'
        f"destination_passing_style = {str(', output)' in main).lower()}\n"
        f"{config}\n[requires]\ncpu = true\n",
    )
    return folder


def packed(root: Path) -> list[Solution]:
    """All solutions of a bundle, also written to their solution.json."""
    folders = solution_folders(root)
    assert pack_in_place(folders, root) == []
    return [pack(folder, load_definition(root, DEFINITION)) for folder in folders]


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
