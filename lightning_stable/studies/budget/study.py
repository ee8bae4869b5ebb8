# SPDX-License-Identifier: Apache-2.0
"""Chen et al., "REX: Revisiting Budgeted Training with an Improved Schedule" (MLSys 2022), in small. Needs no torch."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from lightning_stable.studies.budget.report import budget_figure, budget_table
from lightning_stable.studies.engine.outcome import Outcome
from lightning_stable.studies.engine.study import Point, Study, Trial, grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lightning_stable.studies.budget.training import Digits

SCHEDULES = ("REX", "Linear", "Cosine", "Step", "Exponential", "OneCycle", "Plateau", "WSD")
BUDGETS = (0.01, 0.05, 0.10, 0.25, 0.50, 1.00)
EPOCHS, QUICK_EPOCHS = 25, 5  # of 56 steps; a full run ends long after the error has stopped to fall
# from the middle outwards: of points that are equal the first is chosen
RATES = {"sgd": (0.1, 0.03, 0.3, 0.01, 1.0), "adam": (0.03, 0.01, 0.1, 0.003, 0.3)}


class BudgetStudy(Study):
    """Which schedule is best when a run may take only so many steps?

    A small convolutional net on 897 handwritten digits; the error of 600 others at the end of the run, at the learning
    rate whose validation error on 300 more is the smallest. All schedules have the same first weights, batches, steps
    and learning rates, and no warmup but that of `OneCycle`. `Plateau` looks at the validation loss 20 times.

    Example:
        >>> len(BudgetStudy().trials((0, 1, 2), quick=False))
        1440
    """

    name: ClassVar[str] = "budget"
    question: ClassVar[str] = "Which learning-rate schedule is best when a run may take only so many steps?"
    objective: ClassVar[str] = "validation_error"
    needs: ClassVar[tuple[str, ...]] = ("sklearn", "matplotlib")

    def __init__(self) -> None:
        self._digits: Digits | None = None

    def trials(self, seeds: Sequence[int], quick: bool) -> list[Trial]:
        """Optimizers, budgets, schedules, learning rates, seeds; for a quick look, a tenth of the length and fewer.

        Args:
            seeds: Of first weights and batches.
            quick: Whether it is only to be seen that everything works.
        """
        epochs, budgets, rates = (QUICK_EPOCHS, (0.1, 1.0), 3) if quick else (EPOCHS, BUDGETS, 5)
        trials: list[Trial] = []
        for optimizer, grid_of_rates in RATES.items():
            settings: list[Point] = [
                {"optimizer": optimizer, "budget": budget, "full_epochs": epochs} for budget in budgets
            ]
            trials += grid(SCHEDULES, settings, [{"lr": lr} for lr in grid_of_rates[:rates]], seeds)
        return trials

    def run(self, trial: Trial) -> dict[str, float]:
        """Train once.

        Args:
            trial: Schedule, optimizer and budget, learning rate, seed.
        """
        from lightning_stable.studies.budget.training import Digits, train

        if self._digits is None:
            self._digits = Digits.load()
        setting = trial.setting
        return train(
            self._digits,
            schedule=trial.side,
            optimizer=str(setting["optimizer"]),
            lr=float(trial.tuning["lr"] or 0.0),
            budget=float(setting["budget"] or 0.0),
            epochs=int(setting["full_epochs"] or 0),
            seed=trial.seed,
        )

    def table(self, outcome: Outcome) -> str:
        """Errors, mean ranks, and what has become of REX's claim.

        Args:
            outcome: Of all runs.
        """
        return budget_table(outcome)

    def draw(self, outcome: Outcome, figure: "Figure") -> None:
        """Errors over budgets, and mean ranks.

        Args:
            outcome: Of all runs.
            figure: An empty one.
        """
        budget_figure(outcome, figure)

    def cost(self, trial: Trial) -> float:
        """The share of a full run, and what each run takes besides.

        Args:
            trial: Which one.
        """
        return float(trial.setting["budget"] or 0.0) + 0.01
