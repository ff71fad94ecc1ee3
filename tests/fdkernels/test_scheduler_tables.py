"""`Prediction.from_scheduler`: which t and schedulers it accepts, and where it keeps their tables."""

import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import fdkernels as fdk
from fdkernels import schedulers
from tests.schedulers import SETUPS, SHAPE, Setup, diffusers, flow_solvers, normal, solvers, some_timesteps

pytestmark = [
    pytest.mark.contract("bad input"),
    pytest.mark.cpu_only("brings its own devices"),
    pytest.mark.filterwarnings("ignore:__array:DeprecationWarning"),  # diffusers with NumPy 2
]


def ddpm(**config):
    return diffusers.DDPMScheduler(**config)


def flow(**config):
    return diffusers.FlowMatchEulerDiscreteScheduler(**config)


def from_scheduler(scheduler, t, noisy=None):
    return fdk.Prediction.from_scheduler(scheduler, torch.zeros(SHAPE) if noisy is None else noisy, t)


T = torch.tensor([3, 7, 500, 998])


@pytest.mark.parametrize("dtype", (torch.int16, torch.int32, torch.int64, torch.float16, torch.float32, torch.float64))
@pytest.mark.parametrize("make", (ddpm, flow, diffusers.EulerDiscreteScheduler))
def test_dtypes_of_t(make, dtype):
    scheduler = make()
    found, expected = (from_scheduler(scheduler, t).sigma for t in (T.to(dtype), T.double()))
    assert found.shape == (4,) and torch.equal(found, expected)


@pytest.mark.parametrize("make", (ddpm, flow, diffusers.EulerDiscreteScheduler))
def test_shapes_of_t(make):
    scheduler = make()
    expected = from_scheduler(scheduler, T).sigma
    for value in (7, 7.0, T[1], T[1].float()):
        found = from_scheduler(scheduler, value)
        assert type(found.sigma) is float and found.sigma == expected[1].item()
    frames = T[torch.tensor([[0, 1, 2], [2, 1, 0], [3, 3, 3], [1, 2, 3]])]
    found = from_scheduler(scheduler, frames).sigma
    assert found.shape == (4, 3)
    for frame in range(3):
        assert torch.equal(found[:, frame].flatten(), from_scheduler(scheduler, frames[:, frame]).sigma)


def test_flow_takes_every_t_between():
    """sigma = t/num_train_timesteps, whatever timesteps set_timesteps kept."""
    scheduler = flow(shift=3.0)
    scheduler.set_timesteps(4)
    t = torch.tensor([0.0, 1000.0, 123.456, 999.9])
    torch.testing.assert_close(from_scheduler(scheduler, t).sigma, t.double() / 1000, rtol=1e-15, atol=0)


def test_members_are_compared_in_the_tables_dtype():
    """As index_for_timestep does: a float64 log(sigma)/4 counts as the member that float32 rounds it to."""
    scheduler = diffusers.EDMEulerScheduler()
    t = scheduler.sigmas[:4].double().log() / 4
    assert not torch.equal(t, scheduler.timesteps[:4].double())
    assert torch.equal(from_scheduler(scheduler, t).sigma, scheduler.sigmas[:4].double())


