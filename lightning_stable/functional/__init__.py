# SPDX-License-Identifier: Apache-2.0
"""Floor 0: maths on tensors; imports torch only."""

from lightning_stable.functional.attention_entropy import attention_entropy as attention_entropy
from lightning_stable.functional.attention_entropy import attention_entropy_lower_bound as attention_entropy_lower_bound
from lightning_stable.functional.attention_entropy import attention_statistics as attention_statistics
from lightning_stable.functional.attention_entropy import softmax_statistics as softmax_statistics
from lightning_stable.functional.rex import rex as rex
