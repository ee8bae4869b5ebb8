# SPDX-License-Identifier: Apache-2.0
from lightning_stable.guard import SpikeGuard
from lightning_stable.guard.defaults import default_ladder, default_warnings, default_watch
from tests.faulty_runs import make_batches, run


def test_each_guard_has_detectors_and_responses_of_its_own():
    assert all(one is not other for one, other in zip(default_ladder(), default_ladder(), strict=True))
    assert default_warnings()["loss"] is not default_warnings()["loss"]
    assert all(default_watch()[key] is not detector for key, detector in default_watch().items())


def test_a_callback_that_reads_the_loss_survives_everything_a_guard_does_by_default():
    from lightning.pytorch import Callback

    class Losses(Callback):
        def __init__(self):
            self.values = []

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.values.append(float(outputs["loss"]))

    losses, guard = Losses(), SpikeGuard(snapshot_every=4)
    run(make_batches(40, set(range(10, 16))), [guard, losses], epochs=1)
    assert {"SkipStep", "Rollback"} <= {incident.response for incident in guard.incidents}
    assert any(incident.batches_passed_over for incident in guard.incidents)
    assert len(losses.values) == 40
