"""What whatever goes on over a :class:`mann.State` must do, in a model all of which goes on."""

from __future__ import annotations

import io
import itertools

import torch

from experiments.ledger import Ledger
from mann import DeltaRule, State
from tests.contracts import TIME, Slot, batch, random_like

# Where segments begin and end: one is a single position, and row 0 changes its document within two of them.
SEGMENTS = (0, 30, 31, 50, TIME)


def goes_on(slot: Slot, gradients: bool = True) -> None:
    """Segments over a State are one text; a row that is reset begins anew, and what was saved goes on bit for bit.

    A loss is that of the distribution, and everything has a price.

    Args:
        slot: What goes on.
        gradients: Whether they reach back into earlier segments.
    """
    data = batch()
    tokens, documents = data["tokens"], data["documents"]
    # The rest of the model must go on, too.
    model = slot.trained(mixer=DeltaRule).double()
    whole = model(tokens, documents)
    weight, states, parts, scored = random_like(whole), [State()], [], State()
    for begin, end in itertools.pairwise(SEGMENTS):
        here = slice(begin, end)
        if begin == SEGMENTS[2]:
            file = io.BytesIO()
            torch.save(states[0].state_dict(), file)
            file.seek(0)
            states += [State(), State()]
            states[1].load_state_dict(torch.load(file, weights_only=True))
            states[2].load_state_dict(states[0].state_dict())
            states[2].reset(torch.tensor([True, False]))
        part = model(tokens[:, here], documents[:, here], state=states[0])
        segment = {name: tensor[:, here] for name, tensor in data.items()}
        with Ledger(model) as ledger:
            loss = model.loss(**segment, state=scored)
            loss.sum().backward(retain_graph=True)
        assert ledger.flops > 0
        nll = -part.gather(-1, segment["targets"].clamp(min=0)[..., None]).squeeze(-1)
        torch.testing.assert_close(loss, nll * (segment["targets"] >= 0), rtol=1e-5, atol=1e-5)
        if len(states) > 1:
            with torch.no_grad():
                assert torch.equal(model(tokens[:, here], documents[:, here], state=states[1]), part)
                again = model(tokens[:, here], documents[:, here], state=states[2])
                alone = model(tokens[:1, here], documents[:1, here])
            torch.testing.assert_close(again[1], part[1], rtol=1e-5, atol=1e-5)
            if begin == SEGMENTS[2]:
                torch.testing.assert_close(again[0], alone[0], rtol=1e-5, atol=1e-5)
        parts.append(part)
    found = torch.cat(parts, 1)
    torch.testing.assert_close(found, whole, rtol=1e-5, atol=1e-5)
    if not gradients:
        return
    given = list(model.parameters())
    due, grads = (torch.autograd.grad((y * weight).sum(), given) for y in (whole, found))
    for one, other in zip(grads, due, strict=True):
        assert (one - other).to_dense().norm() <= 1e-4 * other.to_dense().norm()
