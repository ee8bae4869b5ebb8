# SPDX-License-Identifier: Apache-2.0
"""A guard as a user of YAML gets it."""

import textwrap

import jsonargparse

from lightning_stable.guard import SpikeGuard


def guard_from_yaml(init_args: str) -> SpikeGuard:
    """The guard of a `class_path` with these `init_args`."""
    parser = jsonargparse.ArgumentParser()
    parser.add_argument("--guard", type=SpikeGuard)
    arguments = textwrap.indent(textwrap.dedent(init_args), " " * 4)
    config = parser.parse_string(f"guard:\n  class_path: lightning_stable.guard.SpikeGuard\n  init_args:\n{arguments}")
    return parser.instantiate(config).guard
