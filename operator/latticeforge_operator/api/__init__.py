"""What users write and read: `StackedTraining` and `GPUPool`, `latticeforge.dev/v1alpha1`.

The models are the one source of the CRDs (`crds/*.yaml`), of `kubectl explain` and of the reference
docs: every field carries its description as a docstring.
"""

from latticeforge_operator.api.pool import GPUPool, GPUPoolSpec
from latticeforge_operator.api.status import TrainingStatus
from latticeforge_operator.api.training import StackedTraining, StackedTrainingSpec, Stage

GROUP = "latticeforge.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

__all__ = [
    "API_VERSION",
    "GROUP",
    "VERSION",
    "GPUPool",
    "GPUPoolSpec",
    "StackedTraining",
    "StackedTrainingSpec",
    "Stage",
    "TrainingStatus",
]
