"""Deep convolutional GAN (Radford, Metz and Chintala 2015, arXiv:1511.06434).

The game is that of gan_mlp.py. A generator G turns random noise z into an image G(z), called a
fake. A discriminator D estimates the probability D(x) that an image x is real. In E log D(x), E is
the mean over training images x; elsewhere, it is the mean over noise z ~ N(0, I):

    D maximises  E log D(x) + E log(1 - D(G(z)))
    G maximises  E log D(G(z))

Networks and settings are new. A convolution applies one small kernel everywhere, so it learns a
stroke once, not anew at each position. By trial, the authors found five rules for good results:

    1. No pooling: strided convolutions shrink D's feature maps, and transposed ones enlarge G's.
    2. BatchNorm in both networks, except after G's last layer and D's first.
    3. No hidden fully connected layers in deep networks. (We have some; so does their MNIST code.)
    4. ReLU in G, with tanh at the end.
    5. LeakyReLU in D. It has a slope for negative inputs too, so gradients always reach G.

What differs from the paper: G and D each have a hidden fully connected layer, which links all parts
of an image and helps a lot here; G's learning rate is 1e-3, not 2e-4; kernels, networks and batches
are smaller; z is normal, not uniform; samples come from G_ema, an averaged G. Momentum works here.

In a healthy run D slowly gets ahead (D(x) rises towards 0.65 and D(G(z)) falls towards 0.35) while
the fakes improve. In an unhealthy one D(G(z)) drops to 0 at once, or all fakes look alike.

    python dcgan.py                                     # MNIST, 10 epochs, into out/dcgan
    python dcgan.py --sample out/dcgan/ckpt.pt --walk   # each row goes from one z to another
    python dcgan.py --data FOLDER --image-size 32 --lr 2e-4 --out out/mine      # photos: see README
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

SCRIPT = "dcgan"


def get_args(argv=None, **defaults):
    """Return the settings of the command line argv. `defaults` replace those below."""
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    arg = parser.add_argument
    arg("--data", help="mnist, fashion-mnist, cifar10, digits or a folder; None: mnist if possible")
    arg("--data-dir", default="data", help="where downloads are kept")
    arg("--classes", nargs="+", help="train on these classes only, by name or number")
    arg("--image-size", type=int, default=0, help="side in pixels; 0: the data's, 64 for folders")
    arg("--epochs", type=int, default=0, help="passes over the data; 0: about 9,400 steps of D")
    arg("--batch-size", type=int, default=64, help="real images in each step")
    arg("--lr", type=float, default=1e-3, help="learning rate of G")
    arg("--lr-d", type=float, default=2e-4, help="learning rate of D")
    arg("--beta1", type=float, default=0.5, help="Adam's decay of the average gradient (momentum)")
    arg("--beta2", type=float, default=0.999, help="Adam's decay of the average squared gradient")
    arg("--upsample", action="store_true", help="enlarge maps by upsampling and convolution")
    arg("--z-dim", type=int, default=100, help="length of the noise vector z")
    arg("--width", type=int, default=16, help="channels of the largest maps; scales all layers")
    arg("--ema", type=float, default=0.999, help="decay of the moving average G_ema")
    arg("--seed", type=int, default=0, help="seed of the random numbers")
    arg("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda:1, cpu, ...")
    arg("--log-every", type=int, default=200, help="steps between lines of the log")
    arg("--save-every", type=int, default=0, help="epochs between saves; 0: a 40th of all, or 1")
    arg("--keep", action="store_true", help="keep every checkpoint, as ckpt_EPOCH.pt")
    arg("--out", help=f"folder, or picture with --sample. None: out/{SCRIPT}, or beside CKPT")
    arg("--resume", metavar="CKPT", help="continue this run; --epochs is the total")
    arg("--sample", metavar="CKPT", help="draw images with the G_ema of this run")
    arg("--num", type=int, default=64, help="how many images --sample draws")
    arg("--walk", action="store_true", help="with --sample: each row goes from one z to another")
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
    """Turns noise z (B, z_dim) into images (B, C, H, H) in [-1, 1]; `shape` is (C, H, H).

    With `upsample`, nearest-neighbour upsampling and a convolution enlarge the feature maps. This
    avoids the checkerboard patterns of transposed convolutions.
    """

    def __init__(self, z_dim, shape, width, upsample):
        super().__init__()
        self.z_dim = z_dim
        sizes = map_sizes(shape[-1], 4)                                         # 28, 14, 7, 4
        channels = [shape[0], *(width * 2**i for i in range(len(sizes) - 1))]   # 1, 16, 32, 64
        hidden = 32 * width
        layers = [nn.Linear(z_dim, hidden), nn.BatchNorm1d(hidden), nn.ReLU(),
                  nn.Linear(hidden, channels[-1] * sizes[-1]**2),
                  nn.Unflatten(1, (channels[-1], sizes[-1], sizes[-1]))]
        # Each pass normalises the maps, then enlarges them, so no BatchNorm follows the last layer.
        # ConvTranspose2d turns a side n into 2n with kernel 4, and into 2n - 1 with kernel 3.
        for i in reversed(range(len(sizes) - 1)):       # 4 -> 7 -> 14 -> 28
            n_in, n_out, kernel = channels[i + 1], channels[i], 3 if sizes[i] % 2 else 4
            layers += [nn.BatchNorm2d(n_in), nn.ReLU()]
            if upsample:
                layers += [nn.Upsample(size=sizes[i]), nn.Conv2d(n_in, n_out, 3, padding=1)]
            else:
                layers.append(nn.ConvTranspose2d(n_in, n_out, kernel, stride=2, padding=1))
        self.net = nn.Sequential(*layers, nn.Tanh())
        self.apply(init_weights)

    def forward(self, z):
        return self.net(z)


class Discriminator(nn.Module):
    """Turns images (B, C, H, H) into raw scores s (B,). The D(x) of the formulas is sigmoid(s)."""

    def __init__(self, shape, width):
        super().__init__()
        sizes = map_sizes(shape[-1], 4)                                         # 28, 14, 7, 4
        channels = [shape[0], *(width * 2**i for i in range(len(sizes) - 1))]   # 1, 16, 32, 64
        layers, hidden = [], 32 * width
        for i in range(len(sizes) - 1):
            n_in, n_out, kernel = channels[i], channels[i + 1], 3 if sizes[i] % 2 else 4
            layers.append(nn.Conv2d(n_in, n_out, kernel, stride=2, padding=1))
            if i > 0:                                   # no BatchNorm after the first layer
                layers.append(nn.BatchNorm2d(n_out))
            layers.append(nn.LeakyReLU(0.2))
        layers += [nn.Flatten(), nn.Linear(channels[-1] * sizes[-1]**2, hidden)]
        layers += [nn.BatchNorm1d(hidden), nn.LeakyReLU(0.2), nn.Linear(hidden, 1)]
        self.net = nn.Sequential(*layers, nn.Flatten(0))
        self.apply(init_weights)

    def forward(self, x):
        return self.net(x)


# ---- losses ----
# F.logsigmoid(s) is log D(x), and F.logsigmoid(-s) is log(1 - D(x)). Both are finite for every s.

def discriminator_loss(s_real, s_fake):
    """Return the means of -log D(x) and -log(1 - D(G(z))), from the scores (B,) of x and G(z)."""
    return -F.logsigmoid(s_real).mean(), -F.logsigmoid(-s_fake).mean()


def generator_loss(s_fake):
    """Return the mean of -log D(G(z)), the non-saturating loss, from the scores (B,) of G(z)."""
    return -F.logsigmoid(s_fake).mean()


# ---- one step of each player; what these functions return is shown in the log ----

def noise(G, n):
    """Return n noise vectors z ~ N(0, I) as a tensor (n, z_dim) on G's device."""
    return torch.randn(n, G.z_dim, device=next(G.parameters()).device)


