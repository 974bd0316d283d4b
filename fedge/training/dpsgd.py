"""One client's DP-SGD (Abadi et al. 2016): Poisson batches, per-example clipping, Gaussian noise.

Exactly the sampling rate and the steps of the plan are taken, because they are what is accounted
for; a step whose batch is empty still adds noise, and the divisor is the public expected batch.
The client term and weight decay join after clipping and noise: they depend on the weights so far
and on what the server sent, on no example, so ε is the same with and without them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fedge.privacy.noise import Draws
from fedge.privacy.planning import DpPlan
from fedge.settings import Hyperparameters
from fedge.task import Examples, Task
from fedge.training.batches import check_finite, check_losses, to_tensors
from fedge.training.clipping import ghost_clipping
from fedge.training.progress import Progress
from fedge.training.sgd import make_optimizer, trained_parameters
from fedge.training.snapshot import Keeper, Kept
from fedge.training.terms import NO_TERM, ClientTerm

MAX_PHYSICAL_BATCH = 256


def run_dpsgd(
    model: nn.Module,
    task: Task,
    examples: Examples,
    hyper: Hyperparameters,
    plan: DpPlan,
    draws: Draws,
    should_stop: Callable[[], bool],
    term: ClientTerm = NO_TERM,
    keeper: Keeper | None = None,
) -> Progress:
    """Train the model in place for exactly the plan's steps, or fewer if told to stop.

    Steps that a keeper recalls are not taken again; see `fedge.training.snapshot`.

    Raises:
        TaskError: an example or gradient is not finite, or Opacus cannot clip the model.
    """
    inputs, targets = to_tensors(examples)
    parameters = trained_parameters(model)
    optimizer = make_optimizer(parameters, hyper)
    kept = Kept(keeper, model, optimizer, examples)
    progress, *_ = kept.resume()
    with ghost_clipping(model, plan.clip_norm) as ghost:
        for step in range(progress.num_steps, plan.num_steps):
            if should_stop():
                break
            sums = [torch.zeros_like(parameter) for parameter in parameters]
            for part in _parts(draws.poisson_batch(len(examples), plan.sampling_rate)):
                losses = check_losses(task.loss(ghost(inputs[part]), targets[part]), len(part))
                check_finite(ghost.norms(losses), part, "gradient", step)
                for total, clipped in zip(sums, ghost.clipped_sums(losses), strict=True):
                    total += clipped
                progress.add_losses(losses)
            _set_noisy_gradients(parameters, sums, plan, draws)
            term.add_to_gradients()
            optimizer.step()
            progress.num_steps += 1
            kept.note(progress)
    return progress


def _parts(batch: Tensor) -> tuple[Tensor, ...]:
    """Split a batch so that its activations fit into memory; an empty one has no parts."""
    return torch.split(batch, MAX_PHYSICAL_BATCH) if len(batch) else ()


def _set_noisy_gradients(
    parameters: list[nn.Parameter], sums: list[Tensor], plan: DpPlan, draws: Draws
) -> None:
    """Make each gradient (clipped sum + noise) / public expected batch."""
    sizes = [total.numel() for total in sums]
    noise = draws.normal(sum(sizes)) * (plan.noise_multiplier * plan.clip_norm)
    for parameter, total, part in zip(parameters, sums, torch.split(noise, sizes), strict=True):
        noisy = total.double() + part.reshape(total.shape)
        parameter.grad = (noisy / plan.expected_batch).to(parameter.dtype)
