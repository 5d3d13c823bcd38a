"""Which sources are compiled, and that what is left out raises instead of crashing."""

import shutil
import subprocess
import sys

import build_flashinfer_sm90 as script
import pytest

needs_compiler = pytest.mark.skipif(
    not (shutil.which("c++") and shutil.which("nm")), reason="needs c++ and nm"
)

LIBRARY = """
namespace tensorrt_llm {
template <class T> struct Runner { virtual int run(); };
int elsewhere(int);
}
extern "C" void* another_librarys();
extern "C" int built() { return 7; }
extern "C" int left_out() {
  try {
    return tensorrt_llm::elsewhere(1);
  } catch (...) {  // ctypes cannot take an exception across
    return -1;
  }
}
extern "C" void* vtable_user() { return new tensorrt_llm::Runner<int>; }
extern "C" void* other_user() { return another_librarys(); }
"""


class Spec:
    """A JitSpec of one library: compiled by c++, installed below `root`."""

    def __init__(self, root):
        self.name = "toy"
        self.aot_path = root / "aot/toy/toy.so"

    @property
    def is_aot(self):
        return self.aot_path.exists()

    def get_library_path(self):
        return self.aot_path


def compile_library(path, *sources):
    subprocess.run(["c++", "-shared", "-fPIC", "-o", path, *sources], check=True)


@needs_compiler
def test_what_is_missing_raises(tmp_path):
    source, stubs, library = tmp_path / "a.cpp", tmp_path / "b.cpp", tmp_path / "lib.so"
    other = tmp_path / "c.cpp"
    source.write_text(LIBRARY)
    other.write_text('extern "C" void* another_librarys() { return nullptr; }')
    compile_library(library, source)
    missing = script.missing_symbols(library)
    assert missing == ["_ZN12tensorrt_llm6RunnerIiE3runEv", "_ZN12tensorrt_llm9elsewhereEi"]

    script.write(stubs, script.raising_functions(missing))
    compile_library(library, source, stubs, other)
    assert script.missing_symbols(library) == []
    calls = f"import ctypes; l = ctypes.CDLL({str(library)!r}); print(l.built(), l.left_out())"
    done = subprocess.run([sys.executable, "-c", calls], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["7", "-1"]


def test_write_leaves_equal_text_alone(tmp_path):
    path = tmp_path / "source.cpp"
    script.write(path, "one")
    before = path.stat().st_mtime_ns
    script.write(path, "one")
    assert path.stat().st_mtime_ns == before
    script.write(path, "two")
    assert path.read_text() == "two"


def test_install_puts_the_library_in_place_once(tmp_path, capsys):
    spec, built = Spec(tmp_path), tmp_path / "built.so"
    built.write_bytes(b"library")
    script.install(spec, lambda module: built)
    assert spec.aot_path.read_bytes() == b"library"
    assert [p.name for p in spec.aot_path.parent.iterdir()] == ["toy.so"]
    script.install(spec, lambda module: pytest.fail("built twice"))
    assert "is there already" in capsys.readouterr().out


def test_failed_build_installs_nothing(tmp_path):
    def fail(module):
        raise RuntimeError("Ninja build failed")

    with pytest.raises(RuntimeError, match="Ninja"):
        script.install(Spec(tmp_path), fail)
    assert not (tmp_path / "aot").exists()


def test_needed_sources_of_the_installed_flashinfer():
    """Those of the block-scale runner are there, no kernel of another type is."""
    pytest.importorskip("flashinfer")
    from flashinfer.jit import env

    folder = env.FLASHINFER_CSRC_DIR
    sources = sorted(folder.rglob("*.cu")) + sorted(folder.rglob("*.cpp"))
    listing = [s for s in sources if "cutlass_kernels" in str(s) or "cutlass_backend" in str(s)]
    generated = folder / "cutlass_kernel_file_gemm_sm90_M64_group0.generated.cu"
    kept = {source.name for source in script.needed([*listing, generated])}
    assert {
        "fp8_blockscale_gemm.cu",
        "moe_gemm_kernels_bf16_fp8.cu",
        "flashinfer_cutlass_fused_moe_binding.cu",
        "deepgemm_jit_setup.cu",
        "cutlass_heuristic.cpp",
    } <= kept
    assert not any(name.endswith(".generated.cu") for name in kept)
    kernels = [name for name in kept if name.startswith("moe_gemm_kernels_")]
    assert kernels == ["moe_gemm_kernels_bf16_fp8.cu"]
    instantiation = folder / "fused_moe/cutlass_backend/cutlass_fused_moe_instantiation.cu"
    wanted = "template class CutlassMoeFCRunner<__nv_bfloat16, __nv_fp8_e4m3, __nv_bfloat16>;"
    assert wanted in instantiation.read_text() and wanted in script.INSTANTIATION


def test_without_flashinfer():
    """-I -S: without site-packages."""
    command = [sys.executable, "-I", "-S", script.__file__]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == 'error: FlashInfer is missing: pip install ".[flashinfer]"\n'
