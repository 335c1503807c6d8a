"""Tests of the scripts and of common.py, on small data that they write: `python -m pytest`.

A script joins by its name in SCRIPTS; tests of one method alone stand in a section of its own.
"""

import contextlib
import copy
import functools
import gzip
import importlib
import io
import itertools
import json
import math
import os
import pickle
import re
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import time
import types
import urllib.error
import urllib.request
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from PIL import Image

import common
from benchmarks import quality, speed

HERE = Path(__file__).parent
TINY = ["--width", "4", "--z-dim", "4"]
SCRIPTS = {  # name: flags that make its networks tiny and let G move in every step
    "gan_mlp": TINY,
    "dcgan": TINY,
    "wgan_clip": [*TINY, "--n-critic", "1"],
    "wgan_gp": [*TINY, "--n-critic", "1"],
    "infogan": TINY,
    "stackedgan": (
        "--width 4 --z1-dim 4 --z0-dim 4 --encoder-epochs 1 --independent-epochs 2".split()
    ),
}
with warnings.catch_warnings():  # a mark of ours, without a configuration file to register it in
    warnings.simplefilter("ignore")
    gpu = pytest.mark.gpu


@pytest.fixture(params=SCRIPTS)
def script(request):
    """Each script's module in turn."""
    return importlib.import_module(request.param)


def D_names(script):
    """The names of D's class and of its update: those of a critic in the Wasserstein scripts."""
    if hasattr(script, "Critic"):
        return "Critic", "train_critic"
    return "Discriminator" + stack(script), "train_discriminator"


def stack(script):
    """Tests of all scripts take the lower stack of stackedgan.py, the one that makes images."""
    return "0" if script.SCRIPT == "stackedgan" else ""


def inputs(script, n):
    """What the G of networks(script) makes n images from; the noise z is the last or the first."""
    if script.SCRIPT == "infogan":
        return torch.randn(n, 4), script.codes(script.Generator(4, (1, 8, 8), 4), n)
    if script.SCRIPT == "stackedgan":
        return torch.rand(n, 64), torch.randn(n, 4)
    return (torch.randn(n, 4),)


def step_D(script, G, D, opt, real, **kwargs):
    condition = inputs(script, len(real))[:1] if stack(script) else ()
    return getattr(script, D_names(script)[1])(G, D, opt, real, *condition, **kwargs)


def step_G(script, G, D, opt, n, **kwargs):
    if not stack(script):
        return script.train_generator(G, D, opt, n, **kwargs)

    def E0(fake):  # any features of an image
        return fake.flatten(1)[:, :64]

    return script.train_generator(G, D, opt, inputs(script, n)[0], E0, **kwargs)


def write_images(folder, n=20, mode="L", size=(8, 8), seed=0):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for i in range(n):
        shape = (*size[::-1], len(mode)) if len(mode) > 1 else size[::-1]
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8), mode).save(
            folder / f"{i:03}.png"
        )
    return folder


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """40 grey 8×8 images in two classes: 36 to train on, so 4 batches of 8 and a short one."""
    folder = tmp_path_factory.mktemp("images")
    write_images(folder / "cat", seed=1)
    write_images(folder / "dog", seed=2)
    return folder


@pytest.fixture
def tensorboard(monkeypatch):
    """The calls made to a stand-in for the package, which is optional and not installed here."""
    calls = []

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            calls.append(("open", purge_step))

        def __getattr__(self, name):
            return lambda *args: calls.append((name, *args))

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    return calls


def runner(script, folder, tmp_path):
    """run(*flags) trains the script on `folder` in batches of 8, unless flags say otherwise."""

    def run(*flags):
        if "--sample" not in flags and "--resume" not in flags:
            flags = [
                "--data",
                folder,
                "--batch-size",
                8,
                "--epochs",
                2,
                "--out",
                tmp_path / "run",
                "--data-dir",
                tmp_path / "data",
                *SCRIPTS[script.SCRIPT],
                *flags,
            ]
        script.main([str(flag) for flag in flags])
        return tmp_path / "run"

    return run


@pytest.fixture
def run(script, folder, tmp_path):
    return runner(script, folder, tmp_path)


@pytest.fixture
def run_gan(folder, tmp_path):
    return runner(gan_mlp, folder, tmp_path)


def refused(capsys, call, *flags):
    """The line on standard error with which call(*flags) ends: one line, and exit code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        call(*flags)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1, error
    return error


def load(path):
    return torch.load(path, weights_only=True)


def tensors(tree, prefix=""):
    """All tensors and numbers of nested dictionaries and lists, by path."""
    if isinstance(tree, (dict, list, tuple)):
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return {k: v for key, value in items for k, v in tensors(value, f"{prefix}/{key}").items()}
    return {prefix: tree}


def assert_same(a, b):
    a, b = tensors(a), tensors(b)
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]) if torch.is_tensor(a[key]) else a[key] == b[key], key


def networks(script, shape=(1, 8, 8)):
    """Small G and D of a script, and an optimizer of each."""
    torch.manual_seed(0)
    G = getattr(script, "Generator" + stack(script))(4, shape, 4)
    D = getattr(script, D_names(script)[0])(shape, 4, *([4] if stack(script) else []))
    return G, D, torch.optim.Adam(G.parameters(), 1e-3), torch.optim.Adam(D.parameters(), 1e-3)


def generate(script, G, *z):
    if not stack(script):
        return script.sample(G, *z)

    class G1(nn.Module):  # passes on features, where stackedgan.py's G1 makes them
        def forward(self, h1, z1):
            return h1

    return script.sample(G1(), G, z[0], None, z[1])


def copy_of(network):
    return [p.detach().clone() for p in network.parameters()]


def same(network, before):
    return all(torch.equal(p, q) for p, q in zip(network.parameters(), before))


# ---- the mistakes that well-known code makes ----


def test_each_step_moves_its_own_player_only(script):
    G, D, opt_G, opt_D = networks(script)
    real = torch.rand(8, 1, 8, 8) * 2 - 1
    g, d = copy_of(G), copy_of(D)
    step_D(script, G, D, opt_D, real)
    assert same(G, g) and not same(D, d)
    assert all(p.grad is None for p in G.parameters())
    d = copy_of(D)
    gradients = [p.grad.clone() for p in D.parameters()]
    frozen = [next(net.parameters()).requires_grad_(False) for net in (G, D)]  # fine-tuning does it
    step_G(script, G, D, opt_G, 8)
    assert same(D, d) and not same(G, g) and torch.equal(frozen[0], g[0])
    assert all(torch.equal(p.grad, q) for p, q in zip(D.parameters(), gradients))
    assert [p for net in (G, D) for p in net.parameters() if not p.requires_grad] == frozen


def test_losses_come_back_detached(script):
    G, D, opt_G, opt_D = networks(script)
    stats = step_D(script, G, D, opt_D, torch.rand(8, 1, 8, 8))
    loss = step_G(script, G, D, opt_G, 8)
    assert not stats.requires_grad and not loss.requires_grad
    assert loss.shape == ((3,) if stack(script) else ())


def test_discriminator_learns(script):
    """With G frozen, 50 steps of D raise its mean score of real images above that of fakes."""
    G, D, _, opt_D = networks(script)
    real = torch.ones(32, 1, 8, 8)
    with torch.no_grad():
        fake = G(*inputs(script, 32))
    D.eval()
    loose = {"clip": 1.0} if script.SCRIPT == "wgan_clip" else {}  # 0.01 would keep scores small

    def gap():
        return (D(real).mean() - D(fake).mean()).item()

    before = gap()
    for _ in range(50):
        step_D(script, G, D, opt_D, real, **loose)
    assert gap() > before + 0.1


def test_generator_sign(script):
    """Steps of G alone raise the mean score of its images."""
    G, D, _, _ = networks(script)
    D.eval()
    opt_G = torch.optim.Adam(G.parameters(), 0.01)
    z = inputs(script, 256)
    before = D(G(*z)).mean().item()
    adversarial_only = {
        "infogan": {"cat_weight": 0, "code_weight": 0},
        "stackedgan": {"cond_weight": 0, "ent_weight": 0},
    }.get(script.SCRIPT, {})
    for _ in range(5):
        step_G(script, G, D, opt_G, 256, **adversarial_only)
    assert D(G(*z)).mean().item() > before


def test_scores_are_raw(script):
    """No sigmoid or tanh at the end of D: its last layer times 1000 gives scores times 1000."""
    _, D, _, _ = networks(script)
    D.eval()
    x = torch.randn(6, 1, 8, 8)
    scores = D(x)
    assert scores.shape == (6,)
    last = D.score if hasattr(D, "score") else kinds(D, nn.Linear)[-1]
    with torch.no_grad():
        last.weight *= 1000
        last.bias *= 1000
    torch.testing.assert_close(D(x), 1000 * scores)


def test_batchnorm_eps(script):
    """BatchNorm2d(n, 0.8) sets eps, where momentum was meant."""
    norms = [
        m
        for net in networks(script)[:2]
        for m in net.modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm)
    ]
    assert norms and all(m.eps == 1e-5 for m in norms)


def test_samples_do_not_depend_on_their_batch(script):
    G, _, _, _ = networks(script)
    z = inputs(script, 8)
    together = generate(script, G, *z)
    assert G.training and not together.requires_grad
    alone = torch.cat([generate(script, G, *(v[i : i + 1] for v in z)) for i in range(8)])
    torch.testing.assert_close(together, alone)
    assert together.min() >= -1 and together.max() <= 1


@pytest.mark.parametrize("channels", (1, 3))
@pytest.mark.parametrize("side", (28, 32, 48, 50, 64))
def test_sizes(script, side, channels):
    shape = (channels, side, side)
    G, D, opt_G, opt_D = networks(script, shape)
    real = torch.rand(3, *shape) * 2 - 1
    assert step_D(script, G, D, opt_D, real).isfinite().all()
    assert step_G(script, G, D, opt_G, 3).isfinite().all()
    assert generate(script, G, *inputs(script, 1)).shape == (1, *shape)


def test_fewer_images_than_a_batch(script, run):
    out = run("--batch-size", 1000, "--epochs", 1)
    assert load(out / "ckpt.pt")["step"] == 1


def test_amp(script):
    G, D, opt_G, opt_D = networks(script)
    stats = step_D(script, G, D, opt_D, torch.rand(8, 1, 8, 8), amp=True)
    loss = step_G(script, G, D, opt_G, 8, amp=True)
    assert (
        stats.dtype == loss.dtype == torch.float32
        and stats.isfinite().all()
        and loss.isfinite().all()
    )


def test_noise(script):
    z = script.noise(networks(script)[0], 10_000)
    assert z.mean().abs() < 0.05 and (z.std() - 1).abs() < 0.05 and z.min() < -3


def test_amp_runs_in_bfloat16(script):
    G, D, opt_G, opt_D = networks(script)
    seen = []
    for net in (G, D):
        next(m for m in net.modules() if isinstance(m, nn.Linear)).register_forward_hook(
            lambda m, i, o: seen.append(o.dtype)
        )
    step_D(script, G, D, opt_D, torch.rand(8, 1, 8, 8), amp=True)
    penalty = [torch.float32] if hasattr(script, "gradient_penalty") else []
    step_G(script, G, D, opt_G, 8, amp=True)
    calls_of_D = 1 if D_names(script)[0] == "Critic" or script is gan_mlp else 2
    half = [torch.bfloat16]
    assert seen == half * (1 + calls_of_D) + penalty + half * 2


# ---- what all scripts do ----


def test_update_ema(script):
    """decay min(0.9, (1 + t) / (10 + t)) by hand, buffers copied."""
    G, average = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1)), nn.Sequential(
        nn.Linear(1, 1), nn.BatchNorm1d(1)
    )
    w, a = G[0].weight.item(), average[0].weight.item()
    G[1].running_mean += 3
    for t, decay in ((1, 2 / 11), (2, 3 / 12), (1000, 0.9)):
        script.update_ema(average, G, 0.9, t)
        a = decay * a + (1 - decay) * w
        assert average[0].weight.item() == pytest.approx(a, rel=1e-5)
    assert average[1].running_mean.item() == 3


def test_files_of_a_run(script, run, capsys):
    out = run("--epochs", 3, "--save-every", 2, "--keep", "--log-every", 0)
    names = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    assert names == {
        "ckpt.pt",
        "ckpt_0002.pt",
        "ckpt_0003.pt",
        "log.csv",
        "samples.gif",
        "samples/real.png",
        "samples/0002.png",
        "samples/0003.png",
    }
    header, *rows = (out / "log.csv").read_text().splitlines()
    assert [row.split(",")[:2] for row in rows] == [
        [str(1 + i // 4), str(i + 1)] for i in range(12)
    ]
    assert all(len(row.split(",")) == len(header.split(",")) for row in rows)
    assert Image.open(out / "samples/0003.png").size == grid_size(script, training=True)
    assert "left" in capsys.readouterr().out


def test_seed_decides(script, run, tmp_path):
    a, b, c = (
        load(run("--seed", s, "--out", tmp_path / name) and tmp_path / name / "ckpt.pt")
        for s, name in ((1, "a"), (1, "b"), (2, "c"))
    )
    assert_same(a, b)
    G = "G" + stack(script)
    assert not torch.equal(*(next(iter(x[G].values())) for x in (a, c)))


def test_resume_equals_the_uninterrupted_run(script, run, tmp_path):
    whole = run("--epochs", 4, "--out", tmp_path / "whole", "--log-every", 1e9)
    whole = tmp_path / "whole"
    half = run("--epochs", 3, "--keep", "--log-every", 1e9)
    run("--resume", half / "ckpt_0002.pt", "--epochs", 4)  # a row for pass 3 is in log.csv already
    a, b = load(whole / "ckpt.pt"), load(half / "ckpt.pt")
    assert a["args"].pop("keep") is False and b["args"].pop("keep") is True
    assert_same(a, b)
    logs = [
        [row.split(",")[:-1] for row in (out / "log.csv").read_text().splitlines()]
        for out in (whole, half)
    ]
    assert logs[0] == logs[1] and len(logs[0]) == 5
    assert (whole / "samples/0004.png").read_bytes() == (half / "samples/0004.png").read_bytes()
    assert Image.open(half / "samples.gif").n_frames == 4


def test_resume_takes_new_settings(script, run):
    out = run("--epochs", 1, "--lr", 1e-3)
    run("--resume", out / "ckpt.pt", "--epochs", 2, "--lr", 1e-4)
    ckpt = load(out / "ckpt.pt")
    opt = ckpt["opt_G" + stack(script)]
    assert opt["param_groups"][0]["lr"] == ckpt["args"]["lr"] == 1e-4


def grid_size(script, training=False):
    """Pixels (width, height) of a grid of 8×8 images, each with a margin of 2."""
    columns, rows = {
        "infogan": (28 if training else 8, 10),  # 8 images, and 9 of two codes each behind a gap
        "stackedgan": (8, 2),
    }.get(script.SCRIPT, (8, 8))
    return 10 * columns + 2, 10 * rows + 2


def labels_in_names(script):
    return script.SCRIPT in ("infogan", "stackedgan")


def test_sample(script, run, tmp_path):
    out = run("--epochs", 1)
    run("--sample", out / "ckpt.pt")
    assert Image.open(out / "sample.png").size == grid_size(script)
    run("--sample", out / "ckpt.pt", "--num", 20, "--out", tmp_path / "many")
    run("--sample", out / "ckpt.pt", "--num", 20, "--out", tmp_path / "20.png")
    files = sorted((tmp_path / "many").iterdir())
    # by category: 2 each of 10; by class: 10 each of 2
    prefix = {"infogan": lambda i: f"{i // 2}_", "stackedgan": lambda i: f"{i // 10}_"}.get(
        script.SCRIPT, lambda i: ""
    )
    assert [f.name for f in files] == [f"{prefix(i)}{i:05}.png" for i in range(20)]
    image = Image.open(files[0])
    assert image.size == (8, 8) and image.mode == "L"
    grid = np.array(Image.open(tmp_path / "20.png"))
    assert (grid[2:10, 2:10] == np.array(image)).all()  # the same z, alone and in the grid
    run("--sample", out / "ckpt.pt", "--num", 20, "--seed", 1, "--out", tmp_path / "other.png")
    assert (np.array(Image.open(tmp_path / "other.png")) != grid).any()


@pytest.mark.parametrize("name", ("gan_mlp", "dcgan", "wgan_clip", "wgan_gp"))
def test_sample_by_hand(name, folder, tmp_path):
    script = importlib.import_module(name)
    run = runner(script, folder, tmp_path)
    out = run("--epochs", 1)
    ckpt = load(out / "ckpt.pt")
    run("--sample", out / "ckpt.pt", "--num", 1003, "--seed", 3, "--out", tmp_path / "many")
    assert len(list((tmp_path / "many").iterdir())) == 1003
    run("--sample", out / "ckpt.pt", "--num", 64, "--seed", 3, "--out", tmp_path / "a.png")
    G = script.Generator(4, ckpt["shape"], 4)
    G.load_state_dict(ckpt["G_ema"])
    z = torch.randn(64, 4, generator=torch.Generator().manual_seed(3))
    common.save_grid(script.sample(G, z), tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_new_run_in_old_folder(script, run, capsys):
    out = run("--epochs", 1)
    whole = (out / "ckpt.pt").read_bytes()
    assert f"--out {out}: has a trained network" in refused(capsys, run, "--epochs", 1)
    assert (
        len((out / "log.csv").read_text().splitlines()) == 2
        and (out / "ckpt.pt").read_bytes() == whole
    )
    run("--epochs", 1, "--out", out.parent / "other")
    again = ["--resume", out.parent / "other/ckpt.pt", "--epochs", 2, "--out", out]
    assert "has a trained network" in refused(capsys, run, *again)
    (out / "log.csv").write_text((out / "log.csv").read_text() + "2")  # as a kill may leave it
    run("--resume", out / "ckpt.pt", "--epochs", 2)
    rows = (out / "log.csv").read_text().splitlines()
    assert len(rows) == 3 and len({r.count(",") for r in rows}) == 1
    assert [p.name for p in out.glob("ckpt_*")] == []
    assert (
        np.array(Image.open(out / "samples/real.png"))[2:10, 2:10] < 100
    ).any()  # all of [0, 255]


@pytest.mark.parametrize("name", ("gan_mlp", "dcgan", "wgan_clip", "wgan_gp"))
def test_samples_are_of_the_average(name, folder, tmp_path):
    script = importlib.import_module(name)
    out = runner(script, folder, tmp_path)("--epochs", 1)
    ckpt = load(out / "ckpt.pt")
    G = script.Generator(4, ckpt["shape"], 4)
    G.load_state_dict(ckpt["G_ema"])
    common.save_grid(script.sample(G, ckpt["z"]), tmp_path / "grid.png")
    assert (tmp_path / "grid.png").read_bytes() == (out / "samples/0001.png").read_bytes()
    name = next(iter(ckpt["G"]))
    assert not torch.equal(ckpt["G"][name], ckpt["G_ema"][name])


def test_tensorboard(script, run, tmp_path, tensorboard):
    calls = tensorboard
    run("--tensorboard", "--log-every", 1e9)
    header, *rows = (row.split(",") for row in (tmp_path / "run/log.csv").read_text().splitlines())
    logged = {(row[1], name): value for row in rows for name, value in zip(header[2:-1], row[2:-1])}
    scalars = {(str(c[3]), c[1]): str(c[2]) for c in calls if c[0] == "add_scalar"}
    images = [c for c in calls if c[0] == "add_images"]
    assert calls[0] == ("open", 1) and calls[-1] == ("close",)
    assert scalars == logged and {step for step, _ in logged} == {"4", "8"}
    assert [c[3] for c in images] == [4, 8] and all(
        0 <= c[2].min() < c[2].max() <= 1 for c in images
    )


def test_import_alone(script, tmp_path):
    """A copy of the file alone imports with torch only, touches nothing, and can train."""
    shutil.copy(script.__file__, tmp_path)
    D, update = D_names(script)
    G, z_dim = "Generator" + stack(script), ", 4" if stack(script) else ""
    condition = ", torch.zeros(2, 64)" if stack(script) else ""
    code = f"""
