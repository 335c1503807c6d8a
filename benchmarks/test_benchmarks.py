"""Tests of the programs in this folder, by known answers and on tiny runs of all six scripts."""

import importlib
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import common
import infogan
from benchmarks import mlp_generator, quality, speed

RUNS = {        # flags of tiny runs
    "gan_mlp": "--z-dim 4",
    "dcgan": "--z-dim 4 --upsample",
    "wgan_clip": "--z-dim 4",
    "wgan_gp": "--z-dim 4 --n-critic 1 --batch-size 64 --epochs 3 --keep --log-every 3",
    "infogan": "--z-dim 4 --categories 3 --num-codes 1",
    "stackedgan": "--z1-dim 4 --z0-dim 4 --encoder-steps 16 --independent-epochs 0",
    "benchmarks.mlp_generator dcgan.py": "--z-dim 4 --upsample",
}
FLAGS = "--num 200 --classifier-epochs 5 --device cpu"      # of quality.py


def test_measures_of_images():
    training = torch.randint(256, (50, 1, 8, 8), dtype=torch.uint8)
    images = torch.cat([training, torch.randint(256, (9, 1, 8, 8), dtype=torch.uint8)])
    expected = torch.cdist(images.flatten(1) / 255.0, training.flatten(1) / 255.0).amin(1)
    torch.testing.assert_close(quality.nearest(images, training)[50:], expected[50:])
    assert not quality.nearest(images, training)[:50].any()     # copies
    images = torch.zeros(2, 1, 9, 13, dtype=torch.uint8)
    for row in range(9):                # one slash, and two that are 4 pixels apart
        images[0, 0, row, 8 - row] = images[1, 0, row, [8 - row, 12 - row]] = 255
    assert torch.stack(quality.style(images)).numpy().round(9).tolist() == [[1, 1], [9, 18], [0, 2]]
    # Windows around a single sample are a Gaussian, with the width that suits the validation set.
    validation, test = torch.full((1, 5), 0.1), torch.tensor([[3, 0, 0, 0, 0.0], [0] * 5])
    density = torch.distributions.Normal(0, 0.1).log_prob(test.double()).sum(1)
    expected = density.mean().item(), density.std().item() / math.sqrt(2), 0.1
    assert quality.parzen(torch.zeros(1, 5), validation, test) == pytest.approx(expected, abs=1e-4)


def test_measures_of_features():
    x = torch.randn(500, 2, dtype=torch.float64)
    a, b = x * torch.tensor([1.0, 3]), x @ torch.tensor([[2.0, 1], [0, 1]]).double() + 5
    A, B, shift = np.cov(a.T), np.cov(b.T), (a.mean(0) - b.mean(0)).numpy()
    # For 2x2 matrices, tr (A B)^(1/2) is sqrt(tr A B + 2 sqrt(det A B)).
    cross = math.sqrt(np.trace(A @ B) + 2 * math.sqrt(np.linalg.det(A @ B)))
    assert quality.frechet(a, b) == pytest.approx(shift @ shift + np.trace(A + B) - 2 * cross)
    # Two classes have traces 2 and 8. The third has only one image and does not count.
    x, y = torch.tensor([[0.0, 0], [2, 0], [10, 5], [10, 9], [7, 7]]), torch.tensor([0, 0, 1, 1, 2])
    assert quality.variety(x, y, x / 2, y) == pytest.approx(4)
    assert quality.variety(x, y, x[:2] * 3, y[:2]) == pytest.approx(2 / 18)


def test_measures_of_ranks_and_classes():
    tied = quality.spearman(torch.tensor([1, 5, 5, 9]), torch.tensor([1, 2, 3, 4]))
    assert tied == pytest.approx(np.corrcoef([1, 2.5, 2.5, 4], [1, 2, 3, 4])[0, 1])
    groups, x = torch.arange(30) // 10, torch.arange(30.0)
    y = x - 100 * groups                # rises within each group, but falls from group to group
    assert quality.within(groups, x, y) == pytest.approx(1) and quality.spearman(x, y) < 0
    assert quality.within(groups, x, torch.where(groups == 0, 5, y)) == pytest.approx(1)
    assert quality.classifier_score(1000 * torch.eye(5).repeat(4, 1)) == pytest.approx(5)
    assert quality.classifier_score(torch.randn(1, 5).repeat(9, 1)) == pytest.approx(1)
    counts = torch.tensor([[7, 9], [8, 1], [0, 2]])     # the best choice is 8 + 9, not 7 + 2
    assert quality.match(counts) == quality.match(counts.T) == 17
    assert quality.purity(torch.tensor([0, 0, 1, 1]), torch.eye(2)[[0, 0, 0, 1]]) == [1, 0.5]


