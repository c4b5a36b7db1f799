"""Cases that the tests of conformance packs take, and what a forger of a pack would do."""

import hashlib

ONE = "alexnet-f-lif-static-float64-bn"
SPIKES = "nmnist-64c5-lif-spikes-float32-plain"
DROPOUT = "fashion-mnist-400-lif-static-float64-bn-dropout"


def seal(copy):
    """New digests for an altered pack: what a forger would do."""
    files = sorted(path for path in copy.iterdir() if path.name != "SHA256SUMS")
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files]
    (copy / "SHA256SUMS").write_text("".join(sums))
