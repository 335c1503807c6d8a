"""Stacked GAN, SGAN (Huang, Li, Poursaeed, Hopcroft and Belongie 2017, arXiv:1612.04357).

First a classifier E is trained and frozen. It is a stack of two parts: E0 turns an image x into
features h1, and E1 turns these into a label y. Then a stack of two GANs learns to invert it from
the top down:

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
fakes, which G makes, and its Q learns to recover the noise of the fakes (real data have none).

In the independent phase G0 gets the features of real images, and in the joint phase those that G1
makes, as in sampling. Even then no gradient passes from G0 into G1, as in the authors' code.

What differs from the paper: the noise is normal, not uniform, so its variance is 12 times as large,
and the entropy weight is 0.3 instead of 10 (with 10, G0 hides z0 in a pattern of dots); D0, E and
G1's last layer have BatchNorm; Adam has no momentum; all learning rates are higher, most of all
those of G0 and D1; samples come from G1_ema and G0_ema, copies with averaged weights; and in
samples z1 is 10 % larger than in training, because what G1_ema draws varies too little.

In a healthy run loss_real and loss_fake stay a little below 0.69 in both GANs, cond1 goes to
0.001, cond0 to 0.1, ent1 to 0.65 and ent0 to 0.8. An entropy loss of 1 is chance. (The log adds the
number of the GAN to each name, as in loss_real1.)

    python stackedgan.py                                            # MNIST, into out/stackedgan
    python stackedgan.py --sample out/stackedgan/ckpt.pt            # a row for each class
    python stackedgan.py --sample out/stackedgan/ckpt.pt --vary z1  # the same z0 for all images
    python stackedgan.py --sample out/stackedgan/ckpt.pt --label 3 --num 1000 --out out/threes
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

SCRIPT = "stackedgan"


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

    def __init__(self, shape=(1, 28, 28), width=16, num_classes=10):
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

    def __init__(self, z_dim=50, width=16, num_classes=10):
        super().__init__()
        self.z_dim, self.num_classes = z_dim, num_classes
        layers, sizes = [], [num_classes + z_dim, 32 * width, 32 * width, 16 * width]
        for n_in, n_out in zip(sizes, sizes[1:]):
            layers += [nn.Linear(n_in, n_out), nn.BatchNorm1d(n_out), nn.ReLU()]
        self.net = nn.Sequential(*layers)
        self.apply(init_weights)

    def forward(self, y, z):
        one_hot = torch.eye(self.num_classes, device=y.device)[y]
        return self.net(torch.cat([one_hot, z], 1))


class Generator0(nn.Module):
    """Turns features h1 (B, 16 * width) and noise z0 (B, z_dim) into images (B, C, H, H)."""

    def __init__(self, z_dim=50, shape=(1, 28, 28), width=16):
        super().__init__()
        self.z_dim = z_dim
        sizes = map_sizes(shape[-1], 7)                                         # 28, 14, 7
        channels = [shape[0], *(width * 2**i for i in range(len(sizes) - 1))]   # 1, 16, 32
        hidden = 32 * width
        layers = [nn.Linear(16 * width + z_dim, hidden), nn.BatchNorm1d(hidden),
                  nn.ReLU(), nn.Linear(hidden, channels[-1] * sizes[-1]**2),
                  nn.Unflatten(1, (channels[-1], sizes[-1], sizes[-1]))]
        for i in reversed(range(len(sizes) - 1)):       # 7 -> 14 -> 28
            # ConvTranspose2d turns a side n into 2n with kernel 4, and into 2n - 1 with kernel 3.
            n_in, n_out, kernel = channels[i + 1], channels[i], 4 - sizes[i] % 2
            layers += [nn.BatchNorm2d(n_in), nn.ReLU()]
            layers.append(nn.ConvTranspose2d(n_in, n_out, kernel, stride=2, padding=1))
        self.net = nn.Sequential(*layers, nn.Tanh())
        self.apply(init_weights)

    def forward(self, h1, z):
        return self.net(torch.cat([h1, z], 1))


class Discriminator1(nn.Module):
    """Turns features h1 (B, 16 * width) into raw scores s (B,) and Q's guess of z1 (B, z_dim)."""

    def __init__(self, width=16, z_dim=50):
        super().__init__()
        hidden = 32 * width
        # There is no BatchNorm, because it ruined fully connected discriminators here. Without it,
        # the weights of init_weights would be too small, so D1 keeps PyTorch's initial weights.
        self.trunk = nn.Sequential(
            nn.Linear(16 * width, hidden), nn.LeakyReLU(0.2),
            nn.Linear(hidden, hidden), nn.LeakyReLU(0.2))
        self.score, self.Q = nn.Linear(hidden, 1), nn.Linear(hidden, z_dim)

    def forward(self, x):
        h = self.trunk(x)
        return self.score(h).flatten().float(), self.Q(h).float()  # float32 even with --amp


