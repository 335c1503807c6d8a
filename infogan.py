"""InfoGAN (Chen, Duan, Houthooft, Schulman, Sutskever and Abbeel 2016, arXiv:1606.03657).

In a plain GAN nobody knows what each number of the noise z does to the image. InfoGAN gives the
generator G a second input: a code c, made of a category (one of 10) and two numbers from [-1, 1].
Q, a second output of the discriminator D, has to recover the code from the fake G(z, c), so G has
to make it visible. E is the mean over the training images x, or over z ~ N(0, I) and random c:

    D and Q maximise  E log D(x) + E log(1 - D(G(z, c))) + lambda L_I
    G maximises       E log D(G(z, c)) + lambda L_I
    L_I = H(c) + E log Q(c | G(z, c))

L_I is a lower bound on the mutual information between c and G(z, c), that is, on how much the fake
tells about its code (section 5). To fool D as well, G must express the code by something in which
real images differ, such as the digit or its slant. So the code comes to mean something without any
labels, and Q can sort real images by it, although its loss only ever uses fakes.

L_I has a part for the category (--cat-weight) and one for the numbers (--code-weight). The first is
in the log as L_I: at most log 10 = 2.303 nats. For the numbers, Q is a Gaussian of variance 1, so
-E log Q is half the squared error of its guess, plus a constant; the log has its root, code_rmse.

In D's step, Q reads the category from a bent copy of the fake: turned, stretched, slanted and
shifted at random (--bend). Otherwise Q may learn details of the strokes, and G may use them to put
the same two digits into two categories. Bending adds no information: L_I stays a lower bound.

Two mistakes are common: training Q on the labels of real images, which is another, supervised
method (--supervised), and taking -c log q as a number's loss, as if the guess q were a probability.

What differs from the paper: fakes are bent for Q; D's learning rate is 5e-4, not 2e-4; networks
are half as wide; Q's variance is fixed, and the layers that D and Q share also learn to raise L_I
(both as in the authors' code); noise is normal; G_ema and D_ema are averages, to use afterwards.

In a healthy run L_I rises to 2.25, and code_rmse falls from 0.58 (chance) to 0.2. The grids in
samples/ show what the code means: a row for each category, and sweeps of the numbers on the right.

    python infogan.py                                   # MNIST, 15 epochs, into out/infogan
    python infogan.py --sample out/infogan/ckpt.pt      # a row for each category; sweeps of numbers
    python infogan.py --sample out/infogan/ckpt.pt --category 3 --code 0.5 -1 --out out/one.png
"""

import argparse
import copy
import csv
import io
import math
import sys
import time
from collections import defaultdict
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

SCRIPT = "infogan"


# ---- networks ----

