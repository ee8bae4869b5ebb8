# SPDX-License-Identifier: Apache-2.0
"""Turns that end although a member has failed."""

from typing import Any


def turns_scheduler(**options: Any) -> Any:
    """Ray's population based training in turns, in which nobody waits for a member that has failed.

    Ray ends a turn when the last member reports. If that one raises, or the member that raised is counted among those
    to come, the others stay paused for ever.

    Args:
        **options: Of `ray.tune.schedulers.PopulationBasedTraining`, but `synch`.

    Raises:
        ModuleNotFoundError: If Ray is not installed.

    Example:
        >>> turns_scheduler.__name__  # needs Ray
        'turns_scheduler'
    """
    from ray.tune.schedulers import PopulationBasedTraining

    class Turns(PopulationBasedTraining):
        def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
            """Leave the member out from here on, and end the turn if all others have reported."""
            live = tune_controller.get_live_trials()
            live.discard(trial)
            self._trial_state[trial].last_score = None  # nobody copies it
            known = {other: self._trial_state[other] for other in live if not other.is_finished()}
            told = {other: state.last_result for other, state in known.items() if state.last_result}
            if told:
                # its last report once more, which is taken if it waits for others, and else is too early
                furthest = max(told, key=lambda other: known[other].last_train_time)
                self.on_trial_result(tune_controller, furthest, told[furthest])

    return Turns(synch=True, **options)
