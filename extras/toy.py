"""Draw four pictures of the theory, made with the scripts' own steps on points instead of images.

    python extras/toy.py            # two minutes on one core; writes out/toy/game.png, ...

game.png        What the game does (arXiv:1406.2661, figure 1): the data, the fakes, D, and the
                best D for these fakes, p_data / (p_data + p_g), at four moments.
distance.png    Why another distance (arXiv:1701.07875, example 1): real points lie on one vertical
                line, and fakes on another, theta to the right of it.
critics.png     Why a penalty (arXiv:1704.00028, figure 1): the scores that a critic with clipped
                weights and one with a penalty give to each place, and the weights of the last
                pair.
layers.png      Why a penalty (figure 1b, left): the gradient in each layer of a deep critic.
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


def mlp(n_in, depth):
    """Return a network of `depth` hidden layers that turns (B, n_in) into (B, 1)."""
    layers = [nn.Linear(n_in, 128), nn.ReLU()]
    for _ in range(depth - 1):
        layers += [nn.Linear(128, 128), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(128, 1))


def discriminator(n_in, depth=3):
    """Return a D that turns points (B, n_in) into scores (B,)."""
    return mlp(n_in, depth).append(nn.Flatten(0))


def fakes(draw):
    """Return a G that does not learn: the function `draw` turns noise (B, 2) into points (B, 2)."""
    G = nn.Linear(2, 2)                 # noise(G, n) asks for the device of its weights
    G.z_dim, G.forward = 2, draw
    return G


def adam(net, lr):
    return torch.optim.Adam(net.parameters(), lr, betas=(0.5, 0.9))


def train(D, G, data, clip, steps):
    """Train a critic with clipped weights, or with a gradient penalty if `clip` is None."""
    opt = torch.optim.RMSprop(D.parameters(), 5e-4) if clip else adam(D, 1e-3)
    for _ in range(steps):
        if clip:
            wgan_clip.train_critic(G, D, opt, data(256), clip)
        else:
            wgan_gp.train_critic(G, D, opt, data(256), gp_weight=1.0)


# ---- real points: n of them, as a tensor (n, 2) ----

def eight_gaussians(n):
    angle = torch.randint(8, (n, 1)) * math.pi / 4
    return 2.5 * torch.cat([angle.cos(), angle.sin()], 1) + 0.06 * torch.randn(n, 2)


def grid_of_gaussians(n):
    return 1.5 * torch.randint(-2, 3, (n, 2)) + 0.06 * torch.randn(n, 2)


def swiss_roll(n):
    angle = math.pi * (1.5 + 3 * torch.rand(n, 1))
    return angle / 4 * torch.cat([angle.cos(), angle.sin()], 1) + 0.06 * torch.randn(n, 2)


# ---- one function for each picture ----

def game(steps):
    p_data = MixtureSameFamily(Categorical(torch.ones(2)),
                               Normal(torch.tensor([-1.5, 1.0]), torch.tensor([0.4, 0.6])))
    edges = torch.linspace(-4, 4, 81)   # of the histogram of the fakes
    x = (edges[1:] + edges[:-1]) / 2
    real = p_data.log_prob(x).exp()
    G, D, step = mlp(1, 2), discriminator(1), 0
    G.z_dim = 1
    opt_G, opt_D = adam(G, 1e-4), adam(D, 3e-3)
    figure, axes = pyplot.subplots(1, 4, figsize=(8, 2.6), sharey=True, layout="constrained")
    for axis, end in zip(axes, (steps // 75, steps // 15, steps // 5, steps * 2 // 3)):
        while step < end:
            step += 1
            gan_mlp.train_discriminator(G, D, opt_D, p_data.sample((256, 1)))
            gan_mlp.train_generator(G, D, opt_G, 256, loss="ns")
        fake = torch.histc(G(gan_mlp.noise(G, 100_000)).detach(), 80, -4, 4)
        fake = fake / fake.sum() / (edges[1] - edges[0])        # a density
        best = torch.where(real + fake > 0.01, real / (real + fake), math.nan)
        axis.axhline(0.5, color="C7", lw=0.5)
        axis.plot(x, D(x[:, None]).sigmoid().detach(), "C0", label="D(x)")
        axis.plot(x, best, "C3:", label="the best D(x) for these fakes")
        axis.plot(x, real, "k", lw=1, label="density of real x")
        axis.stairs(fake, edges, fill=True, color="C1", alpha=0.5, label="density of fakes")
        axis.set(title=f"step {end}", xlabel="x", ylim=(0, 1.2))
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=4)


def distance(steps):
    thetas, fine = torch.linspace(-1, 1, 9), torch.linspace(-1, 1, 100)
    _, axes = pyplot.subplots(1, 2, figsize=(8, 2.8), sharey=True, layout="constrained")

    def draw(axis, title, exact, column, step, **options):
        estimates = []
        for theta in thetas:
            G = fakes(lambda z: torch.stack([theta.expand(len(z)), z[:, 1]], 1))
            D = discriminator(2)
            opt = adam(D, 1e-3)
            real = torch.randn(steps // 4, 128, 2) * torch.tensor([0.0, 1.0])       # (0, y)
            values = torch.stack([step(G, D, opt, batch, **options)[column] for batch in real])
            estimates.append(values[-len(real) // 5:].mean().item())    # D has learnt by then
        axis.plot(fine[:50], exact[:50], "C7", label="exact")           # with a gap at 0
        axis.plot(fine[50:], exact[50:], "C7")
        axis.plot(thetas, estimates, "C3o", label="estimated by D")
        axis.set(title=title, xlabel="theta: how far the fakes are to the right")

    draw(axes[0], "Jensen-Shannon divergence: flat", torch.full((100,), math.log(2)),
         "jsd", gan_mlp.train_discriminator)
    draw(axes[1], "Wasserstein distance: a slope on both sides", fine.abs(),
         "W", wgan_gp.train_critic, gp_weight=10.0)
    axes[1].legend(loc="upper center")


def critics(steps):
    line = torch.linspace(-4, 4, 150)
    figure, axes = pyplot.subplots(2, 4, figsize=(8.4, 4.2), layout="constrained")
    for column, data in zip(axes.T, (eight_gaussians, grid_of_gaussians, swiss_roll)):
        G = fakes(lambda z: data(len(z)) + z)
        for axis, row, clip in zip(column, axes, (0.1, None)):
            D = discriminator(2)
            train(D, G, data, clip, steps)
            scores = D(torch.cartesian_prod(line, line)).detach().view(150, 150)
            axis.contourf(line, line, scores.T, 15)
            axis.plot(*data(300).T, "w.", ms=1.5)
            axis.set(xticks=[], yticks=[])
            if data is swiss_roll:
                row[3].hist(nn.utils.parameters_to_vector(D.parameters()).detach(), 60, log=True)
                row[3].set_title("weights (spiral)")
    axes[0, 0].set_ylabel("weights clipped at 0.1")
    axes[1, 0].set_ylabel("gradient penalty")
    figure.suptitle("D(x): yellow looks real to D, blue looks fake. White: real points")


def layers(steps):
    _, axis = pyplot.subplots(figsize=(5, 3), layout="constrained")
    G = fakes(lambda z: swiss_roll(len(z)) + z)
    for clip in 0.001, 0.01, 0.1, None:
        D = discriminator(2, depth=10)
        for layer in D[:-1:2]:          # PyTorch's own initial weights are too small for such a D
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        train(D, G, swiss_roll, clip, steps // 3)
        x, outputs = torch.cat([swiss_roll(256), G(torch.randn(256, 2))]), []
        for layer in D:
            x = layer(x)
            outputs.append(x)
        gradients = torch.autograd.grad(wgan_gp.critic_loss(*x.chunk(2)), outputs[:-1:2])
        axis.semilogy(range(1, 12), [g.double().norm() for g in gradients], "o-",
                      label=f"clipped at {clip}" if clip else "gradient penalty")
    axis.set(xlabel="layer of D, from its input to its output", xticks=range(1, 12),
             ylabel="gradient of the loss")
    axis.legend()


def main(steps=1500, out="out/toy"):
    """Train the critics of critics.png for `steps` steps, and all others in proportion."""
    matplotlib.use("agg")               # draws into files, so no screen is needed
    Path(out).mkdir(parents=True, exist_ok=True)
    for draw in game, distance, critics, layers:
        torch.manual_seed(0)
        draw(steps)
        pyplot.savefig(Path(out, f"{draw.__name__}.png"), dpi=100)
        pyplot.close()
        print(f"wrote {out}/{draw.__name__}.png", flush=True)


if __name__ == "__main__":
    main()
