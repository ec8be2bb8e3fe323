import os

import pytest

from benchmarks.instructions import Executed, Segments, operations, parse_profile, start, stop

PROFILE = """\
# callgrind format
positions: instr
events: Ir

ob=/lib/one.so
fn=outer
0x10 3
cob=/lib/two.so
cfn=inner
calls=3 0x99
0x14 3000
0x18 2

ob=???
fn=0x2000
0x2000 7

totals: {}
"""


@pytest.mark.parametrize(
    ("instruction", "flops"),
    [
        ("vfmadd231ps ymm0, ymm1, ymmword ptr [rax]", 16),
        ("vfnmadd213sd xmm0, xmm1, xmm2", 2),
        ("vaddps zmm0, zmm1, zmm2", 16),
        ("mulpd xmm0, xmm1", 2),
        ("divss xmm0, xmm1", 1),
        ("vmaxps ymm0, ymm1, ymm2", 8),
        ("vsqrtpd ymm0, ymm1", 4),
        ("faddp st(1)", 1),
        ("vcmpltps ymm0, ymm1, ymm2", 0),
        ("vmovaps ymm0, ymm1", 0),
        ("vcvtps2dq ymm0, ymm1", 0),
        ("vxorps ymm0, ymm1, ymm2", 0),
        ("add rax, 8", 0),
        ("fld qword ptr [rax]", 0),
    ],
)
def test_operations_of_an_instruction(instruction: str, flops: int):
    assert operations(*instruction.split(" ", 1)) == Executed(flops, 0)


@pytest.mark.parametrize(
    ("instruction", "additions"),
    [("vpaddw ymm0, ymm1, ymm2", 16), ("paddusb xmm0, xmm1", 16), ("vpsubq ymm0, ymm1, ymm2", 4)],
)
def test_additions_of_packed_integers(instruction: str, additions: int):
    assert operations(*instruction.split(" ", 1)) == Executed(0, additions)


def test_what_a_called_function_cost_is_not_counted_twice():
    assert list(parse_profile(PROFILE.format(12))) == [
        ("/lib/one.so", 0x10, 3),
        ("/lib/one.so", 0x18, 2),
        ("???", 0x2000, 7),
    ]


def test_a_profile_that_does_not_add_up_is_refused():
    with pytest.raises(ValueError, match="lists 12 instructions and says it has 13"):
        list(parse_profile(PROFILE.format(13)))
    with pytest.raises(ValueError, match="written whole"):
        list(parse_profile(PROFILE.split("totals")[0]))


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="x86_64 instructions")
def test_marks_do_nothing_outside_valgrind():
    start()
    stop()


@pytest.mark.skipif(not os.path.exists("/proc/self/exe"), reason="an ELF file is needed")
def test_code_is_found_where_the_linker_put_it():
    import torch

    path = f"{os.path.dirname(torch.__file__)}/lib/libtorch_cpu.so"
    segments = Segments(path)
    with open(path, "rb") as file:
        # Its first segment begins with the header of the file, at address 0.
        assert segments.read(0) == file.read(15)
    assert segments.read(1 << 60) == b""
