"""Generative adversarial nets (Goodfellow et al. 2014, arXiv:1406.2661), fully connected.

A generator G turns noise z into an image G(z); a discriminator D gives the probability D(x) that
an image x is real. With E the mean over the training images x, or over z ~ N(0, I):

    D maximises  V(D, G) = E log D(x) + E log(1 - D(G(z)))
    G minimises  V(D, G)            with --loss minimax, or
    G maximises  E log D(G(z))      with --loss ns, "non-saturating", the default

Why this makes images (section 4.1): let p_data and p_g be the densities of x and of G(z). For a
given G the best D is D*(x) = p_data(x) / (p_data(x) + p_g(x)), and V(D*, G) = 2 JSD - log 4, where
JSD is the Jensen-Shannon divergence of p_data and p_g: 0 where they are equal, log 2 = 0.693 at
most. So a G that lowers V against a good D moves p_g towards p_data; once there, D(x) = 1/2.

No D beats D*, so V(D, G) <= 2 JSD - log 4 for each D. With loss_real = -E log D(x), loss_fake =
-E log(1 - D(G(z))) and V = -(loss_real + loss_fake) this gives log 2 - (loss_real + loss_fake) / 2
<= JSD, logged as jsd. It is small when the images are good, but also when D is weak: look at the
images. (Below 0: D does worse than if it said 1/2 of all. Too high: D overfits.)

Why "ns": write p = sigmoid(s) for D(G(z)). The slope of log(1 - p) in s is -p, next to nothing
while D rejects all fakes, when G has the most to learn; that of -log p is -(1 - p), near -1 then.
(With the defaults D never wins by that much, and minimax does as well.)

Not as in the paper: Adam without momentum, BatchNorm and GELU in G, LeakyReLU in D (the paper has
maxout and dropout there), normal z (uniform), and samples from a moving average of G's weights.

A healthy run: after some hundred steps D(x) and D(G(z)) stay near 0.5, loss_real, loss_fake and
loss_G near 0.693, jsd near 0, and the images get better all the same, as both players do. (In long
runs D(x) and D(G(z)) drift apart a little.) In an unhealthy one D(G(z)) goes to 0, or all images
look alike.

Measured on MNIST: cFID (see README) 30 to 35 for three seeds after 10 passes, 1 to 2 minutes on 2
CPU cores, and log-likelihood by Parzen windows 223 to 225 nats (the paper: 225).

    python gan_mlp.py                                   # MNIST, 10 passes, into out/gan_mlp
    python gan_mlp.py --sample out/gan_mlp/ckpt.pt      # 64 new images: out/gan_mlp/sample.png
    python gan_mlp.py --data FOLDER --image-size 32 --out out/mine      # images of your own
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

SCRIPT = "gan_mlp"


# ---- networks ----

class Generator(nn.Module):
    """Noise z (B, z_dim) to images (B, C, H, W) in [-1, 1]; `shape` is (C, H, W)."""

    def __init__(self, z_dim=96, shape=(1, 28, 28), width=96):
        super().__init__()
        self.z_dim, self.shape = z_dim, tuple(shape)
        sizes = [z_dim, width, 2 * width, 4 * width]
        layers = []
        for n_in, n_out in zip(sizes, sizes[1:]):
            # no bias: BatchNorm adds one. It is in G only: D's batches are all real or all fake,
            # and their statistics would give away which
            layers += [nn.Linear(n_in, n_out, bias=False), nn.BatchNorm1d(n_out), nn.GELU()]
        self.net = nn.Sequential(*layers, nn.Linear(4 * width, math.prod(shape)), nn.Tanh())

    def forward(self, z):
        return self.net(z).view(-1, *self.shape)


class Discriminator(nn.Module):
    """Images (B, C, H, W) in [-1, 1] to raw scores (B,); D(x) is their sigmoid."""

    def __init__(self, shape=(1, 28, 28), width=96):
        super().__init__()
        self.net = nn.Sequential(
            nn.Flatten(),
            nn.Linear(math.prod(shape), 4 * width), nn.LeakyReLU(0.2),
            nn.Linear(4 * width, 2 * width), nn.LeakyReLU(0.2),
            nn.Linear(2 * width, 1),
        )

    def forward(self, x):
        return self.net(x).flatten().float()    # the losses are taken in float32, under --amp too


# ---- losses ----
# D = sigmoid(s), so log D = logsigmoid(s) and log(1 - D) = logsigmoid(-s), finite for all scores s.

def discriminator_loss(s_real, s_fake):
    """-E log D(x) and -E log(1 - D(G(z))) in nats, from scores (B,) of real images and of fakes."""
    return -F.logsigmoid(s_real).mean(), -F.logsigmoid(-s_fake).mean()


def generator_loss(s_fake, loss="ns"):
    """What G minimises, from scores (B,): -E log D(G(z)) ("ns"), E log(1 - D(G(z))) ("minimax")."""
    return -F.logsigmoid(s_fake).mean() if loss == "ns" else F.logsigmoid(-s_fake).mean()


def jsd_bound(loss_D):
    """log 2 - loss_D / 2 <= JSD(p_data || p_g), with equality for D* (section 4.1)."""
    return math.log(2) - loss_D / 2


# ---- one update of each player (Algorithm 1) ----

def noise(G, n):
    """z ~ N(0, I), (n, z_dim), on G's device."""
    return torch.randn(n, G.z_dim, device=next(G.parameters()).device)


