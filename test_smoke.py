"""Tests on tiny data: `python -m pytest`. Each script is trained once for many tests."""

import copy
import csv
import gzip
import importlib
import inspect
import itertools
import math
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
import time
import warnings
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from PIL import Image

import common
from benchmarks import quality

NAMES = ("gan_mlp", "dcgan", "wgan_clip", "wgan_gp", "infogan", "stackedgan")
SCRIPTS = gan_mlp, dcgan, wgan_clip, wgan_gp, infogan, stackedgan = [
    importlib.import_module(name) for name in NAMES]
torch.set_num_threads(1)    # the tensors are tiny, and threads would wait for each other
RGB = (200, 100, 50)
TINY = ["--width", "4", "--z-dim", "4", "--lr-d", "2e-3"]
FLAGS = {       # tiny networks; G takes a step for every two of D, where that can be chosen
    gan_mlp: [*TINY, "--k", "2"], dcgan: TINY, wgan_clip: [*TINY, "--n-critic", "2"],
    wgan_gp: [*TINY, "--n-critic", "2"], infogan: TINY,
    stackedgan: "--width 4 --z1-dim 4 --z0-dim 4 --lr-slow 2e-3 --encoder-epochs 1 "
                "--independent-epochs 1".split(),
}


@pytest.fixture(params=SCRIPTS, ids=lambda script: script.SCRIPT)
def script(request):
    return request.param


def write_images(folder, n=20, mode="L", size=(8, 8), seed=0):
    """Write n random images 000.png, 001.png, … into `folder`, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    shape = size[::-1] if mode == "L" else (*size[::-1], len(mode))
    pixels = np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)
    for i in range(n):
        Image.fromarray(pixels[i]).save(folder / f"{i:03}.png")
    return folder


@pytest.fixture(scope="session")
def train(tmp_path_factory):
    """train(script, out, *flags) trains on 36 grey images of two classes, in 4 batches an epoch."""
    folder = tmp_path_factory.mktemp("images")
    write_images(folder / "cat", seed=1)
    write_images(folder / "dog", seed=2)

    def call(script, out, *flags):
        run(script, "--data", folder, "--data-dir", folder / ".data", "--out", out, "--epochs", 2,
            "--batch-size", 8, "--lr", 3e-3, "--beta2", 0.8, *FLAGS[script], *flags)
        return out
    call.folder = folder
    return call


@pytest.fixture(scope="session")
def runs(train, tmp_path_factory):
    """runs[script] is the folder of its run, with a checkpoint of each epoch."""
    return {script: train(script, tmp_path_factory.mktemp(script.SCRIPT) / "run", "--keep",
                          "--log-every", 0) for script in SCRIPTS}


def run(script, *flags):
    script.main([*map(str, flags)])


def load(path):
    return torch.load(path, weights_only=True)


def pixels(path):
    return np.asarray(Image.open(path))


def stops(capsys, call, *args):
    """The one line on which call(*args) ends, with an exit code that is not 0."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        call(*args)
    assert stop.value.code
    text = capsys.readouterr().err if isinstance(stop.value.code, int) else stop.value.code
    lines = [line for line in text.splitlines() if line and not line.startswith("usage:")]
    assert len(lines) == 1, text
    return lines[0]


# ---- one step, called in the same way for all scripts ----

def networks(script, shape=(1, 8, 8)):
    """Small G and D (of stackedgan.py G0 and D0), and an optimizer of each."""
    torch.manual_seed(0)
    if script is stackedgan:
        G, D = script.Generator0(4, shape, 4), script.Discriminator0(shape, 4, 4)
    else:
        D_class = getattr(script, "Critic", None) or script.Discriminator
        G, D = script.Generator(4, shape, 4), D_class(shape, 4)
    return G, D, torch.optim.Adam(G.parameters(), 1e-3), torch.optim.Adam(D.parameters(), 1e-3)


def D_step(script):
    return getattr(script, "train_critic", None) or script.train_discriminator


def step_D(script, G, D, opt, real, **kwargs):
    condition = [torch.rand(len(real), 64, device=real.device)] if script is stackedgan else []
    return D_step(script)(G, D, opt, real, *condition, **kwargs)


def step_G(script, G, D, opt, real, **kwargs):
    if script is gan_mlp:
        return script.train_generator(G, D, opt, real, **kwargs)
    if script is stackedgan:            # in the place of E0: any 64 features of an image
        return script.train_generator(G, D, opt, torch.rand(len(real), 64, device=real.device),
                                      lambda fake: fake.flatten(1)[:, :64], **kwargs)
    return script.train_generator(G, D, opt, len(real), **kwargs)


def inputs(script, G, n):
    """What G makes n images of."""
    if script is infogan:
        return torch.randn(n, 4), infogan.codes(G, n)
    return (torch.rand(n, 64), torch.randn(n, 4)) if script is stackedgan else (torch.randn(n, 4),)


class PassOn(nn.Module):                # in the place of G1
    def forward(self, h1, z1):
        return h1 * math.nan if self.training else h1


def sample(script, G, *args):
    if script is stackedgan:
        return script.sample(PassOn(), G, args[0], args[1], args[1])
    return script.sample(G, *args)


def score(D, images):
    scores = D(images)
    return scores[0] if isinstance(scores, tuple) else scores


def weights(net):
    return [w.detach().clone() for w in net.parameters()]


def same(a, b):
    a, b = ([*x.values()] if isinstance(x, dict) else x for x in (a, b))
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b))


# ---- the mistakes that well-known code makes, for all scripts ----

def test_a_step_moves_its_own_player_only(script):
    G, D, opt_G, opt_D = networks(script)
    real, G_before = torch.rand(8, 1, 8, 8), weights(G)
    stats = step_D(script, G, D, opt_D, real)
    assert same(weights(G), G_before) and all(w.grad is None for w in G.parameters())
    D.zero_grad(set_to_none=True)
    D_before = weights(D)
    stats |= step_G(script, G, D, opt_G, real)
    assert same(weights(D), D_before) and all(w.grad is None for w in D.parameters())
    assert not same(weights(G), G_before)
    assert all(v.shape == () and v.dtype == torch.float32 and not v.requires_grad
               for v in stats.values())


def test_scores_are_raw_and_batchnorm_has_its_usual_settings(script):
    """The last layer times 1000 gives scores times 1000: no sigmoid, no tanh."""
    (G, D, _, _), x = networks(script, (1, 28, 28)), torch.rand(4, 1, 28, 28)
    before = score(D.eval(), x)
    with torch.no_grad():
        D.score.weight.mul_(1000), D.score.bias.mul_(1000)
    torch.testing.assert_close(score(D, x), 1000 * before)
    layers = [m for net in (G, D) for m in net.modules() if "BatchNorm" in type(m).__name__]
    assert layers and all(m.eps == 1e-5 and m.momentum == 0.1 for m in layers)


def test_samples_do_not_depend_on_their_batch(script):
    G = networks(script)[0]
    args = inputs(script, G, 6)
    images = sample(script, G, *args)
    torch.testing.assert_close(sample(script, G, *(v[2:3] for v in args)), images[2:3])
    assert G.training and not torch.equal(images[0], images[1])     # put back for the next step
    nn.utils.vector_to_parameters(9 * nn.utils.parameters_to_vector(G.parameters()), G.parameters())
    assert sample(script, G, *args).abs().max() <= 1    # thanks to tanh


@pytest.mark.parametrize("channels", (1, 3))
@pytest.mark.parametrize("side", (4, 5, 9, 28, 32, 48, 50, 64))
def test_sizes(script, side, channels):
    G, D, _, _ = networks(script, (channels, side, side))
    images = sample(script, G, *inputs(script, G, 2))
    assert images.shape == (2, channels, side, side) and score(D, images).shape == (2,)


def test_fewer_images_than_a_batch_in_bfloat16(script, train, tmp_path):
    ckpt = load(train(script, tmp_path, "--batch-size", 99, "--amp", "--epochs", 4) / "ckpt.pt")
    assert ckpt["step"] == 4 and all(map(math.isfinite, ckpt["rows"][-1].values()))


def test_amp_runs_in_bfloat16(script):
    """The layers do, but for the gradient penalty, and losses come back in float32."""
    G, D, opt_G, opt_D = networks(script)
    seen, amp, real = [], torch.autocast("cpu", torch.bfloat16), torch.rand(8, 1, 8, 8)
    next(m for m in D.modules() if isinstance(m, nn.Linear)).register_forward_hook(
        lambda module, inputs, output: seen.append(output.dtype))
    stats = step_D(script, G, D, opt_D, real, amp=amp)
    stats |= step_G(script, G, D, opt_G, real, amp=amp)
    expected = [torch.bfloat16] * {dcgan: 3, infogan: 4, stackedgan: 3}.get(script, 2)
    expected[1:1] = [torch.float32] * (script is wgan_gp)
    assert seen == expected and all(v.dtype == torch.float32 for v in stats.values())


