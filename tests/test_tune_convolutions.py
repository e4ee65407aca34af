"""The search for the quickest division of GPU convolutions: what it looks at, what it tries, what it tells."""

import pytest
import torch

import models
from benchmarks import tune_convolutions as tune
from models import cuda_convolution, fast
from models.cuda_convolution import KINDS, Plan, kind_of
from models.interpolator import Interpolator

HOPPER, ADA = tune.Limits(227 * 1024, 228 * 1024, 65_536), tune.Limits(99 * 1024, 100 * 1024, 65_536)


@pytest.fixture(params=list(models.VARIANTS))
def call(request, monkeypatch):
    """A network set up as on a GPU, but computed by PyTorch in float32."""
    monkeypatch.setattr(fast, "for_gpu", lambda device: True)
    call = Interpolator(tune.network(request.param)[0], "cpu", "fp32", mode="fast")
    call.fast.kernel = tune.Eager()
    return call


def test_every_convolution_of_a_frame_is_counted_and_can_be_called(call):
    kernel = call.fast.kernel
    counts = tune.layers(call, 64, 48)
    assert call.fast.kernel is kernel
    # 8 convolutions of the encoder and 7 of each decoder. Not the kernel's: a first one that is larger than 3x3, as
    # IFRNet_L's, and those on the side channels alone, 2 in each decoder, where these do not come in groups of 8.
    variant = call.model.variant
    assert sum(counts.values()) == 36 - (variant.stem > 3) - 8 * (variant.side % 8 > 0)
    assert len({layer.like for layer in counts}) == len(counts)
    for layer in counts:
        conv, *rest = layer.arguments(torch.device("cpu"), torch.float32)
        answer = conv(kernel, *rest)
        whole, *side = answer if layer.tail else (answer,)
        stride, up = KINDS[kind_of(layer.conv)][1:]
        assert whole.shape[2:] == tuple(up * side // stride for side in layer.shape[2:])
        assert whole.shape[1] == (layer.whole or layer.outputs) and [x.shape[1] for x in side] == [layer.tail] * len(
            side
        )
    work = [count * layer.work for layer, count in counts.items()]
    assert work == sorted(work, reverse=True)


def test_plans_fit_a_multiprocessor_and_hold_the_one_in_use(call):
    for layer in tune.layers(call, 64, 48):
        kind = KINDS[kind_of(layer.conv)]
        tried = list(tune.plans(HOPPER, *kind, layer.outputs))
        assert len(set(tried)) == len(tried) > 20
        for limits in (HOPPER, ADA):
            for plan in tune.plans(limits, *kind, layer.outputs):
                assert plan.shared <= limits.block and (plan.shared + 1024) * plan.blocks <= limits.shared
                assert plan.threads * plan.blocks * 4 * plan.groups * plan.fragments < limits.registers
                assert plan.warps * plan.fragments * 16 == plan.tall * plan.across
        used = cuda_convolution.plan_for(*kind, 1, 4000, 4000, layer.outputs)
        assert used._replace(blocks=1) in [plan._replace(blocks=1) for plan in tried]


def test_in_use_is_what_a_frame_computes(call, monkeypatch):
    class Noting(tune.Eager):
        used = []

        def convolves(self, conv, x):
            return True

        def convolve(self, conv, *rest):
            self.used.append(conv)

    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(tune, "recorded", lambda call, pool: call)
    monkeypatch.setattr(tune, "in_turn", lambda calls, *_: (calls[0](), [[2.0], [3.0]])[1])
    layer = next(iter(tune.layers(call, 64, 48)))
    times = tune.timed(layer, [], Noting(), torch.device("cpu"), 0)
    assert times == {"in use": 2.0 / tune.CALLS, "cuDNN": 3.0 / tune.CALLS} and Noting.used == [layer.conv]


def test_a_layers_times_are_told_beside_the_plan_in_use(call):
    layer, plans = next(iter(tune.layers(call, 64, 48))), [Plan(3, 1, 1, 4, n, 16, 9) for n in (1, 2, 3, 4)]
    times = {"in use": 80e-6, "cuDNN": 99e-6, **dict(zip(plans, (70e-6, 90e-6, 60e-6, 100e-6)))}
    head, *lines = tune.tell(layer, 2, times).splitlines()
    assert head.startswith("2 x ") and head.endswith(": 80.0 us, cuDNN 99.0")
    assert [line.split(" (")[0].strip() for line in lines] == ["60.0", "70.0", "90.0"]
    assert "(75%) warps 4, fragments 3, across 16, groups 9" in lines[0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_run_on_a_gpu_tells_all_layers(typed, monkeypatch):
    if not cuda_convolution.available(torch.device("cuda"), torch.float16):
        pytest.skip("the convolutions cannot be built for this GPU")
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)  # put back afterwards
    few = [Plan(*kind, 4, 2, 16, 3) for kind in KINDS.values()]
    monkeypatch.setattr(tune, "plans", lambda limits, *kind: [p for p in few if p[:3] == kind[:3]])
    done = typed(tune.main, tune.parser(), "--model_name", "IFRNet_S", "--sizes", "64x48", "--minutes", "0.01")
    assert done.status == 0 and done.out.count("cuDNN") > 20 and "all: in use" in done.out, done.err


def test_without_a_gpu_it_says_so(typed):
    done = typed(tune.main, tune.parser(), "--device", "cpu")
    assert done.status == 2 and "cpu: no GPU that models/convolution.cu" in done.err
