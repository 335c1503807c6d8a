"""Tests of graphs.py: on a GPU, and with a stand-in for CUDA graphs on the CPU."""

import copy
import inspect
import re
import runpy
import sys
import warnings

import pytest
import torch
import torch.nn as nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import dcgan
import gan_mlp
import infogan
import stackedgan
import wgan_clip
import wgan_gp
from extras import graphs
from test_extras import HERE, digits, load, train

SCRIPTS = gan_mlp, dcgan, wgan_clip, wgan_gp, infogan, stackedgan
warnings.simplefilter("ignore", pytest.PytestUnknownMarkWarning)    # gpu is registered nowhere
gpu = pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


class FakeGraph(TorchDispatchMode):
    """A CUDA graph for the CPU: `replay` runs the recorded operations again on the same tensors."""

    def __init__(self):
        super().__init__()
        self.recorded, self.replays = [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.recorded.append((function, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def replay(self):
        self.replays += 1
        if self.replays == 1:           # unlike a CUDA graph, it ran while it was recorded
            return
        for function, args, kwargs, result in self.recorded:
            for old, new in zip(tree_leaves(result), tree_leaves(function(*args, **kwargs))):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


@pytest.fixture
def fake_cuda(monkeypatch):
    """Replace what graphs.py uses of torch.cuda, and return the list of the streams it sets."""
    streams = []
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: f"a stream of {device}")
    monkeypatch.setattr(torch.cuda, "set_stream", streams.append)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: streams[-1])
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, stream: graph)   # a context manager
    return streams


def main_of_graphs(script, device, argv):
    """Train with graphs, undo all that graphs.py replaced, and return the steps that it made."""
    def on_cpu(argv):
        assert torch.optim.Adam.__name__ == torch.optim.RMSprop.__name__ == "Capturable"
        patch.setattr(torch.cuda, "is_available", lambda: False)
        main([*argv, "--device", "cpu"])

    main = script.main
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim, "Adam", torch.optim.Adam)
        patch.setattr(torch.optim, "RMSprop", torch.optim.RMSprop)
        for name, function in inspect.getmembers(script, inspect.isfunction):
            patch.setattr(script, name, function)
        if device == "cpu":
            patch.setattr(script, "main", on_cpu)
            patch.setattr(torch.cuda, "is_available", lambda: True)
        if device == "cpu" and script in (wgan_clip, stackedgan):   # what they use asserts on a CPU
            patch.setattr(graphs, "capturable", lambda opt: type("Capturable", (opt,), {}))
        graphs.main(f"{script.SCRIPT}.py", *argv, "--device", "cuda")
        return {k: v for k, v in vars(script).items() if isinstance(v, graphs.GraphedStep)}


@pytest.mark.parametrize("device", ("cpu", pytest.param("cuda", marks=gpu)))
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.SCRIPT)
def test_graphs_train_as_without(script, device, digits, tmp_path, request):
    """A run with graphs equals one without, also after each has been resumed as the other kind."""
    def assert_equal():
        a, b = (load(tmp_path / x) for x in "ab")
        if device == "cpu":
            torch.testing.assert_close(a, b, rtol=0, atol=0)
        else:
            torch.testing.assert_close(a["rows"], b["rows"], rtol=1e-3, atol=1e-4)

    def with_graphs(argv):
        steps.update(main_of_graphs(script, device, argv))

    if device == "cpu":
        request.getfixturevalue("fake_cuda")
    steps, without = {}, script.main
    train(script, digits, tmp_path / "a", "--device", device)
    train(script, digits, tmp_path / "b", "--device", device, main=with_graphs)
    names = re.findall(r"^def (train_\w+)", inspect.getsource(script), re.M)
    assert [*steps] == names and len(names) == 2
    for step in steps.values():
        assert len(step.recordings) == 1 + (script is stackedgan)
        assert all(recording.calls > 5 for recording in step.recordings.values())
    assert_equal()
    for x, main in ("a", with_graphs), ("b", without):
        train(script, digits, tmp_path / x, "--device", device, "--epochs", 3,
              "--resume", tmp_path / x / "ckpt.pt", main=main)
    assert_equal()
    train(script, digits, tmp_path / "b", "--epochs", 4, "--resume", tmp_path / "b/ckpt.pt")


def test_what_is_recorded_anew(fake_cuda):
    """Data may change, and each set of networks has its recording. All else makes a new one."""
    def train_step(net, opt, x, scale):
        ran.append(net)
        loss = scale * net(x.float()).square().mean()
        net.zero_grad()
        loss.backward()
        opt.step()
        return {"loss": loss, "scale": scale}

    def python_calls(i, n=4, scale=1.0, dtype=torch.float32):
        """Call the step 6 times with new data, and return how often this ran train_step."""
        ran.clear()
        for _ in range(6):
            x = torch.rand(n, 2, dtype=dtype)
            expected.append(train_step(twins[i], twin_opts[i], x, scale) | {"x": x.clone()})
            results.append(step(nets[i], opts[i], x, scale=scale) | {"x": x})
        return ran.count(nets[i])

    fake_cuda.append("a stream")
    ran, results, expected, step = [], [], [], graphs.GraphedStep(train_step)
    nets = nn.Linear(2, 2), nn.Linear(2, 2)
    twins = copy.deepcopy(nets)
    opts = [torch.optim.SGD(net.parameters(), 0.1) for net in nets]
    twin_opts = [torch.optim.SGD(net.parameters(), 0.1) for net in twins]
    assert [python_calls(i) for i in (0, 0, 1, 0, 1)] == [4, 0, 4, 0, 0]
    for opt in opts[0], twin_opts[0]:
        opt.param_groups[0].update(lr=0.2)
    assert [python_calls(0), python_calls(1), python_calls(0)] == [4, 0, 0]
    assert python_calls(0, scale=2.0) == 4 and python_calls(0, scale=2.0, n=3) == 4
    assert python_calls(1, dtype=torch.float64) == 4
    assert len(step.recordings) == 2        # the older ones do not fill the memory
    torch.testing.assert_close(results, expected, rtol=0, atol=0)


@pytest.mark.parametrize("optimizer", (torch.optim.Adam, torch.optim.RMSprop))
def test_state_of_optimizers(optimizer):
    """A plain checkpoint becomes capturable, with its step count on the GPU, and plain again."""
    weight, on_gpu = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2, device="meta"))
    weight.grad = torch.ones(2)
    plain, opt = optimizer([weight]), graphs.capturable(optimizer)([on_gpu], lr=0.5)
    assert opt.param_groups[0]["capturable"]
    plain.step()
    opt.load_state_dict(plain.state_dict())
    assert opt.param_groups[0]["capturable"] and opt.state[on_gpu]["step"].device.type == "meta"
    assert opt.state_dict()["param_groups"] == plain.state_dict()["param_groups"]
    assert opt.param_groups[0]["capturable"] and not plain.param_groups[0]["capturable"]


@pytest.mark.parametrize("argv, error", (
    (["gan_mlp.py", "--device", "cpu"], "error: CUDA graphs need"),
    (["gan_mlp.py", "--device", "cuda"], "error: CUDA graphs need"), ([], "usage: ")))
def test_refusals(argv, error, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: argv[-1] == "cpu")
    monkeypatch.setattr(sys, "argv", ["graphs.py", *argv])
    with pytest.raises(SystemExit, match=error) as stop:
        runpy.run_path(str(HERE / "graphs.py"), run_name="__main__")
    assert "\n" not in stop.value.code
