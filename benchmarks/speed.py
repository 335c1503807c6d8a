"""Time each script against the training loop that most GAN code copies, and against the machine.

    python benchmarks/speed.py                          # all six: about 5 minutes on 2 CPU cores
    python benchmarks/speed.py --scripts dcgan --image-size 64 --batch-size 512
    python benchmarks/speed.py --scripts wgan_gp --profile

The usual loop is the yardstick. It trains the same networks with the same batch size, but loads
images one by one through a DataLoader with ToTensor and Normalize, builds a graph through G for the
fakes of D's step and then detaches them, makes tensors of labels, collects gradients for D in G's
step, has optimizers without options, and calls .item() after every step.

The script's loop is that of its train() at default settings: the batch, the updates and the moving
average (of stackedgan, the joint phase). On a GPU it runs three times: eager, with CUDA graphs, and
with CUDA graphs and --amp.

All loops take turns in many short rounds, so that other work on the machine slows them alike. The
table shows medians. Its ratios compare a loop with the yardstick in the same round, and brackets
hold the lowest and the highest. The last column is the share of the machine's rate in large matrix
products that a loop reaches. On a GPU, float32 convolutions may use TF32, whose rate is higher.
"""

import argparse
import copy
import importlib
import statistics
import sys
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import flop_registry

sys.path.insert(0, str(Path(__file__).parent.parent))
import common


# ---- the loop that most code copies ----

class PlainImages(Dataset):
    """Images (N, C, H, W) and labels (N,), one by one, as torchvision.datasets.MNIST has them."""

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


def plain_gan(nets, opts, args):
    """The step of gan_mlp and dcgan: a function of a batch, its labels and the step's number."""
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


def plain_wgan(nets, opts, args):
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
        if hasattr(args, "gp_weight"):
            loss = loss + args.gp_weight * penalty(real, fake)
        update(opt_D, loss)
        if hasattr(args, "clip"):
            for w in D.parameters():
                w.data.clamp_(-args.clip, args.clip)
        if t % args.n_critic == 0:
            update(opt_G, -D(G(torch.randn(len(real), G.z_dim, device=real.device))).mean())
    return step


def plain_infogan(nets, opts, args):
    from infogan import bent
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
        _, q_bent = D(bent(fake.detach(), args.bend))
        loss = bce(s_real.sigmoid(), valid) + bce(s_fake.sigmoid(), invalid)
        update(opt_D, loss + bound(torch.cat([q_bent[:, :K], q[:, K:]], 1), *c))
        fake, *c = make()
        score, q = D(fake)
        update(opt_G, bce(score.sigmoid(), valid) + bound(q, *c))
    return step


def plain_stackedgan(nets, opts, args):
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


PLAIN_STEPS = {"gan_mlp": plain_gan, "dcgan": plain_gan, "wgan_clip": plain_wgan,
               "wgan_gp": plain_wgan, "infogan": plain_infogan, "stackedgan": plain_stackedgan}


def yardstick(name, images, labels, args, device):
    """A function that trains for one epoch on these images in the usual way."""
    step = PLAIN_STEPS[name](*players(name, tuple(images.shape[1:]), args, device), args)
    data = PlainImages(images.cpu(), labels.cpu())
    loader = DataLoader(data, args.batch_size, shuffle=True, drop_last=True)

    def epoch():
        for t, (real, y) in enumerate(loader, 1):
            step(real.to(device), y.to(device), t)
    return epoch


# ---- the scripts ----

def players(name, shape, args, device, **options):
    """The networks of a script and an optimizer for each player.

    All have the same learning rate here: it does not change the speed.
    """
    script = importlib.import_module(name)
    if name == "stackedgan":
        E = script.Encoder(shape, args.width, args.num_classes).eval().requires_grad_(False)
        frozen = [E.to(device)]
        nets = [script.Generator1(args.z1_dim, args.width, args.num_classes),
                script.Discriminator1(args.width, args.z1_dim),
                script.Generator0(args.z0_dim, shape, args.width),
                script.Discriminator0(shape, args.width, args.z0_dim)]
    else:
        D = getattr(script, "Critic", None) or script.Discriminator
        frozen, nets = [], [script.Generator(args.z_dim, shape, args.width), D(shape, args.width)]
    nets = [net.to(device) for net in nets]
    if name == "wgan_clip":
        optimizer = partial(torch.optim.RMSprop, lr=args.lr, alpha=args.beta2, **options)
    else:
        optimizer = partial(torch.optim.Adam, lr=args.lr, betas=(args.beta1, args.beta2), **options)
    return frozen + nets, [optimizer(net.parameters()) for net in nets]


