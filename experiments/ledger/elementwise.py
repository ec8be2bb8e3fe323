"""Operators that work element by element: so many FLOPs an output element, whatever the type."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from experiments.ledger.price import Call, Price, Rule, Traffic, is_sparse, numel, priced, tensors, total


def elements(call: Call) -> int:
    """Output elements; with a sparse operand, those stored."""
    sparse = [numel(tensor) for tensor in call.read() if is_sparse(tensor)]
    return max(sparse) if sparse else total(call.written())


def numbers(counted: Tensor) -> int:
    """Elements of a tensor, a complex one being two."""
    return numel(counted) * (1 + counted.is_complex())


def _is_complex(operand: Any) -> bool:
    return operand.is_complex() if isinstance(operand, Tensor) else isinstance(operand, complex)


def _multiplied(call: Call) -> int:
    """A product of complex numbers is four products and two sums, by a real number two products."""
    complexes = sum(_is_complex(call[name]) for name in ("self", "other"))
    return (1, 2, 6)[complexes] * elements(call)


def elementwise(flops: int, because: str) -> Price:
    """Price of ``flops`` operations an output element.

    Args:
        flops: Operations per output element.
        because: The formula they are counted from.
    """
    text = f"{flops}·outputs" if flops > 1 else "outputs"
    return Price(Rule(text, lambda call: flops * elements(call)), because=because)


def _weight(factor: Any) -> int:
    """A factor costs a multiplication; one that is absent or 1 costs nothing, nor does -1, which makes a difference."""
    return 0 if factor is None or (not isinstance(factor, (Tensor, list, tuple)) and factor in (1, -1)) else 1


def _counter(call: Call) -> bool:
    """Whether a single integer is counted up in place, such as the batches a batch norm has seen."""
    target = call.first()
    return (
        isinstance(target, Tensor)
        and call.func._schema.name.endswith("_")
        and target.ndim == 0
        and not (target.is_floating_point() or target.is_complex())
    )


def scaled(flops: int, factors: tuple[str, ...], because: str) -> Price:
    """As :func:`elementwise`, and one operation more if one of the arguments called ``factors`` is not 1."""

    def count(call: Call) -> int:
        if _counter(call):
            return 0
        parts = 1 + any(out.is_complex() for out in call.written())
        return (flops + max(_weight(call[factor]) for factor in factors)) * elements(call) * parts

    text = "outputs" if flops == 1 else f"{flops}·outputs"
    return Price(Rule(f"{text}, + outputs if {factors[0]} is not 1 or -1", count), because=because)


def _first_elements(call: Call) -> int:
    return sum(map(numbers, tensors(call.first())))


def per_input(flops: int, because: str) -> Price:
    """Price of ``flops`` operations an element of the first argument."""
    text = f"{flops}·inputs" if flops > 1 else "inputs"
    return Price(Rule(text, lambda call: flops * _first_elements(call)), because=because)


def _closeness(call: Call) -> int:
    pairs = torch.broadcast_shapes(call["self"].shape, call["other"].shape).numel()
    return 4 * pairs + 3 * call["other"].numel()


def _bits(call: Call) -> int:
    return total(out for out in call.written() if out.dtype is not torch.bool)


def _adam(flops: int, decay: int) -> Rule[int]:
    def count(call: Call) -> int:
        each = flops + decay * (call["weight_decay"] != 0) + call["amsgrad"] + call["maximize"]
        return each * _first_elements(call)

    text = f"{flops}·parameters" + (f", + {decay} with decay" if decay else "")
    return Rule(text + ", + 1 with amsgrad, + 1 to maximise", count)


def _adagrad(call: Call) -> int:
    return (7 + 2 * (call["weight_decay"] != 0) + call["maximize"]) * _first_elements(call)


def _sgd(call: Call) -> int:
    each = 2 + 2 * (call["weight_decay"] != 0) + call["maximize"]
    if call["momentum"] != 0 and not call["is_first_step"]:
        each += 2 + (call["dampening"] != 0)
    return (each + 2 * (call["momentum"] != 0 and call["nesterov"])) * _first_elements(call)


def _stepped(call: Call) -> Traffic:
    state = ("self", "exp_avgs", "exp_avg_sqs", "state_sums", "momentum_buffer_list")
    state += ("max_exp_avg_sqs",) if call["amsgrad"] else ()
    kept = sum(tensor.numel() * tensor.element_size() for name in state for tensor in tensors(call[name]))
    return Traffic(kept + sum(t.numel() * t.element_size() for t in tensors(call["grads"])), kept)


_STEP_BYTES = Rule("parameters, gradients and state read; parameters and state written", _stepped)
_SPELLED = "the steps of the optimizer, spelled out"

_ONE = """
    neg abs reciprocal sqrt rsqrt square exp exp2 expm1 log log2 log10 log1p sin cos tan asin acos
    atan atan2 sinh cosh tanh asinh acosh atanh sigmoid erf erfc erfinv pow relu clamp clamp_min clamp_max
    maximum minimum fmax fmin hardtanh floor ceil round trunc frac sign sgn floor_divide remainder fmod
    bitwise_left_shift bitwise_right_shift __lshift__ __rshift__
    __ilshift__ __irshift__ lgamma digamma polygamma special_i0 angle ldexp gcd heaviside
    threshold copysign deg2rad rad2deg i0 lcm igamma igammac nextafter frexp hardshrink softshrink
    rrelu_with_noise rrelu_with_noise_functional fft_fftfreq fft_rfftfreq
    _standard_gamma_grad _dirichlet_grad special_i0e special_i1 special_i1e special_erfcx special_log_ndtr
    special_ndtri special_zeta special_airy_ai special_bessel_j0 special_bessel_j1 special_bessel_y0
    special_bessel_y1 special_spherical_bessel_j0 special_modified_bessel_i0 special_modified_bessel_i1
    special_modified_bessel_k0 special_modified_bessel_k1 special_scaled_modified_bessel_k0
    special_scaled_modified_bessel_k1 special_chebyshev_polynomial_t special_chebyshev_polynomial_u
    special_chebyshev_polynomial_v special_chebyshev_polynomial_w special_shifted_chebyshev_polynomial_t
    special_shifted_chebyshev_polynomial_u special_shifted_chebyshev_polynomial_v
    special_shifted_chebyshev_polynomial_w special_hermite_polynomial_h special_hermite_polynomial_he
    special_laguerre_polynomial_l special_legendre_polynomial_p
