"""Measure the quality of samples: those of a checkpoint of any script, or a folder of PNGs.

    python benchmarks/quality.py out/wgan_gp/ckpt.pt
    python benchmarks/quality.py out/dcgan/ckpt.pt out/dcgan1/ckpt.pt --json
    python benchmarks/quality.py FOLDER --data mnist    # samples of any other program

It prints (with a single class, only the last)

    cFID        the Fréchet distance between samples and held-back images, from the mean and the
                covariance of 128 features of a small classifier; lower is better
    floor       the cFID of as many training images, about the best that samples can reach
    score       exp(E KL(p(y|x) || p(y))), from 1 to the number of classes; it is high if every
                sample clearly shows one class and all classes are equally frequent
    rarest      the shares of the rarest and of the commonest class among the samples; only classes
                on which the run was trained count
    nearest     the median distance from a sample to the nearest training image, and in brackets
                from a held-back image; if the first is much smaller, G has memorised images

The classifier is trained on the data of the run, so cFID compares runs on the same data only. The
FID in papers uses other features and has another scale.

For each script it also measures what its paper is about:

    gan_mlp     the log-likelihood of held-back images by Parzen windows (section 5)
    dcgan       how well a linear classifier reads the features of D (section 5)
    wgan_*      whether W falls as samples improve: the rank correlation of W and the cFID of G (not
                of G_ema) over up to 12 epochs of a run with --keep
    infogan     how well Q's category classifies real images, although Q saw no labels (section
                7.2); whether each category is one class; the rank correlations of the numbers
                with the slant of a digit, its ink (how thick the pen is) and its width; for the
                data set digits, those of Q's guesses with the true slant and pen of real images
    stackedgan  how many samples are of the class asked for, and how much they vary within it

The samples are those of `--sample CKPT --seed SEED --num NUM`. The classifier is kept in the folder
cache of --data-dir. Delete it there if you change how it is trained.
"""

import argparse
import functools
import hashlib
import importlib
import json
import math
import re
import sys
from pathlib import Path
from unittest import mock

import torch
import torch.nn as nn
import torch.nn.functional as F
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

sys.path.insert(0, str(Path(__file__).parent.parent))
import common
from benchmarks import mlp_generator

SCRIPTS = "gan_mlp", "dcgan", "wgan_clip", "wgan_gp", "infogan", "stackedgan"


# ---- measures of images and features ----

def frechet(a, b):
    """Fréchet distance of the Gaussians with the means and covariances of features a, b (N, d).

    ||m_a - m_b||^2 + tr(A + B - 2 (A B)^(1/2)), in float64.
    """
    a, b = a.double(), b.double()
    A, B = torch.cov(a.T), torch.cov(b.T)
    # A B has the eigenvalues of A^(1/2) B A^(1/2), which is symmetric and therefore easier. None
    # is negative, but rounding can make them so.
    values, vectors = torch.linalg.eigh(A)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ B @ root).clamp(min=0).sqrt().sum()
    return ((a.mean(0) - b.mean(0)).square().sum() + A.trace() + B.trace() - 2 * cross).item()


def classifier_score(logits):
    """exp(E KL(p(y|x) || p(y))) of logits (N, K), from 1 to K."""
    log_p = logits.double().log_softmax(1)
    log_mean = log_p.logsumexp(0) - math.log(len(log_p))    # finite even where p is 0
    return (log_p.exp() * (log_p - log_mean)).sum(1).mean().exp().item()


def nearest(images, training):
    """Distances (N,) from uint8 images to the nearest training images; pixels count from 0 to 1."""
    training = training.flatten(1).float() / 255
    parts = (images.flatten(1).float() / 255).split(100)
    index = torch.cat([torch.cdist(part, training).argmin(1) for part in parts])
    # Computed again without the fast formula a^2 + b^2 - 2ab, by whose rounding the distance from
    # an image to its own copy is not 0.
    exact = dict(compute_mode="donot_use_mm_for_euclid_dist")
    return torch.cat([torch.cdist(part[:, None], training[rows][:, None], **exact).flatten()
                      for part, rows in zip(parts, index.split(100))])


