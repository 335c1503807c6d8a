"""Tests on tiny data: `python -m pytest`. What the six scripts share is tested in one of them."""

import copy
import csv
import importlib
import inspect
import math
import multiprocessing
import re
import runpy
import shutil
import sys
import types
import warnings
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from PIL import Image
from torch.testing import assert_close

import common

NAMES = ("gan_mlp", "dcgan", "wgan_clip", "wgan_gp", "infogan", "stackedgan")
SCRIPTS = gan_mlp, dcgan, wgan_clip, wgan_gp, infogan, stackedgan = [
    importlib.import_module(name) for name in NAMES]
torch.set_num_threads(1)    # the tensors are tiny, and threads would wait for each other
warnings.simplefilter("ignore", pytest.PytestUnknownMarkWarning)    # gpu is registered nowhere
RGB = (200, 100, 50)
TINY = "--width 4 --z-dim 4 --lr 3e-3 --lr-d 2e-3 --ema 0.5 "
ADAM = TINY + "--beta1 0.4 --beta2 0.8 "
FLAGS = {       # tiny networks; G takes a step for every three of D, where that can be chosen
    gan_mlp: ADAM + "--k 3 --loss minimax", dcgan: ADAM,
    wgan_clip: TINY + "--alpha 0.8 --n-critic 3 --clip 0.02",
    wgan_gp: ADAM + "--n-critic 3 --gp-weight 2 --upsample",
    infogan: ADAM + "--cat-weight 2 --code-weight 3 --bend 0.5",
    stackedgan: "--width 4 --z1-dim 4 --z0-dim 4 --lr-g1 1e-3 --lr-d1 2e-3 --lr-g0 3e-3 --ema 0.5 "
                "--lr-d0 4e-3 --beta1 0.4 --beta2 0.8 --encoder-steps 2 --independent-epochs 1 "
                "--adv-weight 2 --cond-weight 3 --ent-weight 4"}


@pytest.fixture(params=SCRIPTS, ids=lambda script: script.SCRIPT)
def script(request):
    return request.param


def run(script, *flags):
    script.main([*map(str, flags)])


def stops(*args):
    """Return the one line with which run(*args) has to end the program."""
    with pytest.raises(SystemExit, match=r"^error: .*$") as stop:
        run(*args)
    return stop.value.code


def load(path):
    return torch.load(path, weights_only=True)


def pixels(path):
    return np.asarray(Image.open(path))


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*.*")}


def write_images(folder, n=20, mode="L", seed=0):
    """Write n random images of 8x8 pixels as 000.png, 001.png, … into `folder`, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    images = np.random.default_rng(seed).integers(0, 256, (n, 8, 8, len(mode)), dtype=np.uint8)
    for i in range(n):
        Image.fromarray(images[i].squeeze()).save(folder / f"{i:03}.png")
    return folder


@pytest.fixture(scope="session")
def train(tmp_path_factory):
    """train(script, out, *flags) trains on 36 grey images of two classes, in 4 batches an epoch."""
    def call(script, out, *flags):
        run(script, "--data", call.folder, "--image-size", 8, "--out", out, "--epochs", 2,
            "--batch-size", 8, "--log-every", 1, *FLAGS[script].split(), *flags)
        return load(out / "ckpt.pt")
    call.folder = tmp_path_factory.mktemp("images")
    write_images(call.folder / "cat", seed=1)
    write_images(call.folder / "dog", seed=2)
    return call


@pytest.fixture(scope="session")
def runs(train, tmp_path_factory):
    """runs[script] is the folder of a run of two epochs, with a checkpoint of each."""
    folders = {script: tmp_path_factory.mktemp("runs") / script.SCRIPT for script in SCRIPTS}
    assert all(train(script, folder, "--keep") for script, folder in folders.items())
    return folders


torch.manual_seed(0)
LABELS = torch.arange(8) % 3
VALUES = {      # the arguments of networks and steps; eight rows of all that networks are given
    "z_dim": 4, "shape": (1, 16, 16), "width": 4, "upsample": False, "categories": 3,
    "num_codes": 2, "c_dim": 5, "num_classes": 3, "n": 8, "loss": "ns", "clip": 0.02,
    "gp_weight": 10.0, "labels": None, "cat_weight": 2.0, "code_weight": 3.0, "bend": 0.0,
    "condition": torch.rand(8, 64), "E_i": lambda fake: fake.flatten(1)[:, :64],
    "cond_loss": F.mse_loss, "adv_weight": 2.0, "cond_weight": 3.0, "ent_weight": 5.0}
INPUTS = {"y": LABELS, "h1": torch.rand(8, 64), "z": torch.randn(8, 4), "c": torch.randn(8, 5),
          "z1": torch.randn(8, 4), "z0": torch.randn(8, 4)}


def call(function, **values):
    """Call a function or class with those of `values` that it takes, and the rest from VALUES."""
    values = {**VALUES, **values}
    return function(**{name: values[name] for name in inspect.signature(function).parameters})


def networks(script, **values):
    """G and D, or G0 and D0 of stackedgan.py."""
    torch.manual_seed(0)
    for names in ("Generator", "Generator0"), ("Critic", "Discriminator", "Discriminator0"):
        yield call(*(vars(script)[name] for name in names if name in vars(script)), **values)


def step(script, player, G, D, **values):
    """Take a step of "D" or "G" with eight images, and return what it reports."""
    function = script.train_generator if player == "G" else (
        vars(script).get("train_critic") or script.train_discriminator)
    opt = torch.optim.SGD((G if player == "G" else D).parameters(), lr=1.0)
    return call(function, G=G, D=D, opt=opt, **values)


def judge(D, x):
    """D's scores of x, and Q's output if there is one."""
    output = D(x)
    return output if isinstance(output, tuple) else (output, None)


def vector(net):
    return nn.utils.parameters_to_vector(net.parameters()).detach()


# ---- the mistakes that well-known code makes; test_step_by_hand sees the others ----

def test_networks(script):
    """Sizes; scores that are raw, and do not depend on other images; BatchNorm's settings."""
    for channels, side in (1, 4), (3, 5), (1, 9), (1, 28), (3, 32), (3, 48), (1, 50), (3, 64):
        shape = channels, side, side
        for upsample in True, False:
            G, D = networks(script, shape=shape, upsample=upsample)
            x = call(G.forward, **INPUTS)
            assert x.shape == (8, *shape) and judge(D, x)[0].shape == (8,)
        assert call(stackedgan.Encoder, shape=shape)(x).shape == (8, 3)
    if script is stackedgan:
        D, x = call(stackedgan.Discriminator1), INPUTS["h1"]
    if script not in (dcgan, infogan):  # the others have no BatchNorm in D, nor in D1
        assert_close(judge(D, x)[0][:2], judge(D, x[:2])[0])
    if script is dcgan:                 # BatchNorm in each layer but the first and the last
        norms = [i for i, m in enumerate(D.net) if "BatchNorm" in type(m).__name__]
        assert [type(D.net[i - 1]).__name__ for i in norms] == 3 * ["Conv2d"] + ["Linear"], norms
    before = judge(D.eval(), x)[0]
    for w in [m for m in D.modules() if getattr(m, "out_features", 0) == 1][-1].parameters():
        w.data.mul_(1000)
    assert_close(judge(D, x)[0], 1000 * before)         # no sigmoid, no tanh
    for net in G, D, call(stackedgan.Generator1), call(stackedgan.Encoder):
        assert all(m.eps == 1e-5 and m.momentum == 0.1 for m in net.modules() if hasattr(m, "eps"))


