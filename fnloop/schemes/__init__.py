"""Published training schemes: stages and gradient transforms, one file each, with their papers."""

from fnloop.names.suggestions import suggesting as _suggesting
from fnloop.schemes.balanced_losses import gradnorm as gradnorm
from fnloop.schemes.centralization import centralize as centralize
from fnloop.schemes.curvatures import hessian_product as hessian_product
from fnloop.schemes.curvatures import sharpness as sharpness
from fnloop.schemes.extrapolation import extragradient as extragradient
from fnloop.schemes.forward_mode import forward_gradient as forward_gradient
from fnloop.schemes.gradient_noise import noise_scale as noise_scale
from fnloop.schemes.hamiltonian import sghmc as sghmc
from fnloop.schemes.langevin import sgld as sgld
from fnloop.schemes.learned_rate import hypergradient as hypergradient
from fnloop.schemes.minima import implicit as implicit
from fnloop.schemes.perturbations import evolution as evolution
from fnloop.schemes.privacy import dp_sgd as dp_sgd
from fnloop.schemes.privacy_accounting import epsilon as epsilon
from fnloop.schemes.several_losses import several as several
from fnloop.schemes.sharpness_aware import sam as sam
from fnloop.schemes.slow_weights import lookahead as lookahead
from fnloop.schemes.spectrum import lanczos as lanczos
from fnloop.schemes.surgery import pcgrad as pcgrad
from fnloop.schemes.weight_posterior import swag as swag
from fnloop.schemes.weight_posterior import swag_sample as swag_sample

__getattr__ = _suggesting(__name__)
