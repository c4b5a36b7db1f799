"""``ide-ref conformance``: test vectors for ports, and the first wrong number of a port's outputs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ide_ref.cli import _common

if TYPE_CHECKING:
    from ide_ref.verify.conformance import ConformanceReport


def add(p: argparse.ArgumentParser) -> None:
    output, threads, *_ = _common.option_groups()
    actions = p.add_subparsers(dest="action", metavar="make|make-trained|compare|run", required=True)

    p = actions.add_parser("make", parents=[output, threads], help="write small cases with every stage's output")
    p.add_argument("directory", metavar="DIR")
    p.add_argument("--case", action="append", metavar="NAME", help="only this case (may be given again)")

    p = actions.add_parser(
        "make-trained", parents=[output, threads], help="write one case of full size: a trained network"
    )
    p.add_argument("checkpoint", metavar="CHECKPOINT", help="a file, or the folder of a training")
    p.add_argument("directory", metavar="DIR")
    p.add_argument("--images", type=_common.count, default=1000, metavar="N", help="test images (default: 1,000)")

    p = actions.add_parser("compare", parents=[output], help="name the first divergence of a port's outputs")
    p.add_argument("directory", metavar="DIR", help="the pack")
    p.add_argument("outputs", metavar="OUTPUTS", help="folder with CASE.safetensors, tensors named STAGE/NAME")
    p.add_argument("--stage", action="append", metavar="STAGE", help="only this stage (may be given again)")
    p.add_argument("--badge", metavar="FILE", help="write a badge, an SVG")

    p = actions.add_parser("run", parents=[output, threads], help="ask a port that is a program, a case a line")
    p.add_argument("program", nargs="+", metavar="COMMAND", help="after --: the program and its arguments")
    p.add_argument("--pack", metavar="DIR", help="the pack (default: made on the spot)")
    p.add_argument(
        "--form",
        choices=("json", "words", "files"),
        default="json",
        help="lines of JSON with arrays as base64 (the default), lines of plain words, or JSON that names files",
    )
    p.add_argument(
        "--include", action="append", default=[], metavar="GLOB", help="only cases of such names, tags, groups"
    )
    p.add_argument(
        "--exclude", action="append", default=[], metavar="GLOB", help="no cases of such names, tags, groups"
    )
    p.add_argument("--stage", action="append", metavar="STAGE", help="only this stage (may be given again)")
    p.add_argument(
        "--timeout", type=_common.positive, default=10.0, metavar="S", help="seconds for an answer (default: 10)"
    )
    p.add_argument("--badge", metavar="FILE", help="write a badge, an SVG")


def run(args: argparse.Namespace) -> int:
    return {"make": make, "make-trained": make, "compare": compare, "run": ask}[args.action](args)


def make(args: argparse.Namespace) -> int:
    from ide_ref.verify import conformance

    if args.action == "make":
        manifest = conformance.make(args.directory, names=args.case)
    else:
        manifest = conformance.make_trained(args.checkpoint, args.directory, n_images=args.images)
    files = list(manifest.parent.glob("*.safetensors"))
    size = manifest.stat().st_size + sum(path.stat().st_size for path in files)
    version, stages = conformance.VERSION, conformance.STAGES
    document = {"manifest": str(manifest), "cases": len(files), "bytes": size, "version": version, "stages": stages}
    text = f"{len(files)} case{'s' * (len(files) != 1)}, {size / 1e6:.1f} MB, format version {version}: {manifest}"
    _common.print_result(args, document, text)
    return 0


def compare(args: argparse.Namespace) -> int:
    """``ide-ref conformance compare``: exit status 1 where a case diverges."""
    from ide_ref.verify import conformance

    return _judged(args, conformance.compare(args.directory, args.outputs, stages=args.stage))


def ask(args: argparse.Namespace) -> int:
    """``ide-ref conformance run``: exit status 1 where a case diverges."""
    from ide_ref.verify import conformance

    cases = conformance.selected(conformance.taken(args.pack, None), args.include, args.exclude)
    report = conformance.run_command(args.program, cases, form=args.form, timeout=args.timeout, stages=args.stage)
    return _judged(args, report)


def _judged(args: argparse.Namespace, report: ConformanceReport) -> int:
    if args.badge:
        Path(args.badge).write_text(report.badge())
    _common.print_result(args, report.to_dict(), f"{report.table()}\n{report.coverage()}")
    return 0 if report.passed else 1
