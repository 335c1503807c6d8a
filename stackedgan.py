"""Stacked GAN, SGAN (Huang, Li, Poursaeed, Hopcroft and Belongie 2017, arXiv:1612.04357).

First a classifier, the encoder E, is trained and frozen. (Here E is a network, not a mean.) It is a
stack of two parts: E0 turns an image x into features h1, and E1 turns these into a label y. Then a
stack of two GANs learns to invert it from the top down:

    E0: x -> h1     E1: h1 -> y              G1: (y, z1) -> h1     G0: (h1, z0) -> x

This splits a hard task, drawing an image of a given class, into two easier ones. It also gives the
two noises different meanings: z1 chooses what kind of 3 is drawn, and z0 adds what E0 discards.
Each generator has a discriminator, which estimates the probability that its input is real (D1 for
features, D0 for images), and three losses (section 3). For G1 they are

    adversarial   mean of -log D1(G1(y, z1))            D1 takes the fake features for real
    conditional   mean of -log p_E1(y | G1(y, z1))      E1 gives label y a high probability
    entropy       mean of (Q1(G1(y, z1)) - z1)^2        Q1, a second output of D1, recovers z1

and for G0 likewise, with the mean of (E0(G0(h1, z0)) - h1)^2 as the conditional loss. Without the
entropy loss, a generator could obey its condition (y or h1) and ignore its noise. If Q can recover
the noise, outputs for one condition vary: they have entropy. Each D learns to tell real data from
fakes, and its Q learns to recover the noise of the fakes (real data have none).

In the independent phase, the first half of the epochs, G0 gets the features of real images. In the
joint phase, it gets those of G1, as in sampling. The paper trains both "end-to-end". Here, as in
the authors' MNIST code, G0's loss does not reach G1. (In their CIFAR-10 code, 1 % of it does.)

What differs from the authors' code: the noise is normal, not uniform on [0, 1], so its variance is
12 times as large; the entropy weight is 0.3, not 10 (with 10, G0 hides z0 in a pattern of dots);
D0, E and G1's last layer have BatchNorm; D1 is wider, G0 and batches are smaller; Adam has no
momentum; all learning rates are higher, most of all those of G0 and D1; samples come from G1_ema
and G0_ema, copies with averaged weights; and in samples z1 is 10 % larger than in training
(--z1-scale), as G1_ema's features vary too little.

The log adds the number of the GAN to each name, as in loss_real1. In a healthy run loss_real and
loss_fake stay a little below 0.69 in both GANs, cond1 goes to 0.001, cond0 to 0.1, ent1 to 0.65 and
ent0 to 0.8. An entropy loss of 1 means that Q only guesses.

    python stackedgan.py                                            # MNIST, into out/stackedgan
    python stackedgan.py --sample out/stackedgan/ckpt.pt            # a row for each class
    python stackedgan.py --sample out/stackedgan/ckpt.pt --vary z1  # the same z0 for all images
    python stackedgan.py --sample out/stackedgan/ckpt.pt --label 3 --num 1000 --out out/threes
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

SCRIPT = "stackedgan"


def get_args(argv=None, **defaults):
    """Return the settings of the command line argv. `defaults` replace those below."""
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    arg = parser.add_argument
    arg("--data", help="mnist, fashion-mnist, cifar10, digits or a folder; None: mnist if possible")
    arg("--data-dir", default="data", help="where downloads are kept")
    arg("--classes", nargs="+", help="train on these classes only, by name or number")
    arg("--image-size", type=int, default=0, help="side in pixels; 0: the data's, 64 for folders")
    arg("--epochs", type=int, default=0, help="passes over the data; 0: about 9,400 steps in all")
    arg("--batch-size", type=int, default=64, help="real images in each step")
    # D0, which has BatchNorm, learns best at a lower rate than G0. D1 needs a higher one than G1.
    arg("--lr-g1", type=float, default=2e-4, help="learning rate of G1")
    arg("--lr-d1", type=float, default=1e-3, help="learning rate of D1")
    arg("--lr-g0", type=float, default=1e-3, help="learning rate of G0")
    arg("--lr-d0", type=float, default=2e-4, help="learning rate of D0")
    arg("--beta1", type=float, default=0.0, help="Adam's decay of the average gradient (momentum)")
    arg("--beta2", type=float, default=0.999, help="Adam's decay of the average squared gradient")
    arg("--encoder-steps", type=int, default=1900, help="about how many steps E is trained for")
    arg("--independent-epochs", type=int, help="epochs of the independent phase; None: half of all")
    arg("--adv-weight", type=float, default=1.0, help="weight of the adversarial losses")
    arg("--cond-weight", type=float, default=1.0, help="weight of the conditional losses")
    arg("--ent-weight", type=float, default=0.3, help="weight of the entropy losses")
    arg("--z1-dim", type=int, default=50, help="length of the noise vector z1")
    arg("--z0-dim", type=int, default=50, help="length of the noise vector z0")
    arg("--z1-scale", type=float, default=1.1, help="factor of z1 in samples")
    arg("--width", type=int, default=16, help="channels of the largest maps; scales all layers")
    arg("--ema", type=float, default=0.995, help="decay of the averages G1_ema and G0_ema")
    arg("--seed", type=int, default=0, help="seed of the random numbers")
    arg("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda:1, cpu, ...")
    arg("--log-every", type=int, default=200, help="steps between lines of the log")
    arg("--save-every", type=int, default=0, help="epochs between saves; 0: a 40th of all, or 1")
    arg("--keep", action="store_true", help="keep every checkpoint, as ckpt_EPOCH.pt")
    arg("--out", help=f"folder, or picture with --sample. None: out/{SCRIPT}, or beside CKPT")
    arg("--resume", metavar="CKPT", help="continue this run; --epochs is the total")
    arg("--sample", metavar="CKPT", help="draw images with the averages of this run")
    arg("--num", type=int, default=0, help="how many images --sample draws; 0: 8 a class")
    arg("--label", help="with --sample: one class, by name, or by place in the grid, from 0")
    arg("--vary", choices=("z1", "z0"), help="with --sample: vary only this noise")
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


class Encoder(nn.Module):
    """Classifies images (B, C, H, H) in [-1, 1]; `shape` is (C, H, H).

    E0 turns images into features h1 (B, 16 * width), all at least 0. E1 turns h1 into logits.
    """

    def __init__(self, shape, width, num_classes):
        super().__init__()
        sizes = map_sizes(shape[-1], 7)                                         # 28, 14, 7
        channels = [shape[0], *(width * 2**i for i in range(len(sizes) - 1))]   # 1, 16, 32
        layers = []
        for n_in, n_out in zip(channels, channels[1:]):
            # ReLU is cheaper after pooling, with the same result. ceil_mode rounds sides up.
            layers += [nn.Conv2d(n_in, n_out, 3, padding=1), nn.MaxPool2d(2, ceil_mode=True)]
            layers.append(nn.ReLU())
        layers += [nn.Flatten(), nn.Linear(channels[-1] * sizes[-1]**2, 16 * width)]
        self.E0 = nn.Sequential(*layers, nn.BatchNorm1d(16 * width), nn.ReLU())
        self.E1 = nn.Linear(16 * width, num_classes)

    def forward(self, x):
        return self.E1(self.E0(x))


class Generator1(nn.Module):
    """Turns labels y (B,), int64, and noise z1 (B, z_dim) into features h1, all at least 0."""

    def __init__(self, z_dim, width, num_classes):
        super().__init__()
        self.z_dim, self.num_classes = z_dim, num_classes
        layers, sizes = [], [num_classes + z_dim, 32 * width, 32 * width, 16 * width]
        for n_in, n_out in zip(sizes, sizes[1:]):
            layers += [nn.Linear(n_in, n_out), nn.BatchNorm1d(n_out), nn.ReLU()]
        self.net = nn.Sequential(*layers)
        self.apply(init_weights)

    def forward(self, y, z):
        one_hot = torch.eye(self.num_classes, device=y.device)[y]       # row y of eye
        return self.net(torch.cat([one_hot, z], 1))


class Generator0(nn.Module):
    """Turns features h1 (B, 16 * width) and noise z0 (B, z_dim) into images (B, C, H, H)."""

    def __init__(self, z_dim, shape, width):
        super().__init__()
        self.z_dim = z_dim
        sizes = map_sizes(shape[-1], 7)                                         # 28, 14, 7
        channels = [shape[0], *(width * 2**i for i in range(len(sizes) - 1))]   # 1, 16, 32
        hidden = 32 * width
        layers = [nn.Linear(16 * width + z_dim, hidden), nn.BatchNorm1d(hidden),
                  nn.ReLU(), nn.Linear(hidden, channels[-1] * sizes[-1]**2),
                  nn.Unflatten(1, (channels[-1], sizes[-1], sizes[-1]))]
        # Each pass normalises the maps, then enlarges them, so no BatchNorm follows the last layer.
        # ConvTranspose2d turns a side n into 2n with kernel 4, and into 2n - 1 with kernel 3.
        for i in reversed(range(len(sizes) - 1)):       # 7 -> 14 -> 28
            n_in, n_out, kernel = channels[i + 1], channels[i], 3 if sizes[i] % 2 else 4
            layers += [nn.BatchNorm2d(n_in), nn.ReLU()]
            layers.append(nn.ConvTranspose2d(n_in, n_out, kernel, stride=2, padding=1))
        self.net = nn.Sequential(*layers, nn.Tanh())
        self.apply(init_weights)

    def forward(self, h1, z):
        return self.net(torch.cat([h1, z], 1))


class Discriminator1(nn.Module):
    """Turns features h1 (B, 16 * width) into raw scores s (B,) and Q's guess of z1 (B, z_dim)."""

    def __init__(self, width, z_dim):
        super().__init__()
        hidden = 32 * width
        # There is no BatchNorm, because it ruined fully connected discriminators here. Without it,
        # init_weights would make all scores tiny, so D1 keeps PyTorch's larger initial weights.
        self.trunk = nn.Sequential(
            nn.Linear(16 * width, hidden), nn.LeakyReLU(0.2),
            nn.Linear(hidden, hidden), nn.LeakyReLU(0.2))
        self.score = nn.Sequential(nn.Linear(hidden, 1), nn.Flatten(0))
        self.Q = nn.Linear(hidden, z_dim)

    def forward(self, x):
        h = self.trunk(x)
        return self.score(h), self.Q(h)