def run(name, flags):
    module, *script = name.split()
    importlib.import_module(module).main([*script, *flags.split()])


def measure(path, data, flags="", **changes):
    """What quality.py says about a folder, or about a checkpoint with some values changed."""
    if changes:
        ckpt, path = quality.load_checkpoint(path), Path(path).with_name("changed.pt")
        torch.save({**ckpt, **changes}, path)
    flags = f"{path} {FLAGS} {flags} --data {data} --data-dir {data.parent}"
    return quality.measure(str(path), quality.get_args(flags.split()))[0]


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmarks") / "digits"
    images, labels, _, _ = common.digits(600)
    for label in range(10):             # 14 pixels a side, to save time
        common.save_images(images[labels == label, :, ::2, ::2] / 127.5 - 1, folder / str(label))
    return folder


@pytest.fixture(scope="session")
def runs(digits):                       # what quality.py says about each of the tiny runs
    for name, flags in RUNS.items():
        where = f"--data {digits} --out {digits.parent / name.split()[0]} --device cpu"
        run(name, f"{where} --epochs 1 --batch-size 32 --image-size 14 --width 4 {flags}")
    return {name: measure(digits.parent / name.split()[0] / "ckpt.pt", digits) for name in RUNS}


@pytest.mark.parametrize("name", RUNS)
def test_quality(name, runs, tmp_path):
    """All measures are finite, and they are of the images that --sample writes."""
    result = runs[name]
    assert all(np.isfinite(v).all() for v in result.values() if not isinstance(v, str))
    assert result["cFID"] > 5 * result["floor"] > 0 and sum(result["shares"]) == pytest.approx(1)
    run(name, f"--sample {result['path']} --seed 5 --num 210 --device cpu --out {tmp_path}/samples")
    images, _ = quality.draw(quality.load_checkpoint(result["path"]), 210, 5, "cpu")
    assert torch.equal(images, quality.read_folder(tmp_path / "samples", "cpu"))


def test_mlp_generator(runs, tmp_path):
    """It has another G, resumes its own checkpoints, and takes no script of another kind."""
    *_, (name, result) = runs.items()
    run(name, f"--resume {result['path']} --epochs 2 --out {tmp_path} --device cpu")
    ckpt = quality.load_checkpoint(tmp_path / "ckpt.pt")
    assert ckpt["epoch"] == 2 and "8.bias" in ckpt["G"]     # of the fifth layer
    assert ckpt["script"] == "benchmarks/mlp_generator.py dcgan"    # so dcgan.py refuses it
    with pytest.raises(SystemExit, match="^error: name one of dcgan, wgan_clip, wgan_gp first"):
        mlp_generator.main(["infogan.py"])


def test_quality_of_folders(digits, tmp_path):
    images, _, _ = common.load_images(str(digits), image_size=14)
    common.save_images(images / 127.5 - 1, tmp_path / "real")
    result = measure(tmp_path / "real", digits)
    assert result["cFID"] == pytest.approx(result["floor"], rel=1e-3)
    assert result["nearest"] == 0 < result["nearest_held_back"]
    common.save_images(images / 127.5 * torch.eye(3)[2, :, None, None] - 1, tmp_path / "blue")
    blue = measure(tmp_path / "blue", digits / "3")     # these data are grey, and of one class only
    assert blue["nearest"] > result["nearest_held_back"] and "cFID" not in blue


