"""How good are the samples? Measures of checkpoints of all six scripts, and of folders of PNGs.

    python benchmarks/quality.py out/wgan_gp/ckpt.pt
    python benchmarks/quality.py out/dcgan/ckpt.pt out/dcgan1/ckpt.pt --json
    python benchmarks/quality.py FOLDER --data mnist    # samples, of whatever program

For all: cFID, the Fréchet distance between samples and held-back images, taken from the mean and
the covariance of 128 features of a small classifier; beside it the floor, which as many training
images get. Less is better. It compares runs on one data set; other data, or the FID of papers, with
its other features, have another scale. Then what the classifier reads: the share of the rarest and
of the commonest class, and the score exp(E KL(p(y|x) || p(y))), from 1 to the number of classes.
And the distance to the nearest training image, of samples and of held-back images, as medians: a
generator that has memorised its data comes nearer than these.

Then, for each method, what its paper claims:
    gan_mlp     log-likelihood by Parzen windows (section 5)
    dcgan       a linear classifier on D's features (section 5)
    wgan_*      does W fall as samples get better? of a run with --keep, rank correlation
                (Spearman) of W and the cFID of G, not of its average, over up to 12 of its passes
    infogan     Q's category as a classifier of real images that saw no label (section 7.2); the
                share of one class in each category; rank correlations of the numbers with the
                slant of a digit, its ink (how thick the pen is) and its width
    stackedgan  samples that are read as the class asked for; the variety within the classes

The classifier is trained with seed 0, 6 passes over the classes that the run was trained on, and
cached in --data-dir; delete cache/classifier_* there if you changed how. Measured: right in 99.46 %
of MNIST's test images, trained in 3 minutes on 2 CPU cores; then a checkpoint takes half a minute.
On the CPU a seed gives the same samples as `--sample CKPT --seed S --num N`, and the same figures.
"""

import argparse
import contextlib
import csv
import functools
import hashlib
import importlib
import json
import math
import os
import re
import sys
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parent.parent))
import common

SCRIPTS = ("gan_mlp", "dcgan", "wgan_clip", "wgan_gp", "infogan", "stackedgan")


# ---- measures of images and features ----

def frechet(a, b):
    """Fréchet distance of the Gaussians with the means and covariances of features a, b (N, d).

    ||m_a - m_b||² + tr(A + B - 2 (A B)^(1/2)), in float64.
    """
    a, b = a.double(), b.double()
    A, B = torch.cov(a.T), torch.cov(b.T)
    # A B has the eigenvalues of the symmetric A^(1/2) B A^(1/2), of which rounding makes some < 0
    values, vectors = torch.linalg.eigh(A)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ B @ root).clamp(min=0).sqrt().sum()
    return ((a.mean(0) - b.mean(0)).square().sum() + A.trace() + B.trace() - 2 * cross).item()


def classifier_score(logits):
    """exp(E KL(p(y|x) || p(y))) of logits (N, K): from 1 to K, if all classes are as frequent."""
    log_p = logits.double().log_softmax(1)
    log_mean = log_p.logsumexp(0) - math.log(len(log_p))        # finite, where p has become 0
    return (log_p.exp() * (log_p - log_mean)).sum(1).mean().exp().item()


def nearest(images, training):
    """Distance (N,) of each image to the nearest of `training`: both uint8, pixels as in [0, 1]."""
    training = training.flatten(1).float() / 255
    parts = (images.flatten(1).float() / 255).split(100)
    # not by way of a² + b² - 2ab, in which a copy would be some rounding away from its original
    exact = dict(compute_mode="donot_use_mm_for_euclid_dist")
    index = torch.cat([torch.cdist(part, training).argmin(1) for part in parts])
    return torch.cat([torch.cdist(part[:, None], training[rows][:, None], **exact).flatten()
                      for part, rows in zip(parts, index.split(100))])