import sys, torch
for name in ("common", "torchvision", "PIL"):
    sys.modules[name] = None            # importing it raises
state = torch.get_rng_state()
import {script.__name__} as m
assert torch.equal(state, torch.get_rng_state())
G, D = m.{G}(4, (1, 8, 8), 4), m.{D}((1, 8, 8), 4{z_dim})
m.{update}(G, D, torch.optim.Adam(D.parameters()), torch.zeros(2, 1, 8, 8){condition})
"""
    done = subprocess.run(
        [sys.executable, "-B", "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [p.name for p in tmp_path.iterdir()] == [f"{script.__name__}.py"]


def test_sigkill_leaves_a_checkpoint(script, folder, tmp_path):
    """Killed twice, the second time after resuming, while checkpoints are written all the time."""
    ckpt = tmp_path / "run/ckpt.pt"
    start = [
        "--data",
        folder,
        "--data-dir",
        tmp_path / "data",
        "--out",
        tmp_path / "run",
        "--batch-size",
        8,
        *SCRIPTS[script.SCRIPT],
    ]
    for wait, flags in ((0.05, start), (0.02, ["--resume", ckpt])):
        with open(tmp_path / "output", "w") as output:
            process = subprocess.Popen(
                [
                    sys.executable,
                    script.__file__,
                    *map(str, flags),
                    "--epochs",
                    "1000000",
                    "--save-every",
                    "1",
                ],
                stdout=output,
                stderr=output,
            )
        deadline, seen = time.time() + 120, set()
        while len(seen) < 6:  # several are written, over one another
            assert process.poll() is None and time.time() < deadline, (
                tmp_path / "output"
            ).read_text()
            if ckpt.exists():
                seen.add(ckpt.stat().st_mtime_ns)
            time.sleep(0.002)
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert load(ckpt)["epoch"] > 1
        script.main(["--sample", str(ckpt)])


def test_ctrl_c(script, folder, tmp_path, monkeypatch, capsys):
    """Ctrl-C ends with a line that says how to go on, and it works, in a folder with a space."""
    run = runner(script, folder, tmp_path / "my runs")
    out = run("--epochs", 1)

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(script, "train_generator", interrupt)
        run("--resume", out / "ckpt.pt", "--epochs", 2)
    command = capsys.readouterr().out.splitlines()[-1].removeprefix("stopped; to go on: ")
    assert stop.value.code == 130
    python, name, *flags = shlex.split(command)
    assert (python, name) == ("python", f"{script.SCRIPT}.py")
    script.main([*flags, "--epochs", "2"])
    assert load(out / "ckpt.pt")["epoch"] == 2
    _, command = capsys.readouterr().out.splitlines()[-1].split("; more: ")
    script.main(shlex.split(command)[2:])
    assert (out / "sample.png").exists()


def test_ctrl_c_while_sampling(script, run, tmp_path, monkeypatch, capsys):
    ckpt, many = run("--epochs", 1) / "ckpt.pt", tmp_path / "many"

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(common, "save_grid", interrupt)
    with pytest.raises(SystemExit) as stop:
        run("--sample", ckpt, "--out", many)
    assert f"{many} is not complete" in capsys.readouterr().out and stop.value.code == 130


@gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("amp", ([], ["--amp"]))
def test_cuda(script, run, amp):
    out = run("--device", "cuda", *amp)
    run("--resume", out / "ckpt.pt", "--epochs", 3, "--device", "cuda")
    run("--resume", out / "ckpt.pt", "--epochs", 4, "--device", "cpu")
    run("--sample", out / "ckpt.pt", "--device", "cuda")


# ---- CUDA graphs ----


class RecordedOnCPU:
    """Stands in for torch.cuda: what captured() calls, so that its logic can be tested on a CPU.

    Recording computes nothing, so all that it changes is put back; a replay calls the recorded
    function again and writes into the tensors that the recording returned.
    """

    def __init__(self, monkeypatch, parts):
        self.parts, self.recording, self.replays, self.calls = parts, False, 0, []
        main, side = self.stream("main"), self.stream("side")
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: types.SimpleNamespace())
        monkeypatch.setattr(torch.cuda, "Stream", lambda: side)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: main)
        monkeypatch.setattr(torch.cuda, "stream", self.on)
        monkeypatch.setattr(torch.cuda, "graph", self.record)

    def stream(self, name):
        def wait(other):
            self.calls.append(f"{name} waits for {other.name}")

        return types.SimpleNamespace(name=name, wait_stream=wait)

    @contextlib.contextmanager
    def on(self, stream):
        self.calls.append(f"to {stream.name}")
        yield
        self.calls.append("back")

    @contextlib.contextmanager
    def record(self, graph):
        states = [copy.deepcopy(part.state_dict()) for part in self.parts]
        rng, self.recording = torch.get_rng_state(), True
        yield
        self.recording = False
        for part, state in zip(self.parts, states):
            part.load_state_dict(state)
        torch.set_rng_state(rng)
        update, inputs, result = self.recorded

        def replay():
            self.replays += 1
            result.copy_(update(*inputs))

        graph.replay = replay

    def watch(self, update):
        def watched(*inputs):
            result = update(*inputs)
            if self.recording:
                self.recorded = update, inputs, result
            return result

        return watched


def test_captured_updates_are_the_usual_ones(script, monkeypatch):
    """8 steps, of which 3 run as usual and 5 are replays, give the same losses and weights."""

    spent = []  # kept, so that their memory is not used again

    def train(graph):
        G, D, opt_G, opt_D = networks(script)
        if graph:
            cuda = RecordedOnCPU(monkeypatch, (G, D, opt_G, opt_D))
        update_D, update_G = (
            script.captured(cuda.watch(update) if graph else update, graph)
            for update in (
                lambda real: step_D(script, G, D, opt_D, real),
                lambda: step_G(script, G, D, opt_G, 8),
            )
        )
        torch.manual_seed(1)
        losses = []
        for _ in range(8):
            real = torch.rand(8, 1, 8, 8) * 2 - 1
            before = real.clone()
            losses.append((update_D(real), update_G()))
            assert torch.equal(real, before)
            spent.append(real.fill_(9))  # nothing may read a batch of an earlier step
        if graph:
            assert all((real == 9).all() for real in spent)  # nor write to it
            assert cuda.replays == 2 * 5
            warm_up = ["side waits for main", "to side", "back", "main waits for side"]
            assert cuda.calls == warm_up * 2 * 3
        return losses, G.state_dict(), D.state_dict()

    assert_same(train(True), train(False))


def test_captured_off_is_the_update_itself(script):
    assert script.captured(train := (lambda: 0), False) is train


@gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("amp", ([], ["--amp"]))
def test_cuda_graph_trains_as_without(script, run, tmp_path, amp):
    """The log of 10 lines is the same but for rounding; with G every second step, if it can."""
    logs = []
    slow = {"gan_mlp": ["--k", 2], "wgan_clip": ["--n-critic", 2], "wgan_gp": ["--n-critic", 2]}
    flags = [*slow.get(script.SCRIPT, []), *amp]
    for flag in ("--graph", "--no-graph"):
        out = tmp_path / flag
        run("--device", "cuda", flag, "--out", out, "--log-every", 0, "--epochs", 6, *flags)
        run("--device", "cuda", flag, "--resume", out / "ckpt.pt", "--epochs", 7)
        rows = (out / "log.csv").read_text().splitlines()[1:11]
        logs.append([[float(v) for v in row.split(",")[:-1]] for row in rows])
    assert len(logs[0]) == 10
    close = dict(rtol=0.05, atol=0.02) if amp else dict(rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(*map(torch.tensor, logs), **close, equal_nan=True)


def test_optimizers_can_be_captured(script, run, monkeypatch):
    """On a GPU all optimizers are capturable, and with --no-graph none; the CPU is never."""
    made = []
    for name in ("Adam", "RMSprop"):
        init = getattr(torch.optim, name).__init__

        def record(self, *args, init=init, **settings):
            made.append(settings.get("capturable", False))
            init(self, *args, **{**settings, "capturable": False})

        monkeypatch.setattr(getattr(torch.optim, name), "__init__", record)
    monkeypatch.setattr(script, "captured", lambda update, graph: made.append(graph) or update)
    out = run("--epochs", 1)
    assert len(made) >= 4 and not any(made)

    class Cuda(str):  # looks like a GPU, and is the CPU
        type = "cuda"

    made.clear()
    monkeypatch.setattr(script, "pick_device", lambda name: Cuda("cpu"))
    monkeypatch.setattr(torch.cuda, "get_rng_state", torch.get_rng_state)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state: None)
    run("--resume", out / "ckpt.pt", "--epochs", 2)
    assert len(made) >= 4 and all(made)
    made.clear()
    run("--resume", out / "ckpt.pt", "--epochs", 3, "--no-graph")
    assert len(made) >= 4 and not any(made)


# ---- bad input ----


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--data", "nothing"], "--data nothing"),
        (["--classes", "horse"], "--classes horse: no such class; there are cat, dog"),
        (["--batch-size", "0"], "--batch-size"),
        (["--batch-size", "1"], "--batch-size"),
        (["--batch-size", "x"], "--batch-size"),
        (["--epochs", "0"], "--epochs"),
        (["--epochs", "1.5"], "--epochs"),
        (["--image-size", "-1"], "--image-size"),
        (["--image-size", "100000"], "--image-size"),
        (["--lr", "0"], "--lr"),
        (["--lr", "-1"], "--lr"),
        (["--lr", "nan"], "--lr"),
        (["--lr", "inf"], "--lr"),
        (["--ema", "1"], "--ema"),
        (["--ema", "-0.1"], "--ema"),
        (["--beta1", "1"], "--beta1"),
        (["--channels", "2"], "--channels"),
        (["--z-dim", "0"], "--z-dim"),
        (["--width", "0"], "--width"),
        (["--device", "tpu"], "--device"),
        (["--epoch", "3"], "--epoch"),
        (["--num", "0"], "--num"),
        (["--data", ""], "--data"),
        (["--resume", ""], "--resume"),
        (["--sample", ""], "--sample"),
    ],
)
def test_bad_flags(script, run, tmp_path, capsys, flags, words):
    assert words in refused(capsys, run, *flags)
    assert not (tmp_path / "run").exists()


def test_bad_folders(script, run, tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert f"--data {empty}: no image files" in refused(capsys, run, "--data", empty)
    (empty / "a.png").write_bytes(b"not a picture")
    with pytest.raises(SystemExit) as stop:
        run("--data", empty)
    error = capsys.readouterr().err
    assert (
        stop.value.code == 2
        and "a.png" in error
        and f"error: --data {empty}: no image in it can be read" in error
    )
    one = write_images(tmp_path / "one", 1)
    assert "1 image(s)" in refused(capsys, run, "--data", one)
    large = write_images(tmp_path / "large", 3, size=(300, 300))
    assert "side 300" in refused(capsys, run, "--data", large)
    assert not (tmp_path / "run").exists()


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


@pytest.mark.parametrize("flag", ("--resume", "--sample"))
def test_bad_checkpoints(script, run, tmp_path, capsys, monkeypatch, flag):
    monkeypatch.chdir(tmp_path)
    good = run("--epochs", 1) / "ckpt.pt"
    bad = tmp_path / "bad.pt"
    assert f"{flag} {bad}: there is no such file" in refused(capsys, run, flag, bad)
    assert f"{flag} {tmp_path}" in refused(capsys, run, flag, tmp_path)
    whole = good.read_bytes()
    for content in (b"", b"x", whole[: len(whole) // 2], pickle.dumps(Evil())):
        bad.write_bytes(content)
        assert f"{flag} {bad}: damaged" in refused(capsys, run, flag, bad)
    for content in (Evil(), {"script": script.__name__, "G": Evil()}, [1], {"epoch": 3}):
        torch.save(content, bad)
        assert f"{flag} {bad}: damaged" in refused(capsys, run, flag, bad)
    torch.save({**load(good), "script": "pix2pix"}, bad)
    assert "pix2pix.py" in refused(capsys, run, flag, bad)
    assert not (tmp_path / "evil").exists() and good.read_bytes() == whole


def test_sample_of_an_edited_script(script, run, capsys, monkeypatch):
    """README's "Hack it" invites edits of the networks; older checkpoints then do not fit."""
    ckpt = run("--epochs", 1) / "ckpt.pt"
    name = "Generator" + stack(script)
    monkeypatch.setattr(script, name, lambda *args, **kwargs: nn.Linear(1, 1))
    assert f"--sample {ckpt}: is of another Generator" in refused(capsys, run, "--sample", ckpt)


def test_sample_into_a_folder_with_files(script, run, tmp_path, capsys):
    ckpt = run("--epochs", 1) / "ckpt.pt"
    many = write_images(tmp_path / "many", 2)
    assert "has files in it" in refused(capsys, run, "--sample", ckpt, "--out", many)
    assert len(list(many.iterdir())) == 2


def test_out_of_memory(script, run, capsys, monkeypatch):
    def full(*args, **kwargs):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(script, "Generator" + stack(script), full)
    assert "--batch-size" in refused(capsys, run)


def test_bad_resume(script, run, capsys):
    ckpt = run() / "ckpt.pt"
    whole = ckpt.read_bytes()
    assert "--epochs 2" in refused(capsys, run, "--resume", ckpt)
    assert "--width" in refused(capsys, run, "--resume", ckpt, "--epochs", 9, "--width", 5)
    assert "--z-dim" in refused(capsys, run, "--resume", ckpt, "--epochs", 9, "--z-dim", 5)
    assert "image shape" in refused(
        capsys, run, "--resume", ckpt, "--epochs", 9, "--image-size", 16
    )
    assert ckpt.read_bytes() == whole


@pytest.mark.skipif(torch.cuda.is_available(), reason="has CUDA")
def test_no_cuda(script, run, tmp_path, capsys):
    assert "--device cuda: there is none" in refused(capsys, run, "--device", "cuda")
    assert not (tmp_path / "run").exists()


def test_no_tensorboard(script, run, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert "pip install tensorboard" in refused(capsys, run, "--tensorboard")
    assert not (tmp_path / "run").exists()


def test_out_cannot_be_written(script, run, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    for out in ("file", "file/below"):
        assert str(tmp_path / out) in refused(capsys, run, "--out", tmp_path / out)
    assert (tmp_path / "file").read_text() == "mine"
    ckpt = run() / "ckpt.pt"
    assert str(tmp_path / "file") in refused(
        capsys, run, "--sample", ckpt, "--out", tmp_path / "file/below.png"
    )


def test_full_disk(script, run, capsys):
    """The operating system stops the write half-way; the checkpoint before stays whole."""
    ckpt = run("--epochs", 1) / "ckpt.pt"
    whole = ckpt.read_bytes()
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) // 2, limits[1]))
    try:
        error = refused(capsys, run, "--resume", ckpt, "--epochs", 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert f"{ckpt} cannot be written" in error
    assert ckpt.read_bytes() == whole and not list(ckpt.parent.glob("*.tmp"))
    run("--resume", ckpt, "--epochs", 2)


@pytest.mark.parametrize("player", "DG")
def test_nan_loss(script, run, capsys, monkeypatch, player):
    out = run("--epochs", 1)
    whole = (out / "ckpt.pt").read_bytes()
    name = D_names(script)[1] if player == "D" else "train_generator"
    step = getattr(script, name)
    monkeypatch.setattr(script, name, lambda *args, **kwargs: step(*args, **kwargs) * math.nan)
    error = refused(capsys, run, "--resume", out / "ckpt.pt", "--epochs", 2, "--log-every", 0)
    assert "a loss is not finite at step 5" in error
    assert (out / "ckpt.pt").read_bytes() == whole


def test_nan_weight(script, run, capsys, monkeypatch):
    """A weight that is not finite behind a loss that is: seen before it is saved."""
    out = run("--epochs", 1)
    whole = (out / "ckpt.pt").read_bytes()

    def break_D(G, D, *args, **kwargs):
        with torch.no_grad():
            next(D.parameters())[0] = math.inf
        return torch.zeros((3,) if stack(script) else ())

    monkeypatch.setattr(script, "train_generator", break_D)
    G, D, _, opt_D = networks(script)
    stats = step_D(script, G, D, opt_D, torch.zeros(8, 1, 8, 8))
    monkeypatch.setattr(script, D_names(script)[1], lambda *args, **kwargs: stats)
    assert "a weight is not finite at step 8" in refused(
        capsys, run, "--resume", out / "ckpt.pt", "--epochs", 2
    )
    assert (out / "ckpt.pt").read_bytes() == whole


def test_weight_of_G(script, run, capsys, monkeypatch):
    out = run("--epochs", 1)

    def break_G(G, D, *a, **k):
        with torch.no_grad():
            next(G.parameters())[0] = math.inf
        return torch.zeros((3,) if stack(script) else ())

    monkeypatch.setattr(script, "train_generator", break_G)
    monkeypatch.setattr(script, D_names(script)[1], lambda *a, **k: torch.zeros(4))
    assert "a weight" in refused(capsys, run, "--resume", out / "ckpt.pt", "--epochs", 2)


# ---- gan_mlp.py ----

gan_mlp = importlib.import_module("gan_mlp")


def test_gan_losses_are_cross_entropies():
    real, fake = torch.randn(2, 64) * 5
    one, zero = torch.ones(64), torch.zeros(64)
    loss_real, loss_fake = gan_mlp.discriminator_loss(real, fake)
    torch.testing.assert_close(loss_real, F.binary_cross_entropy_with_logits(real, one))
    torch.testing.assert_close(loss_fake, F.binary_cross_entropy_with_logits(fake, zero))
    torch.testing.assert_close(
        gan_mlp.generator_loss(fake), F.binary_cross_entropy_with_logits(fake, one)
    )
    torch.testing.assert_close(
        gan_mlp.generator_loss(fake, "minimax"), -F.binary_cross_entropy_with_logits(fake, zero)
    )
    assert all(
        x.isfinite()
        for x in gan_mlp.discriminator_loss(torch.full((2,), -1e4), torch.full((2,), 1e4))
    )


def test_gan_jsd_bound_is_tight_for_the_best_D():
    """Two distributions over three points, D* = p / (p + q): the bound is the divergence itself."""
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.1, 0.3, 0.6])
    m = (p + q) / 2
    jsd = ((p * (p / m).log()).sum() + (q * (q / m).log()).sum()) / 2

    def bound(scores):  # the expectation as a mean over 10 draws in exact proportion
        loss = gan_mlp.discriminator_loss(
            scores.repeat_interleave((10 * p).round().int()),
            scores.repeat_interleave((10 * q).round().int()),
        )
        return gan_mlp.jsd_bound(sum(loss))

    torch.testing.assert_close(bound((p / q).log()), jsd)
    assert bound((p / q).log() + 0.3) < jsd
    assert bound(torch.zeros(3)).abs() < 1e-6


