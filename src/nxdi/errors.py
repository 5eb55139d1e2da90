"""Every error the library raises on purpose.

Each message names the offending value, the limit it broke and the remedy. The classes also derive
from the built-in exception a caller would expect, so `except ValueError` keeps working.
"""

from __future__ import annotations


class NxdiError(Exception):
    """Base class: `except NxdiError` catches everything the library raises on purpose."""


class ConfigError(NxdiError, ValueError):
    """A configuration is contradictory, incomplete, or names something that does not exist."""


class UnsupportedError(NxdiError):
    """The request is understood but not offered; the message says why and what to do instead."""


class BucketError(NxdiError, ValueError):
    """A batch or sequence does not fit any compiled graph."""


class ShapeError(NxdiError, ValueError):
    """A tensor handed to the library has the wrong shape, dtype or value range."""


class WeightError(NxdiError, ValueError):
    """A checkpoint is corrupt, or its tensors do not match the model."""


class ArtifactError(NxdiError):
    """A compiled artefact is damaged, incomplete, or was built for something else."""


class KernelError(NxdiError, ValueError):
    """An NKI kernel breaks a rule of the hardware or of the language.

    `rule` names the rule; `line` is the kernel's source line as "file:number", or "".
    """

    def __init__(self, rule: str, line: str, message: str) -> None:
        super().__init__(f"{line}: {message} [{rule}]" if line else f"{message} [{rule}]")
        self.rule, self.line = rule, line
