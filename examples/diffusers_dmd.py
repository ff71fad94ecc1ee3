"""Distill a diffusers UNet into one step: scheduler, guidance, GAN term, accumulation, autocast, compiled networks.

    python examples/diffusers_dmd.py        # --compiler aot_eager where there is no C++ compiler

The teacher is trained on the spot: put yours there. A student's step has two micro-batches, and h needs the logits of
both: `fdiv_weight` is called once. The data of a prompt are a pattern and its negative. Prints how much of its pattern
an image has (data: 1; the untrained student, which averages both: 0), and the health of h.
"""

import argparse
import copy

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel

import fdkernels as fdk

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=100)
parser.add_argument("--compiler", default="inductor", help="backend of torch.compile")
args = parser.parse_args()
device, batch = "cuda" if torch.cuda.is_available() else "cpu", 32
torch.set_default_device(device)
torch.manual_seed(0)
last, empty = torch.full((batch,), 999), torch.full((batch,), 4)  # a timestep; the empty prompt, for guidance
patterns, prompts = torch.randn(4, 1, 8, 8).sign(), torch.eye(5, 16)[:, None]  # yours: of a text encoder
scheduler = DDPMScheduler(prediction_type="v_prediction")
teacher = UNet2DConditionModel(
    8, 1, 1, block_out_channels=(16,), layers_per_block=1, norm_num_groups=8, cross_attention_dim=16,
    mid_block_type=None, down_block_types=("CrossAttnDownBlock2D",), up_block_types=("UpBlock2D",),
)  # fmt: skip


@torch.autocast(device, torch.bfloat16)
def call(unet, x_t, t, label):
    return unet(x_t, t, prompts[label], return_dict=False)[0]


def draw():
    label, t = torch.randint(4, (batch,)), torch.randint(20, 980, (batch,))
    return label, patterns[label] * torch.randn(batch, 1, 1, 1).sign(), t, *torch.randn(2, batch, 1, 8, 8)


def sample(label, z):
    return fdk.Prediction.from_scheduler(scheduler, z, last).to_x0(call(student, z, last, label).float())


def denoising_loss(unet, label, x0, t, noise):
    x_t = scheduler.add_noise(x0, noise, t)
    level = fdk.Prediction.from_scheduler(scheduler, x_t, t)
    return fdk.denoising_loss(call(unet, x_t, t, label), x0, noise, level.kind, level.alpha, level.sigma)


def update(optimizer, loss):
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


optimizer = torch.optim.AdamW(teacher.parameters(), 3e-3)
for _ in range(4 * args.steps):
    label, *inputs, _ = draw()
    update(optimizer, denoising_loss(teacher, torch.where(torch.rand(batch) < 0.1, empty, label), *inputs))
student, fake, discriminator = (copy.deepcopy(teacher) for _ in range(3))  # the discriminator: 64 logits a sample
optimizers = [torch.optim.AdamW(unet.parameters(), 1e-3, betas=(0.0, 0.99)) for unet in (student, fake, discriminator)]
for unet in (teacher, student, fake, discriminator):
    unet.compile(backend=args.compiler)
normalizer = fdk.RatioNormalizer(bins=10, t_range=(0, 999))
for step in range(args.steps):
    parts, logits = (draw(), draw()), []
    for label, data, t, noise, z in parts:  # fake score and discriminator learn
        with torch.no_grad():
            x = sample(label, z)
        update(optimizers[1], denoising_loss(fake, label, x, t, noise))
        noised = (scheduler.add_noise(v, noise, t) for v in (x, data))
        on_fake, on_real = (call(discriminator, x_t, t, label).flatten(1) for x_t in noised)
        update(optimizers[2], fdk.discriminator_loss(on_fake, on_real))
        logits.append(on_fake.detach())
    t = torch.cat([p[2] for p in parts])
    h, stats = fdk.fdiv_weight(torch.cat(logits), t, divergence="js", normalizer=normalizer, return_stats=True)
    optimizers[0].zero_grad()
    for (label, _, t, noise, z), weight in zip(parts, h.split(batch), strict=True):
        x = sample(label, z)
        x_t = scheduler.add_noise(x, noise, t)
        with torch.no_grad():  # constants of the loss
            networks = ((fake, label), (teacher, label), (teacher, empty))
            v_fake, cond, uncond = (call(unet, x_t, t, of) for unet, of in networks)
        loss = fdk.fused_fdiv_loss(
            x, cond, v_fake, weight=weight, prediction=fdk.Prediction.from_scheduler(scheduler, x_t.detach(), t),
            teacher_uncond=uncond, guidance_scale=1.5,
        )  # fmt: skip
        loss = loss + 0.01 * fdk.generator_loss(call(discriminator, x_t, t, label).flatten(1))
        (loss / len(parts)).backward()
    optimizers[0].step()
    pattern = (x * patterns[label]).mean((1, 2, 3)).abs().mean()
    print(f"step {step}: {pattern=:.2f}, {stats.effective_sample_size=:.2f}, {stats.ratio_mean=:.2f}")
