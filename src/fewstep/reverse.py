"""The reverse of one noising step: how wide it is.

Samplers that draw noise and the variational bound both ask for it.
"""

from fewstep import shapes
from fewstep.process import Process
from fewstep.shapes import Number


def posterior(process: Process, t: Number, s: Number) -> tuple[Number, Number]:
    """Return the two variances of the step from t to s < t.

    With a = alpha_t / alpha_s,

        var_ts = sigma_t^2 - a^2 sigma_s^2            variance of q(x_t | x_s)
        tilde  = var_ts sigma_s^2 / sigma_t^2         variance of q(x_s | x_t, x0)

    In DDPM's terms var_ts = 1 - alpha-bar_t / alpha-bar_s, the beta of the thinned chain (the
    talk's sigma-hat squared), and tilde = (1 - alpha-bar_s) / (1 - alpha-bar_t) var_ts. The
    one-step beta of the full chain is wrong as soon as steps are skipped.

    Args:
        process: gives alpha and sigma.
        t: current time in (0, 1], a float or shape (B,).
        s: target time in [0, t), same form as t.

    Returns:
        (var_ts, tilde), floats or shape (B,), both >= 0 up to rounding; tilde is 0 at sigma_s = 0.

    Source: Ho et al., 2020, eq. 7 (arXiv 2006.11239), for a thinned chain: Nichol and Dhariwal,
        2021, eq. 19 (arXiv 2102.09672).
    """
    sigma_t, sigma_s = process.sigma(t), process.sigma(s)
    ratio = process.alpha(t) * sigma_s / process.alpha(s)
    var_ts = sigma_t * sigma_t - ratio * ratio
    tilde = var_ts * shapes.divide(sigma_s * sigma_s, sigma_t * sigma_t)
    return var_ts, tilde
