"""``ide-ref data``: which data sets were found, and how to get the others."""

from __future__ import annotations

import argparse

from ide_ref.cli import _common


def add(p: argparse.ArgumentParser) -> None:
    p.add_argument("--download", metavar="NAME", help="fetch a data set from its published address")


def run(args: argparse.Namespace) -> int:
    from ide_ref.datasets import fetch, status

    if args.download:
        _common.tell(f"{args.download}: in {fetch(args.download, progress=True)}")
    found = status(data_dir=args.data_dir)
    document = {
        s.info.name: {
            "title": s.info.title,
            "found": s.found,
            "path": str(s.path) if s.path else None,
            "train": s.n_train,
            "test": s.n_test,
            "problem": s.problem,
            "how_to_get": s.info.how_to_get,
            "licence": s.info.licence,
        }
        for s in found
    }
    lines = []
    for s in found:
        state, told = ("unusable", s.problem) if s.problem else ("missing", s.info.how_to_get)
        if s.found:
            state, told = "found", f"{s.n_train:,} + {s.n_test:,} in {s.path}"
        lines += [f"{s.info.name:<14} {state:<8} {told}", f"{'':<14} {s.info.title}; {s.info.licence}"]
    _common.print_result(args, document, "\n".join(lines))
    return 0
