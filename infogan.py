"""InfoGAN (Chen, Duan, Houthooft, Schulman, Sutskever and Abbeel 2016, arXiv:1606.03657).

In a plain GAN nobody knows what each number of the noise z does to the image. InfoGAN gives the
generator G a second input, a code c: a category (one of 10) and two numbers from [-1, 1]. Q, a
second output of the discriminator D, has to read the code from the fake G(z, c). Q(c | G(z, c)) is
the probability (for numbers, the density) that it gives to the right code. In E log D(x), E is the
mean over training images x; elsewhere, it is the mean over noise z ~ N(0, I) and random codes c:

    D and Q maximise  E log D(x) + E log(1 - D(G(z, c))) + lambda L_I
    G maximises       E log D(G(z, c)) + lambda L_I
    L_I = H(c) + E log Q(c | G(z, c))

H(c) is the entropy of the codes, a constant: how much there is to know about c. L_I is a lower
bound on the mutual information of c and G(z, c), that is, on how much the fake tells about c
(section 5). To fool D as well, G must express c by something in which real images differ, such as
the digit or its slant. So codes come to mean something without any labels, and Q can sort real
images, although its loss only ever uses fakes.

L_I has a part for the category, whose lambda is --cat-weight, and one for the numbers, whose lambda
is --code-weight. The log shows the first as L_I, in nats (information counted with the natural
logarithm): at most log 10 = 2.303. For the numbers, Q is a Gaussian of variance 1 around its guess,
so -E log Q is half the squared error, plus a constant. The log has the RMS error, code_rmse.

In D's step only, and so in the log, Q reads the category from a bent copy of the fake: turned,
stretched, slanted and shifted at random (--bend). Otherwise Q may tell two categories apart by
details of the strokes, though each mixes the same two digits. The numbers are read from the fake
itself, because one of them may come to mean the slant, which bending changes. (With --supervised, Q
also learns the labels of real images, as in some tutorials. That is another, supervised method.)

What differs from the paper: fakes are bent for Q; D's learning rate is 5e-4, not 2e-4; networks
are half as wide; Q's variance is fixed, and the layers that D and Q share also learn to raise L_I
(both as in the authors' code); noise is normal; samples come from G_ema, an averaged G. To sort
real images, use D_ema, an averaged D with its Q, in eval mode.

In a healthy run L_I rises to 2.25, and code_rmse falls from 0.58 (Q only guesses) to 0.2. The grids
have a row for each category. On the right, each number in turn goes from -2 to 2.

    python infogan.py                                   # MNIST, 15 epochs, into out/infogan
    python infogan.py --sample out/infogan/ckpt.pt      # a row for each category, and sweeps
    python infogan.py --sample out/infogan/ckpt.pt --category 3 --code 0.5 -1 --out out/one.png
"""

import argparse
import copy
import csv
import math
import shutil
import sys
import time
from collections import defaultdict
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

SCRIPT = "infogan"


