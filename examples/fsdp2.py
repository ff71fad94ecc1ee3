"""Distill under PyTorch FSDP2: student, fake score and discriminator are sharded over the ranks.

    torchrun --nproc-per-node 2 examples/fsdp2.py        # gloo on CPUs; with CUDA, NCCL and a GPU for each rank

FSDP2 averages gradients, so each rank's loss is that of its own samples. `group=` makes h's statistics, and with them
the normalizer's running means, those of all ranks. Rank 0 prints h's effective sample size and the mean distance of
its samples to the nearest of four corners, where the data are (theirs: 0.125).
"""

import argparse
import copy

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from torch.distributed.fsdp import fully_shard

import fdkernels as fdk

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=1000)
parser.add_argument("--save", help="folder for a distributed checkpoint")
args, batch = parser.parse_args(), 256
dist.init_process_group()
if torch.cuda.is_available():
    torch.cuda.set_device(dist.get_node_local_rank())
    torch.set_default_device("cuda")
torch.manual_seed(0)  # the same networks on every rank


def network(outputs: int) -> nn.Sequential:
    return nn.Sequential(*(nn.Sequential(nn.Linear(n, 128), nn.SiLU()) for n in (3, 128, 128)), nn.Linear(128, outputs))


def call(network: nn.Module, x_t: Tensor, t: Tensor) -> Tensor:
    return network(torch.cat((x_t, t[:, None]), 1))


def data() -> Tensor:
    return torch.randint(2, (batch, 2)) * 2 - 1 + 0.1 * torch.randn(batch, 2)


def sample() -> Tensor:
    return (z := torch.randn(batch, 2)) - call(student, z, torch.ones(batch))  # x0 of the velocity at t = 1


def update(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


teacher = network(2)
optimizer = torch.optim.Adam(teacher.parameters(), 2e-3)
for _ in range(1000):  # a teacher, trained on the spot: load yours here
    x0, t = data(), torch.rand(batch)
    x_t, noise = fdk.add_noise(x0, None, t, return_noise=True)
    update(optimizer, fdk.denoising_loss(call(teacher, x_t, t), x0, noise, "flow_prediction"))
student, fake, discriminator = networks = (copy.deepcopy(teacher), copy.deepcopy(teacher), network(1))
for sharded in networks:
    for module in (*sharded, sharded):  # the layers, then what is left
        fully_shard(module)
of_student, of_fake, of_discriminator = (torch.optim.Adam(n.parameters(), 1e-3, betas=(0.0, 0.99)) for n in networks)
loss_fn = fdk.FDivLoss("js", gan_weight=0.01, group=dist.group.WORLD)
torch.manual_seed(1 + dist.get_rank())  # other samples on every rank
for step in range(1, args.steps + 1):
    t = torch.rand(batch)
    with torch.no_grad():
        x = sample()
    x_t, noise = fdk.add_noise(x, None, t, return_noise=True)  # alpha=None: flow's 1 - t
    update(of_fake, fdk.denoising_loss(call(fake, x_t, t), x, noise, "flow_prediction"))
    logits = call(discriminator, torch.cat((x_t, fdk.add_noise(data(), None, t))), torch.cat((t, t)))
    update(of_discriminator, fdk.discriminator_loss(*logits.chunk(2)))
    if step % 4 == 0:
        x, t = sample(), torch.rand(batch)
        x_t = fdk.add_noise(x, None, t)
        with torch.no_grad():
            v_teacher, v_fake = call(teacher, x_t, t), call(fake, x_t, t)
        logits = call(discriminator, x_t, t)  # with a graph, for the GAN term: zero_grad clears the discriminator's
        prediction = fdk.Prediction("flow_prediction", x_t, sigma=t)
        loss, stats = loss_fn(x, v_teacher, v_fake, logits, t, prediction=prediction, return_stats=True)
        update(of_student, loss)
    if step % 100 == 0 and dist.get_rank() == 0:
        print(f"step {step}: distance {(x.abs() - 1).norm(dim=1).mean():.3f}, ess {stats.effective_sample_size:.2f}")
if args.save:
    dcp.save({"student": get_model_state_dict(student), "loss": loss_fn.state_dict()}, checkpoint_id=args.save)
dist.destroy_process_group()
