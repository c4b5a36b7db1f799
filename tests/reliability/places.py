"""Train where it is hard to: ``python tests/reliability/places.py`` (Linux, with ``unshare``; takes minutes).

Full disks and inodes, file systems that are read-only, folders that vanish, too little memory, homes and installs
that cannot be written, an empty and a broken cache of compiled code, two processes that compile at once. The mounts are
in a name space of their own. Each line says whether a training there ended as it should.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]

TRAIN = f"""
import sys
sys.path.insert(0, {str(HERE.parent)!r})
import tiny
from ide_ref import figures, presets
from ide_ref.cli import main
figures.training_curves = lambda *_, **__: None
presets._TABLE["tiny"] = tiny.preset(epochs=15, limit=320, batch_size=8)
sys.exit(main(sys.argv[1:]))
"""
WORDS = ("train", "tiny", "--save-every", "0.05", "--out")


def started(*words: str | Path, limit: int | None = None, package: Path = ROOT, **environment: str) -> subprocess.Popen:
    """A command of ``ide-ref`` in a process of its own, which may take so many bytes."""
    return subprocess.Popen(
        [sys.executable, "-c", TRAIN, *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(package), "NUMBA_NUM_THREADS": "1", **environment},
        cwd="/",
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=None if limit is None else lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )


def ended(process: subprocess.Popen) -> tuple[int, str]:
    """Status and what was said besides the lines of epochs, and that it compiles."""
    log = process.communicate(timeout=600)[1]
    quiet = ("epoch ", "the first batch also compiles")
    return process.returncode, "\n".join(line for line in log.splitlines() if line and not line.startswith(quiet))


def expect(what: str, holds: bool, said: str) -> bool:
    print(f"{'ok    ' if holds else 'FAILED'}  {what}" + (f": {said}" if said else ""), flush=True)
    return holds


def mount(folder: Path, *options: str) -> None:
    subprocess.run(["mount", *options, str(folder)], check=True)


def weights(folder: Path) -> bytes:
    """Of a training that has ended."""
    from ide_ref.training import checkpoint

    state = checkpoint.load(folder)
    return b"".join(state.params[name].tobytes() for name in sorted(state.params))


def meets(folder: Path, begin: Callable[[], object], end: Callable[[], object] | None) -> tuple[int, str]:
    """A training during which something begins, and ends once it was noticed, if it does."""
    process = started(*WORDS, folder)
    while not (folder / "metrics.jsonl").is_file() or not (folder / "metrics.jsonl").read_text():
        time.sleep(0.01)
    begin()
    line = ""
    while end is not None and "make room there" not in line and process.poll() is None:
        line = process.stderr.readline()
    if end is not None:
        end()
    status, said = ended(process)
    return status, line.strip() or said


def main() -> int:
    sys.path.insert(0, str(ROOT))
    work = Path(tempfile.mkdtemp())
    good = []
    assert ended(started(*WORDS, work / "whole"))[0] == 0
    whole = weights(work / "whole")

    def fill_bytes(disk: Path) -> None:
        with open(disk / "fill", "wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(1024))
            except OSError:
                pass

    def fill_inodes(disk: Path) -> None:
        (disk / "many").mkdir()
        try:
            for n in range(10**6):
                (disk / "many" / str(n)).touch()
        except OSError:
            pass

    def empty(disk: Path) -> None:
        (disk / "fill").unlink(missing_ok=True)
        shutil.rmtree(disk / "many", ignore_errors=True)

    for name, begin in (("a disk that is full", fill_bytes), ("a disk without inodes", fill_inodes)):
        disk = work / name.replace(" ", "-")
        disk.mkdir()
        mount(disk, "-t", "tmpfs", "-o", "size=1m,nr_inodes=200", "tmpfs")
        filled, emptied = partial(begin, disk), partial(empty, disk)
        status, said = meets(disk / "a", filled, emptied)
        good.append(expect(f"{name} for a while", status == 0 and weights(disk / "a") == whole, said))
        status, said = meets(disk / "b", filled, None)
        emptied()
        holds = status == 2 and "Traceback" not in said
        holds &= ended(started("train", "--resume", "--out", disk / "b"))[0] == 0 and weights(disk / "b") == whole
        good.append(expect(f"{name} to the end, then resumed", holds, said))
        filled()
        status, said = ended(started(*WORDS, disk / "c"))
        good.append(expect(f"{name} from the start", status == 2 and len(said.splitlines()) == 1, said))
        subprocess.run(["umount", "-l", str(disk)], check=True)
    status, said = meets(work / "gone", lambda: (work / "gone").rename(work / "else"), None)
    good.append(expect("a folder that vanishes", status == 2 and "Traceback" not in said, said))

    said = ended(started("train", "tiny", "--n-steps", "1000000000", "--out", work / "large", limit=6 << 30))[1]
    told = "the memory is too small" in said and len(said.splitlines()) == 1
    good.append(expect("less memory than it takes", told and not list((work / "large").iterdir()), said))

    cache = work / "cache"
    both = [started(*WORDS, work / f"both{n}", NUMBA_CACHE_DIR=str(cache)) for n in range(2)]
    ends = [ended(process)[0] for process in both]
    same = all(weights(work / f"both{n}") == whole for n in range(2))
    good.append(expect("two processes that compile at once into an empty cache", ends == [0, 0] and same, ""))
    for path in cache.rglob("*.nb?"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    status, _ = ended(started(*WORDS, work / "broken", NUMBA_CACHE_DIR=str(cache)))
    good.append(
        expect("a cache whose files are all cut in half", status == 0 and weights(work / "broken") == whole, "")
    )

    # The install of another owner, and a home that cannot be written: both on a disk that is read-only.
    disk = work / "disk"
    disk.mkdir()
    mount(disk, "-t", "tmpfs", "tmpfs")
    shutil.copytree(ROOT / "ide_ref", disk / "ide_ref", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(work / "whole", disk / "whole")
    mount(disk, "-o", "remount,ro")
    for words in ((*WORDS, disk / "new"), ("train", "--resume", "--out", disk / "whole")):
        status, said = ended(started(*words))
        holds = status == 2 and said.endswith("Read-only file system; give another place or make room there")
        good.append(expect("a disk that is read-only", holds and len(said.splitlines()) == 1, said))
    homeless = {
        "HOME": str(disk),
        "XDG_CACHE_HOME": str(disk),
        "MPLCONFIGDIR": str(work),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    for words in (
        ("info", "tiny"),
        (*WORDS, work / "homeless"),
        ("evaluate", work / "whole", "--limit", "20"),
        ("gradcheck", "tiny", "--samples", "1", "--coordinates", "1", "--directions", "1"),
        ("equilibrium", work / "whole", "--samples", "1", "--n-steps", "2", "--out", work / "figure"),
    ):
        status, said = ended(started(*words, package=disk, **homeless))
        holds = status == 0 and "compiled kernels cannot be kept" in said
        good.append(expect(f"{words[0]} where nothing compiled can be kept", holds, said))
    shutil.rmtree(work, ignore_errors=True)
    print(f"{sum(good)} of {len(good)} as they should be")
    return not all(good)


if __name__ == "__main__":
    if "--inside" not in sys.argv:
        os.execvp("unshare", ["unshare", "-rm", sys.executable, __file__, "--inside"])
    sys.exit(main())
