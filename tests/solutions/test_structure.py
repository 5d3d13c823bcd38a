"""What the folders of solutions/common promise: who needs what, and who may import whom."""

import ast

import pytest
from bundle.dataset.loading import load_definition
from bundle.dataset.packing import pack, read_config
from bundle.paths import ROOT

COMMON = ROOT / "solutions" / "common"
# what a folder's files may import beside torch and the standard library, and of common's folders
BACKENDS = {"triton_stages": {"triton"}, "sgl": {"sgl_kernel"}, "cutedsl": {"cutlass", "cuda"}}
FILES = [path for path in sorted(COMMON.rglob("*.py")) if path.parent != COMMON]


def imports(tree: ast.Module, parts: tuple[str, ...]):
    """Absolute module names, and for relative imports the path below solutions/."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level:
            module = node.module.split(".") if node.module else []
            yield ["common", *parts[: len(parts) - node.level], *module]
        elif isinstance(node, ast.ImportFrom):
            yield node.module.split(".")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(COMMON)))
def test_no_backend_needs_another(path):
    parts = path.relative_to(COMMON).parts
    others = set().union(*(BACKENDS[name] for name in BACKENDS if name != parts[0]))
    for module in imports(ast.parse(path.read_text("utf-8")), parts):
        assert module[0] not in others, module
        if module[0] == "common":
            assert len(module) == 1 or module[1] not in BACKENDS or module[1] == parts[0], module


@pytest.mark.parametrize("folder", ["cutedsl", "cutedsl/sm90", "cutedsl/sm100"])
def test_the_neutral_core_imports_no_architecture(folder):
    """Only what picks an architecture does; and no architecture needs the other."""
    picking = {"layer.py", "padded_gemm.py"} if folder == "cutedsl" else set()
    for path in sorted((COMMON / folder).glob("*.py")):
        parts = path.relative_to(COMMON).parts
        for module in imports(ast.parse(path.read_text("utf-8")), parts):
            architecture = {"sm90", "sm100"} & set(module)
            assert not architecture - {parts[1]} or path.name in picking, (path, module)


def test_cutedsl_v3_packs_without_triton():
    folder = ROOT / "solutions" / "cutedsl_moe_fp8_v3"
    solution = pack(folder, load_definition(ROOT, read_config(folder).definition))
    assert "triton" not in solution.spec.dependencies
    for source in solution.sources:
        assert "triton" not in source.path and "import triton" not in source.content, source.path
