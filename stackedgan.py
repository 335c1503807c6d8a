"""Stacked GAN, SGAN (Huang, Li, Poursaeed, Hopcroft, Belongie 2017, arXiv:1612.04357).

A classifier E of images is a stack of two parts: E0 takes an image x to features h1, E1 takes these
to a label y. Once it is trained, a stack of two GANs learns to undo it from the top down:

    E0: x -> h1     E1: h1 -> y              G1: (y, z1) -> h1     G0: (h1, z0) -> x

So a hard task, images of a given class, falls into two easier ones, and the noises get different
meanings: z1 says what sort of 3 it is to be, z0 adds what E0 threw away. Each G has a discriminator
of its own, D1 of features and D0 of images, and three losses (section 3), here those of G1:

    adversarial   mean of -log D1(G1(y, z1)): features that look like real ones
    conditional   mean of -log p, p being E1's probability of y for G1(y, z1): features for y
    entropy       mean of (Q1(G1(y, z1)) - z1)^2: features from which Q1 can tell z1

For G0 the conditional loss is the mean of (E0(G0(h1, z0)) - h1)^2. The entropy loss is there as a G
that minds its condition could ignore its noise; the better Q, a head on D, recovers the noise, the
higher is a lower bound of the entropy of what G makes of one condition. D and Q are trained to tell
real from fake, and to recover the noise of fakes: real data have none.

In the independent phase G0 learns from the features of real images. In the joint phase it gets
those that G1 makes, as it will in use.

Not as in the paper, or its authors' code for MNIST: z is normal in place of uniform from [0, 1],
so that its variance is 1, not 1/12, and the weight of the entropy loss, there 10, counts for 12
times as much; it is 0.3 here. (With 10, G0 hides z0 in a pattern of dots, and makes nothing else.)
D0 and E have BatchNorm, Adam has no momentum, G1 is slower than D1, and samples come from moving
averages of the weights of G1 and G0. As in that code, D0 teaches G0 only, in the joint phase, too.

A healthy run: loss_real and loss_fake stay near 0.69 in both stacks, a little below; cond1 goes to
0.001, cond0 to 0.1; ent1 and ent0 fall well below 1, at which nothing of z is recovered.

Measured on MNIST (see README): E is right in 99.3 % of the test images. After 5 passes of the
independent and 5 of the joint phase, for three seeds: cFID 17 to 23; 99.6 to 99.9 % of the samples
are read as the digit asked for; 10 to 12 minutes on 2 CPU cores, E included.

    python stackedgan.py                                            # MNIST, into out/stackedgan
    python stackedgan.py --sample out/stackedgan/ckpt.pt            # a row a class
    python stackedgan.py --sample out/stackedgan/ckpt.pt --vary z1  # the same z0 for all
    python stackedgan.py --sample out/stackedgan/ckpt.pt --label 3 --num 1000 --out threes
"""

import argparse
import contextlib
import copy
import hashlib
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

SCRIPT = "stackedgan"


# ---- networks ----

