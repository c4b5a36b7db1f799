"""Numba kernels: typed arrays in, output arrays overwritten; and how these arrays lie in memory.

What is compiled neither checks nor raises: the public module that calls a kernel has converted, checked and allocated.
Kernels that take a batch share its samples, or the tiles of what is summed over them, among threads; the rest run on
the calling thread. No result depends on how many threads run, nor a sample's on the others in its batch.
"""
