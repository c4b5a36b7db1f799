"""Coverage-guided fuzzing of one reader or all, by atheris (``pip install atheris``).

python tests/fuzz/fuzz.py --seconds 600                 # each reader in turn
python tests/fuzz/fuzz.py idx events --seconds 120

A file that fails ends its reader's search, is written to ``--out`` and belongs into ``corpus/READER/``. The
interesting inputs of a search are kept in ``--out`` and the next one begins with them. Exit status 1 where any failed.
"""

import argparse
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

from ide_ref import _kernels

HERE = Path(__file__).parent
NAMES = ["idx", "cifar", "events", "own", "checkpoint", "metadata", "manifest", "case", "sums", "outputs"]
NAMES += ["structure", "command"]


def search(name, seconds, out):
    """Search in this process, which ends with it."""
    import atheris

    sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "verify")]
    # Kernels are compiled from bytecode, which instrumentation changes: imported before it begins.
    for module in pkgutil.iter_modules(_kernels.__path__, "ide_ref._kernels."):
        importlib.import_module(module.name)
    with atheris.instrument_imports(include=["ide_ref"]):
        from readers import READERS, judge
    reader = READERS[name]
    found = out / name
    found.mkdir(parents=True, exist_ok=True)
    for i, seed in enumerate(reader.seeds()):
        (found / f"seed-{i}").write_bytes(seed)
        # Whatever is compiled or imported late is no part of the first file's memory.
        judge(reader, seed)
    corpus = HERE / "corpus" / name
    places = [str(found), *([str(corpus)] if corpus.is_dir() else [])]
    options = [f"-max_total_time={seconds}", "-timeout=10", "-rss_limit_mb=4096", "-max_len=20000", "-verbosity=0"]
    options += ["-print_final_stats=1", f"-artifact_prefix={out}/{name}-"]
    atheris.Setup([sys.argv[0], *places, *options], lambda data: judge(reader, data))
    atheris.Fuzz()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("readers", nargs="*", metavar="READER", help=f"of {', '.join(NAMES)} (default: all)")
    parser.add_argument("--seconds", type=int, default=600, help="for each reader (default 600)")
    parser.add_argument("--out", type=Path, default=Path("fuzz-out"))
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    if args.here:
        search(args.readers[0], args.seconds, out)
    failed = []
    for name in args.readers or NAMES:
        # The engine ends its process: a process for each reader.
        words = [sys.executable, __file__, name, "--here", f"--seconds={args.seconds}", f"--out={out}"]
        with open(out / f"{name}.log", "w") as log:
            status = subprocess.run(words, stdout=log, stderr=log).returncode
        text = (out / f"{name}.log").read_text(errors="replace")
        counts = [line.split()[-1] for line in text.splitlines() if "number_of_executed_units" in line]
        print(f"{name:<12} {counts[0] if counts else '?'} files, {'FAILED' if status else 'none failed'}", flush=True)
        if status:
            failed.append(name)
            print(f"  see {out / name}.log", flush=True)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
