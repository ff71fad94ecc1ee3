"""Every role's step, compared with one written here in float64: loss, figures, gradient, update, average, normalizer.

`Hand` shares networks and data with the trainer, but no step. It replays the trainer's draws from the generator's
state, in their order: z, ln σ, noise; the data, their noise; then the student's z, ln σ, noise, permutation. It writes
each loss's derivative itself (autograd runs through the networks only) and computes h from the generator f. After each
update it takes the trainer's weights, so that errors do not grow from step to step.
"""

import itertools
import math
from contextlib import contextmanager
from statistics import NormalDist

import pytest
import torch
from torch.nn.utils import vector_to_parameters

import fdkernels as fdk
from fdistill import config, digits, run
from fdistill.config import OptimizerConfig
from fdistill.networks import UNetDenoiser
from fdistill.task import EpochSampler
from tests import oracle
from tests.fdistill.test_trainer import start

ORDER = ("fake", "discriminator", "student")
# All roles differ, and no value is a default: warm-up, cosine, decay, clips that bind in some steps only.
OPTIMIZERS = [
    "student={lr: 0.02, betas: [0.3, 0.9], weight_decay: 0.3, clip: 0.7, schedule: cosine, warmup: 1}",
    "fake={lr: 0.01, betas: [0.5, 0.8], weight_decay: 0.2, clip: 1.2, schedule: cosine}",
    "discriminator={lr: 0.03, betas: [0.2, 0.7], weight_decay: 0.1, clip: 1.5, schedule: constant, warmup: 3}",
]
# In seven steps the roles get 7, 5 and 4 updates. The average's decay is capped from the student's third update on.
PHASES = ["steps=7", "phases=[[fake,discriminator],[student,fake],[fake,discriminator,student]]", "ema=0.28"]
LOSS = ["loss.divergence=kl", "loss.bins=3", "loss.decay=0.6", "loss.ratio_range=[0.5,3]"]
SIGMA = ["sigma_log_mean=-0.2", "sigma_log_std=0.9", "sigma_max=1.7"]
SETTINGS = [*OPTIMIZERS, *PHASES, *LOSS, *SIGMA]

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


