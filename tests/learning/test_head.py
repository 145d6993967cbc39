"""The head's fit is the one that torch's own loss, autograd and Adam give."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from bcd_ray.learning import head as head_module
from bcd_ray.learning.head import FitConfig, FittedHead, Parts, fit, fit_head


def test_the_head_is_what_a_plain_torch_loop_gives() -> None:
    random = np.random.default_rng(0)
    views = random.exponential(size=(2, 75, 1280)).astype(np.float32)
    labels = random.integers(0, 4, 75)
    config = FitConfig(epochs=2, learning_rate=0.003, label_smoothing=0.1, batch_size=32, workers=0, seed=0)

    fitted = fit(views, labels, config)

    rows, classes = torch.from_numpy(views.reshape(-1, 1280)), torch.from_numpy(np.tile(labels, 2))
    head = torch.nn.Linear(1280, 4)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    adam = torch.optim.Adam(head.parameters(), lr=0.003)
    loss_of = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    for epoch in range(2):
        for batch in torch.split(torch.from_numpy(np.random.default_rng([0, epoch]).permutation(150)), 32):
            adam.zero_grad()
            loss_of(head(rows[batch]), classes[batch]).backward()
            adam.step()
    expected = head(torch.from_numpy(views[0])).detach().numpy()
    assert np.allclose(fitted.logits(views[0]), expected, atol=0.02)  # of a range of 5.6: Adam enlarges rounding
    assert np.ptp(expected) > 0.5


@pytest.mark.parametrize(
    ("wanted", "joined", "by"), [(None, False, 0), (None, True, 2), (0, True, 0), (1, False, 1), (3, True, 3)]
)
def test_where_the_head_is_fitted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], wanted: int | None, joined: bool, by: int
) -> None:
    chosen = list[int]()

    def with_ray_train(parts: Parts, config: FitConfig, workers: int) -> FittedHead:
        chosen.append(workers)
        return head_module.fit_measured(parts, config)

    monkeypatch.setattr(head_module, "on_cluster", lambda: joined)
    monkeypatch.setattr(head_module, "_fit_with_ray_train", with_ray_train)
    rows, labels = np.eye(4, 1280, dtype=np.float32), np.arange(4)
    config = FitConfig(epochs=1, learning_rate=0.01, label_smoothing=0.1, batch_size=4, workers=wanted, seed=0)
    fitted = fit_head(Parts(rows[None], labels, rows, labels), config)
    assert chosen == ([by] if by else [])
    assert ("fitting the head in this process" in capsys.readouterr().err) == (not by)
    alone = fit_head(Parts(rows[None], labels, rows, labels), replace(config, workers=0))
    np.testing.assert_array_equal(fitted.weight, alone.weight)
