"""Rules of the house that a linter does not know."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import nxdi

ROOT = Path(nxdi.__file__).parent
MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 60
MAX_FAMILY_LINES = 150
# What a family has of its own; `generic` serves all that need nothing.
FAMILIES = sorted(path.parent.name for path in ROOT.glob("models/*/modeling_*.py"))
FAMILIES.remove("generic")

# Functions that take `**kwargs`, each with what for.
KWARGS = {
    "config/inference.py InferenceConfig.__init__": "attributes of the model, as in NxDI",
    "config/inference.py InferenceConfig.from_pretrained": "the same",
    "config/inference.py InferenceConfig.load": "the same",
    "config/inference.py InferenceConfig.from_json_file": "the same",
    "config/inference.py InferenceConfig.from_json_string": "the same",
    "config/keywords.py KeywordConfig.__init__": "checked against the declared fields",
    "config/kv_quantization.py KVQuantizationConfig.__init__": "the same",
    "config/moe.py BlockwiseMatmulConfig.__init__": "the same",
    "config/moe.py MoENeuronConfig.__init__": "the same",
    "config/moe.py RouterConfig.__init__": "the same",
    "config/neuron.py NeuronConfig.__init__": "the same",
    "config/sampling.py OnDeviceSamplingConfig.__init__": "the same",
    "generation/hf_adapter.py HuggingFaceGenerationAdapter.generate": "transformers' signature",
    "generation/hf_adapter.py HuggingFaceGenerationAdapter.prepare_inputs_for_generation": "same",
    "generation/hf_adapter.py HuggingFaceGenerationAdapter._sample": "the same",
    "generation/hf_adapter.py HuggingFaceGenerationAdapter._prepare_generation_config": "the same",
    "generation/hf_adapter.py HuggingFaceGenerationAdapter._prepare_cache_for_generation": "same",
    "kernels/sim/language/program.py NKIObject.__init__": "NKI's signature",
    "kernels/sim/run.py Kernel.decorate": "options of nki.jit, for the compiler",
    "kernels/sim/run.py Kernel.__call__": "handed to the kernel",
    "kernels/sim/run.py Simulation.__call__": "handed to the kernel",
    "models/gemma2/modeling_gemma2.py NeuronGemma2ForCausalLM.load_hf_model": "transformers'",
    "models/generic/modeling_generic.py GenericInferenceConfig.from_pretrained": "as in its base",
    "models/auto.py AutoModelForCausalLM.from_pretrained": "keywords of NeuronConfig",
    "tools/quantization/folder.py quantize_folder": "the same",
    "models/causal_lm.py NeuronBaseForCausalLM.__call__": "handed to forward, which checks them",
    "models/application_base.py NeuronApplicationBase.load_hf_model": "transformers' keywords",
    "models/model_base.py StepCaches.get_cache": "NxDI's arguments, which say what is known here",
    "models/model_base.py StepCaches.update_cache": "the same",
    "models/model_base.py NeuronBaseModel.get_model_output": "the same",
    "modules/attention/attention_base.py NeuronAttentionBase.__init__": "refused by name",
    "modules/attention/attention_base.py NeuronAttentionBase.forward": "what NxDI's layers hand on",
    "runtime/backends/neuron/wrap.py Step.run": "the inputs of a graph, named in its signature",
    "parallel_layers/layers.py ColumnParallelLinear.__init__": "refused by name",
    "parallel_layers/layers.py RowParallelLinear.__init__": "the same",
    "parallel_layers/layers.py ParallelEmbedding.__init__": "the same",
}

Check = Callable[[str, str], list[str]]


def functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.FunctionDef]]:
    """Every function with its dotted name."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield prefix + node.name, node  # type: ignore[misc]  # both have the same fields
        is_named = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
        yield from functions(node, f"{prefix}{node.name}." if is_named else prefix)


def file_length(name: str, source: str) -> list[str]:
    lines = len(source.splitlines())
    return [f"{name} has {lines} lines"] if lines > MAX_FILE_LINES else []


