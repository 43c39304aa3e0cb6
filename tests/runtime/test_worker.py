"""The draft's thread: it has its own number of threads, passes errors on, and ends with its owner or with the interpreter."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
import torch

from ssd.runtime.worker import Worker


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker(3)
    yield worker
    worker.close()


def test_the_thread_ends_with_close(worker: Worker) -> None:
    thread = worker.submit(threading.current_thread).result()
    assert thread.is_alive() and thread is not threading.current_thread()
    worker.close()
    assert not thread.is_alive()
    with pytest.raises(RuntimeError, match="shutdown"):
        worker.submit(print)


def test_a_worker_that_nobody_holds_ends_its_thread() -> None:
    worker = Worker(1)
    thread = worker.submit(threading.current_thread).result()
    del worker
    gc.collect()
    thread.join(timeout=60)
    assert not thread.is_alive()


def test_work_runs_on_one_thread_other_than_the_callers(worker: Worker) -> None:
    threads = {worker.submit(threading.get_ident).result() for _ in range(5)}
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_a_worker_has_its_own_number_of_intra_op_threads(worker: Worker) -> None:
    before = torch.get_num_threads()
    assert worker.submit(torch.get_num_threads).result() == 3
    assert torch.get_num_threads() == before


def test_a_workers_results_carry_no_gradient(worker: Worker) -> None:
    assert worker.submit(torch.is_inference_mode_enabled).result()


def test_an_exception_on_a_worker_is_raised_to_the_caller(worker: Worker) -> None:
    error = worker.submit(int, "three").exception()
    assert isinstance(error, ValueError)
    assert worker.submit(int, "3").result() == 3  # and the thread continues


def test_a_forked_child_has_a_thread_of_its_own(worker: Worker) -> None:
    worker.submit(int).result()
    child = os.fork()
    if child == 0:
        ended = worker.submit(lambda: 7).result(timeout=60) == 7
        worker.close()
        os._exit(0 if ended else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_another_thread_may_go_on_after_the_main_thread_has_ended() -> None:
    """Python ends its own thread pools then."""
    program = """
import threading, time
from ssd.runtime.worker import Worker
worker = Worker(1)
def go_on():
    threading.main_thread().join()
    print(worker.submit(lambda: 7).result())
threading.Thread(target=go_on).start()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert (done.stdout.strip(), done.returncode) == ("7", 0), done.stderr
