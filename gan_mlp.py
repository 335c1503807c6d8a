"""Generative adversarial nets (Goodfellow et al. 2014, arXiv:1406.2661), fully connected.

A generator G turns noise z, a vector of standard normal numbers, into an image G(z), called a fake.
A discriminator D estimates the probability D(x) that an image x is real. The two compete. In
E log D(x), E is the mean over training images x; elsewhere, it is the mean over noise z:

    D maximises  V = E log D(x) + E log(1 - D(G(z)))
    G minimises  V                      with --loss minimax, or
    G maximises  E log D(G(z))          with --loss ns, the "non-saturating" default

Why this works (section 4.1): let p_data and p_g be the densities of real images and of fakes. V is
the integral of p_data(x) log D(x) + p_g(x) log(1 - D(x)) over all x. For a fixed G, the best D
maximises this sum at each x, where its slope is 0: D*(x) = p_data(x) / (p_data(x) + p_g(x)). Then
V = 2 JSD - log 4. The Jensen-Shannon divergence JSD measures how far p_g is from p_data: it is 0
only if they are equal, and at most log 2 = 0.693. So by lowering V against a good D, G moves p_g
towards p_data. (The non-saturating loss has the same solution, but does not minimise the JSD.)

The log estimates the JSD. D's losses are loss_real = -E log D(x) and
loss_fake = -E log(1 - D(G(z))), so V = -(loss_real + loss_fake). The column `jsd` is log 2 + V / 2.
With the best D, this is the JSD. With a weaker D, it is less, even negative. But V is a mean over
the training images only: if D memorises them, `jsd` is too large. So look at the images as well.

Why non-saturating (section 3): let s be D's raw score of a fake, and p = sigmoid(s) = D(G(z)). The
slope of log(1 - p) with respect to s is -p. It is near 0 when D recognises every fake, and that is
when G has the most to learn. The slope of log p is 1 - p, which is then near 1.

What differs from the paper: Adam instead of SGD, and no momentum, because it carries over old
gradients, computed against an earlier opponent; a higher learning rate for G than for D; smaller
networks; G has BatchNorm, GELU instead of ReLU and tanh instead of a sigmoid; D has LeakyReLU
instead of maxout, and no dropout; samples come from G_ema, a moving average of G's weights.

In a healthy run D(x) and D(G(z)) stay near 0.5 and the losses near 0.7 (loss_G near -0.7 with
minimax), while the fakes improve. In an unhealthy one D(G(z)) goes to 0, or all fakes look alike
(mode collapse).

    python gan_mlp.py                                   # MNIST, into out/gan_mlp
    python gan_mlp.py --sample out/gan_mlp/ckpt.pt      # 64 new images: out/gan_mlp/sample.png
    python gan_mlp.py --data FOLDER --image-size 32 --out out/mine      # your own images
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

SCRIPT = "gan_mlp"


def get_args(argv=None, **defaults):
    """Return the settings of the command line argv. `defaults` replace those below."""
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    arg = parser.add_argument
    arg("--data", help="mnist, fashion-mnist, cifar10, digits or a folder; None: mnist if possible")
    arg("--data-dir", default="data", help="where downloads are kept")
    arg("--classes", nargs="+", help="train on these classes only, by name or number")
    arg("--image-size", type=int, default=0, help="side in pixels; 0: the data's, 64 for folders")
    arg("--epochs", type=int, default=0, help="passes over the data; 0: about 12,000 steps of D")
    arg("--batch-size", type=int, default=100, help="real images in each step")
    arg("--lr", type=float, default=1.3e-3, help="learning rate of G")
    arg("--lr-d", type=float, default=4e-4, help="learning rate of D")
    arg("--beta1", type=float, default=0.0, help="Adam's decay of the average gradient (momentum)")
    arg("--beta2", type=float, default=0.999, help="Adam's decay of the average squared gradient")
    arg("--k", type=int, default=1, help="steps of D for each step of G")
    arg("--loss", choices=("ns", "minimax"), default="ns", help="loss of G; ns is non-saturating")
    arg("--z-dim", type=int, default=96, help="length of the noise vector z")
    arg("--width", type=int, default=96, help="units of G's first layer; others: 2 or 4 times")
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
    parser.set_defaults(**defaults)
    return parser.parse_args(argv)


# ---- networks ----

class Generator(nn.Module):
    """Turns noise z (B, z_dim) into images (B, C, H, H) in [-1, 1]; `shape` is (C, H, H)."""

    def __init__(self, z_dim, shape, width):
        super().__init__()
        self.z_dim, self.shape = z_dim, shape

        def block(n_in, n_out):         # no bias, as BatchNorm would remove it
            return nn.Linear(n_in, n_out, bias=False), nn.BatchNorm1d(n_out), nn.GELU()

        self.net = nn.Sequential(
            *block(z_dim, width),
            *block(width, 2 * width),
            *block(2 * width, 4 * width),
            nn.Linear(4 * width, math.prod(shape)), nn.Tanh(),
        )

    def forward(self, z):
        return self.net(z).view(-1, *self.shape)


class Discriminator(nn.Module):
    """Turns images (B, C, H, H) into raw scores s (B,). The D(x) of the formulas is sigmoid(s)."""

    def __init__(self, shape, width):
        super().__init__()
        self.net = nn.Sequential(
            nn.Flatten(),
            nn.Linear(math.prod(shape), 4 * width), nn.LeakyReLU(0.2),
            nn.Linear(4 * width, 2 * width), nn.LeakyReLU(0.2),
            nn.Linear(2 * width, 1), nn.Flatten(0),
        )

    def forward(self, x):
        return self.net(x)


# ---- losses ----
# F.logsigmoid(s) is log D(x), and F.logsigmoid(-s) is log(1 - D(x)). Both are finite for every s.

def discriminator_loss(s_real, s_fake):
    """Return the means of -log D(x) and -log(1 - D(G(z))), from the scores (B,) of x and G(z)."""
    return -F.logsigmoid(s_real).mean(), -F.logsigmoid(-s_fake).mean()


def generator_loss(s_fake, loss):
    """Return the mean of -log D(G(z)), or of log(1 - D(G(z))) for "minimax", from scores (B,)."""
    if loss == "minimax":
        return F.logsigmoid(-s_fake).mean()
    return -F.logsigmoid(s_fake).mean()


# ---- one step of each player; what these functions return is shown in the log ----

def noise(G, n):
    """Return n noise vectors z ~ N(0, I) as a tensor (n, z_dim) on G's device."""
    return torch.randn(n, G.z_dim, device=next(G.parameters()).device)


