"""Every tolerance of the tests, with its reason. Elsewhere tests compare exactly."""

from __future__ import annotations

# Logits of tiny models in float32: both sides round differently (order of sums, fused attention), by
# some 1e-5 for logits of about 7. A wrong position, mask or weight changes them by more than 0.01.
LOGITS_FP32 = 1e-4
