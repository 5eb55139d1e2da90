"""Which text is renamed, and which is not."""

from __future__ import annotations

import pytest

from nxdi.errors import UnsupportedError
from nxdi.port.rewrite import rewrite

REWRITTEN = {
    "import": ("import neuronx_distributed", "import nxdi"),
    "import of the longer root": ("import neuronx_distributed_inference", "import nxdi"),
    "dotted": ("import neuronx_distributed.utils", "import nxdi.utils"),
    "alias": ("import neuronx_distributed as nxd", "import nxdi as nxd"),
    "alias as the new name": (
        "import neuronx_distributed_inference as nxdi\nimport neuronx_distributed\nnxdi.x",
        "import nxdi as nxdi\nimport nxdi\nnxdi.x",
    ),
    "among others": (
        "import os, neuronx_distributed.utils as u, sys, neuronx_distributed_inference.models",
        "import os, nxdi.utils as u, sys, nxdi.models",
    ),
    "spaces": ("import  neuronx_distributed . utils", "import  nxdi . utils"),
    "from": ("from neuronx_distributed import utils", "from nxdi import utils"),
    "star": (
        "from neuronx_distributed_inference.models.config import *",
        "from nxdi.models.config import *",
    ),
    "parentheses, comments": (
        "from neuronx_distributed.utils import (  # neuronx_distributed\n    a,\n    b, # x\n)",
        "from nxdi.utils import (  # neuronx_distributed\n    a,\n    b, # x\n)",
    ),
    "continued lines": (
        "from \\\n\t neuronx_distributed.utils \\\n import a",
        "from \\\n\t nxdi.utils \\\n import a",
    ),
    "Windows newlines": (
        "x = 1\r\nfrom \\\r\n neuronx_distributed import a\r\nimport neuronx_distributed\r\n",
        "x = 1\r\nfrom \\\r\n nxdi import a\r\nimport nxdi\r\n",
    ),
    "old Mac newlines": (
        "x = 1\rimport neuronx_distributed\rneuronx_distributed.x\r",
        "x = 1\rimport nxdi\rnxdi.x\r",
    ),
    "form feed, line separators that are none for Python": (
        "x = 'a\x0b\u2028b'\n\x0cimport neuronx_distributed\n",
        "x = 'a\x0b\u2028b'\n\x0cimport nxdi\n",
    ),
    "after wide letters on the line": (
        "é = '\U0001f600'; import neuronx_distributed; ü = neuronx_distributed.x",
        "é = '\U0001f600'; import nxdi; ü = nxdi.x",
    ),
    "in a function, in try": (
        "def f():\n\ttry:\n\t\timport neuronx_distributed\n\texcept ImportError:\n"
        "\t\tneuronx_distributed = None\n\treturn neuronx_distributed",
        "def f():\n\ttry:\n\t\timport nxdi\n\texcept ImportError:\n\t\tnxdi = None\n\treturn nxdi",
    ),
    "uses of what import binds": (
        "import neuronx_distributed.utils as u\nimport neuronx_distributed.parallel_layers.layers\n"
        "x = [neuronx_distributed.parallel_layers.layers.X for _ in y]\ndel neuronx_distributed",
        "import nxdi.utils as u\nimport nxdi.parallel_layers.layers\n"
        "x = [nxdi.parallel_layers.layers.X for _ in y]\ndel nxdi",
    ),
    "both roots": (
        "import neuronx_distributed, neuronx_distributed_inference\n"
        "neuronx_distributed.a + neuronx_distributed_inference.b",
        "import nxdi, nxdi\nnxdi.a + nxdi.b",
    ),
    "value of an f-string": (
        "import neuronx_distributed_inference\nx = (neuronx_distributed_inference.y, f'')",
        "import nxdi\nx = (nxdi.y, f'')",
    ),
    "import_module": (
        "import_module('neuronx_distributed_inference')",
        "import_module('nxdi')",
    ),
    "import_module of an f-string": (
        "importlib.import_module(f'neuronx_distributed_inference.models.{x}.modeling_{x}')",
        "importlib.import_module(f'nxdi.models.{x}.modeling_{x}')",
    ),
    "patch": (
        "@patch('neuronx_distributed.parallel_layers.layers.get_size', f)\ndef g(): ...",
        "@patch('nxdi.parallel_layers.layers.get_size', f)\ndef g(): ...",
    ),
    "patch.dict": (
        "with patch.dict('sys.modules', {'neuronx_distributed': m, 'other': m}): ...",
        "with patch.dict('sys.modules', {'nxdi': m, 'other': m}): ...",
    ),
    "sys.modules": (
        "if 'neuronx_distributed' in sys.modules: del sys.modules['neuronx_distributed']",
        "if 'nxdi' in sys.modules: del sys.modules['nxdi']",
    ),
    "path in a table, raw, long quotes, unquoted annotations": (
        "M = {'a': r'neuronx_distributed.utils', 'b': '''neuronx_distributed.utils:cpu_mode'''}\n"
        "def f(x: 'neuronx_distributed.utils.T') -> None: ...",
        "M = {'a': r'nxdi.utils', 'b': '''nxdi.utils:cpu_mode'''}\n"
        "def f(x: 'nxdi.utils.T') -> None: ...",
    ),
    "joined literals": (
        "import_module('neuronx_distributed_inference.'\n'models')",
        "import_module('nxdi.'\n'models')",
    ),
}

