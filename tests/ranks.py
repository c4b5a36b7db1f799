"""Ranks in one process: threads of which one runs at a time, with the communicator's methods."""

from __future__ import annotations

import threading
import time

from ide_ref.parallel import Group


class _Meeting:
    """Where the threads exchange: all put, then all take."""

    def __init__(self, size):
        self.size, self.slots = size, [None] * size
        self.barrier, self.turn = threading.Barrier(size, timeout=60), threading.Lock()


class _Rank:
    """One rank's communicator."""

    def __init__(self, meeting, rank):
        self.meeting, self.rank, self.size = meeting, rank, meeting.size

    def allgather(self, value):
        self.meeting.slots[self.rank] = value
        self.meeting.turn.release()
        try:
            self.meeting.barrier.wait()
            told = list(self.meeting.slots)
            self.meeting.barrier.wait()
        finally:
            self.meeting.turn.acquire()
        return told

    def alltoall(self, values):
        assert len(values) == self.size
        return [told[self.rank] for told in self.allgather(values)]


def run(size, work):
    """What ``work`` of a group gives on each of ``size`` ranks, an error in its place."""
    meeting, found = _Meeting(size), [None] * size

    def rank(number):
        with meeting.turn:
            try:
                found[number] = work(Group(_Rank(meeting, number)))
                return
            except Exception as error:
                found[number] = error
        # Who leaves alone does not let the others wait.
        time.sleep(0.2)
        meeting.barrier.abort()

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found