def test_gan_no_batchnorm_in_D():
    D = gan_mlp.Discriminator((1, 8, 8), 4).eval()
    assert not [m for m in D.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def test_gan_l1_pulls_towards_the_data():
    G, D, opt_G, _ = networks(gan_mlp)
    G.net[-2].weight.data.zero_()
    for p in D.parameters():
        p.data.zero_()  # no adversarial gradient
    gan_mlp.train_generator(G, D, opt_G, 8, l1=0.0)
    assert not G.net[-2].bias.grad.any()
    gan_mlp.train_generator(G, D, opt_G, 8, l1=1.0, real=torch.ones(8, 1, 8, 8))
    assert (G.net[-2].bias.grad < 0).all()


def test_gan_k_beyond_the_run(run_gan, capsys):
    assert "--k 9: G would not move" in refused(capsys, run_gan, "--k", 9)


@pytest.mark.parametrize("k", (1, 3))
def test_gan_k_steps_of_D_for_one_of_G(run_gan, monkeypatch, k):
    """Counted over two passes of 4 batches each, so that a pass begins within the k steps."""
    calls = []
    for name in ("train_discriminator", "train_generator"):

        def step(*args, name=name, original=getattr(gan_mlp, name), **kwargs):
            calls.append(name[6])
            return original(*args, **kwargs)

        monkeypatch.setattr(gan_mlp, name, step)
    run_gan("--k", k)
    assert "".join(calls) == {1: "dg" * 8, 3: "dddgdddgdd"}[k]


@pytest.mark.parametrize("name", ("gan_mlp", "dcgan"))
def test_gan_D_step_by_hand(name):
    script = importlib.import_module(name)
    G, D, opt_G, opt_D = networks(script)
    real = torch.rand(8, 1, 8, 8) * 2 - 1
    torch.manual_seed(1)
    with torch.no_grad():
        fake = G(script.noise(G, 8))
    s_real, s_fake = D(real), D(fake)
    losses = F.binary_cross_entropy_with_logits(
        s_real, torch.ones(8)
    ), F.binary_cross_entropy_with_logits(s_fake, torch.zeros(8))
    want = torch.autograd.grad(sum(losses), D.parameters())
    torch.manual_seed(1)
    stats = script.train_discriminator(G, D, opt_D, real)
    for p, g in zip(D.parameters(), want):
        torch.testing.assert_close(p.grad, g)
    torch.testing.assert_close(
        stats, torch.stack([*losses, s_real.sigmoid().mean(), s_fake.sigmoid().mean()]).detach()
    )


def test_gan_G_loss_and_l1():
    for l1 in (0.0, 0.5):
        G, D, opt_G, _ = networks(gan_mlp)
        real = torch.rand(8, 1, 8, 8)
        torch.manual_seed(1)
        fake = G(gan_mlp.noise(G, 8))
        adversarial = F.binary_cross_entropy_with_logits(D(fake), torch.ones(8))
        want = torch.autograd.grad(adversarial + l1 * (fake - real).abs().mean(), G.parameters())
        torch.manual_seed(1)
        loss = gan_mlp.train_generator(G, D, opt_G, 8, l1=l1, real=real)
        torch.testing.assert_close(loss, adversarial.detach())
        for p, g in zip(G.parameters(), want):
            torch.testing.assert_close(p.grad, g, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize(
    "flags, seen",
    [
        (["--ema", 0.5], {"ema": 0.5}),
        (["--loss", "minimax"], {"loss": "minimax"}),
        (["--l1", 0.25], {"l1": 0.25}),
        (["--amp"], {"amp_D": True, "amp_G": True}),
        (["--channels", 3], {"shape": (8, 3, 8, 8)}),
        (
            ["--beta1", 0.3, "--beta2", 0.7, "--weight-decay", 0.1, "--lr", 0.01, "--lr-d", 0.02],
            {"opt_G": (0.01, (0.3, 0.7), 0.1), "opt_D": (0.02, (0.3, 0.7), 0.1)},
        ),
        (["--lr", 0.01, "--lr-d", 0], {"opt_D": (0.01, (0.0, 0.999), 0)}),
    ],
)
def test_gan_every_flag_arrives(run_gan, monkeypatch, flags, seen):
    got, t = {}, []
    D_step, G_step, ema = gan_mlp.train_discriminator, gan_mlp.train_generator, gan_mlp.update_ema

    def settings(opt):
        g = opt.param_groups[0]
        return g["lr"], tuple(g["betas"]), g["weight_decay"]

    def D_(G, D, opt, real, *, amp=False):
        got.update(amp_D=amp, opt_D=settings(opt), shape=tuple(real.shape))
        return D_step(G, D, opt, real, amp=amp)

    def G_(G, D, opt, n, *, loss="ns", l1=0.0, real=None, amp=False):
        got.update(amp_G=amp, opt_G=settings(opt), loss=loss, l1=l1)
        return G_step(G, D, opt, n, loss=loss, l1=l1, real=real, amp=amp)

    def E_(a, b, decay, step):
        got.update(ema=decay)
        t.append(step)
        ema(a, b, decay, step)

    for name, f in (("train_discriminator", D_), ("train_generator", G_), ("update_ema", E_)):
        monkeypatch.setattr(gan_mlp, name, f)
    run_gan(*flags, "--k", 2)
    assert {k: got[k] for k in seen} == seen and t == [1, 2, 3, 4]


def test_gan_log_row_by_hand(run_gan, monkeypatch):
    numbers = iter(range(1, 100))
    monkeypatch.setattr(
        gan_mlp,
        "train_discriminator",
        lambda *a, **k: torch.tensor([0.1, 0.2, 0.3, 0.4]) * next(numbers),
    )
    monkeypatch.setattr(
        gan_mlp, "train_generator", lambda *a, **k: torch.tensor(7.0) * next(numbers)
    )
    out = run_gan("--log-every", 1e9)
    header, first, second = [r.split(",") for r in (out / "log.csv").read_text().splitlines()]
    assert header == [
        "epoch",
        "step",
        "loss_real",
        "loss_fake",
        "D(x)",
        "D(G(z))",
        "loss_G",
        "jsd",
        "images/s",
    ]
    for row, d, g in (
        (first, 4, 5),
        (second, 12, 13),
    ):  # means of 1 3 5 7, 2 4 6 8; then of 9 11 13 15, 10 12 14 16
        want = [0.1 * d, 0.2 * d, 0.3 * d, 0.4 * d, 7 * g, math.log(2) - 0.15 * d]
        assert [float(v) for v in row[2:-1]] == pytest.approx(want, rel=1e-4)


# ---- the convolutional scripts ----

dcgan, wgan_clip, wgan_gp = map(importlib.import_module, ("dcgan", "wgan_clip", "wgan_gp"))


@pytest.fixture(params=("dcgan", "wgan_clip", "wgan_gp"))
def conv(request):
    return importlib.import_module(request.param)


@pytest.fixture(params=("wgan_clip", "wgan_gp"))
def wgan(request):
    return importlib.import_module(request.param)


def kinds(network, *types):
    return [m for m in network.modules() if isinstance(m, types)]


def test_conv_sides(conv):
    """Halved and rounded up to 4 or less in D, and back through the same maps in G."""
    assert conv.halved(28) == [28, 14, 7, 4] and conv.halved(50) == [50, 25, 13, 7, 4]
    assert conv.halved(8) == [8, 4] and conv.halved(64)[-1] == 4 and conv.halved(9) == [9, 5, 3]
    for upsample in (False, True):
        for side in (8, 9, 28, 50):
            G = conv.Generator(4, (3, side, side), 4, upsample)
            D = getattr(conv, D_names(conv)[0])((3, side, side), 4)
            maps = {G: [], D: []}
            for net in (G, D):
                for m in kinds(net, nn.Conv2d, nn.ConvTranspose2d):
                    m.register_forward_hook(
                        lambda m, i, o, net=net: maps[net].append(tuple(o.shape[1:]))
                    )
            assert D(G(torch.randn(2, 4))).shape == (2,)
            sides = conv.halved(side)
            want = [(4 * 2**i, s, s) for i, s in enumerate(sides[1:])]
            assert maps[D] == want
            assert maps[G] == [*want[-2::-1], (3, side, side)]


def test_conv_upsample(conv):
    assert kinds(conv.Generator(), nn.ConvTranspose2d) and not kinds(conv.Generator(), nn.Upsample)
    G = conv.Generator(upsample=True)
    assert not kinds(G, nn.ConvTranspose2d)
    assert {m.mode for m in kinds(G, nn.Upsample)} == {"nearest"}


def test_conv_upsample_from_the_command_line(conv, folder, tmp_path):
    run = runner(conv, folder, tmp_path)
    out = run("--upsample", "--epochs", 1)
    G = conv.Generator(4, (1, 8, 8), 4, upsample=True)
    G.load_state_dict(load(out / "ckpt.pt")["G_ema"])
    run("--resume", out / "ckpt.pt", "--epochs", 2)
    run("--sample", out / "ckpt.pt")
    with Image.open(out / "sample.png") as grid:
        assert grid.size == (8 * 10 + 2, 8 * 10 + 2)


def test_conv_amp_from_the_command_line(conv, tmp_path, tensorboard):
    """Images large enough for channels_last to change the layout of weights, with TensorBoard."""
    run = runner(conv, write_images(tmp_path / "rgb", 20, "RGB", (16, 16)), tmp_path)
    out = run("--amp", "--tensorboard")
    run("--resume", out / "ckpt.pt", "--epochs", 3, "--no-amp")
    run("--sample", out / "ckpt.pt")
    weights = [w for w in load(out / "ckpt.pt")["D"].values() if w.ndim == 4]
    assert len(weights) == 2


@pytest.mark.parametrize("side", (8, 9, 11))
def test_conv_small_sides(conv, side):
    G, D, opt_G, opt_D = networks(conv, (3, side, side))
    assert step_D(conv, G, D, opt_D, torch.rand(4, 3, side, side)).isfinite().all()
    assert conv.train_generator(G, D, opt_G, 4).isfinite()


def test_conv_refuses_sides_below_8(conv, tmp_path, capsys):
    small = write_images(tmp_path / "small", 20, size=(7, 7))
    run = runner(conv, small, tmp_path)
    assert "side 7" in refused(capsys, run)
    assert "side 5" in refused(capsys, run, "--image-size", 5)
    assert not (tmp_path / "run").exists()


def test_conv_weights_at_the_start(conv):
    """N(0, 0.02), biases 0."""
    for net in (conv.Generator(), getattr(conv, D_names(conv)[0])()):
        for m in kinds(net, nn.Linear, nn.Conv2d, nn.ConvTranspose2d):
            w = m.weight.detach()
            assert abs(w.std() - 0.02) < 0.1 * 0.02 + 0.04 / w.numel() ** 0.5
            assert w.abs().max() > 0.025 and not m.bias.any()


@pytest.mark.parametrize("flags", ({}, {"upsample": True}, {"mlp": True}))
def test_conv_generators_are_alike(flags):
    """The same seed makes the same images in the three scripts: diffs are about the method."""
    images = []
    for script in (dcgan, wgan_clip, wgan_gp):
        torch.manual_seed(0)
        images.append(script.sample(script.Generator(**flags), torch.ones(1, 100)))
    assert torch.equal(images[0], images[1]) and torch.equal(images[0], images[2])


def test_conv_every_flag_arrives(conv, folder, tmp_path, monkeypatch):
    got, t, names = {}, [], (D_names(conv)[1], "train_generator", "update_ema")
    for name in names:

        def f(*args, name=name, original=getattr(conv, name), **kwargs):
            got[name] = args, kwargs
            return original(*args, **kwargs)

        monkeypatch.setattr(conv, name, f)
    run = runner(conv, folder, tmp_path)
    flags = ["--lr", 0.01, "--lr-d", 0.02, "--beta2", 0.7, "--ema", 0.5, "--amp", "--mlp"]
    flags += {
        "dcgan": ["--beta1", 0.3],
        "wgan_clip": ["--clip", 0.03],
        "wgan_gp": ["--beta1", 0.3, "--gp-weight", 3, "--norm", "layer"],
    }[conv.SCRIPT]
    run(*flags)
    (_, D, opt_D, _), D_flags = got[names[0]]
    (G, _, opt_G, _), G_flags = got[names[1]]
    want = {"dcgan": {}, "wgan_clip": {"clip": 0.03}, "wgan_gp": {"gp_weight": 3}}[conv.SCRIPT]
    assert D_flags == {"amp": True, **want} and G_flags == {"amp": True}
    assert got["update_ema"][0][2:] == (0.5, 8)
    assert bool(kinds(D, nn.LayerNorm)) == (conv is wgan_gp) and not kinds(G, nn.ConvTranspose2d)
    rms = conv is wgan_clip
    for opt, lr in ((opt_G, 0.01), (opt_D, 0.02)):
        assert type(opt) is (torch.optim.RMSprop if rms else torch.optim.Adam)
        group = opt.param_groups[0]
        assert group["lr"] == lr and group["weight_decay"] == 0
        if rms:
            assert (group["alpha"], group["momentum"], group["centered"]) == (0.7, 0, False)
        else:
            assert tuple(group["betas"]) == (0.3, 0.7)
    run("--lr", 0.01, "--lr-d", 0, "--out", tmp_path / "other")
    assert got[names[0]][0][2].param_groups[0]["lr"] == 0.01
    assert got[names[0]][1]["amp"] is False
    assert all(w.is_contiguous() for w in got[names[0]][0][1].parameters())


def test_conv_mlp_without_upsample(conv, folder, tmp_path, capsys):
    assert "--upsample" in refused(capsys, runner(conv, folder, tmp_path), "--mlp", "--upsample")


def test_conv_mlp(conv):
    G = conv.Generator(4, (3, 9, 9), 2, mlp=True)
    sizes = [(m.in_features, m.out_features) for m in kinds(G, nn.Linear)]
    assert sizes == [(4, 64), (64, 64), (64, 64), (64, 64), (64, 243)]
    assert len(kinds(G, nn.ReLU)) == 4 and not kinds(G, nn.BatchNorm1d, nn.BatchNorm2d)
    assert G(torch.randn(2, 4)).shape == (2, 3, 9, 9)


def test_conv_log_row_by_hand(conv, folder, tmp_path, monkeypatch):
    numbers, n = iter(range(1, 100)), 4 if conv is dcgan else 3 if conv is wgan_gp else 2
    base = torch.tensor([0.1, 0.2, 0.3, 0.4])[:n]
    monkeypatch.setattr(conv, D_names(conv)[1], lambda *a, **k: base * next(numbers))
    monkeypatch.setattr(conv, "train_generator", lambda *a, **k: torch.tensor(7.0) * next(numbers))
    out = runner(conv, folder, tmp_path)("--log-every", 1e9)
    header, *rows = [r.split(",") for r in (out / "log.csv").read_text().splitlines()]
    assert (
        header[2 : n + 3]
        == {
            "dcgan": ["loss_real", "loss_fake", "D(x)", "D(G(z))", "loss_G"],
            "wgan_clip": ["D(x)", "D(G(z))", "loss_G"],
            "wgan_gp": ["D(x)", "D(G(z))", "grad_norm", "loss_G"],
        }[conv.SCRIPT]
    )
    for row, d, g in zip(rows, (4, 12), (5, 13)):  # means of 1 3 5 7 and 2 4 6 8, and so on
        want = [*(base * d).tolist(), 7 * g]
        assert [float(v) for v in row[2 : n + 3]] == pytest.approx(want, rel=1e-4)


def test_conv_resume_keeps_z_and_count(conv, folder, tmp_path, monkeypatch):
    run, t = runner(conv, folder, tmp_path), []
    monkeypatch.setattr(conv, "update_ema", lambda a, b, decay, step: t.append(step))
    critic = [] if conv is dcgan else ["--n-critic", 3]
    out = run("--epochs", 1, *critic)
    z = load(out / "ckpt.pt")["z"]
    run("--resume", out / "ckpt.pt", "--epochs", 2, "--seed", 9)
    assert torch.equal(load(out / "ckpt.pt")["z"], z)
    assert t == ([1, 2] if critic else [*range(1, 9)])


# ---- dcgan.py ----


def test_dcgan_guidelines():
    for shape in ((1, 28, 28), (3, 64, 64)):
        G, D = dcgan.Generator(100, shape), dcgan.Discriminator(shape)
        pools = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Upsample)
        assert not kinds(G, *pools) and not kinds(D, *pools)
        assert {m.stride for m in kinds(G, nn.ConvTranspose2d)} == {(2, 2)}
        assert {m.stride for m in kinds(D, nn.Conv2d)} == {(2, 2)}
        n = len(dcgan.halved(shape[-1])) - 1
        assert len(kinds(G, nn.BatchNorm2d)) == n  # after all but the last, n + 1 layers
        assert len(kinds(D, nn.BatchNorm2d)) == n - 1  # after all but the first
        last, first = [*G.net][-2:], [*D.trunk][:2]
        assert isinstance(last[0], nn.ConvTranspose2d) and isinstance(last[1], nn.Tanh)
        assert isinstance(first[0], nn.Conv2d) and isinstance(first[1], nn.LeakyReLU)
        assert len(kinds(G, nn.ReLU)) == n and not kinds(G, nn.LeakyReLU)
        assert {m.negative_slope for m in kinds(D, nn.LeakyReLU)} == {0.2}


def test_dcgan_features():
    D = dcgan.Discriminator((3, 16, 16), 4).eval()
    x = torch.randn(5, 3, 16, 16)
    assert D.features(x).shape == (5, 128)
    torch.testing.assert_close(D.score(D.features(x)).flatten(), D(x))


def test_dcgan_losses_are_cross_entropies():
    real, fake = torch.randn(2, 64) * 5
    loss_real, loss_fake = dcgan.discriminator_loss(real, fake)
    cross_entropy = F.binary_cross_entropy_with_logits
    torch.testing.assert_close(loss_real, cross_entropy(real, torch.ones(64)))
    torch.testing.assert_close(loss_fake, cross_entropy(fake, torch.zeros(64)))
    torch.testing.assert_close(dcgan.generator_loss(fake), cross_entropy(fake, torch.ones(64)))


def test_dcgan_D_sees_real_and_fake_apart():
    """BatchNorm's statistics are of one kind of images: two calls of D, each with one kind."""
    G, D, _, opt_D = networks(dcgan)
    seen = []
    D.register_forward_hook(lambda m, x, s: seen.append((x[0].mean().item(), s.detach())))
    real = torch.ones(8, 1, 8, 8)
    stats = dcgan.train_discriminator(G, D, opt_D, real)
    (mean_real, s_real), (mean_fake, s_fake) = seen
    assert mean_real == 1 and mean_fake < 0.9
    want = [*dcgan.discriminator_loss(s_real, s_fake), s_real.sigmoid().mean()]
    torch.testing.assert_close(stats, torch.stack([*want, s_fake.sigmoid().mean()]))


def test_dcgan_walks():
    """Each row starts at one z and ends at another, every z on it is N(0, I)."""
    z = dcgan.walks(50, 800, torch.Generator().manual_seed(0)).view(100, 8, 50)
    assert (z.flatten(0, 1).std(0) - 1).abs().max() < 0.25 and z[:, 3].std() > 0.95
    ends = torch.cat([z[:, 0], z[:, -1]]).view(2, -1)
    assert torch.corrcoef(ends)[0, 1].abs() < 0.05  # independent of each other
    steps = z.diff(dim=1).norm(dim=-1)
    assert (steps.amax(1) / steps.amin(1)).max() < 1.5  # no jump on the way
    assert dcgan.walks(5, 11, torch.Generator()).shape == (11, 5)


def test_dcgan_walk_from_the_command_line(folder, tmp_path, capsys):
    run = runner(dcgan, folder, tmp_path)
    out = run("--epochs", 1)
    ckpt = load(out / "ckpt.pt")
    run("--sample", out / "ckpt.pt", "--walk", "--num", 16, "--seed", 5)
    G = dcgan.Generator(4, (1, 8, 8), 4)
    G.load_state_dict(ckpt["G_ema"])
    z = dcgan.walks(4, 16, torch.Generator().manual_seed(5))
    common.save_grid(dcgan.sample(G, z), tmp_path / "want.png")
    assert (tmp_path / "want.png").read_bytes() == (out / "sample.png").read_bytes()
    assert "--walk" in refused(capsys, run, "--walk")


def test_dcgan_norm_of_the_hidden_layer():
    assert len(kinds(dcgan.Discriminator(), nn.BatchNorm1d)) == 1


# ---- the two Wasserstein scripts ----


def test_wgan_losses(wgan):
    real, fake = torch.randn(2, 64)
    torch.testing.assert_close(wgan.critic_loss(real, fake), fake.mean() - real.mean())
    torch.testing.assert_close(wgan.generator_loss(fake), -fake.mean())


@pytest.mark.parametrize("norm", ("none", "layer", "instance"))
def test_wgan_scores_do_not_depend_on_the_batch(wgan, norm):
    """No BatchNorm in the critic: in training mode, each image's score is its own."""
    D = wgan.Critic((3, 28, 28), 4, *([norm] if wgan is wgan_gp else []))
    x = torch.randn(6, 3, 28, 28)
    torch.testing.assert_close(D(x)[:1], D(torch.cat([x[:1], 5 * x[1:]]))[:1])
    torch.testing.assert_close(D(x)[:1], D(x[:1]))


def test_wgan_stats_are_means_of_scores(wgan):
    G, D, _, opt_D = networks(wgan)
    real = torch.rand(8, 1, 8, 8) * 2 - 1
    torch.manual_seed(1)
    with torch.no_grad():
        want = torch.stack([D(real).mean(), D(G(wgan.noise(G, 8))).mean()])
    torch.manual_seed(1)
    torch.testing.assert_close(wgan.train_critic(G, D, opt_D, real)[:2], want)


@pytest.mark.parametrize("n_critic", (1, 3))
def test_wgan_n_critic_steps_of_D_for_one_of_G(wgan, folder, tmp_path, monkeypatch, n_critic):
    """Counted over two passes of 4 batches each, so that a pass begins within the n_critic."""
    calls, t = [], []
    for name in ("train_critic", "train_generator"):

        def step(*args, name=name, original=getattr(wgan, name), **kwargs):
            calls.append(name[6])
            return original(*args, **kwargs)

        monkeypatch.setattr(wgan, name, step)
    monkeypatch.setattr(wgan, "update_ema", lambda a, b, decay, step: t.append(step))
    runner(wgan, folder, tmp_path)("--n-critic", n_critic)
    assert "".join(calls) == {1: "cg" * 8, 3: "cccgcccgcc"}[n_critic]
    assert t == list(range(1, 8 // n_critic + 1))


def test_wgan_n_critic_beyond_the_run(wgan, folder, tmp_path, capsys):
    run = runner(wgan, folder, tmp_path)
    assert "--n-critic 9: G would not move" in refused(capsys, run, "--n-critic", 9)
    out = run("--epochs", 3, "--batch-size", 12)  # 9 steps
    again = ["--resume", out / "ckpt.pt", "--epochs", 4, "--n-critic"]  # 3 more
    assert "--n-critic 13: G would not move" in refused(capsys, run, *again, 13)
    run(*again, 12)


def test_wgan_validation_w_after_whole_passes(wgan, folder, tmp_path, capsys):
    out = runner(wgan, folder, tmp_path)("--log-every", 0)
    header, *rows = [row.split(",") for row in (out / "log.csv").read_text().splitlines()]
    values = [float(row[header.index("W_val")]) for row in rows]
    assert [math.isnan(v) for v in values] == 2 * [True, True, True, False]
    assert capsys.readouterr().out.count("W_val") == 2


def test_wgan_validation_w(wgan, folder, tmp_path):
    """W_val of the last row by hand: W, less what D gives seen images beyond held-back ones."""
    out = runner(wgan, folder, tmp_path)("--epochs", 3, "--lr-d", 0.01, "--lr", 0.01)
    header, *rows = [row.split(",") for row in (out / "log.csv").read_text().splitlines()]
    row = {name: float(value) for name, value in zip(header, rows[-1])}
    D = wgan.Critic((1, 8, 8), 4)
    D.load_state_dict(load(out / "ckpt.pt")["D"])
    seen, held = (
        common.load_images(str(folder), tmp_path / "data", train=train)[0] / 127.5 - 1
        for train in (True, False)
    )
    assert len(seen) == 36 and len(held) == 4
    assert row["W"] == pytest.approx(row["D(x)"] - row["D(G(z))"], abs=1e-6)
    with torch.no_grad():
        gap = (D(seen).mean() - D(held).mean()).item()
    assert gap and row["W_val"] == pytest.approx(row["W"] - gap, rel=1e-3, abs=1e-6)


def test_wgan_without_held_back_images(wgan, tmp_path, capsys):
    """Two classes of one image each: none is left for W_val, and that is said."""
    write_images(tmp_path / "few/a", 1)
    write_images(tmp_path / "few/b", 1)
    assert "held back" in refused(capsys, runner(wgan, tmp_path / "few", tmp_path))


def test_wgan_histogram(wgan, folder, tmp_path, tensorboard):
    out = runner(wgan, folder, tmp_path)("--tensorboard")
    histograms = [c for c in tensorboard if c[0] == "add_histogram"]
    weights = torch.cat([w.flatten() for w in load(out / "ckpt.pt")["D"].values()])
    assert [c[3] for c in histograms] == [4, 8]
    assert torch.equal(histograms[-1][2].flatten(), weights)


def test_wgan_held_back_of_the_same_classes(wgan, folder, tmp_path, monkeypatch):
    asked, original = [], common.load_images
    monkeypatch.setattr(common, "load_images", lambda *a, **k: asked.append(k) or original(*a, **k))
    runner(wgan, folder, tmp_path)("--classes", "dog", "--epochs", 3, "--batch-size", 4)
    want = [(["dog"], True), (["dog"], False)]
    assert [(k["classes"], k.get("train", True)) for k in asked] == want


def test_wgan_n_critic_goes_on_within_the_count(wgan, folder, tmp_path, monkeypatch):
    run, calls = runner(wgan, folder, tmp_path), []
    out = run("--epochs", 1, "--n-critic", 3)  # 4 steps of D: one into the next count
    for name in ("train_critic", "train_generator"):

        def step(*args, name=name, original=getattr(wgan, name), **kwargs):
            calls.append(name[6])
            return original(*args, **kwargs)

        monkeypatch.setattr(wgan, name, step)
    run("--resume", out / "ckpt.pt", "--epochs", 2)
    assert "".join(calls) == "ccgcc"


# ---- wgan_clip.py ----


def test_wgan_clip_weights_after_every_step():
    G, D, _, _ = networks(wgan_clip)
    opt = torch.optim.RMSprop(D.parameters(), 0.5)  # far out of the interval in one step
    for clip in (0.01, 0.01, 0.003):
        wgan_clip.train_critic(G, D, opt, torch.rand(8, 1, 8, 8), clip=clip)
        assert max(w.abs().max() for w in D.parameters()) <= torch.tensor(clip)
        assert all(w.any() for w in D.parameters() if w.ndim > 1)


def test_wgan_clip_boundary_in_the_log(folder, tmp_path):
    out = runner(wgan_clip, folder, tmp_path)("--epochs", 2, "--clip", 0.02)
    header, *rows = [row.split(",") for row in (out / "log.csv").read_text().splitlines()]
    weights = torch.cat([w.flatten() for w in load(out / "ckpt.pt")["D"].values()])
    share = (weights.abs() == torch.tensor(0.02)).float().mean().item()
    assert 0.05 < share < 1 and float(rows[-1][header.index("at_clip")]) == pytest.approx(share)


def test_wgan_clip_both_bounds():
    D = wgan_clip.Critic((1, 8, 8), 4)
    wgan_clip.clip_weights(D, 0.01)
    w = torch.cat([w.flatten() for w in D.parameters()])
    assert w.max() == torch.tensor(0.01) and w.min() == -torch.tensor(0.01)


# ---- wgan_gp.py ----


def linear(w):
    return lambda x: (x * w).sum((1, 2, 3))


def test_gp_of_a_linear_critic():
    """grad <w, x> = w: the penalty is (||w|| - 1)^2, whatever the images."""
    for scale in (0.01, 0.3, 1):
        w = torch.randn(3, 8, 8) * scale
        real, fake = torch.randn(2, 5, 3, 8, 8)
        penalty, norm = wgan_gp.gradient_penalty(linear(w), real, fake)
        torch.testing.assert_close(penalty, (w.norm() - 1) ** 2)
        torch.testing.assert_close(norm, w.norm())


def test_gp_one_norm_an_image():
    """D(x) = ||x||^2 / 2 has gradient x: with real = fake, x_hat = x, each image has its norm."""
    x = torch.randn(5, 3, 8, 8) * torch.arange(5.0).view(5, 1, 1, 1)
    penalty, norm = wgan_gp.gradient_penalty(lambda x: x.square().sum((1, 2, 3)) / 2, x, x)
    norms = x.flatten(1).norm(dim=1)
    torch.testing.assert_close(penalty, (norms - 1).square().mean())
    torch.testing.assert_close(norm, norms.mean())


@pytest.mark.parametrize("shape", ((2,), (5, 2), (3, 4, 8, 8)))
def test_gp_of_other_data_than_images(shape):
    """Points of the plane, sequences, videos: each has its own eps and its own norm."""
    n = 3000
    real, fake = torch.zeros(n, *shape), torch.ones(n, *shape)
    norms = (1 - torch.rand(n)).view(n, *[1] * len(shape)) / math.sqrt(math.prod(shape))
    seen = []

    def D(x):  # slope norms[i] for image i: a norm over others, or an x_hat of others, shows
        seen.append(torch._C._functorch.get_unwrapped(x))
        return (x * norms).flatten(1).sum(1)

    penalty, norm = wgan_gp.gradient_penalty(D, real, fake)
    want = norms.flatten() * math.sqrt(math.prod(shape))
    torch.testing.assert_close(norm, want.mean())
    torch.testing.assert_close(penalty, (want - 1).square().mean())
    eps = seen[0].flatten(1)
    assert seen[0].shape == real.shape and torch.equal(eps.amin(1), eps.amax(1))
    assert len(eps[:, 0].unique()) > n / 2


def test_gp_x_hat_is_between_its_own_pair():
    """One eps ~ U[0, 1] an image, the same for all its pixels."""
    n = 2000
    real, fake = torch.randn(2, n, 1, 2, 3)
    seen = []

    def D(x_hat):  # real 1, fake 0 would do for eps; here each pixel gives its own estimate of it
        x = torch._C._functorch.get_unwrapped(x_hat)
        seen.append((x - fake) / (real - fake))
        return x_hat.sum((1, 2, 3))

    wgan_gp.gradient_penalty(D, real, fake)
    eps = seen[0].flatten(1).median(1).values
    assert ((seen[0] - eps.view(n, 1, 1, 1)).abs().flatten(1).quantile(0.8, dim=1) < 1e-3).all()
    assert 0 <= eps.min() < 0.01 and 0.99 < eps.max() <= 1.001 and (eps.mean() - 0.5).abs() < 0.03
    assert len(eps.unique()) > n / 2


@pytest.mark.parametrize("norm", ("none", "layer", "instance"))
def test_gp_gradients_against_autograd(norm):
    """The same penalty and the same gradients for D's weights as torch.autograd.grad gives."""
    torch.manual_seed(0)
    D = wgan_gp.Critic((3, 12, 12), 4, norm)
    for w in D.parameters():
        w.data.mul_(5)
    real, fake = torch.randn(2, 6, 3, 12, 12)
    torch.manual_seed(1)
    eps = torch.rand(6, 1, 1, 1)
    x_hat = (eps * real + (1 - eps) * fake).requires_grad_()
    (gradient,) = torch.autograd.grad(D(x_hat).sum(), x_hat, create_graph=True)
    want = ((gradient.square().sum((1, 2, 3)).sqrt() - 1) ** 2).mean()
    torch.manual_seed(1)
    penalty, _ = wgan_gp.gradient_penalty(D, real, fake)
    torch.testing.assert_close(penalty, want)
    weights = [w for w in D.parameters() if w.ndim > 1]
    for a, b in zip(torch.autograd.grad(penalty, weights), torch.autograd.grad(want, weights)):
        assert b.any()
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_gp_is_part_of_the_critics_loss():
    """gp_weight changes the critic's gradients, by that weight times the penalty's own."""
    gradients = []
    for weight in (0.0, 10.0, 20.0):
        G, D, _, opt_D = networks(wgan_gp)
        torch.manual_seed(1)
        wgan_gp.train_critic(G, D, opt_D, torch.ones(8, 1, 8, 8), gp_weight=weight)
        gradients.append(torch.cat([w.grad.flatten() for w in D.parameters() if w.ndim > 1]))
    none, ten, twenty = gradients
    assert not torch.equal(none, ten)
    torch.testing.assert_close(twenty - none, 2 * (ten - none), atol=1e-5, rtol=1e-3)


def test_gp_keeps_the_norm_near_1():
    """Real and fake constant images: without the penalty the slope grows, with it it stays."""
    norms = []
    for weight in (0.0, 10.0):
        G, D, _, _ = networks(wgan_gp)
        opt_D = torch.optim.Adam(D.parameters(), 0.001, betas=(0.0, 0.9))
        for _ in range(200):
            stats = wgan_gp.train_critic(G, D, opt_D, torch.ones(16, 1, 8, 8), gp_weight=weight)
        norms.append(stats[2].item())
    assert norms[0] > 20 and 0.5 < norms[1] < 1.8


def test_gp_gradient_at_zero():
    """All weights 0: every norm is 0, where its own gradient has no value; it must not be NaN."""
    D = wgan_gp.Critic((1, 8, 8), 4)
    for w in D.parameters():
        w.data.zero_()
    penalty, norm = wgan_gp.gradient_penalty(D, torch.ones(4, 1, 8, 8), torch.zeros(4, 1, 8, 8))
    penalty.backward()
    assert penalty == 1 and norm == 0
    assert all(w.grad is None or w.grad.isfinite().all() for w in D.parameters())


def test_gp_refuses_batchnorm():
    D = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 1))
    with pytest.raises(RuntimeError):
        wgan_gp.gradient_penalty(D, torch.rand(4, 1, 8, 8), torch.rand(4, 1, 8, 8))


def test_gp_compiled():
    """torch.compile gives the same penalty and the same gradients, where other ways give none."""
    D = wgan_gp.Critic((1, 8, 8), 4)
    real, fake = torch.rand(2, 4, 1, 8, 8)
    results = []
    for f in (
        wgan_gp.gradient_penalty,
        torch.compile(wgan_gp.gradient_penalty, backend="aot_eager"),
    ):
        D.zero_grad()
        torch.manual_seed(0)
        penalty, _ = f(D, real, fake)
        penalty.backward()
        results.append((penalty.detach(), [w.grad for w in D.parameters() if w.ndim > 1]))
    assert any(g.any() for g in results[0][1])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("norm, layers", (("none", 0), ("layer", 3), ("instance", 2)))
def test_gp_norms(norm, layers, folder, tmp_path):
    D = wgan_gp.Critic((1, 28, 28), 4, norm)
    normed = kinds(D, nn.GroupNorm, nn.LayerNorm, nn.InstanceNorm2d)
    assert len(normed) == layers and not kinds(D, nn.modules.batchnorm._BatchNorm)
    out = runner(wgan_gp, folder, tmp_path)("--norm", norm, "--epochs", 1, "--image-size", 16)
    assert (
        load(out / "ckpt.pt")["D"].keys()
        == wgan_gp.Critic((1, 16, 16), 4, norm).state_dict().keys()
    )


def test_gp_refuses_norm_batch(folder, tmp_path, capsys):
    assert "--norm" in refused(capsys, runner(wgan_gp, folder, tmp_path), "--norm", "batch")


def test_gp_between_real_and_fake(monkeypatch):
    G, D, _, opt_D = networks(wgan_gp)
    real, seen = torch.ones(8, 1, 8, 8), []
    torch.manual_seed(1)
    fake = G(wgan_gp.noise(G, 8)).detach()
    original = wgan_gp.gradient_penalty
    monkeypatch.setattr(
        wgan_gp, "gradient_penalty", lambda D, a, b: seen.append((a, b)) or original(D, a, b)
    )
    torch.manual_seed(1)
    wgan_gp.train_critic(G, D, opt_D, real)
    assert torch.equal(seen[0][0], real) and torch.allclose(seen[0][1], fake)


def test_gp_norm_layers():
    norms = kinds(wgan_gp.Critic((1, 28, 28), 4, "instance"), nn.InstanceNorm2d)
    assert norms and all(m.affine for m in norms)
    assert {m.negative_slope for m in kinds(wgan_gp.Critic(), nn.LeakyReLU)} == {0.2}


# ---- infogan.py ----

infogan = importlib.import_module("infogan")


@pytest.fixture
def run_infogan(folder, tmp_path):
    return runner(infogan, folder, tmp_path)


def one_hot(*rows, k=10):
    return torch.eye(k)[list(rows)]


def test_infogan_bound_of_perfect_and_of_uniform_logits():
    """Softmax is taken once: perfect logits give H(c), whatever their scale; equal ones give 0."""
    c = torch.cat([one_hot(3, 7), torch.tensor([[0.5, -1], [0, 0.25]])], 1)
    q = c.clone()
    q[:, :10] *= 1000
    L_I, error = infogan.information(q, c, (10,))
    assert L_I.item() == pytest.approx(math.log(10)) and error == 0
    q[:, :10] = 5
    assert infogan.information(q, c, (10,))[0].abs() < 1e-6
    q[:, :10] = -1000 * c[:, :10]
    assert infogan.information(q, c, (10,))[0] < -100  # sure and wrong: far below 0


def test_infogan_bound_by_hand():
    """Two categorical codes and one number, against probabilities written out."""
    logits, guess = torch.randn(4, 5), torch.randn(4, 1)
    c = torch.cat([one_hot(0, 1, 2, 0, k=3), one_hot(1, 1, 0, 1, k=2), torch.rand(4, 1)], 1)
    L_I, error = infogan.information(torch.cat([logits, guess], 1), c, (3, 2))
    p, q = logits[:, :3].softmax(1), logits[:, 3:].softmax(1)
    log_Q = p[range(4), [0, 1, 2, 0]].log() + q[range(4), [1, 1, 0, 1]].log()
    torch.testing.assert_close(L_I, math.log(3) + math.log(2) + log_Q.mean())
    torch.testing.assert_close(error, (guess - c[:, 5:]).square().mean())


def test_infogan_codes():
    torch.manual_seed(0)
    c = infogan.codes(infogan.Generator(4, (1, 8, 8), 4, (3, 2), 2), 6000)
    for part, k in ((c[:, :3], 3), (c[:, 3:5], 2)):
        assert (part.sum(1) == 1).all() and ((part == 0) | (part == 1)).all()
        assert (part.mean(0) - 1 / k).abs().max() < 0.03
    numbers = c[:, 5:]
    assert numbers.shape == (6000, 2) and -1 <= numbers.min() < -0.99 < 0.99 < numbers.max() <= 1
    assert (numbers.var(0) - 1 / 3).abs().max() < 0.02 and numbers[:, 0].unique().numel() > 5000
    assert torch.corrcoef(c.T)[5:, :5].abs().max() < 0.05  # independent of the categories


def information_of(G, D, z, c):
    return infogan.information(D.score_and_code(G(z, c))[1], c, G.categories)


@pytest.mark.parametrize("player", "DG")
def test_infogan_both_players_raise_the_bound(player):
    """Steps of one player alone raise L_I and lower the error of the numbers."""
    torch.manual_seed(0)
    G, D = infogan.Generator(4, (1, 8, 8), 8), infogan.Discriminator((1, 8, 8), 8)
    z, c = infogan.noise(G, 256), infogan.codes(G, 256)
    with torch.no_grad():
        before = information_of(G, D, z, c)
    opt = torch.optim.Adam((D if player == "D" else G).parameters(), 1e-3)
    for _ in range(30):
        if player == "D":
            infogan.train_discriminator(G, D, opt, torch.zeros(64, 1, 8, 8))
        else:
            infogan.train_generator(G, D, opt, 64)
    with torch.no_grad():
        after = information_of(G, D, z, c)
    assert after[0] > before[0] + 0.01 and after[1] < before[1] - 0.002


@pytest.mark.parametrize("labels", (None, torch.arange(8)))
def test_infogan_D_step_by_hand(labels):
    G, D, _, opt_D = networks(infogan)
    real = torch.rand(8, 1, 8, 8) * 2 - 1
    torch.manual_seed(1)
    z, c = infogan.noise(G, 8), infogan.codes(G, 8)
    fake = G(z, c).detach()
    s_real = D(real)
    s_fake, q = D.score_and_code(fake)
    cross_entropy = F.binary_cross_entropy_with_logits
    losses = cross_entropy(s_real, torch.ones(8)), cross_entropy(s_fake, torch.zeros(8))
    L_I = math.log(10) - F.cross_entropy(q[:, :10], c[:, :10].argmax(1))
    error = F.mse_loss(q[:, 10:], c[:, 10:]) * 2
    loss = sum(losses) - 0.7 * L_I + 0.3 * error / 2
    if labels is not None:
        loss = loss + 0.7 * F.cross_entropy(D.score_and_code(real)[1][:, :10], labels)
    want = torch.autograd.grad(loss, D.parameters())
    torch.manual_seed(1)
    stats = infogan.train_discriminator(
        G, D, opt_D, real, cat_weight=0.7, code_weight=0.3, labels=labels
    )
    for p, g in zip(D.parameters(), want):
        torch.testing.assert_close(p.grad, g, atol=1e-5, rtol=1e-4)
    means = s_real.sigmoid().mean(), s_fake.sigmoid().mean()
    torch.testing.assert_close(stats, torch.stack([*losses, *means, L_I, error]).detach())


def test_infogan_G_step_by_hand():
    G, D, opt_G, _ = networks(infogan)
    torch.manual_seed(1)
    z, c = infogan.noise(G, 8), infogan.codes(G, 8)
    s_fake, q = D.score_and_code(G(z, c))
    adversarial = F.binary_cross_entropy_with_logits(s_fake, torch.ones(8))
    bound = math.log(10) - F.cross_entropy(q[:, :10], c[:, :10].argmax(1))
    loss = adversarial - 0.7 * bound + 0.3 * F.mse_loss(q[:, 10:], c[:, 10:])
    want = torch.autograd.grad(loss, G.parameters())
    torch.manual_seed(1)
    loss_G = infogan.train_generator(G, D, opt_G, 8, cat_weight=0.7, code_weight=0.3)
    torch.testing.assert_close(loss_G, adversarial.detach())
    for p, g in zip(G.parameters(), want):
        torch.testing.assert_close(p.grad, g, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("supervised", (False, True))
def test_infogan_labels(run_infogan, tmp_path, monkeypatch, supervised):
    """Shuffled labels leave every weight bit-identical; with --supervised they do not."""
    flags = ["--supervised"] if supervised else []
    run_infogan("--out", tmp_path / "a", *flags)
    load_images = common.load_images

    def shuffled(*args, **kwargs):
        images, labels = load_images(*args, **kwargs)
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        assert not torch.equal(labels, labels[order])
        return images, labels[order]

    monkeypatch.setattr(common, "load_images", shuffled)
    run_infogan("--out", tmp_path / "b", *flags)
    a, b = (load(tmp_path / name / "ckpt.pt") for name in "ab")
    if supervised:
        assert not torch.equal(a["D"]["Q.0.weight"], b["D"]["Q.0.weight"])
    else:
        assert_same(a, b)


def test_infogan_supervised_needs_a_value_for_each_class(run_infogan, tmp_path, capsys):
    error = refused(capsys, run_infogan, "--supervised", "--categories", 1)
    assert "--supervised" in error and "2 classes" in error
    assert not (tmp_path / "run").exists()


def test_infogan_supervised_learns_the_labels(run_infogan, folder, tmp_path):
    out = run_infogan("--supervised", "--epochs", 60, "--categories", 2, "--lr-d", 0.003)
    ckpt = load(out / "ckpt.pt")
    D = infogan.Discriminator((1, 8, 8), 4, 4).eval()
    D.load_state_dict(ckpt["D"])
    images, labels = common.load_images(str(folder), tmp_path / "data")
    guesses = D.score_and_code(images / 127.5 - 1)[1][:, :2].argmax(1)
    assert (guesses == labels).float().mean() > 0.8


def test_infogan_pictures():
    """Rows are categories; the first picture has the z and c given, the others sweep a number."""
    G = infogan.Generator(4, (1, 8, 8), 4, (3, 2), 2)
    seen = []
    G.register_forward_hook(lambda m, inputs, o: seen.append(torch.cat(inputs, 1)))
    z, c = infogan.noise(G, 5), infogan.codes(G, 5)
    pictures = infogan.pictures(G, z, c, steps=5)
    assert [tuple(p.shape[:2]) for p in pictures] == [(3, 5)] * 3
    for k in range(3):
        assert torch.equal(seen[k], torch.cat([z, one_hot(*[k] * 5, k=3), c[:, 3:]], 1))
    sweep = torch.tensor([-2.0, -1, 0, 1, 2])
    for j in (1, 2):
        for k in range(3):
            rows = seen[3 * j + k]
            assert (rows[:, :4] == z[0]).all() and (rows[:, 7:9] == c[0, 3:5]).all()
            assert torch.equal(rows[:, 4:7], one_hot(*[k] * 5, k=3))
            assert torch.equal(rows[:, 8 + j], sweep) and not rows[:, 11 - j].any()
    torch.testing.assert_close(pictures[0][2], infogan.sample(G, z, seen[2][:, 4:]))


def test_infogan_training_grid(run_infogan, tmp_path):
    """To the left all categories, then behind white columns the sweeps, of the average G."""
    ckpt = load(run_infogan("--epochs", 1) / "ckpt.pt")
    G = infogan.Generator(4, (1, 8, 8), 4)
    G.load_state_dict(ckpt["G_ema"])
    first, *sweeps = infogan.pictures(G, ckpt["z"], ckpt["c"])
    for i, picture in enumerate((first, *sweeps)):
        common.save_grid(picture.flatten(0, 1), tmp_path / "part.png", picture.shape[1])
        part = np.array(Image.open(tmp_path / "part.png"))
        left = (0, 90, 190)[i]
        grid = np.array(Image.open(tmp_path / "run/samples/0001.png"))
        assert (grid[:, left : left + part.shape[1]] == part).all()
    assert (grid[2:10, 82:90] == 255).all() and (grid[2:10, 182:190] == 255).all()
    assert not torch.equal(*(ckpt[name]["net.0.weight"] for name in ("G", "G_ema")))


def test_infogan_sample_sweeps(run_infogan):
    out = run_infogan("--epochs", 1, "--num-codes", 3)
    run_infogan("--sample", out / "ckpt.pt")
    assert sorted(p.name for p in out.glob("sample*.png")) == [
        "sample.png",
        *(f"sample_code{j}.png" for j in (1, 2, 3)),
    ]
    assert Image.open(out / "sample_code2.png").size == (9 * 10 + 2, 10 * 10 + 2)


@pytest.mark.parametrize(
    "flags, category, numbers",
    [
        (["--category", 3, "--code", 0.5, -1], [3] * 6, (0.5, -1)),
        (["--category", 0], [0] * 6, None),
        (["--code", 0.25], [0, 1, 3, 5, 6, 8], (0.25,)),  # spread evenly
    ],
)
def test_infogan_sample_of_one_setting(
    run_infogan, tmp_path, monkeypatch, flags, category, numbers
):
    out = run_infogan("--epochs", 1)
    seen, sample = [], infogan.sample
    monkeypatch.setattr(infogan, "sample", lambda G, z, c: seen.append((z, c)) or sample(G, z, c))
    run_infogan("--sample", out / "ckpt.pt", *flags, "--num", 6, "--out", tmp_path / "six")
    ((z, c),) = seen
    assert c[:, :10].argmax(1).tolist() == category and (c[:, :10].sum(1) == 1).all()
    assert len(z.unique()) == 24  # the noise differs
    for j in range(2):
        fixed = numbers is not None and j < len(numbers)
        assert c[:, 10 + j].unique().tolist() == [numbers[j]] if fixed else c[:, 10 + j].std() > 0.1
    names = sorted(p.name for p in (tmp_path / "six").iterdir())
    assert names == [f"{k}_{i:05}.png" for i, k in enumerate(category)]
    run_infogan("--sample", out / "ckpt.pt", *flags)
    assert not list(out.glob("sample_code*"))


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--category", 10], "--category 10: this G has categorical codes of 10 values"),
        (["--category", 1, 1], "--category 1 1"),
        (["--category", -1], "--category"),
        (["--code", 0, 0, 0], "has 2 numbers"),
        (["--code", "x"], "--code"),
    ],
)
def test_infogan_bad_settings(run_infogan, capsys, flags, words):
    ckpt = run_infogan("--epochs", 1) / "ckpt.pt"
    assert words in refused(capsys, run_infogan, "--sample", ckpt, *flags)
    assert "only with --sample" in refused(capsys, run_infogan, "--category", 1)
    assert "only with --sample" in refused(capsys, run_infogan, "--code", 1)


