"""Clients' images side by side as channels, and back."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from fedge.training.fused.layers import as_images, from_images

sizes = st.integers(1, 4)


@given(clients=sizes, batch=sizes, channels=sizes, height=sizes, width=sizes)
def test_images_hold_each_clients_channels_in_order_and_come_back_as_views(
    clients: int, batch: int, channels: int, height: int, width: int
) -> None:
    shape = (clients, batch, channels, height, width)
    x = torch.arange(float(torch.Size(shape).numel())).view(shape)
    images = as_images(x)
    expected = torch.cat(list(x), 1)
    assert torch.equal(images, expected)
    assert images.is_contiguous(memory_format=torch.channels_last)
    back = from_images(images, clients)
    assert torch.equal(back, x)
    assert as_images(back).data_ptr() == images.data_ptr()
    assert torch.equal(as_images(back), expected)


@given(clients=sizes, batch=sizes, channels=sizes)
def test_contiguous_images_come_back_too(clients: int, batch: int, channels: int) -> None:
    images = torch.randn(batch, clients * channels, 3, 2)
    back = from_images(images, clients)
    assert torch.equal(torch.cat(list(back), 1), images)
    assert torch.equal(as_images(back), images)
