"""A simulator of NKI kernels: what they compute, which rules they break, and how long they take.

`simulate(kernel)(*arrays)` runs a kernel on a simulated NeuronCore. It promises the documented
semantics and limits; its times are predictions, and its scheduler is not the Neuron compiler.
"""

from __future__ import annotations

from nxdi.kernels.sim.coverage import measure_coverage
from nxdi.kernels.sim.lint import lint
from nxdi.kernels.sim.modules import nki_modules
from nxdi.kernels.sim.run import Simulation, simulate

__all__ = ["Simulation", "lint", "measure_coverage", "nki_modules", "simulate"]
