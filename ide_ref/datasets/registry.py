"""The data sets by name: where they are looked for, how they are read, and where they come from.

Folders are searched in this order: the ``data_dir`` argument, the environment variable ``IDE_REF_DATA``,
``/usr/share/datasets``, the user's cache (which :func:`fetch` fills). Below each of these roots a data
set has a folder of its own name:

==============  =====================================================================================
mnist,          the four IDX files ``{train,t10k}-{images-idx3,labels-idx1}-ubyte``, plain or ``.gz``
fashion-mnist
cifar10         ``data_batch_1.bin`` to ``data_batch_5.bin`` and ``test_batch.bin``, there or in
                ``cifar-10-batches-bin``
cifar100        ``train.bin`` and ``test.bin``, there or in ``cifar-100-binary``
nmnist          ``Train/0`` to ``Train/9`` and ``Test/0`` to ``Test/9`` with one ``.bin`` a recording
==============  =====================================================================================

A root that itself has the data set's name, or that of the folder in its archive, is taken for the data
set's folder.

Source: publisher, licence and digests of each set in ``docs/data.md``.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ide_ref import _checks
from ide_ref.datasets.cifar import check_size, read_cifar10, read_cifar100
from ide_ref.datasets.dataset import SPLITS, Dataset
from ide_ref.datasets.errors import DataError, damaged, unreadable
from ide_ref.datasets.events import EventFrames, find_recordings
from ide_ref.datasets.files import is_own, read_own
from ide_ref.datasets.idx import idx_shape, read_idx
from ide_ref.datasets.synthetic import SYNTHETIC_NOTICE

_SYSTEM_ROOT = Path("/usr/share/datasets")
_EMBEDDED = Path(__file__).parent / "data"
_Images = tuple[NDArray[np.uint8], NDArray[np.int64]]


@dataclass(frozen=True)
class Download:
    """One published file."""

    address: str
    digest: str
    """``"sha256:..."``, or ``"md5:..."`` where its publisher gives nothing stronger."""
    file: str
    """Name under which it is kept; ``.tar.gz`` and ``.zip`` are unpacked beside it."""


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a data set without reading it."""

    name: str
    title: str
    form: Literal["idx", "cifar10", "cifar100", "events"]
    """Format of its files."""
    input_shape: tuple[int, ...]
    """(channels, rows, columns) of one image or one frame."""
    n_classes: int
    scale: float
    """Pixel value that stands for 1."""
    licence: str
    notice: str
    """Whom to credit."""
    homepage: str
    inner: str = ""
    """Folder that the published archive unpacks to, empty if none."""
    debian: str = ""
    """Debian package that installs it, empty if none."""
    downloads: tuple[Download, ...] = ()

    @property
    def how_to_get(self) -> str:
        """One line for those who do not have it."""
        if not self.downloads:
            return "comes with ide_ref"
        ways = [f"run `ide-ref data --download {self.name}`"]
        if self.debian:
            ways.append(f"install Debian's package {self.debian}")
        where = f"the files of {self.homepage} into a folder {self.name}/ below IDE_REF_DATA or --data-dir"
        return f"{', or '.join(ways)}, or put {where}"


def _read_infos() -> MappingProxyType[str, DatasetInfo]:
    infos = {}
    for row in json.loads((_EMBEDDED / "sets.json").read_text(encoding="utf-8")):
        downloads = tuple(Download(**item) for item in row.pop("downloads", ()))
        infos[row["name"]] = DatasetInfo(**{**row, "input_shape": tuple(row["input_shape"])}, downloads=downloads)
    return MappingProxyType(infos)


# Where the digests are published. MNIST: ankane/torchvision-ruby, mnist.rb. Fashion-MNIST: FluxML/Flux.jl,
# src/data/fashion-mnist.jl. CIFAR-10: ankane/torchvision-ruby, cifar10.rb. CIFAR-100: JuliaML/MLDatasets.jl,
# cifar100.jl. N-MNIST: only an MD5 is published (neuromorphs/tonic, nmnist.py), so only that is checked.
# MNIST's home page refuses downloads; its address is PyTorch's copy of the original files.
DATASETS: MappingProxyType[str, DatasetInfo] = _read_infos()


@dataclass(frozen=True)
class Status:
    """Whether a data set was found."""

    info: DatasetInfo
    path: Path | None
    """Its folder, ``None`` where there is none."""
    n_train: int
    """Items that its files announce, 0 where not found."""
    n_test: int
    problem: str
    """One line if its folder is there but cannot be used, otherwise empty."""

    @property
    def found(self) -> bool:
        """It is there and looks usable."""
        return self.path is not None and not self.problem


