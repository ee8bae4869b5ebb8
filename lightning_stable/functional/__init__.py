# SPDX-License-Identifier: Apache-2.0
"""Floor 0: maths on tensors; imports torch only."""

from lightning_stable.functional.ada_clip import ada_clip as ada_clip
from lightning_stable.functional.ada_clip import ada_clip_threshold as ada_clip_threshold
from lightning_stable.functional.ada_grad_norm import NormHistory as NormHistory
from lightning_stable.functional.ada_grad_norm import ada_grad_norm as ada_grad_norm
from lightning_stable.functional.attention_entropy import attention_entropy as attention_entropy
from lightning_stable.functional.attention_entropy import attention_entropy_lower_bound as attention_entropy_lower_bound
from lightning_stable.functional.attention_entropy import attention_statistics as attention_statistics
from lightning_stable.functional.attention_entropy import softmax_statistics as softmax_statistics
from lightning_stable.functional.gradient_noise import GradientNoise as GradientNoise
from lightning_stable.functional.gradient_noise import gradient_noise as gradient_noise
from lightning_stable.functional.gradient_noise import noise_from_sums as noise_from_sums
from lightning_stable.functional.gradient_noise import required_batch as required_batch
from lightning_stable.functional.rewarmup import rewarmup as rewarmup
from lightning_stable.functional.rex import rex as rex
from lightning_stable.functional.sequence_length import batch_sequence_length as batch_sequence_length
from lightning_stable.functional.sequence_length import reshape_sequences as reshape_sequences
from lightning_stable.functional.sequence_length import truncate_sequences as truncate_sequences
from lightning_stable.functional.sparse_mask import sparse_mask as sparse_mask
from lightning_stable.functional.spike_clip import spike_clip as spike_clip
from lightning_stable.functional.tensor_norms import tensor_maxima as tensor_maxima
from lightning_stable.functional.tensor_norms import tensor_norms as tensor_norms
