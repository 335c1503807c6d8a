"""Generative adversarial nets (Goodfellow et al. 2014, arXiv:1406.2661) of fully connected layers.

The generator G turns noise z into an image G(z). The discriminator D gives the probability D(x) that
an image x is real. D learns to tell real images from G's, G learns to be mistaken for real:

    D maximises  V(D, G) = E log D(x) + E log(1 - D(G(z)))
    G minimises  V(D, G)              with --loss minimax, or
    G maximises  E log D(G(z))        with --loss ns ("non-saturating", the default)

Why this makes images: for any G the best D is D*(x) = p_data(x) / (p_data(x) + p_g(x)), and there
V = -log 4 + 2 JSD(p_data || p_g). A D that plays well measures the Jensen-Shannon divergence between
real and generated images; a G that plays against it lowers a distance nobody could have written down.
The game ends at p_g = p_data, where D(x) = 1/2 for every x. As no D beats D*, any D gives a bound:
JSD >= log 2 - loss_D / 2, loss_D = -V. The log has it as `jsd`: 0 when D is fooled, log 2 = 0.693 when
it never is. (Estimated on minibatches: below 0 when D is worse than chance, too high when D overfits.)

Why two losses for G: both have their optimum at the same place, but while D still rejects every fake,
D(G(z)) is near 0, where log(1 - D(G(z))) is flat: minimax stalls just when G has everything to learn.
There -log D(G(z)) is steep.

Not as in the paper: Adam; BatchNorm and GELU in G; LeakyReLU and dropout in D, not maxout; normal z,
not uniform; samples come from a moving average of G's weights.

A healthy run: D(x) and D(G(z)) meet near 0.5; loss_real and loss_fake near log 2 = 0.693, and so does
loss_G; jsd goes to 0. D(G(z)) staying near 0 means that G has lost.

    python gan_mlp.py                                   # MNIST, 10 passes; see out/gan_mlp/samples
    python gan_mlp.py --sample out/gan_mlp/ckpt.pt      # 64 new images: out/gan_mlp/sample.png
    python gan_mlp.py --data FOLDER --image-size 32     # images of your own
"""

import argparse
import copy
import math
import os
import sys
import time
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

SCRIPT = "gan_mlp"


# ---- networks ----

class Generator(nn.Module):
    """Noise z (B, z_dim) → images (B, C, H, W) in [-1, 1], for `shape` = (C, H, W)."""

    def __init__(self, z_dim=96, shape=(1, 28, 28), width=128):
        super().__init__()
        self.z_dim, self.shape = z_dim, tuple(shape)
        sizes = [z_dim, width, 2 * width, 4 * width, 8 * width]
        layers = []
        for n_in, n_out in zip(sizes, sizes[1:]):
            # BatchNorm in G only: in D it made this GAN collapse
            layers += [nn.Linear(n_in, n_out, bias=False), nn.BatchNorm1d(n_out), nn.GELU()]
        self.net = nn.Sequential(*layers, nn.Linear(8 * width, math.prod(shape)), nn.Tanh())

    def forward(self, z):
        return self.net(z).view(-1, *self.shape)


class Discriminator(nn.Module):
    """Images (B, C, H, W) in [-1, 1] → raw scores (B,); D(x) is their sigmoid."""

    def __init__(self, shape=(1, 28, 28), width=128):
        super().__init__()
        self.net = nn.Sequential(       # dropout: or D would soon know the training images by heart
            nn.Flatten(),
            nn.Linear(math.prod(shape), 4 * width), nn.LeakyReLU(0.2), nn.Dropout(0.3),
            nn.Linear(4 * width, 2 * width), nn.LeakyReLU(0.2), nn.Dropout(0.3),
            nn.Linear(2 * width, 1),
        )

    def forward(self, x):
        return self.net(x).flatten().float()    # float32 for the losses, under --amp too


# ---- losses: with s the score, log D = -softplus(-s) and log(1 - D) = -softplus(s), never log 0 ----

def discriminator_loss(real, fake):
    """-E log D(x) and -E log(1 - D(G(z))), in nats, from scores (B,) of real images and fakes."""
    return F.softplus(-real).mean(), F.softplus(fake).mean()


