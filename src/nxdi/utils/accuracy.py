"""The accuracy checks at the path where NxDI has them."""

from nxdi.absent import explain_absent_names
from nxdi.tools.accuracy.checks import (
    check_accuracy,
    check_accuracy_logits_v2,
    generate_expected_logits,
)
from nxdi.tools.accuracy.logits import LogitMatchingValidationError

__all__ = [
    "LogitMatchingValidationError",
    "check_accuracy",
    "check_accuracy_logits_v2",
    "generate_expected_logits",
]

explain_absent_names(__name__)
