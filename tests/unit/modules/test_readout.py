from __future__ import annotations

import torch

from nxdi.config import NeuronConfig
from nxdi.modules.readout import EveryToken, LastToken, make_readout
from nxdi.types import Phase

X = torch.arange(24.0).view(2, 3, 4)
INPUTS = {
    "sampling_params": torch.tensor([[1.0, 2, 3], [4, 5, 6]]),
    "uniform": torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]]),
}


def test_the_last_token_is_the_last_that_is_real() -> None:
    positions = torch.tensor([[4, 5, -1], [0, 1, 2]], dtype=torch.int32)
    assert torch.equal(LastToken().hidden(X, positions), torch.stack([X[0, 1:2], X[1, 2:3]]))
    assert LastToken().sampling({}) == (None, None)
    assert LastToken().output(X) is X


def test_every_token_is_a_row_of_its_own() -> None:
    readout = EveryToken(3)
    rows = readout.hidden(X, torch.zeros(2, 3, dtype=torch.int32))
    assert rows.shape == (6, 1, 4)
    assert torch.equal(rows[4, 0], X[1, 1])
    params, uniform = readout.sampling(INPUTS)
    assert params is not None
    assert uniform is not None
    assert torch.equal(params[4], INPUTS["sampling_params"][1])
    assert uniform[4] == 0.5
    assert readout.sampling({}) == (None, None)
    assert torch.equal(readout.output(rows.squeeze(1)), X)


def test_only_verify_graphs_read_every_token() -> None:
    config = NeuronConfig(speculation_length=5)
    for phase in Phase:
        expected = EveryToken(5) if phase is Phase.VERIFY else LastToken()
        assert make_readout(config.for_phase(phase, "eager")) == expected
