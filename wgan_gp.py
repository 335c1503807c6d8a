"""Wasserstein GAN with gradient penalty (Gulrajani et al. 2017, arXiv:1704.00028, Algorithm 1).

A generator G turns noise z into an image G(z); a critic D gives an image a score D(x), any number.
With E the mean over the training images x, over z ~ N(0, I), and over eps:

    D maximises  W - gp_weight E (||grad D(x_hat)||_2 - 1)^2,  W = E D(x) - E D(G(z))
    G maximises  E D(G(z)),  which lowers W: E D(x) does not depend on G
    x_hat = eps x + (1 - eps) G(z),  eps ~ U[0, 1], anew for each image

D gets n_critic steps, 5, for each of G, on new images in each.

Why: the greatest W of all D with slope ||grad D||_2 at most 1 is the earth mover's distance of the
images x and the G(z); wgan_clip.py explains it. Clipping D's weights bounds the slope, but leaves D
few functions to choose from. Here the slope itself is asked for, by a penalty. (It is no bound, and
D is never the best, so W is no exact distance: compare it within one run.)

Why slope 1 and not at most 1? Read D as a price of sand, and let the cheapest plan carry sand from
G(z) to x. No trip can earn more than its length, and the best D earns what the plan costs, so each
trip earns just its length: D rises by 1 for each step of length 1, all the way (proposition 1). To
ask for just 1 there costs the best D nothing, and keeps any D from going flat.

Why at points between x and G(z)? No penalty can be taken everywhere in a space of 784 dimensions.
It matters where G's images are and where they are to go. The ways of the cheapest plan would be the
right ones, but the plan is unknown, so x and G(z) are paired by chance. Between such a pair the
best D may be flatter: to ask for 1 there is a compromise, and it works.

Why no BatchNorm in D? The slope is that of one image's score in that image; with BatchNorm the
score would depend on the other images, too. LayerNorm and InstanceNorm do not mix images.

Not as in the paper: a learning rate of 1e-3 for both networks in place of 1e-4 (Adam's betas, 0.0
and 0.9, are the paper's), a hidden fully connected layer in D as in dcgan.py, batches of 32 in
place of 64, narrower networks, and samples from a moving average of G's weights.

A healthy run: grad_norm soon comes near 1. W rises at first, as D learns, then falls as the images
get better; W_val, the same for images held back from training, stays near it. (If D overfits, W
stays above W_val.) D(x), D(G(z)) and loss_G drift and mean nothing alone: a constant added to D
changes no gradient.

Measured on MNIST: cFID (see README) 31 to 37 for three seeds after 10 passes, 5 to 8 minutes on 2
CPU cores; 10 after 50 passes (seed 0). W fell with it, but for a rise from pass 2 to 4 (rank
correlation 0.93).

    python wgan_gp.py --epochs 50                       # MNIST, 50 passes, into out/wgan_gp
    python wgan_gp.py --sample out/wgan_gp/ckpt.pt      # 64 new images: out/wgan_gp/sample.png
    python wgan_gp.py --data FOLDER --image-size 32 --out out/mine      # images of your own
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
from torch.optim.swa_utils import get_ema_multi_avg_fn

SCRIPT = "wgan_gp"


# ---- networks ----

def halved(side):
    """Sides of the maps, halved and rounded up, down to 4 or less: for 28 [28, 14, 7, 4]."""
    return [side] if side <= 4 else [side, *halved((side + 1) // 2)]


def init_weights(layer):
    """Normal with standard deviation 0.02, biases 0, as in dcgan.py."""
    if isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(layer.weight, 0, 0.02)
        nn.init.zeros_(layer.bias)


class Generator(nn.Module):
    """Noise z (B, z_dim) to images (B, C, H, H) in [-1, 1]; `shape` is (C, H, H), H at least 8.

    upsample: enlarge maps by nearest neighbours and convolution, which leaves no checkerboards.
    mlp: four hidden fully connected layers without BatchNorm instead: can the method train that?
    """

    def __init__(self, z_dim=100, shape=(1, 28, 28), width=16, upsample=False, mlp=False):
        super().__init__()
        self.z_dim = z_dim
        layers = []
        if mlp:
            sizes = [z_dim] + 4 * [32 * width]
            for n_in, n_out in zip(sizes, sizes[1:]):
                layers += [nn.Linear(n_in, n_out), nn.ReLU()]
            layers += [nn.Linear(sizes[-1], math.prod(shape)), nn.Unflatten(1, tuple(shape))]
        else:
            sides = halved(shape[-1])[::-1]                                 # 4, 7, 14, 28
            n = width * 2**(len(sides) - 2)                                 # 64, then 32, 16, 1
            layers += [nn.Linear(z_dim, n * sides[0]**2), nn.Unflatten(1, (n, sides[0], sides[0]))]
            for side in sides[1:]:
                n_in, n = n, n // 2 if side < sides[-1] else shape[0]
                layers += [nn.BatchNorm2d(n_in), nn.ReLU()]
                if upsample:
                    layers += [nn.Upsample(size=side), nn.Conv2d(n_in, n, 3, padding=1)]
                else:                   # the sides of D in reverse: 4 → 7 → 14 → 28
                    layers.append(nn.ConvTranspose2d(n_in, n, 4 - side % 2, stride=2, padding=1))
        self.net = nn.Sequential(*layers, nn.Tanh())
        if not mlp:                     # without BatchNorm, weights that small would silence G
            self.apply(init_weights)

    def forward(self, z):
        return self.net(z)


class Critic(nn.Module):
    """Images (B, C, H, H) in [-1, 1] to scores (B,), any numbers: no sigmoid or tanh.

    norm: "none", "layer" or "instance". Not "batch": the penalty is on the slope of the score of
    one image, and BatchNorm makes that depend on the other images (section 4).
    """

    def __init__(self, shape=(1, 28, 28), width=16, norm="none"):
        super().__init__()
        *sides, last = halved(shape[-1])                                    # 28, 14, 7; 4
        layers, n = [], shape[0]
        for i, side in enumerate(sides):
            n_in, n = n, width * 2**i                                       # 1, then 16, 32, 64
            layers.append(nn.Conv2d(n_in, n, 4 - side % 2, stride=2, padding=1))
            if i and norm == "layer":   # not right behind the images
                layers.append(nn.GroupNorm(1, n))           # over all of (C, H, H)
            if i and norm == "instance":
                layers.append(nn.InstanceNorm2d(n, affine=True))
            layers.append(nn.LeakyReLU(0.2))
        hidden = 32 * width             # its units see the whole image
        layers += [nn.Flatten(), nn.Linear(n * last**2, hidden)]
        if norm == "layer":
            layers.append(nn.LayerNorm(hidden))
        # no sigmoid or tanh at the end: scores must grow with distance, however far
        self.net = nn.Sequential(*layers, nn.LeakyReLU(0.2), nn.Linear(hidden, 1))
        self.apply(init_weights)

    def forward(self, x):
        return self.net(x).flatten().float()    # the losses are taken in float32, under --amp too


# ---- losses ----

def critic_loss(s_real, s_fake):
    """-W = E D(G(z)) - E D(x), from scores (B,) of real images and of fakes."""
    return s_fake.mean() - s_real.mean()


def generator_loss(s_fake):
    """-E D(G(z)), from scores (B,) of fakes."""
    return -s_fake.mean()


def gradient_penalty(D, real, fake):
    """E (||grad D(x_hat)||_2 - 1)^2 (equation 3), and the mean norm; both are one number, ().

    x_hat = eps x + (1 - eps) G(z), with one eps ~ U[0, 1] an image. real and fake are of one shape,
    (B, C, H, H) or any other (B, ...); fake has no graph to G. No layer of D may mix images; of
    BatchNorm in train mode you hear by a RuntimeError ("attempted to call in-place operation"), of
    others not. Call it outside of autocast: inside, its gradients are off by some per cent.
    """
    eps = torch.rand(len(real), *[1] * (real.dim() - 1), device=real.device)    # (B, 1, 1, 1)
    x_hat = eps * real + (1 - eps) * fake.float()
    # D(x_hat[i]) depends on x_hat[i] alone, so the gradient of the sum holds that of each image.
    # (torch.autograd.grad(D(x_hat).sum(), x_hat, create_graph=True), after x_hat.requires_grad_(),
    # is the same; it bears checkpoints and hooks in D, but lets BatchNorm pass and hinders compile)
    gradient = torch.func.grad(lambda x: D(x).sum())(x_hat)
    # one norm an image, (B,): in one of them all, steep images would make up for flat ones
    norm = gradient.flatten(1).norm(dim=1)
    return (norm - 1).square().mean(), norm.mean()


@torch.no_grad()
def mean_score(D, images):
    """E D(x) over uint8 images (N, C, H, H)."""
    return torch.cat([D(part / 127.5 - 1) for part in images.split(500)]).mean()


# ---- one update of each player ----

def noise(G, n):
    """z ~ N(0, I), (n, z_dim), on G's device."""
    return torch.randn(n, G.z_dim, device=next(G.parameters()).device)