@pytest.mark.parametrize("flags", (["--num-codes", 0], ["--categories", 3, 2], ["--categories", 1]))
def test_infogan_other_codes(run_infogan, flags):
    out = run_infogan("--epochs", 1, *flags)
    header, row = [r.split(",") for r in (out / "log.csv").read_text().splitlines()]
    row = {name: float(value) for name, value in zip(header, row)}
    categories = load(out / "ckpt.pt")["args"]["categories"]
    assert row["H(c)"] == pytest.approx(sum(map(math.log, categories)))
    assert row["chance"] == pytest.approx(0 if "--num-codes" in flags else 1 / math.sqrt(3))
    run_infogan("--resume", out / "ckpt.pt", "--epochs", 2)
    run_infogan("--sample", out / "ckpt.pt")
    assert len(list(out.glob("sample_code*"))) == (0 if "--num-codes" in flags else 2)


def test_infogan_resume_with_other_codes(run_infogan, capsys):
    """Networks of the same sizes, but codes of another meaning."""
    ckpt = run_infogan("--epochs", 1, "--categories", 4, 2) / "ckpt.pt"
    for flags in (["--categories", 2, 4], ["--categories", 4, 3, "--num-codes", 1]):
        error = refused(capsys, run_infogan, "--resume", ckpt, "--epochs", 2, *flags)
        assert "--categories, --num-codes" in error


