"""Distill a diffusers UNet into one step: scheduler, guidance, GAN term, accumulation, autocast, compiled networks.

    python examples/diffusers_dmd.py        # two minutes of one CPU core, half of it the compiler's

The critics learn on each micro-batch; the student's step is of all. h needs all logits: `fdiv_weight` is called once,
and each micro-batch takes a slice. The data of a prompt are a pattern and its negative. Prints how much of it an image
has (data: 1; the teacher in one step averages both: 0), and how far fake score and teacher are apart (relative_gap).
"""

import argparse
import copy

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor

import fdkernels as fdk

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=60)
args = parser.parse_args()
device, batch, accumulate = "cuda" if torch.cuda.is_available() else "cpu", 32, 2
torch.set_default_device(device)
torch.manual_seed(0)
patterns, prompts = torch.randn(4, 1, 8, 8).sign(), torch.eye(5, 16)[:, None]  # for a text encoder's; the last is empty
empty, last = prompts[4].repeat(batch, 1, 1), torch.full((batch,), 999)
scheduler = DDPMScheduler(prediction_type="v_prediction")
teacher = UNet2DConditionModel(
    8, 1, 1, block_out_channels=(16,), layers_per_block=1, norm_num_groups=8, attention_head_dim=2, mid_block_type=None,
    cross_attention_dim=16, down_block_types=("CrossAttnDownBlock2D",), up_block_types=("UpBlock2D",))  # fmt: skip


def draw() -> tuple[Tensor, ...]:
    label, sign = torch.randint(4, (batch,)), torch.randn(batch, 1, 1, 1).sign()
    return patterns[label] * sign, prompts[label], torch.randint(20, 980, (batch,)), *torch.randn(2, batch, 1, 8, 8)


@torch.autocast(device, torch.bfloat16)
def call(unet: UNet2DConditionModel, x_t: Tensor, t: Tensor, prompt: Tensor) -> Tensor:
    return unet(x_t, t, prompt, return_dict=False)[0]


def denoising_loss(unet: UNet2DConditionModel, x0: Tensor, prompt: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    x_t = scheduler.add_noise(x0, noise, t)
    level = fdk.Prediction.from_scheduler(scheduler, x_t, t)
    return fdk.denoising_loss(call(unet, x_t, t, prompt), x0, noise, level.kind, level.alpha, level.sigma)


optimizer = torch.optim.AdamW(teacher.parameters(), 3e-3)
for x0, prompt, t, _, noise in (draw() for _ in range(500)):  # a teacher, trained on the spot: load yours here
    prompt = torch.where(torch.rand(batch, 1, 1) < 0.1, empty, prompt)  # for guidance
    optimizer.zero_grad()
    denoising_loss(teacher, x0, prompt, t, noise).backward()
    optimizer.step()
student, fake, discriminator = networks = [copy.deepcopy(teacher) for _ in range(3)]
of_student = torch.optim.AdamW(student.parameters(), 4e-4, betas=(0.0, 0.99))
of_critics = torch.optim.AdamW([*fake.parameters(), *discriminator.parameters()], 4e-4, betas=(0.0, 0.99))
for network in (teacher, *networks):
    network.compile()
normalizer = fdk.RatioNormalizer(bins=10, t_range=(0, 999))
for step in range(1, args.steps + 1):
    parts, logits = [draw() for _ in range(accumulate)], []
    for x0, prompt, t, noise, z in parts:
        with torch.no_grad():
            x = fdk.Prediction.from_scheduler(scheduler, z, last).to_x0(call(student, z, last, prompt).float())
        on_fake, on_real = (
            call(discriminator, scheduler.add_noise(v, noise, t), t, prompt).flatten(1) for v in (x, x0)
        )
        of_critics.zero_grad()  # the student's GAN term left gradients in the discriminator
        (denoising_loss(fake, x, prompt, t, noise) + fdk.discriminator_loss(on_fake, on_real)).backward()
        of_critics.step()
        logits.append(on_fake.detach())  # 64 heads
    h = fdk.fdiv_weight(torch.cat(logits), torch.cat([part[2] for part in parts]), normalizer=normalizer)
    of_student.zero_grad()
    for (_, prompt, t, noise, z), weight in zip(parts, h.split(batch), strict=True):
        x = fdk.Prediction.from_scheduler(scheduler, z, last).to_x0(call(student, z, last, prompt).float())
        x_t = scheduler.add_noise(x, noise, t)
        with torch.no_grad():
            cond, uncond = (call(teacher, x_t.detach(), t, p) for p in (prompt, empty))
            v_fake = call(fake, x_t.detach(), t, prompt)
        loss, stats = fdk.fused_fdiv_loss(
            x, cond, v_fake, weight=weight, prediction=fdk.Prediction.from_scheduler(scheduler, x_t, t),
            teacher_uncond=uncond, guidance_scale=1.5, return_stats=True,
        )  # fmt: skip
        loss = loss + 0.01 * fdk.generator_loss(call(discriminator, x_t, t, prompt).flatten(1))
        (loss / accumulate).backward()
    of_student.step()
    if step % 10 == 0:
        print(f"step {step}: pattern {(x * x0).mean((1, 2, 3)).abs().mean():.3f}, gap {stats.relative_gap:.3f}")