def parzen(samples, validation, test):
    """Log-likelihood in nats of `test` under Gaussian windows around `samples`, all (N, d).

    Returns the mean, its standard error, and the width of the windows. Of ten widths from 0.1 to 1,
    it is the one that makes `validation` most likely.
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
    """Rank correlation of x and y (N,), from -1 to 1, or nan if one of them is constant."""
    def ranks(v):       # equal values share the mean of their ranks
        _, inverse, counts = v.unique(return_inverse=True, return_counts=True)
        return (counts.cumsum(0) - (counts - 1) / 2)[inverse].double()

    a, b = (ranks(v) - ranks(v).mean() for v in (x, y))
    return (a @ b / (a.norm() * b.norm())).item()


def within(groups, x, y):
    """Mean of the rank correlations of x and y in each of the groups (N,).

    A group in which x or y is constant does not count. The mean is nan if no group counts.
    """
    values = [spearman(x[groups == k], y[groups == k]) for k in groups.unique()]
    values = [v for v in values if not math.isnan(v)]
    return sum(values) / len(values) if values else math.nan


def match(counts):
    """The largest sum of counts (K, C) over all one-to-one assignments of classes to categories.

    counts[k, c] is how often category k met class c. Categories choose one after another. Only the
    set of classes already taken matters to the next, and there are 2^C sets, but C! orders.
    """
    best = {0: 0}       # from the set of taken classes, as bits, to the largest sum so far
    for row in counts.tolist():
        new = dict(best)                # this category may go without a class
        for taken, total in best.items():
            for c, n in enumerate(row):
                if not taken >> c & 1:
                    new[taken | 1 << c] = max(new.get(taken | 1 << c, 0), total + n)
        best = new
    return max(best.values())


def style(images):
    """Slant, ink and width, (N,) each, of light strokes on dark: uint8 images (N, 1, H, W).

    The slant is the horizontal shear; it is positive if the stroke leans right. Among images of one
    digit, the ink shows how thick the pen was. The width is the standard deviation of x after the
    slant has been removed.
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
    """Trace of the covariance of features (N, d) within a class, divided by that of real features.

    Both are summed over the classes that have at least two on either side. The result is nan if
    there are no such classes.
    """
    total = torch.zeros(2, dtype=torch.float64)
    for k in real_labels.unique():
        groups = [x[y == k].double() for x, y in ((features, labels), (real, real_labels))]
        if min(map(len, groups)) > 1:
            total += torch.tensor([group.var(0).sum().item() for group in groups])
    return (total[0] / total[1]).item()