def autocast(device, amp):
    """With --amp: bfloat16 where it is safe."""
    return torch.autocast(device.type, torch.bfloat16) if amp else contextlib.nullcontext()


def train_critic(G, D, opt, real, *, gp_weight=10.0, amp=False):
    """One step of D on real images (B, C, H, H) in [-1, 1] and as many fakes.

    Returns three numbers, (3,): E D(x), E D(G(z)) and the mean norm of the gradient.
    """
    with autocast(real.device, amp):
        with torch.no_grad():           # D's step needs no gradient through G
            fake = G(noise(G, len(real)))
        # one call for both is faster, and the same as two: no layer of D mixes images
        s_real, s_fake = D(torch.cat([real, fake])).chunk(2)
    penalty, norm = gradient_penalty(D, real, fake)
    D.zero_grad()
    (critic_loss(s_real, s_fake) + gp_weight * penalty).backward()
    opt.step()
    return torch.stack([s_real.mean(), s_fake.mean(), norm]).detach()


def train_generator(G, D, opt, n, *, amp=False):
    """One step of G on n fakes. Returns its loss, -E D(G(z)), one number, ()."""
    z = noise(G, n)
    with autocast(z.device, amp):
        s_fake = D(G(z))
    loss_G = generator_loss(s_fake)
    G.zero_grad()
    # through D, but for G's weights only: D's own are not needed, frozen ones would be refused
    loss_G.backward(inputs=[w for w in G.parameters() if w.requires_grad])
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
def sample(G, z):
    """G(z), (B, C, H, H) in [-1, 1], in eval mode: no image depends on the others of its batch."""
    G.eval()
    images = G(z)
    G.train()
    return images