def test_updates_run_on_the_meta_device(script):
    """No value can reach the host there, so no update waits for a GPU or mixes devices."""
    G, D = (net.to("meta") for net in networks(script)[:2])
    real = torch.rand(8, 1, 8, 8, device="meta")
    stats = step_D(script, G, D, torch.optim.Adam(D.parameters()), real)
    stats |= step_G(script, G, D, torch.optim.Adam(G.parameters()), real)
    script.update_ema(copy.deepcopy(G), G, 0.9, 1)
    assert all(v.is_meta for v in stats.values())


SHARED = {
    "noise update_ema GraphedUpdate main": SCRIPTS, "map_sizes init_weights": SCRIPTS[1:],
    "discriminator_loss": (gan_mlp, dcgan, infogan, stackedgan), "sample": SCRIPTS[:4],
    "MLPGenerator build_generator train_generator": SCRIPTS[1:4], "Generator": (dcgan, wgan_gp),
    "critic_loss sample_checkpoint": SCRIPTS[2:4],
}


@pytest.mark.parametrize("names", SHARED)
def test_what_is_the_same_is_the_same_to_the_letter(names):
    for name in names.split():
        assert len({inspect.getsource(getattr(script, name)) for script in SHARED[names]}) == 1


def test_update_ema_by_hand():
    G, G_ema = nn.BatchNorm1d(2), nn.BatchNorm1d(2)     # with its statistics
    for t, decay in (1, 2 / 6), (30, 31 / 35), (100_000, 0.9):
        *before, _ = copy.deepcopy(G_ema).state_dict().values()
        for value, old in zip(G.state_dict().values(), before):
            value.copy_(old + 1)
        gan_mlp.update_ema(G_ema, G, 0.9, t)
        torch.testing.assert_close(
            [*G_ema.state_dict().values()][:4], [a + 1 - decay for a in before])


# ---- each step against the same step by hand ----
# These return what a player minimises and what its step reports, and draw noise in the same order.

def bce(scores, target):
    return F.binary_cross_entropy_with_logits(scores, torch.full_like(scores, target))


def judge(s_real, s_fake):
    loss_real, loss_fake = bce(s_real, 1.0), bce(s_fake, 0.0)
    return loss_real + loss_fake, {
        "loss_real": loss_real, "loss_fake": loss_fake, "D(x)": s_real.sigmoid().mean(),
        "D(G(z))": s_fake.sigmoid().mean()}


def gan_D_by_hand(G, D, real):
    loss, stats = judge(D(real), D(G(torch.randn(8, 4))))   # apart, as BatchNorm would mix them
    return loss, {**stats, **({"jsd": math.log(2) - loss / 2} if D.__module__ == "gan_mlp" else {})}


def gan_G_by_hand(G, D, real, loss="ns", l1=0.0):
    fake = G(torch.randn(8, 4))
    loss_G = {"ns": bce(D(fake), 1.0), "minimax": -bce(D(fake), 0.0), "W": -D(fake).mean()}[loss]
    return loss_G + l1 * F.l1_loss(fake, real), {"loss_G": loss_G}


def critic_by_hand(G, D, real, gp_weight=None):
    fake = G(torch.randn(8, 4)).detach()
    D_x, D_Gz = D(real).mean(), D(fake).mean()
    loss, stats = D_Gz - D_x, {"W": D_x - D_Gz, "D(x)": D_x, "D(G(z))": D_Gz}
    if gp_weight is not None:
        eps = torch.rand(8, 1, 1, 1)
        x_hat = (eps * real + (1 - eps) * fake).requires_grad_()
        gradient, = torch.autograd.grad(D(x_hat).sum(), x_hat, create_graph=True)
        norm = gradient.square().sum((1, 2, 3)).sqrt()
        loss, stats["grad_norm"] = loss + gp_weight * ((norm - 1)**2).mean(), norm.mean()
    return loss, stats


def code_losses(q, c):
    return (-(q[:, :10].log_softmax(1) * c[:, :10]).sum() / 8, ((q - c)[:, 10:]**2).sum() / 8)


def infogan_D_by_hand(G, D, real, labels=None, bend=0):
    z, c = torch.randn(8, 4), infogan.codes(G, 8)
    fake, (s_real, q_real) = G(z, c).detach(), D(real)
    s_fake, q = D(fake)
    (loss, stats), (category, error) = judge(s_real, s_fake), code_losses(q, c)
    if bend:                            # the category only is read from the bent copy
        category, _ = code_losses(D(infogan.bent(fake, bend))[1], c)
    if labels is not None:
        loss = loss + 2 * F.nll_loss(q_real[:, :10].log_softmax(1), labels)
    stats.update({"L_I": math.log(10) - category, "code_rmse": (error / 2).sqrt()})
    return loss + 2 * category + 3 * error / 2, stats


def infogan_G_by_hand(G, D, real):
    z, c = torch.randn(8, 4), infogan.codes(G, 8)
    h = D.trunk(G(z, c))                # Q's gradient goes through the trunk, and to G
    (category, error), loss_G = code_losses(D.Q(h), c), bce(D.score(h), 1.0)
    return loss_G + 2 * category + 3 * error / 2, {"loss_G": loss_G}


torch.manual_seed(0)
LABELS, H1 = torch.arange(8) % 3, torch.rand(8, 64)
E = stackedgan.Encoder((1, 8, 8), 4, 3).eval().requires_grad_(False)


def stack_D_by_hand(G, D, real, condition):
    z = torch.randn(8, 4)               # Q is not asked about real data, which have none
    s_real, (s_fake, z_hat) = D(real)[0], D(G(condition, z))
    loss, stats = judge(s_real, s_fake)
    return loss + 3 * ((z_hat - z)**2).mean(), {k: stats[k] for k in ("loss_real", "loss_fake")}


def stack_G_by_hand(G, D, real, condition):
    given, z = F.one_hot(LABELS) if condition is LABELS else H1, torch.randn(8, 4)
    fake = G.net(torch.cat([given, z], 1))
    s_fake, z_hat = D(fake)
    adv, ent = bce(s_fake, 1.0), ((z_hat - z)**2).mean()
    if condition is LABELS:
        cond = -E.E1(fake).log_softmax(1)[torch.arange(8), LABELS].mean()
    else:
        cond = ((E.E0(fake) - H1)**2).mean()
    return 2 * adv + 3 * cond + 5 * ent, {"adv": adv, "cond": cond, "ent": ent}


STEPS = [       # script, player, arguments of the step behind `opt` (... is the batch), by hand
    (gan_mlp, "D", (...,), gan_D_by_hand), (gan_mlp, "G", (...,), gan_G_by_hand),
    (gan_mlp, "G", (..., "minimax"), partial(gan_G_by_hand, loss="minimax")),
    (gan_mlp, "G", (..., "ns", 0.3), partial(gan_G_by_hand, l1=0.3)),
    (dcgan, "D", (...,), gan_D_by_hand), (dcgan, "G", (8,), gan_G_by_hand),
    (wgan_clip, "D", (..., 0.02), critic_by_hand),
    (wgan_clip, "G", (8,), partial(gan_G_by_hand, loss="W")),
    (wgan_gp, "D", (..., 0.0), partial(critic_by_hand, gp_weight=0)),
    (wgan_gp, "D", (...,), partial(critic_by_hand, gp_weight=10)),
    (wgan_gp, "G", (8,), partial(gan_G_by_hand, loss="W")),
    (infogan, "D", (..., None, 2.0, 3.0, 0.0), infogan_D_by_hand),
    (infogan, "D", (..., None, 2.0, 3.0, 0.5), partial(infogan_D_by_hand, bend=0.5)),
    (infogan, "D", (..., LABELS, 2.0, 3.0, 0.0), partial(infogan_D_by_hand, labels=LABELS)),
    (infogan, "G", (8, 2.0, 3.0), infogan_G_by_hand),
    (stackedgan, "D", (..., LABELS, 3.0), partial(stack_D_by_hand, condition=LABELS)),
    (stackedgan, "D", (..., H1, 3.0), partial(stack_D_by_hand, condition=H1)),
    (stackedgan, "G", (LABELS, E.E1, 2.0, 3.0, 5.0), partial(stack_G_by_hand, condition=LABELS)),
    (stackedgan, "G", (H1, E.E0, 2.0, 3.0, 5.0), partial(stack_G_by_hand, condition=H1)),
]


