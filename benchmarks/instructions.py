"""Floating-point operations that a processor executes, counted by emulation.

Callgrind says how often each instruction of a region ran; the instruction itself says what it computes. Addition,
subtraction, multiplication, division, root, rounding, maximum and minimum are one operation a lane of the register, a
fused multiply-add is two. Comparisons, conversions, moves and bit operations are none.

The watched program marks its regions with requests to Valgrind (``start``, ``stop``) and sleeps while its parent
reads the profile, so that code which has no file, because it was compiled at run time, can be read from its memory.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

__all__ = ["Executed", "Reader", "operations", "parse_profile", "start", "stop", "valgrind_command"]

# Valgrind understands a sequence of rotations that does nothing anywhere else ("client requests" in valgrind.h): the
# address of six words, the first of them the request, is in rax, and the answer comes back in rdx.
_REQUEST = bytes.fromhex("4889f8 31d2 48c1c703 48c1c70d 48c1c73d 48c1c733 4887db 4889d0 c3")
_DUMP, _INSTRUMENT, _EMULATE = 0x43540000, 0x43540004, 0x43540005

_FLOAT = re.compile(
    r"v?(?:(?P<fused>fn?m(?:add|sub|addsub|subadd)(?:132|213|231))"
    r"|add|sub|mul|div|sqrt|rsqrt|rcp|max|min|round|hadd|hsub|addsub)(?P<type>[sp][sd])"
)
_X87 = re.compile(r"fi?(?:add|sub|mul|div)r?p?|fsqrt")
_INTEGER = re.compile(r"v?p(?:add|sub)(?:us|s)?(?P<size>[bwdq])")
_BITS = {"b": 8, "w": 16, "d": 32, "q": 64, "s": 32}
_LONGEST_INSTRUCTION = 15
_NO_FILE = "???"


@dataclass(frozen=True)
class Executed:
    """What ran: floating-point operations, and additions of packed integers (what 4-bit codes are summed with)."""

    flops: int = 0
    integer_additions: int = 0

    def __add__(self, other: Executed) -> Executed:
        return Executed(self.flops + other.flops, self.integer_additions + other.integer_additions)

    def __mul__(self, times: int) -> Executed:
        return Executed(self.flops * times, self.integer_additions * times)


def operations(mnemonic: str, operands: str) -> Executed:
    """Operations of one x86 instruction, read off its name and the width of its registers."""
    bits = 512 if "zmm" in operands else 256 if "ymm" in operands else 128
    if found := _FLOAT.fullmatch(mnemonic):
        packed, kind = found["type"]
        lanes = 1 if packed == "s" else bits // (64 if kind == "d" else 32)
        return Executed(lanes * (2 if found["fused"] else 1))
    if _X87.fullmatch(mnemonic):
        return Executed(1)
    if (found := _INTEGER.fullmatch(mnemonic)) and "mm" in operands:
        return Executed(0, bits // _BITS[found["size"]])
    return Executed()


def parse_profile(text: str) -> Iterator[tuple[str, int, int]]:
    """File, address and count of each executed instruction in a profile written without compression.

    Raises:
        ValueError: If the counts do not add up to the total in the profile.
    """
    place, total, read = "", None, 0
    lines = iter(text.splitlines())
    for line in lines:
        if line.startswith("0x"):
            address, count = line.split()
            read += int(count)
            yield place, int(address, 16), int(count)
        elif line.startswith("ob="):
            place = line[3:]
        elif line.startswith("calls="):
            next(lines)  # what the called function cost is listed where that function is
        elif line.startswith("totals:"):
            total = int(line.split()[1])
    if read != total:
        raise ValueError(
            f"the profile lists {read} instructions and says it has {total}: was it written whole?"
        )


class Segments:
    """The code of one executable file by the addresses its linker gave it."""

    def __init__(self, path: str) -> None:
        with open(path, "rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        offset, size, count = struct.unpack_from("<Q14xHH", self._bytes, 32)
        headers = (struct.unpack_from("<IIQQQQQQ", self._bytes, offset + i * size) for i in range(count))
        self._loaded = [
            (address, at, length) for kind, _, at, address, _, length, _, _ in headers if kind == 1
        ]

    def read(self, address: int) -> bytes:
        """The bytes of the instruction there, and a few more."""
        for start, at, length in self._loaded:
            if start <= address < start + length:
                at += address - start
                return self._bytes[at : at + _LONGEST_INSTRUCTION]
        return b""


@dataclass
class Reader:
    """Turns profiles of a running process into operations.

    Args:
        pid: The process; it must not go on while its profile is read.
    """

    pid: int
    _files: dict[str, Segments] = field(default_factory=dict)
    _known: dict[tuple[str, int], Executed] = field(default_factory=dict)

    def __post_init__(self) -> None:
        from capstone import CS_ARCH_X86, CS_MODE_64, Cs

        self._decoder = Cs(CS_ARCH_X86, CS_MODE_64)

    def count(self, profile: Path) -> Executed:
        """All operations of one profile.

        Raises:
            ValueError: If the profile is not whole, or names an instruction that cannot be read.
        """
        total = Executed()
        with open(f"/proc/{self.pid}/mem", "rb", buffering=0) as memory:
            for place, address, times in parse_profile(profile.read_text(encoding="utf-8")):
                total += self._one(place, address, memory) * times
        return total

    def _one(self, place: str, address: int, memory: BinaryIO) -> Executed:
        if (place, address) in self._known:
            return self._known[place, address]
        if place != _NO_FILE and place not in self._files:
            self._files[place] = Segments(place)
        code = b"" if place == _NO_FILE else self._files[place].read(address)
        if code:
            self._known[place, address] = self._decoded(code, place, address)
            return self._known[place, address]
        # Compiled at run time, and not remembered: by the next profile other code may stand there.
        memory.seek(address)
        return self._decoded(memory.read(_LONGEST_INSTRUCTION), place, address)

    def _decoded(self, code: bytes, place: str, address: int) -> Executed:
        for _, _, mnemonic, operands in self._decoder.disasm_lite(code, 0, 1):
            return operations(mnemonic.rpartition(" ")[2], operands)
        raise ValueError(f"no instruction at {address:#x} of {place}: {code.hex() or 'nothing there'}")


def valgrind_command(profile: Path) -> list[str]:
    """The words that go before a command to run it under Callgrind; nothing is counted before ``start``."""
    return [
        "valgrind",
        "--quiet",
        "--tool=callgrind",
        "--instr-atstart=no",
        "--dump-instr=yes",
        "--dump-line=no",
        "--compress-pos=no",
        "--compress-strings=no",
        f"--callgrind-out-file={profile}",
    ]


class _Valgrind:
    def __init__(self) -> None:
        self._page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self._page.write(_REQUEST)
        entry = ctypes.addressof(ctypes.c_char.from_buffer(self._page))
        self._call = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_void_p)(entry)

    def ask(self, request: int) -> None:
        words = (ctypes.c_uint64 * 6)(request)
        self._call(ctypes.addressof(words))


_valgrind: _Valgrind | None = None


def _ask(*requests: int) -> None:
    global _valgrind
    if os.uname().machine != "x86_64":
        raise RuntimeError(f"executed instructions are counted on x86_64 only, this is {os.uname().machine}")
    _valgrind = _valgrind or _Valgrind()
    for request in requests:
        _valgrind.ask(request)


def start() -> None:
    """Begin to count, in a process that runs under Valgrind; elsewhere this does nothing."""
    _ask(_INSTRUMENT)


def stop() -> None:
    """Write what was counted since ``start`` to the next profile and count no more."""
    _ask(_DUMP, _EMULATE)
