import dataclasses
import gzip
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import threading
import zipfile
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest

from ide_ref.datasets import DATASETS, DataError, Download, fetch, load, registry, status

RNG = np.random.default_rng(11)
IMAGES = {"train": RNG.integers(0, 256, (6, 28, 28), np.uint8), "test": RNG.integers(0, 256, (4, 28, 28), np.uint8)}
LABELS = {"train": np.array([5, 0, 4, 1, 9, 2], np.uint8), "test": np.array([7, 2, 1, 0], np.uint8)}


@pytest.fixture
def write_mnist(idx_bytes):
    def write(folder, compress=True):
        folder.mkdir(parents=True, exist_ok=True)
        for split, prefix in (("train", "train"), ("test", "t10k")):
            for part, values in (("images-idx3", IMAGES[split]), ("labels-idx1", LABELS[split])):
                content, name = idx_bytes(values), f"{prefix}-{part}-ubyte"
                (folder / (name + ".gz" * compress)).write_bytes(gzip.compress(content) if compress else content)
        return folder

    return write


def write_cifar(folder, sizes, label_bytes):
    """Files of the published sizes; all but the first record of each is a hole, read as zeros."""
    folder.mkdir(parents=True)
    for k, (name, n_records) in enumerate(sizes.items()):
        with (folder / name).open("wb") as stream:
            stream.write(bytes([k + 1] * label_bytes) + bytes([k + 10] * 3072))
            stream.truncate(n_records * (label_bytes + 3072))