@pytest.mark.parametrize("script, player, args, by_hand", STEPS,
                         ids=lambda value: getattr(value, "SCRIPT", None))
def test_step_by_hand(script, player, args, by_hand):
    G, D, _, _ = networks(script)
    real = torch.rand(8, 1, 8, 8) * 2 - 1
    if getattr(by_hand, "keywords", {}).get("condition") is LABELS:     # the upper stack
        G, D, real = stackedgan.Generator1(4, 4, 3), stackedgan.Discriminator1(4, 4), H1
    G2, D2 = copy.deepcopy(G), copy.deepcopy(D)
    net, twin, step = (D, D2, D_step(script)) if player == "D" else (G, G2, script.train_generator)
    for w in net.parameters():
        w.grad = torch.full_like(w, 100.0)      # a step without zero_grad would add to it
    torch.manual_seed(4)
    opt = torch.optim.SGD(net.parameters(), 1.0)
    stats = step(G, D, opt, *(real if a is ... else a for a in args))
    torch.manual_seed(4)
    loss, expected = by_hand(G2, D2, real)
    gradients = torch.autograd.grad(loss, [*twin.parameters()], allow_unused=True)
    for w, v, g in zip(net.parameters(), weights(twin), gradients):
        v = v if g is None else v - g
        v = v.clamp(-0.02, 0.02) if script is wgan_clip and player == "D" else v
        torch.testing.assert_close(w.detach(), v, rtol=1e-4, atol=1e-5)
    if player == "D":                   # what BatchNorm has seen, and in which order
        torch.testing.assert_close([*D.buffers()], [*D2.buffers()])
    torch.testing.assert_close(stats, {k: v.detach() for k, v in expected.items()})


# ---- training, sampling, resuming ----

def test_files_of_a_run(script, runs):
    out = runs[script]
    names = {str(path.relative_to(out)) for path in out.rglob("*.*")}
    assert names == {"samples/real.png", "samples/0001.png", "samples/0002.png", "samples.gif",
                     "log.csv", "ckpt.pt", "ckpt_0001.pt", "ckpt_0002.pt"}
    rows, ckpt = [*csv.DictReader((out / "log.csv").open())], load(out / "ckpt.pt")
    assert [row["epoch"] + row["step"] for row in rows] == "11 12 13 14 25 26 27 28".split()
    assert [float(row["images/s"]) for row in rows] == [row["images/s"] for row in ckpt["rows"]]
    assert [*map(ckpt.get, ("epoch", "step", "shape"))] == [2, 8, (1, 8, 8)]
    assert Image.open(out / "samples.gif").n_frames == 2 and ckpt["classes"] == ["cat", "dog"]


def test_settings_of_the_optimizers(script, runs):
    """Each player has its own learning rate; Adam's betas are in order, RMSprop has no momentum."""
    ckpt = load(runs[script] / "ckpt.pt")
    groups = {name: ckpt[name]["param_groups"][0] for name in ckpt if name.startswith("opt")}
    for name, group in groups.items():
        assert group["lr"] == (2e-3 if name in ("opt_D", "opt_D0", "opt_G1") else 3e-3)
        if script is wgan_clip:
            assert group["alpha"] == 0.8 and group["momentum"] == 0
        else:
            assert group["betas"] == (script.get_args([])[0].beta1, 0.8)


def flat(tree):
    """All that nested dictionaries and sequences hold, and the keys, in one list."""
    tree = [*tree.items()] if isinstance(tree, dict) else tree
    return sum(map(flat, tree), []) if isinstance(tree, (list, tuple)) else [tree]


def test_resume_equals_the_uninterrupted_run(script, runs, tmp_path):
    out, leaves = runs[script], []
    run(script, "--resume", out / "ckpt_0001.pt", "--out", tmp_path / "new", "--seed", 9)
    for path in out / "ckpt.pt", tmp_path / "new/ckpt.pt":
        ckpt = load(path)
        for name in "out", "resume", "seed":        # the stored random state and noise count
            del ckpt["args"][name]
        for row in ckpt["rows"]:
            del row["images/s"]
        leaves.append(flat(ckpt))
    for x, y in itertools.zip_longest(*leaves):
        assert torch.equal(x, y) if torch.is_tensor(x) else x == y
    assert len((tmp_path / "new/log.csv").read_text().splitlines()) == 9


