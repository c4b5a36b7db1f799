"""The command ``ide-ref``.

Progress and logs go to stderr, results to stdout; ``--json`` prints one JSON document and nothing else there.
Exit status: 0 success, 1 a check failed, 2 wrong use, with one line saying what and what to do.

A command is a module: ``add`` gives its parser the options, ``run`` does the work and returns the status.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from ide_ref.cli import _common, bench, conformance, data, equilibrium, evaluate, gradcheck, info, measure, train

FAILED, WRONG_USE, INTERRUPTED = 1, 2, 130


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> None:  # type: ignore[override]
        self.exit(WRONG_USE, f"{self.prog}: {message} (see {self.prog} --help)\n")


def parser() -> argparse.ArgumentParser:
    """The command line, without anything heavy imported."""
    from ide_ref import __version__

    top = _Parser(
        prog="ide-ref",
        description="Feedback spiking networks trained by implicit differentiation.",
        epilog=f"Presets: {', '.join(_common.PRESETS)}. Each command has its own --help.",
    )
    top.add_argument("--version", action="version", version=f"ide-ref {__version__}")
    sub = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    output, threads, preset, folder, datasets = _common.option_groups()
    commands: tuple[tuple[ModuleType, list[Any], str], ...] = (
        (info, [output, threads, preset], "structure, sizes and norms of a network, initialised or trained"),
        (train, [output, threads, preset, datasets], "train a preset, or a structure on data of your own"),
        (evaluate, [output, threads, datasets], "accuracy, firing rates, distance to equilibrium"),
        (equilibrium, [output, threads, datasets], "distance from the equilibrium over time, and its bound"),
        (gradcheck, [output, threads, preset, datasets], "implicit gradient against differences"),
        (conformance, [], "test vectors for ports to other hardware, and what a port made of them"),
        (measure, [], "memory over T, firing rates and energy, angles between gradients"),
        (bench, [output, preset, datasets], "step times by stage, against the dense-equivalent"),
        (data, [output, folder], "which data sets were found, and how to get the others"),
    )
    for command, parents, says in commands:
        name = command.__name__.rpartition(".")[2]
        p = sub.add_parser(name, parents=parents, help=says, description=f"{says}.", epilog=top.epilog)
        p.set_defaults(run=command.run)
        command.add(p)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    args = parser().parse_args(argv)
    args.words = list(sys.argv[1:] if argv is None else argv)
    try:
        if getattr(args, "threads", None) is not None:
            import numba

            most = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
            if args.threads > most:
                raise ValueError(f"--threads is {args.threads}; expected at most {most}")
            numba.set_num_threads(args.threads)
        status = int(args.run(args))
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # The reader of our output has gone; there is no one to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return _fail(args.command, "interrupted", INTERRUPTED)
    except ModuleNotFoundError as error:
        return _fail(args.command, f"{error.name} is not installed; {_common.INSTALL}")
    except ValueError as error:
        return _fail(args.command, str(error))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(args.command, f"{where}{error.strerror or error}; give another place or make room there")
    except RuntimeError as error:
        return _fail(args.command, str(error), FAILED)


def _fail(command: str, message: str, status: int = WRONG_USE) -> int:
    print(f"ide-ref {command}: {' '.join(message.split())}", file=sys.stderr)
    return status
