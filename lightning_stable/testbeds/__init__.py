# SPDX-License-Identifier: Apache-2.0
"""Floor 2: small real models and real data that the recipes train."""

from lightning_stable.testbeds.char_lm import CharLM as CharLM
from lightning_stable.testbeds.corruption import Corruption as Corruption
from lightning_stable.testbeds.digits import DigitsDataModule as DigitsDataModule
from lightning_stable.testbeds.digits_classifier import DigitsClassifier as DigitsClassifier
from lightning_stable.testbeds.gpt import GPT as GPT
from lightning_stable.testbeds.python_text import PythonTextDataModule as PythonTextDataModule
