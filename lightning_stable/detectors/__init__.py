# SPDX-License-Identifier: Apache-2.0
"""Floor 1: judges of a scalar stream."""

from lightning_stable.detectors.above import Above as Above
from lightning_stable.detectors.all_of import AllOf as AllOf
from lightning_stable.detectors.any_of import AnyOf as AnyOf
from lightning_stable.detectors.below import Below as Below
from lightning_stable.detectors.consecutive import Consecutive as Consecutive
from lightning_stable.detectors.detector import Detector as Detector
from lightning_stable.detectors.detector import Verdict as Verdict
from lightning_stable.detectors.ema_zscore import EMAZScore as EMAZScore
from lightning_stable.detectors.level_shift import LevelShift as LevelShift
from lightning_stable.detectors.median_deviation import MedianDeviation as MedianDeviation
from lightning_stable.detectors.multiple_of_mean import MultipleOfMean as MultipleOfMean
from lightning_stable.detectors.non_finite import NonFinite as NonFinite
from lightning_stable.detectors.ratio import Ratio as Ratio
from lightning_stable.detectors.scan import Scan as Scan
from lightning_stable.detectors.zscore import ZScore as ZScore
