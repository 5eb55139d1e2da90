"""Whole kernels: what they compute, from what, and what is left behind."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from nxdi.errors import KernelError, UnsupportedError
from nxdi.kernels import nki_modules, simulate
from sim_kernels import nisa, nki, nl, random_array
from tolerances import LINEAR_FP32


@nki.jit
def rmsnorm(x: Any, gamma: Any, eps: float = 1e-6) -> Any:
    """out[t, :] = x[t, :] * rsqrt(mean(x[t, :] ** 2) + eps) * gamma, in tiles of 128 rows."""
    T, H = x.shape
    P, F = nl.tile_size.pmax, min(nl.tile_size.psum_bank_fmax, H)
    out = nl.ndarray((T, H), dtype=x.dtype, buffer=nl.shared_hbm)
    gamma_row = nl.load(gamma)
    ones = nl.ones((1, P), dtype=gamma.dtype)
    gamma_all = nl.ndarray((P, H), dtype=nl.float32, buffer=nl.sbuf)
    for h in range(H // F):
        product = nl.ndarray((P, F), dtype=nl.float32, buffer=nl.psum)
        nisa.nc_matmul(dst=product, stationary=ones, moving=gamma_row[:, nl.ds(h * F, F)])
        nisa.tensor_copy(dst=gamma_all[:, nl.ds(h * F, F)], src=product)
    eps_column = nl.full((P, 1), eps, dtype=nl.float32)
    for t in range(0, T, P):
        p = min(P, T - t)
        rows = nl.load(x[nl.ds(t, p), :])
        squares = nl.ndarray((p, H), dtype=nl.float32)
        total = nl.ndarray((p, 1), dtype=nl.float32)
        nisa.activation_reduce(squares, nl.square, rows, nl.add, total)
        scale = nl.ndarray((p, 1), dtype=nl.float32)
        nisa.activation(scale, nl.rsqrt, total, scale=1.0 / H, bias=eps_column[0:p, :])
        result = nl.ndarray((p, H), dtype=x.dtype)
        nisa.scalar_tensor_tensor(result, rows, nl.multiply, scale, nl.multiply, gamma_all[0:p, :])
        nisa.dma_copy(dst=out[nl.ds(t, p), :], src=result)
    return out


@nki.jit
def matmul(left: Any, right: Any) -> Any:
    """left[K, M].T @ right[K, N], accumulated over K in PSUM."""
    K, M = left.shape
    _, N = right.shape
    out = nl.ndarray((M, N), dtype=left.dtype, buffer=nl.shared_hbm)
    for m in nl.affine_range(M // 128):
        for n in nl.affine_range(N // 512):
            total = nl.ndarray((128, 512), nl.float32, buffer=nl.psum)
            for k in nl.affine_range(K // 128):
                one = nl.load(left[k * 128 : (k + 1) * 128, m * 128 : (m + 1) * 128])
                other = nl.load(right[k * 128 : (k + 1) * 128, n * 512 : (n + 1) * 512])
                nisa.nc_matmul(dst=total, stationary=one, moving=other)
            tile = nl.ndarray(total.shape, dtype=out.dtype)
            nisa.tensor_copy(dst=tile, src=total)
            nisa.dma_copy(dst=out[m * 128 : (m + 1) * 128, n * 512 : (n + 1) * 512], src=tile)
    return out


@pytest.mark.parametrize("target", ["gen2", "trn2", "gen4"])
@pytest.mark.parametrize("rows", [1, 200])
def test_rmsnorm(target: str, rows: int) -> None:
    x = torch.from_numpy(random_array(rows, 1024)).bfloat16()
    gamma = torch.from_numpy(random_array(1, 1024, seed=1)).bfloat16()
    result = simulate(rmsnorm, target=target)(x, gamma)
    exact = torch.rms_norm(x.float(), (1024,), gamma.float()[0], 1e-6)
    assert result.dtype == torch.bfloat16
    # One rounding to bfloat16, after a value that may round either way in float32.
    assert (result.float() - exact).abs().max() <= exact.abs().max() * 2**-8


def test_fp32_numerics_do_not_round() -> None:
    x, gamma = random_array(64, 512), random_array(1, 512, seed=1)
    low = [torch.from_numpy(item).bfloat16() for item in (x, gamma)]
    exact = torch.rms_norm(low[0].double(), (512,), low[1].double()[0], 1e-6)
    result = simulate(rmsnorm, numerics="fp32")(*(item.float().numpy() for item in low))
    assert np.abs(result - exact.numpy()).max() < 1e-5
    assert simulate(rmsnorm, numerics="fp32")(*low).dtype == torch.bfloat16


def test_matmul_accumulates_in_float32() -> None:
    left, right = random_array(512, 128), random_array(512, 1024, seed=1)
    result = simulate(matmul)(left, right)
    exact = left.T.astype(np.float64) @ right
    sizes = np.abs(left.T).astype(np.float64) @ np.abs(right)
    assert (np.abs(result - exact) <= LINEAR_FP32 * sizes).all()


def test_full_shapes_are_checked_without_values() -> None:
    left = torch.empty(8192, 512, dtype=torch.bfloat16, device="meta")
    right = torch.empty(8192, 1024, dtype=torch.bfloat16, device="meta")
    simulation = simulate(matmul, numerics="shapes")
    result = simulation(left, right)
    assert (result.shape, result.device.type) == ((512, 1024), "meta")
    assert simulation.report().instructions["nc_matmul"] == 4 * 2 * 64


def test_the_arguments_are_not_written() -> None:
    def kernel(x: Any) -> Any:
        nisa.dma_copy(x, nl.zeros((4, 4), nl.float32))
        return x

    x = np.ones((4, 4), np.float32)
    assert simulate(kernel)(x).sum() == 0
    assert x.sum() == 16


def test_a_kernel_calls_another_and_returns_several() -> None:
    def kernel(x: Any, gamma: Any) -> Any:
        return rmsnorm(x, gamma), rmsnorm(x, gamma, eps=1.0)

    x, gamma = random_array(8, 512), np.ones((1, 512), np.float32)
    one, other = simulate(kernel)(x, gamma)
    assert np.array_equal(one, rmsnorm(x, gamma))
    assert not np.array_equal(one, other)


def test_results_are_numpy_unless_an_argument_is_torch() -> None:
    def kernel(x: Any) -> Any:
        return x

    x = random_array(4, 4)
    assert isinstance(simulate(kernel)(x), np.ndarray)
    assert isinstance(simulate(kernel)(torch.from_numpy(x)), torch.Tensor)


def test_modules_are_there_in_the_block_only() -> None:
    assert "nki" not in sys.modules
    with nki_modules():
        import nki.isa

        assert nki.isa.nc_matmul is nisa.nc_matmul
    assert not {"nki", "nki.isa", "nki.language"} & sys.modules.keys()


def test_a_kernel_may_import_while_it_runs() -> None:
    def kernel(x: Any) -> Any:
        import nki.language as language

        return language.load(x) and x

    assert simulate(kernel)(random_array(4, 4)).shape == (4, 4)


def test_a_module_that_was_there_before_is_there_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nki", "another")  # type: ignore[arg-type]  # any object
    with nki_modules():
        assert sys.modules["nki"] is not None
    assert sys.modules["nki"] == "another"  # type: ignore[comparison-overlap]  # as set above


def test_instructions_need_a_kernel() -> None:
    with pytest.raises(UnsupportedError, match=r"simulate\(kernel\)"):
        nl.ndarray((4, 4), nl.float32)


@pytest.mark.parametrize("options", [{"target": "gen1"}, {"numerics": "double"}])
def test_an_unknown_option_is_refused(options: dict[str, str]) -> None:
    with pytest.raises(UnsupportedError, match=r"gen1|double"):
        simulate(rmsnorm, **options)


def test_a_launch_on_many_cores_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="4 cores"):
        rmsnorm[4]


def test_a_report_needs_a_run() -> None:
    with pytest.raises(UnsupportedError, match="call the simulation first"):
        simulate(rmsnorm).report()


def test_the_first_broken_rule_ends_the_run() -> None:
    def kernel(x: Any) -> Any:
        return nl.square(x)

    with pytest.raises(KernelError, match="dma_copy"):
        simulate(kernel)(random_array(4, 4))


def test_the_simulator_is_not_imported_with_nxdi() -> None:
    program = (
        "import sys, nxdi, nxdi.kernels.registry; "
        "print([m for m in sys.modules if m.startswith('nxdi.kernels.sim')])"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"
