"""Wasserstein GAN with weight clipping (Arjovsky et al. 2017, arXiv:1701.07875, Algorithm 1).

A generator G turns random noise z into an image G(z), called a fake. A critic D gives an image x a
score D(x), which can be any number. E is the mean over the training images x, or over z ~ N(0, I):

    D maximises  W = E D(x) - E D(G(z)),  with each weight kept between -c and c, where c = 0.01
    G maximises  E D(G(z)),  with one step of G after every n_critic = 5 steps of D

The idea: real images and fakes are like two piles of earth in the space of all images. A transport
plan says how much earth goes from where to where. Its cost is the amount times the distance. The
cost of the cheapest plan is the earth mover's (or Wasserstein) distance between the two. It shrinks
steadily as they get closer. The Jensen-Shannon divergence (see gan_mlp.py) does not: it is log 2
for all piles that do not overlap, however near they are, so it cannot guide G (Example 1).

Trying all transport plans between sets of images would take far too long. But by a theorem
(Kantorovich-Rubinstein duality) the distance equals

    the maximum of  E f(x) - E f(G(z))  over all functions f whose slope is at most 1 everywhere.

So D plays the role of f. Clipping its weights keeps D's slope below an unknown constant K, so W is
at most K times the distance. K depends on c and on D's layers: compare only runs that share them.
The better D is, the better its gradient tells G where to go. So D takes more steps than G.

Why clipping is a stopgap: a large c makes D slow to train (section 3), a small c makes gradients
vanish from layer to layer, and weights held at -c or c leave D only simple functions. The log has
their share as at_clip. wgan_gp.py limits the slope of D itself instead.

What differs from the paper: D has no BatchNorm, because its scale factors would be clipped as well
(W then stayed near 1e-13); D has a hidden fully connected layer (in G, one made samples alike); G
has a higher learning rate than D; batches and networks are smaller; samples come from G_ema, a
moving average of G. RMSprop is the paper's: with momentum, training was at times unstable.

In a healthy run W rises while D learns and then falls as the fakes improve. W_val is W on images
that D was not trained on; if it is far below W, D overfits. D(x), D(G(z)) and loss_G mean nothing
alone: a constant added to all scores changes no gradient.

    python wgan_clip.py                                 # MNIST, 10 epochs, into out/wgan_clip
    python wgan_clip.py --sample out/wgan_clip/ckpt.pt  # 64 new images: out/wgan_clip/sample.png
    python wgan_clip.py --data FOLDER --classes horse --out out/mine    # one class of a folder
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

SCRIPT = "wgan_clip"


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

    def __init__(self, z_dim=100, shape=(1, 28, 28), width=16, upsample=False):
        super().__init__()
        self.z_dim = z_dim
        sizes = map_sizes(shape[-1], 4)                                         # 28, 14, 7, 4
        channels = [shape[0], *(width * 2**i for i in range(len(sizes) - 1))]   # 1, 16, 32, 64
        layers = [nn.Linear(z_dim, channels[-1] * sizes[-1]**2),
                  nn.Unflatten(1, (channels[-1], sizes[-1], sizes[-1]))]
        for i in reversed(range(len(sizes) - 1)):       # 4 -> 7 -> 14 -> 28
            # ConvTranspose2d turns a side n into 2n with kernel 4, and into 2n - 1 with kernel 3.
            n_in, n_out, kernel = channels[i + 1], channels[i], 4 - sizes[i] % 2
            layers += [nn.BatchNorm2d(n_in), nn.ReLU()]
            if upsample:
                layers += [nn.Upsample(size=sizes[i]), nn.Conv2d(n_in, n_out, 3, padding=1)]
            else:
                layers.append(nn.ConvTranspose2d(n_in, n_out, kernel, stride=2, padding=1))
        self.net = nn.Sequential(*layers, nn.Tanh())
        self.apply(init_weights)

    def forward(self, z):
        return self.net(z)


class MLPGenerator(nn.Sequential):
    """A G of four hidden fully connected layers without BatchNorm (--mlp), as a test."""

    def __init__(self, z_dim=100, shape=(1, 28, 28), width=16):
        n = 32 * width
        super().__init__(
            nn.Linear(z_dim, n), nn.ReLU(), nn.Linear(n, n), nn.ReLU(),
            nn.Linear(n, n), nn.ReLU(), nn.Linear(n, n), nn.ReLU(),
            nn.Linear(n, math.prod(shape)), nn.Unflatten(1, tuple(shape)), nn.Tanh())
        self.z_dim = z_dim


class Critic(nn.Module):
    """Turns images (B, C, H, H) into scores (B,), without a sigmoid or tanh at the end."""

    def __init__(self, shape=(1, 28, 28), width=16):
        super().__init__()
        sizes = map_sizes(shape[-1], 4)                                         # 28, 14, 7, 4
        channels = [shape[0], *(width * 2**i for i in range(len(sizes) - 1))]   # 1, 16, 32, 64
        layers, hidden = [], 32 * width
        for i in range(len(sizes) - 1):
            n_in, n_out, kernel = channels[i], channels[i + 1], 4 - sizes[i] % 2
            layers.append(nn.Conv2d(n_in, n_out, kernel, stride=2, padding=1))
            layers.append(nn.LeakyReLU(0.2))
        layers += [nn.Flatten(), nn.Linear(channels[-1] * sizes[-1]**2, hidden)]
        self.trunk = nn.Sequential(*layers, nn.LeakyReLU(0.2))  # each unit sees the whole image
        self.score = nn.Linear(hidden, 1)
        self.apply(init_weights)

    def forward(self, x):
        return self.score(self.trunk(x)).flatten().float()  # losses are float32, even with --amp


# ---- losses ----

def critic_loss(s_real, s_fake):
    """Return -W = E D(G(z)) - E D(x), from the scores (B,) of real images and fakes."""
    return s_fake.mean() - s_real.mean()


def generator_loss(s_fake):
    """Return -E D(G(z)), from the scores (B,) of fakes."""
    return -s_fake.mean()


@torch.no_grad()
def clip_weights(D, clip):
    """Clip all weights and biases of D to [-clip, clip]. Without this, W would have no maximum."""
    for w in D.parameters():
        w.clamp_(-clip, clip)


# ---- one step of D and of G; the train functions return what the log shows ----

def noise(G, n):
    """Return n noise vectors z ~ N(0, I) as a tensor (n, z_dim) on G's device."""
    return torch.randn(n, G.z_dim, device=next(G.parameters()).device)


