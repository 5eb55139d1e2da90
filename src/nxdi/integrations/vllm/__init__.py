"""The vLLM plugin: vLLM schedules, nxdi runs the graphs.

vLLM finds both functions through entry points and may call them in every process, more than once.
"""

from __future__ import annotations


def register() -> str:
    """The platform, by name. `VLLM_PLUGINS` (vLLM's own list of plugins to use) switches it off."""
    return "nxdi.integrations.vllm.platform.NxdiPlatform"


def register_models() -> None:
    """Tell vLLM of every architecture that nxdi serves."""
    from nxdi.integrations.vllm.models import register_architectures

    register_architectures()
