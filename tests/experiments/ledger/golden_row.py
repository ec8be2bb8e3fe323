"""One row of the golden table."""

from typing import Any

HAND = "closed form"
EXECUTED = "closed form, and within 15% of the floating-point instructions a processor executed (callgrind)"


def row(
    case: str,
    description: str,
    code: str,
    formula: str,
    flops: int,
    matmul_flops: int = 0,
    traffic: tuple[int, int] | None = None,
    checked: str = HAND,
    devices: tuple[str, ...] = ("cpu", "meta"),
) -> dict[str, Any]:
    read, written = traffic or (None, None)
    return {
        "case": case,
        "description": description,
        "code": code,
        "devices": list(devices),
        "matmul_flops": matmul_flops,
        "flops": flops,
        "bytes_read": read,
        "bytes_written": written,
        "formula": formula,
        "checked": checked,
    }