def noised(x, cfg, replay):
    """x with noise at levels of its own: ln σ ~ N(mean, std²), x_t = x + σ·n."""
    normal = torch.randn(len(x), generator=replay).double()
    sigma = (cfg.sigma_log_mean + cfg.sigma_log_std * normal).exp()
    return x + per_sample(sigma, x) * torch.randn(x.shape, generator=replay).double(), sigma


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
        self.edges = distiller.normalizer.edges if cfg.loss.normalize_ratio else None
        self.range = distiller.normalizer.t_range if cfg.loss.normalize_ratio else None
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
        """mean log(1 + e^ℓ) of the student's samples + mean log(1 + e^-ℓ) of data, noised anew at the same levels."""
        real = self.task.real(self.cfg.batch, replay).double()
        real_noisy = real + per_sample(sigma, real) * torch.randn(real.shape, generator=replay).double()
        with torch.no_grad():
            features = [self.nets["teacher"].forward_with_features(v, sigma)[1] for v in (noisy, real_noisy)]
        fake, real = outputs = [self.nets["discriminator"](f, sigma) for f in features]
        slopes = [1 / (1 + (-fake).exp()) / fake.numel(), -1 / (1 + real.exp()) / real.numel()]
        gradients = torch.autograd.grad(outputs, self.weights("discriminator"), [v.detach() for v in slopes])
        return flat(gradients), {
            "loss": (1 + fake.exp()).log().mean() + (1 + (-real).exp()).log().mean(),
            "accuracy_fake": (fake < 0).double().mean(),
            "accuracy_real": (real > 0).double().mean(),
        }

    def student(self, replay):
        """½ mean g² with ∂/∂x = g/N, g = h·c·(F_fake - F_teacher) / (mean|x - x0_teacher| + 1e-6), and
        gan_weight · mean log(1 + e^-ℓ)."""
        x, noisy, sigma = self.samples(replay)
        a, c = coefficients(self.nets["teacher"], sigma, x)
        teacher, features = self.nets["teacher"].forward_with_features(noisy, sigma)
        logits = self.nets["discriminator"](features, sigma)
        gan = self.cfg.loss.gan_weight
        with torch.no_grad():
            h, health = self.weight(logits, sigma, replay)
            gap = c * (self.nets["fake"](noisy, sigma) - teacher)
            distance = (x - (a * noisy + c * teacher)).abs().flatten(1).mean(1)
            g = per_sample(h / (distance + 1e-6), x) * gap
            lost = ~g.isfinite().flatten(1).all(1)
            g[lost] = 0.0
            slope = -gan / (1 + logits.exp()) / logits.numel()
            figures = {"score_loss": g.square().mean() / 2, "gan_loss": (1 + (-logits).exp()).log().mean()}
        gradients = torch.autograd.grad([x, logits], self.weights("student"), [g / g.numel(), slope])
        figures["loss"] = figures["score_loss"] + gan * figures["gan_loss"]
        if not gan:
            del figures["gan_loss"]
        health["grad_norm"] = (g / g.numel()).square().sum().sqrt()
        health["relative_gap"] = gap.abs().flatten(1).mean(1)[~lost].sum() / distance[~lost].sum()
        health["nonfinite_samples"] = lost.sum()
        return flat(gradients), figures, health

    def weight(self, logits, sigma, replay=None):
        """h of the ratio r = e^(mean ℓ): clamped, over its running mean in the bin of σ, with mean 1 over the batch."""
        cfg = self.cfg.loss
        combined = logits.flatten(1).mean(1)
        ratio = combined.exp().clamp(*cfg.ratio_range)
        health = {"ratio_mean": ratio.mean(), "clip_fraction": (combined.exp() != ratio).double().mean()}
        if cfg.normalize_ratio:
            bins = (sigma[:, None] >= self.edges).sum(1)
            for i in bins.unique() if replay else ():  # without replay, the means do not move
                self.mean[i] = cfg.decay * self.mean[i] + (1 - cfg.decay) * ratio[bins == i].mean()
            low, high = self.range
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
    assert found == pytest.approx({key: value.item() for key, value in expected.items()}, rel=TOLERANCE, abs=1e-9)
    # Nothing else was drawn, trained or left behind.
    assert torch.equal(replay.get_state(), distiller.generator.get_state())
    networks = {**distiller.networks, "teacher": distiller.teacher}
    close(flat(networks.pop("ema").parameters()), hand.average, "the average", 1e-6)
    for name, net in networks.items():
        assert torch.equal(flat(net.state_dict().values()), flat(hand.nets[name].state_dict().values())), name
        assert all(p.grad is None and p.requires_grad == (name in ORDER) for p in net.parameters()), name
    if cfg.loss.normalize_ratio:
        close(distiller.normalizer.mean.double(), hand.mean, "the normalizer's means", 1e-5)
    for name, role in distiller.roles.items():
        assert role.updates == hand.optimizers[name].updates
        assert int(role.skipped) == role.updates - hand.optimizers[name].applied
    return found


def pair(preset, tiny, options):
    """A distiller and its hand. Their networks are moved off the start, where the scores agree and all ratios are 1."""
    distiller = start(preset, [*tiny, *SETTINGS, *options])
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


def hold(tiny, options):
    """Run the gmm task, and check that its steps show what they have to show."""
    distiller, hand = pair("gmm", tiny, options)
    figures = [advance(distiller, hand) for _ in range(hand.cfg.steps)]
    assert [hand.optimizers[name].updates for name in ORDER] == [7, 5, 4]
    for name in ORDER:  # the clip binds in some steps and not in others
        norms = [row[f"{name}/grad_norm"] for row in figures if f"{name}/grad_norm" in row]
        assert min(norms) < hand.optimizers[name].cfg.clip < max(norms)
    rows = [row for row in figures if "student/loss" in row]
    if not hand.cfg.loss.shuffle_weight:
        assert any(0 < row["health/clip_fraction"] < 1 for row in rows)
    assert hand.cfg.loss.divergence == "rkl" or max(row["health/weight_spread"] for row in rows) > 0.1


DIVERGENCES = [*fdk.divergences(), "alpha(0.7)"]


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_steps_of_every_divergence(divergence, tiny_gmm):
    hold(tiny_gmm, [f"loss.divergence={divergence}", "loss.gan_weight=0.3"])


@pytest.mark.parametrize(
    ("normalize", "gan", "shuffle"), [*itertools.product(("true", "false"), (0, 0.8), ("true", "false"))]
)
def test_steps_of_every_option(normalize, gan, shuffle, tiny_gmm):
    loss = [f"loss.normalize_ratio={normalize}", f"loss.gan_weight={gan}", f"loss.shuffle_weight={shuffle}"]
    hold(tiny_gmm, loss)