def get_args(argv=None, **defaults):
    """Return the settings of the command line argv. `defaults` replace those below."""
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    arg = parser.add_argument
    arg("--data", help="mnist, fashion-mnist, cifar10, digits or a folder; None: mnist if possible")
    arg("--data-dir", default="data", help="where downloads are kept")
    arg("--classes", nargs="+", help="train on these classes only, by name or number")
    arg("--image-size", type=int, default=0, help="side in pixels; 0: the data's, 64 for folders")
    arg("--epochs", type=int, default=0, help="passes over the data; 0: about 7,000 steps of D")
    arg("--batch-size", type=int, default=128, help="real images in each step")
    arg("--lr", type=float, default=1e-3, help="learning rate of G")
    arg("--lr-d", type=float, default=5e-4, help="learning rate of D")
    arg("--beta1", type=float, default=0.5, help="Adam's decay of the average gradient (momentum)")
    arg("--beta2", type=float, default=0.999, help="Adam's decay of the average squared gradient")
    arg("--categories", type=int, default=10, help="how many categories there are")
    arg("--num-codes", type=int, default=2, help="how many numbers a code has")
    arg("--cat-weight", type=float, default=1.0, help="lambda: weight of the category's L_I")
    arg("--code-weight", type=float, default=1.0, help="lambda: weight of the numbers' error")
    arg("--bend", type=float, default=0.2, help="how much fakes are bent for Q; 0: not at all")
    arg("--supervised", action="store_true", help="also teach Q the labels of real images")
    arg("--z-dim", type=int, default=62, help="length of the noise vector z")
    arg("--width", type=int, default=32, help="channels of the largest maps; scales all layers")
    arg("--ema", type=float, default=0.995, help="decay of the averages G_ema and D_ema")
    arg("--seed", type=int, default=0, help="seed of the random numbers")
    arg("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda:1, cpu, ...")
    arg("--log-every", type=int, default=200, help="steps between lines of the log")
    arg("--save-every", type=int, default=0, help="epochs between saves; 0: a 40th of all, or 1")
    arg("--keep", action="store_true", help="keep every checkpoint, as ckpt_EPOCH.pt")
    arg("--out", help=f"folder, or picture with --sample. None: out/{SCRIPT}, or beside CKPT")
    arg("--resume", metavar="CKPT", help="continue this run; --epochs is the total")
    arg("--sample", metavar="CKPT", help="draw images with the G_ema of this run")
    arg("--num", type=int, default=0, help="how many images --sample draws; 0: 8 a category")
    arg("--category", type=int, help="with --sample: only this category, from 0")
    arg("--code", type=float, nargs="+", default=[], help="with --sample: values of the numbers")
    parser.set_defaults(**defaults)
    return parser.parse_args(argv)


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

    def __init__(self, z_dim, shape, width, categories, num_codes):
        super().__init__()
        self.z_dim, self.categories, self.num_codes = z_dim, categories, num_codes
        sizes = map_sizes(shape[-1], 7)         # 28, 14, 7, as in the paper
        channels = [shape[0], *(width * 2**i for i in range(len(sizes) - 1))]   # 1, 32, 64
        hidden, c_dim = 16 * width, categories + num_codes
        layers = [nn.Linear(z_dim + c_dim, hidden), nn.BatchNorm1d(hidden), nn.ReLU(),
                  nn.Linear(hidden, channels[-1] * sizes[-1]**2),
                  nn.Unflatten(1, (channels[-1], sizes[-1], sizes[-1]))]
        # Each pass normalises the maps, then enlarges them, so no BatchNorm follows the last layer.
        # ConvTranspose2d turns a side n into 2n with kernel 4, and into 2n - 1 with kernel 3.
        for i in reversed(range(len(sizes) - 1)):       # 7 -> 14 -> 28
            n_in, n_out, kernel = channels[i + 1], channels[i], 3 if sizes[i] % 2 else 4
            layers += [nn.BatchNorm2d(n_in), nn.ReLU()]
            layers.append(nn.ConvTranspose2d(n_in, n_out, kernel, stride=2, padding=1))
        self.net = nn.Sequential(*layers, nn.Tanh())
        self.apply(init_weights)

    def forward(self, z, c):
        return self.net(torch.cat([z, c], 1))


