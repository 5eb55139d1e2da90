"""Input snapshots at the path where NxDI has them."""

from nxdi.runtime.snapshot import (
    SnapshotOutputFormat,
    register_snapshot_hooks,
    unregister_snapshot_hooks,
)

__all__ = ["SnapshotOutputFormat", "register_snapshot_hooks", "unregister_snapshot_hooks"]