CIFAR10_SIZES = dict.fromkeys([*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"], 10_000)
CIFAR100_SIZES = {"train.bin": 50_000, "test.bin": 10_000}


def test_the_embedded_digits_are_uci_s(no_data):
    """Counts a class and the sum of all pixels are those of optdigits.tes."""
    data = load("digits")
    assert data.x_train.shape == (1438, 1, 8, 8)
    assert data.x_test.shape == (359, 1, 8, 8)
    assert data.x_train.dtype == np.uint8
    assert max(data.x_train.max(), data.x_test.max()) == data.scale == 16
    assert int(data.x_train.sum()) + int(data.x_test.sum()) == 561718
    counts = np.bincount(data.y_train) + np.bincount(data.y_test)
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    np.testing.assert_array_equal(np.bincount(data.y_test), np.round(counts / 5))
    assert fetch("digits") == data.source  # nothing to download
    assert "CC BY 4.0" in data.notice
    assert "CC BY 4.0" in (data.source / "NOTICE").read_text(encoding="utf-8")
    both = np.concatenate([data.x_train, data.x_test]).reshape(1797, 64)
    assert len(np.unique(both, axis=0)) == 1797
    # A nearest neighbour among the training images is right nearly always if labels go with images.
    distance = ((data.x_test.reshape(-1, 1, 64).astype(int) - data.x_train.reshape(1, -1, 64)) ** 2).sum(axis=2)
    assert np.mean(data.y_train[distance.argmin(axis=1)] == data.y_test) > 0.97


@pytest.mark.parametrize("compress", [True, False])
def test_idx_sets(tmp_path, no_data, write_mnist, compress):
    folder = write_mnist(tmp_path / "fashion-mnist", compress)
    data = load("fashion-mnist", data_dir=tmp_path)
    np.testing.assert_array_equal(data.x_train[:, 0], IMAGES["train"])
    np.testing.assert_array_equal(data.x_test[:, 0], IMAGES["test"])
    assert (data.y_train.tolist(), data.y_test.tolist()) == (LABELS["train"].tolist(), LABELS["test"].tolist())
    assert data.y_train.dtype == np.int64
    assert (data.name, data.n_classes, data.scale, data.source) == ("fashion-mnist", 10, 255.0, folder)
    assert (data.input_shape, data.n_frames) == ((1, 28, 28), None)
    assert not any(a.flags.writeable for a in (data.x_train, data.y_train, data.x_test, data.y_test))
    x, y = data.batch("test", np.array([3, 0]))
    np.testing.assert_array_equal(x[:, 0], IMAGES["test"][[3, 0]])
    assert y.tolist() == [0, 7]


def test_limit_takes_the_first_of_each_split(tmp_path, no_data, write_mnist):
    write_mnist(tmp_path / "mnist")
    data = load("mnist", data_dir=tmp_path, limit=5)
    assert data.y_train.tolist() == LABELS["train"][:5].tolist()
    assert len(data.x_train) == 5
    assert len(data.x_test) == len(data.y_test) == 4


@pytest.mark.parametrize("inner", ["", "cifar-10-batches-bin"])
def test_cifar10(tmp_path, no_data, inner):
    folder = tmp_path / "cifar10" / inner
    write_cifar(folder, CIFAR10_SIZES, 1)
    data = load("cifar10", data_dir=tmp_path)
    assert data.source == folder
    assert data.x_train.shape == (50_000, 3, 32, 32)
    assert data.x_test.shape == (10_000, 3, 32, 32)
    assert data.y_train[::10_000].tolist() == [1, 2, 3, 4, 5]
    assert data.x_train[::10_000, 0, 0, 0].tolist() == [10, 11, 12, 13, 14]
    assert data.y_test[:2].tolist() == [6, 0]
    few = load("cifar10", data_dir=tmp_path, limit=10_001)
    assert few.x_train.shape[0] == 10_001
    assert few.y_train[10_000] == 2


def test_cifar100_gives_the_fine_labels(tmp_path, no_data):
    write_cifar(tmp_path / "cifar100", CIFAR100_SIZES, 2)
    with (tmp_path / "cifar100" / "test.bin").open("r+b") as stream:
        stream.write(bytes([0, 77]))
    data = load("cifar100", data_dir=tmp_path, limit=3)
    assert data.n_classes == 100
    assert data.y_test.tolist() == [77, 0, 0]
    assert [(s.n_train, s.n_test) for s in status(data_dir=tmp_path) if s.info.name == "cifar100"] == [(50_000, 10_000)]


@pytest.mark.parametrize(
    ("name", "sizes", "message"),
    [
        ("cifar10", {"data_batch_4.bin": 9_999}, "data_batch_4.bin: byte 30726927: found the end of the file"),
        ("cifar10", {"data_batch_4.bin": 10_001}, "data_batch_4.bin: byte 30730000: found 3073 trailing bytes"),
        ("cifar100", {"test.bin": 10_001}, "test.bin: byte 30740000: found 3074 trailing bytes"),
    ],
)
def test_cifar_files_of_another_size_are_refused(tmp_path, no_data, name, sizes, message):
    usual, label_bytes = (CIFAR10_SIZES, 1) if name == "cifar10" else (CIFAR100_SIZES, 2)
    write_cifar(tmp_path / name, usual | sizes, label_bytes)
    with pytest.raises(DataError, match=f"{message}.* 10000 records of"):
        load(name, data_dir=tmp_path)
    # Its size gives it away, so the list of what was found does not call it usable.
    (report,) = (s for s in status(data_dir=tmp_path) if s.info.name == name)
    assert (report.found, report.n_train) == (False, 0)
    assert message in report.problem


def test_the_first_complete_folder_in_the_search_order_wins(tmp_path, no_data, write_mnist, monkeypatch):
    roots = [tmp_path / name for name in ("argument", "environment", "system", "cache/ide_ref")]
    for root in roots:
        write_mnist(root / "mnist")
    monkeypatch.setenv("IDE_REF_DATA", str(roots[1]))
    monkeypatch.setattr(registry, "_SYSTEM_ROOT", roots[2])
    for root in roots:
        data_dir = roots[0] if roots[0].exists() else None
        assert load("mnist", data_dir=data_dir).source == root / "mnist"
        (root / "mnist" / "train-labels-idx1-ubyte.gz").unlink()
        if data_dir:
            (root / "mnist").rename(tmp_path / "moved")
            root.rmdir()
    with pytest.raises(DataError, match=r"environment/mnist: train-labels-idx1-ubyte.gz missing, expected all"):
        load("mnist")


def test_the_root_may_be_the_folder_itself_if_it_has_the_name(tmp_path, no_data, write_mnist):
    folder = write_mnist(tmp_path / "fashion-mnist")
    assert load("fashion-mnist", data_dir=folder).source == folder
    # Same file names, other data: never taken for MNIST.
    with pytest.raises(DataError, match="mnist was not found below"):
        load("mnist", data_dir=folder)


def test_a_missing_set_says_where_it_was_looked_for_and_how_to_get_it(tmp_path, no_data):
    with pytest.raises(DataError) as caught:
        load("fashion-mnist", data_dir=tmp_path)
    message = str(caught.value)
    assert message.startswith(f"fashion-mnist was not found below {tmp_path}, {tmp_path / 'no-system-data'}, ")
    assert "Debian's package dataset-fashion-mnist" in message
    assert "run `ide-ref data --download fashion-mnist`" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mnits", {}, "name is 'mnits', expected a data set: digits, mnist, fashion-mnist, cifar10, cifar100, nmnist"),
        ("nmnist", {"n_frames": 0}, "n_frames is 0; expected a whole number of at least 1"),
        ("mnist", {"data_dir": "/nonexistent"}, "data_dir is /nonexistent, which is no folder"),
    ],
)
def test_wrong_arguments(no_data, name, options, message):
    with pytest.raises(ValueError, match=message):
        load(name, **options)


