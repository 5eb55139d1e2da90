"""Every tolerance of the tests, with its reason. Elsewhere tests compare exactly."""

from __future__ import annotations

import torch

# Logits of tiny models in float32: both sides round differently (order of sums, fused attention),
# by some 1e-5 for logits of about 7. A wrong position, mask or weight changes them by more than
# 0.01.
LOGITS_FP32 = 1e-4

# One float32 matrix product of some tens of terms of size about 1, cut over ranks: the partial sums
# are added in another order, which moves the last bit or two of numbers below 16.
SUM_ORDER_FP32 = 1e-5

# A float32 linear against float64, per sum of the magnitudes that it adds up: half an ulp (6e-8)
# for each of the few roundings that matter (1.5e-7 seen). A wrong weight changes it by some 1 / K.
LINEAR_FP32 = 1e-6

# Attention in float32 against float64, for scores up to about 20: the exponentials carry the
# rounding of their scores, 20 * 2**-24, and some tens of products are added.
ATTENTION_FP32 = 1e-5

# Sine and cosine of a float32 angle of up to 500 radians, known to half an ulp (1.5e-5), which is
# what transformers computes with as well.
ANGLE_FP32 = 5e-5

# Keys and values after one layer of a tiny model in float32, compiled against eager: the logits'
# reason, before the last projections have widened the difference.
CACHE_FP32 = 1e-4

# Logits and caches of a tiny model, lowered to HLO and run by XLA against eager, per largest value:
# sums in another order, over nine steps.
XLA_FP32 = 1e-5

# A kernel's result against its reference, as the largest difference over the largest value; by the
# dtype that it computes in. In 16 bits both round what lies between the steps (2**-9 each), at
# different places. In float32 the order of sums moves some tens of last bits. float8 keeps three
# bits and int8 is in steps of 1/127; a value next to a boundary falls to either side (2**-5 at most
# of the largest is 1/32).
NKI = {
    torch.bfloat16: 2e-2,
    torch.float16: 2e-2,
    torch.float32: 1e-5,
    torch.float8_e4m3fn: 3e-2,
    torch.int8: 2e-2,
}