def parzen(samples, validation, test):
    """Log-likelihood of `test` under Gaussian windows around `samples`, all (N, d): nats.

    Returns the mean, its standard error, and the width of the windows, of ten from 0.1 to 1, that
    suits `validation` best.
    """
    def log_likelihood(x, sigma):
        parts = [-torch.cdist(part, samples).double().square() / (2 * sigma**2)
                 for part in x.split(500)]
        constant = math.log(len(samples)) + x.shape[1] * math.log(sigma * math.sqrt(2 * math.pi))
        return torch.cat([part.logsumexp(1) for part in parts]) - constant

    sigmas = torch.logspace(-1, 0, 10).tolist()
    best = max(sigmas, key=lambda sigma: log_likelihood(validation, sigma).mean())
    values = log_likelihood(test, best)
    return values.mean().item(), (values.std() / math.sqrt(len(values))).item(), best


def spearman(x, y):
    """Rank correlation of x and y (N,), -1 to 1; equal values share the mean of their ranks."""
    def ranks(v):
        _, inverse, counts = v.unique(return_inverse=True, return_counts=True)
        return (counts.cumsum(0) - (counts - 1) / 2)[inverse].double()

    a, b = (ranks(v) - ranks(v).mean() for v in (x, y))
    return (a @ b / (a.norm() * b.norm())).item()       # nan if x or y is constant


def within(groups, x, y):
    """Mean over the groups (N,) of the rank correlations of x and y inside of each.

    Groups in which x or y is constant do not count; nan if that is all.
    """
    values = [spearman(x[groups == k], y[groups == k]) for k in groups.unique()]
    values = [v for v in values if not math.isnan(v)]
    return sum(values) / len(values) if values else math.nan


def match(counts):
    """Most of the sum of counts (K, C) that a one-to-one choice of a class for a category can get.

    counts is how often category k met class c. Which classes are taken so far is all that matters
    for the next category, so 2^C cases are enough.
    """
    best = {0: 0}                       # by the set of classes taken, as bits
    for row in counts.tolist():
        new = dict(best)                # a category may go without, if there are more than classes
        for taken, total in best.items():
            for c, n in enumerate(row):
                if not taken >> c & 1:
                    new[taken | 1 << c] = max(new.get(taken | 1 << c, 0), total + n)
        best = new
    return max(best.values())


def style(images):
    """Three numbers for each image of light strokes on dark, uint8 (N, 1, H, W): (N,) each.

    The slant, as shear (positive leans right); the ink, by which the width of the pen shows among
    images of one digit; and the width of the digit: the standard deviation of x, slant removed.
    """
    p = images[:, 0].double() / 255
    ink = p.sum((1, 2)).clamp(min=1e-9)
    row, column = (torch.arange(n, device=p.device, dtype=p.dtype) for n in p.shape[1:])
    dy = row[:, None] - ((p.sum(2) @ row) / ink)[:, None, None]
    dx = column - ((p.sum(1) @ column) / ink)[:, None, None]
    slant = -(p * dx * dy).sum((1, 2)) / (p * dy.square()).sum((1, 2)).clamp(min=1e-9)
    upright = dx + slant[:, None, None] * dy
    return slant, ink, ((p * upright.square()).sum((1, 2)) / ink).sqrt()


def variety(features, labels, real, real_labels):
    """Trace of the covariance of features (N, d) inside of a class, over that of real ones.

    Both summed over the classes of which there are two on either side; nan if there are none.
    """
    total = torch.zeros(2, dtype=torch.float64)
    for k in real_labels.unique():
        groups = [x[y == k].double() for x, y in ((features, labels), (real, real_labels))]
        if min(map(len, groups)) > 1:
            total += torch.tensor([group.var(0).sum().item() for group in groups])
    return (total[0] / total[1]).item()


