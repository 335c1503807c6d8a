"""Train any of the scripts on several GPUs, or in several processes on the CPU.

    torchrun --nproc-per-node 4 extras/distributed.py wgan_gp.py --batch-size 64 --epochs 50

There is one process for each GPU, and each has its own networks, a share of the training images,
and its own noise. Before each step of an optimizer, the gradients are averaged over all processes,
so the weights stay equal. --batch-size is that of one process: four processes with 64 images each
make the same steps as one process with 256. Give --epochs, too: its default counts the steps of one
process. Only BatchNorm differs, because each process uses the statistics of its own images. (It was
only run on CPUs.)

Only the first process writes files and prints, so the log shows its own losses. Everything else is
as without this launcher. --resume works with any number of processes, and with the same number, a
resumed run equals an uninterrupted one. (In stackedgan.py it differs a little, because a checkpoint
has the E of the first process only.) If one process fails, torchrun stops the others.
"""

import contextlib
import importlib
import os
import sys
import tempfile
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.optim.optimizer import register_optimizer_step_pre_hook

sys.path.insert(0, str(Path(__file__).parent.parent))
import common


def first_alone(function):
    """Let the first process call `function` before the others do, because it may download."""
    def call(*args, **kwargs):
        if dist.get_rank() > 0:
            dist.barrier()
        result = function(*args, **kwargs)
        if dist.get_rank() == 0:
            dist.barrier()
        return result
    return call


def share(load_images):
    """Make `load_images` return the share of this process: of n, every n-th training image."""
    def load_share(*args, train=True, **kwargs):
        images, labels, names = load_images(*args, train=train, **kwargs)
        if train:
            rank, n = dist.get_rank(), dist.get_world_size()
            end = len(images) // n * n      # equal shares, so all processes take as many steps
            images, labels = images[rank:end:n].clone(), labels[rank:end:n].clone()
        return images, labels, names
    return load_share


def own_noise(batches):
    """Let each process draw its own random numbers from the start of an epoch on."""
    def call(*args, **kwargs):
        # Until here, all have drawn the same numbers, so their networks are equal. The new seed is
        # random too: the CPU uses only 32 bits of a seed, too few to give each process a range.
        if dist.get_rank() > 0:
            torch.manual_seed(torch.randint(2**32, ()).item() + dist.get_rank())
        return batches(*args, **kwargs)
    return call


def average_gradients(opt, args, kwargs):
    """Replace the gradients of opt's weights by their mean over all processes."""
    gradients = [w.grad for group in opt.param_groups for w in group["params"]]
    mean = torch.cat([g.flatten() for g in gradients])      # one message, instead of one a layer
    dist.all_reduce(mean)
    mean /= dist.get_world_size()
    for g, part in zip(gradients, mean.split([g.numel() for g in gradients])):
        g.copy_(part.view_as(g))


def main(script, *argv):
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    sys.path.insert(0, str(Path(script).resolve().parent))
    # The others wait for as long as the first one downloads or decodes images.
    dist.init_process_group(timeout=timedelta(hours=3))
    common.default_data = first_alone(common.default_data)
    common.load_images = share(first_alone(common.load_images))
    common.batches = own_noise(common.batches)
    register_optimizer_step_pre_hook(average_gradients)
    with contextlib.ExitStack() as stack:
        if dist.get_rank() > 0:
            argv = [*argv, "--out", stack.enter_context(tempfile.TemporaryDirectory())]
            quiet = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(quiet))
        importlib.import_module(Path(script).stem).main(argv)
    dist.destroy_process_group()


if __name__ == "__main__":
    if "RANK" not in os.environ or len(sys.argv) < 2:
        sys.exit("usage: torchrun --nproc-per-node 4 extras/distributed.py wgan_gp.py [flags]")
    main(*sys.argv[1:])
