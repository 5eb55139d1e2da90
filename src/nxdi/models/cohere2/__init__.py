"""Command R7B and Command A."""
