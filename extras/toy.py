"""Draw four pictures of the theory: the scripts' own steps, with points in place of images.

    python extras/toy.py            # two minutes on one core; writes out/toy/distance.png, ...

distance.png    Why another distance (arXiv:1701.07875, example 1). Real points lie on one vertical
                line, and fakes on another, theta to the right of it.
critics.png     Why a penalty (arXiv:1704.00028, figure 1a). What two critics give to each place:
                one with clipped weights, one with a penalty. Fakes are real points plus noise.
layers.png      The same in a deep critic (figure 1b): the gradient in each layer, and the weights.
game.png        What the game does (arXiv:1406.2661, figure 1). Real numbers, fakes, D, and the
                best D, p_data / (p_data + p_g), at four moments.
"""

import math
import sys
from pathlib import Path

import matplotlib
import torch
import torch.nn as nn
from matplotlib import pyplot
from torch.distributions import Categorical, MixtureSameFamily, Normal

sys.path.insert(0, str(Path(__file__).parent.parent))
import gan_mlp
import wgan_clip
import wgan_gp


def mlp(n_in, depth, *end):
    """Return a network of `depth` hidden layers that turns (B, n_in) into (B, 1)."""
    layers = [nn.Linear(n_in, 128), nn.ReLU()]
    for _ in range(depth - 1):
        layers += [nn.Linear(128, 128), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(128, 1), *end)


def fakes(draw):
    """Return a G that does not learn: the function `draw` turns noise (B, 2) into points (B, 2)."""
    G = nn.Linear(2, 2)                 # its weights are not used
    G.z_dim, G.forward = 2, draw
    return G


def adam(net, lr):
    return torch.optim.Adam(net.parameters(), lr, betas=(0.5, 0.9))


def train_critic(D, data, clip, steps):
    """Train D with clipped weights, or with a penalty if `clip` is None. Return its G."""
    G = fakes(lambda z: data(len(z)) + z)
    opt = torch.optim.RMSprop(D.parameters(), 5e-4) if clip else adam(D, 1e-3)
    for _ in range(steps):
        if clip:
            wgan_clip.train_critic(G, D, opt, data(256), clip)
        else:
            wgan_gp.train_critic(G, D, opt, data(256), gp_weight=1.0)
    return G


def eight_gaussians(n):
    angle = torch.randint(8, (n, 1)) * math.pi / 4
    return 2.5 * torch.cat([angle.cos(), angle.sin()], 1) + 0.06 * torch.randn(n, 2)


def grid_of_gaussians(n):
    return 1.5 * torch.randint(-2, 3, (n, 2)) + 0.06 * torch.randn(n, 2)


def swiss_roll(n):
    angle = math.pi * (1.5 + 3 * torch.rand(n, 1))
    return angle / 4 * torch.cat([angle.cos(), angle.sin()], 1) + 0.06 * torch.randn(n, 2)


