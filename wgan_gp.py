"""Wasserstein GAN with gradient penalty (Gulrajani et al. 2017, arXiv:1704.00028, Algorithm 1).

A generator G turns random noise z into an image G(z), called a fake. A critic D gives an image x a
score D(x), which can be any number. Each E is the mean over the variable in its term: training
images x, noise z ~ N(0, I), or x_hat = eps x + (1 - eps) G(z), a random point between the two, with
eps ~ U[0, 1]. grad is the gradient of D with respect to the image, and ||grad||_2 is its length.

    D maximises  W - gp_weight E (||grad D(x_hat)||_2 - 1)^2,   W = E D(x) - E D(G(z))
    G maximises  E D(G(z)),  with one step of G after every n_critic = 5 steps of D

Why a penalty: the norm of the gradient is the slope of D. The largest W over all D whose slope is
at most 1 everywhere is the earth mover's distance, the least total work of moving the fakes onto
the real images (see wgan_clip.py). Clipping the weights also bounds the slope, but leaves D only
simple functions. Here the weights are free, and the penalty pulls the gradient norm towards 1.
(gp_weight is the paper's lambda, 10.) The penalty is no strict bound, and D is not perfect, so
compare values of W within one run only.

Why a norm of 1, rather than at most 1: the cheapest transport plan pairs real images with fakes. On
the straight line between the images of a pair, the best D has a gradient norm of 1 (Proposition 1).
So asking for 1 costs D nothing there. (In the paper, at most 1 worked nearly as well.)

Why at points between x and G(z): a penalty can test D at a few points only, not everywhere in a
space of 784 dimensions, and the points between real images and fakes matter most. The pairs of the
cheapest plan are unknown, so x and G(z) are paired at random, which works well in practice.

Why no BatchNorm in D: the penalty is about the gradient of one image's score with respect to that
image, and BatchNorm makes a score depend on the whole batch. LayerNorm and InstanceNorm do not.

What differs from the paper: the learning rate is 1e-3 instead of 1e-4; G and D each have a hidden
fully connected layer; batches and networks are smaller; and samples come from G_ema, an averaged G.

In a healthy run grad_norm rises above 1 and then nears it. W rises while D learns and then falls as
the fakes improve. W_val, measured at each save, is W for held-out images: W less D's mean score of
training images, plus that of held-out images. If W_val stays far below W, D overfits. D(x), D(G(z))
and loss_G mean nothing alone: a constant added to all scores changes no gradient.

    python wgan_gp.py --epochs 50                       # MNIST, 50 epochs, into out/wgan_gp
    python wgan_gp.py --sample out/wgan_gp/ckpt.pt      # 64 new images: out/wgan_gp/sample.png
    python wgan_gp.py --data FOLDER --image-size 32 --out out/mine      # your own images
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

SCRIPT = "wgan_gp"


def get_args(argv=None, **defaults):
    """Return the settings of the command line argv. `defaults` replace those below."""
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    arg = parser.add_argument
    arg("--data", help="mnist, fashion-mnist, cifar10, digits or a folder; None: mnist if possible")
    arg("--data-dir", default="data", help="where downloads are kept")
    arg("--classes", nargs="+", help="train on these classes only, by name or number")
    arg("--image-size", type=int, default=0, help="side in pixels; 0: the data's, 64 for folders")
    arg("--epochs", type=int, default=0, help="passes over the data; 0: about 18,000 steps of D")
    arg("--batch-size", type=int, default=32, help="real images in each step")
    arg("--lr", type=float, default=1e-3, help="learning rate of G")
    arg("--lr-d", type=float, default=1e-3, help="learning rate of D")
    arg("--beta1", type=float, default=0.0, help="Adam's decay of the average gradient (momentum)")
    arg("--beta2", type=float, default=0.9, help="Adam's decay of the average squared gradient")
    arg("--n-critic", type=int, default=5, help="steps of D for each step of G")
    arg("--gp-weight", type=float, default=10.0, help="weight of the gradient penalty")
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


class Critic(nn.Module):
    """Turns images (B, C, H, H) into scores (B,), without a sigmoid or tanh at the end."""

    def __init__(self, shape, width):
        super().__init__()
        sizes = map_sizes(shape[-1], 4)                                         # 28, 14, 7, 4
        channels = [shape[0], *(width * 2**i for i in range(len(sizes) - 1))]   # 1, 16, 32, 64
        layers, hidden = [], 32 * width
        for i in range(len(sizes) - 1):
            n_in, n_out, kernel = channels[i], channels[i + 1], 3 if sizes[i] % 2 else 4
            layers.append(nn.Conv2d(n_in, n_out, kernel, stride=2, padding=1))
            layers.append(nn.LeakyReLU(0.2))
        layers += [nn.Flatten(), nn.Linear(channels[-1] * sizes[-1]**2, hidden)]
        layers += [nn.LeakyReLU(0.2), nn.Linear(hidden, 1)]
        self.net = nn.Sequential(*layers, nn.Flatten(0))
        self.apply(init_weights)

    def forward(self, x):
        return self.net(x)


# ---- losses ----

def critic_loss(s_real, s_fake):
    """Return -W, the mean of D(G(z)) less that of D(x), from the scores (B,) of x and G(z)."""
    return s_fake.mean() - s_real.mean()


def generator_loss(s_fake):
    """Return the mean of -D(G(z)), from the scores (B,) of G(z)."""
    return -s_fake.mean()


def gradient_penalty(D, real, fake):
    """Return the penalty of equation 3, E (||grad D(x_hat)||_2 - 1)^2, and the mean gradient norm.

    real and fake must have the same shape (B, ...), and D must return one score for each image, or
    you get a ValueError. Detach fake from G. BatchNorm that updates its statistics gives a
    RuntimeError. Other layers that mix images give a wrong penalty. Do not use autocast.
    """
    if real.shape != fake.shape:
        raise ValueError(f"real has shape {tuple(real.shape)}, but fake has {tuple(fake.shape)}")

    def total_score(x):
        scores = D(x)
        if scores.numel() != len(x):
            raise ValueError("D must return one score for each image: the mean, if it has patches")
        return scores.sum()

    eps = torch.rand((len(real),) + (1,) * (real.ndim - 1), device=real.device)     # (B, 1, 1, 1)
    x_hat = eps * real + (1 - eps) * fake
    # Score i depends on image i only, so row i of the sum's gradient is the gradient of score i.
    # func.grad is autograd.grad with create_graph=True, but raises if BatchNorm updates statistics.
    gradient = torch.func.grad(total_score)(x_hat)
    norm = gradient.flatten(1).norm(dim=1)      # one norm for each image, (B,)
    return (norm - 1).square().mean(), norm.mean()


# ---- one step of each player; what these functions return is shown in the log ----

def noise(G, n):
    """Return n noise vectors z ~ N(0, I) as a tensor (n, z_dim) on G's device."""
    return torch.randn(n, G.z_dim, device=next(G.parameters()).device)