def train_discriminator(G, D, opt, real):
    """Take one step of D on real images (B, C, H, H) in [-1, 1] and as many fakes."""
    with torch.no_grad():               # no gradients for G; its BatchNorm still updates statistics
        fake = G(noise(G, len(real)))
    # Two calls: in G's step, D's BatchNorm sees a batch of fakes only, so it must see one here too.
    s_real, s_fake = D(real), D(fake)
    loss_real, loss_fake = discriminator_loss(s_real, s_fake)
    opt.zero_grad()
    (loss_real + loss_fake).backward()
    opt.step()
    return {"loss_real": loss_real, "loss_fake": loss_fake, "D(x)": s_real.sigmoid().mean(),
            "D(G(z))": s_fake.sigmoid().mean()}


def train_generator(G, D, opt, n):
    """Take one step of G on n fakes."""
    fake = G(noise(G, n))
    loss_G = generator_loss(D(fake))
    opt.zero_grad()         # below, D's weights get no gradients, which saves time
    loss_G.backward(inputs=[w for g in opt.param_groups for w in g["params"] if w.requires_grad])
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
def sample(G, z):
    """Return G(z), where BatchNorm uses its running statistics, so no image affects another."""
    mode = G.training
    images = G.eval()(z)
    G.train(mode)
    return images


