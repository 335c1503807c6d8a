"""Tests of plot.py, of distributed.py in two processes on the CPU, and of README's Python."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn as nn

import common
import dcgan
import gan_mlp
import stackedgan
import wgan_clip
import wgan_gp
from extras import distributed, plot

HERE = Path(__file__).parent
README = (HERE.parent / "README.md").read_text()


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("extras") / "digits"
    images, labels, _, _ = common.digits(200)
    for label in range(2):
        common.save_images(images[labels == label] / 127.5 - 1, folder / str(label))
    return folder


def train(script, folder, out, *more, main=None):
    """Train a script for 2 epochs of 9 steps on images of `folder`, or as the flags `more` say."""
    special = {wgan_clip: "--n-critic 2", wgan_gp: "--n-critic 2", stackedgan: "--encoder-steps 3"}
    argv = (f"--data {folder} --out {out} --image-size 8 --batch-size 4 --width 4 --epochs 2 "
            f"--save-every 1 --log-every 1 --device cpu {special.get(script, '')}").split()
    (main or script.main)([*argv, *map(str, more)])


def load(out, name="ckpt.pt"):
    """Return what a checkpoint has of networks, optimizers and the log, but for the times."""
    ckpt = torch.load(out / name, map_location="cpu", weights_only=True)
    rows = [{k: v for k, v in row.items() if k != "minutes"} for row in ckpt["rows"]]
    return {"rows": rows, **{k: v for k, v in ckpt.items() if re.match("[GDEz]|opt", k)}}


def test_plot(tmp_path, monkeypatch):
    """Runs keep their lines, names and colours, even if their folders have the same name."""
    figures, draw = [], plot.draw
    monkeypatch.setattr(plot, "draw", lambda panels: figures.append(draw(panels)) or figures[-1])
    paths = [tmp_path / name for name in ("a/gp/log.csv", "b/gp/log.csv", "quality.json")]
    for path, rows in zip(paths, ("1,5,1,0.5,\n1,8,2,0.4,\n2,20,3,0.2,4\n", "1,9,1,7,6\n")):
        path.parent.mkdir(parents=True)
        path.write_text("epoch,step,minutes,W,W_val\n" + rows)
    paths[2].write_text(json.dumps([{"path": "folder", "cFID": 3}, *(
        {"path": f"{tmp_path}/b/gp/ckpt_{i}.pt", "epochs": i, "minutes": i / 2, "cFID": 90 / i,
         "W_cFID": [[1, 5, 90], [2, 3, 45]]} for i in (2, 1))]))
    plot.main([*map(str, paths), "--out", str(tmp_path / "x.png")])
    assert (tmp_path / "x.png").stat().st_size > 5_000
    a, b = ("gp", "C0"), ("gp", "C1")
    assert {(axis.get_ylabel(), axis.get_xlabel(), axis.get_yscale(), axis.get_xscale()):
            {(x.get_label(), x.get_color()): x.get_xydata().tolist() for x in axis.lines}
            for axis in figures[0].axes} == {       # but no W_val, which has single points
        ("W", "epoch", "linear", "linear"): {a: [[0.5, 0.5], [0.8, 0.4], [2, 0.2]], b: [[1, 7]]},
        ("cFID", "epochs", "log", "linear"): {b: [[1, 90], [2, 45]]},
        ("cFID", "minutes", "log", "log"): {b: [[0.5, 90], [1, 45]]},
        ("cFID of G", "W", "log", "log"): {b: [[5, 90], [3, 45]]}}
    plot.main([str(paths[1]), "--out", str(tmp_path / "x.png")])
    assert [axis.get_ylabel() for axis in figures[1].axes] == ["W", "W_val"]
    for argv in [paths[1], "--out", tmp_path / "no/x.png"], [tmp_path / "none.csv"], [__file__]:
        with pytest.raises(SystemExit, match="2"):
            plot.main(list(map(str, argv)))


# ---- distributed.py ----

def linear_step(x):
    """Return the weights of a linear map after one step of gradient descent on the batch x."""
    torch.manual_seed(0)
    net = nn.Linear(3, 2)
    net(x).square().mean().backward()
    torch.optim.SGD(net.parameters(), lr=0.01).step()
    return nn.utils.parameters_to_vector(net.parameters()).detach()


def main(argv):
    """Run in each of two processes: distributed.py takes this file for a script."""
    folder, rank = Path(argv[0]), dist.get_rank()
    assert len(argv) == (1, 3)[rank]            # the second process got an --out of its own
    torch.save(linear_step(torch.arange(12.0).view(4, 3)[rank::2]), folder / f"half{rank}.pt")
    for script, out, *more in (
            (stackedgan, f"{rank}/stackedgan"), (wgan_clip, f"{rank}/whole", "--epochs", 3),
            (wgan_clip, f"{rank}/part"),
            (wgan_clip, f"{rank}/resumed", "--epochs", 3, "--resume", folder / "0/part/ckpt.pt"),
            # The first process refuses this, and the second one must not wait for it for ever.
            (wgan_clip, f"{rank}/new" if rank else "0/whole")):
        train(script, folder / "digits", folder / out, *more)
        dist.barrier()


@pytest.fixture(scope="module")
def pair(digits):
    """The folder with the runs of two processes, and what the processes printed."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
               "2", HERE / "distributed.py", __file__, digits.parent]
    return digits.parent, subprocess.run(command, capture_output=True, text=True, timeout=100)


