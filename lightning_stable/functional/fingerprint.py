# SPDX-License-Identifier: Apache-2.0
"""Batches are any nesting of containers: know one when it comes again."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def fingerprint(batch: Any) -> str:
    """The SHA-256 of a batch: the same for two that hold the same values to the last bit, and for no others.

    Args:
        batch: Any nesting of containers; of tensors, arrays and objects it is what they hold that counts.

    Example:
        >>> fingerprint({"x": torch.zeros(2)}) == fingerprint({"x": torch.zeros(2)})
        True
        >>> fingerprint({"x": torch.zeros(2)}) == fingerprint({"x": -torch.zeros(2)})
        False
    """
    digest = hashlib.sha256()
    _add(digest, batch)
    return digest.hexdigest()


def _add(digest: Any, value: Any) -> None:
    length = f" {len(value)}" if isinstance(value, Mapping | list | tuple) else ""
    digest.update(f"<{type(value).__name__}{length}>".encode())
    if isinstance(value, Tensor):
        dense = value.detach().to_dense() if value.is_sparse else value.detach()
        digest.update(f"{dense.dtype} {tuple(dense.shape)}".encode())
        digest.update(dense.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(value, Mapping):
        for key, item in value.items():
            digest.update(repr(key).encode())
            _add(digest, item)
    elif isinstance(value, list | tuple):
        for item in value:
            _add(digest, item)
    elif hasattr(value, "tobytes"):  # NumPy's arrays
        digest.update(f"{getattr(value, 'dtype', '')} {getattr(value, 'shape', '')}".encode())
        digest.update(value.tobytes())
    elif hasattr(value, "__dict__"):
        _add(digest, vars(value))
    else:
        digest.update(repr(value).encode())
