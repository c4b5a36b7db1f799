"""``ide-ref conformance``: test vectors for ports, and the first wrong number of a port's outputs."""

from __future__ import annotations

import argparse

from ide_ref.cli import _common


def add(p: argparse.ArgumentParser) -> None:
    output, threads, *_ = _common.option_groups()
    actions = p.add_subparsers(dest="action", metavar="make|compare", required=True)

    p = actions.add_parser("make", parents=[output, threads], help="write small cases with every stage's output")
    p.add_argument("directory", metavar="DIR")
    p.add_argument("--case", action="append", metavar="NAME", help="only this case (may be given again)")

    p = actions.add_parser("compare", parents=[output], help="name the first divergence of a port's outputs")
    p.add_argument("directory", metavar="DIR", help="the pack")
    p.add_argument("outputs", metavar="OUTPUTS", help="folder with CASE.safetensors, tensors named STAGE/NAME")
    p.add_argument("--stage", action="append", metavar="STAGE", help="only this stage (may be given again)")


def run(args: argparse.Namespace) -> int:
    return make(args) if args.action == "make" else compare(args)


def make(args: argparse.Namespace) -> int:
    from ide_ref.verify import conformance

    manifest = conformance.make(args.directory, names=args.case)
    files = list(manifest.parent.glob("*.safetensors"))
    size = manifest.stat().st_size + sum(path.stat().st_size for path in files)
    version, stages = conformance.VERSION, conformance.STAGES
    document = {"manifest": str(manifest), "cases": len(files), "bytes": size, "version": version, "stages": stages}
    text = f"{len(files)} cases, {size / 1e6:.1f} MB, schema version {version}: {manifest}"
    _common.print_result(args, document, text)
    return 0


def compare(args: argparse.Namespace) -> int:
    """``ide-ref conformance compare``: exit status 1 where a case diverges."""
    from ide_ref.verify import conformance

    report = conformance.compare(args.directory, args.outputs, stages=args.stage)
    _common.print_result(args, report.to_dict(), report.table())
    return 0 if report.passed else 1