def test_labels_out_of_range_and_unequal_counts(tmp_path, no_data, write_mnist, idx_bytes):
    folder = write_mnist(tmp_path / "mnist", compress=False)
    labels = folder / "train-labels-idx1-ubyte"
    labels.write_bytes(idx_bytes(np.array([5, 0, 4, 10, 9, 2], np.uint8)))
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte: byte 11: found label 10, expected 0 to 9"):
        load("mnist", data_dir=tmp_path)
    labels.write_bytes(idx_bytes(LABELS["test"]))
    with pytest.raises(DataError, match=r"byte 3: found shape \(4,\), expected shape \(6\)"):
        load("mnist", data_dir=tmp_path)


def test_status_reports_each_set(tmp_path, no_data, write_mnist):
    write_mnist(tmp_path / "mnist")
    (write_mnist(tmp_path / "fashion-mnist", compress=False) / "t10k-images-idx3-ubyte").write_bytes(b"no IDX")
    (tmp_path / "cifar10").mkdir()
    for label in range(10):
        for split in ("Train", "Test"):
            (tmp_path / "nmnist" / split / str(label)).mkdir(parents=True)
            (tmp_path / "nmnist" / split / str(label) / "1.bin").touch()
    report = {s.info.name: s for s in status(data_dir=tmp_path)}
    assert list(report) == list(DATASETS)
    assert (report["digits"].found, report["digits"].n_train, report["digits"].n_test) == (True, 1438, 359)
    assert (report["mnist"].path, report["mnist"].n_train, report["mnist"].n_test) == (tmp_path / "mnist", 6, 4)
    assert not report["fashion-mnist"].found
    assert "byte 0: found bytes 6e 6f" in report["fashion-mnist"].problem
    assert "data_batch_1.bin, data_batch_2.bin" in report["cifar10"].problem
    assert (report["cifar100"].path, report["cifar100"].found) == (None, False)
    assert (report["nmnist"].n_train, report["nmnist"].n_test) == (10, 10)
    assert report["digits"].info.how_to_get == "comes with ide_ref"


