"""`nki.language`: tensors, operators, loops. Operators and dtypes are added by `sim.modules`."""
