"""Distill with Hugging Face accelerate: in one process, or under DDP.

    python examples/accelerate_dmd.py
    accelerate launch --num_processes 2 examples/accelerate_dmd.py        # two GPUs
    ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 examples/accelerate_dmd.py        # two CPUs

DDP averages gradients, so each rank's loss is that of its own samples. `group=` makes h's statistics, and with them the
normalizer's running means, those of all ranks. Prints the mean distance of the samples to the nearest of four corners,
where the data are (theirs: 0.125), and the health of h.
"""

import argparse
import copy

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fdkernels as fdk

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=1000)
parser.add_argument("--save", help="folder for accelerate's checkpoint")
args, batch, accelerator = parser.parse_args(), 256, Accelerator()
device = accelerator.device
set_seed(0)  # the same networks and data on every rank


class Network(nn.Module):
    def __init__(self, outputs: int) -> None:
        super().__init__()
        hidden = (nn.Sequential(nn.Linear(n, 128), nn.SiLU()) for n in (3, 128, 128))
        self.layers = nn.Sequential(*hidden, nn.Linear(128, outputs))

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.layers(torch.cat((x_t, t[:, None]), 1))


def sample() -> Tensor:
    return (z := torch.randn(batch, 2, device=device)) - student(z, torch.ones(batch, device=device))  # x0 at t = 1


def update(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    accelerator.backward(loss)
    optimizer.step()


count = args.steps * batch * accelerator.num_processes
data = torch.randint(2, (count, 2)) * 2 - 1 + 0.1 * torch.randn(count, 2)
loader = DataLoader(TensorDataset(data), batch, shuffle=True)
teacher = Network(2).to(device)
optimizer = torch.optim.Adam(teacher.parameters(), 2e-3)
for _ in range(1000):  # a teacher, trained on the spot: load yours here
    x0, t = data[torch.randint(count, (batch,))].to(device), torch.rand(batch, device=device)
    x_t, noise = fdk.add_noise(x0, None, t, return_noise=True)
    update(optimizer, fdk.denoising_loss(teacher(x_t, t), x0, noise, "flow_prediction"))
student, fake, discriminator = networks = (copy.deepcopy(teacher), copy.deepcopy(teacher), Network(1))
optimizers = [torch.optim.Adam(n.parameters(), 1e-3, betas=(0.0, 0.99)) for n in networks]
student, fake, discriminator, loader = accelerator.prepare(student, fake, discriminator, loader)
of_student, of_fake, of_discriminator = accelerator.prepare(*optimizers)
loss_fn = fdk.FDivLoss("js", group=dist.group.WORLD).to(device)  # WORLD is None where there is one process
accelerator.register_for_checkpointing(loss_fn)
set_seed(1, device_specific=True)  # other samples on every rank
for step, (real,) in enumerate(loader, 1):
    t = torch.rand(batch, device=device)
    with torch.no_grad():
        x = sample()
    x_t, noise = fdk.add_noise(x, None, t, return_noise=True)  # alpha=None: flow's 1 - t
    update(of_fake, fdk.denoising_loss(fake(x_t, t), x, noise, "flow_prediction"))
    logits = discriminator(torch.cat((x_t, fdk.add_noise(real, None, t))), torch.cat((t, t)))
    update(of_discriminator, fdk.discriminator_loss(*logits.chunk(2)))
    if step % 4 == 0:
        x, t = sample(), torch.rand(batch, device=device)
        x_t = fdk.add_noise(x, None, t)
        with torch.no_grad():
            v_teacher, v_fake, logits = teacher(x_t, t), fake(x_t, t), discriminator(x_t, t)
        prediction = fdk.Prediction("flow_prediction", x_t, sigma=t)
        loss, stats = loss_fn(x, v_teacher, v_fake, logits, t, prediction=prediction, return_stats=True)
        update(of_student, loss)
    if step % 100 == 0:
        health = f"ess {stats.effective_sample_size:.2f}, gap {stats.relative_gap:.3f}"
        accelerator.print(f"step {step}: distance {(x.abs() - 1).norm(dim=1).mean():.3f}, {health}")
if args.save:
    accelerator.save_state(args.save)
accelerator.end_training()
