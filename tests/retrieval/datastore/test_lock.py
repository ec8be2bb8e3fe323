from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from retrieval.datastore.lock import StoreBusyError, WriterLock
from tests.retrieval.crashes import forked

HOLDER = """
import sys
from pathlib import Path
from retrieval.datastore.lock import WriterLock
with WriterLock(Path(sys.argv[1])).held():
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_a_second_writer_is_told_who_the_first_is(tmp_path):
    run = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert run.stdout is not None
    assert run.stdin is not None
    assert run.stdout.readline() == "held\n"
    lock = WriterLock(tmp_path, wait_seconds=0.01)
    with (
        pytest.raises(StoreBusyError, match=rf"written by process {run.pid} on .*: wait until it is done"),
        lock.held(),
    ):
        pass
    run.kill()  # the system takes the lock from a process that dies
    run.wait()
    with lock.held():
        pass


def test_a_second_object_of_the_same_process_is_a_second_writer(tmp_path):
    other = WriterLock(tmp_path, wait_seconds=0.01)
    with (
        WriterLock(tmp_path).held(),
        pytest.raises(StoreBusyError, match=f"process {os.getpid()}"),
        other.held(),
    ):
        pass
    with other.held():
        pass


def test_threads_that_share_it_wait_for_each_other(tmp_path):
    lock, inside, most = WriterLock(tmp_path, wait_seconds=0.01), 0, 0

    def work():
        nonlocal inside, most
        for _ in range(20):
            with lock.held():
                inside += 1
                most = max(most, inside)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_a_child_forked_while_a_thread_writes_is_told_and_does_not_wait(tmp_path):
    lock, entered, go_on = WriterLock(tmp_path, wait_seconds=0.01), threading.Event(), threading.Event()

    def work():
        with lock.held():
            entered.set()
            go_on.wait()

    thread = threading.Thread(target=work)
    thread.start()
    entered.wait()
    parent = os.getpid()

    def child():
        signal.alarm(20)  # it waited for ever
        with pytest.raises(StoreBusyError, match=f"process {parent}"), lock.held():
            pass

    assert forked(child) == 0
    go_on.set()
    thread.join()

    def later():
        with lock.held():
            pass

    assert forked(later) == 0
