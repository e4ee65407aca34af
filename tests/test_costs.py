"""What a call costs: counts against counting by hand, times against a clock that the calls set, peaks of memory."""

import mmap

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import models
from benchmarks import costs
from benchmarks.speed_parameters import photograph_in_motion
from models.baselines import External

CPU = torch.device("cpu")


def test_several_frames_of_a_pair_are_encoded_once():
    model = models.build("IFRNet_S")
    one, eight = costs.macs(model, 64, 96), costs.macs(model, 64, 96, 8)
    encoder = FlopCounterMode(display=False)
    with encoder, torch.no_grad():
        model.encoder(torch.rand(2, 3, 64, 96))
    assert eight - one == 7 * (one - encoder.get_total_flops() // 2)


@pytest.mark.parametrize("name, papers", [("IFRNet_S", 0.10), ("IFRNet", 0.18), ("IFRNet_L", 0.71)])
def test_macs_are_the_papers_and_those_of_all_convolutions(name, papers):
    assert round(costs.macs(models.build(name), 720, 1280) / 1e12, 2) == papers
    model, total = models.build(name), 0

    def count(module, inputs, output):
        nonlocal total
        # The kernel is applied once per output value, in a transposed convolution once per input value.
        transposed = isinstance(module, torch.nn.ConvTranspose2d)
        total += (inputs[0] if transposed else output).numel() * module.weight[0].numel()

    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
            module.register_forward_hook(count)
    with torch.no_grad():
        model(torch.rand(1, 3, 32, 48), torch.rand(1, 3, 32, 48), 0.5)
    assert costs.macs(models.build(name), 32, 48) == total


@pytest.mark.parametrize("scale", [1.0, 0.5, "multi"])
def test_macs_at_a_scale_are_those_of_the_interpolator_for_frames_of_any_size(scale):
    model, times = models.build("IFRNet_S"), [0.25, 0.5]
    with FlopCounterMode(display=False) as counter:
        models.Interpolator(model, CPU, scale=scale)(*photograph_in_motion(250, 70), times)
    assert costs.macs(model, 70, 250, len(times), scale) == counter.get_total_flops() // 2


def test_weights_that_a_methods_first_call_makes_are_counted_without_those_that_no_call_makes(tmp_path):
    path = tmp_path / "lazy.py"
    path.write_text(
        "import torch\nclass Net(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.layer, self.unused = torch.nn.LazyConv2d(3, 1), torch.nn.LazyConv2d(9, 1)\n"
        "    def forward(self, pair):\n        return self.layer(pair).sigmoid()\nnet = Net()\n"
        "def interpolate(img0, img1):\n    return net(torch.cat([img0, img1], 1))\n"
    )
    pair = photograph_in_motion(32, 16)
    assert costs.counted(External(path, "cpu"), pair) == (32 * 16 * 18, 21)


@pytest.mark.parametrize("one_graph", [False, True])
def test_a_compiled_method_is_counted_without_a_word_of_pytorchs_about_hooks(one_graph, tmp_path, recwarn):
    path = tmp_path / "compiled.py"
    path.write_text(
        f"import torch\nlayer = torch.compile(torch.nn.Conv2d(6, 3, 1), backend='eager', fullgraph={one_graph})\n"
        "def interpolate(img0, img1):\n    return layer(torch.cat([img0, img1], 1)).sigmoid()\n"
    )
    call, pair = External(path, "cpu"), photograph_in_motion(32, 16)
    call(*pair)
    for _ in range(2):
        assert costs.counted(call, pair) == (32 * 16 * 18, 21)
    assert not [str(each.message) for each in recwarn if "hooks" in str(each.message)]


def test_ways_are_timed_in_turn_and_the_warm_up_does_not_count(monkeypatch):
    clock, order = 0.0, []
    monkeypatch.setattr(costs.time, "perf_counter", lambda: clock)

    def call(name, seconds):
        def work():
            nonlocal clock
            order.append(name)
            clock += seconds * (10 if len(order) <= 2 else 1)

        return work

    times = costs.in_turn([call("a", 0.25), call("b", 0.5)], CPU, seconds=30)
    assert order[:6] == ["a", "b"] * 3 and times == [[0.25] * costs.LEAST + [0.25], [0.5] * costs.LEAST + [0.5]]


def test_peak_memory_sees_what_a_call_holds():
    if costs.peak_memory(lambda: None, CPU) is None:
        pytest.skip("this system does not tell the peak")
    small = costs.peak_memory(lambda: None, CPU)
    # Mapped, for an allocation of that size may get memory that the process holds free: its peak then stays.
    large = costs.peak_memory(lambda: torch.frombuffer(mmap.mmap(-1, 200 * 2**20), dtype=torch.uint8).fill_(1), CPU)
    assert 150 < large - small < 300
    assert costs.peak_memory(lambda: None, CPU) < small + 100