def jsd_bound(loss_D):
    """Lower bound of JSD(p_data || p_g) in nats, from loss_D = -V: log 2 - loss_D / 2; tight for D*."""
    return math.log(2) - loss_D / 2


def generator_loss(fake, loss="ns"):
    """G's loss from scores (B,) of fakes: -E log D(G(z)), or for "minimax" E log(1 - D(G(z)))."""
    return F.softplus(-fake).mean() if loss == "ns" else -F.softplus(fake).mean()


# ---- one update of each player (Algorithm 1) ----

def noise(G, n):
    """n draws of z ~ N(0, 1): (n, z_dim), on the device of G."""
    return torch.randn(n, G.z_dim, device=next(G.parameters()).device)


def train_discriminator(G, D, opt, real, *, amp=False):
    """One step of D on real images (B, C, H, W) in [-1, 1] and as many fakes.

    Returns (4,): -E log D(x), -E log(1 - D(G(z))), E D(x), E D(G(z)).
    """
    with torch.autocast(real.device.type, torch.bfloat16, enabled=amp):
        with torch.no_grad():           # this step moves D only
            fake = G(noise(G, len(real)))
        s_real, s_fake = D(real), D(fake)
    loss_real, loss_fake = discriminator_loss(s_real, s_fake)
    opt.zero_grad()
    (loss_real + loss_fake).backward()
    opt.step()
    return torch.stack([loss_real, loss_fake, s_real.sigmoid().mean(), s_fake.sigmoid().mean()]).detach()


def train_generator(G, D, opt, n, *, loss="ns", l1=0.0, real=None, amp=False):
    """One step of G on n fakes; D stays as it is. Returns G's adversarial loss, ().

    l1 > 0 adds l1 E|G(z) - x| over `real` (n, C, H, W). Tutorials have this term, yet G(z) and x are
    not a pair: it draws every image towards the mean image. Off by default; try it and see.
    """
    z = noise(G, n)
    D.requires_grad_(False)             # no gradients for the weights that this step leaves alone
    with torch.autocast(z.device.type, torch.bfloat16, enabled=amp):
        fake = G(z)
        s_fake = D(fake)
    loss_G = generator_loss(s_fake, loss)
    opt.zero_grad()
    (loss_G + l1 * (fake - real).abs().mean() if l1 else loss_G).backward()
    opt.step()
    D.requires_grad_(True)
    return loss_G.detach()


# ---- samples ----

@torch.no_grad()
def update_ema(G_ema, G, decay, t):
    """After G's t-th update: G_ema = decay G_ema + (1 - decay) G. The average is steadier than G."""
    decay = min(decay, (1 + t) / (10 + t))      # short at first, to forget the random start
    for average, weight in zip(G_ema.parameters(), G.parameters()):
        average.lerp_(weight, 1 - decay)
    for average, buffer in zip(G_ema.buffers(), G.buffers()):
        average.copy_(buffer)           # of BatchNorm, which averages by itself


@torch.no_grad()
def sample(G, z):
    """G(z) in eval mode: images (B, C, H, W) in [-1, 1], none depending on others of its batch."""
    G.eval()
    images = G(z)
    G.train()
    return images


# ---- training ----