class Discriminator0(nn.Module):
    """Turns images (B, C, H, H) into raw scores (B,) and Q's guess of z0 (B, z_dim)."""

    def __init__(self, shape=(1, 28, 28), width=16, z_dim=50):
        super().__init__()
        sizes = map_sizes(shape[-1], 7)                                         # 28, 14, 7
        channels = [shape[0], *(width * 2**i for i in range(len(sizes) - 1))]   # 1, 16, 32
        layers, hidden = [], 32 * width
        for i in range(len(sizes) - 1):
            n_in, n_out, kernel = channels[i], channels[i + 1], 4 - sizes[i] % 2
            layers.append(nn.Conv2d(n_in, n_out, kernel, stride=2, padding=1))
            if i > 0:                   # no BatchNorm after the first layer
                layers.append(nn.BatchNorm2d(n_out))
            layers.append(nn.LeakyReLU(0.2))
        layers += [nn.Flatten(), nn.Linear(channels[-1] * sizes[-1]**2, hidden)]
        layers.append(nn.BatchNorm1d(hidden))
        self.trunk = nn.Sequential(*layers, nn.LeakyReLU(0.2))  # each unit sees the whole image
        self.score, self.Q = nn.Linear(hidden, 1), nn.Linear(hidden, z_dim)
        self.apply(init_weights)

    def forward(self, x):
        h = self.trunk(x)
        return self.score(h).flatten().float(), self.Q(h).float()  # float32 even with --amp


# ---- losses ----
# F.logsigmoid(s) is log D(x), and F.logsigmoid(-s) is log(1 - D(x)). Both are finite for every s.

def discriminator_loss(s_real, s_fake):
    """Return -E log D(x) and -E log(1 - D(G(z))), from the scores (B,) of real data and fakes."""
    return -F.logsigmoid(s_real).mean(), -F.logsigmoid(-s_fake).mean()


def generator_loss(s_fake):
    """Return -E log D(G(z)), the non-saturating loss, from the scores (B,) of fakes."""
    return -F.logsigmoid(s_fake).mean()


def conditional_loss(recovered, condition):
    """Return how far E's output for a fake is from the condition that the fake was made from.

    For labels (B,), that is the cross-entropy of the logits (B, num_classes). For features
    (B, 16 * width), it is the mean squared error.
    """
    if condition.ndim == 1:
        return F.cross_entropy(recovered, condition)
    return F.mse_loss(recovered, condition)


# ---- one step of D and of G; the train functions return what the log shows ----
# Both GANs use the same functions. For G1 and D1, real data are features h1, and conditions are
# labels y. For G0 and D0, real data are images, and conditions are features h1.

def noise(G, n):
    """Return n noise vectors z ~ N(0, I) as a tensor (n, z_dim) on G's device."""
    return torch.randn(n, G.z_dim, device=next(G.parameters()).device)


def train_discriminator(G, D, opt, real, condition, ent_weight=0.3, amp=nullcontext()):
    """Take one step of D and Q, on real data (B, ...) and on one fake for each condition."""
    z = noise(G, len(condition))
    with amp:                           # torch.autocast with --amp, or else nothing
        with torch.no_grad():           # D's step needs no gradient of G's weights
            fake = G(condition, z)
        s_real, _ = D(real)             # real data have no noise for Q to recover
        s_fake, z_hat = D(fake)         # in one call, BatchNorm would mix real and fake
    loss_real, loss_fake = discriminator_loss(s_real, s_fake)
    D.zero_grad()
    (loss_real + loss_fake + ent_weight * F.mse_loss(z_hat, z)).backward()
    opt.step()
    return {"loss_real": loss_real.detach(), "loss_fake": loss_fake.detach()}


