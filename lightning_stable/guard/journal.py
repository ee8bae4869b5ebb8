# SPDX-License-Identifier: Apache-2.0
"""Where incidents go: `incidents.jsonl`, the loggers, and the table at the end of `fit`."""

import json
import math
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_stable._lightning.loggers import log_scalars, log_text, logging_step
from lightning_stable._lightning.progress_bar import show
from lightning_stable._lightning.trainer import gradient_scaler, log_every_n_steps
from lightning_stable.files import write_atomically
from lightning_stable.guard.incident import Incident
from lightning_stable.guard.signals import GRAD_NORM, LOSS, UPDATE_NORM
from lightning_stable.guard.window import Window
from lightning_stable.optim import StepGate

FILE_NAME = "incidents.jsonl"
_NOT_FINITE = ("non_finite_losses", "non_finite_gradients")


class Journal:
    """Records incidents, warnings, overflows and validation losses, and tells of them.

    Example:
        >>> journal = Journal()
        >>> journal.incidents, journal.steps_skipped
        ([], 0)
    """

    def __init__(self) -> None:
        self.records: list[Incident] = []  # warnings, too
        self.overflows = 0  # steps that were left to the gradient scaler
        self.best_val_loss = math.inf
        self.last_val_loss = math.nan
        self.snapshots = ""  # what they take, in words
        self._folder: str | None = None
        self._can_write = True

    def begin(self, trainer: Trainer) -> None:
        """Ask where the logs are, on all ranks: the Trainer asks rank 0, and waits for the others to ask, too."""
        self._folder = trainer.log_dir
        if self.records and trainer.is_global_zero:  # before a resume, perhaps with another folder
            self._write()

    @property
    def incidents(self) -> list[Incident]:
        """The interventions."""
        return [record for record in self.records if not record.is_warning]

    @property
    def warnings(self) -> list[Incident]:
        """What only people were told of."""
        return [record for record in self.records if record.is_warning]

    @property
    def steps_skipped(self) -> int:
        """Optimizer steps that were vetoed."""
        return sum(incident.steps_skipped for incident in self.incidents)

    @property
    def steps_rolled_back(self) -> int:
        """Good optimizer steps that were undone."""
        return sum(incident.steps_rolled_back for incident in self.incidents)

    @property
    def seconds_lost(self) -> float:
        """Time that went into work that was thrown away."""
        return sum(incident.seconds_lost for incident in self.incidents)

    def record(self, trainer: Trainer, incident: Incident) -> None:
        """Write `incident` to the file and the loggers, and say so; a warning is said as one."""
        self.records.append(incident)
        if trainer.is_global_zero:
            log_text(trainer, "stability/incident", _markdown(incident))
            log_scalars(trainer, self._counts())
            self._write()
        if incident.is_warning:
            said = ", ".join([str(incident), *incident.notes])
            rank_zero_warn(
                f"SpikeGuard: {said}. Nothing was done about it. Lower the learning rate, go back to an earlier"
                " checkpoint, or look at the data. `SpikeGuard(warn=...)` says what is warned of."
            )
        else:
            rank_zero_info(f"SpikeGuard: {incident}")

    def has_warned(self, incident: Incident) -> bool:
        """Whether the same was written down before, of the same step of the model."""
        told = [(one.signal, one.global_step, one.epoch) for one in self.warnings]
        return (incident.signal, incident.global_step, incident.epoch) in told

    def log_step(self, trainer: Trainer, window: Window, gate: StepGate) -> None:
        """Show what the step was judged by; log it when Lightning logs, and at every spike."""
        lr = float(gate.optimizer.param_groups[0]["lr"]) * gate.scale
        shown = {key: value for key, value in window.readings.items() if key in (LOSS, GRAD_NORM, UPDATE_NORM)}
        texts = {key: f"{value:.3f}" for key, value in shown.items()}
        show(trainer, {**texts, "lr": f"{lr:.2e}", "incidents": str(len(self.incidents))})
        every = log_every_n_steps(trainer)
        if not window.is_spike and (every == 0 or (logging_step(trainer) + 1) % every):
            return
        log_scalars(
            trainer,
            {
                **{f"stability/{key}": value for key, value in shown.items()},
                **({f"stability/{key}": getattr(window, key) for key in _NOT_FINITE} if window.stepped else {}),
                "stability/lr": lr,
                "stability/lr_scale": gate.scale,
                **self._counts(),
                **({"stability/overflows": self.overflows} if gradient_scaler(trainer) is not None else {}),
                "stability/global_step": trainer.global_step,
            },
        )

    def note_validation(self, trainer: Trainer) -> None:
        """Remember the validation loss, if the module logs one."""
        for key, value in trainer.callback_metrics.items():
            if "val" in key and "loss" in key and not key.startswith("stability/"):
                self.last_val_loss = float(value)
                self.best_val_loss = min(self.best_val_loss, self.last_val_loss)
                return

    def halt_report(self) -> str:
        """What happened and what to try, for whoever finds the run halted."""
        lines = "\n".join(f"  {incident}" for incident in self.incidents[-10:])
        count = "1 incident" if len(self.incidents) == 1 else f"{len(self.incidents)} incidents"
        return (
            f"SpikeGuard halted the run after {count}; the weights are those of the last good step.\n"
            f"The latest:\n{lines}\n"
            "What to try: look at these batches; a lower learning rate or a longer warmup; gradient clipping; more"
            " budget in `SpikeGuard(ladder=...)`, or `forgive_after` smaller if the spikes are far apart and harmless."
        )

    def summary_rows(self, trainer: Trainer) -> list[tuple[str, str]]:
        """The lines of the table at the end of `fit`."""
        by_response = Counter(incident.response for incident in self.incidents)
        counted = ", ".join(f"{number} {name}" for name, number in by_response.items())
        rows = [
            ("optimizer steps", f"{trainer.global_step}"),
            ("incidents", f"{len(self.incidents)}" + (f" ({counted})" if counted else "")),
            ("steps skipped", f"{self.steps_skipped}"),
            ("steps rolled back", f"{self.steps_rolled_back}"),
            ("seconds lost", f"{self.seconds_lost:.1f}"),
        ]
        if self.warnings:
            by_signal = Counter(warning.signal for warning in self.warnings)
            counted = ", ".join(f"{number} {name}" for name, number in by_signal.items())
            counted = counted if counted.isprintable() else repr(counted)[1:-1]  # names may come from anywhere
            rows.insert(2, ("warnings", f"{len(self.warnings)} ({counted})"))
        if self.overflows:
            rows.insert(-1, ("overflows left to the scaler", f"{self.overflows}"))
        if passed_over := sum(incident.batches_passed_over for incident in self.incidents):
            rows.insert(-1, ("batches passed over", f"{passed_over}"))
        if self.snapshots:
            rows.append(("snapshots", self.snapshots))
        if not math.isnan(self.last_val_loss):
            rows.append(("validation loss", f"best {self.best_val_loss:.4f}, last {self.last_val_loss:.4f}"))
        if self._folder and (trainer.loggers or self.records):
            rows.append(("logs", self._folder))
        if any(isinstance(logger, TensorBoardLogger) for logger in trainer.loggers):
            rows.append(("look at them", f"tensorboard --logdir {self._folder}"))
        return rows

    def print_summary(self, trainer: Trainer) -> None:
        """Print the table, with rich where it is installed."""
        if not trainer.is_global_zero:
            return
        rows = self.summary_rows(trainer)
        try:
            from rich.console import Console
            from rich.table import Table
            from rich.text import Text
        except ImportError:
            width = max(len(name) for name, _ in rows)
            lines = [f"  {name:<{width}}  {value}" for name, value in rows]
            sys.stdout.write("\n".join(["SpikeGuard", *lines, ""]))
            return
        table = Table(title="SpikeGuard", title_justify="left", show_header=False)
        for row in rows:
            table.add_row(*map(Text, row), style=None)  # brackets in the name of a folder are no markup
        console = Console()
        console.print(table, soft_wrap=True)

    def state_dict(self) -> dict[str, Any]:
        """The incidents, warnings, overflows and validation losses so far, in plain types."""
        return {
            "incidents": [record.to_json() for record in self.records],
            "overflows": self.overflows,
            "best_val_loss": self.best_val_loss,
            "last_val_loss": self.last_val_loss,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up `state_dict`."""
        self.records = [Incident.from_json(fields) for fields in state_dict["incidents"]]
        self.overflows = state_dict["overflows"]
        self.best_val_loss = state_dict["best_val_loss"]
        self.last_val_loss = state_dict["last_val_loss"]

    def _counts(self) -> dict[str, float]:
        return {"stability/incidents": len(self.incidents), "stability/warnings": len(self.warnings)}

    def _write(self) -> None:
        if not self._can_write or self._folder is None:
            return
        folder = Path(self._folder)
        lines = "".join(json.dumps(record.to_json()) + "\n" for record in self.records)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / FILE_NAME, lines.encode())
        except OSError as error:
            self._can_write = False
            rank_zero_warn(
                f"SpikeGuard cannot write {folder / FILE_NAME} ({error.strerror or error}). The run goes on; incidents"
                " are kept in memory, in checkpoints and in the summary."
                " Give the Trainer a `default_root_dir` or a logger with a folder it may write to."
            )


def _markdown(incident: Incident) -> str:
    fields = incident.to_json()
    rows = (f"| {key} | {_escaped(str(value))} |" for key, value in fields.items())
    return "\n".join(["| field | value |", "| --- | --- |", *rows])


def _escaped(text: str) -> str:
    """As a cell of a table in Markdown, in which it is shown and not obeyed."""
    text = text if text.isprintable() else repr(text)[1:-1]
    return re.sub(r"([\\`*_{}\[\]<>|~])", r"\\\1", text)