# ---- training ----

def train(args, ckpt=None):
    """Train anew, or on from a checkpoint; all files go to args.out."""
    # imported here, so that all above this line works in a copy of this file alone, with torch only
    from common import batches, default_data, load_images, save_gif, save_grid, spread
    device = pick_device(args.device)
    if args.amp and device.type == "mps":
        fail("--amp: on cuda and cpu only")
    if args.mlp and args.upsample:
        fail("--upsample: not with --mlp, which has no maps")
    torch.manual_seed(args.seed)
    if args.data is None:
        args.data = default_data(args.data_dir)
    images, labels = load_images(args.data, args.data_dir, classes=args.classes, device=device,
                                 image_size=args.image_size, channels=args.channels)
    shape, n_batches = tuple(images.shape[1:]), max(1, len(images) // args.batch_size)
    if len(images) < 2 or not 8 <= shape[-1] <= 256:
        fail(f"--data {args.data}: {len(images)} image(s) of side {shape[-1]} to train on; take at "
             "least 2, and an --image-size from 8 to 256")
    held, _ = load_images(args.data, args.data_dir, train=False, classes=args.classes,
                          image_size=shape[-1], channels=shape[0], device=device)
    seen, held = spread(images, 2000), spread(held, 2000)       # for W_val

    layout = torch.channels_last if args.amp else torch.contiguous_format  # tensor cores like it
    G = Generator(args.z_dim, shape, args.width, args.upsample, args.mlp)
    G.to(device, memory_format=layout)
    D = Critic(shape, args.width, args.norm).to(device, memory_format=layout)
    G_ema = copy.deepcopy(G).requires_grad_(False)
    graph = args.graph and device.type == "cuda"
    settings = dict(betas=(args.beta1, args.beta2), capturable=graph,
                    fused=device.type != "mps")     # one kernel for all weights; none on mps in 2.4
    opt_G = torch.optim.Adam(G.parameters(), lr=args.lr, **settings)
    opt_D = torch.optim.Adam(D.parameters(), lr=args.lr_d or args.lr, **settings)
    nets, opts = {"G": G, "D": D, "G_ema": G_ema}, {"opt_G": opt_G, "opt_D": opt_D}
    z = noise(G, 64)                    # the same for all grids, so that they show what changes
    epoch, step, grids = 0, 0, []
    if ckpt:
        try:
            for name, net in nets.items():
                net.load_state_dict(ckpt[name])
            for name, opt in opts.items():      # their averages; the settings are those of this run
                opt.load_state_dict({**opt.state_dict(), "state": ckpt[name]["state"]})
        except (KeyError, RuntimeError, ValueError):
            fail(f"--resume {args.resume}: other networks (--width, --z-dim, image shape, …?)")
        z, epoch, step, grids = ckpt["z"].to(device), ckpt["epoch"], ckpt["step"], ckpt["grids"]
        if epoch >= args.epochs:
            fail(f"--epochs {args.epochs}: {args.resume} has done {epoch}; ask for more in total")
        torch.set_rng_state(ckpt["rng"])
        if device.type == "cuda" and ckpt["rng_cuda"] is not None:
            torch.cuda.set_rng_state(ckpt["rng_cuda"])
    if step // args.n_critic == (step + (args.epochs - epoch) * n_batches) // args.n_critic:
        fail(f"--n-critic {args.n_critic}: G would not move; lower it or raise --epochs")

    out = Path(args.out)
    own = ckpt and out.absolute() == Path(args.resume).parent.absolute()
    if (out / "ckpt.pt").exists() and not own:
        fail(f"--out {out}: has a trained network; --resume that, or take another folder")
    writer = open_tensorboard(out, step) if args.tensorboard else None
    (out / "samples").mkdir(parents=True, exist_ok=True)
    columns = ("D(x)", "D(G(z))", "grad_norm", "loss_G", "W", "W_val")
    log = open_log(out / "log.csv", step, ("epoch", "step", *columns, "images/s"))
    save_grid(spread(images, 64) / 127.5 - 1, out / "samples/real.png")
    print(f"{args.data}: {len(images):,} images {shape}, {len(labels.unique())} class(es), "
          f"{n_batches} batches a pass, on {device}")

    n = min(args.batch_size, len(images))
    update_D = captured(lambda real: train_critic(
        G, D, opt_D, real, gp_weight=args.gp_weight, amp=args.amp), graph)
    update_G = captured(lambda: train_generator(G, D, opt_G, n, amp=args.amp), graph)
    save_every = args.save_every or max(1, round(args.epochs / 40))
    remedy = "try a lower --lr, anew or from the last checkpoint"
    log_D, log_G, logged, since = [], [], step, time.perf_counter()
    while epoch < args.epochs:
        epoch += 1
        for i, real in enumerate(batches(images, args.batch_size), 1):
            step += 1
            log_D.append(update_D(real))
            if step % args.n_critic == 0:
                log_G.append(update_G())
                update_ema(G_ema, G, args.ema, step // args.n_critic)

            if log_G and (i == n_batches or time.perf_counter() > since + args.log_every):
                # means since the last line; within a pass the host waits for the device only here
                means = torch.cat([torch.stack(log_D).mean(0), torch.stack(log_G).mean(0)[None]])
                values = means.tolist()
                if not all(map(math.isfinite, values)):
                    fail(f"a loss is not finite at step {step}; {remedy}")
                W = values[0] - values[1]
                # both count the fakes alike, so W - W_val is what D gives images for having seen
                # them; once a pass, as it takes time
                W_val = math.nan
                if i == n_batches:
                    W_val = W - (mean_score(D, seen) - mean_score(D, held)).item()
                values += [W, W_val]
                scalars = {k: v for k, v in zip(columns, values) if not math.isnan(v)}
                speed = (step - logged) * len(real) / (time.perf_counter() - since)
                left = int(((args.epochs - epoch + 1) * n_batches - i) * len(real) / speed)
                print(f"epoch {epoch}/{args.epochs} step {step} ",
                      *(f"{name} {value:.4f}" for name, value in scalars.items()),
                      f" {speed:.0f} images/s, {left // 60}:{left % 60:02} left", flush=True)
                print(epoch, step, *values, speed, sep=",", file=log)
                if writer:
                    for name, value in scalars.items():
                        writer.add_scalar(name, value, step)
                log_D, log_G, logged, since = [], [], step, time.perf_counter()

        if epoch % save_every == 0 or epoch == args.epochs:
            if not all(w.isfinite().all() for net in (G, D) for w in net.state_dict().values()):
                fail(f"a weight is not finite at step {step}; {remedy}")
            grids, images_z = [*grids, f"samples/{epoch:04}.png"], sample(G_ema, z)
            save_grid(images_z, out / grids[-1])
            if writer:
                weights = torch.cat([w.flatten() for w in D.parameters()])
                writer.add_histogram("weights of D", weights, step)
                writer.add_images("samples", images_z / 2 + 0.5, step)
            state = {"script": SCRIPT, "shape": shape, "epoch": epoch, "step": step,
                     "grids": grids, "z": z,
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
    """Write args.num images: one grid if args.out ends in .png, else a folder of single PNGs."""
    from common import save_grid
    device, out = pick_device(args.device), Path(args.out)
    try:
        sizes = {name: ckpt["args"][name] for name in ("z_dim", "width", "upsample", "mlp")}
        G = Generator(shape=ckpt["shape"], **sizes).to(device)
        G.load_state_dict(ckpt["G_ema"])
    except (KeyError, RuntimeError):
        fail(f"--sample {args.sample}: is of another Generator than that of this file")
    # drawn on the CPU, so that a seed means the same images on every device
    z = torch.randn(args.num, G.z_dim, generator=torch.Generator().manual_seed(args.seed))
    images = torch.cat([sample(G, part.to(device)).cpu() for part in z.split(500)])
    if out.suffix.lower() == ".png":
        out.parent.mkdir(parents=True, exist_ok=True)
        save_grid(images, out)
    else:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):          # samples of two runs in one folder would be measured as one
            fail(f"--out {out}: has files in it; take a new folder")
        for i, image in enumerate(images):
            save_grid(image[None], out / f"{i:05}.png")
    print(f"wrote {args.num} images to {out}")


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

THIS_RUN = ("out", "device", "resume", "sample", "num")     # not kept in a checkpoint


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
    arg("--epochs", type=positive, default=10, help="passes of D over the data, in total")
    arg("--batch-size", type=between(int, 2, 10**6), default=32, help="BatchNorm needs 2 or more")
    arg("--lr", type=between(float, 1e-9, 1), default=1e-3, help="learning rate of G")
    arg("--lr-d", type=between(float, 0, 1), default=1e-3, help="learning rate of D; 0: G's")
    arg("--beta1", type=fraction, default=0.0, help="of Adam")
    arg("--beta2", type=fraction, default=0.9, help="of Adam")
    arg("--z-dim", type=between(int, 1, 10**5), default=100, help="numbers in z")
    arg("--width", type=between(int, 1, 10**4), default=16, help="channels of the largest maps")
    arg("--ema", type=fraction, default=0.999, help="decay of the average of G's weights")
    arg("--seed", type=between(int, 0, 2**63 - 1), default=0, help="of a new run or --sample")
    arg("--n-critic", type=positive, default=5, help="steps of D for each of G")
    arg("--gp-weight", type=between(float, 0, 1e6), default=10, help="of the gradient penalty")
    arg("--norm", choices=("none", "layer", "instance"), default="none", help="normalization in D")
    arg("--upsample", action=switch, default=False, help="G from upsampling and convolution")
    arg("--mlp", action=switch, default=False, help="G of fully connected layers, no BatchNorm")
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
    group.add_argument("--num", type=between(int, 1, 10**6), default=64, help="images to --sample")
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
