"""Distill a flow model of a ring of Gaussians into one step: the whole training loop in plain PyTorch.

    python examples/plain.py        # 20 s of one CPU core

In each step the fake score and the discriminator learn the student's samples. In every fourth the student follows the
difference of the scores, weighted by h, and the GAN term. Prints the energy distance of its samples to the data, and
figures of the run's health: h's effective sample size, the mean density ratio, the gap of the scores.
"""

import argparse
import copy
import math

import torch
from torch import Tensor, nn

import fdkernels as fdk

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=1000)
parser.add_argument("--save", help="file for a checkpoint")
args, batch = parser.parse_args(), 512
torch.set_default_device("cuda" if torch.cuda.is_available() else "cpu")
torch.manual_seed(0)


class Network(nn.Module):
    def __init__(self, outputs: int) -> None:
        super().__init__()
        hidden = (nn.Sequential(nn.Linear(n, 128), nn.SiLU()) for n in (3, 128, 128))
        self.layers = nn.Sequential(*hidden, nn.Linear(128, outputs))

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.layers(torch.cat((x_t, t[:, None]), 1))


def data(count: int) -> Tensor:
    angle = torch.randint(8, (count,)) * (2 * math.pi / 8)
    return torch.stack((angle.cos(), angle.sin()), 1) + 0.05 * torch.randn(count, 2)


def sample(count: int) -> Tensor:
    return (z := torch.randn(count, 2)) - student(z, torch.ones(count))  # x0 of the velocity at t = 1


def update(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@torch.no_grad()
def energy_distance() -> Tensor:
    x, y = sample(2000), data(2000)
    return 2 * torch.cdist(x, y).mean() - torch.cdist(x, x).mean() - torch.cdist(y, y).mean()


teacher = Network(2)
optimizer = torch.optim.Adam(teacher.parameters(), 2e-3)
for _ in range(1000):  # a teacher, trained on the spot: load yours here
    x0, t = data(batch), torch.rand(batch)
    x_t, noise = fdk.add_noise(x0, None, t, return_noise=True)  # alpha=None: flow's 1 - t
    update(optimizer, fdk.denoising_loss(teacher(x_t, t), x0, noise, "flow_prediction"))
student, fake, discriminator = networks = (copy.deepcopy(teacher), copy.deepcopy(teacher), Network(1))
of_student, of_fake, of_discriminator = (torch.optim.Adam(n.parameters(), 1e-3, betas=(0.0, 0.99)) for n in networks)
loss_fn = fdk.FDivLoss("js", gan_weight=0.01)  # state: the mean density ratio in ten bins of t
print(f"teacher in one step: energy distance {energy_distance():.4f}")
for step in range(1, args.steps + 1):
    t = torch.rand(batch)
    with torch.no_grad():
        x = sample(batch)
    x_t, noise = fdk.add_noise(x, None, t, return_noise=True)
    update(of_fake, fdk.denoising_loss(fake(x_t, t), x, noise, "flow_prediction"))
    logits = discriminator(torch.cat((x_t, fdk.add_noise(data(batch), None, t))), torch.cat((t, t)))
    update(of_discriminator, fdk.discriminator_loss(*logits.chunk(2)))
    if step % 4 == 0:  # the student's turn
        x, t = sample(batch), torch.rand(batch)
        x_t = fdk.add_noise(x, None, t)
        with torch.no_grad():  # constants of the loss
            v_teacher, v_fake = teacher(x_t, t), fake(x_t, t)
        logits = discriminator(x_t, t)  # with a graph, for the GAN term: zero_grad clears what the discriminator gets
        prediction = fdk.Prediction("flow_prediction", x_t, sigma=t)
        loss, stats = loss_fn(x, v_teacher, v_fake, logits, t, prediction=prediction, return_stats=True)
        update(of_student, loss)
    if step % 100 == 0:
        health = f"ess {stats.effective_sample_size:.2f}, ratio {stats.ratio_mean:.2f}, gap {stats.relative_gap:.3f}"
        print(f"step {step}: energy distance {energy_distance():.4f}, {health}")
if args.save:  # add the fake score, the discriminator and the optimizers if you resume
    torch.save({"student": student.state_dict(), "loss": loss_fn.state_dict()}, args.save)
