"""Every role's step, written in float64: loss, figures, gradient, update, average, normalizer.

`Hand` shares networks and data with the trainer, but no step. It replays the trainer's draws from the generator's
state, in their order: z, ln σ, noise; the data, their noise; then the student's z, ln σ, noise, then the permutation,
or the data and their noise of relativistic logits. It writes each loss from its formula, computes h from the
generator f, and noise with Philox in Python. After each update it takes the trainer's weights, so that errors do not
grow from step to step.
"""

import math
from contextlib import contextmanager

import pytest
import torch
from torch.nn.utils import vector_to_parameters

from fdistill import run
from tests import oracle
from tests.fdistill.test_trainer import start
from tests.noising import normals

ORDER = ("fake", "discriminator", "student")
TOLERANCE = 2e-5  # relative, for float32 networks; measured: up to 3e-6


def flat(tensors):
    return torch.cat([t.detach().double().flatten() for t in tensors])


def per_sample(v, x):
    return v.reshape(-1, *(1,) * (x.dim() - 1))


def in_float64(net):
    net = net.double()
    if unet := getattr(getattr(net, "denoiser", net), "unet", None):
        unet.time_proj.register_forward_hook(lambda *_: _[-1].double())  # diffusers computes it in float32
    return net


def noise_like(x, replay):
    """Philox's normal numbers in the order of x's elements; the generator gives the seed."""
    seed = int(torch.randint(2**63 - 1, (1,), generator=replay))
    return torch.from_numpy(normals(seed, 0, x.numel())).view(x.shape)


def noised(x, cfg, replay):
    """x with noise at levels of its own: ln σ ~ N(mean, std²), x_t = x + σ·n."""
    normal = torch.randn(len(x), generator=replay).double()
    sigma = (cfg.sigma_log_mean + cfg.sigma_log_std * normal).exp()
    return x + per_sample(sigma, x) * noise_like(x, replay), sigma


def coefficients(net, sigma, x):
    """EDM's (a, c) of x0 = a·x_t + c·F."""
    total = sigma**2 + net.sigma_data**2
    return per_sample(net.sigma_data**2 / total, x), per_sample(sigma * net.sigma_data / total.sqrt(), x)


def denoising(net, x, noisy, sigma):
    """The loss mean (F - (x - a·x_t)/c)², and its gradient."""
    a, c = coefficients(net, sigma, x)
    raw = net(noisy, sigma)
    error = raw.detach() - (x - a * noisy) / c
    return error.square().mean(), flat(torch.autograd.grad(raw, list(net.parameters()), 2 * error / error.numel()))


def discriminators(kind, fake, real):
    """(loss, its slopes): mean log(1 + e^fake) + mean log(1 + e^-real); hinge: mean max(0, 1 + fake) + mean max(0, 1 -
    real); relativistic: mean log(1 + e^(fake - real))."""
    n = fake.numel()
    if kind == "hinge":
        loss = (1 + fake).clamp(min=0).mean() + (1 - real).clamp(min=0).mean()
        return loss, [(fake > -1).double() / n, -(real < 1).double() / n]
    if kind == "relativistic":
        slope = 1 / (1 + (real - fake).exp()) / n
        return (1 + (fake - real).exp()).log().mean(), [slope, -slope]
    loss = (1 + fake.exp()).log().mean() + (1 + (-real).exp()).log().mean()
    return loss, [1 / (1 + (-fake).exp()) / n, -1 / (1 + real.exp()) / n]


def generators(kind, fake, real=None):
    """(loss, its slope): mean log(1 + e^-fake); hinge: mean -fake; relativistic: mean log(1 + e^(real - fake))."""
    if kind == "hinge":
        return -fake.mean(), torch.full_like(fake, -1 / fake.numel())
    margin = fake - real if kind == "relativistic" else fake
    return (1 + (-margin).exp()).log().mean(), -1 / (1 + margin.exp()) / fake.numel()


