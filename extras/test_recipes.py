"""Tests of the recipes: each applies to its script, trains, and does what it says."""

import importlib.util
import inspect
import math
import re
import shlex
import shutil
import subprocess
import sys
import types

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from PIL import Image
from torch.testing import assert_close

import common
from extras import toy
from test_extras import HERE, README, digits, load, train

RECIPES = {path.stem: path for path in sorted((HERE / "recipes").glob("*.diff"))}


def script_of(recipe):
    return re.search(r"^--- a/(\w+)\.py$", RECIPES[recipe].read_text(), re.M)[1]


@pytest.fixture(scope="module")
def patched(tmp_path_factory):
    """patched(recipe, script=None) is the module of a script with a recipe."""
    def call(recipe, script=None):
        key = recipe, script
        if key not in modules:
            folder = tmp_path_factory.mktemp("patched")
            name = f"{script or script_of(recipe)}.py"
            shutil.copy(HERE.parent / name, folder)
            command = ["patch", "-s", name] if script else ["git", "apply"]
            subprocess.run([*command, RECIPES[recipe]], cwd=folder, check=True, timeout=60)
            spec = importlib.util.spec_from_file_location(f"{recipe}_{name[:-3]}", folder / name)
            modules[key] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(modules[key])
        return modules[key]
    modules = {}
    return call


@pytest.fixture
def board(monkeypatch):
    """What TensorBoard's SummaryWriter gets: {name: (value, step)}. A stand-in writes it."""
    class Writer:
        def __init__(self, folder, purge_step):
            values["from"] = purge_step

        def add(self, name, value, step):
            values[name] = value, step

        def flush(self):
            values["flushed"] = True
        add_scalar = add_histogram = add
    values = {}
    stand_in = types.SimpleNamespace(SummaryWriter=Writer)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", stand_in)
    return values


@pytest.mark.parametrize("recipe", RECIPES)
def test_trains_and_resumes(patched, digits, tmp_path, board, recipe):
    """A resumed run ends in the same weights, bit for bit, as an uninterrupted one."""
    script = patched(recipe)
    train(script, digits, tmp_path / "run", "--keep")
    old, new = tmp_path / "run/ckpt_000001.pt", tmp_path / "resumed"
    train(script, digits, new, "--resume", old)
    assert_close(load(tmp_path / "run"), load(new), rtol=0, atol=0)
    script.main(["--sample", str(old), "--num", "8", "--out", str(tmp_path / "sample.png")])
    assert Image.open(tmp_path / "sample.png").size == (82, 12)
    if recipe == "logger":
        assert board["from"] == load(new)["rows"][8]["step"] + 1        # an epoch has nine lines


def small(script):
    return {"stackedgan": ["--encoder-steps", 3], "wgan_clip": ["--n-critic", 2],
            "wgan_gp": ["--n-critic", 2]}.get(script, [])


@pytest.mark.parametrize("script", (None, "gan_mlp", "dcgan", "wgan_gp", "infogan", "stackedgan"))
def test_logger(patched, digits, tmp_path, board, script):
    """TensorBoard gets every column of the log, and the weights of each D."""
    module = patched("logger", script)
    train(module, digits, tmp_path, *small(module.SCRIPT))
    ckpt = load(tmp_path)
    row = {k: (x, row["step"]) for row in ckpt["rows"] for k, x in row.items()
           if k not in ("epoch", "step")}       # the last value of each, as loss_G is not in all
    weights = {f"weights of {name}": (nn.utils.parameters_to_vector(
        [w for key, w in ckpt[name].items() if "running" not in key and "num_b" not in key]), 18)
        for name in ckpt if name[0] == "D"}
    assert_close(board, {"from": 1, "flushed": True, **row, **weights}, rtol=0, atol=0)


@pytest.mark.parametrize("script", (None, "gan_mlp", "wgan_clip", "wgan_gp", "infogan",
                                    "stackedgan"))
def test_lr_decay(patched, digits, tmp_path, script):
    """All rates are full in the first half, and then fall."""
    module, tmp = patched("lr_decay", script), tmp_path
    train(module, digits, tmp, "--epochs", 4, "--keep", *small(module.SCRIPT))
    for opt in (name for name in load(tmp) if "opt" in name):
        first, *others = (load(tmp, f"ckpt_{epoch:06}.pt")[opt]["param_groups"][0]["lr"]
                          for epoch in range(1, 5))
        flag = opt.lower().replace("opt", "lr") if script == "stackedgan" else {
            "opt_G": "lr", "opt_D": "lr_d"}[opt]
        assert first == vars(module.get_args([]))[flag]
        assert others == [first, first, first / 2]


