"""The published V2 interface of neuronx_distributed 0.18 to 0.19, as data.

By name below the package: the file that defines it, and its parameters. Facts, not code.
"""

from __future__ import annotations

import ast
from inspect import Parameter, Signature

_FUNCTIONS = "trace/functions.py"
_BUILDER = "trace/model_builder_v2.py"
_MODEL = "trace/nxd_model/nxd_model.py"

PUBLISHED = {
    "NxDParallelState.__init__": (
        "trace/parallel_context.py",
        "self, world_size=1, rank=0, tensor_model_parallel_size=1, "
        "pipeline_model_parallel_size=1, context_parallel_size=1, "
        "expert_model_parallel_size=1, lnc_size=None",
    ),
    "NxDParallelState.__enter__": ("trace/parallel_context.py", "self"),
    "NxDParallelState.__exit__": ("trace/parallel_context.py", "self, exc_type, exc_val, exc_tb"),
    "trace.functions.trace": (
        _FUNCTIONS,
        "model, args=None, kwargs=None, spmd=True, preserve_parameters=True, "
        "weights_to_skip_layout_optimization=None",
    ),
    "trace.functions.compile": (
        _FUNCTIONS,
        "hlo_module, metaneff, compiler_workdir=None, compiler_args=None, key=None",
    ),
    "trace.functions.compile_wlo": (
        _FUNCTIONS,
        "hlo_module, metaneff, compiler_workdir=None, compiler_args=None, key=None",
    ),
    "trace.functions.compile_layout_transformer": (
        _FUNCTIONS,
        "wlo_artifacts, priority_model_weight_name_to_idx, compiler_workdir=None, "
        "logical_nc_config=1",
    ),
    "trace.functions.shard_checkpoint": (
        _FUNCTIONS,
        "checkpoint, model, start_rank=None, end_rank=None, load_on_device=False, "
        "serialize_path=None",
    ),
    "ModelBuilder.__init__": (_BUILDER, "self, model, weights_to_skip_layout_optimization=None"),
    "ModelBuilder.trace": (_BUILDER, "self, args=None, kwargs=None, tag=None, spmd=True"),
    "ModelBuilder.compile": (
        _BUILDER,
        "self, priority_model_key=None, compiler_workdir=None, compiler_args=None, "
        "max_workers=None",
    ),
    "NxDModel.__init__": (
        _MODEL,
        "self, world_size, start_rank=None, local_ranks_size=None, state_initializer=None, "
        "layout_transformer=None",
    ),
    "NxDModel.add": (_MODEL, "self, key, trace_artifacts, compilation_artifacts"),
    "NxDModel.get_available_keys": (_MODEL, "self"),
    "NxDModel.get_neff": (_MODEL, "self, key"),
    "NxDModel.get_metaneff": (_MODEL, "self, key"),
    "NxDModel.get_hlo": (_MODEL, "self, key"),
    "NxDModel.set_weights": (_MODEL, "self, sharded_checkpoint"),
    "NxDModel.to_neuron": (_MODEL, "self"),
    "NxDModel.replace_weights": (_MODEL, "self, sharded_checkpoint"),
    "NxDModel.read_from_neuron_buffer": (_MODEL, "self, buffer_key, rank"),
    "NxDModel.write_to_neuron_buffer": (_MODEL, "self, tensor, buffer_key, rank"),
    "NxDModel.router": (_MODEL, "self, inputs, arg_names"),
    "NxDModel.forward": (
        _MODEL,
        "self, *args, model_name=None, forward_mode='default', **kwargs",
    ),
    "NxDModel.save": (_MODEL, "self, path_to_save, save_weights=False"),
    "NxDModel.load": (_MODEL, "cls, path_to_model, start_rank=None, local_ranks_size=None"),
}


def signature_of(name: str) -> Signature:
    """The published signature, without `self` or `cls`."""
    return Signature([p for p in parameters_of(PUBLISHED[name][1]) if p.name not in _RECEIVERS])


def parameters_of(text: str) -> list[Parameter]:
    """What stands between the parentheses of a definition, as parameters."""
    definition = ast.parse(f"def f({text}): ...").body[0]
    assert isinstance(definition, ast.FunctionDef)
    return read_parameters(definition.args)


def read_parameters(arguments: ast.arguments) -> list[Parameter]:
    """Name, kind and default of each parameter; a default that is no literal stays source text."""
    plain = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(plain) - len(arguments.defaults)) + list(arguments.defaults)
    found = [
        _parameter(arg, Parameter.POSITIONAL_OR_KEYWORD, default)
        for arg, default in zip(plain, defaults, strict=True)
    ]
    if arguments.vararg:
        found.append(_parameter(arguments.vararg, Parameter.VAR_POSITIONAL, None))
    for arg, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        found.append(_parameter(arg, Parameter.KEYWORD_ONLY, default))
    if arguments.kwarg:
        found.append(_parameter(arguments.kwarg, Parameter.VAR_KEYWORD, None))
    return found


_RECEIVERS = ("self", "cls")


def _parameter(arg: ast.arg, kind: object, default: ast.expr | None) -> Parameter:
    value: object = Parameter.empty
    if default is not None:
        try:
            value = ast.literal_eval(default)
        except ValueError:
            value = ast.unparse(default)
    return Parameter(arg.arg, kind, default=value)  # type: ignore[arg-type]  # one of its kinds
