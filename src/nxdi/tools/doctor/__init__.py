"""What was found on this machine, and whether nxdi works on it."""

from nxdi.tools.doctor.examine import examine
from nxdi.tools.doctor.findings import Finding, Section, Verdict

__all__ = ["Finding", "Section", "Verdict", "examine"]
