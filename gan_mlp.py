"""Generative adversarial nets (Goodfellow et al. 2014, arXiv:1406.2661), fully connected.

A generator G turns noise z, a vector of standard normal numbers, into an image G(z), called a fake.
A discriminator D estimates the probability D(x) that an image x is real. The two are trained
against each other. E is the mean over the training images x or over the noise z:

    D maximises  V = E log D(x) + E log(1 - D(G(z)))
    G minimises  V                      with --loss minimax, or
    G maximises  E log D(G(z))          with --loss ns, the "non-saturating" default

Why this works (section 4.1): let p_data and p_g be the densities of real images and of fakes. For a
fixed G, the best D is D*(x) = p_data(x) / (p_data(x) + p_g(x)), and then V = 2 JSD - log 4. The JSD
(Jensen-Shannon divergence) is 0 only if p_g = p_data, and at most log 2 = 0.693. So by lowering V
against a good D, G moves p_g towards p_data. (The non-saturating loss has the same solution, but
does not minimise the JSD.) For any D, V = -(loss_real + loss_fake) is at most V(D*, G), so the
column `jsd`, log 2 - (loss_real + loss_fake) / 2, is at most the JSD. A weak D makes it too small,
even negative. If D memorises the training images, jsd is too large, so look at the images too.

Why non-saturating (section 3): let s be D's raw score of a fake, and p = sigmoid(s) = D(G(z)). The
slope of log(1 - p) with respect to s is -p. It is near 0 when D recognises every fake, and that is
when G has the most to learn. The slope of log p is 1 - p, which is then near 1.

What differs from the paper: Adam without momentum instead of SGD with momentum; a higher learning
rate for G than for D; BatchNorm and GELU in G; in D, shifted pixel values, LeakyReLU for maxout,
and no dropout; and samples come from G_ema, an exponential moving average of G's weights.

In a healthy run D(x) and D(G(z)) stay near 0.5 and the losses near 0.7 (loss_G near -0.7 with
minimax), while the fakes improve. In an unhealthy one D(G(z)) goes to 0, or all fakes look alike.

    python gan_mlp.py                                   # MNIST, 10 epochs, into out/gan_mlp
    python gan_mlp.py --sample out/gan_mlp/ckpt.pt      # 64 new images: out/gan_mlp/sample.png
    python gan_mlp.py --data FOLDER --image-size 32 --out out/mine      # your own images
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

SCRIPT = "gan_mlp"


# ---- networks ----

class Generator(nn.Module):
    """Turns noise z (B, z_dim) into images (B, C, H, H) in [-1, 1]; `shape` is (C, H, H)."""

    def __init__(self, z_dim=96, shape=(1, 28, 28), width=96):
        super().__init__()
        self.z_dim, self.shape = z_dim, tuple(shape)

        def block(n_in, n_out):         # without a bias, as BatchNorm adds one
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
    """Turns images (B, C, H, H) into raw scores s (B,). The D(x) of the formulas is sigmoid(s).

    D subtracts half of `mean`, the mean training pixel, to learn faster. No layer mixes images.
    """

    def __init__(self, shape=(1, 28, 28), width=96, mean=0.0):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean))    # one number; --resume restores it
        self.trunk = nn.Sequential(
            nn.Flatten(),
            nn.Linear(math.prod(shape), 4 * width), nn.LeakyReLU(0.2),
            nn.Linear(4 * width, 2 * width), nn.LeakyReLU(0.2),
        )
        self.score = nn.Linear(2 * width, 1)

    def forward(self, x):
        return self.score(self.trunk(x - self.mean / 2)).flatten().float()  # float32 despite --amp


# ---- losses ----
# F.logsigmoid(s) is log D(x), and F.logsigmoid(-s) is log(1 - D(x)). Both are finite for every s.

def discriminator_loss(s_real, s_fake):
    """Return -E log D(x) and -E log(1 - D(G(z))), from the scores (B,) of real data and fakes."""
    return -F.logsigmoid(s_real).mean(), -F.logsigmoid(-s_fake).mean()


def generator_loss(s_fake, loss="ns"):
    """Return -E log D(G(z)) for "ns", E log(1 - D(G(z))) for "minimax", from scores of fakes."""
    if loss == "minimax":
        return F.logsigmoid(-s_fake).mean()
    return -F.logsigmoid(s_fake).mean()


# ---- one step of D and of G; the train functions return what the log shows ----

def noise(G, n):
    """Return n noise vectors z ~ N(0, I) as a tensor (n, z_dim) on G's device."""
    return torch.randn(n, G.z_dim, device=next(G.parameters()).device)