def load(
    name: str,
    *,
    data_dir: str | Path | None = None,
    limit: int | None = None,
    n_frames: int | None = None,
    cache: bool = True,
    download: bool = False,
) -> Dataset:
    """Read a data set.

    Parameters
    ----------
    name : str
        A key of :data:`DATASETS`; or one's own, see :func:`~ide_ref.datasets.read_own`: a file ``.npz``, a folder of
        files ``.npy``, or ``module:function``.
    data_dir : path, optional
        First root to search, see the module's text for the others.
    limit : int, optional
        Only the first so many items of each split.
    n_frames : int, optional
        T of the spike trains, for event data alone; 30 by default. The recordings are binned to
        binary frames as in :func:`~ide_ref.datasets.bin_events`. One's own trains have their length.
    cache : bool
        Keep binned recordings in memory, packed to bits. Without it, each batch reads its files.
    download : bool
        :func:`fetch` the data set if it is nowhere.

    Raises
    ------
    ValueError
        ``limit`` or ``n_frames`` below 1, ``n_frames`` for still images or other than that of one's own trains.
    DataError
        Unknown name, nothing found, or damaged files: one line that says what to do.
    """
    for argument, number in (("limit", limit), ("n_frames", n_frames)):
        if number is not None:
            _checks.whole(argument, number)
    if isinstance(name, str) and name not in DATASETS and is_own(name):
        own = read_own(name)
        if n_frames not in (None, own.n_frames):
            holds = f"trains of {own.n_frames} steps" if own.spikes else "constant inputs"
            raise ValueError(f"n_frames is {n_frames}, but {name} holds {holds}; leave it out")
        return own if limit is None else own.first(limit)
    info = _info(name)
    if n_frames is not None and info.form != "events":
        raise ValueError(f"n_frames is {n_frames}, but {name} holds still images; leave it out")
    folder, problem = _find(info, data_dir)
    if download and (folder is None or problem):
        folder, problem = fetch(name), ""
    if folder is None:
        roots = ", ".join(map(str, _roots(data_dir)))
        raise DataError(f"{name} was not found below {roots}; {info.how_to_get}")
    if problem:
        raise DataError(problem)
    parts: dict[str, tuple[NDArray[np.uint8] | EventFrames, NDArray[np.int64]]] = {}
    for split in SPLITS:
        if info.form == "events":
            paths, y = find_recordings(folder, split)
            frames = EventFrames(paths[:limit], 30 if n_frames is None else n_frames)
            parts[split] = (frames.cached() if cache else frames), y[:limit].copy()
        elif info.form == "idx":
            parts[split] = _read_idx(info, folder, split, limit)
        else:
            parts[split] = _read_cifar(info, folder, split, limit)
        parts[split][1].flags.writeable = False
    synthetic = folder / SYNTHETIC_NOTICE
    notice = synthetic.read_text(encoding="utf-8").strip() if synthetic.is_file() else info.notice
    spikes = info.form == "events"
    return Dataset(name, *parts["train"], *parts["test"], info.n_classes, info.scale, folder, notice, spikes)


def status(*, data_dir: str | Path | None = None) -> tuple[Status, ...]:
    """For each data set: whether and where it is, from ``data_dir`` on as in :func:`load`, and its number of items.

    Reads headers and sizes, and counts files; damage further inside shows when it is loaded.
    """
    found = []
    for info in DATASETS.values():
        path, problem = _find(info, data_dir)
        n_train = n_test = 0
        if path is not None and not problem:
            try:
                n_train, n_test = (_count(info, path, split) for split in SPLITS)
            except DataError as error:
                problem = str(error)
            except OSError as error:
                problem = str(unreadable(error))
        found.append(Status(info, path, n_train, n_test, problem))
    return tuple(found)


def fetch(name: str, *, cache_dir: str | Path | None = None, progress: bool = False) -> Path:
    """Download a data set from its canonical address into the user's cache, checking every digest; returns its folder.

    Parameters
    ----------
    cache_dir : path, optional
        Root to use in place of the user's cache.
    progress : bool
        Show a progress bar on stderr (needs tqdm).

    Raises
    ------
    DataError
        Unknown name, pooch is not installed, no connection, or a file with another digest.
    """
    info = _info(name)
    if not info.downloads:
        return _EMBEDDED
    try:
        import pooch
    except ImportError:
        raise DataError(f"downloading {name} needs pooch, which is missing; pip install pooch") from None
    folder = (Path(cache_dir) if cache_dir is not None else Path(pooch.os_cache("ide_ref"))) / name
    for item in info.downloads:
        # Unpacked aside and moved when complete, so that an interruption leaves nothing that looks whole.
        aside = folder / f".{item.file}.partial"
        unpack = None
        if item.file.endswith((".tar.gz", ".zip")):
            unpack = (pooch.Unzip if item.file.endswith(".zip") else pooch.Untar)(extract_dir=aside.name)
        try:
            shutil.rmtree(aside, ignore_errors=True)
            pooch.retrieve(item.address, item.digest, item.file, folder, processor=unpack, progressbar=progress)
            for part in aside.iterdir() if unpack else ():
                shutil.rmtree(folder / part.name, ignore_errors=True)
                part.rename(folder / part.name)
        except (OSError, ValueError) as error:
            failed = f"{item.address} could not be downloaded ({' '.join(str(error).split())})"
            remedy = f"check the connection, or put the files of {info.homepage} into {folder}"
            raise DataError(f"{name}: {failed}; {remedy}") from None
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return next((place for place in _places(info, folder.parent) if not _missing(info, place)), folder)


