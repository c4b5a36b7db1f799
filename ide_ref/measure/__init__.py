"""What a training step takes, what a network does, and where its gradients point: the figures of tables, measured.

Source: ``docs/backpropagation-through-time.md``.
"""