@pytest.mark.parametrize("recipe", RECIPES)
def test_head_and_table(patched, recipe):
    """The script takes the flags in the head, and README's row has the file, script and lines."""
    head, diff = re.split(r"^(?=--- a/)", RECIPES[recipe].read_text(), flags=re.M)
    assert f"git apply extras/recipes/{recipe}.diff" in head
    commands = re.findall(r"^    python (\w+)\.py (.*?)(?: +#.*)?$", head, re.M)
    assert commands
    for name, flags in commands:
        assert name == script_of(recipe) and patched(recipe).get_args(shlex.split(flags))
    added, removed = (len(re.findall(rf"^\{sign}(?![+-]{{2}} )", diff, re.M)) for sign in "+-")
    row = re.search(rf"^\| \[{recipe}\].*$", README, re.M)[0]
    assert f"| +{added} −{removed} |" in row and f"(extras/recipes/{recipe}.diff)" in row
    assert row.split(" | ")[1].split(", ")[0] == script_of(recipe)


def test_losses(patched):
    """By hand, or by PyTorch's own losses, for two real images and two fakes."""
    real, fake = torch.tensor([2.0, -1.0]), torch.tensor([-3.0, 0.5])
    loss = patched("hinge")
    assert_close(loss.discriminator_loss(real, fake), (torch.tensor(1.0), torch.tensor(0.75)))
    assert_close(loss.generator_loss(fake), torch.tensor(1.25))
    loss = patched("lsgan")
    assert_close(loss.discriminator_loss(real, fake), (torch.tensor(2.5), torch.tensor(4.625)))
    assert_close(loss.generator_loss(fake), torch.tensor(8.125))
    loss = patched("label_smoothing").discriminator_loss(real, fake)
    bce = F.binary_cross_entropy_with_logits
    assert_close(loss, (bce(real, torch.full((2,), 0.9)), bce(fake, torch.zeros(2))))
    r3gan = patched("r3gan")
    pairs = torch.tensor([5.0, -1.5])
    assert_close(r3gan.discriminator_loss(real, fake), bce(pairs, torch.ones(2)))
    assert_close(r3gan.generator_loss(real, fake), bce(-pairs, torch.ones(2)))
    w = torch.tensor([3.0, 4.0])        # the gradient of x.square() @ w at x is 2 x w
    assert_close(r3gan.penalty(lambda x: x.square() @ w, torch.eye(2)), torch.tensor(50.0))


def call(function, **values):
    """Call a function or class with those of `values` that it takes."""
    return function(**{name: values[name] for name in inspect.signature(function).parameters})


@pytest.mark.parametrize("recipe", [name for name in RECIPES if script_of(name) == "dcgan"])
def test_steps_go_the_right_way(patched, recipe):
    """A step of G raises the scores of fakes, and a step of D widens the gap to real images."""
    script = patched(recipe)
    torch.manual_seed(0)
    y = F.one_hot(torch.arange(32) % 3, 3)
    values = {"z_dim": 4, "shape": (1, 8, 8), "width": 4, "upsample": False, "K": 3, "n": 32,
              "y": y, "gamma": 0.1, "real": torch.rand(32, 1, 8, 8)}
    G, D = call(script.Generator, **values), call(script.Discriminator, **values)
    z = torch.randn(32, 4)

    def scores():
        with torch.no_grad():
            fake = G(torch.cat([z, y], 1) if recipe == "conditional" else z)
            return [D(x, y) if recipe == "conditional" else D(x) for x in (values["real"], fake)]

    for player, net, function in (("G", G, script.train_generator),
                                  ("D", D, script.train_discriminator)):
        opt = torch.optim.Adam(net.parameters(), 3e-3, betas=(0.5, 0.9))
        real, fake = scores()
        for _ in range(20):
            call(function, G=G, D=D, opt=opt, **values)
        new_real, new_fake = scores()
        if player == "G":
            assert new_fake.mean() > fake.mean()
        else:
            assert (new_real - new_fake).mean() > (real - fake).mean()
    if recipe in ("hinge", "lsgan"):
        D.forward = lambda x: torch.full([len(x)], 3.0, requires_grad=True)
        stats = call(script.train_discriminator, G=G, D=D, opt=opt, **values)
        assert (stats["D(x)"], stats["D(G(z))"]) == (3, 3)