def train_critic(G, D, opt, real, gp_weight):
    """Take one step of D on real images (B, C, H, H) in [-1, 1] and as many fakes."""
    with torch.no_grad():               # no gradients for G; its BatchNorm still updates statistics
        fake = G(noise(G, len(real)))
    # One call is faster than two and gives the same scores: no layer of D mixes images.
    s_real, s_fake = D(torch.cat([real, fake])).chunk(2)
    loss_D = critic_loss(s_real, s_fake)
    penalty, norm = gradient_penalty(D, real, fake)
    opt.zero_grad()
    (loss_D + gp_weight * penalty).backward()
    opt.step()
    return {"W": -loss_D, "D(x)": s_real.mean(), "D(G(z))": s_fake.mean(), "grad_norm": norm}


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
    held_out, *_ = load_images(args.data, args.data_dir, classes=args.classes,
                               image_size=args.image_size, train=False)
    seen, held_out = (spread(x, 1000).to(args.device) / 127.5 - 1 for x in (images, held_out))
    images, labels = images.to(args.device), labels.to(args.device)     # all images, as uint8
    shape = tuple(images.shape[1:])
    n_batches = max(1, len(images) // args.batch_size)      # a last, shorter batch is left out
    args.epochs = args.epochs or max(1, round(18_000 / n_batches))
    args.save_every = args.save_every or max(1, args.epochs // 40)
    print(f"{len(images)} images {shape}, {args.epochs} epochs of {n_batches} steps, {args.device}")

    G = Generator(args.z_dim, shape, args.width, args.upsample).to(args.device)
    D = Critic(shape, args.width).to(args.device)
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
            stats = train_critic(G, D, opt_D, real, args.gp_weight)
            if step % args.n_critic == 0:
                stats |= train_generator(G, D, opt_G, len(real))
                update_ema(G_ema, G, args.ema, step // args.n_critic)
            for name, value in stats.items():
                since_log[name].append(torch.as_tensor(value).detach().float())     # or a float

            if step % args.log_every == 0 or save and i == n_batches:
                # Only here does the CPU wait for the GPU, as .item() needs the values.
                means = {name: torch.stack(v).mean().item() for name, v in since_log.items()}
                since_log.clear()
                if save and i == n_batches:
                    with torch.no_grad():
                        means["W_val"] = means["W"] - (D(seen).mean() - D(held_out).mean()).item()
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
    G = Generator(args.z_dim, ckpt["shape"], args.width, args.upsample)
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
