"""Kernels: what each operation means, what computes it, and the choice among candidates."""
