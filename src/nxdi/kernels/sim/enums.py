"""The enumerations of `nki.isa`."""

from __future__ import annotations

from enum import Enum, auto


class engine(Enum):
    """What executes an instruction; `unknown` leaves the choice to the compiler."""

    unknown = 0
    tensor = auto()
    vector = auto()
    scalar = auto()
    gpsimd = auto()
    dma = auto()
    sync = auto()


class reduce_cmd(Enum):
    """What an instruction does with the accumulator registers of its engine."""

    idle = 0
    reset = auto()
    reduce = auto()
    reset_reduce = auto()
    load_reduce = auto()


class dge_mode(Enum):
    """Who makes the descriptors of a DMA."""

    unknown = 0
    swdge = auto()
    hwdge = auto()
    none = auto()


class oob_mode(Enum):
    """What an index out of range does."""

    error = 0
    skip = auto()


class matmul_perf_mode(Enum):
    """How the tensor engine uses its rows."""

    none = 0
    double_row = auto()


class nc_version(Enum):
    """Generations of NeuronCores."""

    gen2 = 2
    gen3 = 3
    gen4 = 4


class dma_engine(Enum):
    """Which DMA engines an exchange between cores uses."""

    dma = 0
    gpsimd_dma = auto()