def linear_probe(x, y, x_test, y_test):
    """Share of test features that a linear classifier, taught with features x, gets right."""
    mean, std = x.mean(0), x.std(0) + 1e-6
    x, x_test = (x - mean) / std, (x_test - mean) / std
    linear = nn.Linear(x.shape[1], int(y.max()) + 1).to(x.device)
    nn.init.zeros_(linear.weight), nn.init.zeros_(linear.bias)     # convex: any start will do
    opt = torch.optim.LBFGS(linear.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss():
        opt.zero_grad()
        loss = F.cross_entropy(linear(x), y) + 0.001 * linear.weight.square().sum()
        loss.backward()
        return loss

    opt.step(loss)
    return (linear(x_test).argmax(1) == y_test).float().mean().item()


# ---- the classifier ----

class Classifier(nn.Module):
    """Images (B, C, H, H) in [-1, 1] to features (B, 128) and logits (B, num_classes)."""

    def __init__(self, channels=1, num_classes=10):
        super().__init__()
        layers, n = [], channels
        for n_out, kernel, stride in (32, 5, 2), (64, 3, 1), (64, 3, 2):    # 28 → 14 → 7
            layers += [nn.Conv2d(n, n_out, kernel, stride, padding=kernel // 2),
                       nn.BatchNorm2d(n_out), nn.ReLU()]
            n = n_out
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(7), nn.Flatten(),
                                      nn.Linear(n * 7 * 7, 128), nn.ReLU())
        self.logits = nn.Linear(128, num_classes)

    def forward(self, x):
        h = self.features(x)
        return h, self.logits(F.dropout(h, 0.5, self.training))


def train_classifier(net, images, labels, epochs):
    """On uint8 images, each batch shifted by up to 2 pixels; the learning rate falls to 0."""
    size = min(128, len(images))
    steps = epochs * (len(images) // size)
    opt = torch.optim.Adam(net.parameters(), lr=2e-3, fused=images.device.type != "mps")
    schedule = torch.optim.lr_scheduler.LinearLR(opt, 1, 0.001, steps)
    for epoch in range(epochs):
        for x, y in common.batches(images, size, labels):
            # a ring: the images are framed by background, mostly
            x = x.roll(torch.randint(-2, 3, (2,)).tolist(), dims=(2, 3))
            loss = F.cross_entropy(net(x)[1], y)
            opt.zero_grad()
            loss.backward()
            opt.step()
            schedule.step()
        print(f"classifier: pass {epoch + 1}/{epochs} loss {loss:.4f}", file=sys.stderr)


@torch.no_grad()
def read(net, images):
    """Features (N, 128) and logits (N, K) of uint8 images, in eval mode."""
    parts = [net(part / 127.5 - 1) for part in images.split(500)]
    return [torch.cat(column) for column in zip(*parts)]


@functools.lru_cache            # several checkpoints of one data set share it
class Reference:
    """A data set, and what the classifier makes of its held-back images.

    net is None if there is nothing to classify, because all images are of one class and the data
    set has no other, or fewer than two are held back.
    """

    def __init__(self, data, classes, shape, data_dir, epochs, device):
        def load(train, classes):
            return common.load_images(data, data_dir, train=train, classes=classes,
                                      image_size=shape[-1], channels=shape[0], device=device)

        (self.train, self.y_train), (self.held, self.y_held) = (load(t, classes) for t in (1, 0))
        images, labels, check, y_check = self.train, self.y_train, self.held, self.y_held
        if not labels.any():            # a run on horses: to know horses, take all classes
            (images, labels), (check, y_check) = (load(t, None) for t in (1, 0))
        self.num_classes, self.net = int(labels.max()) + 1, None
        if self.num_classes == 1 or len(self.held) < 2:
            return
        if len(self.held) < 1000:
            print(f"only {len(self.held)} images are held back: cFID is rough, and the floor high",
                  file=sys.stderr)
        torch.manual_seed(0)
        self.net = Classifier(shape[0], self.num_classes).to(device)
        key = hashlib.sha256(repr((self.net, epochs)).encode())
        for part in (images, labels):
            key.update(part.cpu().numpy())
        cache = Path(data_dir, "cache", f"classifier_{key.hexdigest()[:16]}.pt")
        try:
            self.net.load_state_dict(torch.load(cache, map_location=device, weights_only=True))
        except Exception:               # there is none, or it is damaged
            train_classifier(self.net, images, labels, epochs)
            temporary = Path(f"{cache}.{os.getpid()}.tmp")
            with contextlib.suppress(OSError, RuntimeError):    # then the next start trains again
                cache.parent.mkdir(parents=True, exist_ok=True)
                torch.save(self.net.state_dict(), temporary)
                os.replace(temporary, cache)
        self.net.eval()
        self.accuracy = (read(self.net, check)[1].argmax(1) == y_check).float().mean().item()
        print(f"{data}: the classifier is right in {self.accuracy:.2%} of the held-back images",
              file=sys.stderr)
        self.features, _ = read(self.net, self.held)


# ---- samples ----

def load_checkpoint(path):
    if not os.path.exists(path):
        fail(f"{path}: there is no such file")
    try:
        ckpt = torch.load(path, map_location="cpu", weights_only=True)
        if ckpt["script"] in SCRIPTS:
            return ckpt
    except Exception:                   # whatever zip files, pickles and dicts of others may raise
        pass
    fail(f"{path}: not a checkpoint of {', '.join(SCRIPTS)}")


def draw(ckpt, num, seed, device, weights="G_ema"):
    """The images of --sample with this seed, uint8 (num, C, H, H), and their codes or labels."""
    script, args, given = importlib.import_module(ckpt["script"]), ckpt["args"], None
    if ckpt["script"] == "stackedgan":
        G1 = script.Generator1(args["z1_dim"], args["width"], ckpt["num_classes"])
        G0 = script.Generator0(args["z0_dim"], ckpt["shape"], args["width"])
        G1.load_state_dict(ckpt["G1_ema"])
        G0.load_state_dict(ckpt["G0_ema"])
        torch.manual_seed(seed)
        given = torch.arange(num) * ckpt["num_classes"] // num
        inputs = given, script.noise(G1, num), script.noise(G0, num)
        generate = functools.partial(script.sample, G1.to(device), G0.to(device))
    else:
        sizes = ("z_dim", "width", "upsample", "mlp", "categories", "num_codes")
        G = script.Generator(shape=ckpt["shape"], **{k: args[k] for k in sizes if k in args})
        G.load_state_dict(ckpt[weights])
        torch.manual_seed(seed)         # and then draw in the order of sample_checkpoint
        inputs = (torch.randn(num, G.z_dim),)
        if ckpt["script"] == "infogan":
            K, given = G.categories[0], script.codes(G, num)
            given[:, :K] = torch.eye(K)[torch.arange(num) * K // num]
            inputs += (given,)
        generate = functools.partial(script.sample, G.to(device))
    parts = zip(*(v.to(device).split(500) for v in inputs))
    images = torch.cat([generate(*part) for part in parts])
    images = images.clamp(-1, 1).add(1).mul(127.5).round().byte()      # as in a PNG
    return images, given if given is None else given.to(device)


def read_folder(path, device):
    """The PNGs in a folder, uint8 (N, C, H, H), and the numbers before the _ in their names."""
    from PIL import Image
    from torchvision.transforms.functional import pil_to_tensor
    files = sorted(Path(path).rglob("*.png"))
    images = [pil_to_tensor(Image.open(f).convert("RGB")) for f in files]
    if len({image.shape for image in images}) != 1 or images[0].shape[1] != images[0].shape[2]:
        fail(f"{path}: {len(files)} PNGs; wanted are some, square and all of one size")
    if len(images) < 200:
        fail(f"{path}: {len(images)} PNGs are too few for a covariance; 200 at the least")
    images = torch.stack(images).to(device)
    if (images[:, :1] == images).all():
        images = images[:, :1]          # grey
    names = [re.match(r"(\d+)_\d+\.png$", f.name) for f in files]
    given = torch.tensor([int(m[1]) for m in names], device=device) if all(names) else None
    return images, given


# ---- measures of one checkpoint or folder ----

def measure(images, ref):
    """What is measured of all samples, uint8 (N, C, H, H), and their features and logits."""
    few = [common.spread(part, 1000) for part in (images, ref.held)]
    near, near_held = (nearest(part, ref.train).median().item() for part in few)
    result = {"images": len(images), "nearest": near, "nearest_held_back": near_held}
    if ref.net is None:
        return result, None, None
    features, logits = read(ref.net, images)
    shares = logits.argmax(1).bincount(minlength=ref.num_classes) / len(logits)
    floor, _ = read(ref.net, common.spread(ref.train, len(images)))
    result.update(cFID=frechet(features, ref.features), floor=frechet(floor, ref.features),
                  score=classifier_score(logits), shares=shares.tolist(),
                  classifier_accuracy=ref.accuracy)
    return result, features, logits


def measure_gan_mlp(images, ref):
    samples, validation, test = (x.flatten(1).float() / 255 for x in
                                 (images, common.spread(ref.train, 1000), ref.held))
    value, error, sigma = parzen(samples, validation, test)
    return ({"log_likelihood": value, "standard_error": error, "sigma": sigma},
            f"log-likelihood by Parzen windows {value:.1f} ± {error:.1f} nats, sigma {sigma:.2f}")


def measure_dcgan(ckpt, ref):
    from dcgan import Discriminator
    D = Discriminator(ckpt["shape"], ckpt["args"]["width"]).to(ref.held.device)
    shuffled = torch.randperm(len(ref.train), generator=torch.Generator().manual_seed(0))[:1000]
    shuffled = shuffled.to(ref.held.device)

    @torch.no_grad()
    def features(images):
        return torch.cat([D.eval().features(part / 127.5 - 1) for part in images.split(500)])

    def probe():
        return linear_probe(features(ref.train[shuffled]), ref.y_train[shuffled],
                            features(ref.held), ref.y_held)

    torch.manual_seed(0)
    random = Discriminator(ckpt["shape"], ckpt["args"]["width"]).state_dict()
    D.load_state_dict(random)
    before = probe()
    D.load_state_dict(ckpt["D"])
    after = probe()
    return ({"linear_probe": after, "linear_probe_random_D": before},
            f"linear classifier on D's features, {len(shuffled):,} labels: right in {after:.1%}; "
            f"on those of a random D {before:.1%}")


def measure_wgan(path, ckpt, ref, args):
    """W of a pass, from log.csv, beside the cFID of G after it, from ckpt_*.pt."""
    log, kept = Path(path).parent / "log.csv", Path(path).parent.glob("ckpt_[0-9]*.pt")
    kept = {int(p.stem[5:]): p for p in kept}
    steps_a_pass, W, before = ckpt["step"] // ckpt["epoch"], {}, 0
    for row in csv.DictReader(log.read_text().splitlines() if log.exists() else []):
        # means over the steps since the last row, or (of a log that begins later) since the pass
        epoch, step = int(row["epoch"]), int(row["step"])
        n = step - max(before, (epoch - 1) * steps_a_pass)
        total, steps = W.get(epoch, (0, 0))
        W[epoch], before = (total + n * float(row["W"]), steps + n), step
    there = sorted(kept.keys() & W.keys())
    ideal = [there[0] * (there[-1] / there[0])**(i / 11) for i in range(12)] if there else []
    passes = sorted({min(there, key=lambda p: abs(p - wanted)) for wanted in ideal})
    if len(passes) < 3:
        return {}, "W against cFID: needs log.csv and ckpt_*.pt beside it, of a run with --keep"
    table = []
    for p in passes:
        images, _ = draw(load_checkpoint(kept[p]), args.num, args.seed, args.device, weights="G")
        table.append((p, W[p][0] / W[p][1], frechet(read(ref.net, images)[0], ref.features)))
    rho = spearman(*torch.tensor(table).T[1:])
    return ({"W_cFID": table, "W_cFID_spearman": rho},
            f"W against the cFID of G: rank correlation {rho:.2f}\n  pass, W, cFID: "
            + "; ".join(f"{p}, {w:.4f}, {cfid:.0f}" for p, w, cfid in table))


@torch.no_grad()
def measure_infogan(ckpt, images, c, logits, ref, strokes):
    from infogan import Discriminator
    K, num_codes = ckpt["args"]["categories"][0], ckpt["args"]["num_codes"]
    D = Discriminator(ckpt["shape"], ckpt["args"]["width"], c.shape[1]).to(images.device).eval()
    D.load_state_dict(ckpt["D"])
    q = torch.cat([D.score_and_code(part / 127.5 - 1)[1] for part in ref.held.split(500)])
    result, text = {}, []
    if ref.num_classes <= 12:           # match() takes 2^12 steps then
        counts = torch.zeros(K, ref.num_classes, dtype=torch.long, device=q.device)
        one = torch.ones((), dtype=torch.long, device=q.device)
        counts.index_put_((q[:, :K].argmax(1), ref.y_held), one, accumulate=True)
        result["category_errors"] = 1 - match(counts) / len(q)
        text.append(f"Q's category, matched to classes: {result['category_errors']:.1%} errors")
    category = c[:, :K].argmax(1)
    result["purity"] = purity(category, logits)
    text.append(purity_text(result["purity"]))
    if ckpt["shape"][0] == 1:
        result["codes"] = [[within(category, number, x) for x in style(images)]
                           for number in c.T[len(c.T) - num_codes:]]
        text += [f"code {j}: correlation with slant {a:.2f}, ink {b:.2f}, the digit's width {d:.2f}"
                 for j, (a, b, d) in enumerate(result["codes"], 1)]
    if strokes:                         # known truth: slant and width of the held-back images
        _, labels, *truth = (x.to(q.device)[-len(q):] for x in common.strokes(20_000))
        result["codes_of_real_images"] = [[within(labels, number, x) for x in truth]
                                          for number in q.T[len(q.T) - num_codes:]]
        text += [f"code {j}, as Q reads it from real images: correlation with slant {a:.2f}, "
                 f"pen {b:.2f}" for j, (a, b) in enumerate(result["codes_of_real_images"], 1)]
    return result, "\n  ".join(text)


def purity(category, logits):
    """Share of the commonest class among the samples of each category."""
    return [(logits[category == k].argmax(1).bincount().max() / (category == k).sum()).item()
            for k in category.unique()]


def purity_text(shares):
    return f"one class in a category: mean {sum(shares) / len(shares):.1%}, worst {min(shares):.1%}"


def measure_stackedgan(y, features, logits, ref):
    asked = (logits.argmax(1) == y).float().mean().item()
    ratio = variety(features, y, ref.features, ref.y_held)
    return ({"asked": asked, "variety": ratio},
            f"read as the class asked for {asked:.2%}; variety within classes, over that of "
            f"held-back images, {ratio:.2f}")


def measure_path(path, args):
    """All measures of a checkpoint or folder: a dictionary, and the method's own as text."""
    settings = args.data_dir, args.classifier_epochs, args.device
    if os.path.isdir(path):
        images, given = read_folder(path, args.device)
        ref = Reference(args.data or "mnist", None, tuple(images.shape[1:]), *settings)
        result, features, logits = measure(images, ref)
        text = ""
        if given is not None and logits is not None:
            own, text = measure_stackedgan(given, features, logits, ref)
            own["purity"] = purity(given, logits)
            text = (f"if the numbers in the file names are classes: {text}\n"
                    f"  if they are categories: {purity_text(own['purity'])}")
            result.update(own)
        return {"path": str(path), **result}, text
    ckpt = load_checkpoint(path)
    script, classes = ckpt["script"], ckpt["args"]["classes"]
    data = args.data or ckpt["args"]["data"]
    try:
        images, given = draw(ckpt, args.num, args.seed, args.device)
    except (KeyError, RuntimeError) as error:
        fail(f"{path}: does not fit {script}.py ({str(error).splitlines()[0]})")
    ref = Reference(data, classes and tuple(classes), tuple(ckpt["shape"]), *settings)
    result, features, logits = measure(images, ref)
    own, text = {}, ""
    if script == "gan_mlp":
        own, text = measure_gan_mlp(images, ref)
    elif ref.net is None:
        text = "one class, or fewer than two images held back: no classifier, no more measures"
    elif script == "dcgan":
        own, text = measure_dcgan(ckpt, ref)
    elif script == "infogan":
        own, text = measure_infogan(ckpt, images, given, logits, ref,
                                    strokes=data == "strokes" and not classes)
    elif script == "stackedgan":
        own, text = measure_stackedgan(given, features, logits, ref)
    else:
        own, text = measure_wgan(path, ckpt, ref, args)
    return {"path": str(path), "script": script, "passes": ckpt["epoch"], "seed": args.seed,
            "data": data, **result, **own}, text


# ---- command line ----

def fail(message):
    """End on an error that the user can mend: one line, and exit code 2 as argparse has it."""
    print(f"quality.py: error: {message}", file=sys.stderr)
    sys.exit(2)


def get_args(argv):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False,
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.error = fail
    parser.add_argument("paths", nargs="+", help="checkpoints, and folders of PNGs")
    parser.add_argument("--num", type=int, default=10_000, help="samples of a checkpoint")
    parser.add_argument("--seed", type=int, default=0, help="of the samples")
    parser.add_argument("--data", help="else that of the checkpoint, of a folder mnist")
    parser.add_argument("--data-dir", default="data", help="for downloads and the classifier")
    parser.add_argument("--classifier-epochs", type=int, default=6, help="its passes over the data")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--json", action="store_true", help="a list for programs, not a table")
    args = parser.parse_args(argv)
    if args.num < 200:
        fail(f"--num {args.num}: too few for a covariance; 200 at the least")
    if args.device == "cuda" and not torch.cuda.is_available():
        fail("--device cuda: there is none that torch can use; try --device auto")
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    if args.classifier_epochs < 1:
        fail(f"--classifier-epochs {args.classifier_epochs}: at least 1")
    return args


def main(argv=None):
    args = get_args(argv)
    results = []
    if not args.json:
        print(f"{'':32} passes   cFID  floor  score  rarest  commonest  nearest (held back)")
    for path in args.paths:
        try:
            result, text = measure_path(path, args)
        except OSError as error:        # of common.py: the data are not there
            fail(error)
        except RuntimeError as error:
            if "state_dict" not in str(error):
                raise
            fail(f"{path}: of another D than its script has ({str(error).splitlines()[0]})")
        except KeyboardInterrupt:
            sys.exit(130)
        results.append(result)
        if not args.json:
            line = f"{path:32} {result.get('passes', ''):>6}"
            if "cFID" in result:
                line += (f"{result['cFID']:7.1f}{result['floor']:7.1f}{result['score']:7.2f}"
                         f"{min(result['shares']):8.1%}{max(result['shares']):11.1%}")
            else:
                line += " " * 40
            near = f"{result['nearest']:.2f} ({result['nearest_held_back']:.2f})"
            print(f"{line}{near:>21}\n  {text}", flush=True)
    if args.json:
        text = json.dumps(results, indent=1)
        print(re.sub(r"\bNaN\b", "null", text))        # JSON has no NaN


if __name__ == "__main__":
    main()
