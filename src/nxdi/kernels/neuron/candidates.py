"""Registers every kernel of platform "neuron": what a backend of such devices imports."""

from nxdi.kernels.neuron import argmax, attend, experts, norm, project, rotate, route

__all__ = ["argmax", "attend", "experts", "norm", "project", "rotate", "route"]
