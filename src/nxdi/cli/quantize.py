"""`nxdi quantize`: a model folder with weights of 8 or 4 bits."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nxdi.cli.format import format_size
from nxdi.cli.model_options import check_model_folder, load_tokenizer
from nxdi.errors import ConfigError

if TYPE_CHECKING:
    from nxdi.tools.quantization import QuantizationReport

# As in nxdi.config.quantization, which would import torch before it is needed.
DTYPES = ("int8", "f8e4m3", "f8e5m2", "int4", "f4e2m1")
TYPES = (
    "per_tensor_symmetric",
    "per_channel_symmetric",
    "expert_wise_per_channel_symmetric",
    "blockwise_symmetric",
)
# Where one scale for a row is too few, or none of the format's.
_BLOCK_SIZES = {"int4": [1, 32], "f4e2m1": [1, 32]}
_ROWS, _LENGTH = 8, 512  # how a text is read for its perplexity


def add_parser(subparsers: Any) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "quantize",
        help="write a model folder with weights of 8 or 4 bits",
        description="Quantize the weights of a model's linear layers and experts, and say how far "
        "they moved. "
        "The new folder loads like any other.",
    )
    parser.add_argument("model", metavar="MODEL", type=Path, help="local Hugging Face model folder")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="int8",
        help="what weights are stored as (default: int8); int4, and f4e2m1 (MXFP4), in blocks of "
        "1 x 32",
    )
    parser.add_argument(
        "--type",
        choices=TYPES,
        help="which values have one scale: a row of a weight (the default), all of it, a row of "
        "each expert, or a block (the default with --block-size and for 4 bits)",
    )
    parser.add_argument(
        "--block-size",
        nargs=2,
        type=int,
        metavar=("ROWS", "COLUMNS"),
        help="the output and input features of a block, such as 128 128",
    )
    parser.add_argument(
        "--skip",
        action="append",
        default=[],
        metavar="PART",
        help="leave modules alone whose name contains PART; may be repeated",
    )
    parser.add_argument(
        "--activations",
        choices=("dynamic", "static"),
        help="quantize the inputs of those layers as well, with a scale for each token or with one "
        "for each layer, which is measured on the text of --text",
    )
    parser.add_argument("--architecture", metavar="NAME", help="what serves the model")
    parser.add_argument(
        "--text", type=Path, metavar="FILE", help="measure the perplexity of this text as well"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Write the folder, and print what changed."""
    check_model_folder(args.model)
    if args.activations == "static" and args.text is None:
        raise ConfigError("--activations static measures its scales on a text; give --text FILE")
    _print_report(args.out, _write(args))
    if args.text is not None:
        before, after = (_perplexity(folder, args) for folder in (args.model, args.out))
        print(f"perplexity of {args.text}: {before:.3f} before, {after:.3f} after")


def _write(args: argparse.Namespace) -> QuantizationReport:
    from nxdi.tools.quantization import calibrate_folder, quantize_folder

    options = _options(args)
    if args.activations == "dynamic":
        options["activation_quantization_type"] = args.activations
    if args.activations != "static":
        return quantize_folder(args.model, args.out, architecture=args.architecture, **options)
    with tempfile.TemporaryDirectory() as work:
        plain = Path(work) / "weights"
        report = quantize_folder(args.model, plain, architecture=args.architecture, **options)
        calibrate_folder(plain, args.out, _tokens(args.model, args.text), args.architecture)
    return report


def _tokens(folder: Path, text: Path) -> list[int]:
    tokens: list[int] = load_tokenizer(folder)(text.read_text(encoding="utf-8"))["input_ids"]
    return tokens


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """The keywords of NeuronConfig that a command line asks for."""
    options = quantization_options(args.dtype, args.type, args.block_size)
    if args.skip:
        options["modules_to_not_convert"] = args.skip
    return options


def quantization_options(
    dtype: str, kind: str | None = None, block_size: Any = None
) -> dict[str, Any]:
    """The keywords of NeuronConfig for weights stored in `dtype`, with its usual scales.

    kind: quantization_type, if it is another; block_size: the values with one scale.
    """
    from nxdi.config.quantization import BLOCKWISE, E8M0_SCALES, MXFP4, PER_CHANNEL

    options: dict[str, Any] = {"quantization_dtype": dtype}
    size = block_size or (None if kind else _BLOCK_SIZES.get(dtype))
    if dtype == MXFP4:
        options["quantization_scale_dtype"] = E8M0_SCALES
        size = size or _BLOCK_SIZES[MXFP4]
    options["quantization_type"] = kind or (BLOCKWISE if size else PER_CHANNEL)
    if size:
        options["quantization_block_size"] = size
    return options


def _print_report(out: Path, report: QuantizationReport) -> None:
    for layer in report.layers:
        print(f"{layer.name:48} {layer.relative:.3%}")
    sizes = f"{format_size(report.size_before)} as float32, {format_size(report.size_after)} now"
    print(f"{out}: {len(report.layers)} layers quantized; weights: {sizes}")
    if report.layers:
        print(f"largest error: {report.worst.relative:.3%} of the weights, {report.worst.name}")


def _perplexity(folder: Path, args: argparse.Namespace) -> float:
    from nxdi.models.auto import AutoModelForCausalLM
    from nxdi.tools.quantization import perplexity

    tokens = _tokens(folder, args.text)
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        architecture=args.architecture,
        seq_len=_LENGTH,
        max_context_length=32,
        batch_size=_ROWS,
        torch_dtype="float32",
    )
    return perplexity(model, tokens)