def test_quality_of_dcgan(runs, digits):
    """With a D of zeros, all images have the same features, so one class of ten is right."""
    path = runs["dcgan"]["path"]
    ckpt = quality.load_checkpoint(path)
    D = {weight: torch.zeros_like(value) for weight, value in ckpt["D"].items()}
    assert measure(path, digits, D=D)["linear_probe"] < 0.2 < 0.5 < runs["dcgan"]["linear_probe"]
    everything, shares = runs["dcgan"], runs["dcgan"]["shares"]
    commonest = shares.index(max(shares))
    few = measure(path, digits, f"--classes {commonest} 3")     # by the classifier of all classes
    assert few["shares"] == [max(shares), shares[3]] and few["linear_probe"] > 0.6
    assert few["classifier_accuracy"] == everything["classifier_accuracy"]
    assert few["cFID"] > everything["cFID"]


def test_quality_of_wgan(runs, digits):
    """The mean W of an epoch stands beside the cFID of G, not of G_ema."""
    path, table = runs["wgan_gp"]["path"], np.array(runs["wgan_gp"]["W_cFID"])
    ckpt = quality.load_checkpoint(path)
    step, epoch, W = (np.array([row[x] for row in ckpt["rows"]]) for x in ("step", "epoch", "W"))
    sums = np.bincount(epoch, np.diff(step, prepend=0) * W)     # over an epoch of 8 steps
    assert table[:, 1] == pytest.approx(sums[1:] / 8)
    again = measure(path, digits, G_ema=ckpt["G"])
    assert again["cFID"] == table[-1, 2] != runs["wgan_gp"]["cFID"]


def test_quality_of_infogan(runs, digits, monkeypatch):
    """The numbers of the codes are those of the samples. A Q that knows the truth is right."""
    drawn, codes = [], infogan.codes
    monkeypatch.setattr(infogan, "codes", lambda G, n: drawn.append(codes(G, n)) or drawn[-1])
    measure(runs["infogan"]["path"], digits)
    assert len(drawn) == 2 and torch.equal(drawn[0][:, 3:], drawn[1][:, 3:])
    labels, slant, pen = torch.arange(20_000) % 10, torch.randn(20_000), torch.randn(20_000)
    monkeypatch.setattr(common, "digits", {20_000: (labels, labels, slant, pen)}.get)
    truth = torch.cat([torch.eye(10)[labels], slant[:, None], -pen[:, None]], 1)[-2000:]

    class Oracle(torch.nn.Linear):      # its weight is 1 once it is loaded
        def forward(self, x):           # x is the truth, which stands in the place of the images
            return None, x * (self.weight == 1)

    monkeypatch.setattr(infogan, "Discriminator", lambda *sizes: Oracle(1, 1, bias=False))
    args, shape = vars(infogan.get_args([], width=2)), (1, 28, 28)
    ckpt = {"args": args, "shape": shape, "D_ema": {"weight": torch.ones(1, 1)}}
    ref = SimpleNamespace(held=(truth + 1) * 127.5, y_held=labels[-2000:], num_classes=10)
    images, category, logits = torch.zeros(10, 1, 28, 28), [*range(10)], torch.eye(10)
    result, _ = quality.measure_infogan(ckpt, images, category, logits, ref, 0, is_digits=True)
    assert result["category_errors"] == 0 and result["purity"] == [1] * 10
    assert np.array(result["codes_of_real_images"]) == pytest.approx(np.diag([1, -1]), abs=0.1)


def test_command_line(runs, digits, tmp_path, capsys):
    result = runs["gan_mlp"]
    flags = f"{result['path']} {FLAGS} --data-dir {digits.parent}".split()
    quality.main(flags)
    assert f"{result['cFID']:6.1f}{result['floor']:7.1f}" in capsys.readouterr().out
    quality.main([*flags, "--json"])
    assert json.loads(capsys.readouterr().out) == [result]
    Image.fromarray(np.full((28, 28), 40_000, np.uint16)).save(tmp_path / "deep.png")
    for path, words in ((tmp_path, "deep.png has more than 8 bits"), (digits / "3", "at least 200"),
                        (next(digits.parent.glob("cache/*.pt")), "was not saved by any of")):
        with pytest.raises(SystemExit, match=f"^error: .*{words}.*$"):
            quality.main([str(path)])


def test_speed(capsys):
    speed.main(["--quick"])
    lines = capsys.readouterr().out.splitlines()[2:]
    assert list(dict.fromkeys(line.split()[0] for line in lines)) == [*speed.STEPS]
