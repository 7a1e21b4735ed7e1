"""Our extractors inside torch-fidelity, so that its own program can be asked for the same figure.

name = metrics.register(metrics.pixels())
torch_fidelity.calculate_metrics(
    input1=made, input2=real, feature_extractor=name, fid=True, cuda=False
)
"""

import hashlib
from typing import Any

from torch import Tensor

from fewstep.errors import UsageError
from fewstep.metrics.features import Extractor

_LAYERS = ("vectors", "logits")


def register(extractor: Extractor) -> str:
    """Put an extractor into torch-fidelity's registry and return its name there.

    The name holds a hash of the weights and the rule: torch-fidelity keeps features on disk under
    it. Its layers are "vectors" and "logits"; the inception score uses the second. An extractor
    registered before under the same name is replaced.

    Raises:
        UsageError: torch-fidelity is not installed.
    """
    try:
        from torch_fidelity import registry
        from torch_fidelity.feature_extractor_base import FeatureExtractorBase
    except ImportError as e:
        raise UsageError(
            "registering an extractor needs torch-fidelity: pip install 'fewstep[eval]'"
        ) from e

    class Registered(FeatureExtractorBase):
        """The extractor as torch-fidelity calls it."""

        def __init__(self, name: str, features_list: list[str], **_: Any) -> None:
            super().__init__(name, features_list)

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return _LAYERS

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return "logits" if metric == "isc" else "vectors"

        @staticmethod
        def can_be_compiled() -> bool:
            return False

        def forward(self, input: Tensor) -> tuple[Tensor, ...]:
            found = extractor(input)._asdict()
            missing = [layer for layer in self.features_list if found[layer] is None]
            if missing:
                raise UsageError(f"{extractor.name} has no classes: no {missing[0]}")
            return tuple(found[layer] for layer in self.features_list)

    digest = hashlib.sha256("\n".join((extractor.weights, extractor.rule)).encode()).hexdigest()
    name = f"fewstep-{extractor.name}-{digest[:12]}"
    registry.FEATURE_EXTRACTORS_REGISTRY.pop(name, None)
    registry.register_feature_extractor(name, Registered)
    return name
