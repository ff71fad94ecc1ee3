"""The distillation loop. `Distiller.iteration` is one training step, top to bottom."""

from __future__ import annotations

import copy
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

import fdkernels as fdk
from fdistill import stopping
from fdistill.checkpoint import Checkpoints
from fdistill.checks import ROLES
from fdistill.config import Config
from fdistill.files import FolderError, write_atomically
from fdistill.networks import log_normal_sigma
from fdistill.roles import TITLES, Average, Meter, Role
from fdistill.task import Interrupted, Task

# A terminal is redrawn often; a log file or CI output gets a line only now and then.
BAR_SECONDS = 0.3 if sys.stderr.isatty() else 20.0


class Distiller:
    """Trains a task's student, fake score and discriminator against its frozen teacher.

    Everything that decides the next step is in `state_dict` or in the networks.
    """

    def __init__(self, cfg: Config, task: Task, folder: Path) -> None:
        self.cfg, self.task, self.folder = cfg, task, folder
        # Whether the discriminator's logits are log density ratios, which give h.
        self.has_ratio = cfg.loss.kind == "fdiv" and cfg.loss.gan == "logistic"
        self.step = 0
        self.seconds = 0.0
        self.teacher = task.teacher.requires_grad_(False).eval()
        self.roles = {name: Role(name, getattr(task, name), getattr(cfg, name), self._updates(name)) for name in ROLES}
        self.average = Average(task.student, cfg.ema)
        self.generator = torch.Generator(cfg.device).manual_seed(cfg.seed)
        self.meter = Meter()
        # The iteration of the first update whose numbers were not finite, and its role's index in ROLES; -1 if none.
        self.diverged_at, self.diverged_role = (
            torch.full((), -1, dtype=torch.int64, device=cfg.device) for _ in range(2)
        )
        # Per role: whether its latest numbers were not finite, or all samples of its update were dropped.
        self.ended = {name: torch.zeros((), dtype=torch.bool, device=cfg.device) for name in ROLES}
        self.normalizer: fdk.RatioNormalizer | None = None
        if cfg.loss.normalize_ratio and self.has_ratio:
            # Bins of equal population, for noise levels as training draws them.
            levels = log_normal_sigma(10_000, cfg.sigma_log_mean, cfg.sigma_log_std, torch.Generator().manual_seed(0))
            self.normalizer = fdk.RatioNormalizer.from_samples(levels, cfg.loss.bins, cfg.loss.decay).to(cfg.device)
        self.checkpoints = Checkpoints.of_run(folder, cfg.keep)
        self.networks: dict[str, nn.Module] = {name: role.network for name, role in self.roles.items()}
        self.networks["ema"] = self.average.network

    def iteration(self) -> None:
        """One iteration: the phase's critics learn the current student, then the student moves, if the phase has it."""
        phase = self.cfg.phases[self.step % len(self.cfg.phases)]
        if "fake" in phase or "discriminator" in phase:
            with torch.no_grad():
                x = self.task.student(self.task.noise(self.cfg.batch, self.generator))
            self._watch("student", x)  # first, because a NaN in x makes the critics' numbers NaN too
            noisy, sigma, noise = self._noised(x)
            if "fake" in phase:
                self._update_fake(x, noisy, sigma, noise)
            if "discriminator" in phase:
                self._update_discriminator(noisy, sigma)
        if "student" in phase:
            self._update_student()
        self.step += 1

    def _update_fake(self, x: Tensor, noisy: Tensor, sigma: Tensor, noise: Tensor) -> None:
        """The fake score learns to denoise the student's samples."""
        loss = self.task.fake.loss(x, noisy, sigma, noise)
        self._watch("fake", loss)
        self._apply("fake", loss)

    def _update_discriminator(self, noisy: Tensor, sigma: Tensor) -> None:
        """The discriminator tells noised data from noised student samples at the same noise levels."""
        real = self._with_noise(self.task.real(self.cfg.batch, self.generator), sigma)[0]
        with torch.no_grad():
            features = self.teacher.features(torch.cat((noisy, real)), torch.cat((sigma, sigma)))
        logits = self.task.discriminator(features, torch.cat((sigma, sigma)))
        of_fake, of_real = logits.chunk(2)
        loss = fdk.discriminator_loss(of_fake, of_real, kind=self.cfg.loss.gan, backend=self.cfg.loss.backend)
        self._watch("discriminator", loss)
        self._apply("discriminator", loss)
        if self.cfg.loss.gan == "relativistic":  # a logit by itself says nothing
            self.meter.add("discriminator/accuracy_pairs", (of_fake < of_real).double().mean())
        else:
            self.meter.add("discriminator/accuracy_fake", (of_fake < 0).double().mean())
            self.meter.add("discriminator/accuracy_real", (of_real > 0).double().mean())

    def _update_student(self) -> None:
        """The student follows the difference of the teacher's and the fake score at its noised samples."""
        x = self.task.student(self.task.noise(self.cfg.batch, self.generator))
        noisy, sigma, _ = self._noised(x)
        self._watch("student", x)
        loss_of = self._fdiv_loss if self.cfg.loss.kind == "fdiv" else self._implicit_loss
        self._apply("student", loss_of(x, noisy, sigma))
        self.average.update(self.task.student, self.roles["student"].updates)

    def _fdiv_loss(self, x: Tensor, noisy: Tensor, sigma: Tensor) -> Tensor:
        """f-distill: the score difference, a constant, weighted by h of the discriminator's ratio; the generator's term
        in the same pass."""
        cfg = self.cfg.loss
        with _frozen(self.task.discriminator), torch.set_grad_enabled(cfg.gan_weight > 0):
            # One pass of the teacher gives both: its prediction, a constant of the loss, and features for the GAN term.
            teacher, features = self.teacher.forward_with_features(noisy, sigma)
            logits = self.task.discriminator(features, sigma)
        with torch.no_grad():
            fake = self.task.fake(noisy, sigma)
        how = self.weighting(logits, sigma)
        loss, stats = fdk.fused_fdiv_loss(
            x, teacher, fake, prediction=self.teacher.prediction(noisy.detach(), sigma),
            nonfinite="zero", backend=cfg.backend, return_stats=True, **how,
        )  # fmt: skip
        self._watch("fake", fake)
        self._watch("discriminator", logits)
        # If every sample was dropped, the loss is finite: `dropped` tells.
        self._watch("student", x, loss, dropped=stats.nonfinite_samples >= self.cfg.batch)
        figures = stats._asdict()
        h, gan = figures.pop("weight"), figures.pop("generator_loss")  # h is NaN where a sample was dropped
        if self.has_ratio:
            figures["weight_spread"] = (h - h.nanmean()).square().nanmean().sqrt()
        else:  # h is 1
            figures = {name: figures[name] for name in ("grad_norm", "relative_gap", "nonfinite_samples")}
        for name, value in figures.items():
            self.meter.add(f"health/{name}", value)
        if not how.get("gan_weight"):
            return self._with_generator_loss(loss, logits, sigma)
        self.meter.add("student/score_loss", loss - cfg.gan_weight * gan)
        self.meter.add("student/gan_loss", gan)
        return loss

    def _implicit_loss(self, x: Tensor, noisy: Tensor, sigma: Tensor) -> Tensor:
        """Score implicit matching: gradients reach x directly, and through x_t in the frozen teacher and fake score."""
        cfg = self.cfg.loss
        with _frozen(self.task.fake):
            teacher, features = self.teacher.forward_with_features(noisy, sigma)
            fake = self.task.fake(noisy, sigma)
        teacher, fake = (self.teacher.x0(raw, noisy, sigma) for raw in (teacher, fake))
        # SIM compares scores: of x_t = x0 + σ·noise they are (x0 - x_t) / σ².
        how: dict[str, Any] = {"alpha": cfg.alpha} if cfg.kind == "sid" else {"c": cfg.c, "score_scale": sigma**-2}
        weight = sigma**cfg.sigma_power if cfg.sigma_power else None
        loss = fdk.score_implicit_loss(x, teacher, fake, kind=cfg.kind, weight=weight, backend=cfg.backend, **how)
        self._watch("fake", fake)
        self._watch("student", x, loss)
        with torch.no_grad():
            self.meter.add("health/relative_gap", (fake - teacher).abs().sum() / (x - teacher).abs().sum())
        logits = None
        if cfg.gan_weight:
            with _frozen(self.task.discriminator):
                logits = self.task.discriminator(features, sigma)
            self._watch("discriminator", logits)
        return self._with_generator_loss(loss, logits, sigma)

    def _with_generator_loss(self, loss: Tensor, logits: Tensor | None, sigma: Tensor) -> Tensor:
        """The score loss, plus gan_weight times the generator's of the logits of x_t."""
        cfg = self.cfg.loss
        self.meter.add("student/score_loss", loss)
        if logits is None or not cfg.gan_weight:
            return loss
        of_real = None
        if cfg.gan == "relativistic":
            with torch.no_grad():
                real, _ = self._with_noise(self.task.real(self.cfg.batch, self.generator), sigma)
                of_real = self.task.discriminator(self.teacher.features(real, sigma), sigma)
        gan = fdk.generator_loss(logits, of_real, kind=cfg.gan, backend=cfg.backend)
        self.meter.add("student/gan_loss", gan)
        return loss + cfg.gan_weight * gan

    def weighting(self, logits: Tensor, sigma: Tensor) -> dict[str, Any]:
        """How `fused_fdiv_loss` gets h: from the logits, which take the generator's term along, or as a permuted h.

        Logits of a discriminator that is not logistic are no log ratios: h is 1.
        """
        cfg = self.cfg.loss
        if not self.has_ratio:
            return {"divergence": "rkl"}
        how: dict[str, Any] = {
            "divergence": cfg.divergence,
            "normalizer": self.normalizer,
            "ratio_range": cfg.ratio_range,
        }
        if not cfg.shuffle_weight:
            return {"logits": logits, "t": sigma, "gan_weight": cfg.gan_weight or None, **how}
        weight = fdk.fdiv_weight(logits, sigma, backend=cfg.backend, **how)
        order = torch.randperm(len(weight), generator=self.generator, device=weight.device)
        return {"weight": weight[order]}

    @torch.no_grad()
    def sample_weights(self, count: int) -> dict[str, Any]:
        """h and σ of the averaged student's samples as arrays, in one batch; empty if the loss has no h.

        Touches no state of the training.
        """
        if not self.has_ratio:
            return {}
        generator = torch.Generator(self.cfg.device).manual_seed(self.cfg.seed + 20_000)
        x = self.average.network(self.task.noise(count, generator))
        sigma = log_normal_sigma(count, self.cfg.sigma_log_mean, self.cfg.sigma_log_std, generator)
        noisy = fdk.add_noise(x, 1.0, sigma, generator=generator, backend=self.cfg.loss.backend)
        logits = self.task.discriminator(self.teacher.features(noisy, sigma), sigma)
        normalizer = None if self.normalizer is None else copy.deepcopy(self.normalizer).eval()
        weight = fdk.fdiv_weight(
            logits, sigma, divergence=self.cfg.loss.divergence, normalizer=normalizer,
            ratio_range=self.cfg.loss.ratio_range, backend=self.cfg.loss.backend,
        )  # fmt: skip
        return {"weight": weight.cpu().numpy(), "sigma": sigma.cpu().numpy()}

    def _noised(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(x_t, σ, noise): x_t = x + σ·noise at noise levels of its own."""
        sigma = log_normal_sigma(len(x), self.cfg.sigma_log_mean, self.cfg.sigma_log_std, self.generator)
        noisy, noise = self._with_noise(x, sigma)
        return noisy, sigma, noise

    def _with_noise(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """(x_t, noise), x_t differentiable in x; the generator gives the seed, so that a resumed run draws the same."""
        return fdk.add_noise(x, 1.0, sigma, generator=self.generator, return_noise=True, backend=self.cfg.loss.backend)

    def _apply(self, name: str, loss: Tensor) -> None:
        self.meter.add(f"{name}/grad_norm", self.roles[name].update(loss))
        self.meter.add(f"{name}/loss", loss)

    def _watch(self, name: str, *values: Tensor, dropped: Tensor | None = None) -> None:
        """Note whether a role's numbers are not finite in this update, without making the host wait."""
        finite = torch.stack([v.detach().isfinite().all() for v in values]).all()
        ended = self.ended[name] = ~finite if dropped is None else ~finite | dropped
        first = ended & (self.diverged_at < 0)
        self.diverged_at = torch.where(first, self.step + 1, self.diverged_at)
        self.diverged_role = torch.where(first, ROLES.index(name), self.diverged_role)

    def _updates(self, name: str) -> int:
        """How often a role is updated over the run."""
        cycles, rest = divmod(self.cfg.steps, len(self.cfg.phases))
        return sum((name in phase) * (cycles + (i < rest)) for i, phase in enumerate(self.cfg.phases))

    def state_dict(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "seconds": self.seconds,
            "roles": {name: role.state_dict() for name, role in self.roles.items()},
            "normalizer": self.normalizer.state_dict() if self.normalizer is not None else {},
            "generator": self.generator.get_state(),
            "torch_rng": torch.get_rng_state(),
            "data": self.task.state_dict(),
            "meter": self.meter.state_dict(),
            "diverged": {"at": self.diverged_at, "role": self.diverged_role, "ended": self.ended},
        }

    def save(self) -> None:
        self.checkpoints.save(self.step, self.networks, self.state_dict())

    def restore(self) -> bool:
        """Load the newest whole checkpoint; False if training did not reach its first checkpoint.

        Raises:
            FolderError: training reached it, but no whole checkpoint is left.
        """
        try:
            path = self.checkpoints.latest()
        except FolderError as error:
            raise FolderError(f"{error}; pass --fresh to start over") from None
        if path is None:
            self._check_nothing_is_lost()
            return False
        state = self.checkpoints.load(path, self.networks)
        self.step, self.seconds = state["step"], state["seconds"]
        for name, role in self.roles.items():
            role.load_state_dict(state["roles"][name])
        if self.normalizer is not None:
            self.normalizer.load_state_dict(state["normalizer"])
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["torch_rng"])
        self.task.load_state_dict(state["data"])
        self.meter.load_state_dict(state["meter"])
        told = state["diverged"]
        self.diverged_at, self.diverged_role = (told[key].to(self.cfg.device) for key in ("at", "role"))
        self.ended = {name: ended.to(self.cfg.device) for name, ended in told["ended"].items()}
        return True

    def _check_nothing_is_lost(self) -> None:
        rows = read_log(self.folder / "log.jsonl")
        if rows and rows[-1]["step"] > self.cfg.checkpoint_every:
            raise FolderError(
                f"{self.folder}: the log goes to iteration {rows[-1]['step']}, and no checkpoint is left; "
                "pass --fresh to start over"
            )

    def train(self) -> None:
        """Run to the last step. Ctrl-C or SIGTERM saves a checkpoint and raises `Interrupted`."""
        log_path = self.folder / "log.jsonl"
        _rewind(log_path, self.step)
        shots = self.cfg.eval.snapshots
        every = max(1, self.cfg.steps // shots) if shots else 0
        if every and self.step == 0:
            self._snapshot()
        told = False
        start = time.perf_counter() - self.seconds
        bar = tqdm(total=self.cfg.steps, initial=self.step, desc="distillation", unit="it", mininterval=BAR_SECONDS)
        with log_path.open("a", encoding="utf-8") as log, stopping.requested() as stop, bar:
            while self.step < self.cfg.steps:
                self.iteration()
                bar.update()
                self.seconds = time.perf_counter() - start
                last = self.step == self.cfg.steps
                if self.step % self.cfg.log_every == 0 or last:
                    row = {"step": self.step, "seconds": round(self.seconds, 3), **self.meter.fetch()}
                    log.write(json.dumps(row) + "\n")
                    log.flush()
                    bar.set_postfix(_headline(row), refresh=False)
                    told = told or self._tell_divergence()
                if every and (self.step % every == 0 or last):
                    self._snapshot()
                if self.step % self.cfg.checkpoint_every == 0 or last or stop:
                    self.save()
                if stop and not last:
                    raise Interrupted(f"stopped after step {self.step} of {self.cfg.steps}, state saved")

    def _tell_divergence(self) -> bool:
        if self.diverged_at < 0:
            return False
        role, at = ROLES[int(self.diverged_role)], int(self.diverged_at)
        what = f"the {TITLES[role]} diverged: not finite since iteration {at}; a lower {role}.lr may help"
        tqdm.write(f"fdistill: {what}", file=sys.stderr)
        return True

    def _snapshot(self) -> None:
        folder = self.folder / "progress"
        folder.mkdir(exist_ok=True)
        with torch.no_grad():
            self.task.snapshot(self.average.network, folder / f"step-{self.step:08d}.png")


@contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    network.requires_grad_(False)
    try:
        yield
    finally:
        network.requires_grad_(True)


def read_log(path: Path) -> list[dict[str, float]]:
    """The rows of a log, without lines that a crash cut off or garbled."""
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


def _rewind(path: Path, step: int) -> None:
    rows = [row for row in read_log(path) if row["step"] <= step]
    write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))


def _headline(row: dict[str, float]) -> dict[str, str]:
    wanted = {
        "gap": "health/relative_gap",
        "ess": "health/effective_sample_size",
        "acc": "discriminator/accuracy_fake",
        "pairs": "discriminator/accuracy_pairs",
    }
    return {label: f"{row[key]:.2f}" for label, key in wanted.items() if key in row}