def distance(steps):
    thetas, fine = torch.linspace(-1, 1, 9), torch.linspace(-1, 1, 1000)
    figure, axes = pyplot.subplots(1, 2, figsize=(8, 2.8), sharey=True, layout="constrained")
    for axis, title, exact, name, step, options in (
            (axes[0], "JSD: flat, except at 0", torch.full_like(fine, math.log(2)),
             "jsd", gan_mlp.train_discriminator, {}),
            (axes[1], "W: a slope everywhere", fine.abs(),
             "W", wgan_gp.train_critic, {"gp_weight": 10.0})):
        estimates = []
        for theta in thetas:
            G = fakes(lambda z: torch.stack([theta.expand(len(z)), z[:, 1]], 1))
            D = mlp(2, 3, nn.Flatten(0))
            opt = adam(D, 1e-3)
            real = torch.randn(steps // 4, 128, 2) * torch.tensor([0.0, 1.0])       # (0, y)
            values = torch.stack([step(G, D, opt, batch, **options)[name] for batch in real])
            estimates.append(values[-len(real) // 5:].mean().item())
        axis.plot(fine, exact, "C7", lw=1, label="the distance")
        axis.plot(thetas, estimates, "C3o", label="as D estimates it")
        axis.set(title=title, xlabel="theta: where the fakes are (real points: 0)")
    axes[1].legend(loc="upper center")
    return figure


def critics(steps):
    line = torch.linspace(-4, 4, 150)
    figure, axes = pyplot.subplots(2, 3, figsize=(8, 5.4), layout="constrained")
    for column, data in zip(axes.T, (eight_gaussians, grid_of_gaussians, swiss_roll)):
        for axis, clip in zip(column, (0.1, None)):
            D = mlp(2, 3, nn.Flatten(0))
            train_critic(D, data, clip, steps)
            scores = D(torch.cartesian_prod(line, line)).detach().view(150, 150)
            axis.contourf(line, line, scores.T, 15)
            axis.plot(*data(500).T, "w.", ms=2)
            axis.set(xticks=[], yticks=[])
    axes[0, 0].set_ylabel("weight clipping")
    axes[1, 0].set_ylabel("gradient penalty")
    figure.suptitle("D(x), from low (dark) to high (yellow); real points are white")
    return figure


def layers(steps):
    figure, axes = pyplot.subplots(1, 3, figsize=(8, 2.8), layout="constrained")
    for clip, color in (0.001, "C0"), (0.01, "C1"), (0.1, "C2"), (None, "C3"):
        D = mlp(2, 10, nn.Flatten(0))
        for w in D.parameters():        # He's initial weights, so that such a deep critic can learn
            nn.init.normal_(w, 0, math.sqrt(2 / w.shape[1]) if w.ndim == 2 else 0)
        G = train_critic(D, swiss_roll, clip, steps // 3)
        x, outputs = torch.cat([swiss_roll(256), G(torch.randn(256, 2))]), []
        for layer in D:
            x = layer(x)
            outputs.append(x)
        gradients = torch.autograd.grad(wgan_gp.critic_loss(*x.chunk(2)), outputs[:-1:2])
        axes[0].semilogy(range(1, 12), [g.norm() for g in gradients], "o-", color=color,
                         label=f"clip {clip}" if clip else "penalty")
        if clip in (0.01, None):
            weights = nn.utils.parameters_to_vector(D.parameters()).detach()
            axes[1 if clip else 2].hist(weights, 60, color=color, log=True)
    axes[0].set(title="gradient of the loss", xlabel="layer, from D's input to its output")
    axes[0].legend(fontsize="small")
    axes[1].set(title="weights with clip 0.01")
    axes[2].set(title="weights with the penalty")
    return figure


def game(steps):
    p_data = MixtureSameFamily(Categorical(torch.ones(2)),
                               Normal(torch.tensor([-1.5, 1.0]), torch.tensor([0.4, 0.6])))
    edges = torch.linspace(-4, 4, 81)
    x = (edges[1:] + edges[:-1]) / 2
    real = p_data.log_prob(x).exp()
    G, D = mlp(1, 2), mlp(1, 3, nn.Flatten(0))
    G.z_dim, opt_G, opt_D, step = 1, adam(G, 1e-4), adam(D, 3e-3), 0
    figure, axes = pyplot.subplots(1, 4, figsize=(8, 2.6), sharey=True, layout="constrained")
    for axis, end in zip(axes, (steps // 75, steps // 15, steps // 5, steps * 2 // 3)):
        while step < end:
            step += 1
            gan_mlp.train_discriminator(G, D, opt_D, p_data.sample((256, 1)))
            gan_mlp.train_generator(G, D, opt_G, 256, loss="ns")
        fake = torch.histc(G(gan_mlp.noise(G, 100_000)).detach(), 80, -4, 4) / 100_000 / 0.1
        best = torch.where(real + fake > 0.01, real / (real + fake), math.nan)
        axis.plot(x, D(x[:, None]).sigmoid().detach(), "C0", label="D(x)")
        axis.plot(x, best, "C0:", label="the best D")
        axis.plot(x, real, "k", lw=1, label="p_data")
        axis.stairs(fake, edges, fill=True, color="C1", alpha=0.5, label="p_g (fakes)")
        axis.set(title=f"step {end}", ylim=(0, 1.2))
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def main(steps=1500, out="out/toy"):
    """Train each critic of critics.png for `steps` steps, and everything else in proportion."""
    matplotlib.use("agg")               # draws into files, so no screen is needed
    Path(out).mkdir(parents=True, exist_ok=True)
    for draw in distance, critics, layers, game:
        torch.manual_seed(0)
        draw(steps).savefig(Path(out, f"{draw.__name__}.png"), dpi=100)
        print(f"wrote {out}/{draw.__name__}.png", flush=True)


if __name__ == "__main__":
    main()
