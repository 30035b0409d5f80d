"""What finds eigenvalues: from an operator or a system to what is known of its spectrum."""

from specreg.estimators.base import Estimator
from specreg.estimators.exact import Exact

__all__ = ["Estimator", "Exact"]