def train(args, ckpt=None):
    """Train from scratch, or on from a checkpoint; everything is written to args.out."""
    # imported here: what stands above then works in a copy of this file alone, with torch only
    from common import DataError, batches, default_data, load_images, save_gif, save_grid
    device = pick_device(args.device)
    torch.manual_seed(args.seed)
    try:
        args.data = args.data or default_data(args.data_dir)
        images, _ = load_images(args.data, args.data_dir, classes=args.classes, device=device,
                                image_size=args.image_size, channels=args.channels)
    except DataError as error:
        fail(error)
    shape = tuple(images.shape[1:])
    if len(images) < 2 or shape[-1] > 256:
        fail(f"--data {args.data}: {len(images)} image(s) of side {shape[-1]}; these networks need "
             "two at least, and an --image-size of 256 at most")
    n_batches = max(1, len(images) // args.batch_size)

    G = Generator(args.z_dim, shape, args.width).to(device)
    D = Discriminator(shape, args.width).to(device)
    G_ema = copy.deepcopy(G).requires_grad_(False)
    adam = dict(betas=(args.beta1, args.beta2), weight_decay=args.weight_decay,
                fused=device.type != "mps")
    opt_G = torch.optim.Adam(G.parameters(), lr=args.lr, **adam)
    opt_D = torch.optim.Adam(D.parameters(), lr=args.lr_d or args.lr, **adam)
    z = noise(G, 64)                    # the same in all grids, so that one sees the images change
    epoch, step, grids = 0, 0, []
    if ckpt:
        try:
            for name, net in (("G", G), ("D", D), ("G_ema", G_ema)):
                net.load_state_dict(ckpt[name])
            for name, opt in (("opt_G", opt_G), ("opt_D", opt_D)):      # settings stay this run's
                opt.load_state_dict({**opt.state_dict(), "state": ckpt[name]["state"]})
        except (RuntimeError, ValueError):
            fail(f"--resume {args.resume}: has another --width, --z-dim or image shape")
        z, epoch, step, grids = ckpt["z"].to(device), ckpt["epoch"], ckpt["step"], ckpt["grids"]
        if epoch >= args.epochs:
            fail(f"--epochs {args.epochs}: {args.resume} is at {epoch} already; give a larger total")
        torch.set_rng_state(ckpt["rng"])
        if device.type == "cuda" and ckpt["rng_cuda"] is not None:
            torch.cuda.set_rng_state(ckpt["rng_cuda"])

    out = Path(args.out)
    writer = open_tensorboard(out, step) if args.tensorboard else None
    (out / "samples").mkdir(parents=True, exist_ok=True)
    log = open_log(out / "log.csv", step, "epoch,step,loss_real,loss_fake,D_x,D_Gz,loss_G,jsd,images_per_s")
    some = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:64].to(device)
    save_grid(images[some] / 127.5 - 1, out / "samples/real.png")
    print(f"{args.data}: {len(images):,} images {shape}, {n_batches} batches a pass, {device} → {out}")

    save_every = args.save_every or max(1, round(args.epochs / 40))
    log_D, log_G, since, t_log = [], [], step, time.time()
    while epoch < args.epochs:
        epoch += 1
        for i, real in enumerate(batches(images, args.batch_size), 1):
            step += 1
            log_D.append(train_discriminator(G, D, opt_D, real, amp=args.amp))
            if step % args.k == 0:
                log_G.append(train_generator(G, D, opt_G, len(real), loss=args.loss, l1=args.l1,
                                             real=real, amp=args.amp))
                update_ema(G_ema, G, args.ema, step // args.k)

            if log_G and (i == n_batches or time.time() > t_log + args.log_every):
                # means since the last line; the host waits for the device here and nowhere else
                means = torch.cat([torch.stack(log_D).mean(0), torch.stack(log_G).mean(0)[None]]).tolist()
                row = dict(zip(("loss_real", "loss_fake", "D(x)", "D(G(z))", "loss_G"), means))
                row["jsd"] = jsd_bound(means[0] + means[1])
                if not all(map(math.isfinite, means)):
                    fail(f"a loss is {sum(means)} at step {step}; {out / 'ckpt.pt'} is from before")
                speed = (step - since) * len(real) / (time.time() - t_log)
                left = int(((args.epochs - epoch + 1) * n_batches - i) * len(real) / speed)
                print(f"epoch {epoch}/{args.epochs}  step {step} ", *(f"{k} {v:.3f}" for k, v in row.items()),
                      f" {speed:.0f} images/s  {left // 60}:{left % 60:02} left", flush=True)
                print(epoch, step, *row.values(), speed, sep=",", file=log)
                if writer:
                    for name, value in row.items():
                        writer.add_scalar(name, value, step)
                log_D, log_G, since, t_log = [], [], step, time.time()

        if epoch % save_every == 0 or epoch == args.epochs:
            if not all(w.isfinite().all() for net in (G, D) for w in net.state_dict().values()):
                fail(f"a weight is not finite at step {step}; {out / 'ckpt.pt'} is from before")
            grids = [*grids, f"samples/{epoch:04}.png"]
            save_grid(sample(G_ema, z), out / grids[-1])
            if writer:
                writer.add_images("samples", sample(G_ema, z) / 2 + 0.5, step)
            ckpt = {"script": SCRIPT, "args": {k: v for k, v in vars(args).items() if k not in THIS_RUN},
                    "shape": shape, "epoch": epoch, "step": step, "z": z, "grids": grids,
                    "G": G.state_dict(), "D": D.state_dict(), "G_ema": G_ema.state_dict(),
                    "opt_G": opt_G.state_dict(), "opt_D": opt_D.state_dict(),
                    "rng": torch.get_rng_state(),
                    "rng_cuda": torch.cuda.get_rng_state() if device.type == "cuda" else None}
            save_checkpoint(ckpt, out / "ckpt.pt")
            if args.keep:
                save_checkpoint(ckpt, out / f"ckpt_{epoch:04}.pt")
    save_gif([out / grid for grid in grids if (out / grid).exists()], out / "samples.gif")
    print(f"wrote {out / grids[-1]}; for more: python {SCRIPT}.py --sample {out / 'ckpt.pt'}")


def sample_checkpoint(args, ckpt):
    """Write args.num images: one grid where args.out ends in .png, else a folder of single PNGs."""
    from common import save_grid
    device = pick_device(args.device)
    G = Generator(ckpt["args"]["z_dim"], ckpt["shape"], ckpt["args"]["width"]).to(device)
    G.load_state_dict(ckpt["G_ema"])
    # z is drawn on the CPU: a seed means the same images on every device
    z = torch.randn(args.num, G.z_dim, generator=torch.Generator().manual_seed(args.seed))
    images = torch.cat([sample(G, part.to(device)).cpu() for part in z.split(500)])
    out = Path(args.out)
    if out.suffix == ".png":
        out.parent.mkdir(parents=True, exist_ok=True)
        save_grid(images, out)
    else:
        out.mkdir(parents=True, exist_ok=True)
        for i, image in enumerate(images):
            save_grid(image[None], out / f"{i:05}.png")
    print(f"wrote {args.num} images to {out}")


# ---- files and devices ----

def save_checkpoint(ckpt, path):
    """Write beside `path`, then move into place: no kill and no full disk leaves a broken checkpoint."""
    temporary = Path(f"{path}.tmp")
    try:
        torch.save(ckpt, temporary)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:    # RuntimeError: how torch's writer reports a full disk
        fail(f"{path} cannot be written ({str(error).splitlines()[0]}); the one before it is kept")
    finally:
        temporary.unlink(missing_ok=True)


def load_checkpoint(path, flag):
    """What save_checkpoint wrote. weights_only: data are read, and no code that a pickle may carry."""
    try:
        ckpt = torch.load(path, map_location="cpu", weights_only=True)
        script = ckpt["script"]
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        fail(f"{flag} {path}: {error.strerror}")
    except Exception:                   # whatever zip files, pickles and dicts of others may raise
        fail(f"{flag} {path}: damaged, or not a checkpoint of these scripts")
    if script != SCRIPT:
        fail(f"{flag} {path}: is of {script}.py, use that")
    return ckpt


def open_log(path, step, header):
    """Open log.csv behind its rows up to `step`, those of the run that is resumed."""
    lines = path.read_text().splitlines()[1:] if step and path.exists() else []
    log = open(path, "w", buffering=1)
    print(header, *(line for line in lines if int(line.split(",")[1]) <= step), sep="\n", file=log)
    return log


def open_tensorboard(out, step):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        fail("--tensorboard: not installed; pip install tensorboard")
    return SummaryWriter(out / "tensorboard", purge_step=step + 1)


def pick_device(name):
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind in there if there[kind])
    if not there[name]:
        fail(f"--device {name}: there is none that torch can use; --device auto takes what there is")
    return torch.device(name)


