# SPDX-License-Identifier: Apache-2.0
"""Files that are either whole or not there, whenever we are killed."""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file beside `path` and rename it: whoever reads `path` finds the old content or the new one.

    Args:
        path: Of the file, in a folder that exists.
        content: All of it.

    Raises:
        OSError: If it cannot be written; nothing is left behind then.

    Example:
        >>> write_atomically(Path("nowhere/file"), b"text")
        Traceback (most recent call last):
            ...
        FileNotFoundError: [Errno 2] No such file or directory: ...
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        shutil.copymode(path, temporary) if path.exists() else Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise
