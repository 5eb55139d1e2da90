"""Run by test_flow.py in a process of its own: load an artefact, print the tokens it gives."""

from __future__ import annotations

import sys
from pathlib import Path

from neuron.nxd_double import Double
from neuron.support import generate, neuron_app

if __name__ == "__main__":
    folder, artifact, tp_degree = sys.argv[1:]
    Double(is_durable=True).install()
    app = neuron_app(Path(folder), tp_degree=int(tp_degree))
    app.load(Path(artifact))
    print(generate(app).tolist())
