"""Numba kernels: typed arrays in, output arrays overwritten.

Nothing here checks or raises; the public module that calls a kernel has converted, checked and
allocated. Every kernel is parallel over samples, and a sample's result never depends on how many
samples, or threads, run beside it.
"""
