"""Write fashion-held-out.npz: 50,000 of Fashion-MNIST's training images to train on, the other 10,000 to choose by.

The recipes of held-out-512.jsonl are then trained by, for instance::

    ide-ref sweep fashion-mnist-400 --data fashion-held-out.npz --seeds 0,1 --threads 1 --recipe fast \
        --recipe epochs=100 --recipe dropout=0.1 --recipe flip=true --recipe "mean=[0.1307]" --recipe "std=[0.3081]"
"""

import numpy as np

from ide_ref.datasets import load

x, y = load("fashion-mnist").batch("train", np.random.default_rng(0).permutation(60000))
x = np.rint(x).astype(np.uint8).reshape(-1, 28, 28)
train, test = slice(50000), slice(50000, None)
np.savez("fashion-held-out.npz", x_train=x[train], y_train=y[train], x_test=x[test], y_test=y[test])
