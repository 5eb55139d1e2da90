"""`python -m nxdi` is the `nxdi` command."""

from __future__ import annotations

import sys

from nxdi.cli import main

sys.exit(main())