@pytest.fixture
def serve(tmp_path):
    """A web server on this machine, for a folder's files."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


def publish(monkeypatch, name, downloads):
    entry = dataclasses.replace(DATASETS[name], downloads=tuple(downloads))
    monkeypatch.setattr(registry, "DATASETS", MappingProxyType({**DATASETS, name: entry}))


def served(folder, base, kind="sha256"):
    return [
        Download(base + path.name, f"{kind}:{hashlib.new(kind, path.read_bytes()).hexdigest()}", path.name)
        for path in sorted(folder.iterdir())
    ]


def test_downloads_are_verified_and_then_found(tmp_path, no_data, write_mnist, serve, monkeypatch):
    folder, base = serve
    write_mnist(folder)
    downloads = served(folder, base)
    publish(monkeypatch, "mnist", [dataclasses.replace(downloads[0], digest="sha256:" + 64 * "0"), *downloads[1:]])
    with pytest.raises(DataError, match=r"mnist: .*could not be downloaded .*hash.*check the connection, or put"):
        load("mnist", download=True)
    assert not list((tmp_path / "cache").rglob("*.gz"))
    publish(monkeypatch, "mnist", downloads)
    data = load("mnist", download=True)
    assert data.source == tmp_path / "cache" / "ide_ref" / "mnist"
    assert data.y_train.tolist() == LABELS["train"].tolist()
    assert load("mnist").source == data.source


def test_a_download_without_an_answer(no_data, tmp_path, monkeypatch):
    publish(monkeypatch, "mnist", [Download("http://127.0.0.1:1/x", "sha256:" + 64 * "0", "x")])
    with pytest.raises(DataError, match=r"^mnist: http://127.0.0.1:1/x could not be downloaded.*$"):
        fetch("mnist", cache_dir=tmp_path)


def test_archives_are_unpacked(tmp_path, no_data, serve, monkeypatch):
    folder, base = serve
    with tarfile.open(folder / "cifar-100-binary.tar.gz", "w:gz") as archive:
        for name in ("train.bin", "test.bin"):
            member = tarfile.TarInfo(f"cifar-100-binary/{name}")
            member.size = 3
            archive.addfile(member, io.BytesIO(b"abc"))
    publish(monkeypatch, "cifar100", served(folder, base))
    place = fetch("cifar100", cache_dir=tmp_path / "here")
    assert place == tmp_path / "here" / "cifar100" / "cifar-100-binary"
    assert (place / "train.bin").read_bytes() == b"abc"
    # A second time, over what an interruption may have left.
    (place / "train.bin").unlink()
    assert fetch("cifar100", cache_dir=tmp_path / "here") == place
    assert (place / "train.bin").exists()
    assert {path.name for path in place.parent.iterdir()} == {"cifar-100-binary", "cifar-100-binary.tar.gz"}


def test_event_archives_are_unpacked_by_their_md5(tmp_path, no_data, serve, monkeypatch):
    folder, base = serve
    for split in ("Train", "Test"):
        with zipfile.ZipFile(folder / f"{split}.zip", "w") as archive:
            for label in range(10):
                archive.writestr(f"{split}/{label}/{label:05d}.bin", bytes([label, 1, 128, 0, 9]))
    publish(monkeypatch, "nmnist", served(folder, base, "md5"))
    data = load("nmnist", download=True, n_frames=2)
    assert data.y_test.tolist() == list(range(10))
    x, _ = data.batch("train", [4])
    assert np.argwhere(x).tolist() == [[0, 1, 1, 1, 4]]


def test_without_pooch_there_is_a_line_to_follow(tmp_path, no_data, monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(DataError, match="downloading mnist needs pooch, which is missing; pip install pooch"):
        fetch("mnist")
    with pytest.raises(DataError, match="mnist was not found below"):
        load("mnist")


def test_every_published_digest_is_well_formed():
    for info in DATASETS.values():
        assert (info.name == "digits") == (not info.downloads)
        for item in info.downloads:
            kind, _, digest = item.digest.partition(":")
            assert kind == ("md5" if info.name == "nmnist" else "sha256")
            assert len(bytes.fromhex(digest)) == hashlib.new(kind).digest_size


def test_importing_the_package_imports_no_downloader():
    code = "import sys, ide_ref.datasets; print('pooch' in sys.modules, 'numba' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["False", "False"]


def test_real_mnist(real_data):
    """The canonical order and the digests of the uncompressed training images."""
    if not (real_data / "mnist").is_dir():
        pytest.skip("IDE_REF_DATA has no mnist/")
    data = load("mnist", data_dir=real_data)
    assert data.y_train[:6].tolist() == [5, 0, 4, 1, 9, 2]
    assert data.y_test[:6].tolist() == [7, 2, 1, 0, 4, 1]
    assert (len(data.x_train), len(data.x_test)) == (60_000, 10_000)
    header = bytes.fromhex("00000803 0000ea60 0000001c 0000001c")
    digest = hashlib.sha256(header + data.x_train.tobytes()).hexdigest()
    assert digest == "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"
    # The constants of the paper's normalisation are this set's mean and standard deviation.
    assert round(float((data.x_train / 255).mean()), 4) == 0.1307
    assert round(float((data.x_train / 255).std()), 4) == 0.3081


@contextmanager
def bound_by_permissions():
    """As someone else where we are root, whom they do not bind."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="permissions of another kind")
@pytest.mark.usefixtures("no_data")
def test_an_unreadable_folder_stops_neither_the_other_sets_nor_the_other_roots(monkeypatch, write_mnist):
    # Not tmp_path, whose parents are closed to others.
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        for place in (data / "mnist", data / "nmnist/Train/0", data / "nmnist/Test/0"):
            place.mkdir(parents=True)
        write_mnist(data / "fashion-mnist")
        write_mnist(data / "elsewhere/mnist")
        data.chmod(0o755)
        for place in (data / "mnist", data / "nmnist/Train/0"):
            place.chmod(0)
        try:
            with bound_by_permissions():
                found = {s.info.name: s for s in status(data_dir=data)}
                monkeypatch.setenv("IDE_REF_DATA", str(data / "elsewhere"))
                there = {s.info.name: s for s in status(data_dir=data)}
        finally:
            for place in (data / "mnist", data / "nmnist/Train/0"):
                place.chmod(0o755)
    told = "cannot be read (Permission denied); check its permissions"
    assert found["mnist"].problem.startswith(f"{data / 'mnist'}/train-")
    assert told in found["mnist"].problem
    assert found["nmnist"].problem == f"{data / 'nmnist/Train/0'}: {told}"
    assert found["fashion-mnist"].found
    assert there["mnist"].path == data / "elsewhere/mnist"
