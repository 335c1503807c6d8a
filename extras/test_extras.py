"""Tests of plot.py, of distributed.py in two processes on the CPU, and of README's Python."""

import contextlib
import json
import os
import re
import subprocess
import sys
import types
from collections import defaultdict
from pathlib import Path

import pytest
import torch
import torch.nn as nn
import torch.distributed as dist
import torch.multiprocessing

import common
import dcgan
import gan_mlp
import wgan_clip
import wgan_gp
from extras import distributed, plot

README = (Path(__file__).parent.parent / "README.md").read_text()
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("extras") / "digits"
    images, labels, _, _ = common.strokes(200)
    for label in range(2):
        common.save_images(images[labels == label] / 127.5 - 1, folder / str(label))
    return folder


def flags(digits, out):
    return (f"--epochs 1 --batch-size 8 --width 4 --z-dim 4 --device cpu --data {digits} "
            f"--data-dir {digits.parent} --out {out}").split()


def test_log(tmp_path):
    """Lines within an epoch count as a part of it, and empty cells are left out."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run/log.csv").write_text(
        "epoch,step,W,W_val\n1,5,0.5,\n1,10,0.4,0.3\n2,20,0.2,0.1\n")
    panels = defaultdict(lambda: defaultdict(list))
    plot.read_log(tmp_path / "run/log.csv", panels)
    run = tmp_path / "run"
    assert panels == {("W", "epoch"): {run: [(0.5, 0.5), (1, 0.4), (2, 0.2)]},
                      ("W_val", "epoch"): {run: [(1, 0.3), (2, 0.1)]}}


def test_quality(tmp_path):
    results = [{"path": f"out/gp/ckpt_{i}.pt", "epochs": i, "minutes": i / 2, "cFID": 90 / i,
                "W_cFID": [[1, 5, 90.0], [2, 3, 45.0]]} for i in (2, 1)]
    (tmp_path / "quality.json").write_text(json.dumps([*results, {"path": "folder", "cFID": 3}]))
    panels = defaultdict(lambda: defaultdict(list))
    plot.read_quality(tmp_path / "quality.json", panels)
    run = Path("out/gp").resolve()
    assert panels == {("cFID", "epochs"): {run: [(1, 90), (2, 45)]},
                      ("cFID", "minutes"): {run: [(0.5, 90), (1, 45)]},
                      ("cFID of G", "W"): {run: [(5, 90), (3, 45)]}}


def test_picture(tmp_path):
    """Runs keep their lines, names and colours, even if their folders have the same name."""
    a, b = tmp_path / "a/gp", tmp_path / "b/gp"
    panels = {("cFID", "minutes"): {b: [(1, 90), (2, 45)]},
              ("W", "epoch"): {a: [(1, 5), (2, 4)], b: [(1, 7), (3, 6)]}}
    first, second = plot.draw(panels).axes
    assert (first.get_xlabel(), first.get_xscale()) == ("minutes", "log")
    assert (first.get_ylabel(), first.get_yscale()) == ("cFID", "log")
    assert (second.get_xlabel(), second.get_xscale()) == ("epoch", "linear")
    lines = *first.lines, *second.lines
    assert [line.get_xydata().tolist() for line in lines] == [[[1, 90], [2, 45]], [[1, 5], [2, 4]],
                                                              [[1, 7], [3, 6]]]
    assert [line.get_label() for line in lines] == ["gp"] * 3
    assert lines[0].get_color() == lines[2].get_color() != lines[1].get_color()


def test_plot(tmp_path):
    (tmp_path / "log.csv").write_text("epoch,step,W\n1,5,0.5\n2,10,0.4\n")
    (tmp_path / "empty.csv").write_text("epoch,step,W\n")
    for path, out, code in (("log.csv", "x.png", None), ("missing.csv", "x.png", 2),
                            ("empty.csv", "x.png", 2),
                            ("log.csv", "no/x.png", 2), ("log.csv", "x.nothing", 2)):
        with pytest.raises(SystemExit) if code else contextlib.nullcontext():
            plot.main([str(tmp_path / path), "--out", str(tmp_path / out)])
    assert (tmp_path / "x.png").stat().st_size > 5_000


def test_single_points(tmp_path, monkeypatch):
    """A column with one value gets no panel, unless no column has more."""
    figures, draw = [], plot.draw
    monkeypatch.setattr(plot, "draw", lambda panels: figures.append(draw(panels)) or figures[-1])
    for rows in ("1,5,0.5,\n2,10,0.4,0.3\n", "1,5,0.5,0.3\n"):
        (tmp_path / "log.csv").write_text("epoch,step,W,W_val\n" + rows)
        plot.main([str(tmp_path / "log.csv"), "--out", str(tmp_path / "x.png")])
    assert [[axis.get_ylabel() for axis in figure.axes] for figure in figures] == [["W"],
                                                                                   ["W", "W_val"]]


def critic_step(x, eps, z):
    """The weights of a critic after one step of gradient descent, with given images and noise."""
    torch.manual_seed(0)
    G, D = wgan_gp.Generator(4, (1, 8, 8), 4), wgan_gp.Critic((1, 8, 8), 4)
    G.eval()                    # BatchNorm would mix the images of a process
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wgan_gp, "noise", lambda G, n: z)
        patch.setattr(torch, "rand", lambda *shape, device: eps)
        wgan_gp.train_critic(G, D, torch.optim.SGD(D.parameters(), lr=1.0), x)
    return torch.nn.utils.parameters_to_vector(D.parameters()).detach()


def inputs():
    torch.manual_seed(1)
    return torch.rand(8, 1, 8, 8), torch.rand(8, 1, 1, 1), torch.randn(8, 4)


def half_a_batch(rank):
    distributed.register_optimizer_step_pre_hook(distributed.average_gradients)
    return critic_step(*(v[rank::2] for v in inputs()))


def train(rank, folder):
    """Train wgan_clip in two parts. Return weights, real images, scores of fakes, and GIFs."""
    nets, real_images, scores, update, gifs = [], [], [], wgan_clip.train_critic, []

    def train_critic(G, D, opt, real, **settings):
        stats = update(G, D, opt, real, **settings)
        nets[:] = G, D
        real_images.append(real.clone())
        scores.append(stats["D(G(z))"].item())
        return stats

    wgan_clip.train_critic = train_critic
    common.save_gif = lambda grids, path: gifs.append(str(path))
    dist.init_process_group = dist.destroy_process_group = lambda **_: None     # start() does it
    os.environ["LOCAL_RANK"] = str(rank)
    args = [*flags(folder / "digits", folder / "run"), "--batch-size", "4", "--n-critic", "2"]
    load_images = common.load_images
    distributed.main("wgan_clip.py", *args, "--epochs", "2")
    common.load_images = load_images
    path = folder / "run/ckpt.pt"
    if rank == 0:               # resume as if from a run with --graph
        ckpt = torch.load(path, weights_only=True)
        ckpt["args"]["graph"] = True
        torch.save(ckpt, path)
    dist.barrier()
    distributed.main("wgan_clip.py", *args, "--epochs", "3", "--resume", str(path))
    weights = [w for net in nets for w in net.parameters()]
    return weights, torch.cat(real_images), scores, gifs


def start(rank, folder):
    torch.set_num_threads(1)
    destroy = dist.destroy_process_group
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    torch.save([half_a_batch(rank), *train(rank, folder)], folder / f"{rank}.pt")
    destroy()


@pytest.fixture(scope="module")
def pair(digits):
    """What the functions above return in each of two processes that form a group."""
    torch.multiprocessing.spawn(start, (digits.parent,), nprocs=2)
    return [torch.load(digits.parent / f"{rank}.pt") for rank in range(2)]


def test_two_halves_of_a_batch_give_the_gradient_of_the_whole(pair):
    (first, *_), (second, *_) = pair
    assert torch.equal(first, second)
    torch.testing.assert_close(first, critic_step(*inputs()))


def test_two_processes_train_one_network(pair, digits):
    (_, weights, real, scores, gifs), (_, weights2, real2, scores2, gifs2) = pair
    assert all(map(torch.equal, weights, weights2))
    # Each has its own noise, but for the first of the 10 steps, and the first after --resume.
    assert [i for i, (a, b) in enumerate(zip(scores, scores2)) if a == b] == [0, 10]
    images = [{x.numpy().tobytes() for x in part} for part in (real, real2)]
    assert not images[0] & images[1]                # and its own images
    ckpt = torch.load(digits.parent / "run/ckpt.pt", weights_only=True)
    assert ckpt["epoch"] == 3 and torch.equal(weights[0], next(iter(ckpt["G"].values())))
    assert ckpt["args"]["graph"] is False
    assert {*gifs} == {str(digits.parent / "run/samples.gif")} and not {*gifs} & {*gifs2}


def test_shares_order_and_noise(monkeypatch):
    """What each of three processes does, one after another, with a group that does nothing."""
    calls, images, noise = [], [], []
    monkeypatch.setattr(dist, "get_world_size", lambda: 3)
    monkeypatch.setattr(dist, "barrier", lambda: calls.append("barrier"))
    monkeypatch.setattr(dist, "all_reduce", lambda gradients: None)
    for rank in range(3):
        monkeypatch.setattr(dist, "get_rank", lambda: rank)
        distributed.first_alone(calls.append)("load")
        load = distributed.share(lambda train: (torch.arange(8), torch.arange(8) + 9, None))
        assert torch.equal(load(train=False)[0], torch.arange(8))
        images.append(load(train=True)[0].tolist())
        assert [x + 9 for x in images[rank]] == load(train=True)[1].tolist()
        weight = nn.Parameter(torch.ones(2))
        weight.grad = weight.detach()
        torch.manual_seed(0)
        distributed.average_gradients(torch.optim.SGD([weight]), (), {})
        noise.append(torch.rand(()).item())
    assert calls == ["load", "barrier", "barrier", "load", "barrier", "load"]
    assert images == [[0, 3], [1, 4], [2, 5]] and len({*noise}) == 3
    with pytest.raises(SystemExit, match="--graph"):
        distributed.main("wgan_clip.py", "--graph")


def test_launcher(digits, tmp_path):
    """The command line works for a script that sets its seed twice, and an error ends both."""
    args = " ".join(flags(digits, tmp_path / "x"))
    args = args.replace("--z-dim 4", "--z1-dim 4 --z0-dim 4 --encoder-epochs 1").split()
    command = [*LAUNCH, "extras/distributed.py", "stackedgan.py", *args]
    root = Path(__file__).parent.parent
    first, second = (subprocess.run(command, cwd=root, capture_output=True, text=True)
                     for _ in range(2))
    assert first.returncode == 0 and first.stdout.count("wrote") == 1, first.stderr
    assert second.returncode and "ckpt.pt exists; use another --out" in second.stderr


def test_python_of_the_readme(digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    gan_mlp.main(flags(digits, "out/gan_mlp"))
    passages = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len(passages) == 2
    G = nn.Sequential(nn.Linear(3, 64), nn.Unflatten(1, (1, 8, 8)))
    D = nn.Sequential(nn.Flatten(), nn.Linear(64, 1))
    before = G[0].weight.clone(), D[1].weight.clone()
    for passage in passages:
        exec(passage, {"G": G, "D": D, "z_dim": 3, "batches": torch.rand(5, 4, 1, 8, 8)})
    assert not torch.equal(before[0], G[0].weight) and not torch.equal(before[1], D[1].weight)
    assert Path("out/mine.png").exists()


def test_recipe_for_few_images(digits, tmp_path):
    """Its lines shift what D sees in training, and never in evaluation."""
    lines = re.search(r"\n    ( +if self\.training:.*?)\n\n", README, re.S)[1]
    lines = lines.replace("\n    ", "\n")
    head, tail = Path(dcgan.__file__).read_text().split("class Discriminator")
    start = "def forward(self, x):\n"
    module = types.ModuleType("dcgan_edited")
    exec(f"{head}class Discriminator{tail.replace(start, start + lines + chr(10), 1)}",
         module.__dict__)
    module.main(flags(digits, tmp_path / "run"))
    D, x = module.Discriminator((1, 28, 28), 4), torch.rand(2, 1, 28, 28)
    assert len({D(x)[0].item() for _ in range(20)}) > 5
    assert len({D.eval()(x)[0].item() for _ in range(20)}) == 1
