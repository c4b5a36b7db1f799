"""Every timing: training steps by stage, runs in continuous time, and what the machine could do at best.

Source: definitions of every figure in ``docs/performance.md``.
"""