class Discriminator0(nn.Module):
    """Turns images (B, C, H, H) into raw scores (B,) and Q's guess of z0 (B, z_dim)."""

    def __init__(self, shape, width, z_dim):
        super().__init__()
        sizes = map_sizes(shape[-1], 7)                                         # 28, 14, 7
        channels = [shape[0], *(width * 2**i for i in range(len(sizes) - 1))]   # 1, 16, 32
        layers, hidden = [], 32 * width
        for i in range(len(sizes) - 1):
            n_in, n_out, kernel = channels[i], channels[i + 1], 3 if sizes[i] % 2 else 4
            layers.append(nn.Conv2d(n_in, n_out, kernel, stride=2, padding=1))
            if i > 0:                                   # no BatchNorm after the first layer
                layers.append(nn.BatchNorm2d(n_out))
            layers.append(nn.LeakyReLU(0.2))
        layers += [nn.Flatten(), nn.Linear(channels[-1] * sizes[-1]**2, hidden)]
        self.trunk = nn.Sequential(*layers, nn.BatchNorm1d(hidden), nn.LeakyReLU(0.2))
        self.score = nn.Sequential(nn.Linear(hidden, 1), nn.Flatten(0))
        self.Q = nn.Linear(hidden, z_dim)
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


# ---- one step of each player; what these functions return is shown in the log ----
# Both GANs use the same functions. For G1 and D1, real data are features h1, and conditions are
# labels y. For G0 and D0, real data are images, and conditions are features h1.

