"""Tests of the recipes: each applies to its script, trains, and does what it says."""

import importlib.util
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
    """A list of the names that TensorBoard's SummaryWriter gets. A stand-in writes it."""
    class Writer:
        def __init__(self, folder, purge_step):
            names.clear()

        def add(self, name, values, step):
            assert step > 0 and (not hasattr(values, "__len__") or len(values) > 10)
            names.append(name)

        def flush(self):
            pass
        add_scalar = add_histogram = add
    names = []
    stand_in = types.SimpleNamespace(SummaryWriter=Writer)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", stand_in)
    return names


@pytest.mark.parametrize("recipe", RECIPES)
def test_trains_and_resumes(patched, digits, tmp_path, board, recipe):
    """A resumed run ends in the same weights, bit for bit, as an uninterrupted one."""
    script = patched(recipe)
    train(script, digits, tmp_path / "run", "--epochs", 4, "--keep")
    old, new = tmp_path / "run/ckpt_000002.pt", tmp_path / "resumed"
    train(script, digits, new, "--epochs", 4, "--resume", old)
    assert_close(load(tmp_path / "run"), load(new), rtol=0, atol=0)
    script.main(["--sample", str(old), "--num", "8", "--out", str(tmp_path / "sample.png")])
    assert Image.open(tmp_path / "sample.png").size == (82, 12)


@pytest.mark.parametrize("recipe, other", [
    *(("logger", name) for name in ("gan_mlp", "dcgan", "wgan_gp", "infogan", "stackedgan")),
    *(("lr_decay", name) for name in ("dcgan", "infogan", "stackedgan")),
    *(("export", name) for name in ("gan_mlp", "wgan_clip", "wgan_gp")), ("own_data", "gan_mlp")])
def test_other_scripts(patched, digits, tmp_path, board, recipe, other):
    """What logger and lr_decay do, and that four recipes apply to more scripts than their own."""
    script = patched(recipe, other)
    few = {"stackedgan": ["--encoder-steps", 3], "wgan_gp": ["--n-critic", 2]}.get(other, [])
    train(script, digits, tmp_path / "run", "--epochs", 4, *few)
    ckpt = load(tmp_path / "run")
    D = [name for name in ckpt if name[0] == "D"]
    if recipe == "logger":
        columns = set(ckpt["rows"][-1]) - {"epoch", "step", "minutes"}
        assert set(board) == columns | {f"weights of {name}" for name in D}
    if recipe == "lr_decay":
        args = script.get_args([])
        full = args.lr_d0 if other == "stackedgan" else args.lr_d
        last = ckpt["opt_D0" if other == "stackedgan" else "opt_D"]
        assert last["param_groups"][0]["lr"] == full / 2        # that of the last of four epochs


@pytest.mark.parametrize("recipe", RECIPES)
def test_head_and_table(patched, recipe):
    """The commands of the head work, and README knows the recipe and how long it is."""
    head, diff = re.split(r"^(?=--- a/)", RECIPES[recipe].read_text(), flags=re.M)
    assert f"git apply extras/recipes/{recipe}.diff" in head
    commands = re.findall(r"^    python (\w+)\.py (.*?)(?: +#.*)?$", head, re.M)
    assert commands
    for name, flags in commands:
        assert name == script_of(recipe) and patched(recipe).get_args(shlex.split(flags))
    added, removed = (len(re.findall(rf"^\{sign}(?![+-]{{2}} )", diff, re.M)) for sign in "+-")
    row = re.search(rf"^\| \[{recipe}\].*$", README, re.M)[0]
    assert f"| +{added} −{removed} |" in row and f"(extras/recipes/{recipe}.diff)" in row


def gradient(values, function):
    values.requires_grad_()
    return torch.autograd.grad(function(values), values)[0]


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


