"""Adapters for programs that serve models. None of them is imported by `import nxdi`."""
