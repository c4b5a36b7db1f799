"""Numba kernels: typed arrays in, output arrays overwritten.

Nothing here checks or raises; the public module that calls a kernel has converted, checked and
allocated. Every kernel is parallel over samples, and a sample's result never depends on how many
samples, or threads, run beside it.
"""

from pathlib import Path


def _forget_stale(folder: Path) -> None:
    """Delete the indices of compiled kernels that are older than any kernel's source.

    Numba compiles a kernel anew when its own file has changed, and not when a file has from which it calls: after an
    update of the sources in place, it would go on with the old code of the latter.
    """
    newest = max((path.stat().st_mtime for path in folder.glob("*.py")), default=0.0)
    for index in (folder / "__pycache__").glob("*.nbi"):
        try:
            if index.stat().st_mtime < newest:
                index.unlink()
        except OSError:
            # Another process was quicker, or the folder is not ours to change.
            continue


_forget_stale(Path(__file__).parent)
