"""Tests of quality.py and speed.py, by known answers and on tiny runs of all six scripts."""

import importlib
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import common
from benchmarks import quality, speed

RUNS = {        # flags of tiny runs; wgan_gp logs every step
    "gan_mlp": "--z-dim 4",
    "dcgan": "--z-dim 4 --upsample",
    "wgan_clip": "--z-dim 4 --mlp",
    "wgan_gp": "--z-dim 4 --n-critic 1 --epochs 4 --keep --log-every 0",
    "infogan": "--z-dim 4 --categories 3 --num-codes 1",
    "stackedgan": "--z1-dim 4 --z0-dim 4 --encoder-epochs 1 --independent-epochs 1",
}


def test_frechet():
    """For 2x2 matrices, tr (A B)^(1/2) is sqrt(tr A B + 2 sqrt(det A B))."""
    x = torch.randn(500, 2, dtype=torch.float64)
    a, b = x * torch.tensor([1.0, 3]), x @ torch.tensor([[2.0, 1], [0, 1]]).double() + 5
    A, B, shift = np.cov(a.T), np.cov(b.T), (a.mean(0) - b.mean(0)).numpy()
    cross = math.sqrt(np.trace(A @ B) + 2 * math.sqrt(np.linalg.det(A @ B)))
    assert quality.frechet(a, b) == pytest.approx(shift @ shift + np.trace(A + B) - 2 * cross)


def test_classifier_score():
    assert quality.classifier_score(1000 * torch.eye(5).repeat(4, 1)) == pytest.approx(5)
    assert quality.classifier_score(torch.randn(1, 5).repeat(9, 1)) == pytest.approx(1)


def test_nearest():
    training = torch.randint(256, (50, 1, 8, 8), dtype=torch.uint8)
    images = torch.cat([training, torch.randint(256, (9, 1, 8, 8), dtype=torch.uint8)])
    difference = (images[:, None].double() - training[None].double()).flatten(2) / 255
    result = quality.nearest(images, training)
    torch.testing.assert_close(result, difference.norm(dim=2).amin(1).float())
    assert not result[:50].any()        # copies


def test_parzen():
    """A single sample gives a Gaussian around it, with the width that suits the validation set."""
    validation, test = torch.full((1, 5), 0.1), torch.tensor([[3, 0, 0, 0, 0.0], [0] * 5])
    value, error, sigma = quality.parzen(torch.zeros(1, 5), validation, test)
    density = torch.distributions.Normal(0, 0.1).log_prob(test.double()).sum(1)
    expected = density.mean().item(), density.std().item() / math.sqrt(2), 0.1
    assert (value, error, sigma) == pytest.approx(expected, abs=1e-4)


def test_spearman_and_within():
    tied = quality.spearman(torch.tensor([1, 5, 5, 9]), torch.tensor([1, 2, 3, 4]))
    assert tied == pytest.approx(np.corrcoef([1, 2.5, 2.5, 4], [1, 2, 3, 4])[0, 1])
    groups, x = torch.arange(30) // 10, torch.arange(30.0)
    y = x - 100 * groups                # rises within each group, but falls from group to group
    assert quality.within(groups, x, y) == pytest.approx(1) and quality.spearman(x, y) < 0
    assert quality.within(groups, x, torch.where(groups == 0, 5, y)) == pytest.approx(1)


def test_match():
    counts = np.random.default_rng(0).integers(50, size=(5, 3))     # two categories get no class
    expected = max(counts[choice, range(3)].sum() for choice in itertools.permutations(range(5), 3))
    assert quality.match(counts) == quality.match(counts.T) == expected


def test_style():
    images = torch.zeros(2, 1, 9, 13, dtype=torch.uint8)
    for row in range(9):                # one slash, and two that are 4 pixels apart
        images[0, 0, row, 8 - row] = images[1, 0, row, [8 - row, 12 - row]] = 255
    assert torch.stack(quality.style(images)).numpy().round(9).tolist() == [[1, 1], [9, 18], [0, 2]]


def test_variety():
    # Two classes have traces 2 and 8. The third has only one image and does not count.
    x, y = torch.tensor([[0.0, 0], [2, 0], [10, 5], [10, 9], [7, 7]]), torch.tensor([0, 0, 1, 1, 2])
    assert quality.variety(x, y, x / 2, y) == pytest.approx(4)
    assert quality.variety(x, y, x[:2] * 3, y[:2]) == pytest.approx(2 / 18)
    assert quality.purity(y, torch.eye(2)[[0, 0, 0, 1, 1]]) == [1, 0.5, 1]


def test_linear_probe():
    y = torch.arange(300) % 3
    x = torch.randn(300, 5) + 10 * torch.eye(5)[y]
    assert quality.linear_probe(x[:150], y[:150], x[150:], y[150:]) > 0.99


def measure(path, data, **changes):
    """What quality.py says about a folder, or about a checkpoint with some values changed."""
    if changes:
        ckpt, path = quality.load_checkpoint(path), Path(path).with_name("changed.pt")
        torch.save({**ckpt, **changes}, path)
    flags = f"--num 200 --classifier-epochs 8 --device cpu --data {data} --data-dir {data.parent}"
    kind = quality.measure_folder if Path(path).is_dir() else quality.measure_checkpoint
    return kind(str(path), quality.get_args([str(path), *flags.split()]))[0]


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmarks") / "digits"
    images, labels, _, _ = common.strokes(600)
    for label in range(10):
        common.save_images(images[labels == label] / 127.5 - 1, folder / str(label))
    return folder


