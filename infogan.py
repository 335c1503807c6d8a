"""InfoGAN (Chen, Duan, Houthooft, Schulman, Sutskever, Abbeel 2016, arXiv:1606.03657).

A generator G and a discriminator D play as in dcgan.py, but G gets a code c beside its noise z:
here one of 10 categories, and two numbers from [-1, 1]. A third network, Q, is to read the code off
the image. With E the mean over the training images x, or over z ~ N(0, I) and random c:

    D and Q maximise  E log D(x) + E log(1 - D(G(z, c))) + λ L_I
    G maximises       E log D(G(z, c)) + λ L_I
    with              L_I = H(c) + E log Q(c | G(z, c))

What a number of z does in a plain GAN is anybody's guess. L_I is a lower bound of the mutual
information of c and G(z, c): of what an image tells about its code (section 5). To raise it, G has
to make the code visible; to please D as well, it has to do so by something in which real images
differ, such as the digit, or its slant. So the codes come to mean something though no label was
ever used, and Q becomes a classifier of real images that never saw a label.

For a categorical code Q is a softmax, and L_I at most the entropy H(c), log 10 = 2.303 nats for one
of 10. For a number Q is a Gaussian of variance 1 around its guess, so that -E log Q is half the
squared error plus a constant; that bound is below 0 and proves nothing, so code_rmse, the root of
the mean squared error, is logged in its place. λ is --cat-weight for the first, --code-weight for
the second. The paper lets G and Q raise L_I; in the authors' code, as here, D's trunk does, too,
on which Q stands with two layers of its own.

Two mistakes are common: to teach Q the labels of the real images, which is another method (here
--supervised), and to use the cross-entropy -c log q of a number c and its guess q, though q is no
probability.

Not as in the paper: both networks are half as wide, D's learning rate is 5e-4 in place of 2e-4 (the
categories then sort digits better, see README), z is normal in place of uniform, and samples come
from a moving average of G's weights.

A healthy run: L_I goes near its ceiling H(c) and code_rmse from chance, 0.58, to 0.2 in 3 passes; D
slowly gets ahead, as in dcgan.py. That codes can be read off says nothing of what they mean: look
at the grids in samples/, a row a category, and to the right of that, for each number, what it does.

Measured on MNIST (see README), 15 passes, 13 to 15 minutes on 2 CPU cores, three seeds: Q's
category, matched to digits, errs on 13.5, 13.0 and 4.8 % of the test images (the paper: 5 %), cFID
is 10 to 11. Where it errs most, two categories share two digits that look alike, 4 and 9. In seed 0
the numbers are the width of the pen and the slant.

    python infogan.py                                   # MNIST, 15 passes, into out/infogan
    python infogan.py --sample out/infogan/ckpt.pt      # a row a category; what each number does
    python infogan.py --sample out/infogan/ckpt.pt --category 3 --code 0.5 -1 --out out/one.png
    python infogan.py --data fashion-mnist --num-codes 3 --out out/fashion
"""

import argparse
import contextlib
import copy
import math
import os
import shlex
import sys
import time
import warnings
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.optim.swa_utils import get_ema_multi_avg_fn

SCRIPT = "infogan"


# ---- networks ----