def test_resume_in_place_with_other_data_and_settings(script, train, runs, tmp_path):
    out = shutil.copytree(runs[script], tmp_path / "run")
    before = load(out / "ckpt.pt")
    other = shutil.copytree(train.folder, tmp_path / "other")
    known = ["cat", "dog" if script is stackedgan else "fox"]      # E knows the dog
    (other / "dog").rename(other / known[1])
    run(script, "--resume", out / "ckpt.pt", "--epochs", 3, "--lr", 1e-30, "--ema", 0,
        "--data", other, "--data-dir", tmp_path)
    after, G = load(out / "ckpt.pt"), "G0" if script is stackedgan else "G"
    names = [name for name in before[G] if name.endswith(("weight", "bias"))]
    assert all(torch.equal(before[G][name], after[G][name]) for name in names)
    steps = {int(s["step"]) for s in after["opt_" + G]["state"].values()}
    assert steps == {12 // (2 if script in (gan_mlp, wgan_clip, wgan_gp) else 1)}
    for name in [name for name in after if name.endswith("_ema")]:      # G moved its average
        moved = [key for key in after[name] if "num_batches" not in key]
        assert all(torch.equal(after[name[:-4]][key], after[name][key]) for key in moved)
        assert not same(before[name], after[name])
    assert Image.open(out / "samples.gif").n_frames == 3 and after["classes"] == known


def expected_samples(script, ckpt, n, seed=0, change=lambda args: None):
    """What --sample should make: n images of the averaged G, as pixels."""
    if script is stackedgan:
        nets = stackedgan.Generator1(4, 4, 2), stackedgan.Generator0(4, (1, 8, 8), 4)
    else:
        nets = [script.Generator(4, (1, 8, 8), 4)]
    for net, name in zip(nets, [name for name in ckpt if name.endswith("_ema")]):
        net.load_state_dict(ckpt[name])
    torch.manual_seed(seed)
    y = [torch.arange(n) * 2 // n, torch.randn(n, 4)] if script is stackedgan else []
    args = [*y, torch.randn(n, 4), *([infogan.codes(nets[0], n)] if script is infogan else [])]
    change(args)
    return script.sample(*nets, *args).add(1).mul(127.5).round().byte().numpy()[:, 0]


@pytest.mark.parametrize("script", (gan_mlp, dcgan, wgan_clip, wgan_gp))
def test_sample(script, runs, tmp_path):
    """--sample writes what G_ema makes of the seed's noise, as a grid or as single PNGs."""
    path = runs[script] / "ckpt.pt"
    for name in "many", "grid.png":
        run(script, "--sample", path, "--num", 5, "--seed", 7, "--out", tmp_path / name)
    images = expected_samples(script, load(path), 5, 7)
    for i, image in enumerate(images):
        assert np.array_equal(pixels(tmp_path / f"many/{i:05}.png"), image)
        assert np.array_equal(pixels(tmp_path / "grid.png")[2:10, 2 + 10 * i:10 + 10 * i], image)
    assert not same(load(path)["G"], load(path)["G_ema"])


def test_grids_of_training(script, runs):
    """They show the averaged G, with the noise of the checkpoint, and rows of eight."""
    def stored(args):
        noise = [ckpt[name] for name in ("z", "z1", "z0") if name in ckpt]
        if script is infogan:
            noise.append(torch.cat([torch.eye(10)[[0] * 8], ckpt["c"][:, 10:]], 1))
        args[:] = [torch.arange(16) // 8, *noise] if script is stackedgan else noise

    ckpt = load(runs[script] / "ckpt.pt")
    second = expected_samples(script, ckpt, 1, change=stored)[1]
    assert np.array_equal(pixels(runs[script] / "samples/0002.png")[2:10, 12:20], second)


def test_a_copy_alone_can_be_imported(tmp_path):
    """Its networks, losses and updates need torch and no other file, and importing does nothing."""
    for script in SCRIPTS:
        shutil.copy(script.__file__, tmp_path)
    code = f"""
import importlib, sys, torch
sys.modules.update(common=None, torchvision=None, PIL=None, numpy=None)     # cannot be imported
state = torch.get_rng_state()
modules = [importlib.import_module(name) for name in {NAMES}]
assert torch.equal(state, torch.get_rng_state())
G, D = modules[3].Generator(), modules[3].Critic()
modules[3].train_critic(G, D, torch.optim.Adam(D.parameters()), torch.zeros(2, 1, 28, 28))
"""
    command = [sys.executable, "-B", "-c", code]
    assert subprocess.run(command, cwd=tmp_path, check=True, capture_output=True).stdout == b""
    assert len([*tmp_path.iterdir()]) == 6


def test_output_in_a_terminal_that_lacks_letters(train, tmp_path):
    guards = {Path(script.__file__).read_text().split("if __name__")[1] for script in SCRIPTS}
    assert len(guards) == 1             # so that one script stands for all
    folder = shutil.copytree(train.folder, tmp_path / "数据 [λ]")
    for flags in ["--help"], ["--data", folder, "--epochs", 1, "--out", tmp_path / "\udcff", *TINY]:
        command = [sys.executable, infogan.__file__, *map(str, flags)]
        subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONIOENCODING": "cp1252"},
                       check=True, capture_output=True)


def test_sigkill_leaves_a_whole_checkpoint(train, tmp_path):
    path, seen, deadline = tmp_path / "ckpt.pt", set(), time.time() + 120
    command = [sys.executable, gan_mlp.__file__, "--epochs", 10**6, "--save-every", 1, "--data",
               train.folder, "--data-dir", tmp_path, "--out", tmp_path, *TINY]
    process = subprocess.Popen([*map(str, command)], stdout=subprocess.DEVNULL)
    while len(seen) < 9:                # it saves all the time
        assert process.poll() is None and time.time() < deadline
        seen |= {path.stat().st_mtime_ns} if path.exists() else set()
    process.kill()
    process.wait()
    assert load(path)["epoch"] > 1
    run(gan_mlp, "--sample", path)


def test_ctrl_c_and_bugs(script, runs, tmp_path, monkeypatch, capsys):
    """One line ends a run that is stopped, but errors of edited code still give a traceback."""
    flags = "--resume", runs[script] / "ckpt.pt", "--epochs", 3, "--out", tmp_path
    monkeypatch.setattr(script, "update_ema", lambda *args: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError):
        run(script, *flags)
    monkeypatch.setattr(script, "update_ema", mock.Mock(side_effect=KeyboardInterrupt))
    assert stops(capsys, run, script, *flags).startswith("stopped; --resume")


@pytest.mark.parametrize("rate", ("--lr", "--lr-d", None))
def test_divergence_and_a_full_disk_stop_before_a_save(script, runs, tmp_path, capsys, rate):
    if script is wgan_clip and rate == "--lr-d":
        pytest.skip("clipping keeps the weights of D finite")
    out = shutil.copytree(runs[script], tmp_path / "run")
    before = (out / "ckpt.pt").read_bytes()
    if rate:
        rate = "--lr-slow" if script is stackedgan and rate == "--lr-d" else rate
        flags, message = [rate, 1e38], "not finite"
    else:
        (out / "ckpt.tmp").symlink_to("/dev/full")
        flags, message = [], "No space left"
    line = stops(capsys, run, script, "--resume", out / "ckpt.pt", "--epochs", 9, *flags)
    assert message in line and (out / "ckpt.pt").read_bytes() == before


def test_saves_once_a_minute(script, train, runs, tmp_path, monkeypatch):
    """At the end of an epoch, whatever --save-every is; each look at the clock takes 10 seconds."""
    monkeypatch.setattr("time.time", itertools.count(0, 10).__next__)
    out = train(script, tmp_path, "--save-every", 100, "--epochs", 5, "--keep", "--seed", 1)
    assert {"0002.png", "0004.png"} <= {path.name for path in out.glob("samples/*")}
    first, other = (load(path / "ckpt_0002.pt") for path in (runs[script], out))
    G = "G0" if script is stackedgan else "G"
    assert not same(first[G], other[G])         # the seed decides


def test_tensorboard(script, runs, tmp_path, monkeypatch):
    package = mock.Mock()               # tensorboard is not installed
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", package)
    run(script, "--resume", runs[script] / "ckpt_0001.pt", "--out", tmp_path, "--tensorboard")
    package.SummaryWriter.assert_called_once_with(tmp_path / "tensorboard", purge_step=5)
    writer, row = package.SummaryWriter.return_value, load(tmp_path / "ckpt.pt")["rows"][-1]
    scalars = {call.args[0]: call.args[1:] for call in writer.add_scalar.call_args_list}
    assert scalars == {name: (row[name], 8) for name in row.keys() - {"epoch", "step", "images/s"}}
    assert writer.add_images.called and writer.add_histogram.called == (script in SCRIPTS[2:4])


warnings.simplefilter("ignore", pytest.PytestUnknownMarkWarning)    # gpu is registered nowhere
no_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@no_cuda
@pytest.mark.gpu
@pytest.mark.parametrize("flags", ([], ["--amp"], ["--graph"], ["--graph", "--amp"]))
def test_cuda(script, train, tmp_path, flags):
    path = str(train(script, tmp_path, "--device", "cuda", *flags) / "ckpt.pt")
    run(script, "--resume", path, "--epochs", "5", "--device", "cuda")
    run(script, "--resume", path, "--epochs", "6", "--device", "cpu")
    run(script, "--sample", path, "--device", "cuda")


@no_cuda
@pytest.mark.gpu
def test_cuda_graph_trains_as_without(script, train, tmp_path):
    logs = []
    for flag in "--graph", "--no-graph":
        out = train(script, tmp_path / flag, "--device", "cuda", flag, "--log-every", 0)
        rows = load(out / "ckpt.pt")["rows"]
        logs.append([torch.tensor([v for k, v in row.items() if k != "images/s"]) for row in rows])
    torch.testing.assert_close(*logs, rtol=1e-3, atol=1e-4)


# ---- errors that users make ----

BAD_FLAGS = {
    "--epochs 0": "above 0", "--batch-size 1": "above 1", "--num -1": "must be",
    "--lr 0": "above 0", "--lr nan": "above 0", "--ema 1": "below 1", "--beta2 -0.1": "negative",
    "--width 0": "above 0", "--epochs ten": "invalid int", "--epoch 3": "unrecognized",
    "--channels 2": "invalid choice", "--data nowhere": "nowhere", "--classes bird": "bird",
    "--resume a --sample b": "not allowed", "--image-size -5": "negative", "--ema nan": "nan",
}


@pytest.mark.parametrize("flags", BAD_FLAGS)
def test_bad_flags(script, train, tmp_path, capsys, flags):
    assert BAD_FLAGS[flags] in stops(capsys, train, script, tmp_path, *flags.split())


@pytest.mark.parametrize("flag", ("--resume", "--sample"))
def test_bad_checkpoints_and_networks_that_do_not_fit(script, runs, tmp_path, capsys, flag):
    other = runs[dcgan if script is gan_mlp else gan_mlp] / "ckpt.pt"
    assert "was not saved by" in stops(capsys, run, script, flag, other)
    assert "No such file" in stops(capsys, run, script, flag, tmp_path / "none.pt")
    path, whole = tmp_path / "bad.pt", (runs[script] / "ckpt.pt").read_bytes()
    evil = type("Evil", (), {"__reduce__": lambda self: (os.mkdir, (tmp_path / "hit",))})()
    for content in b"", b"text", whole[:9999], pickle.dumps(evil, 2):   # the last would run mkdir
        path.write_bytes(content)
        assert "cannot load" in stops(capsys, run, script, flag, path)
    torch.save([1, 2], path)
    assert "was not saved by" in stops(capsys, run, script, flag, path)
    assert not (tmp_path / "hit").exists()
    path, known = runs[script] / "ckpt.pt", load(runs[script] / "ckpt.pt")["args"]
    for change in ("width 8", "image_size 16", "channels 3", "upsample", "mlp", "norm layer",
                   "z_dim 5", "z1_dim 5", "z0_dim 5", "categories 3", "num_codes 1"):
        name, *value = change.split()
        if name in known:
            name = "--" + name.replace("_", "-")
            assert f"{name} must be" in stops(capsys, run, script, flag, path, name, *value)


def test_other_errors(script, runs, train, tmp_path, monkeypatch, capsys):
    out = runs[script]
    for flags in ["--data", "strokes", "--out", out], ["--resume", out / "ckpt_0001.pt"]:
        assert "exists" in stops(capsys, run, script, *flags)
    assert "raise --epochs" in stops(capsys, run, script, "--resume", out / "ckpt.pt")
    (tmp_path / "file").touch()
    assert "file/run" in stops(capsys, train, script, tmp_path / "file/run")
    one = write_images(tmp_path / "one", 1)
    assert "too few" in stops(capsys, run, script, "--data", one, "--out", tmp_path)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert "tensorboard" in stops(capsys, train, script, tmp_path, "--tensorboard")


# ---- each method ----

SETTINGS = {    # the arguments of steps that are flags, with other values than by default
    gan_mlp: {"loss": "minimax", "l1": 0.5}, wgan_clip: {"clip": 0.5}, wgan_gp: {"gp_weight": 2.0},
    infogan: {"cat_weight": 2.0, "code_weight": 3.0, "bend": 0.5}, dcgan: {},
    stackedgan: {"adv_weight": 2.0, "cond_weight": 3.0, "ent_weight": 4.0},
}


def test_order_and_arguments_of_steps(script, train, tmp_path, monkeypatch):
    """Several steps of D for one of G are counted from epoch to epoch and over --resume."""
    def noted(letter, step):
        return lambda *args, **kwargs: (calls.append((letter, args[3])) or settings.update(kwargs)
                                        or step(*args, **kwargs))

    calls, settings = [], {}
    for letter, step in zip("DGt", (D_step(script), script.train_generator, script.update_ema)):
        monkeypatch.setattr(script, step.__name__, noted(letter, step))
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in SETTINGS[script].items()]
    often = {gan_mlp: ["--k=3"], wgan_clip: ["--n-critic=3"], wgan_gp: ["--n-critic=3"]}
    train(script, tmp_path, *flags, *often.get(script, []))
    run(script, "--resume", tmp_path / "ckpt.pt", "--epochs", 3)
    order = 12 * {infogan: "DGtt", stackedgan: "DGDGtt"}.get(script, "DGt")
    order = 4 * "DDDGt" if script in often else order
    assert "".join(letter for letter, _ in calls) == order
    times = 1 + (script in (infogan, stackedgan))       # two networks are averaged at step t
    steps = [1 + i // times for i in range(order.count("t"))]
    assert [t for letter, t in calls if letter == "t"] == steps
    assert {x if isinstance(x, int) else len(x) for letter, x in calls if letter != "t"} == {8}
    assert {k: v for k, v in settings.items() if k not in ("amp", "E_i")} == SETTINGS[script]


def test_networks_of_gan_mlp_and_dcgan(train, runs):
    """The first take vectors, too. The second keep section 3's rules, but for hidden layers."""
    G, D = gan_mlp.Generator(4, (3,), 4), gan_mlp.Discriminator((3,), 4)
    x = gan_mlp.sample(G, torch.randn(5, 4))
    images, s = common.load_images(train.folder, train.folder / ".data")[0], D(x)
    D.mean = load(runs[gan_mlp] / "ckpt.pt")["D"]["mean"]
    assert D(x + (images.float().mean() / 127.5 - 1) / 2).allclose(s, atol=1e-6)
    assert x.shape == (5, 3) and s.shape == (5,)
    assert [sum("Norm" in type(m).__name__ for m in net.modules()) for net in (G, D)] == [3, 0]
    G, D = dcgan.Generator().net, [*dcgan.Discriminator().trunk, dcgan.Discriminator().score]
    names = [" ".join(type(layer).__name__ for layer in layers) for layers in (G, D)]
    assert names[0] == ("Linear BatchNorm1d ReLU Linear Unflatten "
                        + 3 * "BatchNorm2d ReLU ConvTranspose2d " + "Tanh")
    assert names[1] == ("Conv2d LeakyReLU " + 2 * "Conv2d BatchNorm2d LeakyReLU "
                        + "Flatten Linear BatchNorm1d LeakyReLU Linear")
    assert {m.negative_slope for m in D if isinstance(m, nn.LeakyReLU)} == {0.2}
    for layer in [*G, *D]:
        if isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            assert abs(layer.weight.std() - 0.02) < 0.004 and not layer.bias.any()
            assert getattr(layer, "stride", (2, 2)) == (2, 2)


@pytest.mark.parametrize("flag", ("--upsample", "--mlp"))
def test_other_generators(flag, train, tmp_path):
    path = str(train(wgan_gp, tmp_path, flag, "--epochs", 1) / "ckpt.pt")
    run(wgan_gp, "--sample", path)
    G = wgan_gp.build_generator(wgan_gp.get_args(["--sample", path])[0], (1, 28, 28))
    names = [type(m).__name__ for m in G.modules()]
    assert "ConvTranspose2d" not in names and ("Upsample" in names) == (flag == "--upsample")
    if flag == "--mlp":
        assert names.count("Linear") == 5 and not any("Norm" in name for name in names)
        assert G(torch.randn(64, 4)).std(0).mean() > 1e-3       # not silenced by tiny weights


def test_walks(runs, tmp_path):
    z = dcgan.walks(4000, 50, torch.Generator().manual_seed(0)).view(500, 8, 50)
    ends = torch.randn(2, 500, 50, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(z[:, [0, -1]].transpose(0, 1), ends)
    assert (z.std((0, 2)) - 1).abs().max() < 0.02       # N(0, I) all the way
    assert len(dcgan.walks(11, 4, None)) == 11
    for flag in "--walk", "--no-walk":
        run(dcgan, "--sample", runs[dcgan] / "ckpt.pt", flag, "--out", f"{tmp_path}/{flag}.png")
    assert not np.array_equal(*(pixels(path) for path in tmp_path.iterdir()))


@pytest.mark.parametrize("norm, layers", (("none", 0), ("layer", 3), ("instance", 2)))
def test_a_score_does_not_depend_on_the_other_images(norm, layers):
    D, x = wgan_gp.Critic((1, 28, 28), 4, norm), torch.rand(4, 1, 28, 28)
    other = torch.cat([x[:1], torch.rand(3, 1, 28, 28)])
    torch.testing.assert_close(D(x)[0], D(other)[0])
    assert len(re.findall(r"GroupNorm\(1,|LayerNorm|InstanceNorm", str(D))) == layers


@pytest.mark.parametrize("script", (wgan_clip, wgan_gp))
def test_W_val(script, train, tmp_path):
    """W less what D gives images for having trained on them, at the end of an epoch."""
    ckpt = load(train(script, tmp_path, "--classes", "cat", "--log-every", 0) / "ckpt.pt")
    D, flags = script.Critic((1, 8, 8), 4), {"classes": ["cat"], "data_dir": tmp_path}
    D.load_state_dict(ckpt["D"])
    seen, held_out = (common.load_images(train.folder, train=part, **flags)[0] for part in (1, 0))
    gap, row = D(seen / 127.5 - 1).mean() - D(held_out / 127.5 - 1).mean(), ckpt["rows"][-1]
    assert row["W_val"] == pytest.approx(row["W"] - gap.item(), abs=1e-6)
    assert ["W_val" in row for row in ckpt["rows"]] == [False, True, False, True]


def test_clipping_bounds_every_weight(runs):
    ckpt = load(runs[wgan_clip] / "ckpt.pt")
    weights = torch.cat([w.flatten() for w in ckpt["D"].values()])
    assert weights.max() == -weights.min() == torch.tensor(0.01)
    at_clip = (weights.abs() == torch.tensor(0.01)).float().mean().item()
    assert ckpt["rows"][-1]["at_clip"] == pytest.approx(at_clip)


def test_penalty_of_known_critics():
    """A linear one; one whose gradient is 0, where a norm has none; and one with BatchNorm."""
    for shape in (2,), (5, 2), (3, 8, 8):
        w, x = torch.randn(shape), torch.randn(2, 5, *shape)
        penalty, norm = wgan_gp.gradient_penalty(lambda x: (x * w).flatten(1).sum(1), *x)
        torch.testing.assert_close((penalty, norm), ((w.norm() - 1)**2, w.norm()))
    D = wgan_gp.Critic((3, 8, 8), 4)
    for w in D.parameters():
        nn.init.zeros_(w)
    penalty, norm = wgan_gp.gradient_penalty(D, *x)
    penalty.backward()
    assert (penalty, norm) == (1, 0)
    assert all(w.grad.isfinite().all() for w in D.parameters() if w.grad is not None)
    with pytest.raises(RuntimeError):
        wgan_gp.gradient_penalty(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(192), D.score), *x)
    with pytest.raises(ValueError, match="one score for each image"):
        wgan_gp.gradient_penalty(nn.Conv2d(3, 1, 2, stride=2), *x)      # 16 scores for each image
    with pytest.raises(ValueError, match="but fake has"):
        wgan_gp.gradient_penalty(D, x[0], x[1, :1])


def test_codes_and_bends(monkeypatch):
    """Each image has its own bend; a shift of 0.2 * 2.5 / 2 of half the side is one pixel."""
    c = infogan.codes(infogan.Generator(4, (1, 8, 8), 4, categories=3), 30_000)
    one_hot, numbers = c[:, :3], c[:, 3:]
    assert torch.equal(one_hot, F.one_hot(one_hot.argmax(1), 3).float())
    assert (one_hot.mean(0) - 1 / 3).abs().max() < 0.02 and numbers.mean(0).abs().max() < 0.02
    assert numbers.abs().max() <= 1 and (numbers.std(0) - 1 / 3**0.5).abs().max() < 0.01
    x, shift = torch.rand(1, 3, 8, 8).expand(2, 3, 8, 8), torch.tensor([[0, 0, 2.5], [0, 0, 0]])
    assert not torch.allclose(*infogan.bent(x, 0.2))
    monkeypatch.setattr(torch, "randn", lambda *args, device: shift.repeat(2, 1, 1))
    torch.testing.assert_close(infogan.bent(x, 0.2), torch.cat([x[..., 1:], x[..., 7:]], 3))


def test_infogan_gets_labels_only_if_supervised(train, tmp_path, monkeypatch, capsys):
    step = mock.Mock(wraps=infogan.train_discriminator)
    monkeypatch.setattr(infogan, "train_discriminator", step)
    for flags, given in ([], 4), (["--supervised"], 5):
        train(infogan, tmp_path / str(given), *flags)
        assert {len(call.args) for call in step.call_args_list[-8:]} == {given}
    flags = "--supervised", "--categories=1"
    assert "--categories 2" in stops(capsys, train, infogan, tmp_path, *flags)


def test_pictures_of_infogan():
    """A row for each category: z and the numbers as they are, then each number alone."""
    class G(nn.Module):                 # draws its own input
        categories, num_codes = 3, 2

        def forward(self, z, c):
            return torch.cat([z, c], 1).view(len(z), 1, 1, 7)

    z, c = torch.randn(5, 2), infogan.codes(infogan.Generator(categories=3), 5)
    rows, zeros, steps = z[:1].expand(5, 2), torch.zeros(5), torch.linspace(-2, 2, 5)
    numbers = c[:, 3:], torch.stack([steps, zeros], 1), torch.stack([zeros, steps], 1)
    for picture, z_row, row in zip(infogan.pictures(G(), z, c, 5), (z, rows, rows), numbers):
        for k in range(3):
            one_hot = torch.eye(3)[k].expand(5, 3)
            torch.testing.assert_close(picture[k].flatten(1), torch.cat([z_row, one_hot, row], 1))


def test_samples_of_infogan(runs, train, tmp_path, capsys):
    def set_codes(args):
        args[1][:, :10], args[1][:, 10] = torch.eye(10)[3], 0.5

    path = runs[infogan] / "ckpt.pt"
    sample = ["--sample", path, "--num", "25", "--out"]
    run(infogan, *sample, tmp_path / "many", "--category", "3", "--code", "0.5")
    for i, image in enumerate(expected_samples(infogan, load(path), 25, change=set_codes)):
        assert np.array_equal(pixels(tmp_path / f"many/3_{i:05}.png"), image)
    for name in "grid.bmp", "folder":
        run(infogan, *sample, tmp_path / name)
    shapes = {path.name: pixels(path).shape for path in tmp_path.glob("*_code*")}
    assert shapes == {"grid_code1.bmp": (102, 92), "grid_code2.bmp": (102, 92)}     # ten rows of 9
    assert pixels(tmp_path / "grid.bmp").shape == (102, 32)
    for flags in ["--category", 10], ["--category", -1], ["--code", 1, 2, 3]:
        assert "0 to 9" in stops(capsys, run, infogan, "--sample", path, *flags)
    path = train(infogan, tmp_path / "run", "--num-codes", 0, "--categories", 3) / "ckpt.pt"
    run(infogan, "--sample", path, "--num", 4, "--out", tmp_path / "all")
    names = sorted(file.stem for file in (tmp_path / "all").iterdir())
    assert names == ["0_00000", "0_00001", "1_00002", "2_00003"]
    assert load(path)["rows"][-1]["code_rmse"] == 0
    assert pixels(tmp_path / "run/samples/0002.png").shape == (32, 82)      # three rows of 8


def test_encoder_learns_and_then_stays(runs, train, tmp_path):
    images, labels, _, _ = common.strokes(2000)
    torch.manual_seed(0)
    E = stackedgan.Encoder()
    stackedgan.pretrain(E, images, labels, 2)
    right = E.eval()(images / 127.5 - 1).argmax(1) == labels
    assert right.float().mean() > 0.9 and E.E0(images[:9] / 127.5 - 1).min() >= 0
    paths = [runs[stackedgan] / f"ckpt_000{i}.pt" for i in (1, 2)]
    paths.append(train(stackedgan, tmp_path, "--seed", 5) / "ckpt.pt")
    first, second, third = (load(path)["E"] for path in paths)
    assert same(first, second) and same(first, third)


def test_phases_of_stackedgan(train, tmp_path, monkeypatch):
    """G0 gets the features of the real images for one epoch, and then those that G1 makes."""
    calls, step = [], stackedgan.train_discriminator
    monkeypatch.setattr(stackedgan, "train_discriminator",
                        lambda *args, **kwargs: calls.append(args[3:]) or step(*args, **kwargs))
    E = stackedgan.Encoder((1, 8, 8), 4, 2).eval()
    E.load_state_dict(load(train(stackedgan, tmp_path) / "ckpt.pt")["E"])
    for i, ((h1, y), (x, condition)) in enumerate(zip(calls[::2], calls[1::2])):
        torch.testing.assert_close(E.E0(x), h1)         # D1's real data in both phases
        assert condition.min() >= 0 and len(condition.unique(dim=0)) == len(y) == 8
        assert torch.equal(h1, condition) == (i < 4)


def test_stackedgan_refuses(runs, train, tmp_path, capsys):
    assert "one class" in stops(capsys, train, stackedgan, tmp_path, "--classes", "cat")
    for name in "ab":
        write_images(tmp_path / "new" / name)
    flags = "--resume", runs[stackedgan] / "ckpt.pt", "--data", tmp_path / "new"
    assert "['a', 'b']" in stops(capsys, run, stackedgan, *flags, "--epochs", 3, "--out", tmp_path)
    for label in "2", "bird":
        flags = "--sample", runs[stackedgan] / "ckpt.pt", "--label", label
        assert "there are cat, dog" in stops(capsys, run, stackedgan, *flags)


@pytest.mark.parametrize("vary", (None, "z1", "z0"))
def test_samples_of_stackedgan(runs, tmp_path, vary):
    def fix(args):
        for i in {"z1": [2], "z0": [1]}.get(vary, []):
            args[i] = args[i][:1].expand_as(args[i])

    path, flags = runs[stackedgan] / "ckpt.pt", ["--vary", vary] if vary else []
    run(stackedgan, "--sample", path, "--num", "5", "--out", tmp_path / "many", *flags)
    for i, image in enumerate(expected_samples(stackedgan, load(path), 5, change=fix)):
        name = "cat" if i < 3 else "dog"
        assert np.array_equal(pixels(tmp_path / f"many/{name}_{i:05}.png"), image)
    run(stackedgan, "--sample", path, "--num", 5, "--out", tmp_path / "grid.png")
    assert pixels(tmp_path / "grid.png")[12:20, 22:30].any()    # two whole rows of three
    for label in "1", "dog":
        run(stackedgan, "--sample", path, "--label", label, "--num", 3, "--out", tmp_path / label)
        assert {*os.listdir(tmp_path / label)} == {f"dog_0000{i}.png" for i in range(3)}


def test_samples_of_stackedgan_take_a_larger_z1():
    G1, G0 = mock.Mock(side_effect=lambda y, z1: z1), mock.Mock(side_effect=lambda h1, z0: h1 - z0)
    z1, z0 = torch.randn(2, 3, 5)
    torch.testing.assert_close(stackedgan.sample(G1, G0, None, z1, z0), 1.1 * z1 - z0)


# ---- common.py and README.md ----

def test_mnist(tmp_path, monkeypatch, capsys):
    """The four .gz files of either data set are read from a folder where users may put them."""
    monkeypatch.setattr("torchvision.datasets.utils.check_integrity",   # their MD5 sums differ
                        lambda path, md5=None: os.path.isfile(path))
    images = np.random.default_rng(0).integers(0, 256, (12, 28, 28), dtype=np.uint8)
    for name, place, seven in (("mnist", "MNIST/raw", "seven"),
                               ("fashion-mnist", "FashionMNIST/raw", "Sneaker")):
        (tmp_path / place).mkdir(parents=True)
        for part, n in ("train", 12), ("t10k", 6):
            for kind, array in ("images-idx3", images[:n]), ("labels-idx1", np.arange(n) % 10):
                header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
                content = gzip.compress(header + array.astype(np.uint8).tobytes())
                (tmp_path / place / f"{part}-{kind}-ubyte.gz").write_bytes(content)
        train, labels, names = common.load_images(name, tmp_path)
        assert train.dtype == torch.uint8 and np.array_equal(train, images[:, None])
        assert labels.dtype == torch.int64 and labels.tolist() == [*range(10), 0, 1]
        assert len(names) == 10 and names[7] == seven
        held_out, labels, _ = common.load_images(name, tmp_path, train=False)
        assert torch.equal(held_out, train[:6]) and labels.tolist() == [*range(6)]
        some, labels, names = common.load_images(name, tmp_path, classes=[seven, "1", "7"])
        assert torch.equal(some, train[[1, 7, 11]]) and labels.tolist() == [1, 0, 1]
    large, *_ = common.load_images("mnist", tmp_path, image_size=56, channels=3)
    assert large.shape == (12, 3, 56, 56) and torch.equal(large[:, 0], large[:, 2])
    assert (F.avg_pool2d(large[:, :1].float(), 2) - train).abs().mean() < 30
    assert common.default_data(tmp_path) == "mnist" and capsys.readouterr().out == ""


def test_cifar10(tmp_path, monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    dataset = mock.Mock(data=images, targets=[0, 7, 1, 7], classes=[*"abcdefghij"])
    monkeypatch.setitem(common.DOWNLOADS, "cifar10", (lambda *args, **kwargs: dataset, ""))
    read, labels, _ = common.load_images("cifar10", tmp_path)
    assert np.array_equal(read.permute(0, 2, 3, 1), images) and labels.tolist() == [0, 7, 1, 7]
    grey, _, names = common.load_images("cifar10", tmp_path, classes=["h"], channels=1)
    assert grey.shape == (2, 1, 32, 32) and names == ["h"]


def test_no_network(tmp_path, monkeypatch, capsys):
    """A data set asked for by name is never replaced; the default is, and a line says so."""
    monkeypatch.setattr("urllib.request.urlopen", mock.Mock(side_effect=OSError("no route")))
    for name, place in ("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST"), ("cifar10", "cifar"):
        message = f"--data {name}.*{tmp_path / place}.*--data strokes"
        with pytest.raises(OSError, match=message) as error:
            common.load_images(name, tmp_path)
        assert "\n" not in str(error.value)
    assert common.default_data(tmp_path) == "strokes" and capsys.readouterr().err.count("\n") == 1


def test_classes_and_split_of_a_folder(tmp_path, capsys):
    """Every image is in one of the two parts, and the same ones are always held back."""
    folder, names = tmp_path / "images", ["0.25", "0.5", "2", "10", "dog 2", "dog 10"]
    for i, name in enumerate(names):
        write_images(folder / name / "deeper", 10, seed=i)
    every = [[*map(pixels, sorted((folder / name / "deeper").iterdir()))] for name in names]
    images, labels, listed = common.load_images(str(folder), tmp_path)
    held_out, held_labels, _ = common.load_images(folder, tmp_path, train=False)
    assert capsys.readouterr().err.count("classes: 0 = 0.25, 1 = 0.5, 2 = 2, 3 = 10, ") == 1
    assert listed == names and labels.tolist() == [i // 9 for i in range(54)]
    assert np.array_equal(held_out[:, 0], [group[7] for group in every])
    assert held_labels.tolist() == [*range(6)]
    for label, group in enumerate(every):
        seen = {x.numpy().tobytes() for x in images[labels == label]}
        assert seen == {x.tobytes() for i, x in enumerate(group) if i != 7}
    some, labels, _ = common.load_images(folder, tmp_path, classes=["dog 10", "4"])     # 4 is dog 2
    assert torch.equal(some, images[36:]) and labels.tolist() == [1] * 9 + [0] * 9
    some, *_ = common.load_images(folder, tmp_path, classes=["10"])     # the name, not the number
    assert torch.equal(some, images[27:36])


@pytest.mark.parametrize("mode, colour, name, expected", (
    ("L", 77, "png.cur", [77]), ("1", 1, "x.png", [255]), ("L", 77, "x.jfif", [77]),
    ("LA", (77, 255), "x.png", [77]), ("LA", (77, 0), "x.png", [255]),
    ("LA", (0, 51), "x.png", [204]), ("RGBA", (*RGB, 255), "x.tga", RGB),
    ("RGB", RGB, "x.PNG", RGB), ("P", RGB, "x.png", RGB), ("P", RGB, "clear.png", [255] * 3),
    ("L", 77, "x.gif", [77] * 3), ("RGBA", (*RGB, 0), "x.webp", [255] * 3),
    ("RGB", RGB, "clear.png", [255] * 3), ("CMYK", (55, 155, 205, 0), "x.tif", RGB)))
def test_modes_of_images(tmp_path, mode, colour, name, expected):
    """Pixels that are transparent show white."""
    (tmp_path / "images").mkdir()
    image = Image.new(mode, (8, 8), colour)
    clear = {"transparency": 0 if mode == "P" else colour} if name == "clear.png" else {}
    kind = "PNG" if name == "png.cur" else None         # Pillow only reads .cur, and looks inside
    for i in "abc":                     # one of the three is held back
        image.save(tmp_path / "images" / (i + name), kind, **clear)
    images, *_ = common.load_images(tmp_path / "images", tmp_path)
    assert images.shape == (2, len(expected), 8, 8)
    assert images.amin((0, 2, 3)).tolist() == images.amax((0, 2, 3)).tolist() == [*expected]
    grey, *_ = common.load_images(tmp_path / "images", tmp_path, channels=1)
    assert (grey == (124 if expected is RGB else expected[0])).all()


@pytest.mark.parametrize("files, expected", (       # the values of files, and the pixels they give
    ({"u1": [3, 9, 200]}, [3, 9, 200]), ({"<u2": [0, 100, 256, 1023]}, [0, 25, 64, 255]),
    ({">u2": [0, 255, 256]}, [0, 254, 255]), ({"<i4": [-1024, 0, 3071]}, [0, 64, 255]),
    ({"<f4": [-1, math.nan, math.inf, 1]}, [0, 128, 128, 255]), ({"<u2": [0, 0, 0]}, [0] * 3),
    ({"u1": [100, 255], "<u2": [100, 200]}, [100, 100, 200, 255]),
    ({"u1": [100], "<u2": [25700, 65000]}, [100, 100, 253]),
    ({"u1": [100], "<f4": [0.5, 1]}, [100, 128, 255])))
def test_pixels_of_16_and_32_bits(tmp_path, capsys, files, expected):
    """The largest value of the whole folder becomes white. Pixels of 8 bits stay as they are."""
    folder = tmp_path / "images"
    folder.mkdir()
    arrays = [np.full((8, 8), value, dtype) for dtype in files for value in files[dtype]]
    for i, array in enumerate(arrays):
        Image.fromarray(array).save(folder / f"{i}.tif")
    parts = [common.load_images(folder, tmp_path, train=part)[0] for part in (True, False, True)]
    assert sorted(torch.cat(parts[:2])[:, 0, 0, 0].tolist()) == expected
    assert capsys.readouterr().err.count(" are scaled ") == (0 if [*files] == ["u1"] else 2)


def test_sizes_and_orientation_of_images(tmp_path):
    """Oblong images are cropped to their centre; mixed or oblong sizes become 64 by 64."""
    folder, bright, exif = tmp_path / "images", np.zeros((20, 60), np.uint8), Image.Exif()
    folder.mkdir()
    bright[:10, 20:40], exif[0x0112] = 255, 3       # 3: the camera was held upside down
    for i in "abc":
        Image.fromarray(bright).save(folder / f"{i}.jpg", exif=exif)
    for side, flags in (64, {}), (16, {"image_size": 16}):
        images, *_ = common.load_images(folder, tmp_path, **flags)
        assert images.shape == (2, 1, side, side)
        assert images[..., :side // 3, :].max() < 50 < 200 < images[..., -side // 3:, 1:-1].min()
    write_images(folder, 5, "RGB", (10, 10))
    assert common.load_images(folder, tmp_path)[0].shape == (7, 3, 64, 64)


def test_unreadable_and_hidden_files(tmp_path, capsys):
    """The first are named and left out, and the other images keep their labels."""
    folder = tmp_path / "images"
    for name in "abc":
        write_images(folder / name, 30)
    for path in [*folder.glob("a/*[13579].png"), *folder.glob("b/*"), folder / "a/notes.txt"]:
        path.write_bytes(path.read_bytes()[:60] if path.name < "015" else b"")
    (folder / "a/folder.png").mkdir()
    write_images(folder / ".thumbnails", 3), write_images(folder / "c/.small", 3)
    images, labels, names = common.load_images(folder, tmp_path)
    error = capsys.readouterr().err
    assert labels.bincount().tolist() == [13, 27] and names == ["a", "c"]   # nothing is left of b
    good = {pixels(path).tobytes() for path in folder.glob("a/*[02468].png")}
    assert {x.numpy().tobytes() for x in images[labels == 0]} < good
    names = re.findall(r"/a/\d+.png( \(.*(?:truncated|identify).*?\))?", error)
    assert len(names) == 10 and names[0] and not any(names[1:]) and "…" in error
    assert "left out b" in error and "left out 1 other files: " in error and "notes.txt" in error
    assert common.load_images(folder, tmp_path, train=False, classes=["1"])[2] == ["c"]


def test_pages_and_parts(tmp_path, capsys):
    """Of an animation the first frame is used, and folders of a split are not silently classes."""
    frames = [Image.new("L", (8, 8), value) for value in (50, 200)]
    for name in "Test", "Train", "extra":
        (tmp_path / name).mkdir()
        for i in range(2):
            frames[0].save(tmp_path / name / f"{i}.gif", save_all=True, append_images=frames[1:])
    assert (common.load_images(tmp_path, tmp_path / ".data")[0] == 50).all()
    error = capsys.readouterr().err
    assert f"--data {tmp_path / 'Train'}" in error and "page or frame is used: 3" in error


def test_cache_of_a_folder(tmp_path, monkeypatch):
    first, *_ = common.load_images(folder := write_images(tmp_path / "images", 10), tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("PIL.ImageOps.fit", None)         # makes decoding impossible
        assert torch.equal(common.load_images(folder, tmp_path)[0], first)
    write_images(folder, 10, seed=1)
    second, *_ = common.load_images(folder, tmp_path)
    assert not torch.equal(second, first)
    for cache in (tmp_path / "cache").iterdir():
        cache.write_bytes(b"damaged")
    assert torch.equal(common.load_images(folder, tmp_path)[0], second)


def test_folders_that_are_refused(tmp_path):
    classes = write_images(tmp_path / "classes/cat", 2).parent
    write_images(classes / "dog", 1)
    mixed = write_images(write_images(tmp_path / "mixed", 2) / "cat", 2).parent
    (bad := tmp_path / "bad").mkdir()
    (bad / "000.png").write_bytes(b"bad")
    for folder, flags, message in (
        ("nowhere", {}, "--data nowhere: .* neither a folder of images nor one of mnist.*strokes"),
        (bad, {}, "bad: .*neither a folder of images.*cannot identify image"),
        (mixed, {}, "mixed: there are images beside its sub-folders"),
        (mixed / "cat", {"classes": ["1"]}, r"--classes 1: not one of \(no sub-folders\)"),
        (classes, {"classes": ["cat", "2"]}, "--classes 2: not one of cat, dog"),
        (classes, {"classes": ["dog"], "train": False}, "too few"),
        (bad / "000.png", {}, "000.png: .* neither"), (classes, {"classes": ["dog"]}, "too few"),
    ):
        with pytest.raises(OSError, match=message) as error:
            common.load_images(folder, tmp_path, **flags)
        assert "\n" not in str(error.value)


def test_strokes(monkeypatch):
    """Each digit shows the slant and the pen that come with it, and the split is fixed."""
    images, labels, *truths = common.strokes(20_000)
    for truth, low, high in zip(truths, (-0.2, 1.4), (0.6, 3.6)):
        assert low <= truth.min() < low + 0.01 and high - 0.01 < truth.max() <= high
    for truth, seen in zip(truths, quality.style(images[:2000])):       # slant, and ink
        assert quality.within(labels[:2000], truth[:2000], seen) > 0.7
    train, train_labels, _ = common.load_images("strokes")
    assert torch.equal(train, images[:18_000]) and torch.equal(train_labels, labels[:18_000])
    monkeypatch.setattr(common, "strokes", lambda n: (images, labels, *truths))     # saves time
    held_out, *_ = common.load_images("strokes", train=False, classes=["three"])
    assert torch.equal(held_out, images[18_000:][labels[18_000:] == 3])


def test_batches_and_spread():
    images, labels = torch.arange(100, dtype=torch.uint8).view(100, 1, 1, 1) * 2, torch.arange(100)
    epochs = [[*common.batches(images, 30, labels)] for _ in range(30)]
    for epoch in epochs:
        assert [real.shape for real, _ in epoch] == [(30, 1, 1, 1)] * 3         # 10 are left out
        real, y = (torch.cat(parts) for parts in zip(*epoch))
        assert torch.equal(real, images[y] / 127.5 - 1) and len(y.unique()) == 90
        assert len(y.diff().unique()) > 20      # shuffled, not only shifted
    assert len(torch.cat([y for epoch in epochs for _, y in epoch]).unique()) == 100
    [batch] = common.batches(images[:7], 30)    # fewer images than a batch
    assert torch.equal(batch.flatten().sort().values, images[:7].flatten() / 127.5 - 1)
    assert common.spread(labels[:99], 5).tolist() == [0, 24, 49, 74, 98]
    assert torch.equal(common.spread(images, 500), images)


@pytest.mark.parametrize("channels", (1, 3))
def test_pictures(tmp_path, capsys, channels):
    images = torch.rand(5, channels, 6, 6) * 3 - 1.5        # values beyond [-1, 1] are clipped
    single = ((images.clamp(-1, 1) + 1) * 127.5).round().permute(0, 2, 3, 1).squeeze(-1).numpy()
    common.save_images(images, tmp_path / "new/grid.png", columns=3)
    common.save_images(images, tmp_path / "folder", labels=torch.arange(5) + 6)
    grid, paths = pixels(tmp_path / "new/grid.png"), sorted((tmp_path / "folder").iterdir())
    assert grid.shape[:2] == (18, 26) and grid.sum() == single.sum()    # 2 black pixels between
    for i, image in enumerate(single):
        y, x = 2 + 8 * (i // 3), 2 + 8 * (i % 3)
        assert np.array_equal(grid[y:y + 6, x:x + 6], image)
        assert np.array_equal(pixels(tmp_path / f"folder/{i + 6}_{i:05}.png"), image)
    with pytest.raises(OSError, match="folder: .*already has files"):
        common.save_images(images, tmp_path / "folder")
    common.save_images(images, tmp_path / "v1.5", labels=["T-shirt/top"] * 5)   # a folder, too
    assert (tmp_path / "v1.5/T-shirt-top_00004.png").exists()
    common.save_images(images, tmp_path / "grid.JPG")
    assert Image.open(tmp_path / "grid.JPG").format == "JPEG"
    assert capsys.readouterr().out.count("wrote 5 images to") == 4
    common.save_gif(paths[:3], tmp_path / "x.gif")
    gif = Image.open(tmp_path / "x.gif")
    assert (gif.n_frames, gif.info["loop"], gif.info["duration"]) == (3, 0, 250)
    gif.seek(2)
    assert gif.info["duration"] == 2000


README, RESULTS = (Path(__file__).parent.joinpath(name).read_text()
                   for name in ("README.md", "benchmarks/README.md"))


def test_commands_of_the_readmes(train, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for script in SCRIPTS:              # what `python gan_mlp.py` and so on do
        train(script, f"out/{script.SCRIPT}", "--epochs", 1)
    commands = re.findall(r"(?:^ +|`)python ([\w/]+)\.py ([^`#\n]*)", README + RESULTS, re.M)
    assert len(commands) > 8
    data = ["--data", train.folder]
    tiny = {"benchmarks/speed": ["--quick"], "extras/plot": [],
            "benchmarks/quality": [*data, "--num", "200", "--classifier-epochs", "1"]}
    for name, flags in dict.fromkeys(commands):         # each once
        flags, _, file = flags.replace("FOLDER", str(train.folder)).partition(">")
        flags, module = flags.split(), importlib.import_module(name.replace("/", "."))
        if "--resume" in flags or "--sample" in flags:
            flags += ["--epochs", "2", "--num", "4", *["--label", "1"] * ("--label" in flags)]
        elif "--help" in flags:
            flags = ["--sample", "out/gan_mlp/ckpt.pt"]
        else:
            classes = ["--classes", "cat"] * ("--classes" in flags)
            flags += tiny[name] if name in tiny else [*data, "--epochs", "1", *FLAGS[module],
                                                      *classes]
        capsys.readouterr()
        run(module, *flags)
        if file:
            Path(file.strip()).write_text(capsys.readouterr().out)