BAD_T = {
    "beyond": (ddpm, torch.tensor([0, 1000, 5, 2000]), r"^t: expected whole numbers from 0 to 999, got 1000, 2000$"),
    "negative": (ddpm, -1, r"^t: expected whole numbers from 0 to 999, got -1\.0$"),
    "between": (ddpm, 3.5, r"^t: expected whole numbers from 0 to 999, got 3\.5$"),
    "not finite": (ddpm, torch.tensor([0, float("nan"), 1, 2]), r"^t: expected whole numbers .*, got nan$"),
    "bfloat16": (ddpm, torch.full((4,), 999, dtype=torch.bfloat16), r"^t: expected whole numbers .*, got 1000\.0"),
    "flow, beyond": (flow, 1000.5, r"^t: expected numbers from 0 to 1000, sigma·num_train_timesteps, got 1000\.5$"),
    "flow, negative": (flow, torch.tensor([-1.0, 1, 2, 3]), r"^t: expected numbers from 0 to 1000, .* got -1\.0$"),
    "not a member": (
        lambda: Setup("EulerDiscrete", steps=5).make("epsilon"),
        torch.tensor([999, 500, 0, 0]),
        r"^t: expected members of scheduler\.timesteps, 5 from 999\.0 to 0\.0 after set_timesteps, got 500$",
    ),
    "EDM takes log(sigma)/4": (
        diffusers.EDMEulerScheduler, 80.0, r"^t: expected members of scheduler\.timesteps, 1001 from .*, got 80\.0$",
    ),
    "no number": (ddpm, "7", r"^t: expected a finite number, got '7'$"),
    "shape": (ddpm, torch.zeros(3), r"^t: expected a number or shape \(4,\) or \(4, 3\) like noisy's, got \(3,\)$"),
    "transposed": (ddpm, torch.zeros(3, 4), r"^t: expected .* got \(3, 4\)$"),
    "device": (ddpm, torch.zeros(4, device="meta"), r"^t: expected device cpu like noisy, got meta$"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_T)
def test_bad_t(name):
    make, t, message = BAD_T[name]
    with pytest.raises(ValueError, match=message):
        from_scheduler(make(), t)


@pytest.mark.parametrize("t", (torch.zeros(4, dtype=torch.bool), torch.zeros(4, dtype=torch.complex64)))
def test_t_of_no_real_dtype(t):
    with pytest.raises(TypeError, match=r"^t: expected a real dtype, got torch\.(bool|complex64)$"):
        from_scheduler(ddpm(), t)


def test_noisy_that_is_no_tensor():
    with pytest.raises(TypeError, match=r"^noisy: expected the tensor x_t, got float$"):
        from_scheduler(ddpm(), 3, 1.0)


BAD_SCHEDULERS = {
    "none": (lambda: None, TypeError, "got NoneType; write Prediction.kind, noisy, alpha=..., sigma=...."),
    "another": (lambda: SimpleNamespace(config=SimpleNamespace()), TypeError, "got SimpleNamespace"),
    "TrigFlow": (diffusers.SCMScheduler, TypeError, "got SCMScheduler"),
    "consistency": (diffusers.CMStochasticIterativeScheduler, TypeError, "got CMStochasticIterativeScheduler"),
    "two noises": (lambda: Setup("SASolver", steps=8).make("epsilon"), TypeError, "got SASolverScheduler"),
    "midpoints": (diffusers.KDPM2DiscreteScheduler, TypeError, "got KDPM2DiscreteScheduler"),
    "unknown prediction": (
        lambda: ddpm(prediction_type="v-prediction"),
        ValueError, "VP schedules have no prediction_type 'v-prediction'; did you mean 'v_prediction'",
    ),
    "velocity without flow": (
        lambda: Setup("UniPCMultistep", steps=8).make("flow_prediction"),
        ValueError, r"VP \(use_flow_sigmas=False\) schedules have no prediction_type 'flow_prediction'",
    ),
    "x0 of EDM": (
        lambda: Setup("EDMDPMSolverMultistep").make("sample"),
        ValueError, "EDM schedules have no prediction_type 'sample'",
    ),
    "inverted": (lambda: flow(invert_sigmas=True), ValueError, r"invert_sigmas=False, got True.*Prediction\.affine"),
    **{f"new {setup.name}": (lambda setup=setup: Setup(setup.name, config=setup.config).make("epsilon"),
                             ValueError, f"set_timesteps.*got a new {setup.name}Scheduler.*alpha_t")
       for setup in solvers()},
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_SCHEDULERS)
def test_bad_schedulers(name):
    make, error, message = BAD_SCHEDULERS[name]
    with pytest.raises(error, match=f"^scheduler: .*{message}"):
        from_scheduler(make(), 3)


def test_zero_terminal_snr_of_epsilon_is_refused():
    with pytest.raises(ValueError, match=r"^alpha: epsilon needs alpha >= 0\.0001"):
        from_scheduler(ddpm(rescale_betas_zero_snr=True), 999)


def test_affine_checks():
    noisy = torch.zeros(SHAPE)
    fdk.Prediction.affine(noisy, -1.0, torch.full((4,), -2.0))
    for a, c, name in ((float("nan"), 1.0, "a"), (1.0, torch.tensor([1.0, float("-inf"), 0, 0]), "c")):
        with pytest.raises(ValueError, match=rf"^{name}: expected finite numbers, got (nan|-inf)$"):
            fdk.Prediction.affine(noisy, a, c)
    with pytest.raises(ValueError, match=r"^c: affine needs it, got None$"):
        fdk.Prediction.affine(noisy, 1.0, None)
    with pytest.raises(TypeError, match=r"^a: expected a number or a tensor, got str$"):
        fdk.Prediction.affine(noisy, "1", 1.0)
    wrong = fdk.Prediction.affine(noisy, 1.0, torch.ones(3))
    with pytest.raises(ValueError, match=r"^c: expected leading dimensions of student, as \(4,\)"):
        fdk.fused_fdiv_loss(noisy, noisy, noisy, divergence="rkl", prediction=wrong)


class Copies(TorchDispatchMode):
    """Counts copies from one device to another."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and any(
            isinstance(arg, torch.Tensor) and arg.device != result.device for arg in args
        ):
            self.count += 1
        return result


@pytest.mark.parametrize("setup", SETUPS, ids=lambda setup: setup.name)
def test_tables_move_once_and_no_value_is_read(setup):
    """A meta tensor, like one on a GPU, has no values for the host: reading one raises."""
    scheduler = setup.make(setup.kinds[0])
    noisy, t = torch.zeros(SHAPE, device="meta"), torch.zeros(4, device="meta")
    for expected in (len(schedulers._family(scheduler).table), 0):
        with Copies() as copies:
            found = fdk.Prediction.from_scheduler(scheduler, noisy, t)
        assert copies.count == expected
    assert found.sigma.device.type == "meta" and found.sigma.shape == (4,)


def test_a_t_that_the_host_cannot_know_gives_nan(monkeypatch):
    monkeypatch.setattr(schedulers, "is_readable", lambda value: False)
    t = torch.tensor([5, 1000, -1, 999])
    for make in (ddpm, diffusers.EulerDiscreteScheduler, diffusers.EDMEulerScheduler):
        _, alpha, sigma, _ = schedulers.levels(make(), torch.zeros(SHAPE), t)
        known = torch.tensor([False] * 4 if make is diffusers.EDMEulerScheduler else [True, False, False, True])
        assert torch.equal(sigma.isfinite(), known)
    assert schedulers.levels(flow(), torch.zeros(SHAPE), torch.tensor([0.5, 1000, 1001, -1]))[2].isnan().tolist() == [
        False, False, True, True,
    ]  # fmt: skip


def test_tables_follow_the_scheduler():
    scheduler = diffusers.EulerDiscreteScheduler()
    first = from_scheduler(scheduler, 999.0).sigma
    scheduler.set_timesteps(4)
    assert from_scheduler(scheduler, 333.0).sigma == scheduler.sigmas[2].item()
    scheduler.sigmas[2] = 7.0  # in place
    assert from_scheduler(scheduler, 333.0).sigma == 7.0
    scheduler.sigmas = scheduler.sigmas + 1
    assert from_scheduler(scheduler, 333.0).sigma == 8.0 and from_scheduler(scheduler, 999.0).sigma == first + 1


def test_a_table_replaced_by_one_as_old():
    scheduler = ddpm()
    first = from_scheduler(scheduler, 5).alpha
    version, scheduler.alphas_cumprod = scheduler.alphas_cumprod._version, scheduler.alphas_cumprod / 4
    assert scheduler.alphas_cumprod._version == version
    assert from_scheduler(scheduler, 5).alpha == pytest.approx(first / 2, rel=1e-7)


def test_a_setting_that_changes_the_meaning_of_a_table():
    scheduler = flow_solvers()[0].make("sample")
    t = scheduler.timesteps[5]
    first = from_scheduler(scheduler, t)
    scheduler.register_to_config(use_flow_sigmas=False)
    found = from_scheduler(scheduler, t)
    assert first.alpha == 1 - first.sigma and found.alpha == pytest.approx((1 + first.sigma**2) ** -0.5)


def test_no_scheduler_is_kept_alive():
    scheduler = ddpm()
    from_scheduler(scheduler, T)
    assert scheduler in schedulers._tables
    gone = weakref.ref(scheduler)
    del scheduler
    gc.collect()
    assert gone() is None


def test_schedulers_without_hash():
    """A scheduler of the user's own, read by its attributes."""
    own = SimpleNamespace(alphas_cumprod=torch.tensor([0.81, 0.25]), config=SimpleNamespace(prediction_type="epsilon"))
    assert from_scheduler(own, 1).alpha == 0.5


def test_tables_of_inference_mode_serve_training():
    scheduler = ddpm()
    with torch.inference_mode():
        from_scheduler(scheduler, T)
        scheduler.alphas_cumprod = scheduler.alphas_cumprod.clone()
        from_scheduler(scheduler, T)
    factor = torch.ones(4, dtype=torch.float64, requires_grad=True)
    (factor * from_scheduler(scheduler, T).alpha).sum().backward()
    assert factor.grad.all()


COMPILED = (
    Setup("DDPM"), Setup("EulerDiscrete"), flow_solvers()[-1], Setup("EDMEuler"),
    Setup("FlowMatchEulerDiscrete", ("velocity",)),
)  # fmt: skip


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("setup", COMPILED, ids=lambda setup: setup.name)
def test_compiles_into_one_graph(setup):
    scheduler = setup.make(setup.kinds[0])

    def step(student, noisy, teacher, fake, t):
        prediction = fdk.Prediction.from_scheduler(scheduler, noisy, t)
        return fdk.fused_fdiv_loss(student, teacher, fake, divergence="rkl", prediction=prediction)

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    images = [normal(seed).requires_grad_(seed == 0) for seed in range(4)]
    for steps in (None, 4):
        if steps:
            scheduler.set_timesteps(steps)
        t = some_timesteps(scheduler)
        torch.testing.assert_close(compiled(*images, t), step(*images, t), rtol=1e-12, atol=0)
    assert torch.autograd.grad(compiled(*images, t), images[0])[0].any()
