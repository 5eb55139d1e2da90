"""How fast a loaded model generates, measured and reported."""

from nxdi.tools.benchmark.sampling import benchmark_sampling, measure, report_files, write_report
from nxdi.tools.benchmark.stages import Report, Workload

__all__ = [
    "Report",
    "Workload",
    "benchmark_sampling",
    "measure",
    "report_files",
    "write_report",
]
