# SPDX-License-Identifier: Apache-2.0
"""Floor 1: learning-rate schedules, and rules that say which rate to start from."""

from lightning_stable.schedules.cosine import Cosine as Cosine
from lightning_stable.schedules.exponential import Exponential as Exponential
from lightning_stable.schedules.inverse_sqrt import InverseSqrt as InverseSqrt
from lightning_stable.schedules.linear import Linear as Linear
from lightning_stable.schedules.one_cycle import OneCycle as OneCycle
from lightning_stable.schedules.polynomial import Polynomial as Polynomial
from lightning_stable.schedules.profile import Profile as Profile
from lightning_stable.schedules.profile_lr import ProfileLR as ProfileLR
from lightning_stable.schedules.refine import refine as refine
from lightning_stable.schedules.refine import save_schedule as save_schedule
from lightning_stable.schedules.refined import Refined as Refined
from lightning_stable.schedules.rex import REX as REX
from lightning_stable.schedules.scaling_rules import LionSettings as LionSettings
from lightning_stable.schedules.scaling_rules import lamb_lr as lamb_lr
from lightning_stable.schedules.scaling_rules import lamb_warmup as lamb_warmup
from lightning_stable.schedules.scaling_rules import lion_from_adamw as lion_from_adamw
from lightning_stable.schedules.scaling_rules import scale_lr as scale_lr
from lightning_stable.schedules.step import Step as Step
from lightning_stable.schedules.step_law import StepLaw as StepLaw
from lightning_stable.schedules.step_law import step_law as step_law
from lightning_stable.schedules.warmup import untuned_factor as untuned_factor
from lightning_stable.schedules.warmup import warmup_factor as warmup_factor
from lightning_stable.schedules.width_rules import WidthLRs as WidthLRs
from lightning_stable.schedules.width_rules import width_lrs as width_lrs
from lightning_stable.schedules.width_rules import width_param_groups as width_param_groups
from lightning_stable.schedules.wsd import WSD as WSD