def test_penalties_of_r3gan_count(patched):
    """The gradient of D(x) = w x^2 is 4 w at a real x = 2 and 2 w at a fake G(z) = 1."""
    script = patched("r3gan")
    G, D = script.Generator(4, (1, 1, 1), 4, False), nn.Linear(1, 1, bias=False)
    G.forward = lambda z: torch.ones(2, 1, 1, 1)
    D.forward = lambda x: x.flatten().square() * D.weight.squeeze()
    slopes = []
    for gamma in 0.0, 3.0:
        nn.init.constant_(D.weight, 0.5)
        script.train_discriminator(G, D, torch.optim.SGD(D.parameters(), 1.0),
                                   torch.full((2, 1, 1, 1), 2.0), gamma)
        slopes.append(0.5 - D.weight.item())
    # gamma / 2 times the derivative of (4 w)^2 + (2 w)^2
    assert math.isclose(slopes[1] - slopes[0], 3.0 / 2 * (32 + 8) * 0.5, rel_tol=1e-5)


def test_conditional(patched, tmp_path, monkeypatch):
    """G and D get the class of the image, in training, in the grids and in samples."""
    script = patched("conditional")
    for i, name in enumerate(("black", "grey", "white")):       # so an image shows its class
        common.save_images(torch.full((12, 1, 8, 8), i - 1.0), tmp_path / "data" / name)
    seen, step = [], script.train_discriminator

    def spy(G, D, opt, real, y):
        assert real.mean((1, 2, 3)).round().add(1).tolist() == y.argmax(1).tolist()
        classes = []
        hooks = [net.register_forward_hook(lambda net, inputs, output: classes.append(
            inputs[-1][:, -3:].tolist())) for net in (G, D)]
        stats = step(G, D, opt, real, y)
        stats |= script.train_generator(G, D, opt, y)
        assert classes == 5 * [y.tolist()]      # G, D(x), D(G(z)); G, D(G(z))
        for hook in hooks:
            hook.remove()
        return stats

    monkeypatch.setattr(script, "train_discriminator", spy)
    train(script, tmp_path / "data", tmp_path / "run")
    z = load(tmp_path / "run")["z"]
    assert z.shape == (24, 103) and z[:, 100:].argmax(1).tolist() == sorted(8 * [0, 1, 2])
    assert Image.open(tmp_path / "run/samples/000002.png").size == (82, 32)     # three rows
    draw = script.sample
    monkeypatch.setattr(script, "sample", lambda G, z: seen.append(z) or draw(G, z))
    names = sorted(("black", "grey", "white"))
    for label, classes in ([], [0, 1, 2]), (["--label", "1"], [1]), (["--label", "2", "0"], [2, 0]):
        folder = tmp_path / f"many{len(label)}"
        script.main(["--sample", str(tmp_path / "run/ckpt.pt"), "--num", "20", "--walk", "--out",
                     str(folder), *label])
        y = [classes[i // 8 % len(classes)] for i in range(20)]
        assert seen[-1][:, 100:].argmax(1).tolist() == y
        assert {path.name for path in folder.iterdir()} == {
            f"{names[k]}_{i:05}.png" for i, k in enumerate(y)}
    script.main(["--sample", str(tmp_path / "run/ckpt.pt"), "--num", "20", "--walk", "--z-scale",
                 "2.3", "--label", "2", "0"])
    assert_close(seen[-1][:, :100], 2 * seen[-2][:, :100])      # the default is 1.15
    assert torch.equal(seen[-1][:, 100:], seen[-2][:, 100:])


@pytest.mark.parametrize("name", (None, "wgan_gp"))
def test_augment(patched, name):
    """Each image is shifted by itself, by an eighth of its side at most, and in training only."""
    script = patched("augment", name)
    torch.manual_seed(0)
    x = torch.ones(500, 3, 16, 16)
    x[:, :, 8, 8] = 9.0
    y = script.Augment()(x)
    light = y.amin((1, 2, 3), keepdim=True) - 1         # the same for a whole image, also its edges
    assert -0.5 <= light.min() < -0.45 and 0.45 < light.max() <= 0.5
    assert ((y - light - 1).abs() < 1e-5).sum((1, 2, 3)).eq(3 * 255).all()
    assert {(int(i) // 16 - 8, int(i) % 16 - 8) for i in y[:, 0].flatten(1).argmax(1)} == {
        (i, j) for i in range(-2, 3) for j in range(-2, 3)}
    D = (script.Critic if name else script.Discriminator)((3, 16, 16), 4)
    assert len({D(x[:2])[0].item() for _ in range(5)}) == 5
    assert len({D.eval()(x[:2])[0].item() for _ in range(5)}) == 1
    x.requires_grad_()
    grad, = torch.autograd.grad(D.train()(x).sum(), x, create_graph=True)
    grad.square().sum().backward()              # a gradient penalty needs this second derivative
    assert grad.any() and D.net[1].weight.grad.any()


def test_augment_combines(tmp_path):
    """It applies on top of the labels and of each loss, as photographs want."""
    for name in "conditional", "hinge", "lsgan", "r3gan", "label_smoothing", "own_data":
        (tmp_path / name).mkdir()
        shutil.copy(HERE.parent / "dcgan.py", tmp_path / name)
        subprocess.run(["git", "apply", RECIPES[name], RECIPES["augment"]], cwd=tmp_path / name,
                       check=True, timeout=60)


def test_l1(patched):
    """The term is 0.05 times the mean distance of each fake from its real image."""
    script = patched("l1")
    G, D, real = nn.Linear(2, 1), nn.Flatten(0), torch.tensor([[-1.0], [0.5], [1.0]])
    G.z_dim = 2
    nn.init.zeros_(G.weight)
    nn.init.constant_(G.bias, 0.25)     # all fakes are 0.25, and so are their scores
    opt = torch.optim.SGD(G.parameters(), 1.0)
    loss = script.train_generator(G, D, opt, real, "ns")["loss_G"]
    assert_close(loss, -F.logsigmoid(torch.tensor(0.25)) + 0.05 * (1.25 + 0.25 + 0.75) / 3)
    # The slope of the first term is -sigmoid(-0.25). Of the three images, two are larger than 0.25.
    slope = -torch.sigmoid(torch.tensor(-0.25)) - 0.05 / 3
    assert_close(G.bias.data, 0.25 - slope.view(1))


@pytest.mark.parametrize("name", (None, "gan_mlp"))
def test_own_data(patched, tmp_path, monkeypatch, name):
    """Images of any size become squares from -1 to 1, also if they are fewer than a batch."""
    script, seen = patched("own_data", name), []
    (tmp_path / "data/black").mkdir(parents=True)
    for i in range(3):
        Image.new("L", (10 + i, 20), 0).save(tmp_path / f"data/black/{i}.png")
    step = script.train_discriminator
    monkeypatch.setattr(script, "train_discriminator",
                        lambda G, D, opt, real: seen.append(real) or step(G, D, opt, real))
    train(script, tmp_path / "data", tmp_path / "run")
    assert len(seen) == 2 and all(torch.equal(x, -torch.ones(3, 3, 8, 8)) for x in seen)


@pytest.mark.parametrize("name", (None, "gan_mlp", "wgan_clip", "wgan_gp"))
def test_export(patched, tmp_path, name):
    """The file gives the images of the script, for another number of them."""
    script = patched("export", name)
    args = script.get_args(["--width", "4", "--export", str(tmp_path / "G.pt2")])
    values = {**vars(args), "shape": (1, 8, 8)}
    torch.manual_seed(0)
    G = call(script.Generator, **values).eval()
    script.sample_checkpoint(args, {"shape": (1, 8, 8), "G_ema": G.state_dict()})
    z = torch.randn(5, args.z_dim)
    assert_close(torch.export.load(tmp_path / "G.pt2").module()(z), G(z))
    assert [*tmp_path.iterdir()] == [tmp_path / "G.pt2"]


def test_toy(tmp_path):
    """Four pictures are drawn. In distance.png, the JSD is log 2 except at 0, and W is |theta|."""
    toy.main(steps=15, out=tmp_path / "toy")
    names = [path.name for path in sorted(tmp_path.rglob("*.png"))]
    assert names == ["critics.png", "distance.png", "game.png", "layers.png"]
    torch.manual_seed(0)
    toy.distance(steps=200)
    jsd, W = (torch.as_tensor(axis.lines[-1].get_ydata()) for axis in toy.pyplot.gcf().axes)
    toy.pyplot.close()
    assert_close(jsd, math.log(2) * (torch.linspace(-1, 1, 9) != 0).double(), rtol=0, atol=0.1)
    assert_close(W[[0, 4, 8]], torch.tensor([1.0, 0.0, 1.0]).double(), rtol=0, atol=0.1)
