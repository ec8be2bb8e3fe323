import math

import torch
import torch.nn.functional as F

from mann import Context, SoftmaxReadout
from tests.contracts import VOCAB, opened
from tests.mann.inputs import assert_same, context, randn


def test_it_starts_uniform():
    log_p = SoftmaxReadout(8, VOCAB)(torch.randn(2, 3, 8), context(2, 3))
    torch.testing.assert_close(log_p, torch.full((2, 3, VOCAB), -math.log(VOCAB)))


def test_it_is_log_softmax_and_its_loss_is_cross_entropy():
    readout, where = opened(SoftmaxReadout(6, VOCAB).double()), context(2, 70)
    x, targets = randn(2, 70, 6), torch.randint(0, VOCAB, (2, 70))
    targets[:, ::3] = -100
    head = readout.head.weight
    assert_same(lambda x, head: readout(x, where), lambda x, head: F.log_softmax(x @ head.T, -1), x, head)
    assert_same(
        lambda x, head: readout(x, where, targets),
        lambda x, head: F.cross_entropy((x @ head.T).mT, targets, ignore_index=-100, reduction="none"),
        x,
        head,
    )


def test_what_is_ignored_has_no_gradient():
    readout, x = opened(SoftmaxReadout(6, VOCAB)), randn(1, 3, 6, dtype=torch.float32)
    targets = torch.tensor([[4, -100, 2]])
    readout(x, Context(targets.clamp(min=0)), targets).sum().backward()
    assert x.grad is not None
    assert x.grad.any(-1).tolist() == [[True, False, True]]