def test_conditional(patched, digits, tmp_path):
    """The class that G is asked for is the one whose output of D counts, and names the files."""
    script = patched("conditional")
    torch.manual_seed(0)
    G, D = script.Generator(4, (1, 8, 8), 4, False, 3), script.Discriminator((1, 8, 8), 4, 3)
    opt = torch.optim.SGD(D.parameters(), 1.0)
    before = D.net[-1].weight.clone()
    y = F.one_hot(torch.tensor([0, 2, 2, 0]), 3)
    script.train_discriminator(G, D, opt, torch.rand(4, 1, 8, 8), y)
    assert (D.net[-1].weight != before).any(1).tolist() == [True, False, True]
    seen, forward = [], G.forward
    G.forward = lambda z: seen.append(z[:, -3:]) or forward(z)
    D.forward = lambda x: x.mean((1, 2, 3))[:, None] * torch.tensor([1.0, -1.0, 2.0])
    loss = script.train_generator(G, D, torch.optim.SGD(G.parameters(), 1.0), y)["loss_G"]
    assert seen[0].tolist() == y.tolist() and loss > 0
    train(script, digits, tmp_path / "run")
    ckpt = str(tmp_path / "run/ckpt.pt")
    assert Image.open(tmp_path / "run/samples/000002.png").size == (82, 22)     # two rows
    for label, names in ([], ["0"] * 8 + ["1"] * 8), (["--label", "1"], ["1"] * 16):
        folder = tmp_path / f"many{len(label)}"
        script.main(["--sample", ckpt, "--num", "16", "--out", str(folder), *label])
        assert [path.name[0] for path in sorted(folder.iterdir())] == names


def test_few_images(patched):
    """Each image is shifted by itself, by an eighth of its side at most, and in training only."""
    script = patched("few_images")
    torch.manual_seed(0)
    x = torch.zeros(500, 1, 16, 16)
    x[:, :, 8, 8] = 9.0
    y = script.augment(x)
    places = y.flatten(1).argmax(1)
    assert {(int(i) // 16 - 8, int(i) % 16 - 8) for i in places} == {
        (i, j) for i in range(-2, 3) for j in range(-2, 3)}
    light = y[:, 0, 0, 0]
    assert -0.5 <= light.min() < -0.45 and 0.45 < light.max() <= 0.5
    assert_close(y.flatten(1).amax(1) - light, torch.full((500,), 9.0))
    D = script.Discriminator((1, 16, 16), 4)
    assert len({D(x[:2])[0].item() for _ in range(5)}) == 5
    assert len({D.eval()(x[:2])[0].item() for _ in range(5)}) == 1
    assert gradient(x, lambda x: D.train()(x).sum()).any()


def test_spectral_norm(patched):
    """The largest singular value of each layer is 1, and the initial weights are those of before."""
    D = patched("spectral_norm").Discriminator((1, 28, 28), 4)
    layers = [layer for layer in D.net if hasattr(layer, "weight")]
    assert len(layers) == 5 and not any("BatchNorm" in type(layer).__name__ for layer in D.net)
    assert all(0.01 < layer.parametrizations.weight.original.std() < 0.03 for layer in layers)
    for _ in range(100):
        D(torch.rand(2, 1, 28, 28))
    for layer in layers:
        value = torch.linalg.matrix_norm(layer.weight.flatten(1), 2)
        assert_close(value, torch.tensor(1.0), rtol=0, atol=0.02)


def test_l1(patched):
    """With a D that knows nothing, the fakes move towards the median of the images."""
    script = patched("l1")
    torch.manual_seed(0)
    G, D = script.Generator(2, (1, 1, 1), 4), nn.Sequential(nn.Flatten(), nn.Linear(1, 1))
    nn.init.zeros_(D[1].weight)
    opt = torch.optim.Adam(G.parameters(), 0.01)
    real = torch.tensor([-0.9, -0.6, 0.5, 0.5, 0.5, 0.6, 0.7]).view(7, 1, 1, 1)     # mean 0.19
    for _ in range(300):
        script.train_generator(G, D, opt, real, "ns")
    assert_close(script.sample(G, torch.randn(50, 2)).mean(), torch.tensor(0.5), rtol=0, atol=0.1)


def test_export(patched, digits, tmp_path):
    """The file gives the images of the script, for another number of them."""
    script = patched("export")
    train(script, digits, tmp_path)
    script.main(["--sample", str(tmp_path / "ckpt.pt"), "--export", str(tmp_path / "G.pt2")])
    G = script.Generator(100, (1, 8, 8), 4, False).eval()
    G.load_state_dict(load(tmp_path)["G_ema"])
    z = torch.randn(5, 100)
    assert_close(torch.export.load(tmp_path / "G.pt2").module()(z), G(z))


def test_toy(tmp_path):
    toy.main(steps=30, out=tmp_path / "toy")
    names = [path.name for path in sorted(tmp_path.rglob("*.png"))]
    assert names == ["critics.png", "distance.png", "game.png", "layers.png"]