@pytest.fixture(scope="session")
def runs(digits):
    """What quality.py says about a tiny run of each script."""
    for name, flags in RUNS.items():
        where = f"--data {digits} --data-dir {digits.parent} --out {digits.parent / name}"
        tiny = f"--epochs 2 --batch-size 32 --width 4 --device cpu {flags}"
        importlib.import_module(name).main([*where.split(), *tiny.split()])
    return {name: measure(digits.parent / name / "ckpt.pt", digits) for name in RUNS}


@pytest.mark.parametrize("name", RUNS)
def test_quality(name, runs, tmp_path):
    """All measures are finite, and they are of the images that --sample writes."""
    result = runs[name]
    assert all(np.isfinite(v).all() for v in result.values() if not isinstance(v, str))
    assert result["cFID"] > 5 * result["floor"] > 0 and sum(result["shares"]) == pytest.approx(1)
    flags = f"--sample {result['path']} --seed 5 --num 210 --device cpu --out {tmp_path}/samples"
    importlib.import_module(name).main(flags.split())
    saved, labels = quality.read_folder(tmp_path / "samples", "cpu")
    images, given = quality.draw(quality.load_checkpoint(result["path"]), 210, 5, "cpu")
    given = given[:, :3].argmax(1) if name == "infogan" else given
    expected = given if given is None else [str(label) for label in given.tolist()]
    assert torch.equal(images, saved) and labels == expected


def test_quality_of_training_images(digits, tmp_path):
    images, labels, _ = common.load_images(str(digits), str(digits.parent))
    common.save_images(images / 127.5 - 1, tmp_path / "real", labels=labels)
    result = measure(tmp_path / "real", digits)
    assert result["cFID"] == pytest.approx(result["floor"], rel=1e-3)
    assert result["nearest"] == 0 < result["nearest_held_back"]
    assert result["asked"] > 0.8 and 0.5 < result["variety"] < 2
    assert "cFID" not in measure(tmp_path / "real", digits / "3")   # flat, so of one class only


def test_W_of_an_epoch_beside_the_cFID_of_G(runs, digits):
    path, table = runs["wgan_gp"]["path"], np.array(runs["wgan_gp"]["W_cFID"])
    ckpt = quality.load_checkpoint(path)
    W = np.array([row["W"] for row in ckpt["rows"]]).reshape(4, -1)     # of every step
    assert table[:, 1] == pytest.approx(W.mean(1))
    # A log with two lines in each epoch says the same. The last cFID is that of G, not of G_ema.
    rows = [{"epoch": i + 1, "step": i * len(w) + end, "W": w[start:end].mean().item(),
             "images/s": 32 / 60} for i, w in enumerate(W) for start, end in ((0, 3), (3, len(w)))]
    again = measure(path, digits, rows=rows, G_ema=ckpt["G"])
    assert np.array(again["W_cFID"]) == pytest.approx(table)
    assert again["cFID"] == table[-1, 2] != runs["wgan_gp"]["cFID"]
    assert again["minutes"] == pytest.approx(ckpt["step"])


def test_quality_of_changed_checkpoints(runs, digits):
    # A D of zeros finds all images alike, and so is right about one class of ten.
    for name, key in ("dcgan", "linear_probe"), ("infogan", "category_errors"):
        ckpt = quality.load_checkpoint(runs[name]["path"])
        zeros = {weight: torch.zeros_like(value) for weight, value in ckpt["D"].items()}
        result = measure(runs[name]["path"], digits, D=zeros, D_ema=zeros)[key]
        assert (result if name == "dcgan" else 1 - result) < 0.2 and result != runs[name][key]
    args = {**ckpt["args"], "classes": ["3"]}   # the classifier of one class learns all classes
    assert len(measure(runs["infogan"]["path"], digits, args=args)["shares"]) == 10


def test_table_and_json(runs, digits, capsys):
    path, p = runs["gan_mlp"]["path"], runs["gan_mlp"]["shares"]
    flags = f"--num 200 --classifier-epochs 8 --device cpu --data-dir {digits.parent}"
    quality.main([path, *flags.split()])
    assert f"{min(p):8.1%}{max(p):11.1%}" in capsys.readouterr().out.split(f"{path}      2 ")[1]
    quality.main([path, *flags.split(), "--json"])
    assert json.loads(capsys.readouterr().out) == [runs["gan_mlp"]]


def test_errors(runs, digits, tmp_path):
    torch.save({**quality.load_checkpoint(runs["dcgan"]["path"]), "G_ema": {}}, tmp_path / "x.pt")
    for path, words in (("nowhere.pt", "cannot load nowhere.pt"), (__file__, "cannot load"),
                        (digits / "3", "at least 200"), (tmp_path / "x.pt", "not fit")):
        with pytest.raises(SystemExit, match=words) as stop:
            quality.main([str(path)])
        assert "\n" not in stop.value.code


def test_flops():
    """A linear layer has a matrix product in its forward pass, and two in its backward pass."""
    layer, x = torch.nn.Linear(7, 5), torch.randn(3, 7, requires_grad=True)
    assert speed.flops(lambda: layer(x).sum().backward()) == 3 * 2 * 3 * 7 * 5


def test_speed(capsys):
    speed.main(["--quick"])
    lines, loops = capsys.readouterr().out.splitlines()[2:], 4 if torch.cuda.is_available() else 2
    assert [line.split()[0] for line in lines] == [name for name in RUNS for _ in range(loops)]
