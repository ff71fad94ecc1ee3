"""Distill a flow model of a ring of Gaussians into one step: the whole training loop in plain PyTorch.

    python examples/plain.py        # 30 s on two CPU cores

In every step the fake score and the discriminator learn the student's samples; in every fourth the student moves along
the f-divergence-weighted difference of the scores (Jensen-Shannon) and the GAN term. Prints the energy distance of the
student's samples to the data, with the statistics that tell a healthy run from a sick one: the effective sample size of
the weights h, the mean density ratio, how much of the error the score difference sees, the gradient's norm.
"""

import argparse
import copy
import math

import torch
from torch import Tensor, nn

import fdkernels as fdk

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=2000)
parser.add_argument("--log-every", type=int, default=200)
parser.add_argument("--save", help="write a checkpoint to this file")
args = parser.parse_args()
device, batch = "cuda" if torch.cuda.is_available() else "cpu", 512
torch.manual_seed(0)


class Network(nn.Module):
    def __init__(self, outputs: int) -> None:
        super().__init__()
        hidden = [nn.Linear(3, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU()]
        self.layers = nn.Sequential(*hidden, nn.Linear(128, outputs))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.layers(torch.cat((x, t[:, None]), 1))


def data(count: int) -> Tensor:
    angle = torch.randint(8, (count,), device=device) * (2 * math.pi / 8)
    return torch.stack((angle.cos(), angle.sin()), 1) + 0.05 * torch.randn(count, 2, device=device)


def levels(count: int) -> Tensor:
    return torch.empty(count, device=device).uniform_(0.02, 0.98)


def sample(count: int) -> Tensor:
    z = torch.randn(count, 2, device=device)
    return z - student(z, torch.ones(count, device=device))  # x0 of the velocity at t = 1


def update(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@torch.no_grad()
def energy_distance() -> float:
    x, y = sample(2000), data(2000)
    return (2 * torch.cdist(x, y).mean() - torch.cdist(x, x).mean() - torch.cdist(y, y).mean()).item()


teacher, discriminator = Network(2).to(device), Network(1).to(device)
optimizer = torch.optim.Adam(teacher.parameters(), 2e-3)
for _ in range(2000):  # a teacher, trained on the spot: load yours here
    x0, t = data(batch), levels(batch)
    x_t, noise = fdk.add_noise(x0, None, t, return_noise=True)
    update(optimizer, fdk.denoising_loss(teacher(x_t, t), x0, noise, "flow_prediction"))
student, fake = copy.deepcopy(teacher), copy.deepcopy(teacher)
teacher.requires_grad_(False)

loss_fn = fdk.FDivLoss("js", gan_weight=0.01).to(device)  # its state: the mean density ratio in ten bins of t in [0, 1]
student_optimizer = torch.optim.Adam(student.parameters(), 5e-4, betas=(0.0, 0.99))
fake_optimizer = torch.optim.Adam(fake.parameters(), 1e-3, betas=(0.0, 0.99))
discriminator_optimizer = torch.optim.Adam(discriminator.parameters(), 1e-3, betas=(0.0, 0.99))
print(f"teacher in one step: energy distance {energy_distance():.4f}")
for step in range(1, args.steps + 1):
    t = levels(batch)
    with torch.no_grad():
        x = sample(batch)
        x_t, noise = fdk.add_noise(x, None, t, return_noise=True)  # alpha=None: flow's 1 - t
        real_t = fdk.add_noise(data(batch), None, t)
    update(fake_optimizer, fdk.denoising_loss(fake(x_t, t), x, noise, "flow_prediction"))
    logits = discriminator(torch.cat((x_t, real_t)), torch.cat((t, t)))
    update(discriminator_optimizer, fdk.discriminator_loss(*logits.chunk(2)))
    if step % 4 == 0:
        x, t = sample(batch), levels(batch)
        x_t = fdk.add_noise(x, None, t)
        with torch.no_grad():  # constants of the loss
            of_teacher, of_fake = teacher(x_t, t), fake(x_t, t)
        prediction = fdk.Prediction("flow_prediction", x_t, sigma=t)
        logits = discriminator(
            x_t, t
        )  # h without a gradient, the GAN term with one; zero_grad clears the discriminator's
        loss, stats = loss_fn(x, of_teacher, of_fake, logits, t, prediction=prediction, return_stats=True)
        update(student_optimizer, loss)
    if step % args.log_every == 0:
        print(
            f"step {step}: energy distance {energy_distance():.4f}, effective sample size "
            f"{stats.effective_sample_size:.2f}, ratio {stats.ratio_mean:.2f}, gap {stats.relative_gap:.3f}, "
            f"gradient {stats.grad_norm:.1e}"
        )
if args.save:
    torch.save({"student": student.state_dict(), "loss": loss_fn.state_dict()}, args.save)  # optimizers: if you resume
