"""What the commands share: options, the networks and data they name, and how results are printed.

Heavy imports happen when a command runs.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ide_ref._files import finite

if TYPE_CHECKING:
    from ide_ref.network import Params
    from ide_ref.presets import Preset

PRESETS = (
    "digits",
    "fashion-mnist-400",
    "mnist-64c5",
    "nmnist-64c5",
    *(f"cifar{n}-{name}" for n in (10, 100) for name in ("alexnet-f", "cifarnet-f")),
)
"""Their names, for help: the presets themselves are heavy to import."""

INSTALL = "pip install tqdm safetensors matplotlib pooch"
SOLVERS = ("fixed_point", "anderson", "broyden", "gmres", "scipy_gmres", "direct")
SURROGATES = ("rectangle", "triangle", "sigmoid", "arctangent")


def option_groups() -> tuple[argparse.ArgumentParser, ...]:
    """Options of several commands: how results are printed, threads, form of a preset, folder of data sets, data."""
    output, preset, folder = (argparse.ArgumentParser(add_help=False) for _ in range(3))
    output.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    threads = argparse.ArgumentParser(add_help=False)
    threads.add_argument("--threads", type=count, metavar="N", help="of the computation (default: all processors)")
    preset.add_argument("--neuron", choices=("lif", "if"), default="lif", help="leaky neurons or not (default lif)")
    preset.add_argument(
        "--norm", choices=("operator", "kernel"), default="operator", help="of the restriction (default operator)"
    )
    preset.add_argument(
        "--profile",
        choices=("paper", "authors"),
        default="paper",
        help="authors: with their differences (default paper)",
    )
    preset.add_argument("--n-steps", type=count, metavar="T", help="time steps (default: the preset's)")
    preset.add_argument("--seed", type=seed, default=0, metavar="S", help="of all random numbers (default 0)")
    folder.add_argument("--data-dir", metavar="DIR", help="folder that holds the data sets' folders")
    data = argparse.ArgumentParser(add_help=False, parents=[folder])
    data.add_argument(
        "--data",
        metavar="DATA",
        help="data set in place of the recipe's: a name, FILE.npz, a folder or module:function",
    )
    return output, threads, preset, folder, data


def count(text: str, least: int = 1) -> int:
    """An option that is a whole number."""
    try:
        n = int(text)
    except ValueError:
        n = least - 1
    if n < least:
        raise argparse.ArgumentTypeError(f"is {text!r}, expected a whole number of at least {least}")
    return n


def seed(text: str) -> int:
    """An option that is a whole number of at least 0."""
    return count(text, 0)


def positive(text: str) -> float:
    """An option that is a positive, finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"is {text!r}, expected a positive number")
    return value


def picture(text: str) -> Path:
    """An option that is the file of a figure."""
    if Path(text).suffix not in (".png", ".svg"):
        raise argparse.ArgumentTypeError(f"is {text!r}; expected a file that ends in .png or .svg")
    return Path(text)


def whole_numbers(option: str, text: str, least: int = 1) -> tuple[int, ...]:
    """An option's list of whole numbers, sorted."""
    try:
        numbers = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        numbers = ()
    if not numbers or numbers[0] < least:
        raise ValueError(f"{option} is {text!r}; expected numbers of {'steps' if least else 'batches'} like 1,10,100")
    return numbers


def as_json(document: dict[str, Any]) -> str:
    """A document in one line."""
    return json.dumps(finite(document), ensure_ascii=False, allow_nan=False)


def print_result(args: argparse.Namespace, document: dict[str, Any], text: str) -> None:
    """The result on stdout: the document with ``--json``, the text without."""
    # A reader that has gone does not change how the command ended.
    with suppress(BrokenPipeError):
        print(as_json(document) if args.json else text)


def tell(text: str) -> None:
    """A line on stderr, if anybody reads that."""
    with suppress(OSError):
        print(text, file=sys.stderr)


def condition(gamma: float) -> str:
    """γ, and (COND) in words."""
    from ide_ref.theory import verdict

    return f"contraction gamma = {gamma:.4f} in operator norms; {verdict(gamma)}"


def load_preset(args: argparse.Namespace, name: str, *, recipe: Literal["paper", "fast"] = "paper") -> Preset:
    """A preset in the form that the options say."""
    from ide_ref import presets

    return presets.load(
        name, neuron=args.neuron, n_steps=args.n_steps, norm=args.norm, profile=args.profile, recipe=recipe
    )


def load_network(args: argparse.Namespace, name: str) -> tuple[Preset, Params]:
    """A preset's freshly drawn parameters, or a checkpoint's."""
    from ide_ref import presets

    # A folder may well be called like a preset.
    if name not in presets.names() and (Path(name).suffix == ".safetensors" or Path(name).exists()):
        from ide_ref.training import checkpoint

        state = checkpoint.load(name)
        return state.preset, state.params
    from ide_ref.training.loop import begin

    preset = load_preset(args, name)
    return preset, begin(preset, args.seed).params
