"""Train a script with a G that has only fully connected layers, as the Wasserstein papers did.

    python benchmarks/mlp_generator.py wgan_gp.py --epochs 10 --out out/mlp
    python benchmarks/mlp_generator.py wgan_gp.py --sample out/mlp/ckpt.pt

This G has four hidden layers with ReLU and no BatchNorm. It takes the place of the Generator of
dcgan.py, wgan_clip.py or wgan_gp.py. Everything else in the script stays as it is. All flags work
as usual, but --upsample has no effect. Without --out, a run goes into out/mlp_wgan_gp and so on.
Only this program can sample or resume its checkpoints. quality.py measures them like any other.
"""

import importlib.util
import math
import sys
from pathlib import Path

import torch.nn as nn

sys.path.insert(0, str(Path(__file__).parent.parent))

SCRIPTS = "dcgan", "wgan_clip", "wgan_gp"


class MLPGenerator(nn.Sequential):
    """Turns noise z (B, z_dim) into images (B, C, H, H) in [-1, 1]; `shape` is (C, H, H).

    The layers keep PyTorch's initial weights. Those of the scripts are too small without BatchNorm.
    """

    def __init__(self, z_dim, shape, width, upsample=False):
        n = 32 * width
        super().__init__(
            nn.Linear(z_dim, n), nn.ReLU(), nn.Linear(n, n), nn.ReLU(),
            nn.Linear(n, n), nn.ReLU(), nn.Linear(n, n), nn.ReLU(),
            nn.Linear(n, math.prod(shape)), nn.Unflatten(1, tuple(shape)), nn.Tanh())
        self.z_dim = z_dim


def load(name):
    """Return a script with this G, as a new module, so that `import` still gives the script itself.

    Checkpoints hold SCRIPT, so the script itself refuses these. It is also a part of the last
    line that the script prints, the command that draws more images.
    """
    spec = importlib.util.find_spec(name)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.Generator, script.SCRIPT = MLPGenerator, f"benchmarks/mlp_generator.py {name}"
    return script


def main(argv=None):
    path, *flags = (sys.argv[1:] if argv is None else argv) or [""]
    name = Path(path).stem
    if name not in SCRIPTS:
        sys.exit(f"error: name one of {', '.join(SCRIPTS)} first; this G suits no other script")
    if not any(flag.startswith(("--out", "--resume", "--sample")) for flag in flags):
        flags += ["--out", f"out/mlp_{name}"]       # the others know where to write
    load(name).main(flags)


if __name__ == "__main__":
    main()
