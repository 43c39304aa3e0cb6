"""Every op can be captured in a CUDA graph and replayed. Concurrent streams and graphs do not disturb each other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gpu.on_gpu import call, named_examples, on_gpu
from ops.backend import chosen
from ops.cases import assert_same_bits
from ops.examples import Arguments

EXAMPLES = list(named_examples()) if chosen.name == "gpu" else []
every_op = pytest.mark.parametrize("op, arguments", [e[1:] for e in EXAMPLES], ids=[e[0] for e in EXAMPLES])


def copies(arguments: Arguments) -> Arguments:
    return {name: x.clone() if isinstance(x, Tensor) else x for name, x in arguments.items()}


def put_back(arguments: Arguments, before: Arguments) -> None:
    for name, x in before.items():
        if isinstance(x, Tensor):
            arguments[name].copy_(x)


def all_of(op: str, arguments: Arguments) -> list[Tensor]:
    results, written = call(op, arguments)
    return results + written


def assert_all_same_bits(found: list[Tensor], expected: list[Tensor]) -> None:
    for x, y in zip(found, expected, strict=True):
        assert_same_bits(x, y)


@every_op
def test_a_replayed_graph_gives_the_ops_bits(op: str, arguments: Arguments) -> None:
    arguments = on_gpu(arguments)
    before = copies(arguments)
    expected = all_of(op, copies(arguments))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results, written = call(op, arguments)
    for _ in range(3):
        put_back(arguments, before)
        for result in results:
            result.view(torch.uint8).fill_(0x7B)
        graph.replay()
        torch.cuda.synchronize()
        assert_all_same_bits(results + written, expected)


@every_op
def test_two_graphs_captured_on_one_stream_can_be_replayed_on_two_at_once(op: str, arguments: Arguments) -> None:
    expected = all_of(op, on_gpu(arguments))
    graphs, found, kept = [], [], []
    for _ in range(2):
        static = on_gpu(arguments)
        before = copies(static)
        kept.append((static, before))  # a graph keeps only addresses, so keep the tensors alive
        graphs.append(torch.cuda.CUDAGraph())
        with torch.cuda.graph(graphs[-1]):
            for _ in range(5):
                put_back(static, before)
                result = all_of(op, static)
        found.append(result)
    streams = [torch.cuda.Stream() for _ in graphs]
    torch.cuda.synchronize()
    for _ in range(20):
        for graph, stream in zip(graphs, streams, strict=True):
            with torch.cuda.stream(stream):
                graph.replay()
    torch.cuda.synchronize()
    for result in found:
        assert_all_same_bits(result, expected)


@every_op
def test_two_concurrent_streams_give_the_bits_of_one(op: str, arguments: Arguments) -> None:
    expected = all_of(op, on_gpu(arguments))
    streams = [torch.cuda.Stream() for _ in range(2)]
    calls = [[on_gpu(arguments) for _ in range(10)] for _ in streams]
    torch.cuda.synchronize()
    found = []
    for turn in zip(*calls, strict=True):
        for stream, each in zip(streams, turn, strict=True):
            with torch.cuda.stream(stream):
                found.append(all_of(op, each))
    torch.cuda.synchronize()
    for result in found:
        assert_all_same_bits(result, expected)
