"""The whole examination, section by section."""

from __future__ import annotations

from collections.abc import Iterator

from nxdi.tools.doctor.findings import Section
from nxdi.tools.doctor.hardware import hardware_section
from nxdi.tools.doctor.neuron import neuron_section
from nxdi.tools.doctor.self_check import self_check_section
from nxdi.tools.doctor.software import software_section


def examine(self_check: bool = True) -> Iterator[Section]:
    """Look at everything, cheapest first; each section comes as soon as it is done.

    self_check: also compile and run a tiny model, which takes some seconds; on a Neuron device one
    of every architecture, which takes some minutes.
    """
    yield hardware_section()
    yield software_section()
    yield neuron_section()
    if self_check:
        yield self_check_section()
