"""How numbers are written on a terminal."""

from __future__ import annotations


def format_size(num_bytes: int) -> str:
    """Bytes in decimal units: 98.4 MB."""
    value, units = float(num_bytes), ["B", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.0f} {units[0]}" if units[0] == "B" else f"{value:.1f} {units[0]}"