class Discriminator(nn.Module):
    """Turns images (B, C, H, H) into raw scores s (B,) and Q's output q (B, c_dim).

    The D(x) of the formulas is sigmoid(s). Q shares D's hidden layers, the trunk. Its output is
    laid out like a code: first a logit for each category, then a guess of each number.
    """

    def __init__(self, shape, width, c_dim):
        super().__init__()
        sizes = map_sizes(shape[-1], 7)         # 28, 14, 7, as in the paper
        channels = [shape[0], *(width * 2**i for i in range(len(sizes) - 1))]   # 1, 32, 64
        layers, hidden = [], 16 * width
        for i in range(len(sizes) - 1):
            n_in, n_out, kernel = channels[i], channels[i + 1], 3 if sizes[i] % 2 else 4
            layers.append(nn.Conv2d(n_in, n_out, kernel, stride=2, padding=1))
            if i > 0:                                   # no BatchNorm after the first layer
                layers.append(nn.BatchNorm2d(n_out))
            layers.append(nn.LeakyReLU(0.1))            # the paper's slope
        layers += [nn.Flatten(), nn.Linear(channels[-1] * sizes[-1]**2, hidden)]
        self.trunk = nn.Sequential(*layers, nn.BatchNorm1d(hidden), nn.LeakyReLU(0.1))
        self.score = nn.Sequential(nn.Linear(hidden, 1), nn.Flatten(0))
        self.Q = nn.Sequential(nn.Linear(hidden, 2 * width), nn.BatchNorm1d(2 * width),
                               nn.LeakyReLU(0.1), nn.Linear(2 * width, c_dim))
        self.apply(init_weights)

    def forward(self, x):
        h = self.trunk(x)
        return self.score(h), self.Q(h)


# ---- losses ----
# F.logsigmoid(s) is log D(x), and F.logsigmoid(-s) is log(1 - D(x)). Both are finite for every s.

def discriminator_loss(s_real, s_fake):
    """Return the means of -log D(x) and -log(1 - D(G(z))), from the scores (B,) of x and G(z)."""
    return -F.logsigmoid(s_real).mean(), -F.logsigmoid(-s_fake).mean()


def generator_loss(s_fake):
    """Return the mean of -log D(G(z)), the non-saturating loss, from the scores (B,) of G(z)."""
    return -F.logsigmoid(s_fake).mean()


def information(q, c, categories):
    """Return the category's part of L_I and the squared error of the numbers, for codes c.

    Q's output q and c are (B, c_dim). L_I (equation 5) is in nats and at most log(categories). The
    error is summed over the numbers. Half of it is -E log Q, up to a constant.
    """
    # cross_entropy applies the softmax itself. Its targets may be one-hot vectors, as here.
    L_I = math.log(categories) - F.cross_entropy(q[:, :categories], c[:, :categories])
    return L_I, (q[:, categories:] - c[:, categories:]).square().sum(1).mean()


# ---- one step of each player; what these functions return is shown in the log ----

def noise(G, n):
    """Return n noise vectors z ~ N(0, I) as a tensor (n, z_dim) on G's device."""
    return torch.randn(n, G.z_dim, device=next(G.parameters()).device)


def codes(G, n):
    """Return n random codes (n, c_dim): one-hot categories, and then numbers from [-1, 1]."""
    device = next(G.parameters()).device
    category = torch.randint(G.categories, (n,), device=device)
    one_hot = torch.eye(G.categories, device=device)[category]      # row i of eye is one-hot for i
    numbers = 2 * torch.rand(n, G.num_codes, device=device) - 1
    return torch.cat([one_hot, numbers], 1)


