"""The compiled CPU backend: torch.export and AOTInductor, one piece for all layers alike."""

from nxdi.runtime.backends.cpu.backend import CpuBackend

__all__ = ["CpuBackend"]