def test_samples_do_not_depend_on_their_batch(script):
    """And sample leaves each network in the mode in which it was."""
    nets = {"G": [*networks(script)][0], "G1": call(stackedgan.Generator1)}
    nets["G0"] = nets["G"]
    for modes in (True, True), (False, False), (True, False), (False, True):
        for net, mode in zip(nets.values(), modes):
            net.train(mode)
        images = call(script.sample, **nets, **INPUTS)
        for net, mode in zip(nets.values(), modes):
            assert all(module.training == mode for module in net.modules())
        alone = call(script.sample, **nets, **{name: v[2:3] for name, v in INPUTS.items()})
        assert_close(alone, images[2:3])
    assert not torch.equal(images[0], images[1]) and not images.requires_grad
    for w in nets["G"].parameters():
        w.data.mul_(99)
    assert 0.9 < call(script.sample, **nets, **INPUTS).abs().max() <= 1     # thanks to tanh


def test_a_step_moves_its_own_player_only(script):
    """And no frozen layer. On the meta device, no value can reach the host, so no step waits."""
    (G, D), real = networks(script), torch.rand(8, 1, 16, 16)
    if script is wgan_clip:             # it clips frozen weights, too
        wgan_clip.clip_weights(D, VALUES["clip"])
    for player, mover, other in ("D", D, G), ("G", G, D):
        other.zero_grad()
        frozen = next(m for m in mover.modules() if hasattr(m, "weight")).requires_grad_(False)
        before = [vector(net) for net in (frozen, other, mover)]
        step(script, player, G, D, real=real)
        after = [vector(net) for net in (frozen, other, mover)]
        assert [*map(torch.equal, before, after)] == [True, True, False]
        assert all(w.grad is None for w in other.parameters())
    for player in "DG":
        stats = step(script, player, G.to("meta"), D.to("meta"), real=real.to("meta"), bend=0.2,
                     condition=VALUES["condition"].to("meta"))
        assert all(value.is_meta and value.shape == () for value in stats.values())
    script.update_ema(copy.deepcopy(G), G, 0.9, 1)


def test_update_ema_by_hand():
    G, G_ema = nn.BatchNorm1d(2), nn.BatchNorm1d(2)     # with its statistics
    for t, decay in (1, 2 / 6), (30, 31 / 35), (100_000, 0.9):
        *before, _ = copy.deepcopy(G_ema).state_dict().values()
        for value, old in zip(G.state_dict().values(), before):
            value.copy_(old + 1)
        gan_mlp.update_ema(G_ema, G, 0.9, t)
        assert_close([*G_ema.state_dict().values()][:4], [a + 1 - decay for a in before])


SHARED = {
    "noise update_ema main": SCRIPTS, "map_sizes init_weights": SCRIPTS[1:], "sample": SCRIPTS[:4],
    "discriminator_loss": (gan_mlp, dcgan, infogan, stackedgan), "train_generator": SCRIPTS[1:4],
    "generator_loss": (dcgan, infogan, stackedgan), "Generator": (dcgan, wgan_gp),
    "Critic critic_loss generator_loss sample_checkpoint": (wgan_clip, wgan_gp)}
OWN = (r"^$|12_000|Generator|Discriminator|settings =|opt_. =|state =|z = |\"z\"|\.k\b|train_|_ema|"
       r"for i, |sample\(|seed\(args.seed\)|for opt|weights =|once =")   # lines of gan_mlp's method


def test_what_is_the_same_is_the_same_to_the_letter():
    for names, scripts in SHARED.items():
        for name in names.split():
            assert len({inspect.getsource(getattr(script, name)) for script in scripts}) == 1, name
    lines = [x for x in inspect.getsource(gan_mlp.train).split("\n") if not re.search(OWN, x)]
    for script in SCRIPTS:
        assert [x for x in inspect.getsource(script.train).split("\n") if x in lines] == lines
    guards = {Path(script.__file__).read_text().split("if __name__")[1] for script in SCRIPTS}
    assert len(guards) == 1 and len(lines) > 50


