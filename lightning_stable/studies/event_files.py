# SPDX-License-Identifier: Apache-2.0
"""Scalars out of TensorBoard's event files. Needs no torch."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator, TensorEvent


class Logged(NamedTuple):
    """One logged value.

    Args:
        step: On the x axis.
        value: The number.
        wall_time: When it was written, in seconds since 1970.

    Example:
        >>> Logged(step=3, value=2.5, wall_time=0.0).value
        2.5
    """

    step: int
    value: float
    wall_time: float


class DamagedEvents(ValueError):
    """Event files of which the records cannot be understood.

    Example:
        >>> str(DamagedEvents("events.out.tfevents.1 is damaged."))
        'events.out.tfevents.1 is damaged.'
    """


def read_event_scalars(path: Path, keep_orphans: bool = False) -> dict[str, list[Logged]]:
    """Every scalar of a run by its tag, in the order in which its values were written.

    A record that was cut off when the process was killed ends its file, as in TensorBoard.

    Args:
        path: A folder with event files, or one of them.
        keep_orphans: Keep also what the writer declared void by beginning again at an earlier step.

    Raises:
        DamagedEvents: If a record is whole, but no event.

    Example:
        >>> read_event_scalars(Path("no/such/run"))
        {}
    """
    from google.protobuf.message import DecodeError
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    if not path.exists():
        return {}
    everything = {"scalars": 0, "tensors": 0}
    accumulator = EventAccumulator(str(path), size_guidance=everything, purge_orphaned_data=not keep_orphans)
    try:
        accumulator.Reload()
    except (DecodeError, MemoryError) as error:  # a length that nobody has memory for is damage, too
        raise DamagedEvents(f"{path}: damaged, or no event file ({error or 'a record of absurd length'}).") from error
    tags = accumulator.Tags()["scalars"]
    scalars = {
        tag: [Logged(each.step, each.value, each.wall_time) for each in accumulator.Scalars(tag)] for tag in tags
    }
    return dict(sorted({**scalars, **_newer_scalars(accumulator)}.items()))


def _newer_scalars(accumulator: "EventAccumulator") -> dict[str, list[Logged]]:
    """Those that TensorFlow 2 and `add_scalar(new_style=True)` write as tensors without an axis."""
    found: dict[str, list[Logged]] = {}
    for tag in accumulator.Tags()["tensors"]:
        if accumulator.SummaryMetadata(tag).plugin_data.plugin_name != "scalars":
            continue
        numbers = [(each, _number(each)) for each in accumulator.Tensors(tag)]
        found[tag] = [Logged(each.step, value, each.wall_time) for each, value in numbers if value is not None]
    return {tag: logged for tag, logged in found.items() if logged}


def _number(event: "TensorEvent") -> float | None:
    from tensorboard.util.tensor_util import make_ndarray

    try:
        return float(make_ndarray(event.tensor_proto))
    except (TypeError, ValueError, MemoryError):  # the tag says that it is a number, the tensor is none
        return None
