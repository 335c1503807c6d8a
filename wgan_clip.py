"""Wasserstein GAN with weight clipping (Arjovsky et al. 2017, arXiv:1701.07875, Algorithm 1).

A generator G turns noise z into an image G(z). A critic D gives every image x a score D(x), which
can be any number. With E the mean over the training images x, or over z ~ N(0, I):

    D maximises  W = E D(x) - E D(G(z)),  with every weight kept within [-c, c], c = 0.01
    G maximises  E D(G(z)),  once for every n_critic = 5 steps of D

The idea: think of the real and the generated images as two piles of earth in the space of all
images. A transport plan says how much earth goes from where to where, and costs amount times
distance. The cost of the cheapest plan is the earth mover's (or Wasserstein) distance between the
two distributions. It shrinks steadily as the piles approach each other. The Jensen-Shannon
divergence of gan_mlp.py does not: it is log 2 for all piles that do not overlap, near or far, and
so gives G no direction (Example 1).

Nobody can search all transport plans between sets of images. But by Kantorovich-Rubinstein duality
the distance equals

    the maximum of  E f(x) - E f(G(z))  over all functions f whose slope is at most 1 everywhere.

So D plays the role of f. Weight clipping keeps its slope below some unknown constant K, so W is at
most K times the distance: compare its values within one run only. The better D is, the better is
the direction that its gradient gives to G. That is why D takes more steps.

Why clipping is a stopgap: with a large c, D takes long to train; with a small one, gradients vanish
from layer to layer; and most weights end up at -c or c, where D can only be a simple function (the
log has their share as at_clip). wgan_gp.py constrains the slope itself.

What differs from the paper: no BatchNorm in D, whose scale factors would be clipped as well (W then
stayed at 1e-13); one hidden fully connected layer in D; a faster G; smaller batches and networks;
and samples come from G_ema, a copy of G with averaged weights. RMSprop is the paper's choice, since
momentum made training unstable.

In a healthy run W rises while D learns and then falls as the images improve. W_val is the same for
images that D was not trained on and stays close to W; if it is well below, D overfits. D(x),
D(G(z)) and loss_G drift and mean nothing by themselves: a constant added to D changes no gradient.

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
    """Sides of the feature maps, halved, rounding up, until at most `smallest`: 28, 14, 7, 4."""
    sizes = [side]
    while sizes[-1] > smallest:
        sizes.append((sizes[-1] + 1) // 2)
    return sizes


def init_weights(layer):
    """Normal with standard deviation 0.02, as in the DCGAN paper; biases 0."""
    if isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(layer.weight, 0, 0.02)
        nn.init.zeros_(layer.bias)


class Generator(nn.Module):
    """Noise z (B, z_dim) to images (B, C, H, H) in [-1, 1]; `shape` is (C, H, H).

    With `upsample`, maps grow by nearest-neighbour upsampling and convolution, which avoids the
    checkerboard patterns of transposed convolutions.
    """

    def __init__(self, z_dim=100, shape=(1, 28, 28), width=16, upsample=False):
        super().__init__()
        self.z_dim = z_dim
        sizes = map_sizes(shape[-1], 4)                                         # 28, 14, 7, 4
        channels = [shape[0], *(width * 2**i for i in range(len(sizes) - 1))]   # 1, 16, 32, 64
        layers = [nn.Linear(z_dim, channels[-1] * sizes[-1]**2),
                  nn.Unflatten(1, (channels[-1], sizes[-1], sizes[-1]))]
        for i in reversed(range(len(sizes) - 1)):       # 4 -> 7 -> 14 -> 28
            # A kernel of 4 doubles a side, and one of 3 makes an odd side.
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
    """The same, of four hidden layers without BatchNorm (--mlp): a hard test for the method."""

    def __init__(self, z_dim=100, shape=(1, 28, 28), width=16):
        n = 32 * width
        super().__init__(
            nn.Linear(z_dim, n), nn.ReLU(), nn.Linear(n, n), nn.ReLU(),
            nn.Linear(n, n), nn.ReLU(), nn.Linear(n, n), nn.ReLU(),
            nn.Linear(n, math.prod(shape)), nn.Unflatten(1, tuple(shape)), nn.Tanh())
        self.z_dim = z_dim


class Critic(nn.Module):
    """Images (B, C, H, H) in [-1, 1] to scores (B,). No sigmoid or tanh: scores are unbounded."""

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
        self.trunk = nn.Sequential(*layers, nn.LeakyReLU(0.2))     # each unit sees all of the image
        self.score = nn.Linear(hidden, 1)
        self.apply(init_weights)

    def forward(self, x):
        return self.score(self.trunk(x)).flatten().float()  # losses need float32, even with --amp


# ---- losses ----

def critic_loss(s_real, s_fake):
    """-W = E D(G(z)) - E D(x), from scores (B,) of real and of fake images."""
    return s_fake.mean() - s_real.mean()


def generator_loss(s_fake):
    """-E D(G(z)), from scores (B,) of fakes."""
    return -s_fake.mean()


@torch.no_grad()
def clip_weights(D, clip):
    """Move every weight of D into [-clip, clip]; without this, W has no maximum."""
    for w in D.parameters():
        w.clamp_(-clip, clip)


# ---- one update of each player (Algorithm 1); what they return is logged ----

def noise(G, n):
    """z ~ N(0, I), (n, z_dim), on G's device."""
    return torch.randn(n, G.z_dim, device=next(G.parameters()).device)


