"""scripts/same_code.py: what it says of two sets of kernels, and of a commit that is not there."""

import struct

import pytest
import same_code

pytest.importorskip("triton")
from sass import fingerprints

BEFORE = {"layer 0 kernel": "104 registers, 64 bytes, ab", "layer 0 pick": "51 registers, 8 bytes"}


@pytest.mark.parametrize(
    "after, code, said",
    [
        (BEFORE, 0, "2 of 2 kernels have the same code"),
        (BEFORE | {"layer 0 pick": "52 registers, 8 bytes"}, 1, "1 of 2 kernels have the same"),
        (BEFORE | {"layer 1 kernel": "9 registers"}, 1, "before: None"),
        ({"layer 0 pick": BEFORE["layer 0 pick"]}, 1, "after:  None"),
    ],
    ids=["same", "registers", "new", "gone"],
)
def test_verdict(monkeypatch, capsys, after, code, said):
    monkeypatch.setattr(same_code, "code_of_commit", {"old": BEFORE, "new": after}.get)
    assert same_code.main(["old", "new"]) == code
    assert said in capsys.readouterr().out


def test_unknown_commit(capsys):
    assert same_code.main(["no-such-commit"]) == 2
    assert "no-such-commit" in capsys.readouterr().err


def test_lines_without_code_are_passed_over(tmp_path):
    """As those of commits that print none of a kernel; a tree without any is refused."""
    support = tmp_path / "tests" / "support"
    support.mkdir(parents=True)
    (support / "compile_a.py").write_text(
        '# fingerprints\nprint(\'{"code": {"pick": "51 registers"}}\')\nprint(\'{"launch": 1}\')\n'
    )
    (support / "compile_b.py").write_text("raise SystemExit('without what is asked for')\n")
    assert same_code.code_of(tmp_path) == {"compile_a 0 pick": "51 registers"}
    (support / "compile_a.py").write_text("# fingerprints\nprint('{\"launch\": 1}')\n")
    with pytest.raises(same_code.BadInput, match="expected a compile_.*got none"):
        same_code.code_of(tmp_path)


def elf(sections: dict[str, bytes]) -> bytes:
    """A 64-bit ELF file with nothing but these sections and their names."""
    names, contents, headers = b"\0", b"", []
    for name, content in {"": b"", ".shstrtab": None, **sections}.items():
        headers.append([names.index(b"\0") if not name else len(names), content])
        names += name.encode() + b"\0" if name else b""
    headers[1][1] = names
    table = b""
    for start, content in headers:
        table += struct.pack("<IIQQQQIIQQ", start, 1, 0, 0, 64 + len(contents), len(content),
                             0, 0, 1, 0)  # fmt: skip
        contents += content
    head = bytearray(64)
    struct.pack_into("<Q", head, 40, 64 + len(contents))
    struct.pack_into("<HHH", head, 58, 64, len(headers), 1)
    return bytes(head) + contents + table


def test_fingerprints_are_of_the_code_alone():
    """A kernel of another class and module has the same; one other byte or register has not."""

    def found(kernel: str, code: bytes, registers: int) -> dict:
        symbol = f"kernel_cutlass_{kernel}"
        usage = f" Function {symbol}:\n  REG:{registers} STACK:0\n"
        return fingerprints(elf({f".text.{symbol}": code, ".nv.info": b"x"}), usage)

    one = found("pick_solutionscommonroutingRoutePermute_object", b"code", 51)
    assert set(one) == {"pick"} and one["pick"].startswith("51 registers, 4 bytes, ")
    assert found("pick_bundleprobesOther_object", b"code", 51) == one
    assert found("pick_bundleprobesOther_object", b"Code", 51) != one
    assert found("pick_bundleprobesOther_object", b"code", 52) != one
