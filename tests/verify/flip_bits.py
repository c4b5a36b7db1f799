"""Single-bit flips over a conformance pack, each of which has to be refused.

python tests/verify/flip_bits.py --number 5000
"""

import argparse
import random
import shutil
import sys
import tempfile
from pathlib import Path

from ide_ref.verify import conformance


def flip_bits(pack, number, *, seed):
    """How many of so many flips were refused; the bits are drawn from all files alike, each for itself."""
    draw = random.Random(seed)
    refused = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(pack, Path(folder) / "pack"))
        files = sorted(copy.iterdir())
        for i in range(number):
            # Digests and manifest in half of them: they are small beside the arrays.
            special = [copy / "manifest.json", copy / "SHA256SUMS"]
            path = draw.choice(files) if i % 2 else draw.choice(special)
            right = path.read_bytes()
            wrong = bytearray(right)
            place = draw.randrange(8 * len(wrong))
            wrong[place // 8] ^= 1 << place % 8
            path.write_bytes(wrong)
            try:
                conformance.load(copy)
            except conformance.PackError:
                refused += 1
            else:
                print(f"believed: {path.name}, bit {place}", file=sys.stderr)
            path.write_bytes(right)
    return refused


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--number", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        names = [config["name"] for config in conformance.pack.configs()][::9]
        conformance.make(folder, names=names)
        refused = flip_bits(folder, args.number, seed=args.seed)
    print(f"{refused} of {args.number} single-bit flips over a pack of {len(names)} cases refused")
    return int(refused < args.number)


if __name__ == "__main__":
    sys.exit(main())