def noise(G, n):
    """Return n noise vectors z ~ N(0, I) as a tensor (n, z_dim) on G's device."""
    return torch.randn(n, G.z_dim, device=next(G.parameters()).device)


def train_discriminator(G, D, opt, real, condition, ent_weight):
    """Take one step of D and Q, on real data (B, ...) and on one fake for each condition."""
    z = noise(G, len(condition))
    with torch.no_grad():               # no gradients for G; its BatchNorm still updates statistics
        fake = G(condition, z)
    # Two calls: in G's step, D's BatchNorm sees a batch of fakes only, so it must see one here too.
    (s_real, _), (s_fake, z_hat) = D(real), D(fake)     # real data have no noise to recover
    loss_real, loss_fake = discriminator_loss(s_real, s_fake)
    opt.zero_grad()
    (loss_real + loss_fake + ent_weight * F.mse_loss(z_hat, z)).backward()
    opt.step()
    return {"loss_real": loss_real, "loss_fake": loss_fake}


def train_generator(G, D, opt, condition, E_i, cond_loss, adv_weight, cond_weight, ent_weight):
    """Take one step of G, on one fake for each condition, which E_i should recover from it.

    For G1, E_i is E.E1 and cond_loss is F.cross_entropy. For G0, they are E.E0 and F.mse_loss.
    """
    z = noise(G, len(condition))
    fake = G(condition, z)
    s_fake, z_hat = D(fake)
    adv, cond, ent = generator_loss(s_fake), cond_loss(E_i(fake), condition), F.mse_loss(z_hat, z)
    loss = adv_weight * adv + cond_weight * cond + ent_weight * ent
    opt.zero_grad()         # below, D's weights get no gradients, which saves time
    loss.backward(inputs=[w for g in opt.param_groups for w in g["params"] if w.requires_grad])
    opt.step()
    return {"adv": adv, "cond": cond, "ent": ent}


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
def sample(G1, G0, y, z1, z0):
    """Return G0(G1(y, z1), z0). BatchNorm uses its running statistics: no image affects another."""
    mode = G1.training, G0.training
    images = G0.eval()(G1.eval()(y, z1), z0)
    G1.train(mode[0])
    G0.train(mode[1])
    return images


