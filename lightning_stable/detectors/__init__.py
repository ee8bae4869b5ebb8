# SPDX-License-Identifier: Apache-2.0
"""Floor 1: judges of a scalar stream."""

from lightning_stable.detectors.detector import Detector as Detector
from lightning_stable.detectors.detector import Verdict as Verdict
from lightning_stable.detectors.median_deviation import MedianDeviation as MedianDeviation
from lightning_stable.detectors.non_finite import NonFinite as NonFinite