def train_generator(G, D, opt, condition, E_i, adv_weight=1.0, cond_weight=1.0, ent_weight=0.3,
                    amp=nullcontext()):
    """Take one step of G, on one fake for each condition. G inverts E_i, which is E.E1 or E.E0."""
    z = noise(G, len(condition))
    with amp:
        fake = G(condition, z)
        s_fake, z_hat = D(fake)
        recovered = E_i(fake)
    adv, ent = generator_loss(s_fake), F.mse_loss(z_hat, z)
    cond = conditional_loss(recovered.float(), condition)
    G.zero_grad()
    total = adv_weight * adv + cond_weight * cond + ent_weight * ent
    total.backward(inputs=list(G.parameters()))     # the gradients of G's weights only
    opt.step()
    return {"adv": adv.detach(), "cond": cond.detach(), "ent": ent.detach()}


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
def sample(G1, G0, y, z1, z0):
    """Return G0(G1(y, 1.1 z1), z0) with running BatchNorm statistics: no image affects another."""
    G1.eval(), G0.eval()
    images = G0(G1(y, 1.1 * z1), z0)    # G1_ema varies less than G1, so z1 is a little larger
    G1.train(), G0.train()
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


def pretrain(E, images, labels, epochs):
    """Train E on uint8 images (N, C, H, H). The learning rate falls linearly to 0."""
    from common import batches
    opt = torch.optim.Adam(E.parameters(), lr=1e-3)
    steps = epochs * max(1, len(images) // 128)
    schedule = torch.optim.lr_scheduler.LinearLR(opt, 1, 0, total_iters=steps)
    for epoch in range(1, epochs + 1):
        for real, y in batches(images, 128, labels):
            loss = F.cross_entropy(E(real), y)
            E.zero_grad()
            loss.backward()
            opt.step()
            schedule.step()
        print(f"E: epoch {epoch}/{epochs} loss of the last batch {loss:.4f}", flush=True)


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
    args.data = args.data or default_data(args.data_dir)    # kept for --resume
    images, labels, names = load_images(args.data, args.data_dir, image_size=args.image_size,
                                        channels=args.channels, classes=args.classes, device=device)
    shape = tuple(images.shape[1:])     # images are uint8 (N, C, H, W); batches are in [-1, 1]
    args.channels, args.image_size = shape[0], shape[-1]
    n_batches = max(1, len(images) // args.batch_size)      # a last, shorter batch is left out
    num_classes = len(names)
    if num_classes == 1:
        sys.exit("error: all images are of one class, but E needs at least two classes")
    if ckpt and names != ckpt["classes"]:       # E would still find the old ones
        sys.exit(f"error: {args.data} has the classes {names}, but {args.resume} {ckpt['classes']}")
    held_out, y_held_out, _ = load_images(args.data, args.data_dir, image_size=shape[-1],
                                          channels=shape[0], classes=args.classes, device=device,
                                          train=False)

    torch.manual_seed(0)                # so that E is the same for all seeds
    E = Encoder(shape, args.width, num_classes).to(device, memory_format=torch.channels_last)
    if not ckpt:
        pretrain(E, images, labels, args.encoder_epochs)
    E.eval().requires_grad_(False)
    torch.manual_seed(args.seed)
    G1 = Generator1(args.z1_dim, args.width, num_classes).to(device)
    D1 = Discriminator1(args.width, args.z1_dim).to(device)
    G0 = Generator0(args.z0_dim, shape, args.width).to(device)
    D0 = Discriminator0(shape, args.width, args.z0_dim).to(device)
    G1_ema = copy.deepcopy(G1).requires_grad_(False)
    G0_ema = copy.deepcopy(G0).requires_grad_(False)
    optimizer = partial(torch.optim.Adam, betas=(args.beta1, args.beta2), fused=True,
                        capturable=use_graph)
    # D0, which has BatchNorm, learns best at a lower rate than G0. D1 needs a higher one than G1.
    opt_D1 = optimizer(D1.parameters(), lr=args.lr)
    opt_G0 = optimizer(G0.parameters(), lr=args.lr)
    opt_G1 = optimizer(G1.parameters(), lr=args.lr_slow)
    opt_D0 = optimizer(D0.parameters(), lr=args.lr_slow)
    parts = {"E": E, "G1": G1, "D1": D1, "G0": G0, "D0": D0, "G1_ema": G1_ema, "G0_ema": G0_ema,
             "opt_G1": opt_G1, "opt_D1": opt_D1, "opt_G0": opt_G0, "opt_D0": opt_D0}
    # Every grid has the same noise and a row for each class (32 at most), to compare the grids.
    y_grid = torch.arange(min(num_classes, 32), device=device).repeat_interleave(8)
    z1, z0 = noise(G1, len(y_grid)), noise(G0, len(y_grid))
    first_epoch, step, rows = 1, 0, []      # `step` counts D's steps; `rows` go to log.csv
    if ckpt:
        for name, part in parts.items():
            if name.startswith("opt"):      # the settings of the optimizers come from the flags
                ckpt[name]["param_groups"] = part.state_dict()["param_groups"]
            part.load_state_dict(ckpt[name])
        z1, z0 = ckpt["z1"].to(device), ckpt["z0"].to(device)
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
    D_step = partial(train_discriminator, ent_weight=args.ent_weight, amp=amp)
    G_step = partial(train_generator, ent_weight=args.ent_weight, amp=amp,
                     adv_weight=args.adv_weight, cond_weight=args.cond_weight)
    update_D1, update_D0 = partial(D_step, G1, D1, opt_D1), partial(D_step, G0, D0, opt_D0)
    update_G1 = partial(G_step, G1, D1, opt_G1, E_i=E.E1)
    update_G0 = partial(G_step, G0, D0, opt_G0, E_i=E.E0)
    if use_graph:
        update_D1, update_G1 = GraphedUpdate(update_D1), GraphedUpdate(update_G1)
        update_D0, update_G0 = GraphedUpdate(update_D0), GraphedUpdate(update_G0)

    print(f"{args.data}: {len(images):,} images {shape}, {n_batches} batches an epoch, on {device}")
    with torch.no_grad():
        y_hat = torch.cat([E(x / 127.5 - 1).argmax(1) for x in held_out.split(1000)])
    print(f"E classifies {(y_hat == y_held_out).float().mean():.2%} of held-out images correctly")
    save_every = args.save_every or max(1, args.epochs // 40)
    history = defaultdict(list)         # maps a name to its values since the last line of the log
    last_log = last_save = time.time()
    for epoch in range(first_epoch, args.epochs + 1):
        for i, (real, y) in enumerate(batches(images, args.batch_size, labels), 1):
            step += 1
            with torch.no_grad():
                h1 = E.E0(real)
            stats1 = update_D1(h1, y) | update_G1(y)
            if epoch > args.independent_epochs:         # the joint phase
                with torch.no_grad():
                    h1 = G1(y, noise(G1, len(y)))
            stats0 = update_D0(real, h1) | update_G0(h1)
            update_ema(G1_ema, G1, args.ema, step)
            update_ema(G0_ema, G0, args.ema, step)
            for i_stack, stats in (1, stats1), (0, stats0):
                for name, value in stats.items():
                    history[f"{name}{i_stack}"].append(value)

            if i == n_batches or time.time() - last_log > args.log_every:
                # .item() waits for the GPU. The steps do not, so the CPU can run ahead of it.
                means = {name: torch.stack(v).mean().item() for name, v in history.items()}
                speed = len(history["adv1"]) * len(real) / (time.time() - last_log)
                minutes = ((args.epochs - epoch + 1) * n_batches - i) * len(real) / speed / 60
                text = " ".join(f"{name} {value:.4f}" for name, value in means.items())
                print(f"epoch {epoch}/{args.epochs} step {step} {text} {speed:.0f} images/s, "
                      f"{minutes:.1f} min left", flush=True)
                weights = [w for net in (G1, D1, G0, D0) for w in net.parameters()]
                weights = nn.utils.parameters_to_vector(weights)
                if not all(map(math.isfinite, means.values())) or not weights.isfinite().all():
                    sys.exit("error: a loss or a weight is not finite; try lower learning rates")
                rows.append({"epoch": epoch, "step": step, "images/s": speed, **means})
                if writer:
                    for name, value in means.items():
                        writer.add_scalar(name, value, step)
                history.clear()
                last_log = time.time()

        if epoch % save_every == 0 or epoch == args.epochs or time.time() - last_save > 60:
            grid = sample(G1_ema, G0_ema, y_grid, z1, z0)
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
                "epoch": epoch, "step": step, "rows": rows, "z1": z1, "z0": z0,
                **{name: part.state_dict() for name, part in parts.items()},
                "rng": torch.get_rng_state(),
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
    """Write args.num images: one grid if args.out is a picture, else a folder of single PNGs.

    All classes get the same share, unless --label names one, and a grid is filled up to whole rows.
    With --vary z1, all images share one z0. With --vary z0, they share one z1.
    """
    from common import is_picture, save_images
    G1 = Generator1(args.z1_dim, args.width, len(ckpt["classes"]))
    G0 = Generator0(args.z0_dim, ckpt["shape"], args.width)
    G1.load_state_dict(ckpt["G1_ema"])
    G0.load_state_dict(ckpt["G0_ema"])
    K, num, columns = G1.num_classes, args.num or 8 * G1.num_classes, 8
    if args.label is None:
        columns = math.ceil(num / K)
        num = K * columns if is_picture(args.out) else num      # whole rows
    y = torch.arange(num) * K // num
    if args.label is not None:
        y[:] = args.label
    # The noise is drawn while G1 and G0 are on the CPU, so a seed gives the same on every device.
    torch.manual_seed(args.seed)
    z1, z0 = noise(G1, num), noise(G0, num)
    if args.vary == "z1":
        z0[:] = z0[0].clone()
    if args.vary == "z0":
        z1[:] = z1[0].clone()
    G1.to(args.device), G0.to(args.device)
    parts = zip(*(v.to(args.device).split(500) for v in (y, z1, z0)))
    images = torch.cat([sample(G1, G0, *part).cpu() for part in parts])
    save_images(images, args.out, columns, [ckpt["classes"][i] for i in y])


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
    arg("--batch-size", type=int, default=64, help="real images in each step")
    arg("--lr", type=float, default=1e-3, help="learning rate of G0 and D1")
    arg("--lr-slow", type=float, default=2e-4, help="learning rate of D0 and G1")
    arg("--beta1", type=float, default=0.0, help="Adam's decay of the average gradient")
    arg("--beta2", type=float, default=0.999, help="Adam's decay of the average square")
    arg("--encoder-epochs", type=int, default=4, help="epochs of E, before those of the GANs")
    arg("--independent-epochs", type=int, default=5, help="epochs of the independent phase")
    arg("--adv-weight", type=float, default=1.0, help="weight of the adversarial losses")
    arg("--cond-weight", type=float, default=1.0, help="weight of the conditional losses")
    arg("--ent-weight", type=float, default=0.3, help="weight of the entropy losses")
    arg("--z1-dim", type=int, default=50, help="length of the noise vector z1")
    arg("--z0-dim", type=int, default=50, help="length of the noise vector z0")
    arg("--width", type=int, default=16, help="channels of the largest feature maps")
    arg("--ema", type=float, default=0.995, help="decay of the moving averages of G1 and G0")
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
    either("--sample", metavar="CKPT", help="generate images with its generators")
    arg("--num", type=int, default=0, help="how many images; 0: 8 a class; grids have whole rows")
    arg("--label", help="with --sample: only this class, by name or by number from 0")
    arg("--vary", choices=("z1", "z0"), help="with --sample: the other noise is the same for all")

    args, ckpt = parser.parse_args(argv), None
    path = args.resume or args.sample
    if path:
        try:
            ckpt = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:      # it is missing, damaged, or a pickle that could run code
            parser.error(f"cannot load {path}: {str(error).split('. ')[0] or 'it is empty'}")
        if not isinstance(ckpt, dict) or ckpt.get("script") != SCRIPT:
            parser.error(f"{path} was not saved by {SCRIPT}.py")
        this_run = ("out", "device", "resume", "sample", "num", "label", "vary")
        parser.set_defaults(**{k: v for k, v in ckpt["args"].items() if k not in this_run})
        args = parser.parse_args(argv)      # again, with the checkpoint's settings as defaults
        # These flags determine the layers of the networks.
        for name in ("image_size", "channels", "z1_dim", "z0_dim", "width"):
            if vars(args)[name] != ckpt["args"][name]:
                parser.error(f"--{name.replace('_', '-')} must be {ckpt['args'][name]} for {path}")
        if args.label is not None:
            known = [*ckpt["classes"], *map(str, range(len(ckpt["classes"])))]      # names first
            if args.label not in known:
                parser.error(f"there is no --label {args.label}; there are {', '.join(known)}")
            args.label = known.index(args.label) % len(ckpt["classes"])
    least = min(args.epochs, args.encoder_epochs, args.z1_dim, args.z0_dim, args.width)
    if least < 1 or args.batch_size < 2 or args.num < 0:
        parser.error("--batch-size must be above 1, epochs and sizes above 0, num at least 0")
    if not min(args.lr, args.lr_slow) > 0 or not max(args.beta1, args.beta2, args.ema) < 1:
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