def bent(images, strength):
    """Return images (B, C, H, H), each turned, stretched, slanted and shifted at random."""
    # Pixel (x, y) of the result is read at m @ (x, y, 1), where m is the 2x3 matrix of its image.
    maps = strength * torch.randn(len(images), 2, 3, device=images.device)
    maps[:, :, 2] /= 2                  # smaller shifts, as 1 is half a side
    maps += torch.eye(2, 3, device=images.device)       # the identity, so maps are near it
    grid = F.affine_grid(maps, images.shape, align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def train_discriminator(G, D, opt, real, cat_weight, code_weight, bend, labels):
    """Take one step of D and Q on real images (B, C, H, H) in [-1, 1] and as many fakes.

    Unless labels (B,) is None, Q also learns to classify real images, which is no longer InfoGAN.
    """
    z, c = noise(G, len(real)), codes(G, len(real))
    with torch.no_grad():               # no gradients for G; its BatchNorm still updates statistics
        fake = G(z, c)
    # Two calls: in G's step, D's BatchNorm sees a batch of fakes only, so it must see one here too.
    (s_real, q_real), (s_fake, q) = D(real), D(fake)
    if bend > 0:
        _, q_bent = D(bent(fake, bend))
        q = torch.cat([q_bent[:, :G.categories], q[:, G.categories:]], 1)
    loss_real, loss_fake = discriminator_loss(s_real, s_fake)
    L_I, error = information(q, c, G.categories)
    loss = loss_real + loss_fake - cat_weight * L_I + code_weight * error / 2
    if labels is not None:
        loss = loss + cat_weight * F.cross_entropy(q_real[:, :G.categories], labels)
    opt.zero_grad()
    loss.backward()
    opt.step()
    return {"loss_real": loss_real, "loss_fake": loss_fake, "D(x)": s_real.sigmoid().mean(),
            "D(G(z))": s_fake.sigmoid().mean(), "L_I": L_I,
            "code_rmse": (error / max(1, G.num_codes)).sqrt()}


def train_generator(G, D, opt, n, cat_weight, code_weight):
    """Take one step of G on n fakes."""
    z, c = noise(G, n), codes(G, n)
    s_fake, q = D(G(z, c))
    loss_G = generator_loss(s_fake)
    L_I, error = information(q, c, G.categories)
    loss = loss_G - cat_weight * L_I + code_weight * error / 2
    opt.zero_grad()         # below, D's weights get no gradients, which saves time
    loss.backward(inputs=[w for g in opt.param_groups for w in g["params"] if w.requires_grad])
    opt.step()
    return {"loss_G": loss_G}


@torch.no_grad()
def update_ema(G_ema, G, decay, t):
    """Set G_ema to decay * G_ema + (1 - decay) * G after step t, including BatchNorm's statistics.

    The decay starts small. Otherwise the random initial weights would linger in G_ema too long.
    """
    decay = min(decay, (1 + t) / (5 + t))       # 0.33 after the first step, 0.96 after 100
    for average, value in zip(G_ema.state_dict().values(), G.state_dict().values()):
        if value.is_floating_point():   # not the integer num_batches_tracked
            average.lerp_(value, 1 - decay)


@torch.no_grad()
def sample(G, z, c):
    """Return G(z, c), where BatchNorm uses its running statistics, so no image affects another."""
    mode = G.training
    images = G.eval()(z, c)
    G.train(mode)
    return images


def picture(G, z, c):
    """Return a grid of images (K, columns, C, H, H) with one row for each of K categories.

    First come the images of z (K * n, z_dim) and codes c (K * n, c_dim), n for each category. Then,
    for each number, comes a white column and a sweep: the number goes from -2 to 2 (in training: -1
    to 1), the other numbers are 0, and the noise is z[0].
    """
    K = G.categories
    parts = [sample(G, z, c).unflatten(0, (K, -1))]     # (K, n, C, H, H)
    for j in range(K, c.shape[1]):
        sweep = torch.zeros(K, 9, c.shape[1], device=c.device)
        sweep[:, :, :K] = torch.eye(K)[:, None]         # row k has category k
        sweep[:, :, j] = torch.linspace(-2, 2, 9)
        images = sample(G, z[:1].expand(K * 9, -1), sweep.flatten(0, 1))
        parts += [torch.ones_like(parts[0][:, :1]), images.unflatten(0, (K, 9))]
    return torch.cat(parts, 1)


# ---- training ----

def train(args, ckpt=None):
    # Imported here, so that the functions above can be used without common.py.
    from common import batches, default_data, load_images, save_gif, save_grid, spread
    out = Path(args.out or (Path(args.resume).parent if ckpt else f"out/{SCRIPT}"))
    latest = out / "ckpt.pt"
    continues = bool(ckpt) and Path(args.resume).resolve() == latest.resolve()
    if not continues and (latest.exists() or (out / "samples").exists()):
        sys.exit(f"error: {out} holds a run: use a new --out, delete it, or --resume {latest}")
    torch.manual_seed(args.seed)
    args.data = args.data or default_data(args.data_dir)    # kept for --resume
    images, labels, names = load_images(args.data, args.data_dir, classes=args.classes,
                                        image_size=args.image_size)
    images, labels = images.to(args.device), labels.to(args.device)     # all images, as uint8
    shape = tuple(images.shape[1:])
    n_batches = max(1, len(images) // args.batch_size)      # a last, shorter batch is left out
    args.epochs = args.epochs or max(1, round(7_000 / n_batches))
    args.save_every = args.save_every or max(1, args.epochs // 40)
    print(f"{len(images)} images {shape}, {args.epochs} epochs of {n_batches} steps, {args.device}")

    K = args.categories
    G = Generator(args.z_dim, shape, args.width, K, args.num_codes).to(args.device)
    D = Discriminator(shape, args.width, K + args.num_codes).to(args.device)
    G_ema = copy.deepcopy(G).requires_grad_(False)
    D_ema = copy.deepcopy(D).requires_grad_(False)
    settings = {"betas": (args.beta1, args.beta2), "fused": True}   # fused is fastest
    opt_G = torch.optim.Adam(G.parameters(), args.lr, **settings)
    opt_D = torch.optim.Adam(D.parameters(), args.lr_d, **settings)
    state = {"G": G, "D": D, "G_ema": G_ema, "D_ema": D_ema, "opt_G": opt_G, "opt_D": opt_D}
    # All grids and rows share 8 noise vectors and numbers, so that they can be compared.
    z, c = noise(G, 8).repeat(K, 1), codes(G, 8).repeat(K, 1)
    c[:, :K] = torch.eye(K).repeat_interleave(8, 0)     # row k of the grid has category k
    first_epoch, step, rows = 1, 0, []      # `step` counts D's steps; `rows` go to log.csv
    if ckpt:
        for name, part in state.items():
            part.load_state_dict(ckpt[name])
        first_epoch, step, rows = ckpt["epoch"] + 1, ckpt["step"], ckpt["rows"]
        z, c = ckpt["z"].to(args.device), ckpt["c"].to(args.device)
        if first_epoch > args.epochs:
            sys.exit(f"error: {first_epoch - 1} epochs are done; raise --epochs to continue")

    since_log = defaultdict(list)       # maps a column of the log to its values since the last line
    start = time.perf_counter() - (60 * rows[-1]["minutes"] if rows else 0)   # go on counting
    for epoch in range(first_epoch, args.epochs + 1):
        torch.manual_seed(10**6 * args.seed + epoch)    # so a resumed run draws the same numbers
        # Set in each epoch, so that new rates count after --resume. A schedule belongs here, too.
        for opt, lr in (opt_G, args.lr), (opt_D, args.lr_d):
            opt.param_groups[0].update(lr=lr, **settings)
        save = epoch % args.save_every == 0 or epoch == args.epochs
        for i, (real, y) in enumerate(batches(images, labels, args.batch_size), 1):
            step += 1
            stats = train_discriminator(G, D, opt_D, real, args.cat_weight, args.code_weight,
                                        args.bend, y if args.supervised else None)
            stats |= train_generator(G, D, opt_G, len(real), args.cat_weight, args.code_weight)
            update_ema(G_ema, G, args.ema, step)
            update_ema(D_ema, D, args.ema, step)
            for name, value in stats.items():
                since_log[name].append(torch.as_tensor(value).detach().float())     # or a float

            if step % args.log_every == 0 or save and i == n_batches:
                # Only here does the CPU wait for the GPU, as .item() needs the values.
                means = {name: torch.stack(v).mean().item() for name, v in since_log.items()}
                since_log.clear()
                minutes = (time.perf_counter() - start) / 60
                rows.append({"epoch": epoch, "step": step, "minutes": minutes, **means})
                print(f"epoch {epoch}/{args.epochs} step {step} {minutes:.1f} min "
                      + " ".join(f"{name} {x:.4g}" for name, x in means.items()), flush=True)

        if save:
            weights = nn.utils.parameters_to_vector([*G.parameters(), *D.parameters()])
            if not all(map(math.isfinite, means.values())) or not weights.isfinite().all():
                sys.exit("error: a loss or a weight is not finite; try lower learning rates")
            (out / "samples").mkdir(parents=True, exist_ok=continues)   # two runs must not mix
            continues = True    # ckpt.pt comes later, so --resume redraws a half-written picture
            save_grid(spread(images, 64) / 127.5 - 1, out / "samples/real.png")
            grid = picture(G_ema, z, c)
            save_grid(grid.flatten(0, 1), out / f"samples/{epoch:06}.png", grid.shape[1])
            once = "out", "device", "resume", "sample", "num", "category", "code"  # for one command
            with open(out / "ckpt.tmp", "wb") as file:      # torch.save(PATH) hides a full disk
                torch.save({"args": {k: v for k, v in vars(args).items() if k not in once},
                            "script": SCRIPT, "shape": shape, "classes": names,
                            "epoch": epoch, "step": step, "rows": rows, "z": z, "c": c,
                            **{name: part.state_dict() for name, part in state.items()}}, file)
            (out / "ckpt.tmp").replace(latest)      # so ckpt.pt is never half-written
            if args.keep:
                shutil.copy(latest, out / f"ckpt_{epoch:06}.pt")
            with open(out / "log.csv", "w", newline="") as file:
                table = csv.DictWriter(file, dict.fromkeys(name for row in rows for name in row))
                table.writeheader()     # a row may lack columns
                table.writerows(rows)
    save_gif(sorted(out.glob("samples/[0-9]*.png")), out / "samples.gif")
    print(f"wrote {out}; for more images: python {SCRIPT}.py --sample {latest}")


def sample_checkpoint(args, ckpt):
    """Write args.num images: one grid if args.out is a picture, else a folder of single PNGs.

    All categories get the same share (rounded up), unless --category names one. --code sets the
    first numbers, and the rest are random. Without both, a grid also has a sweep of each number.
    """
    from common import save_images
    out, K = Path(args.out or Path(args.sample).with_name("sample.png")), args.categories
    G = Generator(args.z_dim, ckpt["shape"], args.width, K, args.num_codes)
    G.load_state_dict(ckpt["G_ema"])
    torch.manual_seed(args.seed)    # with G on the CPU, a seed gives the same noise on every device
    chosen = range(K) if args.category is None else [args.category]
    category = torch.tensor(chosen).repeat_interleave(math.ceil(args.num / len(chosen)) or 8)
    z, c = noise(G, len(category)), codes(G, len(category))
    c[:, :K] = torch.eye(K)[category]
    c[:, K:K + len(args.code)] = torch.tensor(args.code)
    z, c = z.to(args.device), c.to(args.device)
    G.to(args.device)
    if out.suffix and args.category is None and not args.code:
        grid = picture(G, z, c)
        save_images(grid.flatten(0, 1), out, grid.shape[1])
    else:
        parts = zip(z.split(500), c.split(500))
        images = torch.cat([sample(G, *part).cpu() for part in parts])
        save_images(images, out, labels=category.tolist())


def main(argv=None):
    args, ckpt = get_args(argv), None
    path = args.sample or args.resume
    if path:
        ckpt = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(ckpt, dict) or ckpt.get("script") != SCRIPT:
            sys.exit(f"error: {path} was not saved by {SCRIPT}.py")
        args = get_args(argv, **ckpt["args"])   # again, with the run's settings as defaults
    sample_checkpoint(args, ckpt) if args.sample else train(args, ckpt)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\nstopped; --resume continues from the last ckpt.pt, if there is one")