def fail(message):
    """End on an error that the user can mend: one line on standard error, exit code 2 like argparse."""
    print(f"{SCRIPT}.py: error: {message}", file=sys.stderr)
    sys.exit(2)


# ---- command line ----

THIS_RUN = ("out", "device", "resume", "sample", "num")     # settings that a checkpoint does not hand on


def between(kind, low, high):
    """An argparse type: a number of this kind, from low to high."""
    def number(text):
        value = kind(text)
        if not low <= value <= high:    # so is nan
            raise argparse.ArgumentTypeError(f"{text} is not from {low} to {high}")
        return value
    return number


def get_args(argv=None):
    """The settings and, for --resume and --sample, the checkpoint (else None)."""
    parser = argparse.ArgumentParser(SCRIPT + ".py", description=__doc__.splitlines()[0], allow_abbrev=False,
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.error = fail
    positive, fraction = between(int, 1, 10**9), between(float, 0, 0.999999)
    arg = parser.add_argument_group("data").add_argument
    arg("--data", help="mnist, fashion-mnist, cifar10, strokes or a folder (not given: mnist, else strokes)")
    arg("--data-dir", default="data", help="for downloads and decoded folders")
    arg("--classes", nargs="+", help="names or numbers of the classes to train on (not given: all)")
    arg("--image-size", type=between(int, 0, 256), default=0, help="side (0: as the data are)")
    arg("--channels", type=int, choices=(0, 1, 3), default=0, help="1 grey, 3 RGB (0: as the data are)")
    arg = parser.add_argument_group("training").add_argument
    arg("--epochs", type=positive, default=10, help="passes of D over the data, in total")
    arg("--batch-size", type=between(int, 2, 10**6), default=64)
    arg("--lr", type=between(float, 1e-9, 1), default=3e-4, help="learning rate of G")
    arg("--lr-d", type=between(float, 0, 1), default=0, help="learning rate of D (0: that of G)")
    arg("--beta1", type=fraction, default=0.0)
    arg("--beta2", type=fraction, default=0.999)
    arg("--z-dim", type=between(int, 1, 10**5), default=96)
    arg("--width", type=between(int, 1, 10**4), default=128, help="of the narrowest layer")
    arg("--ema", type=fraction, default=0.999, help="decay of the average of G's weights")
    arg("--seed", type=between(int, 0, 2**63 - 1), default=0)
    arg("--k", type=positive, default=1, help="steps of D for one of G")
    arg("--loss", choices=("ns", "minimax"), default="ns", help="of G")
    arg("--l1", type=between(float, 0, 1e6), default=0, help="weight of an L1 term in G's loss")
    arg("--weight-decay", type=between(float, 0, 1), default=0)
    arg = parser.add_argument_group("output").add_argument
    arg("--out", help="folder; with --sample a .png or a folder (not given: out/gan_mlp, or the checkpoint's)")
    arg("--log-every", type=between(float, 0, 1e9), default=3, help="seconds, and at the end of a pass")
    arg("--save-every", type=between(int, 0, 10**9), default=0, help="passes (0: about 40 a run)")
    arg("--keep", action="store_true", help="keep every checkpoint")
    arg("--tensorboard", action="store_true")
    arg = parser.add_argument_group("machine").add_argument
    arg("--device", choices=("auto", "cuda", "mps", "cpu"), default="auto")
    arg("--amp", action="store_true", help="compute in bfloat16 where that is safe")
    arg = parser.add_argument_group("modes").add_argument
    arg("--resume", metavar="CKPT", help="train on; what is not given again is as in the checkpoint")
    arg("--sample", metavar="CKPT", help="make images with a trained G")
    arg("--num", type=positive, default=64, help="of images for --sample")

    args = parser.parse_args(argv)
    if not (args.resume or args.sample):
        args.out = args.out or f"out/{SCRIPT}"
        return args, None
    path = args.sample or args.resume
    ckpt = load_checkpoint(path, "--sample" if args.sample else "--resume")
    parser.set_defaults(**ckpt["args"])
    args = parser.parse_args(argv)
    folder = Path(path).parent
    args.out = args.out or str(folder / "sample.png" if args.sample else folder)
    return args, ckpt


def main(argv=None):
    args, ckpt = get_args(argv)
    try:
        sample_checkpoint(args, ckpt) if args.sample else train(args, ckpt)
    except OSError as error:            # a folder that cannot be written, a full disk
        fail(f"--out {args.out}: {error}")
    except KeyboardInterrupt:
        sys.exit(f"\nstopped; to go on: python {SCRIPT}.py --resume {Path(args.out, 'ckpt.pt')}")


if __name__ == "__main__":
    main()
