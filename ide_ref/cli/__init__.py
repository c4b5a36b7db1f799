"""The command ``ide-ref``.

Progress and logs go to stderr, results to stdout; ``--json`` prints one JSON document and nothing else there.
Exit status: 0 success, 1 a check failed, 2 wrong use, with one line saying what and what to do; 130 interrupted, 141
the reader of stdout went before all was said, as a shell has it.

A command is a module: ``add`` gives its parser the options, ``run`` does the work and returns the status.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType
from typing import Any, TextIO

from ide_ref.cli import _common, bench, conformance, data, equilibrium, evaluate, gradcheck, info, measure, sweep, train

FAILED, WRONG_USE, INTERRUPTED, BROKEN_PIPE = 1, 2, 130, 141


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> None:  # type: ignore[override]
        self.exit(WRONG_USE, f"{self.prog}: {' '.join(message.split())} (see {self.prog} --help)\n")


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
        (sweep, [output, datasets], "presets trained over seeds, neurons, solvers and recipes, several at a time"),
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
    # A stream that was closed leads nowhere; else the next file to be opened would take its number, and its text.
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        # A name of a file need not be UTF-8.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    args = parser().parse_args(argv)
    args.words = list(sys.argv[1:] if argv is None else argv)
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: _common.tell(f"ide-ref {args.command}: {message}")
        status = _status(args)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of our output has gone; there is no one to tell.
        _drop(sys.stdout)
    except OSError as error:
        _drop(sys.stdout)
        status = _fail(args.command, f"standard output: {error.strerror}; give another place or make room there")
    try:
        sys.stderr.flush()
    except OSError:
        _drop(sys.stderr)
    return status


def _status(args: argparse.Namespace) -> int:
    """Of a command that is run; says what went wrong."""
    try:
        if getattr(args, "threads", None) is not None:
            if "numpy" not in sys.modules:
                # They read it when they are loaded. More threads than were asked for spin: where somebody else works,
                # the singular values of fashion-mnist-400 then take 0.6 s in place of 0.02 s.
                for library in ("OPENBLAS", "MKL"):
                    os.environ.setdefault(f"{library}_NUM_THREADS", str(args.threads))
            import numba

            most = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
            if args.threads > most:
                raise ValueError(f"--threads is {args.threads}; expected at most {most}")
            numba.set_num_threads(args.threads)
        return int(args.run(args))
    except BrokenPipeError:
        return BROKEN_PIPE
    except KeyboardInterrupt:
        return _fail(args.command, "interrupted", INTERRUPTED)
    except ModuleNotFoundError as error:
        return _fail(args.command, f"{error.name} is not installed; {_common.INSTALL}")
    except ValueError as error:
        return _fail(args.command, str(error))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(args.command, f"{where}{error.strerror or error}; give another place or make room there")
    except MemoryError as error:
        advice = "fewer --n-steps, a smaller --batch-size or --limit take less"
        return _fail(args.command, f"the memory is too small ({error or 'no more is given'}); {advice}")
    except RuntimeError as error:
        return _fail(args.command, str(error), FAILED)


def _drop(stream: TextIO) -> None:
    """Send to nowhere what a stream still holds, which Python would try to write once more at its end."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


def _fail(command: str, message: str, status: int = WRONG_USE) -> int:
    _common.tell(f"ide-ref {command}: {' '.join(message.split())}")
    return status