# ---- training ----

def pretrain(E, images, labels, steps):
    """Train E on uint8 images (N, C, H, H) for about `steps` steps, at a rate that falls to 0."""
    from common import batches
    n_batches = max(1, len(images) // 128)
    epochs = max(1, round(steps / n_batches))
    opt = torch.optim.Adam(E.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(opt, 1, 0, total_iters=epochs * n_batches)
    for _ in range(epochs):
        for real, y in batches(images, labels, 128):
            loss = F.cross_entropy(E(real), y)
            opt.zero_grad()
            loss.backward()
            opt.step()
            schedule.step()


def train(args, ckpt=None):
    # Imported here, so that the functions above can be used without common.py.
    from common import batches, default_data, load_images, save_gif, save_grid, spread
    out = Path(args.out or (Path(args.resume).parent if ckpt else f"out/{SCRIPT}"))
    latest = out / "ckpt.pt"
    continues = bool(ckpt) and Path(args.resume).resolve() == latest.resolve()
    if not continues and (latest.exists() or (out / "samples").exists()):
        sys.exit(f"error: {out} holds a run: use a new --out, delete it, or --resume {latest}")
    args.data = args.data or default_data(args.data_dir)    # kept for --resume
    images, labels, names = load_images(args.data, args.data_dir, classes=args.classes,
                                        image_size=args.image_size)
    K = len(names)
    if K == 1 or ckpt and names != ckpt["classes"]:
        sys.exit(f"error: E needs at least two classes, and on --resume the same, not {names}")
    images, labels = images.to(args.device), labels.to(args.device)     # all images, as uint8
    shape = tuple(images.shape[1:])
    n_batches = max(1, len(images) // args.batch_size)      # a last, shorter batch is left out
    args.epochs = args.epochs or max(1, round(9_400 / n_batches))
    if args.independent_epochs is None:
        args.independent_epochs = args.epochs // 2
    args.save_every = args.save_every or max(1, args.epochs // 40)
    print(f"{len(images)} images {shape}, {args.epochs} epochs of {n_batches} steps, {args.device}")

    torch.manual_seed(0)                # so that E is the same for all seeds
    E = Encoder(shape, args.width, K).to(args.device, memory_format=torch.channels_last)   # faster
    if not ckpt:
        print("first, the encoder E is trained (about a minute)", flush=True)
        pretrain(E, images, labels, args.encoder_steps)
    E.eval().requires_grad_(False)
    torch.manual_seed(args.seed)
    G1 = Generator1(args.z1_dim, args.width, K).to(args.device)
    D1 = Discriminator1(args.width, args.z1_dim).to(args.device)
    G0 = Generator0(args.z0_dim, shape, args.width).to(args.device)
    D0 = Discriminator0(shape, args.width, args.z0_dim).to(args.device)
    G1_ema = copy.deepcopy(G1).requires_grad_(False)
    G0_ema = copy.deepcopy(G0).requires_grad_(False)
    settings = {"betas": (args.beta1, args.beta2), "fused": True}   # fused is fastest
    opt_G1 = torch.optim.Adam(G1.parameters(), args.lr_g1, **settings)
    opt_D1 = torch.optim.Adam(D1.parameters(), args.lr_d1, **settings)
    opt_G0 = torch.optim.Adam(G0.parameters(), args.lr_g0, **settings)
    opt_D0 = torch.optim.Adam(D0.parameters(), args.lr_d0, **settings)
    state = {"E": E, "G1": G1, "D1": D1, "G0": G0, "D0": D0, "G1_ema": G1_ema, "G0_ema": G0_ema,
             "opt_G1": opt_G1, "opt_D1": opt_D1, "opt_G0": opt_G0, "opt_D0": opt_D0}
    # Every grid has the same noise and a row for each class (32 at most), to compare the grids.
    y_grid = torch.arange(min(K, 32), device=args.device).repeat_interleave(8)
    z1, z0 = args.z1_scale * noise(G1, len(y_grid)), noise(G0, len(y_grid))
    first_epoch, step, rows = 1, 0, []      # `step` counts D's steps; `rows` go to log.csv
    if ckpt:
        for name, part in state.items():
            part.load_state_dict(ckpt[name])
        first_epoch, step, rows = ckpt["epoch"] + 1, ckpt["step"], ckpt["rows"]
        z1, z0 = ckpt["z1"].to(args.device), ckpt["z0"].to(args.device)
        if first_epoch > args.epochs:
            sys.exit(f"error: {first_epoch - 1} epochs are done; raise --epochs to continue")

    held_out, y, _ = load_images(args.data, args.data_dir, classes=args.classes,
                                 image_size=args.image_size, train=False)
    parts = [E(x.to(args.device) / 127.5 - 1).argmax(1).cpu() for x in held_out.split(1000)]
    accuracy = (torch.cat(parts) == y).float().mean()
    print(f"E classifies {accuracy:.2%} of the held-out images correctly")

    loss_weights = args.adv_weight, args.cond_weight, args.ent_weight
    since_log = defaultdict(list)       # maps a column of the log to its values since the last line
    start = time.perf_counter() - (60 * rows[-1]["minutes"] if rows else 0)   # go on counting
    for epoch in range(first_epoch, args.epochs + 1):
        torch.manual_seed(10**6 * args.seed + epoch)    # so a resumed run draws the same numbers
        # Set in each epoch, so that new rates count after --resume. A schedule belongs here, too.
        for opt, lr in ((opt_G1, args.lr_g1), (opt_D1, args.lr_d1),
                        (opt_G0, args.lr_g0), (opt_D0, args.lr_d0)):
            opt.param_groups[0].update(lr=lr, **settings)
        save = epoch % args.save_every == 0 or epoch == args.epochs
        for i, (real, y) in enumerate(batches(images, labels, args.batch_size), 1):
            step += 1
            with torch.no_grad():
                h1 = E.E0(real)
            stats1 = train_discriminator(G1, D1, opt_D1, h1, y, args.ent_weight)
            stats1 |= train_generator(G1, D1, opt_G1, y, E.E1, F.cross_entropy, *loss_weights)
            if epoch > args.independent_epochs:         # the joint phase
                with torch.no_grad():
                    h1 = G1(y, noise(G1, len(y)))
            stats0 = train_discriminator(G0, D0, opt_D0, real, h1, args.ent_weight)
            stats0 |= train_generator(G0, D0, opt_G0, h1, E.E0, F.mse_loss, *loss_weights)
            update_ema(G1_ema, G1, args.ema, step)
            update_ema(G0_ema, G0, args.ema, step)
            stats = {f"{name}1": value for name, value in stats1.items()}
            stats |= {f"{name}0": value for name, value in stats0.items()}
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
            weights = nn.utils.parameters_to_vector(nn.ModuleList([G1, D1, G0, D0]).parameters())
            if not all(map(math.isfinite, means.values())) or not weights.isfinite().all():
                sys.exit("error: a loss or a weight is not finite; try lower learning rates")
            (out / "samples").mkdir(parents=True, exist_ok=continues)   # two runs must not mix
            continues = True    # ckpt.pt comes later, so --resume redraws a half-written picture
            save_grid(spread(images, 64) / 127.5 - 1, out / "samples/real.png")
            save_grid(sample(G1_ema, G0_ema, y_grid, z1, z0), out / f"samples/{epoch:06}.png")
            once = "out", "device", "resume", "sample", "num", "label", "vary"  # for one command
            with open(out / "ckpt.tmp", "wb") as file:      # torch.save(PATH) hides a full disk
                torch.save({"args": {k: v for k, v in vars(args).items() if k not in once},
                            "script": SCRIPT, "shape": shape, "classes": names,
                            "epoch": epoch, "step": step, "rows": rows, "z1": z1, "z0": z0,
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

    All classes get the same share (rounded up), unless --label names one. With --vary z1, all
    images share one z0. With --vary z0, they share one z1.
    """
    from common import save_images
    names = ckpt["classes"]
    G1 = Generator1(args.z1_dim, args.width, len(names))
    G0 = Generator0(args.z0_dim, ckpt["shape"], args.width)
    G1.load_state_dict(ckpt["G1_ema"])
    G0.load_state_dict(ckpt["G0_ema"])
    torch.manual_seed(args.seed)    # with G on the CPU, a seed gives the same noise on every device
    chosen = range(len(names))
    if args.label is not None:
        chosen = [names.index(args.label) if args.label in names else int(args.label)]
    share = math.ceil(args.num / len(chosen)) or 8
    y = torch.tensor(chosen).repeat_interleave(share)
    z1, z0 = args.z1_scale * noise(G1, len(y)), noise(G0, len(y))
    if args.vary == "z1":
        z0 = z0[:1].expand_as(z0)
    if args.vary == "z0":
        z1 = z1[:1].expand_as(z1)
    G1.to(args.device)
    G0.to(args.device)
    parts = zip(*(v.to(args.device).split(500) for v in (y, z1, z0)))
    images = torch.cat([sample(G1, G0, *part).cpu() for part in parts])
    save_images(images, args.out or Path(args.sample).with_name("sample.png"),
                8 if len(chosen) == 1 else share, [names[i] for i in y])


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
