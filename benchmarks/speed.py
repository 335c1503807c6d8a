"""Seconds of a pass: each script beside the loop that most GAN code copies, and beside the machine.

    python benchmarks/speed.py                          # all six: about 10 minutes on 2 CPU cores
    python benchmarks/speed.py --scripts dcgan --image-size 64 --batch-size 512
    python benchmarks/speed.py --scripts wgan_gp --profile

The yardstick runs the same algorithm on the same networks with the same batch size in the way found
everywhere: images one by one through a DataLoader with ToTensor and Normalize, fakes for D's step
made with their graph and then detached, tensors of labels, D's weights collecting gradients in G's
step, optimizers without options, .item() after every step. Beside it the script's own updates, with
its defaults: on a CPU as they are; on a GPU eager, captured in CUDA graphs, and captured with
--amp. All loops run in turn, in many short rounds, so that what else the machine does slows them
alike. The table has medians; a ratio is to the yardstick in the same round, its range in brackets.
Of a script, all that it does in a step is timed: the batch, the updates, the moving average; of
stackedgan.py in the joint phase. On a GPU float32 convolutions may take TF32, whose higher rate is
not measured.
"""

import argparse
import copy
import importlib
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

sys.path.insert(0, str(Path(__file__).parent.parent))
import common

SCRIPTS = ("gan_mlp", "dcgan", "wgan_clip", "wgan_gp", "infogan", "stackedgan")


# ---- the loop that most code copies ----

class PlainImages(Dataset):
    """Images (N, C, H, W) and labels, one by one as torchvision.datasets.MNIST gives them."""

    def __init__(self, images, labels):
        from torchvision import transforms
        self.images, self.labels = images.permute(0, 2, 3, 1).numpy(), labels
        self.transform = transforms.Compose([transforms.ToTensor(),
                                             transforms.Normalize([0.5], [0.5])])

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        from PIL import Image
        return self.transform(Image.fromarray(self.images[i].squeeze())), int(self.labels[i])


def update(opt, loss):
    opt.zero_grad()
    loss.backward()
    opt.step()
    return loss.item()


def plain_gan(nets, opts, n_critic):
    """gan_mlp.py and dcgan.py: a function of a batch, its labels and the number of the step."""
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


def plain_wgan(nets, opts, n_critic, clip=None, gp_weight=None):
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
        if gp_weight is not None:
            loss = loss + gp_weight * penalty(real, fake)
        update(opt_D, loss)
        if clip is not None:
            for w in D.parameters():
                w.data.clamp_(-clip, clip)
        if t % n_critic == 0:
            update(opt_G, -D(G(torch.randn(len(real), G.z_dim, device=real.device))).mean())
    return step


def plain_infogan(nets, opts, n_critic):
    (G, D), (opt_G, opt_D), bce, mse = nets, opts, nn.BCELoss(), nn.MSELoss()
    K = G.categories[0]

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
        score, q = D.score_and_code(fake.detach())
        update(opt_D, bce(D(real).sigmoid(), valid) + bce(score.sigmoid(), invalid) + bound(q, *c))
        fake, *c = make()
        score, q = D.score_and_code(fake)
        update(opt_G, bce(score.sigmoid(), valid) + bound(q, *c))
    return step


def plain_stackedgan(nets, opts, n_critic, ent_weight):
    (E, G1, D1, G0, D0), (opt_G1, opt_D1, opt_G0, opt_D0) = nets, opts
    bce, mse, cross_entropy = nn.BCELoss(), nn.MSELoss(), nn.CrossEntropyLoss()

    def stack(G, D, opt_G, opt_D, x, condition, recover, conditional):
        valid = torch.ones(len(x), device=x.device)
        invalid = torch.zeros(len(x), device=x.device)
        z = torch.randn(len(x), G.z_dim, device=x.device)
        score, z_hat = D.score_and_noise(G(condition, z).detach())
        update(opt_D, bce(D(x).sigmoid(), valid) + bce(score.sigmoid(), invalid)
               + ent_weight * mse(z_hat, z))
        z = torch.randn(len(x), G.z_dim, device=x.device)
        fake = G(condition, z)
        score, z_hat = D.score_and_noise(fake)
        update(opt_G, bce(score.sigmoid(), valid) + conditional(recover(fake), condition)
               + ent_weight * mse(z_hat, z))

    def step(real, y, t):
        h1 = E.E0(real).detach()
        stack(G1, D1, opt_G1, opt_D1, h1, y, E.E1, cross_entropy)
        h1 = G1(y, torch.randn(len(y), G1.z_dim, device=y.device)).detach()
        stack(G0, D0, opt_G0, opt_D0, real, h1, E.E0, mse)
    return step