def train_critic(G, D, opt, real, clip=0.01, amp=nullcontext()):
    """One step of D on real images (B, C, H, H) in [-1, 1] and as many fakes."""
    with amp:                           # torch.autocast, if --amp is given
        with torch.no_grad():           # D's step needs no gradient through G
            fake = G(noise(G, len(real)))
        # One call is faster than two and gives the same scores: no layer of D mixes images.
        s_real, s_fake = D(torch.cat([real, fake])).chunk(2)
    loss_D = critic_loss(s_real, s_fake)
    D.zero_grad()
    loss_D.backward()
    opt.step()
    clip_weights(D, clip)               # after the step, which may have left the interval
    return {"W": -loss_D.detach(), "D(x)": s_real.detach().mean(),
            "D(G(z))": s_fake.detach().mean()}


def train_generator(G, D, opt, n, amp=nullcontext()):
    """One step of G on n fakes."""
    with amp:
        s_fake = D(G(noise(G, n)))
    loss_G = generator_loss(s_fake)
    G.zero_grad()
    loss_G.backward(inputs=list(G.parameters()))    # through D, but not for D's weights
    opt.step()
    return {"loss_G": loss_G.detach()}


@torch.no_grad()
def update_ema(G_ema, G, decay, t):
    """G_ema = decay G_ema + (1 - decay) G after G's t-th update; BatchNorm's statistics are copied.

    The decay starts small, or the random start would linger for thousands of updates.
    """
    decay = min(decay, (1 + t) / (10 + t))
    for average, weight in zip(G_ema.parameters(), G.parameters()):
        average.lerp_(weight, 1 - decay)
    for average, buffer in zip(G_ema.buffers(), G.buffers()):
        average.copy_(buffer)


@torch.no_grad()
def sample(G, z):
    """G(z) in eval mode, so that no image depends on the others of its batch."""
    G.eval()
    images = G(z)
    G.train()
    return images


# ---- training ----

