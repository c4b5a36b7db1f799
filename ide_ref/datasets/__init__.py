"""Data sets: readers, the registry, one's own arrays and files, augmentation, and synthetic event recordings.

A leaf of the package: it imports NumPy, the standard library and the checks of arguments, and pooch only to
look into the user's cache or to download.
"""

from ide_ref.datasets.augment import check_images, normalise, random_crop, random_flip
from ide_ref.datasets.cifar import read_cifar10, read_cifar100
from ide_ref.datasets.dataset import Dataset
from ide_ref.datasets.errors import DataError
from ide_ref.datasets.events import EventFrames, Events, bin_events, find_recordings, read_events, write_events
from ide_ref.datasets.files import is_function, read_own
from ide_ref.datasets.idx import idx_shape, read_idx
from ide_ref.datasets.registry import DATASETS, DatasetInfo, Download, Status, fetch, load, status
from ide_ref.datasets.synthetic import Recordings, Sensor, make_recordings, record

__all__ = ["check_images", "normalise", "random_crop", "random_flip"]
__all__ += ["read_cifar10", "read_cifar100"]
__all__ += ["DataError", "Dataset", "is_function", "read_own"]
__all__ += ["EventFrames", "Events", "bin_events", "find_recordings", "read_events", "write_events"]
__all__ += ["idx_shape", "read_idx"]
__all__ += ["DATASETS", "DatasetInfo", "Download", "Status", "fetch", "load", "status"]
__all__ += ["Recordings", "Sensor", "make_recordings", "record"]