"""
# Without autograd these show under the name of the greatest and the least element of one tensor.
_OF_TWO = ("max.other", "max.out", "min.other", "min.out")
_FOREACH_ONE = """
    mul div neg abs sqrt rsqrt reciprocal exp log pow clamp_min clamp_max maximum minimum sigmoid tanh sign
    floor ceil round trunc frac erf erfc expm1 log1p log2 log10 sin cos tan asin acos atan sinh cosh lgamma
"""

# Several operations: counted from the formula, a transcendental function being one.
_FORMULAS: dict[str, tuple[int, str]] = {
    "hypot": (4, "√(x² + y²)"),
    "lerp": (3, "a + w (b - a)"),
    "_foreach_lerp": (3, "a + w (b - a)"),
    "leaky_relu": (1, "x or slope · x"),
    "leaky_relu_backward": (1, "g or slope · g"),
    "threshold_backward": (1, "g or 0"),
    "hardtanh_backward": (1, "g or 0"),
    "hardshrink_backward": (1, "g or 0"),
    "softshrink_backward": (1, "g or 0"),
    "rrelu_with_noise_backward": (1, "g or slope · g"),
    "_prelu_kernel": (1, "x or w · x"),
    "_prelu_kernel_backward": (2, "g or w g; g x"),
    "silu": (2, "x σ(x)"),
    "silu_backward": (6, "g σ (1 + x (1 - σ))"),
    "gelu": (5, "x/2 (1 + erf(x/√2)); the tanh form is billed alike"),
    "gelu_backward": (9, "g (Φ + x φ)"),
    "mish": (4, "x tanh(log(1 + eˣ))"),
    "mish_backward": (10, "derivative of x tanh(log(1 + eˣ))"),
    "elu": (3, "s (eˣ - 1)"),
    "celu": (4, "a (e^(x/a) - 1)"),
    "elu_backward": (3, "g s eˣ"),
    "hardsigmoid": (3, "clamp(x/6 + 1/2)"),
    "hardsigmoid_backward": (1, "g/6 or 0"),
    "hardswish": (4, "x clamp(x/6 + 1/2)"),
    "hardswish_backward": (3, "g (x/3 + 1/2)"),
    "softplus": (2, "log(1 + eˣ)"),
    "softplus_backward": (3, "g eˣ / (1 + eˣ)"),
    "sigmoid_backward": (3, "g y (1 - y)"),
    "tanh_backward": (3, "g (1 - y²)"),
    "logit": (3, "log(x / (1 - x))"),
    "logit_backward": (3, "g / (x (1 - x))"),
    "log_sigmoid_backward": (4, "g σ(-x)"),
    "logaddexp": (5, "m + log(eᵃ⁻ᵐ + eᵇ⁻ᵐ)"),
    "logaddexp2": (5, "m + log(eᵃ⁻ᵐ + eᵇ⁻ᵐ)"),
    "xlogy": (2, "x log y"),
    "special_xlog1py": (2, "x log(1 + y), the logarithm one operation"),
    "special_entr": (3, "-x log x"),
    "polar": (4, "r cos a, r sin a"),
    "hann_window": (4, "a - b cos(c n)"),
    "hamming_window": (4, "a - b cos(c n)"),
    "blackman_window": (8, "a - b cos(c n) + d cos(e n)"),
    "bartlett_window": (3, "1 - |c n - 1|"),
    "kaiser_window": (6, "I₀(β √(1 - (c n - 1)²))"),
    "sinc": (3, "sin(πx) / πx"),
    "mse_loss_backward": (3, "2 g (x - y)"),
    "smooth_l1_loss_backward": (3, "g clamp(x - y)"),
    "huber_loss_backward": (3, "g clamp(x - y)"),
    "glu": (2, "a σ(b)"),
    "glu_jvp": (6, "da σ + glu (1 - σ) db"),
    "glu_backward": (4, "g σ; g a σ (1 - σ), over both halves"),
}

_SUM = "sum of two; a factor is one more; a single integer counted up is bookkeeping"
_PRODUCT = "sum and product; a factor is one more"

PRICES: dict[str, Price] = {
    **priced(
        Price(
            Rule("outputs; 6·outputs if both are complex, 2·outputs if one is", _multiplied),
            because="one operation an element; a complex product is four products and two sums",
        ),
        *("mul", "div"),
    ),
    **priced(elementwise(1, "one operation an element"), *_ONE.split(), *_OF_TWO),
    **priced(
        elementwise(1, "one operation an element"), *(f"_foreach_{name}" for name in _FOREACH_ONE.split())
    ),
    **priced(
        Price(Rule("outputs; 0 if they are true or false", _bits), because="integers; masks are bookkeeping"),
        *("bitwise_and", "bitwise_or", "bitwise_xor", "bitwise_not"),
    ),
    **{f"aten.{name}": elementwise(flops, formula) for name, (flops, formula) in _FORMULAS.items()},
    **priced(scaled(1, ("alpha",), _SUM), "add", "sub", "rsub", "_foreach_add", "_foreach_sub"),
    **priced(
        scaled(2, ("value", "scalars"), _PRODUCT),
        "addcmul",
        "addcdiv",
        "_foreach_addcmul",
        "_foreach_addcdiv",
    ),
    **priced(
        per_input(6, "scale, round, shift, clamp, shift back, scale"),
        *("fake_quantize_per_tensor_affine_cachemask", "fake_quantize_per_channel_affine_cachemask"),
        "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams",
    ),
    **priced(
        Price(
            Rule("2·p·outputs", lambda call: 2 * call["p"] * elements(call)),
            because="a sum of p log-gamma functions",
        ),
        "mvlgamma",
    ),
    **priced(
        Price(Rule("4·pairs + 3·others", _closeness), because="|x - y| and whether it is finite; a + r |y|"),
        "allclose",
    ),
    **priced(per_input(2, "min(x, 0) - log(1 + e⁻|x|)"), "log_sigmoid_forward"),
    **priced(
        per_input(1, "divided by the scale of the loss; whether all are finite is a comparison"),
        "_amp_foreach_non_finite_check_and_unscale",
    ),
    **priced(scaled(2, ("alpha",), "sum, and the greater of 0 and it"), "_add_relu"),
    **priced(Price(_adam(13, 1), _STEP_BYTES, _SPELLED), "_fused_adamw"),
    **priced(Price(_adam(13, 2), _STEP_BYTES, _SPELLED), "_fused_adam"),
    **priced(
        Price(Rule("7·parameters, + 2 with decay, + 1 to maximise", _adagrad), _STEP_BYTES, _SPELLED),
        "_fused_adagrad",
    ),
    **priced(
        Price(
            Rule("2·parameters, + 2 each with decay, momentum, Nesterov, + 1 to maximise", _sgd),
            _STEP_BYTES,
            _SPELLED,
        ),
        "_fused_sgd",
    ),
}