def train_discriminator(G, D, opt, real, amp=nullcontext()):
    """Take one step of D on real images (B, C, H, H) in [-1, 1] and as many fakes."""
    with amp:                           # torch.autocast with --amp, or else nothing
        with torch.no_grad():           # D's step needs no gradient of G's weights
            fake = G(noise(G, len(real)))
        # One call is faster than two and gives the same scores: no layer of D mixes images.
        s_real, s_fake = D(torch.cat([real, fake])).chunk(2)
    loss_real, loss_fake = discriminator_loss(s_real, s_fake)
    D.zero_grad()
    (loss_real + loss_fake).backward()
    opt.step()
    return {"loss_real": loss_real.detach(), "loss_fake": loss_fake.detach(),
            "D(x)": s_real.detach().sigmoid().mean(), "D(G(z))": s_fake.detach().sigmoid().mean(),
            "jsd": math.log(2) - (loss_real + loss_fake).detach() / 2}


def train_generator(G, D, opt, real, loss="ns", l1=0.0, amp=nullcontext()):
    """Take one step of G, on as many fakes as there are real images.

    With l1 > 0, G also minimises l1 * mean |G(z) - x|, as in some tutorials. But no G(z) belongs to
    any x, so this pulls every G(z) towards one image, the pixel-wise median of the training images.
    """
    z = noise(G, len(real))
    with amp:
        fake = G(z)
        s_fake = D(fake)
    loss_G = generator_loss(s_fake, loss)
    total = loss_G + (l1 * (fake - real).abs().mean() if l1 else 0)
    G.zero_grad()
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
def sample(G, z):
    """Return G(z), where BatchNorm uses its running statistics, so no image affects another."""
    G.eval()
    images = G(z)
    G.train()
    return images


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
    images, _, names = load_images(args.data, args.data_dir, image_size=args.image_size,
                                   channels=args.channels, classes=args.classes, device=device)
    shape = tuple(images.shape[1:])     # images are uint8 (N, C, H, W); batches are in [-1, 1]
    args.channels, args.image_size = shape[0], shape[-1]
    n_batches = max(1, len(images) // args.batch_size)      # a last, shorter batch is left out

    G = Generator(args.z_dim, shape, args.width).to(device)
    mean = spread(images, 1000).float().mean().item() / 127.5 - 1   # 1,000 images are enough
    D = Discriminator(shape, args.width, mean).to(device)
    G_ema = copy.deepcopy(G).requires_grad_(False)
    optimizer = partial(torch.optim.Adam, betas=(args.beta1, args.beta2), fused=True,
                        weight_decay=args.weight_decay, capturable=use_graph)
    opt_G = optimizer(G.parameters(), lr=args.lr)
    opt_D = optimizer(D.parameters(), lr=args.lr_d)
    parts = {"G": G, "D": D, "G_ema": G_ema, "opt_G": opt_G, "opt_D": opt_D}
    z = noise(G, 64)            # the same noise for every grid, so that the grids can be compared
    first_epoch, step, rows = 1, 0, []      # `step` counts D's steps; `rows` go to log.csv
    if ckpt:
        for name, part in parts.items():
            if name.startswith("opt"):      # the settings of the optimizers come from the flags
                ckpt[name]["param_groups"] = part.state_dict()["param_groups"]
            part.load_state_dict(ckpt[name])
        z = ckpt["z"].to(device)
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
    update_D = partial(train_discriminator, G, D, opt_D, amp=amp)
    update_G = partial(train_generator, G, D, opt_G, loss=args.loss, l1=args.l1, amp=amp)
    if use_graph:
        update_D, update_G = GraphedUpdate(update_D), GraphedUpdate(update_G)

    print(f"{args.data}: {len(images):,} images {shape}, {n_batches} batches an epoch, on {device}")
    save_every = args.save_every or max(1, args.epochs // 40)
    history = defaultdict(list)         # maps a name to its values since the last line of the log
    last_log = last_save = time.time()
    for epoch in range(first_epoch, args.epochs + 1):
        for i, real in enumerate(batches(images, args.batch_size), 1):
            step += 1
            stats = update_D(real)
            if step % args.k == 0:
                stats |= update_G(real)
                update_ema(G_ema, G, args.ema, step // args.k)
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
            grid = sample(G_ema, z)
            save_grid(grid, out / f"samples/{epoch:04}.png")
            if writer:
                writer.add_images("samples", grid / 2 + 0.5, step)
            with open(out / "log.csv", "w", newline="") as file:
                table = csv.DictWriter(file, dict.fromkeys(name for row in rows for name in row))
                table.writeheader()
                table.writerows(rows)
            buffer = io.BytesIO()       # torch.save to a file would hide that the disk is full
            torch.save({
                "script": SCRIPT, "args": vars(args), "shape": shape, "classes": names,
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
    """Write args.num images: one grid if args.out is a picture, else a folder of single PNGs."""
    from common import save_images
    G = Generator(args.z_dim, ckpt["shape"], args.width)
    G.load_state_dict(ckpt["G_ema"])
    G.to(args.device)
    # The noise is drawn on the CPU, so that a seed gives the same noise on every device.
    z = torch.randn(args.num, G.z_dim, generator=torch.Generator().manual_seed(args.seed))
    images = torch.cat([sample(G, part.to(args.device)).cpu() for part in z.split(500)])
    save_images(images, args.out)


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
    arg("--epochs", type=int, default=10, help="total number, including those before --resume")
    arg("--batch-size", type=int, default=100, help="real images in each step")
    arg("--lr", type=float, default=1.3e-3, help="learning rate of G")
    arg("--lr-d", type=float, default=4e-4, help="learning rate of D")
    arg("--beta1", type=float, default=0.0, help="Adam's decay of the average gradient")
    arg("--beta2", type=float, default=0.999, help="Adam's decay of the average square")
    arg("--weight-decay", type=float, default=0.0, help="Adam's L2 penalty on the weights")
    arg("--k", type=int, default=1, help="steps of D for each step of G")
    arg("--loss", choices=("ns", "minimax"), default="ns", help="loss of G; ns is non-saturating")
    arg("--l1", type=float, default=0.0, help="weight of G's L1 loss, see train_generator")
    arg("--z-dim", type=int, default=96, help="length of the noise vector z")
    arg("--width", type=int, default=96, help="units of the hidden layers: 1, 2 or 4 times this")
    arg("--ema", type=float, default=0.999, help="decay of the moving average G_ema")
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
    arg("--num", type=int, default=64, help="how many images --sample generates")

    args, ckpt = parser.parse_args(argv), None
    path = args.resume or args.sample
    if path:
        try:
            ckpt = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:      # it is missing, damaged, or a pickle that could run code
            parser.error(f"cannot load {path}: {str(error).split('. ')[0] or 'it is empty'}")
        if not isinstance(ckpt, dict) or ckpt.get("script") != SCRIPT:
            parser.error(f"{path} was not saved by {SCRIPT}.py")
        this_run = ("out", "device", "resume", "sample", "num")
        parser.set_defaults(**{k: v for k, v in ckpt["args"].items() if k not in this_run})
        args = parser.parse_args(argv)      # again, with the checkpoint's settings as defaults
        for name in ("image_size", "channels", "z_dim", "width"):   # these shape G, D
            if vars(args)[name] != ckpt["args"][name]:
                parser.error(f"--{name.replace('_', '-')} must be {ckpt['args'][name]} for {path}")
    if min(args.epochs, args.k, args.num, args.z_dim, args.width) < 1 or args.batch_size < 2:
        parser.error("--batch-size must be above 1; epochs, k, num, z-dim and width above 0")
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
