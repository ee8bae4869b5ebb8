# SPDX-License-Identifier: Apache-2.0
"""A process of its own for what forks, since threads do not survive a fork."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = """
    import sys, warnings
    warnings.filterwarnings("ignore")
    sys.path.insert(0, {root!r})
    from pathlib import Path
    from {module} import {name}

    {name}({seeds!r}, Path({folder!r}))
"""


def call_alone(function, seeds, folder, timeout=240):
    """Call `function(seeds, folder)` where nothing else has run."""
    script = textwrap.dedent(SCRIPT).format(
        root=str(ROOT), module=function.__module__, name=function.__name__, seeds=list(seeds), folder=str(folder)
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, timeout=timeout, capture_output=True, text=True, cwd=folder, env=environment)
    assert done.returncode == 0, done.stderr