def implicit(cfg, x, teacher, fake, sigma):
    """SiD: mean of e·(d - αe) / ω, e = τ - f, d = τ - x, ω = mean|d| of a sample, a constant. SIM: mean over samples of
    -k²·Σ(f-τ)(f-x) / √(k²·Σ(f-τ)² + c²), k = 1/σ². Each sample times σ^sigma_power."""
    x, teacher, fake = (v.flatten(1) for v in (x, teacher, fake))
    weight = sigma**cfg.sigma_power
    if cfg.kind == "sid":
        e, d = teacher - fake, teacher - x
        distance = d.detach().abs().mean(1).clamp(min=1e-5)
        return (weight * (e * (d - cfg.alpha * e)).mean(1) / distance).mean()
    k2 = sigma**-4
    root = (k2 * (fake - teacher).square().sum(1) + cfg.c**2).sqrt()
    return (-weight * k2 * ((fake - teacher) * (fake - x)).sum(1) / root).mean()


class AdamW:
    """A role's optimizer on its weights as one vector: global clip, decoupled weight decay, warm-up, cosine."""

    def __init__(self, cfg, total):
        self.cfg, self.total = cfg, total
        self.updates = self.applied = 0
        self.m = self.v = 0.0

    def clipped(self, gradient):
        return gradient * min(1.0, self.cfg.clip / float(gradient.square().sum().sqrt()))

    def step(self, p, gradient):
        """The weights after a step. A gradient that is not finite changes nothing but the place in the schedule."""
        cfg, u = self.cfg, self.updates
        lr = cfg.lr * min(1.0, (u + 1) / (cfg.warmup + 1))
        if cfg.schedule == "cosine":
            lr *= (1 + math.cos(math.pi * u / self.total)) / 2
        self.updates += 1
        if not gradient.isfinite().all():
            return p
        self.applied += 1
        (b1, b2), k = cfg.betas, self.applied
        self.m = b1 * self.m + (1 - b1) * gradient
        self.v = b2 * self.v + (1 - b2) * gradient**2
        p = p - lr * cfg.weight_decay * p
        return p - lr * (self.m / (1 - b1**k)) / ((self.v / (1 - b2**k)).sqrt() + 1e-8)


