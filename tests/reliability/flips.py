"""Flip single bits of a checkpoint: ``python tests/reliability/flips.py [--flips 5000] [--seed 0]``.

Half of the bits are of the header, half of the tensors. Each file must be refused by name in one line, or have no
effect on any value; nothing else may be raised.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import tiny

from ide_ref.training import checkpoint, loop


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--flips", type=int, default=5000)
    options.add_argument("--seed", type=int, default=0)
    args = options.parse_args()
    rng = random.Random(args.seed)
    # A file that has lost its digest is not to be read as one that never had any.
    warnings.simplefilter("error")
    failures, refused = [], 0
    with tempfile.TemporaryDirectory() as work:
        # Within an epoch, so that every field has content.
        stop = loop.train(
            tiny.preset(), tiny.data(), out=work, callback=lambda state, _: state.epoch and state.step == 2
        )
        path = Path(work, loop.CHECKPOINT)
        data, whole = path.read_bytes(), checkpoint.load(path)
        assert whole.history == stop.checkpoint.history != ()
        start = 8 + int.from_bytes(data[:8], "little")
        for flip in range(args.flips):
            place = rng.randrange(start) if flip % 2 else rng.randrange(start, len(data))
            bit = rng.randrange(8)
            flipped = bytearray(data)
            flipped[place] ^= 1 << bit
            path.write_bytes(flipped)
            try:
                state = checkpoint.load(path)
            except checkpoint.CheckpointError as error:
                refused += 1
                if "\n" in str(error) or not str(error).startswith(str(path)):
                    failures.append(f"byte {place}, bit {bit}: {error}")
            except Exception as error:
                failures.append(f"byte {place}, bit {bit}: {error!r}")
            else:
                plain = (replace(s, params={}, velocity={}) for s in (state, whole))
                arrays = ((state.params, whole.params), (state.velocity, whole.velocity))
                if not (len({repr(s) for s in plain}) == 1 and all(tiny.same(*pair) for pair in arrays)):
                    failures.append(f"byte {place}, bit {bit}: other values were accepted")
    print("\n".join(failures), end="\n" if failures else "")
    print(
        f"{args.flips} flips: {refused} refused, {args.flips - refused - len(failures)} without effect, "
        f"{len(failures)} failures"
    )
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
