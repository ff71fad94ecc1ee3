"""Distill a diffusers UNet into one step: scheduler, guidance, GAN term, accumulation, autocast, compiled networks.

    python examples/diffusers_dmd.py        # MINUTES on two CPU cores, with the compiler's

A class-conditional teacher of handwritten digits (scikit-learn's) is trained on the spot: put your pipeline's unet and
scheduler in its place. One step of the student takes several micro-batches. Its weights h need the logits of all of
them: a pass without gradients collects these, `fdiv_weight` is called once, and the second pass takes slices of h.
Prints the energy distance of the student's images to the digits, and the health of h.
"""

import argparse
import copy

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from sklearn.datasets import load_digits
from torch import Tensor

import fdkernels as fdk

parser = argparse.ArgumentParser()
for option, default in (("--steps", 100), ("--teacher-steps", 500), ("--accumulate", 2), ("--log-every", 10)):
    parser.add_argument(option, type=int, default=default)
args = parser.parse_args()
device, batch = "cuda" if torch.cuda.is_available() else "cpu", 32
torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32, device=device)[:, None] / 8 - 1
classes = torch.tensor(digits.target, device=device)
prompts = torch.eye(11, 16, device=device)[:, None]  # in place of a text encoder's: ten classes and the empty prompt
scheduler = DDPMScheduler(prediction_type="v_prediction")
teacher = UNet2DConditionModel(
    8, 1, 1, block_out_channels=(16, 32), down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), layers_per_block=1,
    up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=16, norm_num_groups=8,
).to(device)  # fmt: skip


def draw() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images, their prompts, noise, timesteps."""
    index = torch.randint(len(images), (batch,), device=device)
    return images[index], prompts[classes[index]], torch.randn_like(images[index]), torch.randint_like(index, 20, 980)


@torch.autocast(device, torch.bfloat16)
def call(unet: UNet2DConditionModel, x_t: Tensor, t: Tensor, prompt: Tensor) -> Tensor:
    return unet(x_t, t, prompt, return_dict=False)[0]


def sample(z: Tensor, prompt: Tensor) -> Tensor:
    last = torch.full((batch,), 999, device=device)
    return fdk.Prediction.from_scheduler(scheduler, z, last).to_x0(call(student, z, last, prompt).float())


def update(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def denoising_loss(unet: UNet2DConditionModel, x0: Tensor, prompt: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    x_t = scheduler.add_noise(x0, noise, t)
    level = fdk.Prediction.from_scheduler(scheduler, x_t, t)
    return fdk.denoising_loss(call(unet, x_t, t, prompt), x0, noise, level.kind, level.alpha, level.sigma)


@torch.no_grad()
def energy_distance() -> float:
    x, y = (
        torch.cat([sample(z, prompt) for _, prompt, z, _ in (draw() for _ in range(8))]).flatten(1),
        images.flatten(1),
    )
    return (2 * torch.cdist(x, y).mean() - torch.cdist(x, x).mean() - torch.cdist(y, y).mean()).item()


teacher.compile()
optimizer = torch.optim.AdamW(teacher.parameters(), 2e-3)
for _ in range(args.teacher_steps):
    x0, prompt, noise, t = draw()
    prompt = torch.where(torch.rand(batch, 1, 1, device=device) < 0.1, prompts[10], prompt)  # for guidance
    update(optimizer, denoising_loss(teacher, x0, prompt, noise, t))
student, fake, discriminator = (copy.deepcopy(teacher) for _ in range(3))  # the discriminator: 64 logits a sample
teacher.requires_grad_(False)
optimizers = [torch.optim.AdamW(unet.parameters(), 4e-4, betas=(0.0, 0.99)) for unet in (student, fake, discriminator)]
for unet in (student, fake, discriminator):
    unet.compile()
normalizer = fdk.RatioNormalizer(bins=10, t_range=(0, 999)).to(device)
print(f"teacher in one step: energy distance {energy_distance():.3f}")
for step in range(1, args.steps + 1):
    for _ in range(2):
        real, prompt, noise, t = draw()
        with torch.no_grad():
            x = sample(torch.randn_like(noise), prompt)
        update(optimizers[1], denoising_loss(fake, x, prompt, noise, t))
        logits = [call(discriminator, scheduler.add_noise(v, noise, t), t, prompt).flatten(1) for v in (x, real)]
        update(optimizers[2], fdk.discriminator_loss(*logits))
    parts = [(*draw()[1:], torch.randn_like(x)) for _ in range(args.accumulate)]
    with torch.no_grad():
        logits = [
            call(discriminator, scheduler.add_noise(sample(z, prompt), noise, t), t, prompt).flatten(1)
            for prompt, z, t, noise in parts
        ]
    h, stats = fdk.fdiv_weight(
        torch.cat(logits), torch.cat([part[2] for part in parts]), normalizer=normalizer, return_stats=True
    )
    optimizers[0].zero_grad()
    for (prompt, z, t, noise), weight in zip(parts, h.split(batch), strict=True):
        x = sample(z, prompt)
        x_t = scheduler.add_noise(x, noise, t)
        with torch.no_grad():
            of_fake, cond, uncond = (
                call(fake, x_t, t, prompt),
                call(teacher, x_t, t, prompt),
                call(teacher, x_t, t, prompts[10].expand_as(prompt)),
            )
        prediction = fdk.Prediction.from_scheduler(scheduler, x_t, t)
        loss = fdk.fused_fdiv_loss(
            x, cond, of_fake, weight=weight, prediction=prediction, teacher_uncond=uncond, guidance_scale=1.5
        )
        loss = loss + 0.01 * fdk.generator_loss(call(discriminator, x_t, t, prompt).flatten(1))
        (loss / args.accumulate).backward()
    optimizers[0].step()
    if step % args.log_every == 0:
        print(
            f"step {step}: energy distance {energy_distance():.3f}, effective sample size "
            f"{stats.effective_sample_size:.2f}, ratio {stats.ratio_mean:.2f}, clipped {stats.clip_fraction:.2f}"
        )