class Hand:
    def __init__(self, distiller):
        self.cfg = cfg = distiller.cfg
        self.step = 0
        self.task = run.task_class(cfg)(cfg)
        self.nets = {name: in_float64(getattr(self.task, name)) for name in ("teacher", *ORDER)}
        for name in ORDER:
            vector_to_parameters(flat(getattr(distiller.task, name).parameters()), self.nets[name].parameters())
        steps = [cfg.phases[i % len(cfg.phases)] for i in range(cfg.steps)]
        self.optimizers = {name: AdamW(getattr(cfg, name), sum(name in phase for phase in steps)) for name in ORDER}
        self.average = flat(distiller.average.network.parameters())
        self.normalizer = distiller.normalizer
        assert (self.normalizer is not None) == (
            cfg.loss.normalize_ratio and cfg.loss.kind == "fdiv" and cfg.loss.gan == "logistic"
        )
        self.mean = torch.ones(cfg.loss.bins, dtype=torch.float64)

    def weights(self, name):
        return list(self.nets[name].parameters())

    def samples(self, replay):
        """The student's samples, clean and noised, and their noise levels."""
        x = self.nets["student"](self.task.noise(self.cfg.batch, replay).double())
        return x, *noised(x, self.cfg, replay)

    def fake(self, x, noisy, sigma):
        loss, gradient = denoising(self.nets["fake"], x, noisy, sigma)
        return gradient, {"loss": loss}

    def discriminator(self, noisy, sigma, replay):
        """The loss of the student's noised samples and of data, noised anew at the same levels."""
        fake, real = self.logits(noisy, sigma), self.real_logits(sigma, replay)
        with torch.no_grad():
            loss, slopes = discriminators(self.cfg.loss.gan, fake, real)
        gradient = flat(torch.autograd.grad([fake, real], self.weights("discriminator"), slopes))
        if self.cfg.loss.gan == "relativistic":
            return gradient, {"loss": loss, "accuracy_pairs": (real > fake).double().mean()}
        accuracies = {"accuracy_fake": (fake < 0).double().mean(), "accuracy_real": (real > 0).double().mean()}
        return gradient, {"loss": loss, **accuracies}

    def logits(self, noisy, sigma):
        return self.nets["discriminator"](self.nets["teacher"].forward_with_features(noisy, sigma)[1], sigma)

    def real_logits(self, sigma, replay):
        real = self.task.real(self.cfg.batch, replay).double()
        return self.logits(real + per_sample(sigma, real) * noise_like(real, replay), sigma)

    def student(self, replay):
        """The loss of its kind, and gan_weight times the generator's."""
        cfg = self.cfg.loss
        x, noisy, sigma = self.samples(replay)
        a, c = coefficients(self.nets["teacher"], sigma, x)
        teacher, fake = (a * noisy + c * self.nets[name](noisy, sigma) for name in ("teacher", "fake"))
        logits = self.logits(noisy, sigma)
        of = self.fdiv if cfg.kind == "fdiv" else self.implicit
        loss, output, slope, health = of(x, teacher, fake, logits, sigma, replay)
        figures = {"score_loss": loss, "loss": loss}
        gradient = flat(torch.autograd.grad(output, self.weights("student"), slope, retain_graph=True))
        if cfg.gan_weight:
            with torch.no_grad():
                real = self.real_logits(sigma, replay) if cfg.gan == "relativistic" else None
                figures["gan_loss"], slope = generators(cfg.gan, logits, real)
            gradient += cfg.gan_weight * flat(torch.autograd.grad(logits, self.weights("student"), slope))
            figures["loss"] = loss + cfg.gan_weight * figures["gan_loss"]
        return gradient, figures, health

    @torch.no_grad()
    def fdiv(self, x, teacher, fake, logits, sigma, replay):
        """½ mean g² with ∂/∂x = g/N, g = h·(f - τ) / (mean|x - τ| + 1e-6)."""
        h, health = torch.ones(len(x), dtype=torch.float64), {}
        if self.cfg.loss.gan == "logistic":
            h, health = self.weight(logits, sigma, replay)
        distance = (x - teacher).abs().flatten(1).mean(1)
        g = per_sample(h / (distance + 1e-6), x) * (fake - teacher)
        lost = ~g.isfinite().flatten(1).all(1)
        g[lost] = 0.0
        health["grad_norm"] = (g / g.numel()).square().sum().sqrt()
        health["relative_gap"] = (fake - teacher).abs().flatten(1).mean(1)[~lost].sum() / distance[~lost].sum()
        health["nonfinite_samples"] = lost.sum()
        return g.square().mean() / 2, x, g / g.numel(), health

    def implicit(self, x, teacher, fake, logits, sigma, replay):
        loss = implicit(self.cfg.loss, x, teacher, fake, sigma)
        gap = (fake - teacher).abs().sum() / (x - teacher).abs().sum()
        return loss.detach(), loss, None, {"relative_gap": gap.detach()}

    def weight(self, logits, sigma, replay=None):
        """h of the ratio r = e^(mean ℓ): clamped, over its running mean in the bin of σ, with mean 1 over the batch."""
        cfg = self.cfg.loss
        combined = logits.flatten(1).mean(1)
        ratio = combined.exp().clamp(*cfg.ratio_range)
        health = {"ratio_mean": ratio.mean(), "clip_fraction": (combined.exp() != ratio).double().mean()}
        if cfg.normalize_ratio:
            bins = (sigma[:, None] >= self.normalizer.edges).sum(1)
            for i in bins.unique() if replay else ():  # without replay, the means do not move
                self.mean[i] = cfg.decay * self.mean[i] + (1 - cfg.decay) * ratio[bins == i].mean()
            low, high = self.normalizer.t_range
            health["out_of_range_fraction"] = ((sigma < low) | (sigma > high)).double().mean()
            ratio = ratio / self.mean[bins]
        raw = torch.from_numpy(oracle.weight_function(cfg.divergence, ratio.log().numpy()))
        h = raw / raw.mean()
        if cfg.shuffle_weight:
            raw = h = h[torch.randperm(len(h), generator=replay)]
            health = {}
        health |= {"weight_min": raw.min(), "weight_mean": raw.mean(), "weight_max": raw.max()}
        health["effective_sample_size"] = raw.sum() ** 2 / (len(raw) * raw.square().sum())
        health["weight_spread"] = (h - h.mean()).square().mean().sqrt()
        return h, health