def yardstick(name, images, labels, args, device):
    """One pass of the usual loop."""
    nets, opts = players(name, tuple(images.shape[1:]), args, device)
    plain = {"infogan": plain_infogan, "stackedgan": plain_stackedgan,
             "wgan_clip": plain_wgan, "wgan_gp": plain_wgan}.get(name, plain_gan)
    own = {k: getattr(args, k) for k in ("clip", "gp_weight") if hasattr(args, k)}
    if name == "stackedgan":
        own = {"ent_weight": args.ent_weight}
    step = plain(nets, opts, getattr(args, "n_critic", 1), **own)
    data = PlainImages(images.cpu(), labels.cpu())
    loader = DataLoader(data, args.batch_size, shuffle=True, drop_last=True)

    def one_pass():
        for t, (real, y) in enumerate(loader, 1):
            step(real.to(device), y.to(device), t)
    return one_pass


# ---- the scripts ----

def players(name, shape, args, device, **fast):
    """The networks of a script and an optimizer of each player, with its defaults."""
    script, (channels, side, _) = importlib.import_module(name), shape
    if name == "stackedgan":
        E = script.Encoder(shape, args.width, args.num_classes).eval().requires_grad_(False)
        E.to(device)
        if fast and device.type == "cpu":       # as the script has it; not so in the yardstick
            E.to(memory_format=torch.channels_last)
        nets = [script.Generator1(args.z1_dim, args.width, args.num_classes),
                script.Discriminator1(args.width, args.z1_dim),
                script.Generator0(args.z0_dim, shape, args.width),
                script.Discriminator0(shape, args.width, args.z0_dim)]
    else:
        D = getattr(script, "Critic", None) or script.Discriminator
        nets = [script.Generator(args.z_dim, shape, args.width), D(shape, args.width)]
    layout = fast.pop("memory_format", torch.contiguous_format)
    nets = [net.to(device, memory_format=layout) for net in nets]
    make = torch.optim.RMSprop if name == "wgan_clip" else torch.optim.Adam
    if name != "wgan_clip":
        settings = dict(betas=(args.beta1, args.beta2))
    else:
        settings = dict(alpha=args.beta2)
        fast = {"foreach" if k == "fused" else k: v for k, v in fast.items()}
    opts = [make(net.parameters(), lr=args.lr, **settings, **fast) for net in nets]
    return ([E] if name == "stackedgan" else []) + nets, opts


