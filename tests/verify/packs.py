"""Cases that the tests of conformance packs take."""

ONE = "alexnet-f-lif-static-float64-bn"
SPIKES = "nmnist-64c5-lif-spikes-float32-plain"
DROPOUT = "fashion-mnist-400-lif-static-float64-bn-dropout"