def train_discriminator(G, D, opt, real):
    """Take one step of D on real images (B, C, H, H) in [-1, 1] and as many fakes."""
    with torch.no_grad():               # no gradients for G; its BatchNorm still updates statistics
        fake = G(noise(G, len(real)))
    # One call is faster than two and gives the same scores: no layer of D mixes images.
    s_real, s_fake = D(torch.cat([real, fake])).chunk(2)
    loss_real, loss_fake = discriminator_loss(s_real, s_fake)
    opt.zero_grad()
    (loss_real + loss_fake).backward()
    opt.step()
    return {"loss_real": loss_real, "loss_fake": loss_fake, "D(x)": s_real.sigmoid().mean(),
            "D(G(z))": s_fake.sigmoid().mean(), "jsd": math.log(2) - (loss_real + loss_fake) / 2}


def train_generator(G, D, opt, n, loss):
    """Take one step of G on n fakes."""
    fake = G(noise(G, n))
    loss_G = generator_loss(D(fake), loss)
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
    args.epochs = args.epochs or max(1, round(12_000 / n_batches))
    args.save_every = args.save_every or max(1, args.epochs // 40)
    print(f"{len(images)} images {shape}, {args.epochs} epochs of {n_batches} steps, {args.device}")

    G = Generator(args.z_dim, shape, args.width).to(args.device)
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
            if step % args.k == 0:
                stats |= train_generator(G, D, opt_G, len(real), args.loss)
                update_ema(G_ema, G, args.ema, step // args.k)
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
            once = "out", "device", "resume", "sample", "num"    # these apply to one command
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
    G = Generator(args.z_dim, ckpt["shape"], args.width)
    G.load_state_dict(ckpt["G_ema"])
    torch.manual_seed(args.seed)    # with G on the CPU, a seed gives the same noise on every device
    z = noise(G, args.num)
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
