"""Seconds of a pass: a script beside the loop that most GAN code copies, and beside the machine.

    python benchmarks/speed.py              # about 2 minutes on 2 CPU cores

The yardstick runs the same algorithm on the same networks with the same batch size in the way found
everywhere: images one by one through a DataLoader with ToTensor and Normalize, fakes for D's step
made with their graph and then detached, tensors of labels, D's weights collecting gradients in G's
step, optimizers without options, .item() after every step. All loops run in turn, several times, in
one process; the table has medians. Of a script, all that it does in a step is timed: the batch,
both updates, the moving average.
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
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parent.parent))
import common


class PlainImages(Dataset):
    """Images (N, 1, H, W) and labels, one by one as torchvision.datasets.MNIST gives them."""

    def __init__(self, images, labels, transform):
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        from PIL import Image
        return self.transform(Image.fromarray(self.images[i, 0].numpy())), int(self.labels[i])


def yardstick(script, images, labels, batch_size, device):
    """One pass of the usual loop."""
    from torchvision import transforms
    shape = tuple(images.shape[1:])
    G, D = script.Generator(shape=shape).to(device), script.Discriminator(shape=shape).to(device)
    opt_G = torch.optim.Adam(G.parameters(), lr=3e-4, betas=(0.0, 0.999))
    opt_D = torch.optim.Adam(D.parameters(), lr=3e-4, betas=(0.0, 0.999))
    loss = nn.BCELoss()
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize([0.5], [0.5])])
    data = PlainImages(images.cpu(), labels.cpu(), transform)
    loader = DataLoader(data, batch_size, shuffle=True, drop_last=True)

    def one_pass():
        for real, _ in loader:
            real = real.to(device)
            valid = torch.ones(len(real), device=device)
            invalid = torch.zeros(len(real), device=device)
            fake = G(torch.randn(len(real), G.z_dim, device=device))
            opt_D.zero_grad()
            loss_real = loss(D(real).sigmoid(), valid)
            loss_fake = loss(D(fake.detach()).sigmoid(), invalid)
            loss_D = (loss_real + loss_fake) / 2
            loss_D.backward()
            opt_D.step()
            fake = G(torch.randn(len(real), G.z_dim, device=device))
            opt_G.zero_grad()
            loss_G = loss(D(fake).sigmoid(), valid)
            loss_G.backward()
            opt_G.step()
            loss_D.item(), loss_G.item()
    return one_pass


def script_loop(script, images, batch_size, device, amp):
    """One pass of the script's own updates, as in its train()."""
    shape = tuple(images.shape[1:])
    G, D = script.Generator(shape=shape).to(device), script.Discriminator(shape=shape).to(device)
    G_ema = copy.deepcopy(G).requires_grad_(False)
    fused = device.type != "mps"
    opt_G = torch.optim.Adam(G.parameters(), lr=3e-4, betas=(0.0, 0.999), fused=fused)
    opt_D = torch.optim.Adam(D.parameters(), lr=3e-4, betas=(0.0, 0.999), fused=fused)

    def one_pass():
        for t, real in enumerate(common.batches(images, batch_size), 1):
            script.train_discriminator(G, D, opt_D, real, amp=amp)
            script.train_generator(G, D, opt_G, len(real), amp=amp)
            script.update_ema(G_ema, G, 0.999, t)

    def flops():
        """Floating-point operations of the matrix products and convolutions in one step."""
        real = next(common.batches(images, batch_size))
        with FlopCounterMode(display=False) as counter:
            script.train_discriminator(G, D, opt_D, real)
            script.train_generator(G, D, opt_G, len(real))
        return counter.get_total_flops()
    return one_pass, flops()


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


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--scripts", nargs="+", default=["gan_mlp"])
    parser.add_argument("--images", type=int, default=20_000, help="of a timed pass")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--amp", action="store_true", help="time the script's --amp as well")
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--quick", action="store_true", help="only see that it runs")
    args = parser.parse_args(argv)
    if args.quick:
        args.images, args.repeats = 128, 1
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if args.quick:
        images, labels, _, _ = common.strokes(128)
    else:
        images, labels = common.load_images(common.default_data(args.data_dir), args.data_dir)
    n = min(args.images, len(images)) // args.batch_size * args.batch_size
    images, labels = images[:n].to(device), labels[:n]
    rate = matmul_rate(device, 256 if args.quick else 8192 if device.type == "cuda" else 2048)
    name = f"CPU, {torch.get_num_threads()} threads"
    if device.type == "cuda":
        name = torch.cuda.get_device_name()
    print(f"torch {torch.__version__}, {name}, float32 matrix products {rate / 1e9:.0f} GFLOP/s; "
          f"batch {args.batch_size}, medians of {args.repeats} passes over {len(images):,} images")
    print(f"{'':20} s / 60,000 images   images/s   of yardstick's time   of matrix rate")
    for name in args.scripts:
        script = importlib.import_module(name)
        one_pass, flops = script_loop(script, images, args.batch_size, device, amp=False)
        plain = yardstick(script, images, labels, args.batch_size, device)
        loops = {"yardstick": plain, name: one_pass}
        if args.amp:
            one_pass, _ = script_loop(script, images, args.batch_size, device, amp=True)
            loops[f"{name} --amp"] = one_pass
        times = {loop: [] for loop in loops}
        for repeat in range(args.repeats + 1):
            for loop, call in loops.items():
                elapsed = seconds(call, device)
                if repeat:              # the first pass warms up
                    times[loop].append(elapsed)
        steps = len(images) // args.batch_size
        step = {loop: statistics.median(t) / steps for loop, t in times.items()}
        for loop, t in step.items():
            share = "" if loop == "yardstick" else f"{flops / t / rate:17.0%}"
            print(f"{loop:20}{60_000 / args.batch_size * t:19.1f}{args.batch_size / t:11.0f}"
                  f"{t / step['yardstick']:22.2f}{share}")


if __name__ == "__main__":
    main()
