"""Which cases miss a tag that their structure and options promise, because of what was drawn for them.

Source: found by ``tests/verify/test_conformance_tags.py``, which holds every tag of every case.
"""

MISSED: dict[str, tuple[str, ...]] = {
    "delay": (
        "alexnet-f-if-spikes-float32-plain",
        "alexnet-f-if-spikes-float64-bn",
        "alexnet-f-if-static-float32-bn",
        "alexnet-f-if-static-float64-plain",
        "alexnet-f-lif-spikes-float32-plain",
        "alexnet-f-lif-static-float32-plain",
        "alexnet-f-lif-static-float64-bn-dropout",
        "alexnet-f-lif-static-float64-plain",
        "cifarnet-f-if-spikes-float64-bn",
        "cifarnet-f-if-spikes-float64-plain",
        "cifarnet-f-if-static-float32-bn",
        "cifarnet-f-if-static-float64-plain",
        "cifarnet-f-lif-spikes-float64-bn",
        "cifarnet-f-lif-static-float32-plain",
        "cifarnet-f-lif-static-float64-plain",
    ),
    "mask": (
        "alexnet-f-if-spikes-float32-plain",
        "alexnet-f-if-spikes-float64-bn",
        "alexnet-f-if-spikes-float64-plain",
        "alexnet-f-lif-spikes-float32-plain",
        "alexnet-f-lif-spikes-float64-plain",
        "cifarnet-f-if-spikes-float32-plain",
        "cifarnet-f-if-spikes-float64-plain",
        "cifarnet-f-lif-spikes-float32-plain",
        "cifarnet-f-lif-spikes-float64-plain",
        "fashion-mnist-400-if-spikes-float32-bn",
        "fashion-mnist-400-if-spikes-float32-plain",
        "fashion-mnist-400-if-spikes-float64-plain",
        "fashion-mnist-400-lif-spikes-float32-plain",
        "fashion-mnist-400-lif-spikes-float64-plain",
        "fashion-mnist-400-lif-static-float64-bn",
        "mnist-64c5-if-spikes-float32-plain",
        "mnist-64c5-if-spikes-float64-plain",
        "mnist-64c5-lif-spikes-float32-plain",
        "mnist-64c5-lif-spikes-float64-plain",
        "nmnist-64c5-if-spikes-float32-plain",
        "nmnist-64c5-if-spikes-float64-plain",
        "nmnist-64c5-if-static-float64-plain",
        "nmnist-64c5-lif-spikes-float32-plain",
        "nmnist-64c5-lif-spikes-float64-plain",
        "threshold-lif-spikes",
    ),
    "transpose": (
        "cifarnet-f-if-spikes-float64-bn",
        "cifarnet-f-if-static-float64-plain",
    ),
    "kernel-flip": (
        "cifarnet-f-if-spikes-float64-bn",
        "cifarnet-f-if-static-float64-plain",
    ),
    "batch-statistics": ("cifarnet-f-if-spikes-float64-bn",),
    "zero-gradient": (
        "cifarnet-f-if-spikes-float64-bn",
        "cifarnet-f-if-static-float64-plain",
    ),
}
"""By tag. Drawn anew, a case would catch others."""