def _info(name: str) -> DatasetInfo:
    if not _checks.is_one_of(name, DATASETS):
        own = "one's own as NAME.npz, a folder of .npy files or module:function"
        raise DataError(f"name is {name!r}, expected a data set: {', '.join(DATASETS)}; or {own}")
    return DATASETS[name]


def _roots(data_dir: str | Path | None) -> Iterator[Path]:
    if data_dir is not None:
        yield _checks.path("data_dir", data_dir)
    if os.environ.get("IDE_REF_DATA"):
        yield Path(os.environ["IDE_REF_DATA"])
    yield _SYSTEM_ROOT
    try:
        import pooch
    except ImportError:
        return
    yield Path(pooch.os_cache("ide_ref"))


def _places(info: DatasetInfo, root: Path) -> list[Path]:
    """Folders below a root that may be the data set's, nearest first."""
    places = [root / info.name]
    if root.resolve().name in (info.name, info.inner):
        places.append(root)
    if info.inner:
        places += [place / info.inner for place in (*places, root)]
    return [place for place in places if place.is_dir()]


def _find(info: DatasetInfo, data_dir: str | Path | None) -> tuple[Path | None, str]:
    """The first complete folder; or the first one that is not, with its problem; or nothing."""
    if not info.downloads:
        return _EMBEDDED, ""
    if data_dir is not None and not _checks.path("data_dir", data_dir).is_dir():
        raise DataError(f"data_dir is {data_dir}, which is no folder, expected one that holds {info.name}/")
    incomplete: tuple[Path | None, str] = (None, "")
    for root in _roots(data_dir):
        try:
            for place in _places(info, root):
                missing = _missing(info, place)
                if not missing:
                    return place, ""
                if incomplete[0] is None:
                    problem = f"{', '.join(missing)} missing, expected all of {info.title}; {info.how_to_get}"
                    incomplete = place, f"{place}: {problem}"
        except OSError as error:
            if incomplete[0] is None:
                incomplete = root, str(unreadable(error))
    return incomplete


def _files(info: DatasetInfo, folder: Path, split: str) -> list[Path]:
    """The files of a split, in the order of its items; of IDX those of images and labels, of events the folder."""
    if info.form == "events":
        return [folder / split.capitalize()]
    if info.form == "cifar100":
        return [folder / f"{split}.bin"]
    if info.form == "cifar10":
        return (
            [folder / f"data_batch_{k}.bin" for k in range(1, 6)] if split == "train" else [folder / "test_batch.bin"]
        )
    prefix = "train" if split == "train" else "t10k"
    plain = [folder / f"{prefix}-{part}-ubyte" for part in ("images-idx3", "labels-idx1")]
    return [file if file.is_file() else file.with_name(file.name + ".gz") for file in plain]


def _n_records(info: DatasetInfo, split: str) -> int:
    """What each file of a CIFAR set has to hold."""
    return 50_000 if info.form == "cifar100" and split == "train" else 10_000


def _missing(info: DatasetInfo, folder: Path) -> list[str]:
    is_there = Path.is_dir if info.form == "events" else Path.is_file
    return [file.name for split in SPLITS for file in _files(info, folder, split) if not is_there(file)]


def _count(info: DatasetInfo, folder: Path, split: str) -> int:
    if info.form == "events":
        return len(find_recordings(folder, split)[0])
    files, n_records = _files(info, folder, split), _n_records(info, split)
    if info.form == "idx":
        return idx_shape(files[0])[0]
    for file in files:
        check_size(file, n_records, 1 + (info.form == "cifar100"))
    return len(files) * n_records


def _read_idx(info: DatasetInfo, folder: Path, split: str, limit: int | None) -> _Images:
    images_file, labels_file = _files(info, folder, split)
    images = read_idx(images_file, shape=(None, *info.input_shape[1:]), dtype=np.uint8)
    labels = read_idx(labels_file, shape=(len(images),), dtype=np.uint8).astype(np.int64)
    wrong = np.flatnonzero(labels >= info.n_classes)
    if wrong.size:
        # 8: the magic number and the one dimension come before the labels.
        raise damaged(labels_file, 8 + int(wrong[0]), f"label {labels[wrong[0]]}", f"0 to {info.n_classes - 1}")
    return images[:limit, None].astype(np.uint8, copy=False), labels[:limit].copy()


def _read_cifar(info: DatasetInfo, folder: Path, split: str, limit: int | None) -> _Images:
    read = read_cifar10 if info.form == "cifar10" else read_cifar100
    images, labels = [], []
    for file in _files(info, folder, split):
        x, y, *_ = read(file, n_records=_n_records(info, split))
        images.append(x)
        labels.append(y)
        if limit is not None and sum(map(len, labels)) >= limit:
            break
    x = np.concatenate(images)[:limit]
    x.flags.writeable = False
    return x, np.concatenate(labels)[:limit].copy()