def train_critic(G, D, opt, real, clip=0.01, amp=nullcontext()):
    """Take one step of D on real images (B, C, H, H) in [-1, 1] and as many fakes."""
    with amp:                           # torch.autocast with --amp, or else nothing
        with torch.no_grad():           # D's step needs no gradient of G's weights
            fake = G(noise(G, len(real)))
        # One call is faster than two and gives the same scores: no layer of D mixes images.
        s_real, s_fake = D(torch.cat([real, fake])).chunk(2)
    loss_D = critic_loss(s_real, s_fake)
    D.zero_grad()
    loss_D.backward()
    opt.step()
    clip_weights(D, clip)
    return {"W": -loss_D.detach(), "D(x)": s_real.detach().mean(),
            "D(G(z))": s_fake.detach().mean()}


def train_generator(G, D, opt, n, amp=nullcontext()):
    """Take one step of G on n fakes."""
    with amp:
        s_fake = D(G(noise(G, n)))
    loss_G = generator_loss(s_fake)
    G.zero_grad()
    loss_G.backward(inputs=list(G.parameters()))    # the gradients of G's weights only
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
    held_out, *_ = load_images(args.data, args.data_dir, train=False, classes=args.classes,
                               device=device, image_size=shape[-1], channels=shape[0])
    seen, held_out = (spread(x, 1000) / 127.5 - 1 for x in (images, held_out))  # used by W_val only

    G = build_generator(args, shape).to(device)
    D = Critic(shape, args.width).to(device)
    G_ema = copy.deepcopy(G).requires_grad_(False)
    optimizer = partial(torch.optim.RMSprop, alpha=args.beta2, foreach=True,
                        capturable=use_graph)
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
    update_D = partial(train_critic, G, D, opt_D, clip=args.clip, amp=amp)
    update_G = partial(train_generator, G, D, opt_G, min(args.batch_size, len(images)), amp=amp)
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
            if step % args.n_critic == 0:
                stats |= update_G()
                update_ema(G_ema, G, args.ema, step // args.n_critic)
            for name, value in stats.items():
                history[name].append(value)

            if i == n_batches or time.time() - last_log > args.log_every:
                # .item() waits for the GPU. The steps do not, so the CPU can run ahead of it.
                means = {name: torch.stack(v).mean().item() for name, v in history.items()}
                weights_D = nn.utils.parameters_to_vector(D.parameters())
                means["at_clip"] = (weights_D.abs() >= args.clip).float().mean().item()
                if i == n_batches:      # W with held-out images instead of training images
                    with torch.no_grad():
                        means["W_val"] = means["W"] - (D(seen).mean() - D(held_out).mean()).item()
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
                writer.add_histogram("weights of D", weights_D, step)
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


def build_generator(args, shape):
    if args.mlp:
        return MLPGenerator(args.z_dim, shape, args.width)
    return Generator(args.z_dim, shape, args.width, args.upsample)


def sample_checkpoint(args, ckpt):
    """Write args.num images: one grid if args.out is a picture, else a folder of single PNGs."""
    from common import save_images
    G = build_generator(args, ckpt["shape"])
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
    arg("--batch-size", type=int, default=32, help="real images in each step")
    arg("--lr", type=float, default=1e-3, help="learning rate of G")
    arg("--lr-d", type=float, default=5e-5, help="learning rate of D")
    arg("--beta2", type=float, default=0.99, help="RMSprop's alpha: decay of the average square")
    arg("--n-critic", type=int, default=5, help="steps of D for each step of G")
    arg("--clip", type=float, default=0.01, help="c: D's weights are kept from -c to c")
    arg("--upsample", action=switch, default=False, help="no transposed convolutions in G")
    arg("--mlp", action=switch, default=False, help="a fully connected G without BatchNorm")
    arg("--z-dim", type=int, default=100, help="length of the noise vector z")
    arg("--width", type=int, default=16, help="channels of the largest feature maps")
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
        # These flags determine the layers of G and D.
        for name in ("image_size", "channels", "z_dim", "width", "upsample", "mlp"):
            if vars(args)[name] != ckpt["args"][name]:
                parser.error(f"--{name.replace('_', '-')} must be {ckpt['args'][name]} for {path}")
    if min(args.epochs, args.n_critic, args.num, args.z_dim, args.width) < 1 or args.batch_size < 2:
        parser.error("--batch-size must be above 1; epochs, n-critic, num, z-dim and width above 0")
    if not min(args.lr, args.lr_d) > 0 or not max(args.beta2, args.ema) < 1:
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