def test_infogan_log_row_by_hand(run_infogan, monkeypatch):
    numbers = iter(range(1, 100))
    base = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    monkeypatch.setattr(infogan, "train_discriminator", lambda *a, **k: base * next(numbers))
    monkeypatch.setattr(infogan, "train_generator", lambda *a, **k: torch.tensor(7.0))
    out = run_infogan("--log-every", 1e9)
    header, first, _ = [r.split(",") for r in (out / "log.csv").read_text().splitlines()]
    want = {"loss_real": 0.25, "loss_fake": 0.5, "D(x)": 0.75, "D(G(z))": 1.0, "L_I": 1.25}
    want |= {"H(c)": math.log(10), "code_rmse": math.sqrt(1.5 / 2), "chance": math.sqrt(1 / 3)}
    want |= {"loss_G": 7}
    assert header == ["epoch", "step", *want, "images/s"]
    assert [float(v) for v in first[2:-1]] == pytest.approx(list(want.values()), rel=1e-4)


def test_infogan_every_flag_arrives(run_infogan, tmp_path, monkeypatch):
    got = {}
    for name in ("train_discriminator", "train_generator", "update_ema"):

        def f(*args, name=name, original=getattr(infogan, name), **kwargs):
            got[name] = args, kwargs
            return original(*args, **kwargs)

        monkeypatch.setattr(infogan, name, f)
    flags = ["--lr", 0.01, "--lr-d", 0.02, "--beta1", 0.3, "--beta2", 0.7, "--ema", 0.5, "--amp"]
    run_infogan(*flags, "--cat-weight", 0.7, "--code-weight", 0.3, "--categories", 4, 3)
    (_, D, opt_D, _), D_flags = got["train_discriminator"]
    (G, _, opt_G, _), G_flags = got["train_generator"]
    want = {"cat_weight": 0.7, "code_weight": 0.3, "amp": True}
    assert G_flags == want and D_flags == {**want, "labels": None}
    assert got["update_ema"][0][2:] == (0.5, 8)
    assert G.categories == (4, 3) and D.Q[-1].out_features == 9
    for opt, lr in ((opt_G, 0.01), (opt_D, 0.02)):
        group = opt.param_groups[0]
        assert (group["lr"], tuple(group["betas"])) == (lr, (0.3, 0.7))
    run_infogan("--lr", 0.01, "--lr-d", 0, "--supervised", "--out", tmp_path / "other")
    assert got["train_discriminator"][0][2].param_groups[0]["lr"] == 0.01
    assert got["train_discriminator"][1]["labels"].shape == (8,)


def test_infogan_networks_of_the_paper():
    """Appendix C.1, at --width 64."""
    G, D = infogan.Generator(width=64), infogan.Discriminator(width=64)

    def sizes(net):
        layers = kinds(net, nn.Linear, nn.Conv2d, nn.ConvTranspose2d)
        return [tuple(m.weight.shape) for m in layers]

    assert sizes(G) == [(1024, 74), (128 * 7 * 7, 1024), (128, 64, 4, 4), (64, 1, 4, 4)]
    assert sizes(D.trunk) == [(64, 1, 4, 4), (128, 64, 4, 4), (1024, 128 * 7 * 7)]
    assert sizes(D.score) == [(1, 1024)] and sizes(D.Q) == [(128, 1024), (12, 128)]
    assert {m.negative_slope for m in kinds(D, nn.LeakyReLU)} == {0.1}
    assert len(kinds(D.trunk, nn.BatchNorm1d, nn.BatchNorm2d)) == 2 and kinds(D.Q, nn.BatchNorm1d)
    assert len(kinds(G, nn.BatchNorm1d, nn.BatchNorm2d)) == 3


# ---- stackedgan.py ----

stackedgan = importlib.import_module("stackedgan")


@pytest.fixture
def run_stackedgan(folder, tmp_path):
    return runner(stackedgan, folder, tmp_path)


def stacked_networks(side=8):
    """Small networks of both stacks, {1: (G1, D1, E1), 0: (G0, D0, E0)}; data and conditions."""
    torch.manual_seed(0)
    E = stackedgan.Encoder((1, side, side), 4, 3).eval()
    upper = stackedgan.Generator1(5, 4, 3), stackedgan.Discriminator1(4, 5), E.E1
    lower = stackedgan.Generator0(6, (1, side, side), 4), stackedgan.Discriminator0(
        (1, side, side), 4, 6
    )
    real, y = torch.rand(9, 1, side, side) * 2 - 1, torch.arange(9) % 3
    h1 = E.E0(real).detach()
    return E, {1: (*upper, h1, y), 0: (*lower, E.E0, real, h1)}


def test_stackedgan_conditional_loss():
    """Cross-entropy of raw logits for labels, mean squared error for features."""
    y = torch.tensor([2, 0])
    assert stackedgan.conditional_loss(1000 * one_hot(2, 0, k=3), y) == 0
    loss = stackedgan.conditional_loss(torch.full((2, 3), 7.0), y)
    assert loss.item() == pytest.approx(math.log(3))
    a, b = torch.randn(2, 4, 5)
    torch.testing.assert_close(stackedgan.conditional_loss(a, b), (a - b).square().mean())