def halved(side):
    """Sides of the maps, halved and rounded up, down to 7 or less: for 28 [28, 14, 7]."""
    return [side] if side <= 7 else [side, *halved((side + 1) // 2)]


def init_weights(layer):
    """Normal with standard deviation 0.02, biases 0, as in dcgan.py."""
    if isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(layer.weight, 0, 0.02)
        nn.init.zeros_(layer.bias)


class Generator(nn.Module):
    """Noise z (B, z_dim) and codes c (B, c_dim) to images (B, C, H, H) in [-1, 1].

    shape is (C, H, H), H at least 8; `categories` says how many values each categorical code has. c
    is their one-hot vectors and then num_codes numbers: c_dim = sum(categories) + num_codes.
    """

    def __init__(self, z_dim=62, shape=(1, 28, 28), width=32, categories=(10,), num_codes=2):
        super().__init__()
        self.z_dim, self.categories, self.num_codes = z_dim, tuple(categories), num_codes
        sides = halved(shape[-1])[::-1]                                     # 7, 14, 28
        hidden, n = 16 * width, width * 2**(len(sides) - 2)                 # 512; 64, then 32, 1
        layers = [nn.Linear(z_dim + sum(categories) + num_codes, hidden),
                  nn.BatchNorm1d(hidden), nn.ReLU(),
                  nn.Linear(hidden, n * sides[0]**2), nn.Unflatten(1, (n, sides[0], sides[0]))]
        for side in sides[1:]:          # the sides of D in reverse
            n_in, n = n, n // 2 if side < sides[-1] else shape[0]
            layers += [nn.BatchNorm2d(n_in), nn.ReLU(),
                       nn.ConvTranspose2d(n_in, n, 4 - side % 2, stride=2, padding=1)]
        self.net = nn.Sequential(*layers, nn.Tanh())
        self.apply(init_weights)

    def forward(self, z, c):
        return self.net(torch.cat([z, c], 1))


class Discriminator(nn.Module):
    """Images (B, C, H, H) in [-1, 1] to raw scores (B,); D(x) is their sigmoid.

    Q shares its trunk. c_dim: the length of Q's output, which is laid out like c: the logits of
    each categorical code, then a guess of each number.
    """

    def __init__(self, shape=(1, 28, 28), width=32, c_dim=12):
        super().__init__()
        *sides, last = halved(shape[-1])                                    # 28, 14; 7
        layers, n = [], shape[0]
        for i, side in enumerate(sides):
            n_in, n = n, width * 2**i                                       # 1, then 32, 64
            layers.append(nn.Conv2d(n_in, n, 4 - side % 2, stride=2, padding=1))
            if i:                       # not right behind the images
                layers.append(nn.BatchNorm2d(n))
            layers.append(nn.LeakyReLU(0.1))
        hidden = 16 * width             # its units see the whole image
        self.trunk = nn.Sequential(
            *layers, nn.Flatten(),
            nn.Linear(n * last**2, hidden), nn.BatchNorm1d(hidden), nn.LeakyReLU(0.1))
        self.score = nn.Linear(hidden, 1)
        self.Q = nn.Sequential(
            nn.Linear(hidden, 2 * width), nn.BatchNorm1d(2 * width), nn.LeakyReLU(0.1),
            nn.Linear(2 * width, c_dim))
        self.apply(init_weights)

    def forward(self, x):
        scores = self.score(self.trunk(x))
        return scores.flatten().float()         # the losses are taken in float32, under --amp too

    def score_and_code(self, x):
        """D's scores (B,) and Q's output (B, c_dim)."""
        h = self.trunk(x)
        return self.score(h).flatten().float(), self.Q(h).float()


# ---- losses ----
# D = sigmoid(s), so log D = logsigmoid(s) and log(1 - D) = logsigmoid(-s), finite for all scores s.

def discriminator_loss(s_real, s_fake):
    """-E log D(x) and -E log(1 - D(G(z))) in nats, from scores (B,) of real images and of fakes."""
    return -F.logsigmoid(s_real).mean(), -F.logsigmoid(-s_fake).mean()


def generator_loss(s_fake):
    """-E log D(G(z)), the non-saturating loss, from scores (B,) of fakes."""
    return -F.logsigmoid(s_fake).mean()


def information(q, c, categories):
    """What Q's output q says about the codes c, both (B, c_dim), of images G(z, c).

    Returns L_I of the categorical codes in nats, from -∞ to H(c) (equation 5), and the squared
    error of the numbers, summed over them; half of it is their -E log Q(c|x) up to a constant.
    """
    sizes = [*categories, c.shape[1] - sum(categories)]
    (*logits, guesses), (*one_hots, numbers) = q.split(sizes, 1), c.split(sizes, 1)
    # cross_entropy takes the softmax itself; a second one before it would flatten Q
    L_I = sum(math.log(logit.shape[1]) - F.cross_entropy(logit, one_hot)
              for logit, one_hot in zip(logits, one_hots))
    return L_I, (guesses - numbers).square().sum(1).mean()


# ---- one update of each player ----

def noise(G, n):
    """z ~ N(0, I), (n, z_dim), on G's device."""
    return torch.randn(n, G.z_dim, device=next(G.parameters()).device)


def codes(G, n):
    """c, (n, c_dim), on G's device: random categories as one-hot vectors, numbers from [-1, 1]."""
    device = next(G.parameters()).device
    one_hots = [F.one_hot(torch.randint(k, (n,), device=device), k).float()
                for k in G.categories]
    return torch.cat([*one_hots, 2 * torch.rand(n, G.num_codes, device=device) - 1], 1)


def autocast(device, amp):
    """With --amp: bfloat16 where it is safe."""
    return torch.autocast(device.type, torch.bfloat16) if amp else contextlib.nullcontext()


def train_discriminator(G, D, opt, real, *, cat_weight=1.0, code_weight=1.0, labels=None,
                        amp=False):
    """One step of D and Q on real images (B, C, H, H) in [-1, 1] and as many fakes.

    labels: those of the real images (B,), for Q to learn as well; that is no longer InfoGAN.
    Returns six numbers, (6,): -E log D(x), -E log(1 - D(G(z, c))), E D(x), E D(G(z, c)), L_I of
    the categories, and the squared error of the numbers.
    """
    z, c = noise(G, len(real)), codes(G, len(real))
    with autocast(real.device, amp):
        with torch.no_grad():           # D's step needs no gradient through G
            fake = G(z, c)
        # real and fake apart: BatchNorm would mix them in one batch. Q, too, has BatchNorm, and
        # learns from fakes: real images are kept from it, unless it is to learn their labels
        s_real, q_real = (D(real), None) if labels is None else D.score_and_code(real)
        s_fake, q = D.score_and_code(fake)
    loss_real, loss_fake = discriminator_loss(s_real, s_fake)
    L_I, error = information(q, c, G.categories)
    # the trunk is to help Q as well: D's loss has the bound too, as in the authors' code
    loss = loss_real + loss_fake - cat_weight * L_I + code_weight * error / 2
    if labels is not None:
        loss = loss + cat_weight * F.cross_entropy(q_real[:, :G.categories[0]], labels)
    D.zero_grad()
    loss.backward()
    opt.step()
    D_x, D_Gz = s_real.sigmoid().mean(), s_fake.sigmoid().mean()
    return torch.stack([loss_real, loss_fake, D_x, D_Gz, L_I, error]).detach()


def train_generator(G, D, opt, n, *, cat_weight=1.0, code_weight=1.0, amp=False):
    """One step of G on n fakes. Returns its loss without the bound, -E log D(G(z, c)), ()."""
    z, c = noise(G, n), codes(G, n)
    with autocast(z.device, amp):
        s_fake, q = D.score_and_code(G(z, c))
    loss_G = generator_loss(s_fake)
    L_I, error = information(q, c, G.categories)
    total = loss_G - cat_weight * L_I + code_weight * error / 2
    G.zero_grad()
    # through D, but for G's weights only: D's own are not needed, frozen ones would be refused
    total.backward(inputs=[w for w in G.parameters() if w.requires_grad])
    opt.step()
    return loss_G.detach()


# ---- samples ----

@torch.no_grad()
def update_ema(G_ema, G, decay, t):
    """After G's t-th update: G_ema = decay G_ema + (1 - decay) G. It is steadier than G."""
    # less while t is small: only about the last tenth of all updates counts, not the random start
    decay = min(decay, (1 + t) / (10 + t))
    # the formula above, for all weights at once
    get_ema_multi_avg_fn(decay)(list(G_ema.parameters()), list(G.parameters()), None)
    for average, buffer in zip(G_ema.buffers(), G.buffers()):
        average.copy_(buffer)           # BatchNorm's statistics are copied: near enough


@torch.no_grad()
def sample(G, z, c):
    """G(z, c), (B, C, H, H) in [-1, 1], in eval mode: no image depends on others of its batch."""
    G.eval()
    images = G(z, c)
    G.train()
    return images


@torch.no_grad()
def pictures(G, z, c, steps=9):
    """What the codes mean: a list of pictures, rows of images in [-1, 1], a row a category.

    The first, (K, n, C, H, H) for K values of the first categorical code, is of z (n, z_dim) and
    c (n, c_dim) but for that code. Then there is one of (K, steps, C, H, H) for each number, which
    goes from -2 to 2, twice as far as in training, with z[0], c[0] and the other numbers at 0.
    """
    inputs = [(z, c)]
    for j in range(-G.num_codes, 0):
        swept = c[:1].repeat(steps, 1)
        swept[:, -G.num_codes:] = 0
        swept[:, j] = torch.linspace(-2, 2, steps)
        inputs.append((z[:1].repeat(steps, 1), swept))
    result, one_hots = [], torch.eye(G.categories[0], device=z.device)
    for z_row, c_row in inputs:
        rows = [torch.cat([one_hot.expand(len(c_row), -1), c_row[:, len(one_hot):]], 1)
                for one_hot in one_hots]
        result.append(torch.stack([sample(G, z_row, row) for row in rows]))
    return result


# ---- training ----

def train(args, ckpt=None):
    """Train anew, or on from a checkpoint; all files go to args.out."""
    # imported here, so that all above this line works in a copy of this file alone, with torch only
    from common import batches, default_data, load_images, save_gif, save_grid, spread
    device = pick_device(args.device)
    if args.amp and device.type == "mps":
        fail("--amp: on cuda and cpu only")
    torch.manual_seed(args.seed)
    if args.data is None:
        args.data = default_data(args.data_dir)
    images, labels = load_images(args.data, args.data_dir, classes=args.classes, device=device,
                                 image_size=args.image_size, channels=args.channels)
    shape, n_batches = tuple(images.shape[1:]), max(1, len(images) // args.batch_size)
    if len(images) < 2 or not 8 <= shape[-1] <= 256:
        fail(f"--data {args.data}: {len(images)} image(s) of side {shape[-1]} to train on; take at "
             "least 2, and an --image-size from 8 to 256")
    if args.supervised and labels.max() >= args.categories[0]:
        fail(f"--supervised: the data have {labels.max() + 1} classes, and the first categorical "
             f"code {args.categories[0]} values; raise --categories")

    layout = torch.channels_last if args.amp else torch.contiguous_format  # tensor cores like it
    G = Generator(args.z_dim, shape, args.width, args.categories, args.num_codes)
    G.to(device, memory_format=layout)
    D = Discriminator(shape, args.width, sum(args.categories) + args.num_codes)
    D.to(device, memory_format=layout)
    G_ema = copy.deepcopy(G).requires_grad_(False)
    graph = args.graph and device.type == "cuda"
    settings = dict(betas=(args.beta1, args.beta2), capturable=graph,
                    fused=device.type != "mps")     # one kernel for all weights; none on mps in 2.4
    opt_G = torch.optim.Adam(G.parameters(), lr=args.lr, **settings)
    opt_D = torch.optim.Adam(D.parameters(), lr=args.lr_d or args.lr, **settings)
    nets, opts = {"G": G, "D": D, "G_ema": G_ema}, {"opt_G": opt_G, "opt_D": opt_D}
    z, c = noise(G, 8), codes(G, 8)     # the same for all grids, so that they show what changes
    epoch, step, grids = 0, 0, []
    if ckpt:
        try:
            if any(vars(args)[name] != ckpt["args"][name] for name in ("categories", "num_codes")):
                raise ValueError        # though the networks may be of the same size
            for name, net in nets.items():
                net.load_state_dict(ckpt[name])
            for name, opt in opts.items():      # their averages; the settings are those of this run
                opt.load_state_dict({**opt.state_dict(), "state": ckpt[name]["state"]})
        except (KeyError, RuntimeError, ValueError):
            fail(f"--resume {args.resume}: other networks "
                 "(--width, --z-dim, --categories, --num-codes, image shape…?)")
        z, c = ckpt["z"].to(device), ckpt["c"].to(device)
        epoch, step, grids = ckpt["epoch"], ckpt["step"], ckpt["grids"]
        if epoch >= args.epochs:
            fail(f"--epochs {args.epochs}: {args.resume} has done {epoch}; ask for more in total")
        torch.set_rng_state(ckpt["rng"])
        if device.type == "cuda" and ckpt["rng_cuda"] is not None:
            torch.cuda.set_rng_state(ckpt["rng_cuda"])

    out = Path(args.out)
    own = ckpt and out.absolute() == Path(args.resume).parent.absolute()
    if (out / "ckpt.pt").exists() and not own:
        fail(f"--out {out}: has a trained network; --resume that, or take another folder")
    writer = open_tensorboard(out, step) if args.tensorboard else None
    (out / "samples").mkdir(parents=True, exist_ok=True)
    columns = ("loss_real", "loss_fake", "D(x)", "D(G(z))", "L_I", "H(c)", "code_rmse", "chance",
               "loss_G")
    log = open_log(out / "log.csv", step, ("epoch", "step", *columns, "images/s"))
    save_grid(spread(images, 64) / 127.5 - 1, out / "samples/real.png")
    print(f"{args.data}: {len(images):,} images {shape}, {len(labels.unique())} class(es), "
          f"{n_batches} batches a pass, on {device}")

    H_c = sum(map(math.log, args.categories))           # the ceiling of L_I
    chance = math.sqrt(1 / 3) if args.num_codes else 0  # code_rmse of a Q that always guesses 0
    weights = dict(cat_weight=args.cat_weight, code_weight=args.code_weight, amp=args.amp)
    n = min(args.batch_size, len(images))
    update_D = captured(lambda real, y: train_discriminator(
        G, D, opt_D, real, labels=y if args.supervised else None, **weights), graph)
    update_G = captured(lambda: train_generator(G, D, opt_G, n, **weights), graph)
    save_every = args.save_every or max(1, round(args.epochs / 40))
    remedy = "try a lower --lr, anew or from the last checkpoint"
    log_D, log_G, logged, since = [], [], step, time.perf_counter()
    while epoch < args.epochs:
        epoch += 1
        for i, (real, y) in enumerate(batches(images, args.batch_size, labels), 1):
            step += 1
            log_D.append(update_D(real, y))
            log_G.append(update_G())
            update_ema(G_ema, G, args.ema, step)

            if i == n_batches or time.perf_counter() > since + args.log_every:
                # means since the last line; within a pass the host waits for the device only here
                means = torch.cat([torch.stack(log_D).mean(0), torch.stack(log_G).mean(0)[None]])
                *values, L_I, error, loss_G = means.tolist()
                code_rmse = math.sqrt(error / max(1, args.num_codes))
                values += [L_I, H_c, code_rmse, chance, loss_G]
                if not all(map(math.isfinite, values)):
                    fail(f"a loss is not finite at step {step}; {remedy}")
                speed = (step - logged) * len(real) / (time.perf_counter() - since)
                left = int(((args.epochs - epoch + 1) * n_batches - i) * len(real) / speed)
                print(f"epoch {epoch}/{args.epochs} step {step} ",
                      *(f"{name} {value:.4f}" for name, value in zip(columns, values)),
                      f" {speed:.0f} images/s, {left // 60}:{left % 60:02} left", flush=True)
                print(epoch, step, *values, speed, sep=",", file=log)
                if writer:
                    for name, value in zip(columns, values):
                        writer.add_scalar(name, value, step)
                log_D, log_G, logged, since = [], [], step, time.perf_counter()

        if epoch % save_every == 0 or epoch == args.epochs:
            if not all(w.isfinite().all() for net in (G, D) for w in net.state_dict().values()):
                fail(f"a weight is not finite at step {step}; {remedy}")
            grids, (first, *sweeps) = [*grids, f"samples/{epoch:04}.png"], pictures(G_ema, z, c)
            white = torch.ones_like(first[:, :1])       # a column between the pictures
            table = torch.cat([first, *(x for sweep in sweeps for x in (white, sweep))], 1)
            save_grid(table.flatten(0, 1), out / grids[-1], columns=table.shape[1])
            if writer:
                writer.add_images("samples", first.flatten(0, 1) / 2 + 0.5, step)
            state = {"script": SCRIPT, "shape": shape, "epoch": epoch, "step": step,
                     "grids": grids, "z": z, "c": c,
                     "args": {name: v for name, v in vars(args).items() if name not in THIS_RUN},
                     **{name: part.state_dict() for name, part in {**nets, **opts}.items()},
                     "rng": torch.get_rng_state(),
                     "rng_cuda": torch.cuda.get_rng_state() if device.type == "cuda" else None}
            save_checkpoint(state, out / "ckpt.pt")
            if args.keep:
                save_checkpoint(state, out / f"ckpt_{epoch:04}.pt")
            since = time.perf_counter()
    if writer:
        writer.close()
    save_gif([out / grid for grid in grids if (out / grid).exists()], out / "samples.gif")
    print(f"wrote {out / grids[-1]}; more: python {SCRIPT}.py --sample "
          + shlex.quote(str(out / "ckpt.pt")))


def sample_checkpoint(args, ckpt):
    """Write args.num images: one grid if args.out ends in .png, else a folder of single PNGs.

    As many of each category, in a grid a whole row or more, with random z and numbers; beside a
    grid one for each number, which sweeps it. With --category or --code: just images of these, the
    rest random. The name of a single PNG begins with its category.
    """
    from common import save_grid
    device, out = pick_device(args.device), Path(args.out)
    try:
        sizes = {name: ckpt["args"][name] for name in ("z_dim", "width", "categories", "num_codes")}
        G = Generator(shape=ckpt["shape"], **sizes)
        G.load_state_dict(ckpt["G_ema"])
    except (KeyError, RuntimeError):
        fail(f"--sample {args.sample}: is of another Generator than that of this file")
    # drawn while G is on the CPU, so that a seed means the same images on every device
    torch.manual_seed(args.seed)
    K, grid = G.categories[0], out.suffix.lower() == ".png"
    num = args.num or 8 * K
    columns = math.ceil(num / K)
    if grid and not args.category:
        num = K * columns               # whole rows
    z, c = noise(G, num), codes(G, num)
    c[:, :K] = torch.eye(K)[torch.arange(num) * K // num]
    if args.category:
        columns = 8
    set_codes(c, G, args.category or [], args.code or [])
    G.to(device)
    parts = zip(z.to(device).split(500), c.to(device).split(500))
    images = torch.cat([sample(G, *part).cpu() for part in parts])
    if grid:
        out.parent.mkdir(parents=True, exist_ok=True)
        save_grid(images, out, columns)
        if not args.category and not args.code:
            _, *sweeps = pictures(G, z[:1].to(device), c[:1].to(device))
            for j, sweep in enumerate(sweeps, 1):
                path = out.with_name(f"{out.stem}_code{j}.png")
                save_grid(sweep.flatten(0, 1), path, sweep.shape[1])
                print(f"wrote {path}")
    else:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):          # samples of two runs in one folder would be measured as one
            fail(f"--out {out}: has files in it; take a new folder")
        for i, (image, category) in enumerate(zip(images, c[:, :K].argmax(1))):
            save_grid(image[None], out / f"{category}_{i:05}.png")
    print(f"wrote {num} images to {out}")


def set_codes(c, G, category, code):
    """Set in all rows of c (n, c_dim) the first categorical codes and the first numbers."""
    if len(category) > len(G.categories) or any(v >= k for v, k in zip(category, G.categories)):
        fail(f"--category {' '.join(map(str, category))}: this G has categorical codes of "
             f"{' and '.join(map(str, G.categories))} values, from 0")
    if len(code) > G.num_codes:
        fail(f"--code {' '.join(map(str, code))}: this G has {G.num_codes} numbers")
    *one_hots, numbers = c.split([*G.categories, G.num_codes], 1)       # views of c
    for one_hot, value in zip(one_hots, category):
        one_hot[:] = 0
        one_hot[:, value] = 1
    numbers[:, :len(code)] = torch.tensor(code)


# ---- files, devices, errors ----

def save_checkpoint(ckpt, path):
    """Write beside `path`, then move into place: no kill, no full disk can leave half a file."""
    temporary = Path(f"{path}.tmp")
    try:
        torch.save(ckpt, temporary)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:    # a full disk is a RuntimeError of torch's writer
        fail(f"{path} cannot be written; is the disk full? ({str(error).splitlines()[0]})")
    finally:
        temporary.unlink(missing_ok=True)


def load_checkpoint(path, flag):
    """What save_checkpoint wrote. weights_only: no code that a pickle may hold is run."""
    if not os.path.isfile(path):
        fail(f"{flag} {path}: there is no such file; networks are called ckpt.pt")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")     # fail() says it in one line
            ckpt = torch.load(path, map_location="cpu", weights_only=True)
        script, _ = ckpt["script"], ckpt["args"]["width"]
    except Exception:                   # whatever zip files, pickles and dicts of others may raise
        fail(f"{flag} {path}: damaged, or not a checkpoint")
    if script != SCRIPT:
        fail(f"{flag} {path}: was written by {script}.py; use that")
    return ckpt


def open_log(path, step, header):
    """Open log.csv behind the whole rows up to `step`, those that a resumed run builds on."""
    rows = path.read_text().splitlines()[1:] if step and path.exists() else []
    rows = [row for row in rows if row.count(",") == len(header) - 1]
    log = open(path, "w", buffering=1)
    print(",".join(header), *(row for row in rows if int(row.split(",")[1]) <= step),
          sep="\n", file=log)
    return log


def open_tensorboard(out, step):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        fail("--tensorboard: is not installed; pip install tensorboard")
    return SummaryWriter(out / "tensorboard", purge_step=step + 1)


def pick_device(name):
    mps = torch.backends.mps.is_available()
    there = {"cuda": torch.cuda.is_available(), "mps": mps, "cpu": True}
    if name == "auto":
        name = next(kind for kind in there if there[kind])
    if not there[name]:
        fail(f"--device {name}: there is none that torch can use; try --device auto")
    return torch.device(name)


def captured(update, graph=True):
    """On a GPU, update (a function of tensors) as one CUDA graph: one launch for its hundreds.

    Three calls run as they are, the fourth is recorded, and from then on that is replayed. Its
    kernels come back, with new random numbers, but no Python: shapes and settings stay what they
    were. If not `graph`, `update` itself.
    """
    if not graph:
        return update
    recording, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    calls, inputs, result = 0, (), None

    def call(*tensors):
        nonlocal calls, inputs, result
        calls += 1
        if calls <= 3:                  # before it records, CUDA wants this on a stream of its own
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                value = update(*tensors)
            torch.cuda.current_stream().wait_stream(side)
            return value
        if calls == 4:
            inputs = [tensor.clone() for tensor in tensors]
            with torch.cuda.graph(recording):           # nothing is computed here
                result = update(*inputs)
        for recorded, tensor in zip(inputs, tensors):
            recorded.copy_(tensor)
        recording.replay()
        return result.clone()           # the next replay will write over it
    return call


def fail(message):
    """End on an error that the user can mend: one line, and exit code 2 as argparse has it."""
    print(f"{SCRIPT}.py: error: {message}", file=sys.stderr)
    sys.exit(2)


# ---- command line ----

THIS_RUN = ("out", "device", "resume", "sample", "num", "category", "code")     # not in checkpoints


def between(kind, low, high):
    """An argparse type: a number from low to high."""
    def number(text):
        value = kind(text)
        if not low <= value <= high:    # true of nan as well
            raise argparse.ArgumentTypeError(f"{text} is not from {low} to {high}")
        return value
    number.__name__ = "whole number" if kind is int else "number"   # for argparse's message
    return number


def get_args(argv=None):
    """The settings, and with --resume or --sample the checkpoint, else None."""
    parser = argparse.ArgumentParser(SCRIPT + ".py", description=(__doc__ or "").split("\n")[0],
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter,
                                     allow_abbrev=False)
    parser.error = fail
    switch = argparse.BooleanOptionalAction
    positive, fraction = between(int, 1, 10**9), between(float, 0, 0.999999)
    arg = parser.add_argument_group("data").add_argument
    arg("--data", help="mnist, fashion-mnist, cifar10, strokes or a folder; not given: mnist, "
                  "or strokes where it cannot be downloaded")
    arg("--data-dir", default="data", help="for downloads and decoded folders")
    arg("--classes", nargs="+", help="names or numbers (from 0) of those to train on")
    arg("--image-size", type=between(int, 0, 256), default=0, help="side; 0: the data's own")
    arg("--channels", type=int, choices=(0, 1, 3), default=0, help="1 grey, 3 RGB, 0: the data's")
    arg = parser.add_argument_group("training").add_argument
    arg("--epochs", type=positive, default=15, help="passes of D over the data, in total")
    arg("--batch-size", type=between(int, 2, 10**6), default=128, help="BatchNorm needs 2 or more")
    arg("--lr", type=between(float, 1e-9, 1), default=1e-3, help="learning rate of G")
    arg("--lr-d", type=between(float, 0, 1), default=5e-4, help="learning rate of D; 0: G's")
    arg("--beta1", type=fraction, default=0.5, help="of Adam")
    arg("--beta2", type=fraction, default=0.999, help="of Adam")
    arg("--z-dim", type=between(int, 1, 10**5), default=62, help="numbers in z")
    arg("--width", type=between(int, 1, 10**4), default=32, help="channels of the largest maps")
    arg("--ema", type=fraction, default=0.999, help="decay of the average of G's weights")
    arg("--seed", type=between(int, 0, 2**63 - 1), default=0, help="of a new run or --sample")
    arg("--categories", type=between(int, 1, 100), nargs="+", default=[10],
        help="values of each categorical code")
    arg("--num-codes", type=between(int, 0, 20), default=2, help="codes that are numbers")
    arg("--cat-weight", type=between(float, 0, 1e6), default=1.0, help="λ of the categories")
    arg("--code-weight", type=between(float, 0, 1e6), default=1.0, help="λ of the numbers")
    arg("--supervised", action=switch, default=False, help="teach Q the labels of the data, too")
    arg = parser.add_argument_group("output").add_argument
    arg("--out", help=f"folder, else out/{SCRIPT} or the checkpoint's; with --sample also a .png")
    arg("--log-every", type=between(float, 0, 1e9), default=3, help="seconds; also after a pass")
    arg("--save-every", type=between(int, 0, 10**9), default=0, help="passes; 0: about 40 a run")
    arg("--keep", action=switch, default=False, help="keep every checkpoint")
    arg("--tensorboard", action=switch, default=False, help="log for TensorBoard, too")
    arg = parser.add_argument_group("machine").add_argument
    arg("--device", choices=("auto", "cuda", "mps", "cpu"), default="auto", help="auto: the best")
    arg("--amp", action=switch, default=False, help="bfloat16 where it is safe")
    arg("--graph", action=switch, default=True, help="on cuda: record the updates, see captured()")
    group = parser.add_argument_group("modes")
    group.add_argument("--num", type=between(int, 1, 10**6),
                       help="images to --sample (a grid: whole rows); not given: 8 a category")
    group.add_argument("--category", type=between(int, 0, 99), nargs="+", metavar="K",
                       help="with --sample: the category, from 0 (of each categorical code)")
    group.add_argument("--code", type=between(float, -100, 100), nargs="+", metavar="C",
                       help="with --sample: the numbers")
    arg = group.add_mutually_exclusive_group().add_argument
    arg("--resume", metavar="CKPT", help="train on, with its settings where no flag says otherwise")
    arg("--sample", metavar="CKPT", help="make images with the G of a checkpoint")

    args = parser.parse_args(argv)
    flag, path = ("--resume", args.resume) if args.sample is None else ("--sample", args.sample)
    ckpt, folder = None, Path("out", SCRIPT)
    if path is not None:
        ckpt, folder = load_checkpoint(path, flag), Path(path).parent
        parser.set_defaults(**ckpt["args"])
        args = parser.parse_args(argv)
    if (args.category or args.code) and not args.sample:
        fail("--category, --code: only with --sample")
    args.out = args.out or str(folder / "sample.png" if args.sample else folder)
    return args, ckpt


def main(argv=None):
    args, ckpt = get_args(argv)
    try:
        if args.sample:
            sample_checkpoint(args, ckpt)
        else:
            train(args, ckpt)
    except OSError as error:            # data that are not there, a folder that cannot be written
        fail(error if error.filename or not error.errno else f"--out {args.out}: {error}")
    except RuntimeError as error:
        if "memory" not in str(error):
            raise
        fail(f"out of memory; lower --width, --batch-size or --num ({str(error).splitlines()[0]})")
    except KeyboardInterrupt:
        last = Path(args.out, "ckpt.pt")
        if args.sample:
            print(f"\nstopped; {args.out} is not complete")
        else:
            print(f"\nstopped; to go on: python {SCRIPT}.py --resume {shlex.quote(str(last))}"
                  if last.exists() else "\nstopped; nothing was saved yet")
        sys.exit(130)


if __name__ == "__main__":
    main()