def map_sizes(side, smallest):
    """Halve `side`, rounding up, until it is at most `smallest`. Return every side on the way."""
    sizes = [side]
    while sizes[-1] > smallest:
        sizes.append((sizes[-1] + 1) // 2)
    return sizes


def init_weights(layer):
    """Draw weights from N(0, 0.02^2), as in the DCGAN paper, and set biases to 0."""
    if isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(layer.weight, 0, 0.02)
        nn.init.zeros_(layer.bias)


class Generator(nn.Module):
    """Turns noise z (B, z_dim) and codes c (B, c_dim) into images (B, C, H, H) in [-1, 1].

    `shape` is (C, H, H). A code is the one-hot vector of its category and then num_codes numbers
    from [-1, 1], so c_dim = categories + num_codes.
    """

    def __init__(self, z_dim=62, shape=(1, 28, 28), width=32, categories=10, num_codes=2):
        super().__init__()
        self.z_dim, self.categories, self.num_codes = z_dim, categories, num_codes
        sizes = map_sizes(shape[-1], 7)                                         # 28, 14, 7
        channels = [shape[0], *(width * 2**i for i in range(len(sizes) - 1))]   # 1, 32, 64
        hidden = 16 * width
        layers = [nn.Linear(z_dim + categories + num_codes, hidden), nn.BatchNorm1d(hidden),
                  nn.ReLU(), nn.Linear(hidden, channels[-1] * sizes[-1]**2),
                  nn.Unflatten(1, (channels[-1], sizes[-1], sizes[-1]))]
        for i in reversed(range(len(sizes) - 1)):       # 7 -> 14 -> 28
            # ConvTranspose2d turns a side n into 2n with kernel 4, and into 2n - 1 with kernel 3.
            n_in, n_out, kernel = channels[i + 1], channels[i], 4 - sizes[i] % 2
            layers += [nn.BatchNorm2d(n_in), nn.ReLU()]
            layers.append(nn.ConvTranspose2d(n_in, n_out, kernel, stride=2, padding=1))
        self.net = nn.Sequential(*layers, nn.Tanh())
        self.apply(init_weights)

    def forward(self, z, c):
        return self.net(torch.cat([z, c], 1))


class Discriminator(nn.Module):
    """Turns images (B, C, H, H) into raw scores s (B,) and Q's output (B, c_dim).

    The D(x) of the formulas is sigmoid(s). Q shares D's hidden layers, the trunk. Its output is
    laid out like a code: first a logit for each category, then a guess of each number.
    """

    def __init__(self, shape=(1, 28, 28), width=32, c_dim=12):
        super().__init__()
        sizes = map_sizes(shape[-1], 7)                                         # 28, 14, 7
        channels = [shape[0], *(width * 2**i for i in range(len(sizes) - 1))]   # 1, 32, 64
        layers, hidden = [], 16 * width
        for i in range(len(sizes) - 1):
            n_in, n_out, kernel = channels[i], channels[i + 1], 4 - sizes[i] % 2
            layers.append(nn.Conv2d(n_in, n_out, kernel, stride=2, padding=1))
            if i > 0:                   # no BatchNorm after the first layer
                layers.append(nn.BatchNorm2d(n_out))
            layers.append(nn.LeakyReLU(0.1))
        layers += [nn.Flatten(), nn.Linear(channels[-1] * sizes[-1]**2, hidden)]
        layers.append(nn.BatchNorm1d(hidden))
        self.trunk = nn.Sequential(*layers, nn.LeakyReLU(0.1))  # each unit sees the whole image
        self.score = nn.Linear(hidden, 1)
        self.Q = nn.Sequential(nn.Linear(hidden, 2 * width), nn.BatchNorm1d(2 * width),
                               nn.LeakyReLU(0.1), nn.Linear(2 * width, c_dim))
        self.apply(init_weights)

    def forward(self, x):
        h = self.trunk(x)
        return self.score(h).flatten().float(), self.Q(h).float()  # float32 even with --amp


# ---- losses ----
# F.logsigmoid(s) is log D(x), and F.logsigmoid(-s) is log(1 - D(x)). Both are finite for every s.

def discriminator_loss(s_real, s_fake):
    """Return -E log D(x) and -E log(1 - D(G(z))), from the scores (B,) of real data and fakes."""
    return -F.logsigmoid(s_real).mean(), -F.logsigmoid(-s_fake).mean()


def generator_loss(s_fake):
    """Return -E log D(G(z)), the non-saturating loss, from the scores (B,) of fakes."""
    return -F.logsigmoid(s_fake).mean()


def information(q, c, categories):
    """Return the category's part of L_I, and the squared error of the numbers, from q and codes c.

    Q's output q and c are (B, c_dim). L_I (equation 5) is in nats and at most log(categories). The
    error is summed over the numbers. Half of it is -E log Q, up to a constant.
    """
    # cross_entropy applies the softmax itself. A second softmax would flatten the distribution.
    L_I = math.log(categories) - F.cross_entropy(q[:, :categories], c[:, :categories])
    return L_I, (q[:, categories:] - c[:, categories:]).square().sum(1).mean()


# ---- one step of D and of G; the train functions return what the log shows ----

def noise(G, n):
    """Return n noise vectors z ~ N(0, I) as a tensor (n, z_dim) on G's device."""
    return torch.randn(n, G.z_dim, device=next(G.parameters()).device)


def codes(G, n):
    """Return n random codes (n, c_dim): one-hot categories, and then numbers from [-1, 1]."""
    device = next(G.parameters()).device
    category = torch.randint(G.categories, (n,), device=device)     # row i of eye: one-hot for i
    numbers = 2 * torch.rand(n, G.num_codes, device=device) - 1
    return torch.cat([torch.eye(G.categories, device=device)[category], numbers], 1)


def bent(images, strength):
    """Return images (B, C, H, H), each turned, stretched, slanted and shifted at random."""
    maps = strength * torch.randn(len(images), 2, 3, device=images.device)
    maps[:, :, 2] /= 2                  # the shifts, in units of half a side
    maps += torch.eye(2, 3, device=images.device)
    grid = F.affine_grid(maps, images.shape, align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def train_discriminator(G, D, opt, real, labels=None, cat_weight=1.0, code_weight=1.0, bend=0.2,
                        amp=nullcontext()):
    """Take one step of D and Q on real images (B, C, H, H) in [-1, 1] and as many fakes.

    With labels (B,), Q also learns to classify the real images. That is no longer InfoGAN.
    """
    z, c = noise(G, len(real)), codes(G, len(real))
    with amp:                           # torch.autocast with --amp, or else nothing
        with torch.no_grad():           # D's step needs no gradient of G's weights
            fake = G(z, c)
        s_real, q_real = D(real)        # real images have no codes: only labels train q_real
        s_fake, q = D(fake)             # in one call, BatchNorm would mix real and fake
        if bend > 0:                    # the numbers are read unbent: one may mean the slant
            q = torch.cat([D(bent(fake, bend))[1][:, :G.categories], q[:, G.categories:]], 1)
    loss_real, loss_fake = discriminator_loss(s_real, s_fake)
    L_I, error = information(q, c, G.categories)
    total = loss_real + loss_fake - cat_weight * L_I + code_weight * error / 2
    if labels is not None:
        total = total + cat_weight * F.cross_entropy(q_real[:, :G.categories], labels)
    D.zero_grad()
    total.backward()
    opt.step()
    return {"loss_real": loss_real.detach(), "loss_fake": loss_fake.detach(),
            "D(x)": s_real.detach().sigmoid().mean(), "D(G(z))": s_fake.detach().sigmoid().mean(),
            "L_I": L_I.detach(), "code_rmse": (error.detach() / max(1, G.num_codes)).sqrt()}


def train_generator(G, D, opt, n, cat_weight=1.0, code_weight=1.0, amp=nullcontext()):
    """Take one step of G on n fakes."""
    z, c = noise(G, n), codes(G, n)
    with amp:
        s_fake, q = D(G(z, c))
    loss_G = generator_loss(s_fake)     # the log shows this part only
    L_I, error = information(q, c, G.categories)
    G.zero_grad()
    total = loss_G - cat_weight * L_I + code_weight * error / 2
    total.backward(inputs=list(G.parameters()))     # the gradients of G's weights only
    opt.step()
    return {"loss_G": loss_G.detach()}


@torch.no_grad()
def update_ema(G_ema, G, decay, t):
    """Set G_ema to decay * G_ema + (1 - decay) * G after step t, including BatchNorm's statistics.

    The decay starts small. Otherwise the random initial weights would linger in G_ema too long.
    """
    decay = min(decay, (1 + t) / (5 + t))
    for average, value in zip(G_ema.state_dict().values(), G.state_dict().values()):
        if value.is_floating_point():   # not the integer num_batches_tracked
            average.lerp_(value, 1 - decay)


@torch.no_grad()
def sample(G, z, c):
    """Return G(z, c), where BatchNorm uses its running statistics, so no image affects another."""
    G.eval()
    images = G(z, c)
    G.train()
    return images


def pictures(G, z, c, steps=9):
    """Return a list of grids of images (K, n, C, H, H), each with one row for each of K categories.

    The columns of the first grid take z (n, z_dim) and the numbers of c (n, c_dim). The others are
    sweeps: one number goes from -2 to 2 (in training: -1 to 1), the rest are 0, and z is z[0].
    """
    inputs, sweep = [(z, c[:, G.categories:])], torch.linspace(-2, 2, steps, device=z.device)
    for one_hot in torch.eye(G.num_codes, device=z.device):
        inputs.append((z[:1].repeat(steps, 1), sweep[:, None] * one_hot))
    result, one_hots = [], torch.eye(G.categories, device=z.device)
    for z_row, numbers in inputs:
        rows = [torch.cat([one_hot.repeat(len(z_row), 1), numbers], 1) for one_hot in one_hots]
        result.append(torch.stack([sample(G, z_row, c_row) for c_row in rows]))
    return result


# ---- training ----

class GraphedUpdate:
    """Run `update`, a function of tensors, as a CUDA graph (--graph): one launch for all kernels.

    Calls 1 to 3 warm up. Call 4 records the GPU's work. From then on, every call replays the record
    on new data and noise. Python's part is skipped: a print or a new learning rate has no effect.
    """

    def __init__(self, update):
        self.update, self.calls = update, 0

    def __call__(self, *tensors):
        self.calls += 1
        if self.calls <= 3:
            return self.update(*tensors)
        if self.calls == 4:
            self.inputs = [x.clone() for x in tensors]
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):      # records, but runs nothing yet
                self.stats = self.update(*self.inputs)
        for old, new in zip(self.inputs, tensors):
            old.copy_(new)
        self.graph.replay()
        return {name: value.clone() for name, value in self.stats.items()}  # replays overwrite them


def train(args, ckpt=None):
    # Imported here, so that the networks and losses above can be imported without common.py.
    from common import batches, default_data, load_images, save_gif, save_grid, spread
    device, out = torch.device(args.device), Path(args.out)
    last = out / "ckpt.pt"
    if last.exists() and not (ckpt and last.samefile(args.resume)):
        sys.exit(f"error: {last} exists; use another --out, or --resume {last} and more --epochs")
    if ckpt and ckpt["epoch"] >= args.epochs:
        sys.exit(f"error: {ckpt['epoch']} epochs are done; raise --epochs to continue")
    use_graph = args.graph and device.type == "cuda"
    if use_graph:       # the warm-up calls must not run on the default stream
        torch.cuda.set_stream(torch.cuda.Stream(device))
    torch.manual_seed(args.seed)
    args.data = args.data or default_data(args.data_dir)    # kept for --resume
    images, labels, names = load_images(args.data, args.data_dir, image_size=args.image_size,
                                        channels=args.channels, classes=args.classes, device=device)
    shape = tuple(images.shape[1:])     # images are uint8 (N, C, H, W); batches are in [-1, 1]
    args.channels, args.image_size = shape[0], shape[-1]
    n_batches = max(1, len(images) // args.batch_size)      # a last, shorter batch is left out
    if args.supervised and len(names) > args.categories:
        sys.exit(f"error: --supervised needs --categories {len(names)}, one for each class")

    G = Generator(args.z_dim, shape, args.width, args.categories, args.num_codes).to(device)
    D = Discriminator(shape, args.width, args.categories + args.num_codes).to(device)
    G_ema = copy.deepcopy(G).requires_grad_(False)
    D_ema = copy.deepcopy(D).requires_grad_(False)
    optimizer = partial(torch.optim.Adam, betas=(args.beta1, args.beta2), fused=True,
                        capturable=use_graph)
    opt_G = optimizer(G.parameters(), lr=args.lr)
    opt_D = optimizer(D.parameters(), lr=args.lr_d)
    parts = {"G": G, "D": D, "G_ema": G_ema, "D_ema": D_ema, "opt_G": opt_G, "opt_D": opt_D}
    z, c = noise(G, 8), codes(G, 8)     # the same for every grid, so that grids can be compared
    first_epoch, step, rows = 1, 0, []      # `step` counts D's steps; `rows` go to log.csv
    if ckpt:
        for name, part in parts.items():
            if name.startswith("opt"):      # the settings of the optimizers come from the flags
                ckpt[name]["param_groups"] = part.state_dict()["param_groups"]
            part.load_state_dict(ckpt[name])
        z, c = ckpt["z"].to(device), ckpt["c"].to(device)
        first_epoch, step, rows = ckpt["epoch"] + 1, ckpt["step"], ckpt["rows"]
        torch.set_rng_state(ckpt["rng"])
        if device.type == "cuda" and ckpt["rng_cuda"] is not None:
            torch.cuda.set_rng_state(ckpt["rng_cuda"], device)

    (out / "samples").mkdir(parents=True, exist_ok=True)
    save_grid(spread(images, 64) / 127.5 - 1, out / "samples/real.png")
    writer = None
    if args.tensorboard:
        from torch.utils.tensorboard import SummaryWriter
        writer = SummaryWriter(out / "tensorboard", purge_step=step + 1)

    amp = torch.autocast(device.type, torch.bfloat16) if args.amp else nullcontext()
    settings = dict(cat_weight=args.cat_weight, code_weight=args.code_weight, amp=amp)
    update_D = partial(train_discriminator, G, D, opt_D, bend=args.bend, **settings)
    update_G = partial(train_generator, G, D, opt_G, min(args.batch_size, len(images)), **settings)
    if use_graph:
        update_D, update_G = GraphedUpdate(update_D), GraphedUpdate(update_G)

    print(f"{args.data}: {len(images):,} images {shape}, {n_batches} batches an epoch, on {device}")
    print(f"L_I is at most H(c) = {math.log(args.categories):.4f}; a code_rmse of 0.577 is chance")
    save_every = args.save_every or max(1, args.epochs // 40)
    history = defaultdict(list)         # maps a name to its values since the last line of the log
    last_log = last_save = time.time()
    for epoch in range(first_epoch, args.epochs + 1):
        for i, (real, y) in enumerate(batches(images, args.batch_size, labels), 1):
            step += 1
            stats = update_D(real, y) if args.supervised else update_D(real)
            stats |= update_G()
            update_ema(G_ema, G, args.ema, step)
            update_ema(D_ema, D, args.ema, step)
            for name, value in stats.items():
                history[name].append(value)

            if i == n_batches or time.time() - last_log > args.log_every:
                # .item() waits for the GPU. The steps do not, so the CPU can run ahead of it.
                means = {name: torch.stack(v).mean().item() for name, v in history.items()}
                speed = len(history["D(x)"]) * len(real) / (time.time() - last_log)
                minutes = ((args.epochs - epoch + 1) * n_batches - i) * len(real) / speed / 60
                text = " ".join(f"{name} {value:.4f}" for name, value in means.items())
                print(f"epoch {epoch}/{args.epochs} step {step} {text} {speed:.0f} images/s, "
                      f"{minutes:.1f} min left", flush=True)
                weights = nn.utils.parameters_to_vector([*G.parameters(), *D.parameters()])
                if not all(map(math.isfinite, means.values())) or not weights.isfinite().all():
                    sys.exit("error: a loss or a weight is not finite; try lower learning rates")
                rows.append({"epoch": epoch, "step": step, "images/s": speed, **means})
                if writer:
                    for name, value in means.items():
                        writer.add_scalar(name, value, step)
                history.clear()
                last_log = time.time()

        if epoch % save_every == 0 or epoch == args.epochs or time.time() - last_save > 60:
            grid, *sweeps = pictures(G_ema, z, c)
            for sweep in sweeps:        # put each to the right of a white column
                grid = torch.cat([grid, torch.ones_like(sweep[:, :1]), sweep], 1)
            save_grid(grid.flatten(0, 1), out / f"samples/{epoch:04}.png", grid.shape[1])
            if writer:
                writer.add_images("samples", grid.flatten(0, 1) / 2 + 0.5, step)
            with open(out / "log.csv", "w", newline="") as file:
                table = csv.DictWriter(file, dict.fromkeys(name for row in rows for name in row))
                table.writeheader()
                table.writerows(rows)
            buffer = io.BytesIO()       # torch.save to a file would hide that the disk is full
            torch.save({
                "script": SCRIPT, "args": vars(args), "shape": shape, "classes": names, "c": c,
                "epoch": epoch, "step": step, "rows": rows, "z": z, "rng": torch.get_rng_state(),
                **{name: part.state_dict() for name, part in parts.items()},
                "rng_cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
            }, buffer)
            (out / "ckpt.tmp").write_bytes(buffer.getbuffer())
            (out / "ckpt.tmp").replace(last)    # atomic: ckpt.pt is never half-written
            if args.keep:
                (out / f"ckpt_{epoch:04}.pt").write_bytes(buffer.getbuffer())
            last_log = last_save = time.time()
    grids = sorted(out.glob("samples/[0-9]*.png"), key=lambda path: int(path.stem))
    save_gif(grids, out / "samples.gif")
    print(f'wrote {out}; for more images: python {SCRIPT}.py --sample "{last}"')


def sample_checkpoint(args, ckpt):
    """Write args.num images: one grid if args.out is a picture, else a folder of single PNGs.

    All categories get the same share, unless --category names one. --code sets the first numbers,
    and the others are random. Without these flags, a grid comes with a sweep of each number.
    """
    from common import is_picture, save_images
    G = Generator(args.z_dim, ckpt["shape"], args.width, args.categories, args.num_codes)
    G.load_state_dict(ckpt["G_ema"])
    K, num, columns = G.categories, args.num or 8 * G.categories, 8
    if args.category is None:
        columns = math.ceil(num / K)
        num = K * columns if is_picture(args.out) else num      # whole rows
    # The noise is drawn while G is on the CPU, so that a seed gives the same on every device.
    torch.manual_seed(args.seed)
    z, c = noise(G, num), codes(G, num)
    category = torch.arange(num) * K // num     # 0, 0, ..., 1, 1, ...: the same share for each
    if args.category is not None:
        category[:] = args.category
    c[:, :K] = torch.eye(K)[category]
    c[:, K:K + len(args.code)] = torch.tensor(args.code)
    G.to(args.device)
    parts = zip(z.to(args.device).split(500), c.to(args.device).split(500))
    images = torch.cat([sample(G, *part).cpu() for part in parts])
    save_images(images, args.out, columns, category)
    if is_picture(args.out) and args.category is None and not args.code:
        path = Path(args.out)
        for j, sweep in enumerate(pictures(G, z[:1].to(args.device), c[:1].to(args.device))[1:], 1):
            save_images(sweep.flatten(0, 1), path.with_stem(f"{path.stem}_code{j}"), sweep.shape[1])


# ---- command line ----

def get_args(argv=None):
    """Return the settings, and the checkpoint that --resume or --sample names (or None)."""
    parser = argparse.ArgumentParser(usage=f"python {SCRIPT}.py [flags]", allow_abbrev=False,
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    arg = parser.add_argument
    switch = argparse.BooleanOptionalAction     # makes both --amp and --no-amp
    # data
    arg("--data", help="mnist, fashion-mnist, cifar10, strokes or a folder; if not given: mnist")
    arg("--data-dir", default="data", help="where downloads and caches are kept")
    arg("--classes", nargs="+", help="train on these classes only, by name or number")
    arg("--image-size", type=int, default=0, help="pixels a side; 0: the data's, or 64 if mixed")
    arg("--channels", type=int, choices=(0, 1, 3), default=0, help="1: grey; 3: RGB; 0: as it is")
    # training
    arg("--epochs", type=int, default=15, help="total number, including those before --resume")
    arg("--batch-size", type=int, default=128, help="real images in each step")
    arg("--lr", type=float, default=1e-3, help="learning rate of G")
    arg("--lr-d", type=float, default=5e-4, help="learning rate of D")
    arg("--beta1", type=float, default=0.5, help="Adam's decay of the average gradient")
    arg("--beta2", type=float, default=0.999, help="Adam's decay of the average square")
    arg("--categories", type=int, default=10, help="how many categories there are")
    arg("--num-codes", type=int, default=2, help="how many numbers a code has")
    arg("--cat-weight", type=float, default=1.0, help="lambda: weight of the category's L_I")
    arg("--code-weight", type=float, default=1.0, help="lambda: weight of the numbers' error")
    arg("--bend", type=float, default=0.2, help="how much fakes are bent for Q; 0: not at all")
    arg("--supervised", action=switch, default=False, help="also teach Q the labels of real images")
    arg("--z-dim", type=int, default=62, help="length of the noise vector z")
    arg("--width", type=int, default=32, help="channels of the largest feature maps")
    arg("--ema", type=float, default=0.995, help="decay of the moving averages of G and D")
    arg("--seed", type=int, default=0, help="seed of the random numbers")
    # output and machine
    arg("--out", help=f"folder, or picture with --sample (if not given: out/{SCRIPT}, or CKPT's)")
    arg("--log-every", type=float, default=3, help="seconds between log lines within an epoch")
    arg("--save-every", type=int, default=0, help="epochs between saves, or a minute; 0: epochs/40")
    arg("--keep", action=switch, default=False, help="also keep each save as ckpt_EPOCH.pt")
    arg("--tensorboard", action=switch, default=False, help="also write TensorBoard logs")
    arg("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda or cpu")
    arg("--amp", action=switch, default=False, help="compute in bfloat16 where that is safe")
    arg("--graph", action=switch, default=False, help="use CUDA graphs, see GraphedUpdate")
    either = parser.add_mutually_exclusive_group().add_argument
    either("--resume", metavar="CKPT", help="continue this run; flags not given keep its values")
    either("--sample", metavar="CKPT", help="draw images with the G_ema in CKPT")
    arg("--num", type=int, default=0, help="how many images --sample generates; 0: 8 * categories")
    arg("--category", type=int, help="with --sample: only this category, from 0")
    arg("--code", type=float, nargs="+", default=[], help="with --sample: values of the numbers")

    args, ckpt = parser.parse_args(argv), None
    path = args.resume or args.sample
    if path:
        try:
            ckpt = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:      # it is missing, damaged, or a pickle that could run code
            parser.error(f"cannot load {path}: {str(error).split('. ')[0] or 'it is empty'}")
        if not isinstance(ckpt, dict) or ckpt.get("script") != SCRIPT:
            parser.error(f"{path} was not saved by {SCRIPT}.py")
        this_run = ("out", "device", "resume", "sample", "num", "category", "code")
        parser.set_defaults(**{k: v for k, v in ckpt["args"].items() if k not in this_run})
        args = parser.parse_args(argv)      # again, with the checkpoint's settings as defaults
        # These flags determine the layers of G and D.
        for name in ("image_size", "channels", "z_dim", "width", "categories", "num_codes"):
            if vars(args)[name] != ckpt["args"][name]:
                parser.error(f"--{name.replace('_', '-')} must be {ckpt['args'][name]} for {path}")
    least = min(args.epochs, args.z_dim, args.width, args.categories)
    if least < 1 or args.batch_size < 2 or min(args.num, args.num_codes) < 0:
        parser.error("--batch-size must be above 1, sizes above 0, num and num-codes at least 0")
    if not 0 <= (args.category or 0) < args.categories or len(args.code) > args.num_codes:
        parser.error(f"use categories 0 to {args.categories - 1} and {args.num_codes} numbers")
    if not min(args.lr, args.lr_d) > 0 or not max(args.beta1, args.beta2, args.ema) < 1:
        parser.error("learning rates must be above 0; betas and --ema below 1")
    if any(not value >= 0 for value in vars(args).values() if isinstance(value, (int, float))):
        parser.error("flags that are numbers must not be negative or nan")
    folder = Path(path).parent if path else Path("out", SCRIPT)
    args.out = args.out or str(folder / "sample.png" if args.sample else folder)
    return args, ckpt


def main(argv=None):
    args, ckpt = get_args(argv)
    try:
        if args.sample:
            sample_checkpoint(args, ckpt)
        else:
            train(args, ckpt)
    except (OSError, ModuleNotFoundError) as error:     # missing data, a full disk, no tensorboard
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nstopped; --resume continues from the last ckpt.pt, if one was saved")


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")   # the terminal may not show all letters
    main()
