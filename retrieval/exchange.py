"""Two folders change names in one step, where the system can."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from pathlib import Path

__all__ = ["exchange"]

_HERE, _EXCHANGE = -100, ctypes.c_uint(2)  # AT_FDCWD and RENAME_EXCHANGE of Linux
_CANNOT = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}


def exchange(one: Path, other: Path) -> bool:
    """Exchange two paths of one file system, so that neither name is ever without a file.

    Linux has ``renameat2`` for it, which Python does not know.

    Args:
        one: A path that exists.
        other: Another that exists.

    Returns:
        Whether it was done; where the system or the file system cannot do it, nothing has changed.

    Raises:
        OSError: If it failed for another reason than that.
    """
    if not sys.platform.startswith("linux"):
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _CANNOT:
        return False
    raise OSError(number, os.strerror(number), str(one))
