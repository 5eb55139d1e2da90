"""The NeuronCores that kernels are simulated for: every hardware number, with its source."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from nxdi.errors import UnsupportedError

GUIDE = "architecture guide of the generation (NKI documentation)"
DMA_GUIDE = "NKI DMA bandwidth guide"
ISA = "nki.isa reference"
FITTED = "fitted on nki-library's latency targets of MLP kernels (benchmarks/nki_calibration.py)"


def number(source: str) -> Any:
    """A field whose value comes from `source`."""
    return field(metadata={"source": source})


@dataclass(frozen=True)
class Machine:
    """One NeuronCore and its share of the memory.

    Units: bytes per partition, GHz, bytes per ns (= GB/s), ns, cycles of the engine concerned.
    """

    generation: int = number("nki.isa.nc_version")
    sbuf_bytes: int = number(GUIDE)
    sbuf_reserved_bytes: int = number("nki-library, MLP prefill: 16384 + 8 + 256 of the partition")
    tensor_ghz: float = number(GUIDE)
    vector_ghz: float = number(GUIDE)
    scalar_ghz: float = number(GUIDE)
    gpsimd_ghz: float = number(GUIDE)
    moving_max: int = number(f"{ISA}: nc_matmul, elements of a float32 result")
    pe_tile_min: int = number(f"{ISA}: nc_matmul, tiling mode")
    vector_16bit_rate: int = number(GUIDE + ": elements per cycle and lane, SBUF to SBUF")
    vector_other_rate: int = number(GUIDE + ": elements per cycle and lane, one side of 16 bits")
    scalar_16bit_rate: int = number(GUIDE)
    fp32_transpose_rate: int = number(GUIDE)
    dma_bytes_per_ns: float = number(f"{DMA_GUIDE}: effective, one engine")
    hbm_bytes_per_ns: float = number("chip's bandwidth over its cores, NKI architecture guides")
    partitions: int = field(default=128, metadata={"source": GUIDE})
    psum_banks: int = field(default=8, metadata={"source": GUIDE})
    psum_bank_bytes: int = field(default=2048, metadata={"source": GUIDE})
    pe_rows: int = field(default=128, metadata={"source": GUIDE})
    pe_min_columns: int = field(default=64, metadata={"source": f"{ISA} of SDK 2.26: nc_matmul"})
    fp32_passes: int = field(default=4, metadata={"source": f"{GUIDE}: a quarter of the rate"})
    min_cycles: int = field(default=64, metadata={"source": f"{ISA} of SDK 2.26: MIN_II"})
    gpsimd_start_cycles: int = field(default=150, metadata={"source": f"{ISA} of SDK 2.26: iota"})
    dependency_cycles: int = field(
        default=100, metadata={"source": "NKI performance guide: dependent instructions"}
    )
    dma_engines: int = field(default=16, metadata={"source": DMA_GUIDE})
    dma_partitions_per_engine: int = field(default=8, metadata={"source": DMA_GUIDE})
    dma_latency_ns: float = field(default=1300.0, metadata={"source": DMA_GUIDE})
    dma_full_rate_bytes: int = field(
        default=4096, metadata={"source": f"{DMA_GUIDE}: saturated at 4 KiB per partition"}
    )
    dma_half_rate_bytes: int = field(
        default=512, metadata={"source": "fitted to the bands of the DMA guide (256 B, 2 KiB)"}
    )
    tensor_efficiency: float = field(
        default=0.75, metadata={"source": f"{FITTED}: sustained rate of matmuls over the peak"}
    )
    launch_ns: float = field(default=37000.0, metadata={"source": f"{FITTED}: what every run adds"})

    @property
    def name(self) -> str:
        return f"gen{self.generation}"

    @property
    def sbuf_usable_bytes(self) -> int:
        return self.sbuf_bytes - self.sbuf_reserved_bytes

    @property
    def psum_bytes(self) -> int:
        return self.psum_banks * self.psum_bank_bytes

    @property
    def peak_tflops(self) -> float:
        """Dense bf16 products of the tensor engine: two operations per cell and cycle."""
        return 2 * self.pe_rows * self.partitions * self.tensor_ghz / 1e3

    @property
    def dma_rate(self) -> float:
        """Bytes per ns that all engines of a core move, or its memory delivers."""
        return min(self.dma_engines * self.dma_bytes_per_ns, self.hbm_bytes_per_ns)


def sources() -> dict[str, str]:
    """Where each number of a `Machine` comes from."""
    return {item.name: item.metadata["source"] for item in fields(Machine)}


_COMMON: dict[str, Any] = {"sbuf_reserved_bytes": 16384 + 8 + 256}

MACHINES = {
    "gen2": Machine(
        generation=2,
        sbuf_bytes=192 * 1024,
        tensor_ghz=2.8,
        vector_ghz=1.12,
        scalar_ghz=1.4,
        gpsimd_ghz=1.4,
        moving_max=512,
        pe_tile_min=64,
        vector_16bit_rate=1,
        vector_other_rate=1,
        scalar_16bit_rate=1,
        fp32_transpose_rate=1,
        dma_bytes_per_ns=17.0,
        hbm_bytes_per_ns=410.0,
        **_COMMON,
    ),
    "gen3": Machine(
        generation=3,
        sbuf_bytes=224 * 1024,
        tensor_ghz=2.4,
        vector_ghz=0.96,
        scalar_ghz=1.2,
        gpsimd_ghz=1.2,
        moving_max=512,
        pe_tile_min=32,
        vector_16bit_rate=4,
        vector_other_rate=2,
        scalar_16bit_rate=1,
        fp32_transpose_rate=2,
        dma_bytes_per_ns=23.0,
        hbm_bytes_per_ns=363.0,
        **_COMMON,
    ),
    "gen4": Machine(
        generation=4,
        sbuf_bytes=256 * 1024,
        tensor_ghz=2.4,
        vector_ghz=1.2,
        scalar_ghz=1.2,
        gpsimd_ghz=1.2,
        moving_max=4096,
        pe_tile_min=32,
        vector_16bit_rate=4,
        vector_other_rate=2,
        scalar_16bit_rate=2,
        fp32_transpose_rate=2,
        dma_bytes_per_ns=33.0,
        hbm_bytes_per_ns=590.0,
        **_COMMON,
    ),
}
ALIASES = {"trn1": "gen2", "inf2": "gen2", "trn2": "gen3", "trn3": "gen4"}


def machine_of(target: str) -> Machine:
    """The machine called "gen3", or "trn2".

    Raises: UnsupportedError for a name that is not known.
    """
    name = ALIASES.get(target, target)
    if name not in MACHINES:
        known = ", ".join([*MACHINES, *ALIASES])
        raise UnsupportedError(f"there is no machine called {target!r}; choose one of {known}")
    return MACHINES[name]