def walks(G, n):
    """Return n noise vectors (n, z_dim). Each row of 8 in a grid goes from one z to another."""
    a, b = noise(G, 2 * math.ceil(n / 8)).view(2, -1, 1, G.z_dim)   # two z for each row
    t = torch.linspace(0, math.pi / 2, 8, device=a.device)[:, None]
    # Each point of this arc is like a draw from N(0, I). On a line, (a + b) / 2 would be too short.
    return (t.cos() * a + t.sin() * b).flatten(0, 1)[:n]


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
    args.epochs = args.epochs or max(1, round(9_400 / n_batches))
    args.save_every = args.save_every or max(1, args.epochs // 40)
    print(f"{len(images)} images {shape}, {args.epochs} epochs of {n_batches} steps, {args.device}")

    G = Generator(args.z_dim, shape, args.width, args.upsample).to(args.device)
    D = Discriminator(shape, args.width).to(args.device)
    G_ema = copy.deepcopy(G).requires_grad_(False)
    settings = {"betas": (args.beta1, args.beta2), "fused": True}   # fused is fastest
    opt_G = torch.optim.Adam(G.parameters(), args.lr, **settings)
    opt_D = torch.optim.Adam(D.parameters(), args.lr_d, **settings)
    state = {"G": G, "D": D, "G_ema": G_ema, "opt_G": opt_G, "opt_D": opt_D}
    z = noise(G, 64)            # the same noise for every grid, so that the grids can be compared
    first_epoch, step, rows = 1, 0, []      # `step` counts D's steps; `rows` go to log.csv
    if ckpt:
        for name, part in state.items():
            part.load_state_dict(ckpt[name])
        first_epoch, step, rows, z = ckpt["epoch"] + 1, ckpt["step"], ckpt["rows"], ckpt["z"]
        z = z.to(args.device)
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
        for i, (real, _) in enumerate(batches(images, labels, args.batch_size), 1):
            step += 1
            stats = train_discriminator(G, D, opt_D, real)
            stats |= train_generator(G, D, opt_G, len(real))
            update_ema(G_ema, G, args.ema, step)
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
            save_grid(sample(G_ema, z), out / f"samples/{epoch:06}.png")
            once = "out", "device", "resume", "sample", "num", "walk"  # for one command
            with open(out / "ckpt.tmp", "wb") as file:      # torch.save(PATH) hides a full disk
                torch.save({"args": {k: v for k, v in vars(args).items() if k not in once},
                            "script": SCRIPT, "shape": shape, "classes": names,
                            "epoch": epoch, "step": step, "rows": rows, "z": z,
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
    """Write args.num images: one grid if args.out is a picture, else a folder of single PNGs."""
    from common import save_images
    G = Generator(args.z_dim, ckpt["shape"], args.width, args.upsample)
    G.load_state_dict(ckpt["G_ema"])
    torch.manual_seed(args.seed)    # with G on the CPU, a seed gives the same noise on every device
    z = walks(G, args.num) if args.walk else noise(G, args.num)
    G.to(args.device)
    images = torch.cat([sample(G, part.to(args.device)).cpu() for part in z.split(500)])
    save_images(images, args.out or Path(args.sample).with_name("sample.png"))


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