@pytest.mark.parametrize("stack", (1, 0))
def test_stackedgan_D_step_by_hand(stack):
    _, stacks = stacked_networks()
    G, D, _, real, condition = stacks[stack]
    torch.manual_seed(1)
    z = stackedgan.noise(G, 9)
    fake = G(condition, z).detach()
    s_real = D(real)
    s_fake, z_hat = D.score_and_noise(fake)
    cross_entropy = F.binary_cross_entropy_with_logits
    losses = cross_entropy(s_real, torch.ones(9)), cross_entropy(s_fake, torch.zeros(9))
    want = torch.autograd.grad(sum(losses) + 0.7 * F.mse_loss(z_hat, z), D.parameters())
    torch.manual_seed(1)
    opt = torch.optim.Adam(D.parameters())
    stats = stackedgan.train_discriminator(G, D, opt, real, condition, ent_weight=0.7)
    torch.testing.assert_close(stats, torch.stack(losses).detach())
    for p, g in zip(D.parameters(), want):
        torch.testing.assert_close(p.grad, g, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("stack", (1, 0))
def test_stackedgan_G_step_by_hand(stack):
    encoder, stacks = stacked_networks()
    G, D, E, _, condition = stacks[stack]
    e, d = copy_of(encoder), copy_of(D)
    torch.manual_seed(1)
    z = stackedgan.noise(G, 9)
    fake = G(condition, z)
    s_fake, z_hat = D.score_and_noise(fake)
    adversarial = F.binary_cross_entropy_with_logits(s_fake, torch.ones(9))
    if stack == 1:
        conditional = F.cross_entropy(encoder.E1(fake), condition)
    else:
        conditional = (encoder.E0(fake) - condition).square().mean()
    entropy = (z_hat - z).square().mean()
    want = torch.autograd.grad(
        0.9 * adversarial + 0.8 * conditional + 0.7 * entropy, G.parameters()
    )
    torch.manual_seed(1)
    opt, weights = torch.optim.Adam(G.parameters()), {"adv_weight": 0.9, "cond_weight": 0.8}
    stats = stackedgan.train_generator(G, D, opt, condition, E, **weights, ent_weight=0.7)
    torch.testing.assert_close(stats, torch.stack([adversarial, conditional, entropy]).detach())
    for p, g in zip(G.parameters(), want):
        torch.testing.assert_close(p.grad, g, atol=1e-5, rtol=1e-4)
    assert same(encoder, e) and same(D, d)


@pytest.mark.parametrize("stack", (1, 0))
def test_stackedgan_Q_is_not_asked_about_real_data(stack):
    """Real data come from no noise: whatever they are, Q's gradient is the same."""
    _, stacks = stacked_networks()
    G, D, _, real, condition = stacks[stack]
    gradients = []
    for data in (real, real.flip(0) * 0.3):
        torch.manual_seed(1)
        opt = torch.optim.SGD(D.parameters(), lr=0)
        stackedgan.train_discriminator(G, D, opt, data, condition)
        gradients.append((D.Q.weight.grad.clone(), D.score.weight.grad.clone()))
    assert gradients[0][0].any() and torch.equal(gradients[0][0], gradients[1][0])
    assert not torch.equal(gradients[0][1], gradients[1][1])


def test_stackedgan_encoder_is_frozen(run_stackedgan, tmp_path):
    """Bit-identical from the cache through both phases, and in a resumed run."""
    out = run_stackedgan("--epochs", 3, "--keep", "--lr", 0.1, "--amp")
    run_stackedgan("--resume", out / "ckpt.pt", "--epochs", 4, "--encoder-epochs", 9)
    (cache,) = (tmp_path / "data/cache").glob("encoder_*.pt")
    for name in ("ckpt_0001.pt", "ckpt_0003.pt", "ckpt.pt"):
        assert_same(load(out / name)["E"], load(cache))


def test_stackedgan_encoder_is_cached(run_stackedgan, folder, tmp_path, monkeypatch, capsys):
    """And nothing that follows depends on whether it was."""
    run_stackedgan("--out", tmp_path / "a")
    caches = list((tmp_path / "data/cache").glob("encoder_*.pt"))
    trained, step = [], stackedgan.train_encoder
    monkeypatch.setattr(stackedgan, "train_encoder", lambda *args: trained.append(1) or step(*args))
    run_stackedgan("--out", tmp_path / "b")
    assert not trained
    caches[0].write_bytes(b"damaged")
    run_stackedgan("--out", tmp_path / "c")
    assert trained
    a, b, c = (load(tmp_path / name / "ckpt.pt") for name in "abc")
    assert_same(a, b)
    assert_same(a, c)
    for flags in (["--encoder-epochs", 2], ["--width", 5], ["--classes", "dog", "cat"]):
        trained.clear()
        run_stackedgan("--out", tmp_path / flags[0], *flags)
        assert trained  # another E, or other labels
    run_stackedgan("--seed", 7, "--out", tmp_path / "d")
    assert_same(load(tmp_path / "d/ckpt.pt")["E"], a["E"])
    (tmp_path / "file").write_text("")
    run_stackedgan("--out", tmp_path / "e", "--data-dir", tmp_path / "file")
    assert "not cached" in capsys.readouterr().err


def test_stackedgan_encoder_learns(monkeypatch, tmp_path):
    images, labels, _, _ = common.strokes(2500)
    E = stackedgan.Encoder(width=4)
    args = types.SimpleNamespace(encoder_epochs=4, data_dir=str(tmp_path))
    stackedgan.pretrain(E, images[:2000], labels[:2000], args)
    with torch.no_grad():
        right = E.eval()(images[2000:] / 127.5 - 1).argmax(1) == labels[2000:]
    assert right.float().mean() > 0.9


def test_stackedgan_phases(run_stackedgan, monkeypatch):
    """G0 gets E's features of the batch at first, G1's for its labels in the joint passes."""
    seen, step = [], stackedgan.train_discriminator

    def record(G, D, opt, real, condition, **kwargs):
        seen.append((real, condition))
        return step(G, D, opt, real, condition, **kwargs)

    monkeypatch.setattr(stackedgan, "train_discriminator", record)
    made, G1 = [], stackedgan.Generator1.forward

    def forward(self, y, z):
        h1 = G1(self, y, z)
        made.append((y, h1))
        return h1

    monkeypatch.setattr(stackedgan.Generator1, "forward", forward)
    out = run_stackedgan("--epochs", 3)
    E = stackedgan.Encoder((1, 8, 8), 4, 2).eval()
    E.load_state_dict(load(out / "ckpt.pt")["E"])
    upper, lower = seen[::2], seen[1::2]
    assert len(upper) == len(lower) == 12
    for i, ((h1, y), (real, condition)) in enumerate(zip(upper, lower)):
        torch.testing.assert_close(h1, E.E0(real).detach())
        assert y.shape == (8,) and not condition.requires_grad
        assert torch.equal(condition, h1) == (i < 8)
        if i >= 8:
            assert any(torch.equal(condition, h) and torch.equal(y, labels) for labels, h in made)


def test_stackedgan_without_classes(run_stackedgan, folder, tmp_path, capsys):
    words = "all images are of one class"
    assert words in refused(capsys, run_stackedgan, "--data", folder / "cat")
    assert words in refused(capsys, run_stackedgan, "--classes", "dog")
    assert not (tmp_path / "run").exists()


def test_stackedgan_folder_of_mixed_sizes(run_stackedgan, tmp_path):
    """The held-back images get the shape of the others, whatever theirs would be."""
    for name in ("a", "b"):
        write_images(tmp_path / "mixed" / name, 10, size=(12, 12))
        for i, path in enumerate(sorted((tmp_path / "mixed" / name).iterdir())):
            if i < 5:
                write_images(tmp_path / "rgb", 1, "RGB", (9, 9))
                shutil.copy(tmp_path / "rgb/000.png", path)
    run_stackedgan("--data", tmp_path / "mixed", "--epochs", 1)


def test_grids_have_whole_rows(run_infogan, run_stackedgan, tmp_path):
    for run, rows in ((run_infogan, 10), (run_stackedgan, 2)):
        out = run("--epochs", 1, "--out", tmp_path / str(rows)) and tmp_path / str(rows)
        run("--sample", out / "ckpt.pt", "--num", 11, "--out", out / "a.png")
        columns = math.ceil(11 / rows)
        assert Image.open(out / "a.png").size == (10 * columns + 2, 10 * rows + 2)
        run("--sample", out / "ckpt.pt", "--num", 11, "--out", out / "many")
        names = sorted(p.name for p in (out / "many").iterdir())
        assert len(names) == 11 and {name[0] for name in names} == set("0123456789"[:rows])


def test_stackedgan_training_grid(run_stackedgan, tmp_path):
    """A row a class, 8 of each, of the averages."""
    out = run_stackedgan("--epochs", 1)
    ckpt = load(out / "ckpt.pt")
    G1, G0 = stackedgan.Generator1(4, 4, 2), stackedgan.Generator0(4, (1, 8, 8), 4)
    G1.load_state_dict(ckpt["G1_ema"])
    G0.load_state_dict(ckpt["G0_ema"])
    y = torch.tensor([0] * 8 + [1] * 8)
    common.save_grid(stackedgan.sample(G1, G0, y, ckpt["z1"], ckpt["z0"]), tmp_path / "want.png")
    assert (tmp_path / "want.png").read_bytes() == (out / "samples/0001.png").read_bytes()
    for name in ("G1", "G0"):
        raw, average = (ckpt[key]["net.0.weight"] for key in (name, f"{name}_ema"))
        assert not torch.equal(raw, average)


@pytest.mark.parametrize(
    "flags, labels, fixed",
    [
        ([], [0] * 3 + [1] * 3, None),
        (["--label", 1], [1] * 6, None),
        (["--vary", "z1"], [0] * 3 + [1] * 3, "z0"),
        (["--vary", "z0", "--label", 0], [0] * 6, "z1"),
    ],
)
def test_stackedgan_sample(run_stackedgan, tmp_path, monkeypatch, flags, labels, fixed):
    out = run_stackedgan("--epochs", 1)
    seen, sample = [], stackedgan.sample
    monkeypatch.setattr(stackedgan, "sample", lambda *args: seen.append(args[2:]) or sample(*args))
    run_stackedgan("--sample", out / "ckpt.pt", *flags, "--num", 6, "--out", tmp_path / "six")
    ((y, z1, z0),) = seen
    assert y.tolist() == labels
    for name, z in (("z1", z1), ("z0", z0)):
        assert len(z.unique(dim=0)) == (1 if name == fixed else 6)
    names = sorted(p.name for p in (tmp_path / "six").iterdir())
    assert names == [f"{k}_{i:05}.png" for i, k in enumerate(labels)]


def test_stackedgan_bad_settings(run_stackedgan, capsys):
    ckpt = run_stackedgan("--epochs", 1) / "ckpt.pt"
    assert "classes of this G are 0 to 1" in refused(
        capsys, run_stackedgan, "--sample", ckpt, "--label", 2
    )
    assert "--vary" in refused(capsys, run_stackedgan, "--sample", ckpt, "--vary", "z2")
    assert "only with --sample" in refused(capsys, run_stackedgan, "--label", 0)
    assert "only with --sample" in refused(capsys, run_stackedgan, "--vary", "z1")


def test_stackedgan_log_row_by_hand(run_stackedgan, monkeypatch):
    numbers = iter(range(1, 100))  # four updates a step: 1 2 3 4, then 5 6 7 8, and so on
    D_base, G_base = torch.tensor([0.1, 0.2]), torch.tensor([0.3, 0.4, 0.5])
    monkeypatch.setattr(stackedgan, "train_discriminator", lambda *a, **k: D_base * next(numbers))
    monkeypatch.setattr(stackedgan, "train_generator", lambda *a, **k: G_base * next(numbers))
    out = run_stackedgan("--log-every", 1e9)
    header, first, _ = [r.split(",") for r in (out / "log.csv").read_text().splitlines()]
    names = ["loss_real1", "loss_fake1", "adv1", "cond1", "ent1"]
    names += ["loss_real0", "loss_fake0", "adv0", "cond0", "ent0"]
    assert header == ["epoch", "step", *names, "images/s"]
    want = [0.7, 1.4, 2.4, 3.2, 4.0, 0.9, 1.8, 3.0, 4.0, 5.0]  # means over 7, 8, 9 and 10
    assert [float(v) for v in first[2:-1]] == pytest.approx(want, rel=1e-4)


def test_stackedgan_every_flag_arrives(run_stackedgan, tmp_path, monkeypatch):
    got = {}
    for name in ("train_discriminator", "train_generator", "update_ema"):

        def f(*args, name=name, original=getattr(stackedgan, name), **kwargs):
            stack = 1 if isinstance(args[1 if name == "update_ema" else 0], upper) else 0
            got[name, stack] = args, kwargs
            return original(*args, **kwargs)

        monkeypatch.setattr(stackedgan, name, f)
    upper = stackedgan.Generator1
    flags = ["--lr", 0.01, "--lr-d", 0.02, "--beta1", 0.3, "--beta2", 0.7, "--ema", 0.5, "--amp"]
    weights = ["--adv-weight", 0.9, "--cond-weight", 0.8, "--ent-weight", 0.7]
    run_stackedgan(*flags, *weights, "--z1-dim", 3, "--z0-dim", 6)
    rates = {("D", 1): 0.01, ("G", 1): 0.02, ("D", 0): 0.02, ("G", 0): 0.01}
    for stack in (1, 0):
        D_args, D_flags = got["train_discriminator", stack]
        G_args, G_flags = got["train_generator", stack]
        assert D_flags == {"ent_weight": 0.7, "amp": True}
        assert G_flags == {"adv_weight": 0.9, "cond_weight": 0.8, **D_flags}
        assert got["update_ema", stack][0][2:] == (0.5, 8)
        assert G_args[0].z_dim == D_args[1].Q.out_features == {1: 3, 0: 6}[stack]
        for player, opt in (("D", D_args[2]), ("G", G_args[2])):
            group = opt.param_groups[0]
            assert (group["lr"], tuple(group["betas"])) == (rates[player, stack], (0.3, 0.7))
    run_stackedgan("--lr", 0.01, "--lr-d", 0, "--out", tmp_path / "other")
    for stack in (1, 0):
        assert got["train_generator", stack][0][2].param_groups[0]["lr"] == 0.01


def test_stackedgan_networks():
    """Sizes at the default width, and for other images."""
    E, G1 = stackedgan.Encoder(), stackedgan.Generator1()

    def sizes(net):
        return [tuple(m.weight.shape) for m in kinds(net, nn.Linear, nn.Conv2d)]

    assert sizes(E) == [(16, 1, 3, 3), (32, 16, 3, 3), (256, 32 * 7 * 7), (10, 256)]
    assert len(kinds(E, nn.MaxPool2d)) == 2
    assert sizes(G1) == [(512, 60), (512, 512), (256, 512)]
    assert G1(torch.tensor([3, 4]), torch.randn(2, 50)).min() >= 0
    assert E.E0(torch.randn(4, 1, 28, 28)).min() >= 0
    assert not kinds(stackedgan.Discriminator1(), nn.modules.batchnorm._BatchNorm)

    # pooled before ReLU, and in the layout that train() gives it: the same features
    x, E = torch.randn(4, 1, 28, 28), E.eval()
    usual = nn.Sequential(*(E.E0[i] for i in (0, 2, 1, 3, 5, 4, 6, 7, 8, 9)))
    assert [type(layer) for layer in usual[:3]] == [nn.Conv2d, nn.ReLU, nn.MaxPool2d]
    want = usual(x)
    assert torch.equal(E.E0(x), want)
    torch.testing.assert_close(E.to(memory_format=torch.channels_last).E0(x), want)

    for side in (8, 9, 50):
        E = stackedgan.Encoder((3, side, side), 4, 5)
        assert E(torch.randn(2, 3, side, side)).shape == (2, 5)


# ---- common.py: pictures and batches ----


def test_spread():
    images = torch.arange(99).view(99, 1, 1, 1)
    for n in (1, 5, 50, 64, 98, 99, 500):
        rows = common.spread(images, n).flatten()
        assert len(rows) == min(n, 99) and rows[0] == 0 and (n == 1 or rows[-1] == 98)
        assert n == 1 or rows.diff().min() > 0 and rows.diff().max() - rows.diff().min() <= 1


def test_batches():
    images = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1) * 25
    passes = [list(common.batches(images, 4)) for _ in range(20)]
    assert all([b.shape for b in p] == [(4, 1, 1, 1)] * 2 for p in passes)
    values = {round((v + 1) * 127.5) for p in passes for b in p for v in b.flatten().tolist()}
    assert values == {25 * i for i in range(10)}  # shuffled: all have their turn
    assert all(len(torch.cat(p).unique()) == 8 for p in passes)  # and none twice in a pass
    assert torch.cat(list(common.batches(torch.tensor([0, 255]).byte().view(2, 1, 1, 1), 5))).sort(
        0
    )[0].flatten().tolist() == [-1, 1]


@pytest.mark.parametrize("channels, mode", ((1, "L"), (3, "RGB")))
def test_save_grid_and_gif(tmp_path, channels, mode):
    images = torch.rand(5, channels, 6, 6) * 2 - 1
    common.save_grid(images, tmp_path / "grid.png", columns=3)
    picture = Image.open(tmp_path / "grid.png")
    assert picture.size == (3 * 8 + 2, 2 * 8 + 2) and picture.mode == mode
    pixels = np.array(picture).reshape(18, 26, channels)
    expected = ((images[4] + 1) * 127.5).round().permute(1, 2, 0).numpy()
    assert (pixels[10:16, 10:16] == expected).all()  # second row, second column
    common.save_grid(images * -1, tmp_path / "next.png", columns=3)
    common.save_gif([tmp_path / "grid.png", tmp_path / "next.png"], tmp_path / "both.gif")
    assert Image.open(tmp_path / "both.gif").n_frames == 2


def test_gif(tmp_path):
    for i, c in enumerate(((255, 0, 0), (0, 255, 0), (0, 0, 255))):
        Image.new("RGB", (8, 8), c).save(tmp_path / f"{i}.png")
    common.save_gif([tmp_path / f"{i}.png" for i in range(3)], tmp_path / "x.gif")
    gif, got = Image.open(tmp_path / "x.gif"), []
    for i in range(3):
        gif.seek(i)
        got.append((gif.convert("RGB").getpixel((0, 0)), gif.info["duration"]))
    assert (
        got == [((255, 0, 0), 250), ((0, 255, 0), 250), ((0, 0, 255), 2000)]
        and gif.info["loop"] == 0
    )


def test_batches_with_labels():
    """Each label stays with its image, and asking for labels does not change the order."""
    images = torch.arange(100, dtype=torch.uint8).view(100, 1, 1, 1)
    torch.manual_seed(0)
    pairs = list(common.batches(images, 30, 2 * torch.arange(100)))
    torch.manual_seed(0)
    alone = list(common.batches(images, 30))
    assert len(pairs) == 3 and torch.equal(pairs[2][0], alone[2])
    for real, y in pairs:
        assert torch.equal(((real + 1) * 127.5).flatten().round().long() * 2, y)


def test_batches_pairs():
    """Not only a random start: neighbours differ from pass to pass."""
    images = torch.arange(100, dtype=torch.uint8).view(100, 1, 1, 1)
    p = torch.cat(list(common.batches(images, 50))).flatten()
    assert len((p.diff() * 127.5).round().unique()) > 20


# ---- common.py: downloaded data sets, from files in the real formats ----


def write_mnist(root, name="MNIST", packed=False):
    """The four idx files with 12 and 6 images, packed or not; returns the pixels of both parts."""
    raw, parts = root / name / "raw", []
    raw.mkdir(parents=True)
    for part, n in (("train", 12), ("t10k", 6)):
        pixels = np.random.default_rng(n).integers(0, 256, (n, 28, 28), dtype=np.uint8)
        labels = np.arange(n, dtype=np.uint8) % 10
        for kind, array in (("images-idx3", pixels), ("labels-idx1", labels)):
            data = (
                struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()
            )
            path = raw / f"{part}-{kind}-ubyte"
            (
                path.with_suffix(".gz").write_bytes(gzip.compress(data))
                if packed
                else path.write_bytes(data)
            )
        parts.append(pixels)
    return parts


def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