def halved(side):
    """Sides of the maps, halved and rounded up, down to 7 or less: for 28 [28, 14, 7]."""
    return [side] if side <= 7 else [side, *halved((side + 1) // 2)]


def init_weights(layer):
    """Normal with standard deviation 0.02, biases 0, as in dcgan.py."""
    if isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(layer.weight, 0, 0.02)
        nn.init.zeros_(layer.bias)


class Encoder(nn.Module):
    """A classifier: images (B, C, H, H) in [-1, 1] to logits (B, num_classes) by way of h1.

    E0 takes images to features h1 (B, 16 width), all at least 0; E1 takes h1 to logits.
    """

    def __init__(self, shape=(1, 28, 28), width=16, num_classes=10):
        super().__init__()
        *sides, last = halved(shape[-1])                                    # 28, 14; 7
        layers, n = [], shape[0]
        for i in range(len(sides)):
            n_in, n = n, width * 2**i                                       # 1, then 16, 32
            # ReLU behind the pooling gives the same as before it, for a quarter of the work
            layers += [nn.Conv2d(n_in, n, 3, padding=1), nn.MaxPool2d(2, ceil_mode=True), nn.ReLU()]
        self.E0 = nn.Sequential(
            *layers, nn.Flatten(),
            nn.Linear(n * last**2, 16 * width), nn.BatchNorm1d(16 * width), nn.ReLU())
        self.E1 = nn.Linear(16 * width, num_classes)

    def forward(self, x):
        return self.E1(self.E0(x))


class Generator1(nn.Module):
    """Labels y (B,), int64, and noise z1 (B, z_dim) to features h1 (B, 16 width), at least 0."""

    def __init__(self, z_dim=50, width=16, num_classes=10):
        super().__init__()
        self.z_dim, self.num_classes = z_dim, num_classes
        layers, n = [], num_classes + z_dim
        for n_out in (32 * width, 32 * width, 16 * width):                  # 512, 512, 256
            layers += [nn.Linear(n, n_out), nn.BatchNorm1d(n_out), nn.ReLU()]
            n = n_out
        self.net = nn.Sequential(*layers)
        self.apply(init_weights)

    def forward(self, y, z):
        return self.net(torch.cat([F.one_hot(y, self.num_classes).float(), z], 1))


class Generator0(nn.Module):
    """Features h1 (B, 16 width) and noise z0 (B, z_dim) to images (B, C, H, H) in [-1, 1]."""

    def __init__(self, z_dim=50, shape=(1, 28, 28), width=16):
        super().__init__()
        self.z_dim = z_dim
        sides = halved(shape[-1])[::-1]                                     # 7, 14, 28
        hidden, n = 32 * width, width * 2**(len(sides) - 2)                 # 512; 32, then 16, 1
        layers = [nn.Linear(16 * width + z_dim, hidden), nn.BatchNorm1d(hidden), nn.ReLU(),
                  nn.Linear(hidden, n * sides[0]**2), nn.Unflatten(1, (n, sides[0], sides[0]))]
        for side in sides[1:]:          # the sides of D in reverse
            n_in, n = n, n // 2 if side < sides[-1] else shape[0]
            layers += [nn.BatchNorm2d(n_in), nn.ReLU(),
                       nn.ConvTranspose2d(n_in, n, 4 - side % 2, stride=2, padding=1)]
        self.net = nn.Sequential(*layers, nn.Tanh())
        self.apply(init_weights)

    def forward(self, h1, z):
        return self.net(torch.cat([h1, z], 1))


class Discriminator1(nn.Module):
    """Features h1 (B, 16 width) to raw scores (B,); the head Q recovers z1 (B, z_dim)."""

    def __init__(self, width=16, z_dim=50):
        super().__init__()
        hidden = 32 * width
        # no BatchNorm: it ruins an MLP's D, see gan_mlp.py. Without it, N(0, 0.02) would be too
        # small a start: these weights are torch's own
        self.trunk = nn.Sequential(
            nn.Linear(16 * width, hidden), nn.LeakyReLU(0.2),
            nn.Linear(hidden, hidden), nn.LeakyReLU(0.2))
        self.score, self.Q = nn.Linear(hidden, 1), nn.Linear(hidden, z_dim)

    def forward(self, x):
        scores = self.score(self.trunk(x))
        return scores.flatten().float()         # the losses are taken in float32, under --amp too

    def score_and_noise(self, x):
        """D's scores (B,) and Q's guess of the noise (B, z_dim), for fakes."""
        h = self.trunk(x)
        return self.score(h).flatten().float(), self.Q(h).float()


class Discriminator0(nn.Module):
    """Images (B, C, H, H) in [-1, 1] to raw scores (B,); the head Q recovers z0 (B, z_dim)."""

    def __init__(self, shape=(1, 28, 28), width=16, z_dim=50):
        super().__init__()
        *sides, last = halved(shape[-1])                                    # 28, 14; 7
        layers, n = [], shape[0]
        for i, side in enumerate(sides):
            n_in, n = n, width * 2**i                                       # 1, then 16, 32
            layers.append(nn.Conv2d(n_in, n, 4 - side % 2, stride=2, padding=1))
            if i:                       # not right behind the images
                layers.append(nn.BatchNorm2d(n))
            layers.append(nn.LeakyReLU(0.2))
        hidden = 32 * width             # its units see the whole image
        self.trunk = nn.Sequential(
            *layers, nn.Flatten(),
            nn.Linear(n * last**2, hidden), nn.BatchNorm1d(hidden), nn.LeakyReLU(0.2))
        self.score, self.Q = nn.Linear(hidden, 1), nn.Linear(hidden, z_dim)
        self.apply(init_weights)

    def forward(self, x):
        scores = self.score(self.trunk(x))
        return scores.flatten().float()         # as in Discriminator1

    def score_and_noise(self, x):
        """D's scores (B,) and Q's guess of the noise (B, z_dim), for fakes."""
        h = self.trunk(x)
        return self.score(h).flatten().float(), self.Q(h).float()


# ---- losses ----
# D = sigmoid(s), so log D = logsigmoid(s) and log(1 - D) = logsigmoid(-s), finite for all scores s.

def discriminator_loss(s_real, s_fake):
    """-E log D(x) and -E log(1 - D(G(z))) in nats, from scores (B,) of real data and of fakes."""
    return -F.logsigmoid(s_real).mean(), -F.logsigmoid(-s_fake).mean()


def generator_loss(s_fake):
    """-E log D(G(z)), the non-saturating loss, from scores (B,) of fakes."""
    return -F.logsigmoid(s_fake).mean()


def conditional_loss(recovered, condition):
    """How far what E makes of a fake is from the condition that the fake was made for.

    Cross-entropy of logits (B, num_classes) if the condition is labels (B,); mean squared error if
    it is features, both (B, 16 width).
    """
    if condition.ndim == 1:
        return F.cross_entropy(recovered, condition)
    return F.mse_loss(recovered, condition)


# ---- one update of each player ----
# The same for both stacks: for G1 and D1 real data are features h1 (B, 16 width) and conditions
# labels y (B,), for G0 and D0 real data are images (B, C, H, H) and conditions features h1.

def noise(G, n):
    """z ~ N(0, I), (n, z_dim), on G's device."""
    return torch.randn(n, G.z_dim, device=next(G.parameters()).device)


def autocast(device, amp):
    """With --amp: bfloat16 where it is safe."""
    return torch.autocast(device.type, torch.bfloat16) if amp else contextlib.nullcontext()


def train_encoder(E, opt, real, y):
    """One step of E on images (B, C, H, H) in [-1, 1] with labels y (B,). Returns its loss, ()."""
    loss = F.cross_entropy(E(real), y)
    E.zero_grad()
    loss.backward()
    opt.step()
    return loss.detach()


def train_discriminator(G, D, opt, real, condition, *, ent_weight=0.3, amp=False):
    """One step of D and its head Q on real data and on one fake for each of the conditions.

    Returns two numbers, (2,): -E log D(x) and -E log(1 - D(G(z))).
    """
    z = noise(G, len(condition))
    with autocast(real.device, amp):
        with torch.no_grad():           # D's step needs no gradient through G
            fake = G(condition, z)
        s_real = D(real)                # apart: BatchNorm would mix them in one batch
        s_fake, z_hat = D.score_and_noise(fake)
    loss_real, loss_fake = discriminator_loss(s_real, s_fake)
    D.zero_grad()
    (loss_real + loss_fake + ent_weight * F.mse_loss(z_hat, z)).backward()
    opt.step()
    return torch.stack([loss_real, loss_fake]).detach()


def train_generator(G, D, opt, condition, E_i, *, adv_weight=1.0, cond_weight=1.0, ent_weight=0.3,
                    amp=False):
    """One step of G on one fake for each condition. E_i is what undoes G: E.E1 for G1, E.E0 for G0.

    Returns its three losses unweighted, (3,): adversarial, conditional and entropy.
    """
    z = noise(G, len(condition))
    with autocast(z.device, amp):
        fake = G(condition, z)
        s_fake, z_hat = D.score_and_noise(fake)
        recovered = E_i(fake)
    adv, ent = generator_loss(s_fake), F.mse_loss(z_hat, z)
    cond = conditional_loss(recovered.float(), condition)
    total = adv_weight * adv + cond_weight * cond + ent_weight * ent
    G.zero_grad()
    # through D, but for G's weights only: D's own are not needed, frozen ones would be refused
    total.backward(inputs=[w for w in G.parameters() if w.requires_grad])
    opt.step()
    return torch.stack([adv, cond, ent]).detach()


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
def sample(G1, G0, y, z1, z0):
    """G0(G1(y, z1), z0), (B, C, H, H) in [-1, 1], for labels y (B,).

    In eval mode: no image depends on the others of its batch.
    """
    G1.eval(), G0.eval()
    images = G0(G1(y, z1), z0)
    G1.train(), G0.train()
    return images


# ---- training ----

def pretrain(E, images, labels, args):
    """Train the classifier E, or read it from the cache in args.data_dir."""
    from common import batches
    key = hashlib.sha256(repr((E, args.encoder_epochs)).encode())
    for part in (images, labels):
        key.update(part.cpu().numpy())
    cache = Path(args.data_dir, "cache", f"encoder_{key.hexdigest()[:16]}.pt")
    with contextlib.suppress(Exception):        # there is none, or it is damaged: train
        E.load_state_dict(torch.load(cache, map_location=images.device, weights_only=True))
        print(f"encoder: from {cache}; delete that if you changed how E is trained")
        return
    opt = torch.optim.Adam(E.parameters(), lr=1e-3)
    steps = args.encoder_epochs * max(1, len(images) // 128)
    schedule = torch.optim.lr_scheduler.LinearLR(opt, start_factor=1, end_factor=0,
                                                 total_iters=steps)
    for epoch in range(args.encoder_epochs):
        losses = []
        for real, y in batches(images, 128, labels):
            losses.append(train_encoder(E, opt, real, y))
            schedule.step()
        print(f"encoder: pass {epoch + 1}/{args.encoder_epochs} "
              f"loss {torch.stack(losses).mean():.4f}", flush=True)
    temporary = Path(f"{cache}.{os.getpid()}.tmp")      # of this process, if several start at once
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        torch.save(E.state_dict(), temporary)
        os.replace(temporary, cache)
    except (OSError, RuntimeError) as error:    # RuntimeError: a full disk
        print(f"E is not cached, the next start trains it again: {error}", file=sys.stderr)
        with contextlib.suppress(OSError):
            os.remove(temporary)


def train(args, ckpt=None):
    """Train anew, or on from a checkpoint; all files go to args.out."""
    # imported here, so that all above this line works in a copy of this file alone, with torch only
    from common import batches, default_data, load_images, save_gif, save_grid, spread
    device = pick_device(args.device)
    if args.amp and device.type == "mps":
        fail("--amp: on cuda and cpu only")
    if args.data is None:
        args.data = default_data(args.data_dir)
    images, labels = load_images(args.data, args.data_dir, classes=args.classes, device=device,
                                 image_size=args.image_size, channels=args.channels)
    shape, n_batches = tuple(images.shape[1:]), max(1, len(images) // args.batch_size)
    if len(images) < 2 or not 8 <= shape[-1] <= 256:
        fail(f"--data {args.data}: {len(images)} image(s) of side {shape[-1]} to train on; take at "
             "least 2, and an --image-size from 8 to 256")
    if not labels.any():
        fail(f"--data {args.data}: all images are of one class, and E has nothing to learn; take a "
             "folder with a sub-folder for each of at least 2 classes")
    held, y_held = load_images(args.data, args.data_dir, train=False, classes=args.classes,
                               image_size=shape[-1], channels=shape[0], device=device)

    num_classes = int(labels.max()) + 1
    torch.manual_seed(0)                # E is the same for all seeds
    E = Encoder(shape, args.width, num_classes).to(device)
    if device.type == "cpu":            # there, max-pooling takes half the time in this layout
        E.to(memory_format=torch.channels_last)
    if not ckpt:
        pretrain(E, images, labels, args)
    E.eval().requires_grad_(False)      # it does not move any more
    torch.manual_seed(args.seed)        # so what follows is the same, whether E was cached or not
    layout = torch.channels_last if args.amp else torch.contiguous_format  # tensor cores like it
    G1 = Generator1(args.z1_dim, args.width, num_classes).to(device)
    D1 = Discriminator1(args.width, args.z1_dim).to(device)
    G0 = Generator0(args.z0_dim, shape, args.width).to(device, memory_format=layout)
    D0 = Discriminator0(shape, args.width, args.z0_dim).to(device, memory_format=layout)
    G1_ema, G0_ema = (copy.deepcopy(G).requires_grad_(False) for G in (G1, G0))
    graph = args.graph and device.type == "cuda"
    settings = dict(betas=(args.beta1, args.beta2), capturable=graph,
                    fused=device.type != "mps")     # one kernel for all weights; none on mps in 2.4
    # D0, with BatchNorm, is best slower than G0; D1, without, falls behind if it is not the faster
    opt_D1, opt_G0 = (torch.optim.Adam(net.parameters(), lr=args.lr, **settings)
                      for net in (D1, G0))
    opt_G1, opt_D0 = (torch.optim.Adam(net.parameters(), lr=args.lr_d or args.lr, **settings)
                      for net in (G1, D0))
    nets = {"E": E, "G1": G1, "D1": D1, "G0": G0, "D0": D0, "G1_ema": G1_ema, "G0_ema": G0_ema}
    opts = {"opt_G1": opt_G1, "opt_D1": opt_D1, "opt_G0": opt_G0, "opt_D0": opt_D0}
    # a row a class, the same for all grids, so that they show what changes
    y_grid = torch.arange(min(num_classes, 32), device=device).repeat_interleave(8)
    z1, z0 = noise(G1, len(y_grid)), noise(G0, len(y_grid))
    epoch, step, grids = 0, 0, []
    if ckpt:
        try:
            for name, net in nets.items():
                net.load_state_dict(ckpt[name])
            for name, opt in opts.items():      # their averages; the settings are those of this run
                opt.load_state_dict({**opt.state_dict(), "state": ckpt[name]["state"]})
        except (KeyError, RuntimeError, ValueError):
            fail(f"--resume {args.resume}: other networks "
                 "(--width, --z1-dim, --z0-dim, classes, image shape…?)")
        z1, z0 = ckpt["z1"].to(device), ckpt["z0"].to(device)
        epoch, step, grids = ckpt["epoch"], ckpt["step"], ckpt["grids"]
        if epoch >= args.epochs:
            fail(f"--epochs {args.epochs}: {args.resume} has done {epoch}; ask for more in total")
        torch.set_rng_state(ckpt["rng"])
        if device.type == "cuda" and ckpt["rng_cuda"] is not None:
            torch.cuda.set_rng_state(ckpt["rng_cuda"])

    out = Path(args.out)
    own = ckpt and out.absolute() == Path(args.resume).parent.absolute()
    if (out / "ckpt.pt").exists() and not own:
        fail(f"--out {out}: has a trained network; --resume that, or take another folder")
    writer = open_tensorboard(out, step) if args.tensorboard else None
    (out / "samples").mkdir(parents=True, exist_ok=True)
    columns = [name + i for i in "10" for name in ("loss_real", "loss_fake", "adv", "cond", "ent")]
    log = open_log(out / "log.csv", step, ("epoch", "step", *columns, "images/s"))
    save_grid(spread(images, 64) / 127.5 - 1, out / "samples/real.png")
    with torch.no_grad():
        guesses = torch.cat([E(part / 127.5 - 1).argmax(1) for part in held.split(1000)])
    right = (guesses == y_held).float().mean()
    print(f"{args.data}: {len(images):,} images {shape}, {num_classes} classes, "
          f"{n_batches} batches a pass, on {device}; E is right in {right:.2%} of held-back images")

    D_flags = dict(ent_weight=args.ent_weight, amp=args.amp)
    G_flags = dict(adv_weight=args.adv_weight, cond_weight=args.cond_weight, **D_flags)
    update_D1 = captured(lambda h1, y: train_discriminator(
        G1, D1, opt_D1, h1, y, **D_flags), graph)
    update_G1 = captured(lambda y: train_generator(G1, D1, opt_G1, y, E.E1, **G_flags), graph)
    update_D0 = captured(lambda x, h1: train_discriminator(
        G0, D0, opt_D0, x, h1, **D_flags), graph)
    update_G0 = captured(lambda h1: train_generator(G0, D0, opt_G0, h1, E.E0, **G_flags), graph)
    save_every = args.save_every or max(1, round(args.epochs / 40))
    remedy = "try a lower --lr, anew or from the last checkpoint"
    log_D1, log_G1, log_D0, log_G0, logged, since = [], [], [], [], step, time.perf_counter()
    while epoch < args.epochs:
        epoch += 1
        joint = epoch > args.independent_epochs
        for i, (real, y) in enumerate(batches(images, args.batch_size, labels), 1):
            step += 1
            with torch.no_grad():
                h1 = E.E0(real)
            log_D1.append(update_D1(h1, y))
            log_G1.append(update_G1(y))
            if joint:                   # no gradient reaches G1: it has its own losses
                with torch.no_grad():
                    h1 = G1(y, noise(G1, len(y)))
            log_D0.append(update_D0(real, h1))
            log_G0.append(update_G0(h1))
            update_ema(G1_ema, G1, args.ema, step)
            update_ema(G0_ema, G0, args.ema, step)

            if i == n_batches or time.perf_counter() > since + args.log_every:
                # means since the last line; within a pass the host waits for the device only here
                logs = log_D1, log_G1, log_D0, log_G0
                values = torch.cat([torch.stack(rows).mean(0) for rows in logs]).tolist()
                if not all(map(math.isfinite, values)):
                    fail(f"a loss is not finite at step {step}; {remedy}")
                speed = (step - logged) * len(real) / (time.perf_counter() - since)
                left = int(((args.epochs - epoch + 1) * n_batches - i) * len(real) / speed)
                print(f"epoch {epoch}/{args.epochs} {'joint ' * joint}step {step} ",
                      *(f"{name} {value:.4f}" for name, value in zip(columns, values)),
                      f" {speed:.0f} images/s, {left // 60}:{left % 60:02} left", flush=True)
                print(epoch, step, *values, speed, sep=",", file=log)
                if writer:
                    for name, value in zip(columns, values):
                        writer.add_scalar(name, value, step)
                log_D1, log_G1, log_D0, log_G0 = [], [], [], []
                logged, since = step, time.perf_counter()

        if epoch % save_every == 0 or epoch == args.epochs:
            if not all(w.isfinite().all() for net in (G1, D1, G0, D0)
                       for w in net.state_dict().values()):
                fail(f"a weight is not finite at step {step}; {remedy}")
            grids = [*grids, f"samples/{epoch:04}.png"]
            images_z = sample(G1_ema, G0_ema, y_grid, z1, z0)
            save_grid(images_z, out / grids[-1])
            if writer:
                writer.add_images("samples", images_z / 2 + 0.5, step)
            state = {"script": SCRIPT, "shape": shape, "num_classes": num_classes,
                     "epoch": epoch, "step": step, "grids": grids, "z1": z1, "z0": z0,
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
    """Write args.num images: one grid if args.out ends in .png, else a folder of single PNGs.

    As many of each class, in a grid a whole row or more, or args.label only; with --vary just one
    of z1 and z0 differs from image to image. The name of a single PNG begins with its class.
    """
    from common import save_grid
    device, out = pick_device(args.device), Path(args.out)
    try:
        width, num_classes = ckpt["args"]["width"], ckpt["num_classes"]
        G1 = Generator1(ckpt["args"]["z1_dim"], width, num_classes)
        G0 = Generator0(ckpt["args"]["z0_dim"], ckpt["shape"], width)
        G1.load_state_dict(ckpt["G1_ema"])
        G0.load_state_dict(ckpt["G0_ema"])
    except (KeyError, RuntimeError):
        fail(f"--sample {args.sample}: is of another Generator than those of this file")
    grid, num = out.suffix.lower() == ".png", args.num or 8 * num_classes
    columns = math.ceil(num / num_classes)
    if grid and args.label is None:
        num = num_classes * columns     # whole rows
    y = torch.arange(num) * num_classes // num
    if args.label is not None:
        if args.label >= num_classes:
            fail(f"--label {args.label}: the classes of this G are 0 to {num_classes - 1}")
        columns, y = 8, torch.full((num,), args.label)
    # drawn while G is on the CPU, so that a seed means the same images on every device
    torch.manual_seed(args.seed)
    z1, z0 = noise(G1, num), noise(G0, num)
    if args.vary == "z1":
        z0 = z0[:1].expand_as(z0)
    elif args.vary == "z0":
        z1 = z1[:1].expand_as(z1)
    G1.to(device), G0.to(device)
    parts = zip(*(v.to(device).split(500) for v in (y, z1, z0)))
    images = torch.cat([sample(G1, G0, *part).cpu() for part in parts])
    if grid:
        out.parent.mkdir(parents=True, exist_ok=True)
        save_grid(images, out, columns)
    else:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):          # samples of two runs in one folder would be measured as one
            fail(f"--out {out}: has files in it; take a new folder")
        for i, (image, label) in enumerate(zip(images, y)):
            save_grid(image[None], out / f"{label}_{i:05}.png")
    print(f"wrote {num} images to {out}")


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

THIS_RUN = ("out", "device", "resume", "sample", "num", "label", "vary")     # not in checkpoints


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
    arg("--batch-size", type=between(int, 2, 10**6), default=64, help="BatchNorm needs 2 or more")
    arg("--lr", type=between(float, 1e-9, 1), default=1e-3, help="learning rate of G0 and D1")
    arg("--lr-d", type=between(float, 0, 1), default=2e-4, help="of D0 and G1; 0: as --lr")
    arg("--beta1", type=fraction, default=0.0, help="of Adam")
    arg("--beta2", type=fraction, default=0.999, help="of Adam")
    arg("--z1-dim", type=between(int, 1, 10**5), default=50, help="numbers in z1, of G1")
    arg("--z0-dim", type=between(int, 1, 10**5), default=50, help="numbers in z0, of G0")
    arg("--width", type=between(int, 1, 10**4), default=16, help="channels of the largest maps")
    arg("--ema", type=fraction, default=0.999, help="decay of the average of G's weights")
    arg("--seed", type=between(int, 0, 2**63 - 1), default=0, help="of a new run or --sample")
    arg("--encoder-epochs", type=positive, default=4, help="passes over the data by E, at first")
    arg("--independent-epochs", type=between(int, 0, 10**9), default=5,
        help="passes with E's features for G0, before the joint ones with G1's")
    arg("--adv-weight", type=between(float, 0, 1e6), default=1.0, help="of the adversarial losses")
    arg("--cond-weight", type=between(float, 0, 1e6), default=1.0, help="of the conditional losses")
    arg("--ent-weight", type=between(float, 0, 1e6), default=0.3, help="of the entropy losses")
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
    group.add_argument("--num", type=between(int, 1, 10**6),
                       help="images to --sample; not given: 8 of each class")
    group.add_argument("--label", type=between(int, 0, 10**6), metavar="K",
                       help="with --sample: the class, from 0")
    group.add_argument("--vary", choices=("z1", "z0"),
                       help="with --sample: vary this one only, the other is fixed")
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
    if (args.label is not None or args.vary) and not args.sample:
        fail("--label, --vary: only with --sample")
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
