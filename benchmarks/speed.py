"""Time each script against the training loop that most GAN code copies.

    python benchmarks/speed.py                          # all six: about 12 minutes on 2 CPU cores
    python benchmarks/speed.py --scripts dcgan --image-size 64 --batch-size 512

The usual loop is the yardstick. It trains the same networks with the same batch size, but loads
images one by one through a DataLoader with ToTensor and Normalize, builds a graph through G for the
fakes of D's step and then detaches them, makes tensors of labels, collects gradients for D in G's
step, has optimizers without options, and calls .item() after every step.

The script's loop is that of its train() at default settings: the batch, the steps of both players
and the moving average (of stackedgan, the joint phase). On a GPU, it also runs with the CUDA graphs
of extras/graphs.py.

The loops take turns in many short rounds, so that other work on the machine slows them alike. The
table shows medians. Its ratios compare a loop with the yardstick in the same round, and
brackets hold the lowest and the highest.
"""

import argparse
import copy
import importlib
import statistics
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn as nn
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

sys.path.insert(0, str(Path(__file__).parent.parent))
import common


# ---- steps: each function returns one, which takes a batch, its labels and its number ----
# The plain_ functions take a step as most code does, and the own_ functions as the script does.

def update(opt, loss):
    opt.zero_grad()
    loss.backward()
    opt.step()
    return loss.item()


def plain_gan(script, nets, opts, args):
    (G, D), (opt_G, opt_D), bce = nets, opts, nn.BCELoss()

    def step(real, y, t):
        valid = torch.ones(len(real), device=real.device)
        invalid = torch.zeros(len(real), device=real.device)
        fake = G(torch.randn(len(real), G.z_dim, device=real.device))
        loss_real = bce(D(real).sigmoid(), valid)
        loss_fake = bce(D(fake.detach()).sigmoid(), invalid)
        update(opt_D, (loss_real + loss_fake) / 2)
        fake = G(torch.randn(len(real), G.z_dim, device=real.device))
        update(opt_G, bce(D(fake).sigmoid(), valid))
    return step


def own_gan(script, nets, opts, args):
    (G, D), (opt_G, opt_D) = nets, opts
    G_ema = copy.deepcopy(G).requires_grad_(False)
    loss = [args.loss] if script.SCRIPT == "gan_mlp" else []    # the other script has only one

    def step(real, y, t):
        script.train_discriminator(G, D, opt_D, real)
        script.train_generator(G, D, opt_G, len(real), *loss)
        script.update_ema(G_ema, G, args.ema, t)
    return step


def plain_wgan(script, nets, opts, args):
    (G, D), (opt_G, opt_D) = nets, opts

    def penalty(real, fake):
        eps = torch.rand(len(real), 1, 1, 1, device=real.device)
        x_hat = (eps * real + (1 - eps) * fake).requires_grad_(True)
        scores = D(x_hat)
        gradient, = torch.autograd.grad(scores, x_hat, torch.ones_like(scores), create_graph=True,
                                        retain_graph=True)
        return ((gradient.flatten(1).norm(2, dim=1) - 1)**2).mean()

    def step(real, y, t):
        fake = G(torch.randn(len(real), G.z_dim, device=real.device)).detach()
        loss = D(fake).mean() - D(real).mean()
        if script.SCRIPT == "wgan_gp":
            loss = loss + args.gp_weight * penalty(real, fake)
        update(opt_D, loss)
        if script.SCRIPT == "wgan_clip":
            for w in D.parameters():
                w.data.clamp_(-args.clip, args.clip)
        if t % args.n_critic == 0:
            update(opt_G, -D(G(torch.randn(len(real), G.z_dim, device=real.device))).mean())
    return step


