# SPDX-License-Identifier: Apache-2.0
"""Who is told of an incident, and in which order: side responses, the journal, and those who wait for it."""

from collections.abc import Iterable, Sequence

from lightning.pytorch import LightningModule, Trainer

from lightning_stable._lightning.loggers import logging_step
from lightning_stable.guard.incident import Incident
from lightning_stable.guard.journal import Journal
from lightning_stable.guard.ladder import Ladder
from lightning_stable.guard.recovery import Recovery
from lightning_stable.guard.responses import Response
from lightning_stable.guard.side_responses import Scene, SideResponse
from lightning_stable.guard.signals import Anomaly
from lightning_stable.guard.window import Window


class Reports:
    """Tells of spikes that were answered, and of warnings, which are not.

    Args:
        journal: Where both are written down.
        ladder: Those of its side responses that take warnings act at one, without spending their budgets.

    Example:
        >>> from lightning_stable.guard import SkipStep
        >>> Reports(Journal(), Ladder([SkipStep()], forgive_after=None)).journal.warnings
        []
    """

    def __init__(self, journal: Journal, ladder: Ladder) -> None:
        self.journal = journal
        self._ladder = ladder

    def spike(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        recovery: Recovery,
        window: Window,
        sides: Sequence[Response],
    ) -> None:
        """Tell of the spike that `window` is, and of what was done about it; `sides` act."""
        where = (logging_step(trainer), recovery.steps_before_window, trainer.current_epoch)
        incident = window.incident(*where, **vars(recovery.aftermath))
        self._tell(trainer, pl_module, recovery, window, incident, sides)

    def warnings(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        recovery: Recovery,
        window: Window,
        alarms: Iterable[Anomaly],
    ) -> None:
        """Tell of `alarms` at a step that was healthy; what a replay comes to once more is known already."""
        for alarm in alarms:
            where = (logging_step(trainer), recovery.steps_before_window, trainer.current_epoch)
            incident = window.warning(alarm, *where)
            if recovery.replays.is_on and self.journal.has_warned(incident):
                continue
            sides = [rung for rung in self._ladder.rungs if rung.takes_warnings]
            self._tell(trainer, pl_module, recovery, window, incident, sides)

    def _tell(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        recovery: Recovery,
        window: Window,
        incident: Incident,
        responses: Sequence[Response],
    ) -> None:
        random = recovery.random_before.state_dict()
        scene = Scene(trainer, pl_module, incident, window.readings, recovery.window, random)
        sides = [response for response in responses if isinstance(response, SideResponse)]
        for side in sides:
            if not side.after_record:
                side.act(scene)
        self.journal.record(trainer, incident)
        for side in sides:
            if side.after_record:
                side.act(scene)