@pytest.mark.parametrize("packed", (False, True))
def test_mnist(tmp_path, monkeypatch, packed):
    no_network(monkeypatch)
    monkeypatch.setattr(
        "torchvision.datasets.utils.check_integrity", lambda path, md5=None: os.path.isfile(path)
    )
    train, test = write_mnist(tmp_path, packed=packed)
    images, labels = common.load_images("mnist", tmp_path)
    assert images.dtype == torch.uint8 and labels.dtype == torch.int64
    assert (images.numpy() == train[:, None]).all() and labels.tolist() == [*range(10), 0, 1]
    images, _ = common.load_images("mnist", tmp_path, train=False)
    assert (images.numpy() == test[:, None]).all()
    assert common.default_data(tmp_path) == "mnist"
    images, labels = common.load_images("mnist", tmp_path, classes=["seven", "1"])
    assert labels.tolist() == [1, 0, 1] and (images.numpy() == train[[1, 7, 11], None]).all()
    images, _ = common.load_images("mnist", tmp_path, image_size=32, channels=3)
    assert images.shape == (12, 3, 32, 32) and (images[:, 0] == images[:, 2]).all()


def test_fashion_mnist(tmp_path, monkeypatch):
    no_network(monkeypatch)
    train, _ = write_mnist(tmp_path, "FashionMNIST")
    images, labels = common.load_images("fashion-mnist", tmp_path, classes=["Ankle boot"])
    assert (images.numpy() == train[[9], None]).all() and labels.tolist() == [0]