def test_steps_on_every_backend(backend, tiny_gmm, monkeypatch):
    used, fused = [], fdk.fused_fdiv_loss
    monkeypatch.setattr(
        fdk, "fused_fdiv_loss", lambda *args, **how: (used.append(how["backend"]), fused(*args, **how))[1]
    )
    hold(tiny_gmm, [f"loss.backend={backend}"])
    assert used == [backend] * 4


@pytest.mark.parametrize("gan", [0, 0.8])
def test_steps_of_images(gan, tiny_digits):
    distiller, hand = pair("digits", tiny_digits, [f"loss.gan_weight={gan}"])
    for _ in range(hand.cfg.steps):
        advance(distiller, hand)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(bad, tiny_gmm):
    """Only the place in the schedule moves, and the average, which takes the student's weights as they are."""
    distiller, hand = pair("gmm", tiny_gmm, ["loss.gan_weight=0.3"])
    for i in range(7):
        spoilt = i in (0, 2, 4)
        hooks = [next(role.network.parameters()).register_hook(lambda g: g * bad) for role in distiller.roles.values()]
        if not spoilt:
            for hook in hooks:
                hook.remove()
        advance(distiller, hand, spoilt=spoilt)
        for hook in hooks:
            hook.remove()
    assert [hand.optimizers[name].applied for name in ORDER] == [4, 3, 2]


def test_a_sample_that_is_not_finite_is_left_out(tiny_gmm):
    distiller, hand = pair("gmm", tiny_gmm, ["phases=[[student]]"])
    for net in (distiller.task.fake, hand.nets["fake"]):
        net.register_forward_hook(lambda *_: _[-1].index_fill(0, torch.tensor([3]), math.nan))
    assert [advance(distiller, hand)["health/nonfinite_samples"] for _ in range(3)] == [1, 1, 1]


def test_the_weights_that_a_report_shows(tiny_gmm):
    """h of the averaged student, with the normalizer's means unchanged, on noise that no step has drawn."""
    distiller, hand = pair("gmm", tiny_gmm, [])
    for _ in range(3):
        advance(distiller, hand)
    vector_to_parameters(hand.average, hand.weights("student"))
    with torch.no_grad():
        _, noisy, sigma = hand.samples(torch.Generator().manual_seed(hand.cfg.seed + 20_000))
        logits = hand.nets["discriminator"](hand.nets["teacher"].features(noisy, sigma), sigma)
        expected, _ = hand.weight(logits, sigma)
    for found, value in zip(distiller.sample_weights(hand.cfg.batch), (expected, sigma), strict=True):
        close(torch.from_numpy(found).double(), value, "what is shown", TOLERANCE)


def test_bins_are_of_equal_population(tiny_gmm):
    distiller, _ = pair("gmm", tiny_gmm, ["loss.bins=8"])
    expected = [-0.2 + 0.9 * NormalDist().inv_cdf(i / 8) for i in range(1, 8)]
    assert distiller.normalizer.edges.log().tolist() == pytest.approx(expected, abs=0.05)


def test_the_teachers_steps(tmp_path):
    """EDM's loss on data, AdamW with a warm-up of 50 and cosine. The teacher that is kept is the average."""
    cfg = config.load("digits", [f"cache={tmp_path}", "teacher={steps: 5, batch: 8, ema: 0.28, lr: 0.5}", *SIGMA])
    kept = flat(digits.load_or_train_teacher(cfg).parameters())
    torch.manual_seed(cfg.teacher.seed)
    net = in_float64(UNetDenoiser(digits.new_unet(cfg.teacher), cfg.teacher.sigma_data))
    images, order = digits.load_digits()[0], EpochSampler(1797, cfg.teacher.seed)
    generator = torch.Generator().manual_seed(cfg.teacher.seed)
    adamw = AdamW(OptimizerConfig(lr=0.5, betas=(0.9, 0.999), schedule="cosine", warmup=50), total=5)
    first = average = flat(net.parameters())
    for _ in range(5):
        clean = images[order.take(8)].double()
        noisy, sigma = noised(clean, cfg, generator)
        _, gradient = denoising(net, clean, noisy, sigma)
        updated = adamw.step(flat(net.parameters()), adamw.clipped(gradient))
        vector_to_parameters(updated, net.parameters())
        decay = min(0.28, (1 + adamw.updates) / (10 + adamw.updates))
        average = decay * average + (1 - decay) * updated
    close(kept - first, average - first, "the teacher's way", 1e-3)
