# SPDX-License-Identifier: Apache-2.0
"""Load a file of tensors and plain types, and say in one line why it cannot be loaded."""

import re
from pathlib import Path
from typing import Any

import torch

_ASKED_FOR = re.compile(r"GLOBAL ([\w.]+)")


def safe_load(path: str | Path) -> Any:
    """What `torch.save` has written to `path`, on the CPU; code in it is never run.

    Args:
        path: Of the file.

    Raises:
        ValueError: If it is damaged, or holds something else than tensors and plain types.
        OSError: If it cannot be read.

    Example:
        >>> safe_load("no/such/file")
        Traceback (most recent call last):
            ...
        FileNotFoundError: [Errno 2] No such file or directory: 'no/such/file'
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # whatever the bytes of somebody else's file make of the unpickler
        asked_for = _ASKED_FOR.search(str(error))
        why = f"it asks for `{asked_for[1]}`, and code in a file is never run" if asked_for else "it is damaged"
        raise ValueError(f"{path} cannot be loaded with `weights_only=True`: {why}.") from None
