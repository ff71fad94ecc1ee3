"""Runs an example as `python example.py` does, and looks at it just before each step of the student's optimizer.

`python -m tests.examples.watched FOLDER EXAMPLE ARGUMENTS` is a rank of a launcher: it writes what the rank had at its
last such step to FOLDER/<rank>.pt.
"""

import os
import runpy
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_pre_hook

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name, *arguments, before_step=lambda script: None):
    """The example's globals at its end; before_step gets them before each step of the student's optimizer."""

    def watch(optimizer, *_):
        script = vars(sys.modules["__main__"])
        of_student = script.get("of_student")
        if optimizer is getattr(of_student, "optimizer", of_student):  # accelerate wraps it
            before_step(script)

    argv, sys.argv = sys.argv, [str(EXAMPLES / name), *map(str, arguments)]
    hook = register_optimizer_step_pre_hook(watch)
    try:
        return runpy.run_path(sys.argv[0], run_name="__main__")
    finally:
        hook.remove()
        sys.argv = argv
        torch.set_default_device(None)


def as_rank(folder, name, *arguments):
    found = {}

    def keep_input(module, inputs):
        if module is vars(sys.modules["__main__"]).get("student") and torch.is_grad_enabled():
            found["input"] = torch.cat([v.reshape(len(v), -1) for v in inputs], 1)

    def keep(script):
        found.update({key: script[key].detach().clone() for key in ("x", "x_t", "v_teacher", "v_fake", "logits", "t")})
        found["mean"] = script["loss_fn"].normalizer.mean.clone()
        student = script["student"]
        found["shards"] = [p.to_local().numel() if hasattr(p, "to_local") else p.numel() for p in student.parameters()]
        gradients = [p.grad for p in student.parameters()]
        found["gradients"] = [(g.full_tensor() if hasattr(g, "full_tensor") else g).clone() for g in gradients]
        for role in ("student", "discriminator"):
            whole = get_model_state_dict(script[role], options=StateDictOptions(full_state_dict=True))
            found[role] = {key.removeprefix("module."): value.clone() for key, value in whole.items()}
        rank, found["world"] = dist.get_rank(), dist.get_world_size()
        torch.save(found, Path(folder) / f"{rank}.pt")

    register_module_forward_pre_hook(keep_input)
    run(name, *arguments, before_step=keep)


if __name__ == "__main__":
    as_rank(*sys.argv[1:])
    sys.stdout.flush()
    # On a busy machine gloo's threads sometimes end a rank with std::terminate while the interpreter shuts down.
    os._exit(0)