def linear_probe(x, y, x_test, y_test):
    """Share of the test features (N, d) that a linear classifier trained on x, y gets right."""
    mean, std = x.mean(0), x.std(0) + 1e-6
    x, x_test = (x - mean) / std, (x_test - mean) / std
    linear = nn.Linear(x.shape[1], int(y.max()) + 1).to(x.device)
    for parameter in linear.parameters():
        nn.init.zeros_(parameter)       # the loss is convex, so any start will do
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

    def __init__(self, channels, num_classes):
        super().__init__()
        layers, n = [], channels
        for n_out, kernel, stride in (32, 5, 2), (64, 3, 1), (64, 3, 2):    # 28 -> 14 -> 14 -> 7
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
    """Train on uint8 images, with a learning rate that falls to 0."""
    size = min(128, len(images))
    steps = epochs * (len(images) // size)
    opt = torch.optim.Adam(net.parameters(), lr=2e-3, fused=True)
    schedule = torch.optim.lr_scheduler.LinearLR(opt, 1, 0.001, steps)
    for epoch in range(epochs):
        for x, y in common.batches(images, labels, size):
            # Shift the batch by up to 2 pixels. What leaves on one side enters on the other, which
            # is mostly background.
            x = x.roll(torch.randint(-2, 3, (2,)).tolist(), dims=(2, 3))
            loss = F.cross_entropy(net(x)[1], y)
            opt.zero_grad()
            loss.backward()
            opt.step()
            schedule.step()
        print(f"classifier: epoch {epoch + 1}/{epochs} loss {loss:.4f}", file=sys.stderr)


@torch.no_grad()
def read(net, images):
    """Features (N, 128) and logits (N, num_classes) of uint8 images."""
    parts = [net(part / 127.5 - 1) for part in images.split(500)]
    return [torch.cat(column) for column in zip(*parts)]


@functools.lru_cache            # checkpoints of one data set share it
class Reference:
    """The images of a data set, its classifier `net`, and the features of its held-back images.

    `net` learns all classes of the data set, even if the run is on a few of them, so that all runs
    are measured alike. It is None if there is only one, or if fewer than two images are held back.
    """

    def __init__(self, data, classes, shape, data_dir, epochs, device):
        def load(train, classes):
            images, labels, names = common.load_images(data, data_dir, train=train,
                                                       classes=classes, image_size=shape[-1])
            channels = max(shape[0], images.shape[1])   # grey becomes RGB if the samples are
            return images.expand(-1, channels, -1, -1).to(device), labels.to(device), names

        (images, labels, self.names), (test, y_test, _) = load(True, None), load(False, None)
        self.num_classes, self.net = len(self.names), None
        self.train, y_train, chosen = load(True, classes)
        self.held, y_held, _ = load(False, classes)
        # The numbers of the chosen classes among all classes, and the labels in these numbers.
        self.chosen = torch.tensor([self.names.index(name) for name in chosen], device=device)
        self.y_train, self.y_held = self.chosen[y_train], self.chosen[y_held]
        if self.num_classes == 1 or len(self.held) < 2:
            return
        if len(self.held) < 1000:
            print(f"only {len(self.held)} images are held back, so cFID is rough and its floor "
                  "high", file=sys.stderr)
        torch.manual_seed(0)
        self.net = Classifier(images.shape[1], self.num_classes).to(device)
        key = hashlib.sha256(repr((self.net, epochs)).encode())
        for part in (images, labels):
            key.update(part.cpu().numpy().tobytes())
        cache = Path(data_dir, "cache", f"classifier_{key.hexdigest()[:16]}.pt")
        if cache.exists():
            self.net.load_state_dict(torch.load(cache, map_location=device, weights_only=True))
        else:
            train_classifier(self.net, images, labels, epochs)
            cache.parent.mkdir(parents=True, exist_ok=True)
            torch.save(self.net.state_dict(), cache)
        self.net.eval()
        self.accuracy = (read(self.net, test)[1].argmax(1) == y_test).float().mean().item()
        print(f"{data}: the classifier is right on {self.accuracy:.2%} of the held-back images",
              file=sys.stderr)
        self.features, _ = read(self.net, self.held)


# ---- samples ----

def load_checkpoint(path):
    ckpt = torch.load(path, map_location="cpu", weights_only=True)
    if ckpt.get("script", "-").split()[-1] not in SCRIPTS:
        sys.exit(f"error: {path} was not saved by any of the scripts {', '.join(SCRIPTS)}")
    return ckpt


def draw(ckpt, num, seed, device):
    """Return what --sample draws: uint8 images (num, C, H, H) and their labels, a list or None.

    The labels are categories for infogan, and names of classes for stackedgan.
    """
    *launcher, name = ckpt["script"].split()    # mlp_generator.py puts its own name before
    script = mlp_generator.load(name) if launcher else importlib.import_module(name)
    flags = f"--sample CKPT --out FOLDER --num {num} --seed {seed} --device {device}".split()
    drawn = []

    def keep(images, path, columns=8, labels=None):
        drawn.extend([images, labels])

    # This is the script's own code, except that the images do not go into a folder.
    with mock.patch.object(common, "save_images", keep):
        script.sample_checkpoint(script.get_args(flags, **ckpt["args"]), ckpt)
    images, labels = drawn
    return images.clamp(-1, 1).add(1).mul(127.5).round().byte().to(device), labels  # as in a PNG


def read_folder(path, device):
    """Return all PNGs of a folder, uint8 (N, C, H, H), grey if all of them are."""
    images = []
    for file in sorted(Path(path).rglob("*.png")):
        image = Image.open(file)
        if image.mode[0] in "IF":       # convert would cut all values above 255
            sys.exit(f"error: {file} has more than 8 bits a channel; scale it to 8 bits first")
        images.append(pil_to_tensor(image.convert("RGB")))
    if len(images) < 200:
        sys.exit(f"error: {path} has {len(images)} PNGs; a usable covariance needs at least 200")
    if len({image.shape for image in images}) > 1 or images[0].shape[1] != images[0].shape[2]:
        sys.exit(f"error: the PNGs in {path} must be square and of one size")
    images = torch.stack(images).to(device)
    return images[:, :1] if (images[:, :1] == images).all() else images


# ---- measures of one checkpoint or folder ----

def measure_images(images, ref):
    """The measures of all samples, uint8 (N, C, H, H), and the classifier's features and logits."""
    near, near_held = (nearest(common.spread(x, 1000), ref.train).median().item()
                       for x in (images, ref.held))
    result = {"images": len(images), "nearest": near, "nearest_held_back": near_held}
    if ref.net is None:
        return result, None, None
    features, logits = read(ref.net, images)
    shares = logits.argmax(1).bincount(minlength=ref.num_classes)[ref.chosen] / len(logits)
    floor, _ = read(ref.net, common.spread(ref.train, len(images)))
    result |= {"cFID": frechet(features, ref.features), "floor": frechet(floor, ref.features),
               "score": classifier_score(logits), "shares": shares.tolist(),
               "classifier_accuracy": ref.accuracy}
    return result, features, logits


def measure_gan_mlp(images, ref):
    value, error, sigma = parzen(*(x.flatten(1).float() / 255 for x in
                                   (images, common.spread(ref.train, 1000), ref.held)))
    return ({"log_likelihood": value, "standard_error": error, "sigma": sigma},
            f"log-likelihood by Parzen windows: {value:.1f} ± {error:.1f} nats, sigma {sigma:.2f}")


def measure_dcgan(ckpt, ref):
    from dcgan import Discriminator
    rows = torch.randperm(len(ref.train), generator=torch.Generator().manual_seed(0))[:1000]
    rows = rows.to(ref.train.device)

    @torch.no_grad()
    def features(images):               # without D's last layer and the Flatten after it
        return torch.cat([D.net[:-2](part / 127.5 - 1) for part in images.split(500)])

    def probe():
        return linear_probe(features(ref.train[rows]), ref.y_train[rows],
                            features(ref.held), ref.y_held)

    torch.manual_seed(0)
    D = Discriminator(ckpt["shape"], ckpt["args"]["width"]).to(ref.train.device).eval()
    random = probe()
    D.load_state_dict(ckpt["D"])
    trained = probe()
    return ({"linear_probe": trained, "linear_probe_random_D": random},
            f"a linear classifier of D's features, trained with {len(rows):,} labels, is right on "
            f"{trained:.1%}; with the features of an untrained D on {random:.1%}")


@functools.lru_cache            # checkpoints of one run share it
def cfid_of_G(path, num, seed, ref):
    ckpt = load_checkpoint(path)
    images, _ = draw({**ckpt, "G_ema": ckpt["G"]}, num, seed, ref.held.device)
    return frechet(read(ref.net, images)[0], ref.features)


def measure_wgan(path, ckpt, ref, args):
    """W of an epoch, from the log in the checkpoint, beside the cFID of G in ckpt_*.pt."""
    W, last = {}, 0
    for row in ckpt["rows"]:            # each has the mean of W over the steps since the row before
        total, steps = W.get(row["epoch"], (0, 0))
        n, last = row["step"] - last, row["step"]
        W[row["epoch"]] = total + n * row["W"], steps + n
    kept = {int(p.stem[5:]): p for p in Path(path).parent.glob("ckpt_*.pt") if p.stem[5:].isdigit()}
    there = sorted(kept.keys() & W.keys())
    # Up to 12 of these epochs, as evenly as possible on a logarithmic scale.
    ideal = [there[0] * (there[-1] / there[0])**(i / 11) for i in range(12)] if there else []
    epochs = sorted({min(there, key=lambda epoch: abs(epoch - x)) for x in ideal})
    if len(epochs) < 3:
        return {}, "W against cFID needs ckpt_*.pt of at least 3 epochs; train with --keep"
    table = []
    for epoch in epochs:
        total, steps = W[epoch]
        cfid = cfid_of_G(kept[epoch], args.num, args.seed, ref)
        table.append((epoch, total / steps, cfid))
    rho = spearman(*torch.tensor(table).T[1:])
    return ({"W_cFID": table, "W_cFID_spearman": rho},
            f"W and the cFID of G: rank correlation {rho:.2f}\n  epoch, W, cFID: "
            + "; ".join(f"{epoch}, {w:.4f}, {cfid:.0f}" for epoch, w, cfid in table))


@torch.no_grad()
def measure_infogan(ckpt, images, category, logits, ref, seed, is_digits):
    from infogan import Discriminator, Generator, codes, noise
    settings, shape = argparse.Namespace(**ckpt["args"]), ckpt["shape"]
    K, num_codes = settings.categories, settings.num_codes
    D = Discriminator(shape, settings.width, K + num_codes).to(images.device).eval()
    D.load_state_dict(ckpt["D_ema"])
    q = torch.cat([D(part / 127.5 - 1)[1] for part in ref.held.split(500)])
    result, text = {}, []
    if ref.num_classes <= 12:           # match() would take too long with more
        pairs = q[:, :K].argmax(1) * ref.num_classes + ref.y_held
        counts = pairs.bincount(minlength=K * ref.num_classes).view(K, ref.num_classes)
        result["category_errors"] = 1 - match(counts) / len(q)
        text.append("Q's category as a classifier of real images: "
                    f"{result['category_errors']:.1%} errors")
    category = torch.tensor(category, device=images.device)
    result["purity"] = pure = purity(category, logits)
    text.append(f"the commonest class in a category: {sum(pure) / len(pure):.1%} of its samples on "
                f"average, {min(pure):.1%} at worst")
    if shape[0] == 1:                   # style() is for grey images
        G = Generator(settings.z_dim, shape, settings.width, K, num_codes)
        torch.manual_seed(seed)         # draws what sample_checkpoint drew
        noise(G, len(images))
        numbers = codes(G, len(images))[:, K:].T.to(images.device)
        result["codes"] = [[within(category, number, x) for x in style(images)]
                           for number in numbers]
        text += [f"number {j}: correlation with slant {a:.2f}, ink {b:.2f}, width {d:.2f}"
                 for j, (a, b, d) in enumerate(result["codes"], 1)]
    if is_digits:                       # the true slant and pen of the held-back images are known
        _, labels, *truth = (x[-len(q):].to(q.device) for x in common.digits(20_000))
        result["codes_of_real_images"] = [[within(labels, number, x) for x in truth]
                                          for number in q[:, K:].T]
        text += [f"number {j}, as Q reads it from real images: correlation with slant {a:.2f}, "
                 f"pen {b:.2f}" for j, (a, b) in enumerate(result["codes_of_real_images"], 1)]
    return result, "\n  ".join(text)


def purity(category, logits):
    """Share of the commonest class among the samples of each category (N,): a list."""
    return [(logits[category == k].argmax(1).bincount().max() / (category == k).sum()).item()
            for k in category.unique()]


def measure_stackedgan(y, features, logits, ref):
    asked = (logits.argmax(1) == y).float().mean().item()
    ratio = variety(features, y, ref.features, ref.y_held)
    return ({"asked": asked, "variety": ratio},
            f"{asked:.2%} of the samples are of the class asked for; they vary within a class "
            f"{ratio:.2f} times as much as held-back images")


def measure(path, args):
    """All measures of a checkpoint or folder: a dict, and those of a script's method as text."""
    is_folder = Path(path).is_dir()
    if is_folder:
        images = read_folder(path, args.device)
        data, classes, shape = args.data or "mnist", args.classes, images.shape[1:]
    else:
        ckpt = load_checkpoint(path)
        images, labels = draw(ckpt, args.num, args.seed, args.device)
        data, classes = args.data or ckpt["args"]["data"], args.classes or ckpt["args"]["classes"]
        shape = ckpt["shape"]
    ref = Reference(data, classes and tuple(classes), tuple(shape), args.data_dir,
                    args.classifier_epochs, args.device)
    images = images.expand(-1, ref.train.shape[1], -1, -1)      # grey becomes RGB if the data are
    result, features, logits = measure_images(images, ref)
    result = {"path": path, "data": data, **result}
    if is_folder:
        return result, ""
    result |= {"script": ckpt["script"], "epochs": ckpt["epoch"], "seed": args.seed,
               "minutes": ckpt["rows"][-1]["minutes"]}
    name = ckpt["script"].split()[-1]
    if name == "gan_mlp":
        own, text = measure_gan_mlp(images, ref)
    elif ref.net is None:
        own, text = {}, "no classifier, because there is one class or fewer than 2 held-back images"
    elif name == "infogan":
        own, text = measure_infogan(ckpt, images, labels, logits, ref, args.seed,
                                    data == "digits" and not classes)
    elif labels:            # stackedgan, or a script with the recipe conditional.diff
        y = [ref.names.index(label) for label in labels]
        own, text = measure_stackedgan(torch.tensor(y, device=args.device), features, logits, ref)
    elif name == "dcgan":
        own, text = measure_dcgan(ckpt, ref)
    else:
        own, text = measure_wgan(path, ckpt, ref, args)
    return result | own, text


# ---- command line ----

def get_args(argv=None):
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    arg = parser.add_argument
    arg("paths", nargs="+", help="checkpoints and folders of PNGs")
    arg("--num", type=int, default=10_000, help="samples to draw; fewer give a higher cFID")
    arg("--seed", type=int, default=0, help="seed of the samples")
    arg("--data", help="None: the data of the checkpoint, or mnist for a folder")
    arg("--classes", nargs="+", help="None: those of the checkpoint, or all for a folder")
    arg("--data-dir", default="data", help="where downloads and the classifier are kept")
    arg("--classifier-epochs", type=int, default=6, help="epochs to train the classifier for")
    arg("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda:1, cpu, ...")
    arg("--json", action="store_true", help="print a JSON list instead of a table")
    args = parser.parse_args(argv)
    if args.num < 200:
        parser.error("--num must be at least 200, for a usable covariance")
    return args


def main(argv=None):
    args = get_args(argv)
    results = []
    if not args.json:
        print(f"{'':32} epochs   cFID  floor  score  rarest  commonest  nearest (held back)")
    for path in args.paths:
        result, text = measure(path, args)
        results.append(result)
        if not args.json:
            scores = ""
            if "cFID" in result:
                scores = (f" {result['cFID']:6.1f}{result['floor']:7.1f}{result['score']:7.2f}"
                          f"{min(result['shares']):8.1%}{max(result['shares']):11.1%}")
            near = f"{result['nearest']:.2f} ({result['nearest_held_back']:.2f})"
            print(f"{path:32} {result.get('epochs', ''):>6}{scores:40}{near:>21}\n  {text}",
                  flush=True)
    if args.json:
        text = json.dumps(results, indent=1)        # a value at the end of each line
        print(re.sub(r"NaN(?=,?$)", "null", text, flags=re.MULTILINE))      # JSON has no NaN


if __name__ == "__main__":
    main()