@pytest.mark.parametrize("run", ("stackedgan", "whole", "resumed"))
def test_two_processes_train_one_network(pair, run):
    """Their weights are equal, although noise and images differ from the first step on."""
    first, second = (load(pair[0] / f"{rank}/{run}") for rank in range(2))
    for net in first.keys() & {"E", "G", "D", "G0", "D0", "G1", "D1"}:
        for name, value in first[net].items():
            assert "running" in name or torch.equal(value, second[net][name]), name
    column = "loss_fake1" if run == "stackedgan" else "D(G(z))"
    steps = zip(first["rows"], second["rows"])
    assert all(a[column] != b[column] for a, b in steps if run != "resumed" or a["epoch"] == 3)
    real, other = ((pair[0] / f"{rank}/{run}/samples/real.png").read_bytes() for rank in range(2))
    assert real != other
    if run == "resumed":
        torch.testing.assert_close(first, load(pair[0] / "0/whole"), rtol=0, atol=0)


def test_gradients_prints_and_errors(pair):
    """Two halves of a batch give the gradient of the whole; one process prints; an error ends."""
    for rank in range(2):
        half = torch.load(pair[0] / f"half{rank}.pt")
        torch.testing.assert_close(half, linear_step(torch.arange(12.0).view(4, 3)))
    assert pair[1].stdout.count("wrote") == 4, pair[1].stderr
    assert "0/whole holds a run" in pair[1].stderr and pair[1].returncode


def test_order_shares_and_noise(monkeypatch):
    """What each of three processes does, one after another, with a group that does nothing."""
    calls, images, noise = [], [], []
    monkeypatch.setattr(dist, "get_world_size", lambda: 3)
    monkeypatch.setattr(dist, "barrier", lambda: calls.append("barrier"))
    load = distributed.share(lambda train: (torch.arange(8), torch.arange(8) + 9, None))
    draw = distributed.own_noise(lambda: noise.append(torch.rand(()).item()))
    for rank in range(3):
        monkeypatch.setattr(dist, "get_rank", lambda: rank)
        distributed.first_alone(calls.append)("load")
        assert len(load(train=False)[0]) == 8
        images.append([x.tolist() for x in load(train=True)[:2]])
        for epoch in range(4):
            torch.manual_seed(epoch)
            draw()
            draw()              # without a new seed, as in stackedgan's pretrain
    assert calls == ["load", "barrier", "barrier", "load", "barrier", "load"]
    assert images == [[[i, i + 3], [i + 9, i + 12]] for i in range(3)] and len({*noise}) == 24


# ---- README.md ----

def test_python_of_the_readme(digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train(gan_mlp, digits, "out/gan_mlp")
    passages = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len(passages) == 2
    G = nn.Sequential(nn.Linear(3, 64), nn.Unflatten(1, (1, 8, 8)))
    D = nn.Sequential(nn.Flatten(), nn.Linear(64, 1))
    before = G[0].weight.clone(), D[1].weight.clone()
    for passage in passages:
        exec(passage, {"G": G, "D": D, "z_dim": 3, "batches": torch.rand(5, 4, 1, 8, 8)})
    assert not torch.equal(before[0], G[0].weight) and not torch.equal(before[1], D[1].weight)
    assert Path("out/mine.png").exists()