def test_cifar10(tmp_path, monkeypatch):
    no_network(monkeypatch)
    monkeypatch.setattr("torchvision.datasets.CIFAR10._check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5=None: True)
    files = tmp_path / "cifar-10-batches-py"
    files.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (6, 2, 3072), dtype=np.uint8)
    for i, name in enumerate([f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]):
        (files / name).write_bytes(pickle.dumps({"data": pixels[i], "labels": [i, 7]}))
    names = "airplane automobile bird cat deer dog frog horse ship truck".split()
    (files / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    images, labels = common.load_images("cifar10", tmp_path)
    assert (images.numpy() == pixels[:5].reshape(10, 3, 32, 32)).all() and labels.tolist() == [
        0,
        7,
        1,
        7,
        2,
        7,
        3,
        7,
        4,
        7,
    ]
    images, labels = common.load_images(
        "cifar10", tmp_path, classes=["horse"], train=False, channels=1
    )
    assert images.shape == (1, 1, 32, 32) and labels.tolist() == [0]
    grey = pixels[5, 1].reshape(3, 32, 32).astype(float)
    assert (
        np.abs(images[0, 0].numpy() - (0.299 * grey[0] + 0.587 * grey[1] + 0.114 * grey[2])).max()
        < 1.5
    )


def test_without_network(script, run, tmp_path, capsys, monkeypatch):
    """A data set asked for by name is never replaced; without a name it is, and that is said."""
    no_network(monkeypatch)
    error = refused(capsys, run, "--data", "mnist")
    assert "--data mnist" in error and "MNIST/raw" in error and "--data strokes" in error
    assert not (tmp_path / "run").exists()
    draw = common.strokes
    monkeypatch.setattr(common, "strokes", lambda n: draw(n // 1000))
    monkeypatch.setattr("sys.argv", [script.__file__])
    script.main(
        [
            "--data-dir",
            str(tmp_path / "data"),
            "--out",
            str(tmp_path / "run"),
            "--epochs",
            "1",
            "--batch-size",
            "8",
            *SCRIPTS[script.SCRIPT],
        ]
    )
    assert "built-in strokes" in capsys.readouterr().err
    assert load(tmp_path / "run/ckpt.pt")["args"]["data"] == "strokes"


def test_network_that_never_answers(tmp_path):
    start = time.time()
    with pytest.raises(TimeoutError):
        common._unless_stuck(lambda: time.sleep(30), tmp_path, seconds=0.2)
    assert time.time() - start < 5

    def slow():  # but one that is slow is waited for
        for i in range(6):
            time.sleep(0.15)
            (tmp_path / f"{i}").write_text("more")
        return "done"

    assert common._unless_stuck(slow, tmp_path, seconds=0.3) == "done"
    with pytest.raises(KeyError):
        common._unless_stuck(lambda: {}["x"], tmp_path)


def test_damaged_download(tmp_path, monkeypatch):
    no_network(monkeypatch)
    write_mnist(tmp_path)
    path = tmp_path / "MNIST/raw/train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:99])
    with pytest.raises(common.DataError, match="--data mnist"):
        common.load_images("mnist", tmp_path)


# ---- common.py: folders ----


def test_flat_folder(tmp_path):
    flat = write_images(tmp_path / "flat", 20, "RGB", (12, 12))
    images, labels = common.load_images(str(flat), tmp_path)
    assert images.shape == (18, 3, 12, 12) and not labels.any()
    held, _ = common.load_images(str(flat), tmp_path, train=False)
    every = {np.array(Image.open(p)).transpose(2, 0, 1).tobytes() for p in flat.iterdir()}
    rows = [{x.numpy().tobytes() for x in part} for part in (images, held)]
    assert len(held) == 2 and rows[0] | rows[1] == every and not rows[0] & rows[1]


def test_class_folders(folder, tmp_path):
    images, labels = common.load_images(str(folder), tmp_path)
    assert images.shape == (36, 1, 8, 8) and labels.bincount().tolist() == [18, 18]
    dogs, labels = common.load_images(str(folder), tmp_path, classes=["dog"])
    assert labels.tolist() == [0] * 18 and torch.equal(dogs, images[18:])
    _, labels = common.load_images(str(folder), tmp_path, classes=["1", "cat"])
    assert labels.bincount().tolist() == [18, 18] and labels[0] == 1
    deep = tmp_path / "deep"
    shutil.copytree(folder / "cat", deep / "cat/more")
    assert len(common.load_images(str(deep), tmp_path)[0]) == 18
    write_images(deep, 1)
    with pytest.raises(common.DataError, match="beside sub-folders"):
        common.load_images(str(deep), tmp_path)


@pytest.mark.parametrize(
    "modes, channels", ((("L",), 1), (("RGB",), 3), (("RGBA",), 3), (("L", "RGBA"), 3))
)
def test_folder_modes(tmp_path, modes, channels):
    for mode in modes:
        write_images(tmp_path / "images", 4, mode, (10, 10))
        for path in sorted((tmp_path / "images").glob("0*.png")):
            path.rename(path.with_name(f"{mode}{path.name}"))
    images, _ = common.load_images(str(tmp_path / "images"), tmp_path)
    assert images.shape[1:] == (channels, 10, 10)
    for want in (1, 3):
        assert (
            common.load_images(str(tmp_path / "images"), tmp_path, channels=want)[0].shape[1]
            == want
        )


def test_folder_sizes(tmp_path):
    """Mixed sizes give 64; an oblong image is scaled and cropped to its centre."""
    write_images(tmp_path / "images", 4, "RGB", (10, 10))
    path = tmp_path / "images/wide.bmp"
    wide = np.zeros((20, 60), np.uint8)
    wide[:, 20:40] = 255
    Image.fromarray(wide).save(path)
    assert common.load_images(str(tmp_path / "images"), tmp_path)[0].shape[1:] == (3, 64, 64)
    for p in (tmp_path / "images").glob("*.png"):
        Image.fromarray(wide).save(p)
    images, _ = common.load_images(str(tmp_path / "images"), tmp_path, image_size=10)
    assert images.shape == (4, 1, 10, 10) and images[..., 1:-1].min() == 255
    assert common.load_images(str(tmp_path / "images"), tmp_path)[0].shape[-1] == 64


def test_folder_16_bits_and_orientation(tmp_path):
    (tmp_path / "images").mkdir()
    for i in range(2):
        Image.fromarray(np.full((8, 8), 0x8000, np.uint16)).save(tmp_path / f"images/{i}.png")
    images, _ = common.load_images(str(tmp_path / "images"), tmp_path)
    assert images.shape == (1, 1, 8, 8) and (images == 128).all()
    (tmp_path / "more").mkdir()
    for i in range(2):
        Image.fromarray(np.full((8, 8), 200, np.int32)).save(
            tmp_path / f"more/{i}.tif"
        )  # 8 bits in 32
    assert (common.load_images(str(tmp_path / "more"), tmp_path)[0] == 200).all()
    (tmp_path / "photos").mkdir()
    picture = Image.fromarray(
        np.repeat([[0], [255]], 8, 1).repeat(4, 0).astype(np.uint8)
    )  # bright below
    exif = Image.Exif()
    exif[0x0112] = 3  # shown upside down
    for i in range(2):
        picture.save(tmp_path / f"photos/{i}.jpg", exif=exif)
    images, _ = common.load_images(str(tmp_path / "photos"), tmp_path)
    assert images[0, 0, :3].min() > 200 and images[0, 0, 5:].max() < 50


def test_unreadable_files(tmp_path, capsys):
    images = write_images(tmp_path / "images", 10)
    whole = (images / "003.png").read_bytes()
    (images / "003.png").write_bytes(
        whole[: len(whole) // 2]
    )  # its header is fine, its pixels are not
    (images / "004.png").write_bytes(b"")
    (images / "notes.txt").write_text("no picture, and not said to be one")
    n = sum(
        len(common.load_images(str(images), tmp_path, train=train)[0]) for train in (True, False)
    )
    error = capsys.readouterr().err
    assert n == 8 and "003.png" in error and "004.png" in error and "005.png" not in error


def test_unreadable_keep_order(tmp_path):
    for name, grey in (("a", 50), ("b", 200)):
        (tmp_path / "im" / name).mkdir(parents=True)
        for i in range(10):
            path = tmp_path / f"im/{name}/{i}.png"
            Image.new("L", (8, 8), grey + i).save(path)
            if name == "a" and i % 2:
                path.write_bytes(path.read_bytes()[:-30])
    images, labels = common.load_images(str(tmp_path / "im"), tmp_path)
    assert torch.equal(images[:, 0, 0, 0] >= 200, labels == 1) and 0 < (labels == 0).sum() < 9
    assert (images[:, 0, 0, 0] >= 50).all()


def test_folder_pixels(tmp_path):
    colour = Image.new("RGB", (8, 8), (200, 100, 50))
    (tmp_path / "real").mkdir()
    for i in range(2):
        colour.save(tmp_path / f"real/{i}.PNG")
    colour.save(tmp_path / "real/._2.png")
    (tmp_path / "x").symlink_to(tmp_path / "real")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked/1").symlink_to(tmp_path / "real")
    write_images(tmp_path / "linked/0", 3)
    one, _ = common.load_images(str(tmp_path / "real"), tmp_path, channels=1)
    assert one.shape[0] == 1 and (one == 124).all()  # 0.299 R + 0.587 G + 0.114 B
    images, labels = common.load_images(str(tmp_path / "linked"), tmp_path, classes=["0"])
    assert len(images) == 2
    images, _ = common.load_images(str(tmp_path / "linked"), tmp_path, classes=["1"])
    assert images[0, :, 0, 0].tolist() == [200, 100, 50]


def test_class_called_by_a_number(tmp_path):
    write_images(tmp_path / "im/1", 4)
    write_images(tmp_path / "im/2", 6)
    assert len(common.load_images(str(tmp_path / "im"), tmp_path, classes=["1"])[0]) == 3


def test_folder_with_loops_and_hidden_files(tmp_path):
    images = write_images(tmp_path / "images/cat", 10).parent
    write_images(images / ".thumbs", 3)
    (images / "cat/again").symlink_to(images)
    (images / "cat/more").symlink_to(images / "cat")
    (images / "cat/dead.png").symlink_to(images / "nowhere.png")
    parts = [common.load_images(str(images), tmp_path, train=train)[0] for train in (True, False)]
    assert sum(map(len, parts)) == 10


def test_folder_cache(tmp_path, monkeypatch, capsys):
    images = write_images(tmp_path / "images", 10)
    first = common.load_images(str(images), tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", None)  # decoding is no longer possible
        assert_same(first, common.load_images(str(images), tmp_path))
    write_images(images, 10, seed=5)  # the files change, so must the result
    second = common.load_images(str(images), tmp_path)
    assert not torch.equal(first[0], second[0])
    for cache in (tmp_path / "cache").iterdir():
        cache.write_bytes(b"damaged")
    assert_same(second, common.load_images(str(images), tmp_path))
    (tmp_path / "file").write_text("")
    assert_same(second, common.load_images(str(images), tmp_path / "file"))  # no place for a cache
    assert "not cached" in capsys.readouterr().err


def test_too_large_for_memory(folder, tmp_path):
    with pytest.raises(common.DataError, match="GB"):
        common.load_images(str(folder), tmp_path, image_size=10**7)


# ---- common.py: strokes ----


def test_strokes():
    images, labels, slant, width = common.strokes(600, seed=3)
    assert images.shape == (600, 1, 28, 28) and images.dtype == torch.uint8
    assert labels.bincount(minlength=10).min() > 30
    for a, b in zip(common.strokes(600, seed=3), (images, labels, slant, width)):
        assert torch.equal(a, b)
    assert not torch.equal(common.strokes(600, seed=4)[0], images)
    border = torch.cat([images[:, :, 0], images[:, :, -1], images[..., 0], images[..., -1]], -1)
    assert (border.amax((1, 2)) > 0).float().mean() < 0.05  # hardly any leaves the picture
    grey = ((images > 0) & (images < 255)).sum((1, 2, 3)).float()
    assert (grey > 10).all()  # soft edges


def test_strokes_slant_and_width_can_be_read_off():
    """By image moments and by ink, within each digit: the truth that they come with is true."""
    images, labels, slant, width = common.strokes(2000)
    x = torch.arange(28.0)
    pixels = images[:, 0].float() / 255
    mass = pixels.sum((1, 2))
    cx, cy = (pixels.sum(1) * x).sum(1) / mass, (pixels.sum(2) * x).sum(1) / mass
    dx, dy = x[None, None] - cx[:, None, None], x[None, :, None] - cy[:, None, None]
    shear = -(pixels * dx * dy).sum((1, 2)) / (pixels * dy**2).sum((1, 2))
    for digit in range(10):
        rows = labels == digit
        assert torch.corrcoef(torch.stack([slant[rows], shear[rows]]))[0, 1] > 0.7
        assert torch.corrcoef(torch.stack([width[rows], mass[rows]]))[0, 1] > 0.8


def test_strokes_upright():
    images, labels, slant, width = common.strokes(3000)
    assert (
        -0.2 <= slant.min() < -0.19
        and 0.59 < slant.max() <= 0.6
        and 1.4 <= width.min() < 1.41
        and 3.59 < width.max() <= 3.6
    )
    mean = [images[labels == d, 0].float().mean(0) for d in range(10)]
    assert mean[7][:10].sum() > 1.2 * mean[7][18:].sum()  # 7 has its bar on top
    assert (
        mean[0][11:17, 11:17].mean() < 0.5 * mean[8][11:17, 11:17].mean()
    )  # 0 is hollow, 8 crosses
    assert images[labels == 1, 0].float().std(0).max() > 20


def test_strokes_class_names():
    """Those of MNIST, so that a command for MNIST works where strokes stand in for it."""
    (images, labels), (same, _) = (
        common.load_images("strokes", train=False, classes=c) for c in (["three"], ["3"])
    )
    assert len(images) > 100 and torch.equal(images, same) and not labels.any()


def test_strokes_split(monkeypatch):
    every = common.strokes(50)
    monkeypatch.setattr(common, "strokes", lambda n: every)
    train, labels = common.load_images("strokes")
    held, _ = common.load_images("strokes", train=False)
    assert torch.equal(train, every[0][:45]) and torch.equal(held, every[0][45:])
    assert torch.equal(labels, every[1][:45])


# ---- benchmarks/quality.py ----


def test_frechet_of_known_gaussians():
    """Of exact means m and covariances S: ||m_a - m_b||² + sum (sqrt(S_a) - sqrt(S_b))²."""
    torch.manual_seed(0)
    x = torch.randn(500, 3, dtype=torch.float64)
    x = (x - x.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T))).T  # cov = I
    a, b = x * torch.tensor([1.0, 2, 3]) + 1, x * torch.tensor([4.0, 4, 0]) - 1
    assert quality.frechet(a, b) == pytest.approx(3 * 2**2 + 3**2 + 2**2 + 3**2)
    turn, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))
    assert quality.frechet(a @ turn, b @ turn) == pytest.approx(34)
    # not in the same directions: tr (A B)^(1/2) of 2×2 matrices is sqrt(tr AB + 2 sqrt(det AB))
    a, b = x[:, :2] * torch.tensor([1.0, 3]), x[:, :2] @ torch.tensor([[2.0, 1], [0, 1]]).double()
    A, B = torch.cov(a.T), torch.cov(b.T)
    root = math.sqrt((A @ B).trace() + 2 * math.sqrt(torch.linalg.det(A @ B)))
    assert quality.frechet(a, b) == pytest.approx((A.trace() + B.trace()).item() - 2 * root)


def test_frechet_of_a_set_with_itself():
    x = torch.rand(300, 128)
    assert quality.frechet(x, x) == pytest.approx(0, abs=1e-6)


def test_classifier_score():
    sure = 1000 * torch.eye(5).repeat(4, 1)
    assert quality.classifier_score(sure) == pytest.approx(5)
    assert quality.classifier_score(sure[:1].repeat(9, 1)) == pytest.approx(1)
    assert quality.classifier_score(torch.randn(1, 5).repeat(9, 1)) == pytest.approx(1)


def test_nearest():
    training = torch.randint(0, 256, (50, 1, 8, 8), dtype=torch.uint8)
    images = torch.cat([training[7:8], torch.randint(0, 256, (9, 1, 8, 8), dtype=torch.uint8)])
    difference = (images[:, None].double() - training[None].double()).flatten(2) / 255
    expected = difference.square().sum(-1).sqrt().amin(1).float()
    assert expected[0] == 0
    torch.testing.assert_close(quality.nearest(images, training), expected)


def test_parzen_of_one_window():
    """With one sample it is a Gaussian around that, of the width that validation likes best."""
    x = torch.zeros(1, 5)
    validation, test = 0.1 * torch.ones(1, 5), torch.tensor([[0.3, 0, 0, 0, 0], [0] * 5])
    value, error, sigma = quality.parzen(x, validation, test)
    density = torch.distributions.Normal(0, 0.1).log_prob(test.double()).sum(1)
    assert sigma == pytest.approx(0.1)
    assert value == pytest.approx(density.mean().item(), abs=1e-4)
    assert error == pytest.approx(density.std().item() / math.sqrt(2), abs=1e-4)


def test_parzen_of_a_gaussian():
    """Samples of N(0, 1) make a density near N(0, 1 + sigma²)."""
    torch.manual_seed(0)
    samples, validation, test = (torch.randn(n, 2) for n in (4000, 500, 2000))
    value, error, sigma = quality.parzen(samples, validation, test)
    smooth = torch.distributions.Normal(0, math.sqrt(1 + sigma**2))
    assert value == pytest.approx(smooth.log_prob(test).sum(1).mean().item(), abs=0.02)
    assert 0 < error < 0.05


def test_spearman():
    x = torch.rand(50)
    assert quality.spearman(x, x.exp()) == pytest.approx(1)
    assert quality.spearman(x, -(x**3)) == pytest.approx(-1)
    # with ties, by hand: ranks 1, 2.5, 2.5, 4 and 1, 2, 3, 4
    tied = quality.spearman(torch.tensor([1, 5, 5, 9]), torch.tensor([1, 2, 3, 4]))
    assert tied == pytest.approx(np.corrcoef([1, 2.5, 2.5, 4], [1, 2, 3, 4])[0, 1])


def test_within_groups():
    """Rising within each group, though falling from group to group."""
    groups, x = torch.arange(30) // 10, torch.arange(30.0)
    y = x - 100 * groups
    assert quality.within(groups, x, y) == pytest.approx(1)
    assert quality.spearman(x, y) < 0
    assert quality.within(groups, x, torch.where(groups == 0, 5, y)) == pytest.approx(1)
    assert math.isnan(quality.within(groups, x, groups))


@pytest.mark.parametrize("shape", ((4, 4), (3, 5), (5, 3)))
def test_match(shape):
    counts = torch.randint(0, 50, shape, generator=torch.Generator().manual_seed(1))
    small, large = sorted(shape)
    table = counts if shape[0] == small else counts.T
    best = max(
        sum(table[i, j] for i, j in enumerate(chosen))
        for chosen in itertools.permutations(range(large), small)
    )
    assert quality.match(counts) == best


def test_style_of_strokes():
    images, labels, slant, pen = common.strokes(1000, seed=3)
    measured, ink, _ = quality.style(images)
    assert quality.within(labels, measured, slant) > 0.7
    assert quality.within(labels, ink, pen) > 0.9


def test_style_of_a_slash():
    """A diagonal has shear 1 and no width; two columns that lean by it stand 4 apart: std 2."""
    images = torch.zeros(2, 1, 9, 13, dtype=torch.uint8)
    for row in range(9):
        images[0, 0, row, 8 - row] = 255
        images[1, 0, row, [8 - row, 12 - row]] = 255
    slant, ink, width = quality.style(images)
    assert slant.tolist() == pytest.approx([1, 1]) and ink.tolist() == pytest.approx([9, 18])
    assert width.tolist() == pytest.approx([0, 2], abs=1e-9)


def test_variety():
    """Of traces 2 and 8, over those of features half as far apart; a class of one cannot count."""
    x, y = torch.tensor([[0.0, 0], [2, 0], [10, 5], [10, 9], [7, 7]]), torch.tensor([0, 0, 1, 1, 2])
    assert quality.variety(x, y, x / 2, y) == pytest.approx(4)
    assert quality.variety(x, y, x[:2] * 3, y[:2]) == pytest.approx(2 / 18)
    assert math.isnan(quality.variety(x, y, x[4:], y[4:]))


def test_linear_probe():
    torch.manual_seed(0)
    x, y = torch.randn(300, 5), torch.arange(300) % 3
    apart = x + 10 * F.one_hot(y, 5)
    assert quality.linear_probe(apart[:150], y[:150], apart[150:], y[150:]) > 0.99
    assert quality.linear_probe(x[:150], y[:150], x[150:], y[150:]) < 0.6


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """600 strokes as PNGs, a sub-folder a class."""
    folder = tmp_path_factory.mktemp("digits")
    images, labels, _, _ = common.strokes(600)
    for i, (image, label) in enumerate(zip(images, labels.tolist())):
        (folder / str(label)).mkdir(exist_ok=True)
        Image.fromarray(image[0].numpy()).save(folder / str(label) / f"{i:03}.png")
    return folder


@pytest.fixture(scope="session")
def measured(digits, tmp_path_factory):
    """measure(*paths): what `quality.py --json` says of them, beside the digits."""
    data_dir = tmp_path_factory.mktemp("quality")

    def measure(*paths):
        with contextlib.redirect_stdout(io.StringIO()) as text:
            quality.main(
                ["--num", "300", "--data-dir", str(data_dir), "--classifier-epochs", "12"]
                + ["--device", "cpu", "--data", str(digits), "--json", *map(str, paths)]
            )
        return json.loads(text.getvalue())

    return measure


def test_quality(script, run, digits, measured, tmp_path):
    """Of a checkpoint, and of the PNGs that --sample makes from it: the same."""
    out = run("--data", digits, "--epochs", 3, "--batch-size", 32, "--keep")
    run("--sample", out / "ckpt.pt", "--num", 300, "--out", tmp_path / "many")
    result, again, folder = measured(out / "ckpt.pt", out / "ckpt.pt", tmp_path / "many")
    assert result == again
    for key in set(result) & set(folder) - {"path", "purity"}:
        assert folder[key] == result[key], key
    assert result["cFID"] > 5 * result["floor"] > 0
    assert sum(result["shares"]) == pytest.approx(1) and len(result["shares"]) == 10
    assert 1 <= result["score"] <= 10 and result["images"] == 300 and result["passes"] == 3
    own = {
        "gan_mlp": ["log_likelihood", "standard_error", "sigma"],
        "dcgan": ["linear_probe", "linear_probe_random_D"],
        "infogan": ["category_errors", "purity", "codes"],
        "stackedgan": ["asked", "variety"],
    }.get(script.SCRIPT, ["W_cFID", "W_cFID_spearman"])
    assert all(np.isfinite(result[key]).all() for key in own)
    if script.SCRIPT in ("infogan", "stackedgan"):
        assert folder["asked"] <= np.mean(folder["purity"]) + 1e-6


def test_quality_of_real_images(digits, measured, tmp_path):
    """Training images pass as such: near the floor, far below noise; and as memorised."""
    train, labels = common.load_images(str(digits))
    for name, images in ("real", train), ("noise", torch.randint_like(train, 256)):
        (tmp_path / name).mkdir()
        for i, (image, label) in enumerate(zip(images, labels)):
            Image.fromarray(image[0].numpy()).save(tmp_path / name / f"{label}_{i}.png")
    real, noise = measured(tmp_path / "real", tmp_path / "noise")
    assert real["classifier_accuracy"] > 0.8
    assert real["cFID"] == pytest.approx(real["floor"], rel=1e-3, abs=1e-3)
    assert noise["cFID"] > 10 * real["cFID"]
    assert real["nearest"] == 0 < real["nearest_held_back"] < noise["nearest"]
    assert real["asked"] > 0.8 > noise["asked"]
    assert 0.5 < real["variety"] < 2


def test_quality_table(run_gan, digits, measured, tmp_path, capsys):
    out = run_gan("--data", digits, "--epochs", 1)
    capsys.readouterr()
    quality.main([str(out / "ckpt.pt"), "--num", "200", "--data-dir", str(tmp_path)])
    header, row, own = capsys.readouterr().out.splitlines()
    assert "cFID" in header and row.startswith(str(out)) and "Parzen" in own


def test_quality_of_strokes(folder, tmp_path, monkeypatch):
    """Of a run on strokes, what Q reads off real images is compared with the truth."""
    every = common.strokes(1000)
    monkeypatch.setattr(common, "strokes", lambda n: every)
    out = runner(infogan, folder, tmp_path)("--data", "strokes", "--epochs", 1)
    with contextlib.redirect_stdout(io.StringIO()) as text:
        flags = ["--num", "200", "--classifier-epochs", "1", "--data-dir", str(tmp_path), "--json"]
        quality.main([str(out / "ckpt.pt"), *flags])
    codes = torch.tensor(json.loads(text.getvalue())[0]["codes_of_real_images"])
    assert codes.shape == (2, 2) and codes.abs().max() <= 1


def test_quality_of_one_class(run_gan, folder, tmp_path, capsys):
    """A run on cats: the classifier learns all classes. A flat folder has none: no cFID."""
    out = run_gan("--classes", "cat", "--epochs", 1)
    flags = ["--num", "200", "--classifier-epochs", "1", "--data-dir", str(tmp_path), "--json"]
    capsys.readouterr()
    quality.main([str(out / "ckpt.pt"), *flags])
    assert len(json.loads(capsys.readouterr().out)[0]["shares"]) == 2
    flat = write_images(tmp_path / "flat", n=250)
    quality.main([str(flat), "--data", str(flat), *flags])
    (result,) = json.loads(capsys.readouterr().out)
    assert result["nearest"] == 0 and "cFID" not in result


def test_W_of_a_pass(folder, tmp_path, monkeypatch):
    """The mean over the steps of a pass, whatever the log's lines; G is not its average."""
    out = runner(wgan_gp, folder, tmp_path)("--epochs", 6, "--keep")  # 4 steps a pass
    # pass 5 has no line, as if no step of G fell into it
    log = "epoch,step,W\n1,1,10\n1,4,6\n2,8,5\n3,12,1\n4,16,4\n6,21,9\n6,24,0"
    (out / "log.csv").write_text(log)
    calls = []

    def draw(ckpt, num, seed, device, weights):
        calls.append((ckpt["epoch"], weights))
        return torch.full((1,), {1: 40.0, 2: 30, 3: 20, 4: 25, 6: 10}[ckpt["epoch"]]), None

    ref = types.SimpleNamespace(net=None, features=None)
    args = types.SimpleNamespace(num=200, seed=0, device="cpu")
    monkeypatch.setattr(quality, "draw", draw)
    monkeypatch.setattr(quality, "read", lambda net, images: (images, None))
    monkeypatch.setattr(quality, "frechet", lambda x, y: x.item())
    ckpt = load(out / "ckpt.pt")
    result, text = quality.measure_wgan(out / "ckpt.pt", ckpt, ref, args)
    assert calls == [(epoch, "G") for epoch in (1, 2, 3, 4, 6)]
    expected = [(1, 7, 40), (2, 5, 30), (3, 1, 20), (4, 4, 25), (6, 2.25, 10)]
    assert result["W_cFID"] == expected
    _, W, cfid = np.array(expected).T  # no ties: ranks are double argsorts
    rho = np.corrcoef(W.argsort().argsort(), cfid.argsort().argsort())[0, 1]
    assert result["W_cFID_spearman"] == pytest.approx(rho)
    # the log of a run that was resumed elsewhere begins within pass 3
    (out / "log.csv").write_text("epoch,step,W\n3,10,2\n3,12,4\n4,16,4\n6,24,0")
    result, _ = quality.measure_wgan(out / "ckpt.pt", ckpt, ref, args)
    assert [(p, W) for p, W, _ in result["W_cFID"]] == [(3, 3), (4, 4), (6, 0)]
    (out / "log.csv").unlink()
    assert quality.measure_wgan(out / "ckpt.pt", ckpt, ref, args)[0] == {}


def test_quality_draws_the_raw_G(folder, tmp_path):
    out = runner(wgan_gp, folder, tmp_path)("--epochs", 3)
    ckpt = quality.load_checkpoint(out / "ckpt.pt")
    raw, _ = quality.draw(ckpt, 200, 5, "cpu", weights="G")
    G = wgan_gp.Generator(4, ckpt["shape"], 4)
    G.load_state_dict(ckpt["G"])
    torch.manual_seed(5)
    expected = wgan_gp.sample(G, torch.randn(200, 4)).add(1).mul(127.5).round().byte()
    assert torch.equal(raw, expected)
    assert not torch.equal(raw, quality.draw(ckpt, 200, 5, "cpu")[0])


def test_quality_of_a_Q_that_knows(folder, tmp_path, monkeypatch):
    """With Q replaced by the truth, categories have no errors, and numbers correlate by 1."""
    every = images, labels, slant, width = common.strokes(1000)
    monkeypatch.setattr(common, "strokes", lambda n: every)
    out = runner(infogan, folder, tmp_path)("--data", "strokes", "--epochs", 1)
    known = {image.numpy().tobytes(): i for i, image in enumerate(images)}

    def truth(D, x):
        rows = [known[((v + 1) * 127.5).round().byte().numpy().tobytes()] for v in x]
        category = F.one_hot((labels[rows] + 3) % 10, 10)  # matched whatever their order
        return None, torch.cat([category, slant[rows, None], -width[rows, None]], 1)

    with monkeypatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as text:
        patch.setattr(infogan.Discriminator, "score_and_code", truth)
        flags = ["--num", "200", "--classifier-epochs", "1", "--data-dir", str(tmp_path), "--json"]
        quality.main([str(out / "ckpt.pt"), *flags])
    (result,) = json.loads(text.getvalue())
    assert result["category_errors"] == 0
    (a, b), (c, d) = result["codes_of_real_images"]
    assert a == pytest.approx(1) and d == pytest.approx(-1) and abs(b) < 0.5 and abs(c) < 0.5


def test_quality_takes_the_weights_of_D(folder, tmp_path, digits):
    """The probe of dcgan.py and the errors of infogan.py are those of the trained D."""
    ref = quality.Reference(str(digits), None, (1, 28, 28), str(tmp_path), 1, "cpu")
    out = runner(dcgan, folder, tmp_path)("--data", digits, "--epochs", 8, "--batch-size", 16)
    ckpt = quality.load_checkpoint(out / "ckpt.pt")
    trained, _ = quality.measure_dcgan(ckpt, ref)
    torch.manual_seed(0)
    ckpt["D"] = dcgan.Discriminator(ckpt["shape"], 4).state_dict()
    untrained, _ = quality.measure_dcgan(ckpt, ref)
    assert untrained["linear_probe"] == untrained["linear_probe_random_D"]
    assert trained["linear_probe_random_D"] == untrained["linear_probe"]
    assert trained["linear_probe"] != untrained["linear_probe"]


def test_quality_of_an_edited_D(folder, tmp_path, digits, monkeypatch, capsys):
    """README's "Hack it" again: G fits, but D does not."""
    out = runner(dcgan, folder, tmp_path)("--data", digits, "--epochs", 1)
    wider = functools.partial(dcgan.Discriminator, width=5)
    monkeypatch.setattr(dcgan, "Discriminator", lambda shape, width: wider(shape))
    with pytest.raises(SystemExit):
        shared = ["--num", "200", "--classifier-epochs", "1", "--data-dir", str(tmp_path)]
        quality.main([str(out / "ckpt.pt"), *shared])
    (line,) = [e for e in capsys.readouterr().err.splitlines() if "error" in e]
    assert f"{out / 'ckpt.pt'}: of another D" in line


def test_parzen_of_a_checkpoint(monkeypatch):
    """sigma is chosen by training images, and the likelihood is that of held-back ones."""
    seen = []
    monkeypatch.setattr(quality, "parzen", lambda *sets: seen.extend(sets) or (1, 2, 3))
    sets = [torch.full((4, 1, 2, 2), v, dtype=torch.uint8) for v in (255, 51, 102)]
    ref = types.SimpleNamespace(train=sets[1], held=sets[2])
    quality.measure_gan_mlp(sets[0], ref)
    assert [x.mean().item() for x in seen] == pytest.approx([1, 0.2, 0.4])


@pytest.mark.parametrize(
    "flags",
    (
        "--categories 5 7 --num-codes 0",
        "--channels 3 --image-size 12",
        "--classes 3 1 --categories 4 --num-codes 3",
    ),
)
def test_quality_of_other_codes(folder, digits, tmp_path, flags):
    out = runner(infogan, folder, tmp_path)("--data", digits, "--epochs", 1, *flags.split())
    with contextlib.redirect_stdout(io.StringIO()) as text:
        shared = ["--num", "200", "--classifier-epochs", "1", "--data-dir", str(tmp_path), "--json"]
        quality.main([str(out / "ckpt.pt"), *shared])
    (result,) = json.loads(text.getvalue())
    assert 0 <= result["category_errors"] < 1 and len(result["purity"]) in (4, 5, 10)
    assert len(result.get("codes", [])) == (3 if "--classes" in flags else 0)


@pytest.mark.parametrize(
    "flags",
    ("nothing", "README.md", "benchmarks", "x --num 5", "x --classifier-epochs 0", "x --nun 5"),
)
def test_quality_refuses(capsys, monkeypatch, flags):
    monkeypatch.chdir(HERE)
    assert flags.removeprefix("x ") in refused(capsys, quality.main, flags.split())


def test_quality_of_no_file(capsys):
    assert "nowhere.pt: there is no such file" in refused(capsys, quality.main, ["nowhere.pt"])


def test_quality_stopped(monkeypatch, capsys):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(quality, "measure_path", interrupt)
    with pytest.raises(SystemExit) as stop:
        quality.main(["ckpt.pt"])
    assert stop.value.code == 130


def test_speed_counts_operations():
    """Of gan_mlp.py: twice the products forward, and for each gradient that is needed as many."""
    args, _ = gan_mlp.get_args(["--batch-size", "64"])
    images, labels, _, _ = common.strokes(64)
    _, step = speed.script_loop("gan_mlp", images, labels, args, torch.device("cpu"))
    G, D = (
        [layer.weight.numel() for layer in net.modules() if isinstance(layer, nn.Linear)]
        for net in (gan_mlp.Generator(), gan_mlp.Discriminator())
    )
    # D's step: G forward; D forward, twice the batch, to weights and (but the first) to inputs.
    # G's step: both forward, both to inputs (but G's first), G's to weights
    step_D = sum(G) + 2 * (3 * sum(D) - D[0])
    step_G = (3 * sum(G) - G[0]) + 2 * sum(D)
    assert speed.flops(step, images, labels, args) == 2 * 64 * (step_D + step_G)


# ---- README ----

README = (HERE / "README.md").read_text()
COMMANDS = dict.fromkeys(  # in code blocks and inline; each once
    command.strip()
    for command in re.findall(r"(?:^ +|`)python ((?:benchmarks/)?\w+\.py[^`#\n]*)", README, re.M)
)


def test_readme_commands(folder, tmp_path, monkeypatch):
    """Every command of the README in its order, in an empty folder, with tiny data and one pass."""
    monkeypatch.chdir(tmp_path)
    assert len(COMMANDS) > 8
    for command in COMMANDS:
        name, *flags = command.split()
        if name == "benchmarks/quality.py":
            flags += ["--data", str(folder), "--num", "200", "--classifier-epochs", "1"]
            quality.main([flag.replace("FOLDER", str(folder)) for flag in flags])
            continue
        if name == "benchmarks/speed.py":
            speed.main([*flags, "--quick"])
            continue
        script = importlib.import_module(name.removesuffix(".py"))
        if "--sample" in flags:
            flags += ["--num", "4", *(["--label", "1"] if "--label" in flags else [])]
        elif "--resume" in flags:
            flags += ["--epochs", "2"]
        elif "--help" not in flags:
            flags += ["--data", str(folder), "--epochs", "1", *SCRIPTS[script.SCRIPT]]
            if "--classes" in flags:
                flags += ["--classes", "cat"]
        if "--help" in flags:
            pytest.raises(SystemExit, script.main, flags)
        else:
            script.main(flags)


def test_readme_python(folder, tmp_path, monkeypatch):
    """The README's Python as it stands there, with networks of one's own, and a trained one."""
    monkeypatch.chdir(tmp_path)
    gan_mlp.main(["--data", str(folder), "--epochs", "1", *SCRIPTS["gan_mlp"]])
    passages = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len(passages) == 2
    G = nn.Sequential(nn.Linear(3, 64), nn.Unflatten(1, (1, 8, 8)))
    D = nn.Sequential(nn.Flatten(), nn.Linear(64, 1))
    before = [w.clone() for net in (G, D) for w in net.parameters() if w.ndim > 1]
    for passage in passages:
        exec(passage, dict(G=G, D=D, z_dim=3, batches=torch.rand(5, 4, 1, 8, 8)))
    after = [w for net in (G, D) for w in net.parameters() if w.ndim > 1]
    assert not any(torch.equal(a, b) for a, b in zip(before, after))
    assert (tmp_path / "out/mine.png").exists()