def script_loop(name, images, labels, args, device, amp=False, graph=False):
    """One pass of the script's own updates, as in its train(), and one step of them."""
    script = importlib.import_module(name)
    nets, opts = players(
        name, tuple(images.shape[1:]), args, device, fused=device.type != "mps", capturable=graph,
        memory_format=torch.channels_last if amp and name != "gan_mlp" else torch.contiguous_format)
    n_critic = getattr(args, "n_critic", 1)
    averages = {G: copy.deepcopy(G).requires_grad_(False) for G in nets if hasattr(G, "z_dim")}

    def captured(function, *constant, **settings):
        return script.captured(lambda *x: function(*constant, *x, amp=amp, **settings), graph)

    if name == "stackedgan":
        E, G1, D1, G0, D0 = nets
        opt_G1, opt_D1, opt_G0, opt_D0 = opts
        update_D1 = captured(script.train_discriminator, G1, D1, opt_D1)
        update_G1 = captured(script.train_generator, G1, D1, opt_G1, E_i=E.E1)
        update_D0 = captured(script.train_discriminator, G0, D0, opt_D0)
        update_G0 = captured(script.train_generator, G0, D0, opt_G0, E_i=E.E0)

        def step(real, y, t):
            with torch.no_grad():
                h1 = E.E0(real)
            update_D1(h1, y), update_G1(y)
            with torch.no_grad():
                h1 = G1(y, script.noise(G1, len(y)))
            update_D0(real, h1), update_G0(h1)
            for G, average in averages.items():
                script.update_ema(average, G, args.ema, t)
    else:
        (G, D), (opt_G, opt_D) = nets, opts
        train_D = getattr(script, "train_critic", None) or script.train_discriminator
        update_D = captured(train_D, G, D, opt_D)
        update_G = captured(script.train_generator, G, D, opt_G, args.batch_size)

        def step(real, y, t):
            update_D(real)
            if t % n_critic == 0:
                update_G()
                script.update_ema(averages[G], G, args.ema, t // n_critic)

    def one_pass():
        for t, (real, y) in enumerate(common.batches(images, args.batch_size, labels), 1):
            step(real, y, t)
    return one_pass, step


# ---- measuring ----

class FlopCounter(TorchDispatchMode):
    """As torch's FlopCounterMode, which does not bear a gradient in a module's forward pass."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        self.total += formula(*args, **(kwargs or {}), out_val=result) if formula else 0
        return result


def flops(step, images, labels, args):
    """Floating-point operations of the products and convolutions in a step, mean over n_critic."""
    real, y = next(common.batches(images, args.batch_size, labels))
    n_critic = getattr(args, "n_critic", 1)
    with FlopCounter() as counter:
        for t in range(1, n_critic + 1):
            step(real, y, t)
    return counter.total / n_critic


def seconds(call, device):
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    synchronize()
    start = time.perf_counter()
    call()
    synchronize()
    return time.perf_counter() - start


def matmul_rate(device, size, dtype=torch.float32):
    """Floating-point operations a second in products of square matrices: the best of 20."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / min(seconds(lambda: a @ b, device) for _ in range(20))


def profile(one_pass, device, rows=12):
    """The kinds of work that a pass consists of, by their share of its time."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    kinds += [torch.profiler.ProfilerActivity.CUDA] if device.type == "cuda" else []
    with torch.profiler.profile(activities=kinds) as p:
        one_pass()

    def own(event):
        return event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total

    events = sorted(p.key_averages(), key=own, reverse=True)
    total = sum(map(own, events))
    for event in events[:rows]:
        print(f"    {own(event) / total:5.1%}  {event.key} ({event.count:,} times)")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--scripts", nargs="+", default=SCRIPTS, choices=SCRIPTS, metavar="NAME")
    parser.add_argument("--data", help="not given: mnist, else strokes")
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--image-size", type=int, default=0, help="0: the data's own")
    parser.add_argument("--images", type=int, default=3200, help="of a round, about")
    parser.add_argument("--batch-size", type=int, default=0, help="0: that of each script")
    parser.add_argument("--repeats", type=int, default=15, help="rounds")
    parser.add_argument("--amp", action="store_true", help="on a CPU, too")
    parser.add_argument("--profile", action="store_true", help="and where the time goes")
    parser.add_argument("--quick", action="store_true", help="only see that it runs")
    flags = parser.parse_args(argv)
    if flags.quick:
        flags.images, flags.repeats = 128, 1
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if flags.quick:
        images, labels, _, _ = common.strokes(128)
    else:
        data = flags.data or common.default_data(flags.data_dir)
        images, labels = common.load_images(data, flags.data_dir, image_size=flags.image_size)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    all_images, all_labels = images[order].to(device), labels[order].to(device)
    size = 256 if flags.quick else 8192 if device.type == "cuda" else 2048
    rates = {dtype: matmul_rate(device, size, dtype) for dtype in (torch.float32, torch.bfloat16)}
    machine = f"CPU, {torch.get_num_threads()} threads"
    if device.type == "cuda":
        machine = torch.cuda.get_device_name()
    print(f"torch {torch.__version__}, {machine}; matrix products: "
          f"float32 {rates[torch.float32] / 1e9:,.0f}, bfloat16 {rates[torch.bfloat16] / 1e9:,.0f} "
          f"GFLOP/s; medians of {flags.repeats} rounds of {flags.images:,} images "
          f"{tuple(images.shape[1:])}")
    print(f"{'':28} s / 60,000 images   images/s   of yardstick's time (range)   of matrix rate")
    for name in flags.scripts:
        args, _ = importlib.import_module(name).get_args([])
        args.batch_size = min(flags.batch_size or args.batch_size, len(all_images))
        args.num_classes = int(all_labels.max()) + 1
        cycle = getattr(args, "n_critic", 1) * args.batch_size      # G has a step in each
        images = all_images[:max(1, flags.images // cycle) * cycle]
        labels = all_labels[:len(images)]
        variants = {f"{name} eager": {}, f"{name} captured": dict(graph=True),
                    f"{name} captured --amp": dict(graph=True, amp=True)}
        if device.type != "cuda":
            variants = {name: {}, **({f"{name} --amp": dict(amp=True)} if flags.amp else {})}
        loops = {f"{name} yardstick": yardstick(name, images, labels, args, device)}
        work = flops(script_loop(name, images, labels, args, device)[1], images, labels, args)
        for variant, how in variants.items():
            loops[variant], _ = script_loop(name, images, labels, args, device, **how)
        times = {loop: [] for loop in loops}
        for call in loops.values():     # until graphs are captured, in G's fourth step
            for _ in range(1 + 4 * cycle // len(images)):
                call()
        for _ in range(flags.repeats):
            for loop, call in loops.items():
                times[loop].append(seconds(call, device))
        steps, usual = len(images) // args.batch_size, times[f"{name} yardstick"]
        for loop, rounds in times.items():
            t = statistics.median(rounds) / steps
            ratios = [a / b for a, b in zip(rounds, usual)]     # of the same round
            spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            rate = rates[torch.bfloat16 if "amp" in loop else torch.float32]
            share = "" if rounds is usual else f"{work / t / rate:17.1%}"
            print(f"{loop:28}{60_000 / args.batch_size * t:18.1f}{args.batch_size / t:11,.0f}"
                  f"{spread:>30}{share}", flush=True)
        if flags.profile:
            profile(loops[list(loops)[-1]], device)


if __name__ == "__main__":
    main()
