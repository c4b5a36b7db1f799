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
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ide_ref import _checks
from ide_ref.datasets.cifar import check_size, read_cifar10, read_cifar100
from ide_ref.datasets.errors import DataError, damaged
from ide_ref.datasets.events import EventFrames, find_recordings
from ide_ref.datasets.idx import idx_shape, read_idx
from ide_ref.datasets.synthetic import SYNTHETIC_NOTICE

_SYSTEM_ROOT = Path("/usr/share/datasets")
_EMBEDDED = Path(__file__).parent / "data"
_IDX_PREFIX = MappingProxyType({"train": "train", "test": "t10k"})
_SPLITS = ("train", "test")
_IDX_PARTS = ("images-idx3", "labels-idx1")
_MENDELEY = "https://data.mendeley.com/public-files/datasets/468j46mzdv/files/"


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


def _idx_downloads(base: str, digests: tuple[str, str, str, str]) -> tuple[Download, ...]:
    names = (f"{_IDX_PREFIX[split]}-{part}-ubyte.gz" for split in _SPLITS for part in _IDX_PARTS)
    return tuple(Download(base + name, f"sha256:{digest}", name) for name, digest in zip(names, digests, strict=True))


# Where the digests are published. MNIST: ankane/torchvision-ruby, mnist.rb. Fashion-MNIST: FluxML/Flux.jl,
# src/data/fashion-mnist.jl. CIFAR-10: ankane/torchvision-ruby, cifar10.rb. CIFAR-100: JuliaML/MLDatasets.jl,
# cifar100.jl. N-MNIST: only an MD5 is published (neuromorphs/tonic, nmnist.py), so only that is checked.
DATASETS: MappingProxyType[str, DatasetInfo] = MappingProxyType(
    {
        info.name: info
        for info in (
            DatasetInfo(
                "digits",
                "UCI optical digits (embedded)",
                "idx",
                (1, 8, 8),
                10,
                16.0,
                "CC BY 4.0",
                "E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning "
                "Repository, 1998, doi:10.24432/C50P49, CC BY 4.0; divided into training and test images",
                "https://doi.org/10.24432/C50P49",
            ),
            DatasetInfo(
                "mnist",
                "MNIST",
                "idx",
                (1, 28, 28),
                10,
                255.0,
                "free for research use",
                "Y. LeCun, C. Cortes and C. J. C. Burges, The MNIST database of handwritten digits",
                "http://yann.lecun.com/exdb/mnist/",
                downloads=_idx_downloads(
                    # The home page refuses downloads; this is PyTorch's copy of the original files.
                    "https://ossci-datasets.s3.amazonaws.com/mnist/",
                    (
                        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
                        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
                        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
                        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
                    ),
                ),
            ),
            DatasetInfo(
                "fashion-mnist",
                "Fashion-MNIST",
                "idx",
                (1, 28, 28),
                10,
                255.0,
                "MIT",
                "H. Xiao, K. Rasul and R. Vollgraf, Fashion-MNIST, 2017, Zalando SE, MIT licence",
                "https://github.com/zalandoresearch/fashion-mnist",
                debian="dataset-fashion-mnist",
                downloads=_idx_downloads(
                    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
                    (
                        "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
                        "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
                        "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
                        "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
                    ),
                ),
            ),
            DatasetInfo(
                "cifar10",
                "CIFAR-10",
                "cifar10",
                (3, 32, 32),
                10,
                255.0,
                "none stated; cite Krizhevsky 2009",
                "A. Krizhevsky, Learning multiple layers of features from tiny images, 2009",
                "https://www.cs.toronto.edu/~kriz/cifar.html",
                inner="cifar-10-batches-bin",
                downloads=(
                    Download(
                        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
                        "sha256:c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
                        "cifar-10-binary.tar.gz",
                    ),
                ),
            ),
            DatasetInfo(
                "cifar100",
                "CIFAR-100",
                "cifar100",
                (3, 32, 32),
                100,
                255.0,
                "none stated; cite Krizhevsky 2009",
                "A. Krizhevsky, Learning multiple layers of features from tiny images, 2009",
                "https://www.cs.toronto.edu/~kriz/cifar.html",
                inner="cifar-100-binary",
                downloads=(
                    Download(
                        "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
                        "sha256:58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
                        "cifar-100-binary.tar.gz",
                    ),
                ),
            ),
            DatasetInfo(
                "nmnist",
                "N-MNIST",
                "events",
                (2, 34, 34),
                10,
                1.0,
                "CC BY-SA 4.0",
                "G. Orchard, A. Jayawant, G. Cohen and N. Thakor, Converting static image datasets to "
                "spiking neuromorphic datasets using saccades, 2015, CC BY-SA 4.0",
                "https://www.garrickorchard.com/datasets/n-mnist",
                downloads=tuple(
                    Download(f"{_MENDELEY}{key}/file_downloaded", f"md5:{digest}", file)
                    for file, key, digest in (
                        (
                            "Train.zip",
                            "39c25547-014b-4137-a934-9d29fa53c7a0",
                            "20959b8e626244a1b502305a9e6e2031",
                        ),
                        (
                            "Test.zip",
                            "05a4d654-7e03-4c15-bdfa-9bb2bcbea494",
                            "69ca8762b2fe404d9b9bad1103e97832",
                        ),
                    )
                ),
            ),
        )
    }
)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training and test items with their labels."""

    name: str
    x_train: NDArray[np.uint8] | EventFrames
    """(B, channels, rows, columns) raw images, read-only; or spike trains that are handed out a batch at a time."""
    y_train: NDArray[np.int64]
    """(B,) labels, 0 to ``n_classes - 1``, read-only."""
    x_test: NDArray[np.uint8] | EventFrames
    y_test: NDArray[np.int64]
    n_classes: int
    scale: float
    """Pixel value that stands for 1, for :func:`~ide_ref.datasets.normalise`."""
    source: Path
    """Folder that it was read from."""
    notice: str
    """Whom to credit; says so where the recordings are synthetic."""

    @property
    def n_frames(self) -> int | None:
        """T of spike trains, ``None`` for images."""
        return self.x_train.n_frames if isinstance(self.x_train, EventFrames) else None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(channels, rows, columns) of one image or one frame."""
        return tuple(self.x_train.shape[-3:])

    def batch(self, split: str, indices: ArrayLike) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Some items of one split.

        Parameters
        ----------
        split : {"train", "test"}
        indices : (B,) int

        Returns
        -------
        x : (B, channels, rows, columns) or (B, T, 2, 34, 34) uint8
        y : (B,) int64
        """
        if not _checks.is_one_of(split, _SPLITS):
            raise ValueError(f"split is {split!r}, expected 'train' or 'test'")
        x, y = (self.x_train, self.y_train) if split == "train" else (self.x_test, self.y_test)
        chosen = np.asarray(indices)
        if chosen.ndim != 1 or chosen.dtype.kind not in "iu":
            raise ValueError(f"indices is {chosen.dtype} of shape {chosen.shape}, expected integers of shape (B,)")
        if chosen.size and not 0 <= chosen.min() <= chosen.max() < len(y):
            raise ValueError(f"indices reach from {chosen.min()} to {chosen.max()}, expected 0 to {len(y) - 1}")
        return (x.take(chosen) if isinstance(x, EventFrames) else x[chosen]), y[chosen]


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
        A key of :data:`DATASETS`.
    data_dir : path, optional
        First root to search, see the module's text for the others.
    limit : int, optional
        Only the first so many items of each split.
    n_frames : int, optional
        T of the spike trains, for event data alone; 30 by default. The recordings are binned to
        binary frames as in :func:`~ide_ref.datasets.bin_events`.
    cache : bool
        Keep binned recordings in memory, packed to bits. Without it, each batch reads its files.
    download : bool
        :func:`fetch` the data set if it is nowhere.

    Returns
    -------
    Dataset

    Raises
    ------
    ValueError
        ``limit`` or ``n_frames`` below 1, or ``n_frames`` for still images.
    DataError
        Unknown name, nothing found, or damaged files: one line that says what to do.
    """
    info = _info(name)
    if limit is not None:
        _checks.whole("limit", limit)
    if n_frames is not None and info.form != "events":
        raise ValueError(f"n_frames is {n_frames}, but {name} holds still images; leave it out")
    if n_frames is not None:
        _checks.whole("n_frames", n_frames)
    folder, problem = _find(info, data_dir)
    if download and (folder is None or problem):
        folder, problem = fetch(name), ""
    if folder is None:
        roots = ", ".join(map(str, _roots(data_dir)))
        raise DataError(f"{name} was not found below {roots}; {info.how_to_get}")
    if problem:
        raise DataError(problem)
    parts: dict[str, tuple[NDArray[np.uint8] | EventFrames, NDArray[np.int64]]] = {}
    for split in _SPLITS:
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
    return Dataset(name, *parts["train"], *parts["test"], info.n_classes, info.scale, folder, notice)