def autocast(device, amp):
    """With --amp: bfloat16 where it is safe."""
    return torch.autocast(device.type, torch.bfloat16) if amp else contextlib.nullcontext()


def train_discriminator(G, D, opt, real, *, amp=False):
    """One step of D on real images (B, C, H, W) in [-1, 1] and as many fakes.

    Returns four numbers, (4,): -E log D(x), -E log(1 - D(G(z))), E D(x), E D(G(z)).
    """
    with autocast(real.device, amp):
        with torch.no_grad():           # D's step needs no gradient through G
            fake = G(noise(G, len(real)))
        # one call for both is faster, and the same as two: no layer of D mixes images
        s_real, s_fake = D(torch.cat([real, fake])).chunk(2)
    loss_real, loss_fake = discriminator_loss(s_real, s_fake)
    D.zero_grad()
    (loss_real + loss_fake).backward()
    opt.step()
    D_x, D_Gz = s_real.sigmoid().mean(), s_fake.sigmoid().mean()
    return torch.stack([loss_real, loss_fake, D_x, D_Gz]).detach()


def train_generator(G, D, opt, n, *, loss="ns", l1=0.0, real=None, amp=False):
    """One step of G on n fakes. Returns the adversarial loss of G, one number, ().

    l1 > 0 adds l1 E|G(z) - x| over the images `real` (n, C, H, W), to see what it does: some
    tutorials have it, yet G(z) and x are no pair, so it pulls every G(z) to one image, the
    pixel-wise median of the data.
    """
    z = noise(G, n)
    with autocast(z.device, amp):
        fake = G(z)
        s_fake = D(fake)
    loss_G = generator_loss(s_fake, loss)
    total = loss_G + l1 * (fake - real).abs().mean() if l1 else loss_G
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
def sample(G, z):
    """G(z), (B, C, H, W) in [-1, 1], in eval mode: no image depends on the others of its batch."""
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
    torch.manual_seed(args.seed)
    if args.data is None:
        args.data = default_data(args.data_dir)
    images, labels = load_images(args.data, args.data_dir, classes=args.classes, device=device,
                                 image_size=args.image_size, channels=args.channels)
    shape, n_batches = tuple(images.shape[1:]), max(1, len(images) // args.batch_size)
    if len(images) < 2 or shape[-1] > 256:
        fail(f"--data {args.data}: {len(images)} image(s) of side {shape[-1]} to train on; take at "
             "least 2, and an --image-size of at most 256")

    G = Generator(args.z_dim, shape, args.width).to(device)
    D = Discriminator(shape, args.width).to(device)
    G_ema = copy.deepcopy(G).requires_grad_(False)
    graph = args.graph and device.type == "cuda"
    settings = dict(betas=(args.beta1, args.beta2), capturable=graph,
                    weight_decay=args.weight_decay,
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
    if step // args.k == (step + (args.epochs - epoch) * n_batches) // args.k:
        fail(f"--k {args.k}: G would not move in this run; lower it or raise --epochs")

    out = Path(args.out)
    own = ckpt and out.absolute() == Path(args.resume).parent.absolute()
    if (out / "ckpt.pt").exists() and not own:
        fail(f"--out {out}: has a trained network; --resume that, or take another folder")
    writer = open_tensorboard(out, step) if args.tensorboard else None
    (out / "samples").mkdir(parents=True, exist_ok=True)
    columns = ("loss_real", "loss_fake", "D(x)", "D(G(z))", "loss_G", "jsd")
    log = open_log(out / "log.csv", step, ("epoch", "step", *columns, "images/s"))
    save_grid(spread(images, 64) / 127.5 - 1, out / "samples/real.png")
    print(f"{args.data}: {len(images):,} images {shape}, {len(labels.unique())} class(es), "
          f"{n_batches} batches a pass, on {device}")

    update_D = captured(lambda real: train_discriminator(G, D, opt_D, real, amp=args.amp), graph)
    update_G = captured(lambda real: train_generator(
        G, D, opt_G, len(real), loss=args.loss, l1=args.l1, real=real, amp=args.amp), graph)
    save_every = args.save_every or max(1, round(args.epochs / 40))
    remedy = "try a lower --lr, anew or from the last checkpoint"
    log_D, log_G, logged, since = [], [], step, time.perf_counter()
    while epoch < args.epochs:
        epoch += 1
        for i, real in enumerate(batches(images, args.batch_size), 1):
            step += 1
            log_D.append(update_D(real))
            if step % args.k == 0:
                log_G.append(update_G(real))
                update_ema(G_ema, G, args.ema, step // args.k)

            if log_G and (i == n_batches or time.perf_counter() > since + args.log_every):
                # means since the last line; within a pass the host waits for the device only here
                means = torch.cat([torch.stack(log_D).mean(0), torch.stack(log_G).mean(0)[None]])
                values = means.tolist()
                if not all(map(math.isfinite, values)):
                    fail(f"a loss is not finite at step {step}; {remedy}")
                values.append(jsd_bound(values[0] + values[1]))
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
            grids, images_z = [*grids, f"samples/{epoch:04}.png"], sample(G_ema, z)
            save_grid(images_z, out / grids[-1])
            if writer:
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
    G = Generator(ckpt["args"]["z_dim"], ckpt["shape"], ckpt["args"]["width"]).to(device)
    try:
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
    arg("--batch-size", type=between(int, 2, 10**6), default=100, help="BatchNorm needs 2 or more")
    arg("--lr", type=between(float, 1e-9, 1), default=1.3e-3, help="learning rate of G")
    arg("--lr-d", type=between(float, 0, 1), default=4e-4, help="learning rate of D; 0: G's")
    arg("--beta1", type=fraction, default=0.0, help="of Adam; 0: no momentum (see README)")
    arg("--beta2", type=fraction, default=0.999, help="of Adam")
    arg("--z-dim", type=between(int, 1, 10**5), default=96, help="numbers in z")
    arg("--width", type=between(int, 1, 10**4), default=96, help="base width of G and D")
    arg("--ema", type=fraction, default=0.999, help="decay of the average of G's weights")
    arg("--seed", type=between(int, 0, 2**63 - 1), default=0, help="of a new run or --sample")
    arg("--k", type=positive, default=1, help="steps of D for each of G")
    arg("--loss", choices=("ns", "minimax"), default="ns", help="of G")
    arg("--l1", type=between(float, 0, 1e6), default=0, help="weight of an L1 term for G")
    arg("--weight-decay", type=between(float, 0, 1), default=0, help="of Adam")
    arg = parser.add_argument_group("output").add_argument
    arg("--out", help=f"folder, else out/{SCRIPT} or the checkpoint's; with --sample also a .png")
    arg("--log-every", type=between(float, 0, 1e9), default=3, help="seconds; also after a pass")
    arg("--save-every", type=between(int, 0, 10**9), default=0, help="passes; 0: about 40 a run")
    switch = argparse.BooleanOptionalAction
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
