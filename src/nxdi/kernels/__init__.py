"""Kernels: what each operation means, the implementations that compute it, and the choice among them."""