def own_wgan(script, nets, opts, args):
    (G, D), (opt_G, opt_D) = nets, opts
    G_ema = copy.deepcopy(G).requires_grad_(False)
    limit = args.clip if script.SCRIPT == "wgan_clip" else args.gp_weight

    def step(real, y, t):
        script.train_critic(G, D, opt_D, real, limit)
        if t % args.n_critic == 0:
            script.train_generator(G, D, opt_G, len(real))
            script.update_ema(G_ema, G, args.ema, t // args.n_critic)
    return step


def plain_infogan(script, nets, opts, args):
    (G, D), (opt_G, opt_D), bce, mse, K = nets, opts, nn.BCELoss(), nn.MSELoss(), args.categories

    def bound(q, digit, numbers):
        return F.cross_entropy(q[:, :K], digit) + mse(q[:, K:], numbers) * G.num_codes / 2

    def step(real, y, t):
        valid = torch.ones(len(real), device=real.device)
        invalid = torch.zeros(len(real), device=real.device)

        def make():
            z = torch.randn(len(real), G.z_dim, device=real.device)
            digit = torch.randint(0, K, (len(real),), device=real.device)
            numbers = torch.rand(len(real), G.num_codes, device=real.device) * 2 - 1
            c = torch.cat([F.one_hot(digit, K).float(), numbers], 1)
            return G(z, c), digit, numbers

        fake, *c = make()
        (s_real, _), (s_fake, q) = D(real), D(fake.detach())
        _, q_bent = D(script.bent(fake.detach(), args.bend))
        loss = bce(s_real.sigmoid(), valid) + bce(s_fake.sigmoid(), invalid)
        update(opt_D, loss + bound(torch.cat([q_bent[:, :K], q[:, K:]], 1), *c))
        fake, *c = make()
        score, q = D(fake)
        update(opt_G, bce(score.sigmoid(), valid) + bound(q, *c))
    return step


def own_infogan(script, nets, opts, args):
    (G, D), (opt_G, opt_D) = nets, opts
    G_ema, D_ema = (copy.deepcopy(net).requires_grad_(False) for net in nets)

    def step(real, y, t):
        script.train_discriminator(G, D, opt_D, real, args.cat_weight, args.code_weight, args.bend,
                                   labels=None)
        script.train_generator(G, D, opt_G, len(real), args.cat_weight, args.code_weight)
        script.update_ema(G_ema, G, args.ema, t)
        script.update_ema(D_ema, D, args.ema, t)
    return step


def plain_stackedgan(script, nets, opts, args):
    (E, G1, D1, G0, D0), (opt_G1, opt_D1, opt_G0, opt_D0) = nets, opts
    bce, mse, cross_entropy = nn.BCELoss(), nn.MSELoss(), nn.CrossEntropyLoss()

    def stack(G, D, opt_G, opt_D, x, condition, recover, conditional):
        valid = torch.ones(len(x), device=x.device)
        invalid = torch.zeros(len(x), device=x.device)
        z = torch.randn(len(x), G.z_dim, device=x.device)
        (s_real, _), (s_fake, z_hat) = D(x), D(G(condition, z).detach())
        update(opt_D, bce(s_real.sigmoid(), valid) + bce(s_fake.sigmoid(), invalid)
               + args.ent_weight * mse(z_hat, z))
        z = torch.randn(len(x), G.z_dim, device=x.device)
        fake = G(condition, z)
        s_fake, z_hat = D(fake)
        update(opt_G, bce(s_fake.sigmoid(), valid) + conditional(recover(fake), condition)
               + args.ent_weight * mse(z_hat, z))

    def step(real, y, t):
        h1 = E.E0(real).detach()
        stack(G1, D1, opt_G1, opt_D1, h1, y, E.E1, cross_entropy)
        h1 = G1(y, torch.randn(len(y), G1.z_dim, device=y.device)).detach()
        stack(G0, D0, opt_G0, opt_D0, real, h1, E.E0, mse)
    return step


def own_stackedgan(script, nets, opts, args):
    (E, G1, D1, G0, D0), (opt_G1, opt_D1, opt_G0, opt_D0) = nets, opts
    E.to(memory_format=torch.channels_last)
    G1_ema, G0_ema = (copy.deepcopy(G).requires_grad_(False) for G in (G1, G0))
    weights = args.adv_weight, args.cond_weight, args.ent_weight

    def step(real, y, t):
        with torch.no_grad():
            h1 = E.E0(real)
        script.train_discriminator(G1, D1, opt_D1, h1, y, args.ent_weight)
        script.train_generator(G1, D1, opt_G1, y, E.E1, F.cross_entropy, *weights)
        with torch.no_grad():
            h1 = G1(y, script.noise(G1, len(y)))
        script.train_discriminator(G0, D0, opt_D0, real, h1, args.ent_weight)
        script.train_generator(G0, D0, opt_G0, h1, E.E0, F.mse_loss, *weights)
        script.update_ema(G1_ema, G1, args.ema, t)
        script.update_ema(G0_ema, G0, args.ema, t)
    return step


STEPS = {"gan_mlp": (plain_gan, own_gan), "dcgan": (plain_gan, own_gan),
         "wgan_clip": (plain_wgan, own_wgan), "wgan_gp": (plain_wgan, own_wgan),
         "infogan": (plain_infogan, own_infogan),
         "stackedgan": (plain_stackedgan, own_stackedgan)}


# ---- loops: each function returns one, which trains for an epoch on these images ----

class PlainImages(Dataset):
    """Images (N, C, H, W) and labels (N,), one by one, as torchvision.datasets.MNIST has them."""

    def __init__(self, images, labels):
        self.images, self.labels = images.permute(0, 2, 3, 1).numpy(), labels
        self.transform = transforms.Compose([transforms.ToTensor(),
                                             transforms.Normalize([0.5], [0.5])])

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.transform(Image.fromarray(self.images[i].squeeze())), int(self.labels[i])


def players(script, shape, args, device, **options):
    """Return the networks of a script, and an optimizer with `options` for each that learns.

    All have the same learning rate here, because it does not change the speed.
    """
    if script.SCRIPT == "stackedgan":
        E = script.Encoder(shape, args.width, args.num_classes).eval().requires_grad_(False)
        nets = [E, script.Generator1(args.z1_dim, args.width, args.num_classes),
                script.Discriminator1(args.width, args.z1_dim),
                script.Generator0(args.z0_dim, shape, args.width),
                script.Discriminator0(shape, args.width, args.z0_dim)]
    elif script.SCRIPT == "infogan":
        K, num_codes = args.categories, args.num_codes
        nets = [script.Generator(args.z_dim, shape, args.width, K, num_codes),
                script.Discriminator(shape, args.width, K + num_codes)]
    else:
        D = script.Critic if "wgan" in script.SCRIPT else script.Discriminator
        upsample = [] if script.SCRIPT == "gan_mlp" else [args.upsample]
        nets = [script.Generator(args.z_dim, shape, args.width, *upsample), D(shape, args.width)]
    nets = [net.to(device) for net in nets]
    learning = [net.parameters() for net in nets if next(net.parameters()).requires_grad]
    if script.SCRIPT == "wgan_clip":
        return nets, [torch.optim.RMSprop(w, 1e-4, args.alpha, **options) for w in learning]
    betas = args.beta1, args.beta2
    return nets, [torch.optim.Adam(w, 1e-4, betas, **options) for w in learning]


def plain_loop(script, images, labels, args):
    plain, _ = STEPS[script.SCRIPT]
    step = plain(script, *players(script, tuple(images.shape[1:]), args, images.device), args)
    data = PlainImages(images.cpu(), labels.cpu())
    loader = DataLoader(data, args.batch_size, shuffle=True, drop_last=True)

    def epoch():
        for t, (real, y) in enumerate(loader, 1):
            step(real.to(images.device), y.to(images.device), t)
    return epoch


def own_loop(script, images, labels, args, graphs=False):
    _, own = STEPS[script.SCRIPT]
    options = {"foreach": True} if script.SCRIPT == "wgan_clip" else {"fused": True}
    if graphs:                          # what extras/graphs.py changes
        from extras.graphs import GraphedStep
        options["capturable"] = True
        steps = {f: GraphedStep(step) for f, step in vars(script).items() if f.startswith("train_")}
        script = SimpleNamespace(**{**vars(script), **steps})
    nets, opts = players(script, tuple(images.shape[1:]), args, images.device, **options)
    step = own(script, nets, opts, args)

    def epoch():
        for t, (real, y) in enumerate(common.batches(images, labels, args.batch_size), 1):
            step(real, y, t)
    return epoch


# ---- measuring ----

def seconds(call):
    synchronize = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    synchronize()
    start = time.perf_counter()
    call()
    synchronize()
    return time.perf_counter() - start


def compare(name, images, labels, flags):
    """Time the loops of one script, and print a line for each."""
    script = importlib.import_module(name)
    args = script.get_args([])
    args.batch_size = min(flags.batch_size or args.batch_size, len(images))
    args.num_classes = int(labels.max()) + 1
    cycle = getattr(args, "n_critic", 1) * args.batch_size      # images for each step of G
    images = images[:max(1, flags.images // cycle) * cycle]
    labels = labels[:len(images)]
    loops = {f"{name} yardstick": plain_loop(script, images, labels, args),
             name: own_loop(script, images, labels, args)}
    warm_up = 1
    if torch.cuda.is_available():
        loops[f"{name} with graphs"] = own_loop(script, images, labels, args, graphs=True)
        warm_up = 4                     # the fourth step of each player records its graph
    for call in warm_up * [*loops.values()]:
        call()
    times = {loop: [] for loop in loops}
    for _ in range(flags.repeats):
        for loop, call in loops.items():
            times[loop].append(seconds(call))
    for loop, rounds in times.items():
        ratios = [a / b for a, b in zip(rounds, times[f"{name} yardstick"])]
        ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"{loop:28}{60_000 / len(images) * statistics.median(rounds):18.1f}{ratio:>30}",
              flush=True)


def main(argv=None):
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    arg = parser.add_argument
    arg("--scripts", nargs="+", default=[*STEPS], choices=STEPS, metavar="NAME",
        help="names without .py")
    arg("--data", help="None: mnist, or digits where mnist cannot be downloaded")
    arg("--data-dir", default="data", help="where downloads are kept")
    arg("--image-size", type=int, default=0, help="side in pixels; 0: as in the data")
    arg("--images", type=int, default=3200, help="about how many images a round has")
    arg("--batch-size", type=int, default=0, help="0: the default of each script")
    arg("--repeats", type=int, default=15, help="how many rounds")
    arg("--quick", action="store_true", help="only check that everything runs")
    flags = parser.parse_args(argv)
    if flags.quick:
        flags.batch_size, flags.images, flags.repeats = 8, 8, 1
        images, labels, _, _ = common.digits(100)
    else:
        images, labels, _ = common.load_images(flags.data or common.default_data(flags.data_dir),
                                               flags.data_dir, image_size=flags.image_size)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    images, labels = images[order].to(device), labels[order].to(device)
    machine = f"CPU, {torch.get_num_threads()} threads"
    if device == "cuda":
        machine = torch.cuda.get_device_name()
        torch.cuda.set_stream(torch.cuda.Stream())      # the default stream cannot be recorded
    print(f"torch {torch.__version__}, {machine}; medians of {flags.repeats} rounds of about "
          f"{flags.images:,} images {tuple(images.shape[1:])}")
    print(f"{'':28} s / 60,000 images   ratio to yardstick (range)")
    for name in flags.scripts:
        compare(name, images, labels, flags)


if __name__ == "__main__":
    main()