class GraphedUpdate:
    """Run `update`, a function of tensors, as one CUDA graph: one launch, not hundreds (--graph).

    Three calls warm up, the fourth is recorded, and later ones replay it: the same kernels on new
    data and noise, but no Python. A print or a new learning rate in `update` has no effect then.
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
        return {name: value.clone() for name, value in self.stats.items()}  # before they change


def train(args, ckpt=None):
    # Imported here, so that a copy of this file alone can be imported for its networks and losses.
    from common import batches, default_data, load_images, save_gif, save_grid, spread
    device, out = torch.device(args.device), Path(args.out)
    last = out / "ckpt.pt"
    if last.exists() and not (ckpt and last.samefile(args.resume)):
        sys.exit(f"error: {last} exists; use --resume to continue it, or choose another --out")
    if ckpt and ckpt["epoch"] >= args.epochs:
        sys.exit(f"error: {ckpt['epoch']} epochs are done; raise --epochs to continue")
    use_graph = args.graph and device.type == "cuda"
    if use_graph:       # the calls before a recording must not run on the default stream
        torch.cuda.set_stream(torch.cuda.Stream(device))
    torch.manual_seed(args.seed)
    args.data = args.data or default_data(args.data_dir)    # stored, so that --resume uses the same
    images, _ = load_images(args.data, args.data_dir, classes=args.classes, device=device,
                            image_size=args.image_size, channels=args.channels)
    shape = tuple(images.shape[1:])
    args.channels, args.image_size = shape[0], shape[-1]
    n_batches = max(1, len(images) // args.batch_size)
    held_out, _ = load_images(args.data, args.data_dir, train=False, classes=args.classes,
                              device=device, image_size=shape[-1], channels=shape[0])
    seen, held_out = (spread(x, 1000) / 127.5 - 1 for x in (images, held_out))      # for W_val

    G = build_generator(args, shape).to(device)
    D = Critic(shape, args.width).to(device)
    G_ema = copy.deepcopy(G).requires_grad_(False)
    optimizer = partial(torch.optim.RMSprop, alpha=args.beta2, foreach=True,
                        capturable=use_graph)
    opt_G = optimizer(G.parameters(), lr=args.lr)
    opt_D = optimizer(D.parameters(), lr=args.lr_d)
    parts = {"G": G, "D": D, "G_ema": G_ema, "opt_G": opt_G, "opt_D": opt_D}
    z = noise(G, 64)            # the same noise for every grid, so that the grids can be compared
    first_epoch, step, rows = 1, 0, []
    if ckpt:
        for name, part in parts.items():
            if name.startswith("opt"):      # learning rates are those of this run's flags
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
    history = defaultdict(list)         # name: the values since the last line of the log
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
                # .item() waits for the GPU; nothing else in this loop does.
                means = {name: torch.stack(v).mean().item() for name, v in history.items()}
                weights_D = nn.utils.parameters_to_vector(D.parameters())
                means["at_clip"] = (weights_D.abs() >= args.clip).float().mean().item()
                if i == n_batches:      # W, less what D adds to the score of images it trained on
                    with torch.no_grad():
                        means["W_val"] = means["W"] - (D(seen).mean() - D(held_out).mean()).item()
                speed = len(history["D(x)"]) * len(real) / (time.time() - last_log)
                minutes = ((args.epochs - epoch + 1) * n_batches - i) * len(real) / speed / 60
                text = " ".join(f"{name} {value:.4f}" for name, value in means.items())
                print(f"epoch {epoch}/{args.epochs} step {step} {text} {speed:.0f} images/s, "
                      f"{minutes:.1f} min left", flush=True)
                weights = nn.utils.parameters_to_vector([*G.parameters(), *D.parameters()])
                if not all(map(math.isfinite, means.values())) or not weights.isfinite().all():
                    sys.exit("error: a loss or a weight is not finite; try a lower --lr or --lr-d")
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
            buffer = io.BytesIO()       # not a file, where torch.save hides that a disk is full
            torch.save({
                "script": SCRIPT, "args": vars(args), "shape": shape,
                "epoch": epoch, "step": step, "rows": rows, "z": z,
                **{name: part.state_dict() for name, part in parts.items()},
                "rng": torch.get_rng_state(),
                "rng_cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
            }, buffer)
            (out / "ckpt.tmp").write_bytes(buffer.getbuffer())
            (out / "ckpt.tmp").replace(last)    # in one step, so that ckpt.pt is always whole
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
    """Write args.num images: one grid if args.out ends in .png, else a folder of single PNGs."""
    from common import save_images
    G = build_generator(args, ckpt["shape"])
    G.load_state_dict(ckpt["G_ema"])
    G.to(args.device)
    # Drawn on the CPU, so that a seed gives the same images on every device.
    z = torch.randn(args.num, G.z_dim, generator=torch.Generator().manual_seed(args.seed))
    images = torch.cat([sample(G, part.to(args.device)).cpu() for part in z.split(500)])
    save_images(images, args.out)


# ---- command line ----

def get_args(argv=None):
    """The settings, and the checkpoint if --resume or --sample names one (else None)."""
    parser = argparse.ArgumentParser(usage=f"python {SCRIPT}.py [flags]", allow_abbrev=False,
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    arg = parser.add_argument
    switch = argparse.BooleanOptionalAction     # --amp and --no-amp
    # data
    arg("--data", help="mnist (if not given), fashion-mnist, cifar10, strokes or an image folder")
    arg("--data-dir", default="data", help="where downloads and caches are kept")
    arg("--classes", nargs="+", help="train on these classes only, by name or number")
    arg("--image-size", type=int, default=0, help="resize to this side; 0 keeps the original size")
    arg("--channels", type=int, choices=(0, 1, 3), default=0, help="1: grey, 3: RGB, 0: as is")
    # training
    arg("--epochs", type=int, default=10, help="in total, including those before --resume")
    arg("--batch-size", type=int, default=32)
    arg("--lr", type=float, default=1e-3, help="learning rate of G")
    arg("--lr-d", type=float, default=5e-5, help="learning rate of D")
    arg("--beta2", type=float, default=0.99, help="decay of RMSprop's average of squares")
    arg("--n-critic", type=int, default=5, help="steps of D for each step of G")
    arg("--clip", type=float, default=0.01, help="largest weight of D")
    arg("--upsample", action=switch, default=False, help="upsample and convolve in G")
    arg("--mlp", action=switch, default=False, help="a fully connected G without BatchNorm")
    arg("--z-dim", type=int, default=100)
    arg("--width", type=int, default=16, help="channels of the largest feature maps")
    arg("--ema", type=float, default=0.999, help="decay of the moving average of G's weights")
    arg("--seed", type=int, default=0)
    # output
    arg("--out", help=f"a folder, or a .png with --sample; if not given, out/{SCRIPT}")
    arg("--log-every", type=float, default=3, help="seconds between lines of the log")
    arg("--save-every", type=int, default=0, help="epochs between saves; 0: about 40 saves a run")
    arg("--keep", action=switch, default=False, help="keep every checkpoint, not only the last")
    arg("--tensorboard", action=switch, default=False, help="also write TensorBoard logs")
    # machine
    arg("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arg("--amp", action=switch, default=False, help="compute in bfloat16 where that is safe")
    arg("--graph", action=switch, default=False, help="replay CUDA graphs, see GraphedUpdate")
    either = parser.add_mutually_exclusive_group().add_argument
    either("--resume", metavar="CKPT", help="continue this run; flags you omit keep their values")
    either("--sample", metavar="CKPT", help="generate images with a trained G")
    arg("--num", type=int, default=64, help="how many images to --sample")

    args, ckpt = parser.parse_args(argv), None
    path = args.resume or args.sample
    if path:
        try:
            ckpt = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:      # no such file, damaged, or a pickle that could run code
            parser.error(f"cannot load {path}: {str(error).split('. ')[0]}")
        if not isinstance(ckpt, dict) or ckpt.get("script") != SCRIPT:
            parser.error(f"{path} was not saved by {SCRIPT}.py")
        this_run = ("out", "device", "resume", "sample", "num")
        parser.set_defaults(**{k: v for k, v in ckpt["args"].items() if k not in this_run})
        args = parser.parse_args(argv)
        # What G and D are built from cannot change.
        for name in ("image_size", "channels", "z_dim", "width", "upsample", "mlp"):
            if vars(args)[name] != ckpt["args"][name]:
                parser.error(f"{name} must stay {ckpt['args'][name]}, as in {path}")
    if min(args.epochs, args.n_critic, args.num, args.z_dim, args.width) < 1 or args.batch_size < 2:
        parser.error("--batch-size must be at least 2, and every other count at least 1")
    decays = args.beta2, args.ema
    if not min(args.lr, args.lr_d) > 0 or not 0 <= min(decays) <= max(decays) < 1:
        parser.error("learning rates must be above 0, betas and --ema from 0 to below 1")
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
        sys.exit(f"\nstopped; --resume continues from the last ckpt.pt in {args.out}, if any")


if __name__ == "__main__":
    main()
