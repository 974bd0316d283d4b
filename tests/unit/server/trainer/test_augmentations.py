"""Augmentations against what they say they do, and refinements that use them."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedge.errors import RefineError
from fedge.training.local import LocalTrainer
from server.trainer.alone import refining_alone
from server.trainer.augmentations import AUGMENTATIONS, Augmentation
from server.trainer.refining import ProxyData
from server.trainer.spec import RefineSpec
from tests.tiny_task import TinyTask

SIDE = 9
START = LocalTrainer(TinyTask()).initial_weights(0)


@dataclass(frozen=True)
class Images(TinyTask):
    """Said to have inputs ``[1, 9, 9]``; only what augmentations look at is true of it."""

    input_shape = (1, SIDE, SIDE)  # type: ignore[assignment]


def _affine(**limits: Any) -> Augmentation:
    still = RefineSpec(max_turn_deg=0.0, max_zoom=0.0, max_shift=0.0)
    found = AUGMENTATIONS["affine"](Images(), replace(still, **limits))
    assert found is not None
    return found


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _dots(count: int, row: int = SIDE // 2, column: int = SIDE // 2) -> Tensor:
    images = torch.zeros(count, 1, SIDE, SIDE)
    images[:, 0, row, column] = 1
    return images


def _centre(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return each image's centre of mass, in pixels."""
    places = torch.arange(SIDE, dtype=torch.float32)
    mass = images.sum(dim=(1, 2, 3))
    down = (images.sum(dim=(1, 3)) * places).sum(dim=1) / mass
    across = (images.sum(dim=(1, 2)) * places).sum(dim=1) / mass
    return down, across


def test_with_limits_of_zero_images_stay_as_they_are() -> None:
    images = torch.rand(5, 1, SIDE, SIDE)
    torch.testing.assert_close(_affine().vary(images, _generator()), images)


def test_images_move_by_no_more_than_the_share_of_their_side() -> None:
    down, across = _centre(_affine(max_shift=0.2).vary(_dots(200), _generator()))
    for found in (down, across):
        moved = (found - SIDE // 2).abs()
        assert 0.8 * 0.2 * SIDE < moved.max() <= 0.2 * SIDE + 1e-4
    assert np.corrcoef(down, across)[0, 1] ** 2 < 0.1  # drawn apart


def test_images_turn_about_their_middle_by_no_more_than_the_degrees() -> None:
    off_centre = 3
    varied = _affine(max_turn_deg=30).vary(_dots(200, column=SIDE // 2 + off_centre), _generator())
    down, across = (each - SIDE // 2 for each in _centre(varied))
    turned = torch.rad2deg(torch.atan2(down, across)).abs()
    assert 25 < turned.max() < 33  # bilinear weights bend angles a little
    assert torch.hypot(down, across).sub(off_centre).abs().max() < 0.3


def test_images_grow_and_shrink_by_no_more_than_the_share() -> None:
    square = torch.zeros(200, 1, 33, 33)
    square[:, :, 8:25, 8:25] = 1
    area = _affine(max_zoom=0.2).vary(square, _generator()).sum(dim=(1, 2, 3)) / 17**2
    assert 0.63 < area.min() < 0.75
    assert 1.3 < area.max() < 1.46


def test_equal_generators_vary_alike_and_others_otherwise() -> None:
    affine, images = _affine(max_turn_deg=20, max_shift=0.1), torch.rand(4, 1, SIDE, SIDE)
    first, again, other = (affine.vary(images, _generator(seed)) for seed in (1, 1, 2))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert not torch.allclose(first, other)


def test_what_is_no_image_is_refused_by_name() -> None:
    with pytest.raises(RefineError, match=r"affine varies images .* shape \[\d+\]"):
        AUGMENTATIONS["affine"](TinyTask(), RefineSpec())


def test_a_task_without_augment_is_refused() -> None:
    with pytest.raises(RefineError, match="needs augment"):
        refining_alone(TinyTask()).run(START, RefineSpec(augmentation="task"))


@dataclass(frozen=True)
class Noisy(TinyTask):
    """Varies its inputs by noise of its own."""

    noise: float = 0.3
    columns: int | None = None

    def augment(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        noisy = inputs + self.noise * torch.randn(inputs.shape, generator=generator)
        return noisy[:, : self.columns]


SPEC = RefineSpec(augmentation="task", steps=8)


def _refine(task: TinyTask, spec: RefineSpec = SPEC) -> np.ndarray:
    return refining_alone(task).run(START, spec).weights


def test_a_task_varies_its_own_inputs_and_equal_specs_repeat() -> None:
    first, again = _refine(Noisy()), _refine(Noisy())
    np.testing.assert_array_equal(first, again)
    plain = _refine(Noisy(), replace(SPEC, augmentation="none"))
    assert not np.allclose(first, plain)
    np.testing.assert_allclose(_refine(Noisy(noise=0)), plain, atol=1e-7)
    assert not np.array_equal(first, _refine(Noisy(), replace(SPEC, round=1)))


def test_every_step_sees_another_variation() -> None:
    seen: list[Tensor] = []

    @dataclass(frozen=True)
    class Watched(Noisy):
        def augment(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
            seen.append(torch.rand(1, generator=generator))
            return inputs

    _refine(Watched())
    assert len({float(each) for each in seen}) == len(seen) == SPEC.steps


def test_a_task_that_changes_the_shape_is_told_so() -> None:
    with pytest.raises(RefineError, match=r"augment made \[\d+, 1\] of"):
        _refine(Noisy(columns=1))


def test_the_proxy_data_themselves_stay_as_they_are() -> None:
    proxy = TinyTask().cloud_data().proxy
    kept = proxy.inputs.copy()
    refining_alone(Noisy(), ProxyData(proxy)).run(START, SPEC)
    np.testing.assert_array_equal(proxy.inputs, kept)
