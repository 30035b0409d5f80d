"""What finds eigenvalues: from an operator or a system to what is known of its spectrum."""

from specreg.estimators.applied import AppliedOperator, AppliedSystem
from specreg.estimators.base import Estimator
from specreg.estimators.certificate import DenseInstead, TornPair, Uncertified
from specreg.estimators.exact import Exact
from specreg.estimators.kernel_polynomial import KernelPolynomial
from specreg.estimators.krylov import Arnoldi
from specreg.estimators.lanczos import Lanczos
from specreg.estimators.lyapunov import Lyapunov, StepProducts
from specreg.estimators.power import PowerIteration
from specreg.estimators.quadrature import LanczosQuadrature

__all__ = [
    "AppliedOperator",
    "AppliedSystem",
    "Arnoldi",
    "DenseInstead",
    "Estimator",
    "Exact",
    "KernelPolynomial",
    "Lanczos",
    "LanczosQuadrature",
    "Lyapunov",
    "PowerIteration",
    "StepProducts",
    "TornPair",
    "Uncertified",
]