def test_defaults(script):
    """They stand in get_args only. 20, 10, ... epochs give each script its steps on MNIST."""
    steps = int(re.search(r"round\(([0-9_]+) / n_batches\)", inspect.getsource(script.train))[1])
    epochs = round(steps / (60_000 // script.get_args([]).batch_size))
    assert epochs == {gan_mlp: 20, infogan: 15}.get(script, 10)
    for name, thing in vars(script).items():
        own = getattr(thing, "__module__", None) == script.SCRIPT
        if own and name not in ("get_args", "train", "main"):
            for parameter in inspect.signature(thing).parameters.values():
                assert parameter.default is parameter.empty, f"{name}({parameter})"


def by_hand(script, player, G, D, real, condition, E_i, loss, labels, bend, gp_weight):
    """What a player minimises and what its step reports. Noise is drawn in the same order."""
    z, c = torch.randn(8, 4), infogan.codes(G, 8) if script is infogan else None
    fake = call(G.forward, z=z, c=c, h1=condition, y=condition)
    if player == "D":                   # real images and fakes apart, as BatchNorm would mix them
        fake, (s_real, q_real) = fake.detach(), judge(D, real)
    s, q = judge(D, fake)
    if player == "G":
        losses = {"W": -s.mean(), "ns": F.softplus(-s).mean(), "minimax": -F.softplus(s).mean()}
        total = losses["W" if script in (wgan_clip, wgan_gp) else loss]
        stats = {"loss_G": total}
    elif script in (wgan_clip, wgan_gp):
        total = s.mean() - s_real.mean()
        stats = {"W": -total, "D(x)": s_real.mean(), "D(G(z))": s.mean()}
    else:
        loss_real, loss_fake = F.softplus(-s_real).mean(), F.softplus(s).mean()
        total = loss_real + loss_fake
        stats = {"loss_real": loss_real, "loss_fake": loss_fake, "jsd": math.log(2) - total / 2,
                 "D(x)": s_real.sigmoid().mean(), "D(G(z))": s.sigmoid().mean()}
    if script is wgan_gp and player == "D":     # x_hat is on the segment between its own pair
        eps = torch.rand(8, 1, 1, 1)
        x_hat = (eps * real + (1 - eps) * fake).requires_grad_()
        gradient, = torch.autograd.grad(D(x_hat).sum(), x_hat, create_graph=True)
        norm = gradient.square().sum((1, 2, 3)).sqrt()
        total, stats["grad_norm"] = total + gp_weight * ((norm - 1)**2).mean(), norm.mean()
    if script is infogan:
        _, q_bent = judge(D, infogan.bent(fake, bend)) if bend else (s, q)
        category = -(q_bent[:, :3].log_softmax(1) * c[:, :3]).sum() / 8     # 0 if Q is sure
        error = ((q - c)[:, 3:]**2).sum() / 8
        total = total + 2 * category + 3 * error / 2
        stats.update({"L_I": math.log(3) - category, "code_rmse": (error / 2).sqrt()})
        if labels is not None:
            total = total + 2 * F.nll_loss(q_real[:, :3].log_softmax(1), labels)
    if script is stackedgan:            # Q is not asked about real data, which have no noise
        stats["adv"], stats["ent"] = total, ((q - z)**2).mean()
        total = total + 5 * stats["ent"]
        if player == "G":
            stats["cond"] = (-E_i(fake).log_softmax(1)[range(8), LABELS].mean()
                             if condition is LABELS else ((E_i(fake) - condition)**2).mean())
            total = total + stats["adv"] + 3 * stats["cond"]        # twice adv
    return total, stats


UPPER = {"condition": LABELS, "cond_loss": F.cross_entropy, "E_i": lambda h1: 3 * h1[:, 5:8]}


@pytest.mark.parametrize("script, player, values", (
    *((script, player, {}) for script in SCRIPTS for player in "DG"),
    (gan_mlp, "G", {"loss": "minimax"}), (wgan_gp, "D", {"gp_weight": 0.0}),
    (infogan, "D", {"bend": 0.5}), (infogan, "D", {"labels": LABELS}),
    (stackedgan, "D", UPPER), (stackedgan, "G", UPPER)),
    ids=lambda value: getattr(value, "SCRIPT", None) or "".join(value))
def test_step_by_hand(script, player, values, request):
    request.addfinalizer(lambda: torch.set_default_dtype(torch.float32))
    torch.set_default_dtype(torch.float64)
    nets, h1 = (*networks(script),), VALUES["condition"].double()
    values = {"condition": h1, "real": torch.rand(8, 1, 16, 16) * 2 - 1, **values}
    if values["condition"] is LABELS:   # the upper GAN
        nets, values["real"] = (call(stackedgan.Generator1), call(stackedgan.Discriminator1)), h1
    (G, D), (G2, D2) = nets, copy.deepcopy(nets)
    net, twin = (D, D2) if player == "D" else (G, G2)
    for w in net.parameters():
        w.grad = torch.full_like(w, 100.0)      # a step without zero_grad would add to it
    torch.manual_seed(4)
    stats = step(script, player, G, D, **values)
    torch.manual_seed(4)
    total, expected = call(by_hand, script=script, player=player, G=G2, D=D2, **values)
    gradients = torch.autograd.grad(total, [*twin.parameters()], materialize_grads=True,
                                    allow_unused=True)
    w = vector(twin) - torch.cat([g.flatten() for g in gradients])      # SGD with a rate of 1
    w = w.clamp(-0.02, 0.02) if script is wgan_clip and player == "D" else w
    assert_close(vector(net), w, rtol=1e-6, atol=1e-10)
    assert_close([*D.buffers()], [*D2.buffers()])       # what BatchNorm has seen
    assert {k: v.item() for k, v in stats.items()} == pytest.approx(
        {k: expected[k].item() for k in stats})


# ---- training, sampling, resuming ----

def record(monkeypatch, script, *names):
    """Return a list in which these functions of a script note each call: name and arguments."""
    calls = []
    for name in names:
        def noted(*args, name=name, function=getattr(script, name)):
            calls.append((name, inspect.signature(function).bind(*args).arguments))
            return function(*args)
        monkeypatch.setattr(script, name, noted)
    return calls


def test_files_and_resume(script, train, runs, tmp_path):
    """One epoch, and one more in a new folder, give bit for bit what two do, but the time."""
    out, new, first = runs[script], tmp_path / "new", tmp_path / "first"
    train(script, first, "--epochs", 1)
    run(script, "--resume", first / "ckpt.pt", "--out", new, "--epochs", 2, "--keep")
    a, b = load(out / "ckpt.pt"), load(new / "ckpt.pt")
    with open(out / "log.csv") as log:  # has W_val, and loss_G with n_critic, in some rows only
        rows = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(log)]
    some = script in (gan_mlp, wgan_clip, wgan_gp)
    assert rows == a["rows"] and len({len(row) for row in rows}) == 1 + some
    assert [(row["epoch"], row["step"]) for row in rows] == [(1 + i // 4, 1 + i) for i in range(8)]
    for row in a["rows"] + b["rows"]:
        del row["minutes"]
    for name in "args", "script", "classes":    # texts, which assert_close does not take
        assert a.pop(name) == b.pop(name)
    assert_close(a, b, rtol=0, atol=0)
    assert {path.name for path in files(new)} == {
        "real.png", "000002.png", "samples.gif", "log.csv", "ckpt.pt", "ckpt_000002.pt"}


def test_resume_in_place_with_other_settings(script, runs, tmp_path):
    """New rates take effect, the time goes on, and a copy of a picture does not stop the end."""
    out = shutil.copytree(runs[script], tmp_path / "run")
    shutil.copy(out / "samples/000001.png", out / "samples/000001 (1).png")
    before = load(out / "ckpt.pt")
    before["rows"][-1]["minutes"] = 1000.0
    torch.save(before, out / "ckpt.pt")
    rates = [f"--{k.replace('_', '-')}={2 * v}" for k, v in before["args"].items() if k[:2] == "lr"]
    run(script, "--resume", out / "ckpt.pt", "--epochs", 3, "--seed", 9, *rates)
    after = load(out / "ckpt.pt")
    assert after["step"] == 12 and 1000 < after["rows"][-1]["minutes"] < 1001
    for name, part in before.items():
        if name.startswith("opt"):      # each has its own rate
            group, rate = after[name]["param_groups"][0], name.lower().replace("opt", "lr")
            assert group["lr"] == 2 * before["args"]["lr" if rate == "lr_g" else rate]
            assert group.get("betas", (0.4, group.get("alpha"))) == (0.4, 0.8)
        if torch.is_tensor(part):       # the noise and codes of the grid
            assert torch.equal(after[name], part)
    assert Image.open(out / "samples.gif").n_frames >= 3 and (out / "samples/000003.png").exists()


@pytest.mark.parametrize("script, flags, labels, columns", (
    *((script, "--num 5", 5 * [None], 5) for script in SCRIPTS[:4]),
    (infogan, "--num 25", [i // 3 for i in range(30)], 3 + 20),     # with two sweeps
    (infogan, "", [i // 8 for i in range(80)], 8 + 20),
    (infogan, "--num 5 --category 0 --code 0.5", 5 * [0], 5),       # 0 is a category, too
    (stackedgan, "--num 5", 3 * ["cat"] + 3 * ["dog"], 3),
    (stackedgan, "--label 1", 8 * ["dog"], 8),
    (stackedgan, "--num 3 --vary z1", 2 * ["cat"] + 2 * ["dog"], 2),
    (stackedgan, "--num 3 --label cat --vary z0", 3 * ["cat"], 3)))
def test_sample(script, flags, labels, columns, runs, tmp_path, monkeypatch):
    """--sample writes what the averaged G makes of the seed's noise, as single PNGs or a grid."""
    n, path, calls = len(labels), runs[script] / "ckpt.pt", record(monkeypatch, script, "sample")
    for name in "many", "grid.png":
        run(script, "--sample", path, "--seed", 7, *flags.split(), "--out", tmp_path / name)
    args = calls[0][1]
    nets = {name: net for name, net in args.items() if isinstance(net, nn.Module)}
    for name, net in nets.items():
        assert_close(dict(net.state_dict()), dict(load(path)[f"{name}_ema"]), rtol=0, atol=0)
    torch.manual_seed(7)
    expected = {"z": torch.randn(n, 4)}
    if script is infogan:
        expected["c"] = infogan.codes(args["G"], n)
        expected["c"][:, :10] = torch.eye(10)[labels]
        expected["c"][:, 10] = 0.5 if "--code" in flags else expected["c"][:, 10]
    if script is stackedgan:
        expected.update(y=torch.tensor([["cat", "dog"].index(label) for label in labels]),
                        z1=1.1 * expected["z"], z0=torch.randn(n, 4))
        for name in {"z1", "z0"} - {*flags.split()} if "--vary" in flags else []:
            expected[name] = expected[name][:1].expand(n, 4)
    for name in args.keys() - nets.keys():
        assert_close(args[name], expected[name])
    images = script.sample(*args.values()).add(1).mul(127.5).round().byte().numpy()[:, 0]
    for i, (image, label) in enumerate(zip(images, labels)):
        name = f"{i:05}.png" if label is None else f"{label}_{i:05}.png"
        assert np.array_equal(pixels(tmp_path / "many" / name), image)
    grid = pixels(tmp_path / "grid.png")
    assert grid.shape[1] == 10 * columns + 2 and np.array_equal(grid[2:10, 12:20], images[1])


def test_what_train_calls(script, train, tmp_path, monkeypatch):
    """Steps in their order, over epochs and --resume, with the flags' values; grids of averages."""
    names = [name for name in vars(script) if re.match("train_|update_ema|sample$", name)]
    calls = record(monkeypatch, script, *names)
    train(script, tmp_path)
    run(script, "--resume", tmp_path / "ckpt.pt", "--epochs", 3)
    letters = {"train_generator": "G", "update_ema": "t", "sample": ""}
    order = "".join(letters.get(name, "D") for name, _ in calls)
    assert order == {infogan: 12 * "DGtt", stackedgan: 12 * "DGDGtt", dcgan: 12 * "DGt"}.get(
        script, 4 * "DDDGt")
    ckpt, given = load(tmp_path / "ckpt.pt"), [args for _, args in calls]
    assert not {"num", "walk", "category", "code", "label", "vary"} & ckpt["args"].keys()
    for args in given:
        assert all(args[key] == ckpt["args"][key] for key in args.keys() & ckpt["args"].keys())
        assert args.get("n", 8) == len(args.get("real", LABELS)) == 8
        assert args.get("decay", 0.5) == 0.5
    times = [args["t"] for args in given if "t" in args]
    assert times == [1 + i // (1 + ("tt" in order)) for i in range(len(times))]
    assert len({x["real"].numpy().tobytes() for x in given if "real" in x}) == order.count("D")
    grid = [args for name, args in calls if name == "sample"][0]
    nets = nn.ModuleList(net for net in grid.values() if isinstance(net, nn.Module))
    assert not any(w.requires_grad for w in nets.parameters())
    assert all(torch.equal(grid[name], ckpt[name]) for name in {"z", "z1", "z0"} & ckpt.keys())
    if script is stackedgan:            # a row for each class
        assert grid["y"].tolist() == 8 * [0] + 8 * [1]
    if script is infogan:               # rows differ in the category only
        c = torch.cat([torch.eye(10).repeat_interleave(8, 0), grid["c"][:8, 10:].repeat(10, 1)], 1)
        assert torch.equal(grid["c"], c) and torch.equal(grid["z"], grid["z"][:8].repeat(10, 1))


def test_a_hackers_step(train, tmp_path, monkeypatch):
    """It may report Python's floats and other columns, in a notebook. The log has their means."""
    calls = record(monkeypatch, gan_mlp, "train_discriminator")
    function = gan_mlp.train_discriminator
    monkeypatch.setattr(gan_mlp, "train_discriminator", lambda *args: {
        "renamed": function(*args)["loss_real"], "float": float(len(calls))})
    monkeypatch.setattr(sys, "stdout", Mock(spec_set=["write", "flush"]))
    rows = train(gan_mlp, tmp_path / "a", "--log-every", 3)["rows"]
    assert [row["float"] for row in rows] == [2, 4, 5.5, 7.5] and rows[0]["renamed"] > 0
    train(gan_mlp, tmp_path / "b", "--seed", 1, "--epochs", 5, "--save-every", 2)
    assert len({args["real"].numpy().tobytes() for _, args in calls}) == 28     # seeds differ
    assert sorted(path.name for path in (tmp_path / "b/samples").iterdir()) == [
        "000002.png", "000004.png", "000005.png", "real.png"]


@pytest.mark.parametrize("name, epoch", (("log.csv", 3), ("samples/000003.png", 2), ("disk", 2)))
def test_a_checkpoint_is_whole_and_written_between_grid_and_log(name, epoch, runs, tmp_path):
    """A file that cannot be written stops the run, and so does a full disk."""
    out = shutil.copytree(runs[gan_mlp], tmp_path / "run")
    (out / "log.csv").unlink()
    (out / name).mkdir()
    if name == "disk":
        (out / "ckpt.tmp").symlink_to("/dev/full")
    with pytest.raises((OSError, RuntimeError)):
        run(gan_mlp, "--resume", out / "ckpt.pt", "--epochs", 3)
    assert load(out / "ckpt.pt")["epoch"] == epoch


@pytest.mark.parametrize("script", (gan_mlp, stackedgan))
def test_what_is_not_finite_stops_before_a_save(script, runs, tmp_path, monkeypatch):
    """A loss, or a weight of any network that the last step spoils, when all losses are finite."""
    def spoil(*args):
        stats = function(*args)
        count.append(0)
        if len(count) == spoiled and net < 2:
            next(args[net].parameters()).data.fill_(math.nan)
        return {**stats, "adv": math.inf} if net == 2 else stats

    out, function = shutil.copytree(runs[script], tmp_path / "run"), script.train_generator
    before, flags = files(out), ["--resume", out / "ckpt.pt", "--epochs", 3]
    flags += ["--independent-epochs", 9] * (script is stackedgan)
    monkeypatch.setattr(script, "train_generator", spoil)
    for spoiled in (7, 8) if script is stackedgan else [2]:     # the last calls
        for net in 0, 1, 2:             # G, D, or none
            count = []
            assert "not finite" in stops(script, *flags) and files(out) == before
    assert "not finite" in stops(script, *flags, "--out", tmp_path / "new")
    assert not (tmp_path / "new").exists()      # there is no folder before the first save


def test_stopped_and_killed_runs(train, tmp_path, monkeypatch):
    """Ctrl+C ends a run with one line. One killed while it saves has a whole checkpoint."""
    process = multiprocessing.get_context("fork").Process(target=train, args=(
        gan_mlp, tmp_path, "--epochs", 10**6, "--save-every", 1))
    process.start()
    while not (tmp_path / "samples/000010.png").exists():       # it saves all the time
        process.join(0.01)
        assert process.is_alive()
    process.kill()
    process.join()
    assert load(tmp_path / "ckpt.pt")["epoch"] >= 9
    monkeypatch.setattr(common, "load_images", Mock(side_effect=KeyboardInterrupt))
    monkeypatch.setattr(sys, "argv", ["gan_mlp.py", "--data", "digits", "--out", "nowhere"])
    with pytest.raises(SystemExit, match="stopped; --resume"):
        runpy.run_path(gan_mlp.__file__, run_name="__main__")


def test_refusals(script, runs, train, tmp_path):
    """Nothing is written then. A folder with samples/ holds a run, even without a checkpoint."""
    out = shutil.copytree(runs[script], tmp_path / "run")
    other, before = runs[dcgan if script is gan_mlp else gan_mlp] / "ckpt.pt", files(out)
    new = ["--data", train.folder, "--out", tmp_path / "new"]
    for flags, message in (
        (["--resume", out / "ckpt_000001.pt"], "holds a run: use a new --out, delete it"),
        ([*new, "--out", out], "holds a run: use a new --out, delete it, or --resume"),
        (["--resume", out / "ckpt.pt"], "2 epochs are done; raise --epochs"),
        (["--resume", other], f"was not saved by {script.SCRIPT}.py"),
        (["--sample", other], f"was not saved by {script.SCRIPT}.py"),
        ([*new, "--data", "nowhere"], "nowhere"), ([*new, "--classes", "bird"], "bird"),
        ([*new, "--data", write_images(tmp_path / "one", 1)], "too few images"),
        *[([*new, "--classes", "cat"], "at least two classes")] * (script is stackedgan)):
        assert message in stops(script, *flags)
    evil = type("Evil", (), {"__reduce__": lambda self: (Path.mkdir, (tmp_path / "hit",))})()
    torch.save({"script": script.SCRIPT, "args": evil}, tmp_path / "bad.pt")    # would run mkdir
    for flag in "--resume", "--sample":
        with pytest.raises(Exception, match="Weights only load failed"):
            run(script, flag, tmp_path / "bad.pt")
    assert files(out) == before and len([*tmp_path.iterdir()]) == 3     # run, one and bad.pt
    (out / "ckpt.pt").unlink()
    assert "holds a run: use a new --out" in stops(script, *new, "--out", out)


def test_a_copy_alone_can_be_imported(script, monkeypatch, capsys):
    """Its networks and steps need torch and nothing else, and importing does nothing."""
    for name in ("common", "torchvision", "PIL", "numpy", *NAMES):
        monkeypatch.setitem(sys.modules, name, None)            # makes importing it fail
    state = torch.get_rng_state()
    alone = types.SimpleNamespace(**runpy.run_path(script.__file__))
    assert torch.equal(state, torch.get_rng_state()) and "".join(capsys.readouterr()) == ""
    for player in "DG":
        step(alone, player, *networks(alone), real=torch.rand(8, 1, 16, 16))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda(script, train, tmp_path):
    train(script, tmp_path, "--device", "cuda")
    for epochs, device in enumerate(("cuda", "cpu", "cuda"), 3):
        run(script, "--resume", tmp_path / "ckpt.pt", "--epochs", epochs, "--device", device)
        run(script, "--sample", tmp_path / "ckpt.pt", "--device", device)


@pytest.mark.parametrize("script", (wgan_clip, wgan_gp))
def test_W_val_and_clipping(script, train, runs):
    """W less what D gives images for having trained on them, in the last row of each save."""
    ckpt, D = load(runs[script] / "ckpt.pt"), call(script.Critic, shape=(1, 8, 8))
    D.load_state_dict(ckpt["D"])
    seen, held_out = (D(common.load_images(train.folder, train=part, image_size=8)[0] / 127.5 - 1)
                      for part in (True, False))
    gap, row = (seen.mean() - held_out.mean()).item(), ckpt["rows"][-1]
    assert row["W_val"] == pytest.approx(row["W"] - gap, abs=abs(gap) / 100)
    assert ["W_val" in row for row in ckpt["rows"]] == 2 * [False, False, False, True]
    if script is wgan_clip:
        w, limit = vector(D), torch.tensor(0.02)
        assert w.max() == -w.min() == limit
        assert row["at_clip"] == pytest.approx((w.abs() == limit).float().mean().item())


def test_penalty_of_known_critics():
    """A linear one; one whose gradient is 0, where a norm has none; and some that are refused."""
    for shape in (2,), (5, 2), (3, 8, 8):
        w, x = torch.randn(shape), torch.randn(2, 5, *shape)
        penalty, norm = wgan_gp.gradient_penalty(lambda x: (x * w).flatten(1).sum(1), *x)
        assert_close((penalty, norm), ((w.norm() - 1)**2, w.norm()))
    D = call(wgan_gp.Critic, shape=(3, 8, 8))
    nn.utils.vector_to_parameters(0 * vector(D), D.parameters())
    penalty, norm = wgan_gp.gradient_penalty(D, *x)
    penalty.backward()
    assert (penalty, norm) == (1, 0)
    assert all(w.grad.isfinite().all() for w in D.parameters() if w.grad is not None)
    for D, fake, error, message in (
            (nn.Sequential(nn.BatchNorm2d(3), D), x[1], RuntimeError, "in-?place"),
            (nn.Conv2d(3, 1, 2, stride=2), x[1], ValueError, "one score for each image"),
            (D, x[1, :1], ValueError, "but fake has")):
        with pytest.raises(error, match=message):
            wgan_gp.gradient_penalty(D, x[0], fake)


def test_walks_codes_and_bends(monkeypatch):
    """Each image has its own bend; a shift of 0.2 * 2.5 / 2 of half the side is one pixel."""
    G = call(dcgan.Generator, z_dim=50)
    torch.manual_seed(0)
    z = dcgan.walks(G, 4000).view(500, 8, 50)
    torch.manual_seed(0)
    assert_close(z[:, [0, 7]].transpose(0, 1), torch.randn(1000, 50).view(2, 500, 50))
    assert (z.std((0, 2)) - 1).abs().max() < 0.02       # N(0, I) all the way
    assert len(dcgan.walks(G, 11)) == 11
    one_hot, numbers = infogan.codes(call(infogan.Generator), 30_000).split([3, 2], 1)
    assert torch.equal(one_hot, F.one_hot(one_hot.argmax(1), 3).float())
    assert (one_hot.mean(0) - 1 / 3).abs().max() < 0.02 and numbers.mean(0).abs().max() < 0.02
    assert numbers.abs().max() <= 1 and (numbers.std(0) - 1 / 3**0.5).abs().max() < 0.01
    x, shift = torch.rand(1, 3, 8, 8).expand(2, 3, 8, 8), torch.tensor([[0, 0, 2.5], [0, 0, 0]])
    assert not torch.allclose(*infogan.bent(x, 0.2))
    monkeypatch.setattr(torch, "randn", lambda *args, device: shift.repeat(2, 1, 1))
    assert_close(infogan.bent(x, 0.2), torch.cat([x[..., 1:], x[..., 7:]], 3))


def test_labels_matter_only_if_supervised(train, tmp_path, monkeypatch):
    def weights(name, *flags):
        D_ema = train(infogan, tmp_path / name, *flags)["D_ema"]
        return nn.utils.parameters_to_vector(D_ema.values())

    plain, supervised = weights("a"), weights("b", "--supervised")
    images, labels, names = common.load_images(train.folder, image_size=8)
    monkeypatch.setattr(common, "load_images", Mock(return_value=(images, labels.flip(0), names)))
    assert torch.equal(weights("c"), plain) and not torch.equal(plain, supervised)
    assert not torch.equal(weights("d", "--supervised"), supervised)


def test_picture_of_infogan(monkeypatch):
    """A row for each category: images of z and c as they are, then a sweep of each number."""
    monkeypatch.setattr(infogan, "sample", lambda G, z, c: torch.cat([z, c], 1)[:, None, None])
    z, c, expected = torch.randn(6, 2), torch.rand(6, 5), torch.ones(3, 2 + 1 + 9 + 1 + 9, 7)
    expected[:, :2] = torch.cat([z, c], 1).view(3, 2, 7)
    for first, j in (3, 5), (13, 6):    # after a white column
        expected[:, first:first + 9] = torch.cat([z[0], torch.zeros(5)])
        expected[range(3), first:first + 9, range(2, 5)] = 1
        expected[:, first:first + 9, j] = torch.linspace(-2, 2, 9)
    assert_close(infogan.picture(call(infogan.Generator), z, c).flatten(2), expected)


def test_encoder_and_phases_of_stackedgan(runs, train, tmp_path, monkeypatch):
    """E learns and is frozen. G0 gets features of real images, and after an epoch those of G1."""
    images, labels, *_ = common.digits(2000)
    torch.manual_seed(0)
    E = call(stackedgan.Encoder, shape=(1, 28, 28), width=8, num_classes=10)
    stackedgan.pretrain(E, images, labels, 45)
    h1 = E.eval().E0(images / 127.5 - 1)
    assert (E.E1(h1).argmax(1) == labels).float().mean() > 0.85 and h1.min() >= 0
    first, second = (load(runs[stackedgan] / f"ckpt_00000{i}.pt") for i in (1, 2))
    other = train(stackedgan, tmp_path / "seed", "--seed", 5)
    assert_close([first["E"], other["E"]], 2 * [second["E"]], rtol=0, atol=0)   # for all seeds
    calls = record(monkeypatch, stackedgan, "train_discriminator", "train_generator")
    scaled = train(stackedgan, tmp_path / "scale", "--z1-scale", 2.2)
    for name in "E", "G1", "D1", "G0", "D0":
        assert_close(scaled[name], second[name], rtol=0, atol=0)
    assert_close((scaled["z1"], scaled["z0"]), (2 * second["z1"], second["z0"]))
    E = call(stackedgan.Encoder, shape=(1, 8, 8), num_classes=2).eval()
    E.load_state_dict(second["E"])
    for i in range(8):
        D1, G1, D0, G0 = (args for _, args in calls[4 * i:4 * i + 4])
        x, h1, made = D0["real"], D1["real"], D0["condition"]
        assert_close(E.E0(x), h1)       # D1's real data in both phases
        assert torch.equal(h1, made) == (i < 4) and made.min() >= 0 and not made.requires_grad
        assert torch.equal(G1["condition"], D1["condition"]) and torch.equal(G0["condition"], made)
        assert (G1["cond_loss"], G0["cond_loss"]) == (F.cross_entropy, F.mse_loss)
        assert_close((G1["E_i"](h1), G0["E_i"](x)), (E.E1(h1), h1))


def test_downloads(tmp_path, monkeypatch, capsys):
    """Without a network, a data set asked for by name is never replaced, but the default is."""
    images, labels = np.random.default_rng(0).bytes(12 * 28 * 28), np.arange(12) % 10
    images, raw = np.frombuffer(images, "u1").reshape(12, 28, 28), tmp_path / "MNIST/raw"
    raw.mkdir(parents=True)
    for part, n in ("train", 12), ("t10k", 6):
        for kind, array in ("images-idx3", images[:n]), ("labels-idx1", labels[:n].astype("u1")):
            header = np.array([2048 + array.ndim, *array.shape], ">i4").tobytes()
            (raw / f"{part}-{kind}-ubyte").write_bytes(header + array.tobytes())
    for flags, rows, y in (({}, range(12), labels), ({"train": False}, range(6), range(6)),
                           ({"classes": ["seven", "1", "7"]}, [1, 7, 11], [1, 0, 1])):
        x, found, names = common.load_images("mnist", tmp_path, **flags)
        assert (x.dtype, found.dtype) == (torch.uint8, torch.int64) and found.tolist() == [*y]
        assert np.array_equal(x, images[rows, None]) and names[-1] in ("nine", "one")
    monkeypatch.setattr("urllib.request.urlopen", Mock(side_effect=OSError("no route")))
    assert common.default_data(tmp_path) == "mnist" and common.default_data(raw) == "digits"
    assert re.search("MNIST.*no route.*digits", capsys.readouterr().out)
    for name in common.DOWNLOADS:
        assert "no route" in stops(gan_mlp, "--data", name, "--data-dir", raw, "--out", raw / "a")
    x = images[:4, :12, :12].reshape(4, 4, 12, 3)
    monkeypatch.setitem(common.DOWNLOADS, "cifar10", Mock(return_value=Mock(
        data=x, targets=[0, 7, 1, 7], classes=[*"abcdefghij"])))
    assert np.array_equal(common.load_images("cifar10")[0].permute(0, 2, 3, 1), x)


def load_folder(folder, **flags):
    """Images to train on, their labels, images held back, their labels, and the names."""
    *part, names = common.load_images(folder, image_size=8, **flags)
    return *part, *common.load_images(folder, image_size=8, train=False, **flags)[:2], names


def test_folders(tmp_path, capsys):
    """Each image is in one of two parts, with its label. --classes leave the split as it is."""
    names = ["10", "2", "cat", "dog"]
    for i, name in enumerate(names):
        write_images(tmp_path / "images" / name / "deeper", 10, "RGB" if i else "L", seed=i)
    *parts, listed = load_folder(str(tmp_path / "images"))
    assert listed == names and 2 <= len(parts[2]) <= 6
    for i, name in enumerate(names):
        paths = (tmp_path / "images" / name).glob("*/*.png")
        read = [x for images, labels in (parts[:2], parts[2:]) for x in images[labels == i]]
        assert sorted(x.permute(1, 2, 0).numpy().tobytes() for x in read) == sorted(
            Image.open(path).convert("RGB").tobytes() for path in paths)    # if any image is RGB
    copied = shutil.copytree(tmp_path / "images", tmp_path / "copy")
    assert_close(load_folder(copied)[:4], (*parts,))    # the same images are always held back
    for flags, order in (["dog", "cat"], [3, 2]), (["dog", "dog"], [3]), (["2", "3"], [1, 3]):
        *some, listed = load_folder(copied, classes=flags)      # 2 is a name, and 3 is a number
        assert listed == [names[i] for i in order]
        for x, y, all_x, all_y in (*some[:2], *parts[:2]), (*some[2:], *parts[2:]):
            for new, old in enumerate(order):
                assert torch.equal(x[y == new], all_x[all_y == old])
    for name, target in ("loop", "copy"), ("cat/loop", "copy/cat"), ("far", "images/2"):
        (copied / name).symlink_to(tmp_path / target)
    write_images(copied, 5)
    _, labels, _, held_labels, names = load_folder(str(copied))     # a loop adds nothing
    assert sorted(torch.cat([labels, held_labels]).bincount().tolist()) == [5, 10, 10, 10, 10, 10]
    assert "far" in names and " beside " in "".join(capsys.readouterr())
    for i, name in enumerate(("train/a", "train/c", "test/b", "test/c")):
        write_images(tmp_path / "split" / name, 10 + i)
    _, labels, _, held_labels, names = load_folder(tmp_path / "split")
    assert names == ["a", "b", "c"] and labels.tolist() == 10 * [0] + 11 * [2]
    assert held_labels.tolist() == 12 * [1] + 13 * [2]      # "test" has no a, and "train" no b


@pytest.mark.parametrize("mode, colour, name, expected", (
    ("L", 77, "x.jfif", [77]), ("1", 1, "x.png", [255]), ("LA", (77, 255), "x.png", [77]),
    ("LA", (0, 51), "x.png", [204]), ("L", 77, "clear.png", [255]), ("P", RGB, "x.png", RGB),
    ("P", RGB, "clear.png", [255] * 3), ("RGBA", (0, 0, 255, 51), "x.webp", [204, 204, 255]),
    ("RGB", RGB, "clear.png", [255] * 3), ("CMYK", (55, 155, 205, 0), "x.tif", RGB)))
def test_modes_of_images(tmp_path, mode, colour, name, expected):
    """Pixels that are transparent show white, and grey images stay grey."""
    image = Image.new(mode, (8, 8), colour)
    clear = {"transparency": 0 if mode == "P" else colour} if name == "clear.png" else {}
    for i in "abc":                     # one of the three is held back
        image.save(tmp_path / (i + name), **clear)
    images, *_ = common.load_images(tmp_path, image_size=8)
    assert images.shape == (2, len(expected), 8, 8)
    assert images.amin((0, 2, 3)).tolist() == images.amax((0, 2, 3)).tolist() == [*expected]


def test_sizes_and_orientation_of_images(tmp_path):
    """Oblong images are cropped to their centre; without a size they become 64 by 64."""
    bright, exif = np.zeros((20, 60), np.uint8), Image.Exif()
    bright[:10, 20:40], exif[0x0112] = 255, 3       # 3: the camera was held upside down
    for i in "abc":
        Image.fromarray(bright).save(tmp_path / f"{i}.jpg", exif=exif)
    for side, flags in (64, {}), (16, {"image_size": 16}):
        images, *_ = common.load_images(tmp_path, **flags)
        assert images.shape == (2, 1, side, side)
        assert images[..., :side // 3, :].max() < 50 < 200 < images[..., -side // 3:, 1:-1].min()


def test_unreadable_files_are_named_and_left_out(tmp_path, capsys):
    """Also those with more than 8 bits a channel. The other images keep their labels."""
    bad = []
    for name, n in ("a", 10), ("b", 20), ("c", 0):
        bad += sorted(write_images(tmp_path / name).iterdir())[:n]
    for path in bad:
        path.write_bytes(path.read_bytes()[:60] if path.name < "005.png" else b"")
    for dtype in "uint16", "int32", "float32":
        bad.append(tmp_path / "c" / f"{dtype}.tif")
        Image.fromarray(np.ones((8, 8), dtype)).save(bad[-1])
    _, labels, _, held_labels, names = load_folder(tmp_path)
    assert names == ["a", "c"]
    assert torch.cat([labels, held_labels]).bincount().tolist() == [10, 20]
    lines = capsys.readouterr().err.splitlines()
    for path in bad:                    # named once, with the reason
        [line] = [line for line in lines if str(path) in line]
        reason = "8 bits" if path.suffix == ".tif" else "truncated|identify|broken"
        assert re.search(reason, line.replace(str(path), "")) and len(lines) == len(bad)
    assert f"{tmp_path / 'b'} " in stops(gan_mlp, "--data", tmp_path / "b", "--out", tmp_path / "c")


def test_digits(monkeypatch):
    """Each digit shows the slant and the pen that come with it, and the split is fixed."""
    images, labels, slant, pen = common.digits(20_000)
    x, at = images[labels == 1, 0] / 255, torch.arange(28.0) - 13.5
    shear = -torch.einsum("nyx,y,x->n", x, at, at) / torch.einsum("nyx,y->n", x, at**2)
    for truth, seen in (slant, shear), (pen, x.sum((1, 2))):
        assert torch.stack([truth[labels == 1].float(), seen]).corrcoef()[0, 1] > 0.7
    monkeypatch.setattr(common, "digits", lambda n: (images[:n], labels[:n], slant, pen))
    for train, part in (True, slice(18_000)), (False, slice(18_000, None)):
        x, y, _ = common.load_images("digits", train=train, classes=["three"])
        assert torch.equal(x, images[part][labels[part] == 3]) and not y.any()


def test_batches_and_spread():
    images, labels = torch.arange(100, dtype=torch.uint8).view(100, 1, 1, 1) * 2, torch.arange(100)
    real, y = map(torch.stack, zip(*common.batches(images, labels, 30)))        # 10 are left out
    assert real.shape == (3, 30, 1, 1, 1) and torch.equal(real, images[y] / 127.5 - 1)
    assert len(y.unique()) == 90 and len(y.flatten().diff().unique()) > 20      # shuffled
    assert [len(real) for real, _ in common.batches(images[:7], labels, 30)] == [7]
    assert common.spread(labels[:99], 5).tolist() == [0, 24, 49, 74, 98]
    assert torch.equal(common.spread(images, 500), images)


@pytest.mark.parametrize("channels", (1, 3))
def test_pictures(tmp_path, channels):
    images = torch.rand(5, channels, 6, 6) * 3 - 1.5        # values beyond [-1, 1] are clipped
    common.save_images(images, tmp_path / "new/grid.png", columns=3)
    common.save_images(images, tmp_path / "folder", labels=["a/b", 6, 7, 8, 9])
    grid, paths = pixels(tmp_path / "new/grid.png"), sorted((tmp_path / "folder").iterdir())
    assert grid.shape[:2] == (18, 26) and paths[4].name == "a-b_00000.png"
    for i, image in enumerate((images.clamp(-1, 1) + 1) * 127.5):
        y, x = 2 + 8 * (i // 3), 2 + 8 * (i % 3)
        image = image.round().permute(1, 2, 0).squeeze().numpy()
        assert np.array_equal(grid[y:y + 6, x:x + 6], image)
    with pytest.raises(OSError):        # a folder is never mixed with an older one
        common.save_images(images, tmp_path / "folder")
    common.save_gif(50 * paths, tmp_path / "x.gif")
    gif = Image.open(tmp_path / "x.gif")
    assert (gif.info["loop"], gif.info["duration"]) == (0, 250) and gif.n_frames <= 102


def test_commands_of_the_readmes(train, tmp_path, monkeypatch, capsys):
    """Each is run once, with tiny data and networks in the place of FOLDER and of MNIST."""
    here, folder = Path(__file__).parent, str(train.folder)
    text = (here / "README.md").read_text() + (here / "benchmarks/README.md").read_text()
    commands = re.findall(r"(?:^ +|`)python ([\w/]+)\.py ([^`#\n]*)", text, re.M)
    monkeypatch.chdir(tmp_path)
    for script in SCRIPTS:              # what `python gan_mlp.py` and so on do, with few images
        assert train(script, Path("out", script.SCRIPT), "--batch-size", 99)["step"] == 2
    tiny = {script.SCRIPT: f" --data {folder} --image-size 8 --epochs 3 --num 4 {flags}"
            for script, flags in FLAGS.items()}
    tiny.update({"benchmarks/speed": " --quick", "extras/plot": "", "benchmarks/quality":
                 f" --data {folder} --num 200 --classifier-epochs 1"})
    for name, flags in dict.fromkeys(commands):
        flags, _, file = flags.replace("FOLDER", folder).partition(">")
        assert re.search(r"--data (?!mnist|fashion-mnist|cifar10|digits|/)", flags) is None, flags
        flags += tiny[re.match(r"(\w+)\.py|", flags)[1] or name]      # of a launched script
        flags += " --label 1" * ("--label" in flags) + " --classes cat" * ("--classes" in flags)
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *flags.split()])
        if name != "extras/toy" and (name != "extras/graphs" or torch.cuda.is_available()):
            runpy.run_path(str(here / f"{name}.py"), run_name="__main__")
        for module in NAMES:            # as launchers change modules
            monkeypatch.delitem(sys.modules, module, raising=False)
        if file:
            Path(file.strip()).write_text(capsys.readouterr().out)