def status(*, data_dir: str | Path | None = None) -> tuple[Status, ...]:
    """For each data set: whether and where it is, and how many items its files announce.

    Reads headers and sizes, and counts files; damage further inside shows when it is loaded.

    Parameters
    ----------
    data_dir : path, optional
        As in :func:`load`.
    """
    return tuple(_status(info, data_dir) for info in DATASETS.values())


def fetch(name: str, *, cache_dir: str | Path | None = None, progress: bool = False) -> Path:
    """Download a data set from its canonical address into the user's cache, checking every digest.

    Parameters
    ----------
    name : str
        A key of :data:`DATASETS`.
    cache_dir : path, optional
        Root to use in place of the user's cache.
    progress : bool
        Show a progress bar on stderr (needs tqdm).

    Returns
    -------
    Path
        The data set's folder.

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
            reason = " ".join(str(error).split())
            raise DataError(
                f"{name}: {item.address} could not be downloaded ({reason}); check the connection, "
                f"or put the files of {info.homepage} into {folder}"
            ) from None
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return next((place for place in _places(info, folder.parent) if not _missing(info, place)), folder)


def _info(name: str) -> DatasetInfo:
    if not _checks.is_one_of(name, DATASETS):
        raise DataError(f"name is {name!r}, expected a data set: {', '.join(DATASETS)}")
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
        for place in _places(info, root):
            missing = _missing(info, place)
            if not missing:
                return place, ""
            if incomplete[0] is None:
                incomplete = (
                    place,
                    f"{place}: {', '.join(missing)} missing, expected all of {info.title}; {info.how_to_get}",
                )
    return incomplete


def _idx_file(folder: Path, split: str, part: str) -> Path:
    plain = folder / f"{_IDX_PREFIX[split]}-{part}-ubyte"
    return plain if plain.is_file() else plain.with_name(plain.name + ".gz")


def _cifar_files(info: DatasetInfo, split: str) -> dict[str, int]:
    """File names of a split, with the number of records each has to hold."""
    if info.form == "cifar100":
        return {"train.bin": 50_000} if split == "train" else {"test.bin": 10_000}
    return dict.fromkeys(
        [f"data_batch_{k}.bin" for k in range(1, 6)] if split == "train" else ["test_batch.bin"], 10_000
    )


def _missing(info: DatasetInfo, folder: Path) -> list[str]:
    if info.form == "events":
        return [name for name in ("Train", "Test") if not (folder / name).is_dir()]
    if info.form == "idx":
        files = [_idx_file(folder, split, part) for split in _SPLITS for part in _IDX_PARTS]
    else:
        files = [folder / file for split in _SPLITS for file in _cifar_files(info, split)]
    return [file.name for file in files if not file.is_file()]


def _status(info: DatasetInfo, data_dir: str | Path | None) -> Status:
    path, problem = _find(info, data_dir)
    if path is None or problem:
        return Status(info, path, 0, 0, problem)
    try:
        counts = [_count(info, path, split) for split in _SPLITS]
    except DataError as error:
        return Status(info, path, 0, 0, str(error))
    return Status(info, path, counts[0], counts[1], "")


def _count(info: DatasetInfo, folder: Path, split: str) -> int:
    if info.form == "events":
        return len(find_recordings(folder, split)[0])
    if info.form == "idx":
        return idx_shape(_idx_file(folder, split, "images-idx3"))[0]
    files = _cifar_files(info, split)
    for file, n_records in files.items():
        check_size(folder / file, n_records, 1 + (info.form == "cifar100"))
    return sum(files.values())


def _read_idx(
    info: DatasetInfo, folder: Path, split: str, limit: int | None
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    images_file, labels_file = (_idx_file(folder, split, part) for part in _IDX_PARTS)
    images = read_idx(images_file, shape=(None, *info.input_shape[1:]), dtype=np.uint8)
    labels = read_idx(labels_file, shape=(len(images),), dtype=np.uint8).astype(np.int64)
    wrong = np.flatnonzero(labels >= info.n_classes)
    if wrong.size:
        # 8: the magic number and the one dimension come before the labels.
        raise damaged(labels_file, 8 + int(wrong[0]), f"label {labels[wrong[0]]}", f"0 to {info.n_classes - 1}")
    return images[:limit, None].astype(np.uint8, copy=False), labels[:limit].copy()


def _read_cifar(
    info: DatasetInfo, folder: Path, split: str, limit: int | None
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    images, labels, n = [], [], 0
    for file, n_records in _cifar_files(info, split).items():
        if info.form == "cifar10":
            x, y = read_cifar10(folder / file, n_records=n_records)
        else:
            x, y, _ = read_cifar100(folder / file, n_records=n_records)
        images.append(x)
        labels.append(y)
        n += n_records
        if limit is not None and n >= limit:
            break
    x = np.concatenate(images)[:limit]
    x.flags.writeable = False
    return x, np.concatenate(labels)[:limit].copy()
