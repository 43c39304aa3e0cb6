"""A forked child uses its parent's engine: its tokens are right, it ends cleanly, and the parent goes on.

Each program runs by itself, must print its lines and nothing to stderr, and ends itself after two minutes. The vocabulary is
large enough for torch's own loops to use several threads, which a fork does not copy.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import tiny
from ssd import Engine, SamplingParams

PROMPTS = [[5, 9, 12, 40, 7], [3, 1, 4]]
MODES = ("ar", "sd", "ssd")

SETUP = """
import multiprocessing, os, signal, sys, threading
from ssd import Engine, SamplingParams
from ssd.errors import SsdError
signal.alarm(120)
target, mode, prompts = sys.argv[1], sys.argv[2], {prompts}
engine = Engine(target, None if mode == "ar" else "self:1", mode, threads=2, dtype="float32", max_context=64)
params = SamplingParams(max_new_tokens=10)

def decode():
    return [completion.token_ids for completion in engine.decode(prompts, params)]

def fork(child):
    sys.stdout.flush()
    process = os.fork()
    if process == 0:
        signal.alarm(60)
        child()
        sys.exit(0)
    return process

def ended(process):
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
"""


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("wide")
    tiny.write_model(path, seed=5, vocab_size=40_000, hidden_size=32, intermediate_size=32, num_hidden_layers=2)
    return str(path)


@pytest.fixture(scope="module")
def expected(target: str) -> list[list[int]]:
    with Engine(target, None, "ar", dtype="float32", threads=1) as engine:
        return [completion.token_ids for completion in engine.decode(PROMPTS, SamplingParams(max_new_tokens=10))]


def run(target: str, mode: str, program: str) -> list[str]:
    """The lines that the program prints, after checking that it ended well and in silence."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", SETUP.format(prompts=PROMPTS) + program, target, mode],
        capture_output=True,
        text=True,
        check=False,
        timeout=150,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


@pytest.mark.parametrize("mode", MODES)
def test_a_forked_child_decodes_and_ends_however_it_ends(target: str, expected: list[list[int]], mode: str) -> None:
    """Forked before the parent's first decode and after it; it returns, exits at once, closes the engine, or forks again."""
    lines = run(
        target,
        mode,
        """
def show():
    print(decode(), flush=True)

def show_and_close():
    with engine:
        show()

def show_and_exit():
    show()
    os._exit(3)

def change_threads():
    import torch
    torch.set_num_threads(3)
    show()

def fork_again():
    show()
    print(ended(fork(show)), flush=True)

print(ended(fork(lambda: None)), ended(fork(show)), flush=True)
show()
for child in (lambda: None, engine.close, show, show_and_close, show_and_exit, change_threads, fork_again):
    print(ended(fork(child)), flush=True)
    show()
engine.close()
print(ended(fork(lambda: None)))
""",
    )
    tokens = str(expected)
    children = (["0"], ["0"], [tokens, "0"], [tokens, "0"], [tokens, "3"], [tokens, "0"], [tokens, tokens, "0", "0"])
    assert lines == [tokens, "0 0", tokens, *(line for child in children for line in (*child, tokens)), "0"]


@pytest.mark.parametrize("mode", MODES)
def test_processes_and_pools_that_fork_share_an_engine(target: str, expected: list[list[int]], mode: str) -> None:
    """The parent decodes while they run; one of them still decodes after the parent has closed its engine."""
    lines = run(
        target,
        mode,
        """
context = multiprocessing.get_context("fork")

def work(_):
    return decode()

def answer(go, results):
    go.recv()
    results.send(decode())

with context.Pool(2) as pool:
    first = pool.map_async(work, range(4))
    print(decode())
    for tokens in first.get():
        print(tokens)
pool.join()
go, going = context.Pipe()
results, sending = context.Pipe()
process = context.Process(target=answer, args=(going, sending))
process.start()
print(decode())
engine.close()
go.send(None)
print(results.recv())
process.join()
print(process.exitcode)
""",
    )
    assert lines == [str(expected)] * 7 + ["0"]


@pytest.mark.parametrize("mode", MODES)
def test_a_stream_that_is_half_read_goes_on_in_both_processes(target: str, mode: str, tmp_path: Path) -> None:
    """The target needs a tokenizer, so it is another one. A child that leaves the stream unread ends cleanly too."""
    vocabulary = tiny.vocabulary_of_bytes()
    tiny.write_model(tmp_path, tokenizer=vocabulary, vocab_size=288)
    lines = run(
        str(tmp_path),
        mode,
        """
def rest():
    list(pieces)
    print(stream.completion.token_ids, engine.core.scheduler.pages.available == engine.core.scheduler.pages.capacity, flush=True)

def rest_beside_another():
    decode()
    rest()

params = SamplingParams(max_new_tokens=24, ignore_eos=True)
stream = engine.stream(prompts[0], params)
pieces = iter(stream)
next(pieces)
print(ended(fork(lambda: None)), ended(fork(rest)), ended(fork(rest_beside_another)), ended(fork(stream.close)))
rest()
""",
    )
    with Engine(str(tmp_path), None, "ar", dtype="float32", threads=1) as engine:
        whole = engine.decode(PROMPTS[0], SamplingParams(max_new_tokens=24, ignore_eos=True))
    assert lines == [f"{whole.token_ids} True"] * 2 + ["0 0 0 0"] + [f"{whole.token_ids} True"]


@pytest.mark.parametrize("mode", MODES)
def test_a_child_that_was_forked_in_the_middle_of_a_step_is_told_so(target: str, expected: list[list[int]], mode: str) -> None:
    """Another thread decodes at that time. The child can close the engine and end; the parent's decode goes on."""
    lines = run(
        target,
        mode,
        """
inside, go_on, one_round = threading.Event(), threading.Event(), engine.core.failover.round

def held(n):
    inside.set()
    go_on.wait()
    return one_round(n)

def refused():
    for call in (decode, engine.core.step):
        try:
            call()
        except SsdError as error:
            print(error)
    engine.close()

engine.core.failover.round = held
thread = threading.Thread(target=lambda: print(decode()))
thread.start()
inside.wait()
print(ended(fork(refused)), ended(fork(lambda: None)), flush=True)
go_on.set()
thread.join()
print(decode())
""",
    )
    refusal = (
        "this process was forked while another thread decoded with this engine, and cannot use it; fork between decodes, or spawn a "
        "process and make an engine in it."
    )
    assert lines == [refusal, refusal, "0 0", str(expected), str(expected)]