UNTOUCHED = {
    "comment": "# import neuronx_distributed",
    "docstring": '"""neuronx_distributed.utils"""',
    "prose": "raise ImportError('neuronx_distributed_inference is needed: pip install it')",
    "a root as plain text": "NAME = 'neuronx_distributed'",
    "a file name": "PATH = 'src/neuronx_distributed/utils.py'",
    "bytes": "x = b'neuronx_distributed.utils'",
    "relative": "from .neuronx_distributed import a\nfrom . import neuronx_distributed_inference",
    "another package": "import neuronx_distributed_training\nfrom neuronx_distributed_x import y",
    "below another package": "import vendored.neuronx_distributed\nvendored.neuronx_distributed.x",
    "attribute": "self.neuronx_distributed = 1",
    "keyword": "f(neuronx_distributed=1)",
    "a variable of that name": "neuronx_distributed = 1\nprint(neuronx_distributed)",
    "an argument of that name": "def f(neuronx_distributed): return neuronx_distributed.x",
    "bound by an alias": "import os as neuronx_distributed\nneuronx_distributed.x",
    "f-string of prose": "print(f'neuronx_distributed.{x}')",
    "inside an f-string": "import_module(f'{x[\"neuronx_distributed\"]}.y')",
    "split within the root": "import_module('neuronx_distributed' '_inference.models')",
    "escaped within the root": "import_module('neuronx_distributed\\x5finference.models')",
    "name of an attribute": "setattr(module, 'neuronx_distributed', 1)",
    "nothing of it": "import torch\n",
    "empty": "",
}

REFUSED = {
    "argument": "def f(neuronx_distributed): ...",
    "function": "def neuronx_distributed(): ...",
    "class": "class neuronx_distributed: ...",
    "exception": "try: ...\nexcept E as neuronx_distributed: ...",
    "global": "def f():\n    global neuronx_distributed",
    "relative import": "from . import neuronx_distributed",
    "alias": "import os as neuronx_distributed",
    "pattern": "match x:\n    case {**neuronx_distributed}: ...",
    "the new name": "nxdi = 3",
    "the new name by alias": "import numpy as nxdi",
}


@pytest.mark.parametrize("case", REWRITTEN)
def test_rewritten(case: str) -> None:
    old, new = REWRITTEN[case]
    assert rewrite(old) == new
    assert rewrite(new) == new


@pytest.mark.parametrize("case", UNTOUCHED)
def test_untouched(case: str) -> None:
    assert rewrite(UNTOUCHED[case]) == UNTOUCHED[case]


@pytest.mark.parametrize("case", REFUSED)
def test_a_name_used_for_two_things_is_refused(case: str) -> None:
    with pytest.raises(UnsupportedError, match=r"line \d+: 'n\w+' also names something else"):
        rewrite(f"import neuronx_distributed.utils\n{REFUSED[case]}")
    assert rewrite(f"import neuronx_distributed as n\n{REFUSED[case]}").startswith("import nxdi")
