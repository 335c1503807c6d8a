"""Train any of the scripts with CUDA graphs, so that one call from Python launches a whole step.

    python extras/graphs.py wgan_gp.py --epochs 50

The networks are so small that a GPU runs the programs of a step, called kernels, faster than Python
launches them. A CUDA graph is a recording of kernels, and one call replays all of them. Here, the
functions of the script whose names start with train_ run three times as usual, are recorded in the
fourth call, and from then on are replayed with new data and new noise. Everything else is as
without this program, and --resume continues runs of either kind. A replay skips Python, so a print
in a step shows nothing. A new learning rate needs a new recording, so change it between epochs.
This program has not been run on a GPU yet.
"""

import importlib
import inspect
import sys
from pathlib import Path
from types import SimpleNamespace

import torch


class GraphedStep:
    """A step of training that is recorded in its fourth call and replayed from then on.

    Only the values of tensors may change from call to call. If another argument, a shape or a
    setting of an optimizer changes, a new recording replaces the old one. Each set of networks has
    a recording of its own, because stackedgan.py trains two GANs with the same functions.
    """

    def __init__(self, function):
        self.function, self.signature = function, inspect.signature(function)
        self.recordings = {}

    def __call__(self, *args, **kwargs):
        arguments = self.signature.bind(*args, **kwargs).arguments      # names to values
        tensors = {name: x for name, x in arguments.items() if isinstance(x, torch.Tensor)}
        constants = {name: x for name, x in arguments.items() if name not in tensors}
        networks = tuple(x for x in constants.values() if isinstance(x, torch.nn.Module))
        fixed = [constants, {name: (x.shape, x.dtype) for name, x in tensors.items()}]
        for opt in constants.values():
            if isinstance(opt, torch.optim.Optimizer):
                fixed += [{**group, "params": None} for group in opt.param_groups]
        this = self.recordings.get(networks)
        if this is None or this.fixed != fixed:
            this = self.recordings[networks] = SimpleNamespace(fixed=fixed, calls=0)

        this.calls += 1
        if this.calls <= 3:     # these calls create what lasts, such as the optimizer's averages
            return self.function(*args, **kwargs)
        if this.calls == 4:
            this.inputs = {name: x.clone() for name, x in tensors.items()}
            this.graph = torch.cuda.CUDAGraph()
            # Nothing runs while it is recorded. The stream must be that of the first calls, because
            # autograd may go on adding up the gradients of a weight on the stream of its first use.
            with torch.cuda.graph(this.graph, stream=torch.cuda.current_stream()):
                this.stats = self.function(**constants, **this.inputs)
        for name, x in tensors.items():
            this.inputs[name].copy_(x)
        # A replay takes the seed and the position from PyTorch's generator and moves that on. So it
        # draws the same noise as a usual call, also after torch.manual_seed. (See the note "CUDA
        # Graph-safe RNG states" in PyTorch's CUDAGeneratorImpl.h.)
        this.graph.replay()
        return {name: x.clone() if isinstance(x, torch.Tensor) else x
                for name, x in this.stats.items()}      # the next replay overwrites these tensors


def capturable(optimizer):
    """Return a subclass of an optimizer whose steps can be recorded: it counts them on the GPU."""
    class Capturable(optimizer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs, capturable=True)

        def load_state_dict(self, state):
            groups = [{**group, "capturable": True} for group in state["param_groups"]]
            super().load_state_dict({**state, "param_groups": groups})

        def state_dict(self):   # not capturable, so that the script alone can resume on a CPU
            state = super().state_dict()
            groups = [{**group, "capturable": False} for group in state["param_groups"]]
            return {**state, "param_groups": groups}
    return Capturable


def main(script, *argv):
    sys.path.insert(0, str(Path(script).resolve().parent))
    module = importlib.import_module(Path(script).stem)
    device = torch.device(module.get_args(argv).device)
    if device.type != "cuda" or not torch.cuda.is_available():
        sys.exit("error: CUDA graphs need --device cuda and a GPU that PyTorch can use")
    torch.cuda.set_stream(torch.cuda.Stream(device))    # the default stream cannot be recorded
    torch.optim.Adam = capturable(torch.optim.Adam)
    torch.optim.RMSprop = capturable(torch.optim.RMSprop)
    for name, function in inspect.getmembers(module, inspect.isfunction):
        if name.startswith("train_"):
            setattr(module, name, GraphedStep(function))
    module.main(argv)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python extras/graphs.py wgan_gp.py [flags]")
    main(*sys.argv[1:])