@contextmanager
def recorded(distiller):
    """A list of (role, the gradient that its optimizer was given, the weights afterwards), for every update."""
    records, handles = [], []
    for name, role in distiller.roles.items():
        parameters = list(role.network.parameters())

        def before(*_, name=name, parameters=parameters):
            records.append([name, flat(torch.zeros_like(p) if p.grad is None else p.grad for p in parameters)])

        def after(*_, parameters=parameters):
            records[-1].append(flat(parameters))

        handles += [role.optimizer.register_step_pre_hook(before), role.optimizer.register_step_post_hook(after)]
    yield records
    for handle in handles:
        handle.remove()


def close(found, expected, what, tolerance):
    error = (found - expected).norm() / expected.norm()
    assert error <= tolerance, f"{what}: off by {error:.1e}"


def advance(distiller, hand, spoilt=False):
    """One iteration of both; returns the trainer's figures."""
    cfg, phase = hand.cfg, hand.cfg.phases[hand.step % len(hand.cfg.phases)]
    replay = torch.Generator()
    replay.set_state(distiller.generator.get_state())
    with recorded(distiller) as records:
        distiller.iteration()
    found, expected = distiller.meter.fetch(), {}
    assert [name for name, *_ in records] == [name for name in ORDER if name in phase]
    if records[0][0] != "student":
        with torch.no_grad():
            x, noisy, sigma = hand.samples(replay)
    for name, given, after in records:
        if name == "fake":
            gradient, figures = hand.fake(x, noisy, sigma)
        elif name == "discriminator":
            gradient, figures = hand.discriminator(noisy, sigma, replay)
        else:
            gradient, figures, health = hand.student(replay)
            expected |= {f"health/{key}": value for key, value in health.items()}
        optimizer, weights = hand.optimizers[name], flat(hand.weights(name))
        if spoilt:
            assert given.isnan().any()
        else:
            figures["grad_norm"] = gradient.norm()
            close(given, optimizer.clipped(gradient), f"{name}'s gradient", TOLERANCE)
        # The update takes the trainer's gradient: AdamW divides by its size, so errors of small ones would grow.
        updated = optimizer.step(weights, given)
        torch.testing.assert_close(
            after, updated, rtol=3e-7, atol=1e-6 * optimizer.cfg.lr, msg=lambda m, n=name: f"{n}: {m}"
        )
        vector_to_parameters(after, hand.weights(name))
        expected |= {f"{name}/{key}": value for key, value in figures.items()}
        if name == "student":
            decay = min(cfg.ema, (1 + optimizer.updates) / (10 + optimizer.updates))
            hand.average = decay * hand.average + (1 - decay) * after
    hand.step += 1
    assert distiller.step == hand.step
    # A loss of score implicit matching is a mean of numbers of both signs.
    absolute = 1e-9 if cfg.loss.kind == "fdiv" else 5e-6
    assert found == pytest.approx({key: value.item() for key, value in expected.items()}, rel=TOLERANCE, abs=absolute)
    # Nothing else was drawn, trained or left behind.
    assert torch.equal(replay.get_state(), distiller.generator.get_state())
    networks = {**distiller.networks, "teacher": distiller.teacher}
    close(flat(networks.pop("ema").parameters()), hand.average, "the average", 1e-6)
    for name, net in networks.items():
        assert torch.equal(flat(net.state_dict().values()), flat(hand.nets[name].state_dict().values())), name
        assert all(p.grad is None and p.requires_grad == (name in ORDER) for p in net.parameters()), name
    if hand.normalizer is not None:
        close(distiller.normalizer.mean.double(), hand.mean, "the normalizer's means", 1e-5)
    for name, role in distiller.roles.items():
        assert role.updates == hand.optimizers[name].updates
        assert int(role.skipped) == role.updates - hand.optimizers[name].applied
    return found


def pair(preset, settings):
    """A distiller and its hand. Their networks are moved off the start, where the scores agree and all ratios are 1."""
    distiller = start(preset, settings)
    copies = [(distiller.average.network, distiller.task.student)]
    if preset == "digits":
        copies += [(distiller.task.student, distiller.teacher), (distiller.task.fake, distiller.teacher)]
    assert all(torch.equal(flat(a.parameters()), flat(b.parameters())) for a, b in copies)
    generator = torch.Generator().manual_seed(5)
    for name in ORDER:
        for p in getattr(distiller.task, name).parameters():
            size = (2.0 if name == "discriminator" else 0.5) * p.detach().square().mean().sqrt()
            p.data += size * torch.randn(p.shape, generator=generator)
    return distiller, Hand(distiller)