def function_length(name: str, source: str) -> list[str]:
    lengths = {
        function: node.end_lineno - node.lineno + 1
        for function, node in functions(ast.parse(source))
        if node.end_lineno is not None
    }
    return [f"{name} {f} has {n} lines" for f, n in lengths.items() if n > MAX_FUNCTION_LINES]


def environment(name: str, source: str) -> list[str]:
    if name == "env.py":
        return []
    used = [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if (isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv", "putenv"))
        or (isinstance(node, ast.alias) and node.name in ("environ", "getenv", "putenv"))
    ]
    return [f"{name}:{line} uses the environment; read it in env.py" for line in used]


def printing(name: str, source: str) -> list[str]:
    if name.startswith("cli/"):
        return []
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [
        f"{name}:{call.lineno} prints"
        for call in calls
        if isinstance(call.func, ast.Name) and call.func.id == "print"
    ]


def keyword_arguments(name: str, source: str) -> list[str]:
    taking = [f"{name} {f}" for f, node in functions(ast.parse(source)) if node.args.kwarg]
    return [f"{place} takes **kwargs" for place in taking if place not in KWARGS]


def left_for_later(name: str, source: str) -> list[str]:
    marks = re.compile(r"\b(TODO|FIXME|XXX|HACK|raise NotImplementedError)\b")
    lines = enumerate(source.splitlines(), start=1)
    return [f"{name}:{number} {line.strip()}" for number, line in lines if marks.search(line)]


def reasons(name: str, source: str) -> list[str]:
    """A suppressed complaint says why."""
    bare = re.compile(r"#\s*(type: ignore\[[\w, -]+\]|noqa: [A-Z0-9, ]+)\s*$")
    blanket = re.compile(r"#\s*(type: ignore(?!\[)|noqa(?!:))")
    lines = enumerate(source.splitlines(), start=1)
    return [
        f"{name}:{number} {line.strip()}"
        for number, line in lines
        if bare.search(line) or blanket.search(line)
    ]


def future_annotations(name: str, source: str) -> list[str]:
    tree = ast.parse(source)
    has_code = any(isinstance(node, (ast.FunctionDef, ast.ClassDef)) for node in ast.walk(tree))
    is_there = "from __future__ import annotations" in source
    return [f"{name} lacks it"] if has_code and not is_there else []


def docstring(name: str, source: str) -> list[str]:
    return [] if ast.get_docstring(ast.parse(source)) else [f"{name} does not say what it is for"]


# Each rule with a source that breaks it.
CHECKS: dict[Check, str] = {
    file_length: "x = 1\n" * 401,
    function_length: "def f():\n" + "    x = 1\n" * 60,
    environment: "import os\nos.environ['A']",
    printing: "print(1)",
    keyword_arguments: "def f(**kwargs): ...",
    left_for_later: "x = 1  # TODO later",
    reasons: "x = 1  # noqa: F401",
    future_annotations: "def f(): ...",
    docstring: "x = 1",
}
SOURCES = {str(path.relative_to(ROOT)): path for path in sorted(ROOT.rglob("*.py"))}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_rule(check: Check) -> None:
    found = [
        line
        for name, path in SOURCES.items()
        for line in check(name, path.read_text(encoding="utf-8"))
    ]
    assert found == []


@pytest.mark.parametrize(
    ("check", "source"), CHECKS.items(), ids=lambda x: getattr(x, "__name__", "")
)
def test_the_rule_can_fail(check: Check, source: str) -> None:
    assert check("somewhere.py", source) != []


def test_no_name_is_listed_in_vain() -> None:
    taking = {
        f"{name} {function}"
        for name, path in SOURCES.items()
        for function, node in functions(ast.parse(path.read_text(encoding="utf-8")))
        if node.args.kwarg
    }
    assert taking == KWARGS.keys()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_short(family: str) -> None:
    files = (ROOT / "models" / family).glob("*.py")
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files)
    print(f"{family}: {lines} lines")
    assert lines <= MAX_FAMILY_LINES