def script_loop(name, images, labels, args, device, amp=False, graph=False):
    """A function that trains for one epoch on these images, as the script's train() does."""
    script = importlib.import_module(name)
    kernels = {"foreach": True} if name == "wgan_clip" else {"fused": True}
    nets, opts = players(name, tuple(images.shape[1:]), args, device, capturable=graph, **kernels)
    autocast = torch.autocast(device.type, torch.bfloat16) if amp else nullcontext()

    def prepare(function, *constant, **settings):
        update = partial(function, *constant, amp=autocast, **settings)
        return script.GraphedUpdate(update) if graph else update

    if name == "stackedgan":
        E, G1, D1, G0, D0 = nets
        opt_G1, opt_D1, opt_G0, opt_D0 = opts
        E.to(memory_format=torch.channels_last)     # as in train(), but not in the yardstick
        G1_ema, G0_ema = (copy.deepcopy(G).requires_grad_(False) for G in (G1, G0))
        update_D1 = prepare(script.train_discriminator, G1, D1, opt_D1)
        update_G1 = prepare(script.train_generator, G1, D1, opt_G1, E_i=E.E1)
        update_D0 = prepare(script.train_discriminator, G0, D0, opt_D0)
        update_G0 = prepare(script.train_generator, G0, D0, opt_G0, E_i=E.E0)

        def step(real, y, t):
            with torch.no_grad():
                h1 = E.E0(real)
            update_D1(h1, y)
            update_G1(y)
            with torch.no_grad():
                h1 = G1(y, script.noise(G1, len(y)))
            update_D0(real, h1)
            update_G0(h1)
            script.update_ema(G1_ema, G1, args.ema, t)
            script.update_ema(G0_ema, G0, args.ema, t)
    else:
        (G, D), (opt_G, opt_D) = nets, opts
        G_ema, D_ema = (copy.deepcopy(net).requires_grad_(False) for net in (G, D))
        n_critic = getattr(args, "n_critic", 1)
        train_D = getattr(script, "train_critic", None) or script.train_discriminator
        update_D = prepare(train_D, G, D, opt_D)
        update_G = prepare(script.train_generator, G, D, opt_G,
                           *([] if name == "gan_mlp" else [args.batch_size]))

        def step(real, y, t):
            update_D(real)
            if t % n_critic == 0:
                update_G(*([real] if name == "gan_mlp" else []))
                script.update_ema(G_ema, G, args.ema, t // n_critic)
            if name == "infogan":
                script.update_ema(D_ema, D, args.ema, t)

    def epoch():
        for t, (real, y) in enumerate(common.batches(images, args.batch_size, labels), 1):
            step(real, y, t)
    return epoch


# ---- measuring ----

class FlopCounter(TorchDispatchMode):
    """Like torch's FlopCounterMode, which fails with gradients inside of a module's forward."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        self.total += formula(*args, **(kwargs or {}), out_val=result) if formula else 0
        return result


def flops(call):
    """Floating-point operations of the matrix products and convolutions in a call."""
    with FlopCounter() as counter:
        call()
    return counter.total


def seconds(call, device):
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    synchronize()
    start = time.perf_counter()
    call()
    synchronize()
    return time.perf_counter() - start


def matmul_rate(device, size, dtype=torch.float32):
    """Floating-point operations per second in products of square matrices, the best of 20."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / min(seconds(lambda: a @ b, device) for _ in range(20))


def profile(call, device, rows=12):
    """Print the operations that take the largest shares of the time of a call."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    kinds += [torch.profiler.ProfilerActivity.CUDA] if device.type == "cuda" else []
    with torch.profiler.profile(activities=kinds) as p:
        call()

    def own(event):
        return event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total

    events = sorted(p.key_averages(), key=own, reverse=True)
    total = sum(map(own, events))
    for event in events[:rows]:
        print(f"    {own(event) / total:5.1%}  {event.key} ({event.count:,} times)")


def compare(name, all_images, all_labels, rates, flags, device):
    """Time the loops of one script, and print a line for each."""
    args, _ = importlib.import_module(name).get_args([])
    args.batch_size = min(flags.batch_size or args.batch_size, len(all_images))
    args.num_classes = int(all_labels.max()) + 1
    cycle = getattr(args, "n_critic", 1) * args.batch_size      # images for each step of G
    images = all_images[:max(1, flags.images // cycle) * cycle]
    labels = all_labels[:len(images)]

    variants = {name: {}}
    if device.type == "cuda":
        variants = {f"{name} eager": {}, f"{name} --graph": dict(graph=True),
                    f"{name} --graph --amp": dict(graph=True, amp=True)}
    elif flags.amp:
        variants[f"{name} --amp"] = dict(amp=True)
    loops = {f"{name} yardstick": yardstick(name, images, labels, args, device)}
    for variant, how in variants.items():
        loops[variant] = script_loop(name, images, labels, args, device, **how)
    work = flops(loops[next(iter(variants))])
    # On a GPU, warm up until the fourth update of G has recorded its graph.
    warm_up = 1 + 4 * cycle // len(images) if device.type == "cuda" else 1
    for call in warm_up * [*loops.values()]:
        call()
    times = {loop: [] for loop in loops}
    for _ in range(flags.repeats):
        for loop, call in loops.items():
            times[loop].append(seconds(call, device))

    usual = times[f"{name} yardstick"]
    for loop, rounds in times.items():
        t = statistics.median(rounds)
        ratios = [a / b for a, b in zip(rounds, usual)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        rate = rates[torch.bfloat16 if "--amp" in loop else torch.float32]
        share = "" if rounds is usual else f"{work / t / rate:17.1%}"
        print(f"{loop:28}{60_000 / len(images) * t:18.1f}{len(images) / t:11,.0f}{spread:>30}"
              f"{share}", flush=True)
    if flags.profile:
        profile(loops[loop], device)


def main(argv=None):
    parser = argparse.ArgumentParser(usage="python benchmarks/speed.py [flags]", allow_abbrev=False)
    arg = parser.add_argument
    arg("--scripts", nargs="+", default=PLAIN_STEPS, choices=PLAIN_STEPS, metavar="NAME",
        help="names without .py; if not given, all six")
    arg("--data", help="if not given, mnist, or strokes where mnist cannot be downloaded")
    arg("--data-dir", default="data", help="where downloads and caches are kept")
    arg("--image-size", type=int, default=0, help="resize to this side; 0 keeps the original size")
    arg("--images", type=int, default=3200, help="about how many images a round has")
    arg("--batch-size", type=int, default=0, help="0: the default of each script")
    arg("--repeats", type=int, default=15, help="how many rounds")
    arg("--amp", action="store_true", help="time --amp on a CPU as well")
    arg("--profile", action="store_true", help="also show which operations take the time")
    arg("--quick", action="store_true", help="only check that everything runs")
    flags = parser.parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":   # the calls before a recording must not run on the default stream
        torch.cuda.set_stream(torch.cuda.Stream(device))
    size = 8192 if device.type == "cuda" else 2048
    if flags.quick:
        flags.images, flags.repeats, size = 160, 1, 256
        images, labels, _, _ = common.strokes(160)
    else:
        data = flags.data or common.default_data(flags.data_dir)
        try:
            images, labels, _ = common.load_images(data, flags.data_dir,
                                                   image_size=flags.image_size)
        except OSError as error:
            sys.exit(f"error: {error}")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    images, labels = images[order].to(device), labels[order].to(device)

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
        compare(name, images, labels, rates, flags, device)


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")   # the terminal may lack letters of a path
    main()
