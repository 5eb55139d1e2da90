"""Calls that wait for who asks for their results, and calls that do not."""

from __future__ import annotations

import threading

import pytest
import torch

from nxdi.config import NeuronConfig
from nxdi.generation.ahead import Ahead, InTurn, Starter, make_starter


def fail() -> int:
    raise RuntimeError("the device is gone")


def test_the_config_decides() -> None:
    assert isinstance(make_starter(NeuronConfig()), InTurn)
    config = NeuronConfig(async_mode=True, on_device_sampling_config={})
    assert isinstance(make_starter(config), Ahead)


def test_in_turn_a_call_runs_when_it_is_asked_for() -> None:
    ran: list[int] = []
    pending = InTurn().start(lambda: ran.append(1))
    assert ran == []
    pending.result()
    assert ran == [1]
    InTurn().start(fail).drop()


def test_ahead_a_call_runs_beside_the_caller() -> None:
    here, there = threading.Event(), threading.Event()

    def call() -> str:
        there.set()
        assert here.wait(timeout=60)
        return threading.current_thread().name

    pending = Ahead().start(call)
    assert there.wait(timeout=60)
    here.set()
    assert pending.result().startswith("nxdi-step")


@pytest.mark.parametrize("starter", [InTurn(), Ahead()])
def test_an_error_is_that_of_who_asks(starter: Starter) -> None:
    with pytest.raises(RuntimeError, match="the device is gone"):
        starter.start(fail).result()
    assert starter.start(lambda: 3).result() == 3


def test_a_dropped_call_has_ended_and_left_no_trace() -> None:
    starter, ran = Ahead(), []

    def call() -> None:
        ran.append(torch.rand(3).tolist())

    torch.manual_seed(5)
    starter.start(call).drop()
    starter.start(fail).drop()
    assert ran == [torch.rand(3).tolist()]
