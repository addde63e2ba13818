"""Registries of mmplugins: children of mmengine's roots, scope ``mmplugins``.

A system depends on mmengine and mmcv alone and is found in any host. An
adapter subclasses a class of one host; it is imported only when its type is
asked for while that host is the default scope, so a host that is missing or
broken cannot hurt a run in another one.
"""

from importlib import import_module

from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import METRICS as MMENGINE_METRICS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import OPTIM_WRAPPERS as MMENGINE_OPTIM_WRAPPERS
from mmengine.registry import TRANSFORMS as MMENGINE_TRANSFORMS
from mmengine.registry import DefaultScope, Registry

SYSTEMS = ['mmplugins.featup', 'mmplugins.crm', 'mmplugins.ssen']

# Models that are adapters: type -> (host that must be the default scope,
# module).
ADAPTERS = {
    'GuidedEncoderDecoder': ('mmseg', 'mmplugins.featup.segmentor'),
    'GuidedCascadeEncoderDecoder': ('mmseg', 'mmplugins.featup.segmentor'),
    'GuidedSegformerHead': ('mmseg', 'mmplugins.featup.segformer_head'),
    'GuidedDepthEstimator': ('mmseg', 'mmplugins.featup.depth_estimator'),
    'LinearDepthHead': ('mmseg', 'mmplugins.featup.depth_estimator'),
    'GuidedImageClassifier': ('mmpretrain', 'mmplugins.featup.classifier'),
    'RefinedSegmentor': ('mmseg', 'mmplugins.crm.segmentor'),
    'RefSREditor': ('mmagic', 'mmplugins.ssen.editor'),
    'RefSRDataPreprocessor': ('mmagic', 'mmplugins.ssen.editor'),
}

# The same of metrics.
METRIC_ADAPTERS = {
    'PerClassIoUMetric': ('mmseg', 'mmplugins.featup.iou_metric'),
}


class HostedRegistry(Registry):
    """Registry that imports an adapter when, and only when, its host runs.

    Args:
        name (str): Name of the registry.
        parent (Registry): mmengine's root of the same name.
        adapters (dict, optional): Adapters as in :data:`ADAPTERS`. Defaults
            to None, none.
    """

    def __init__(
        self,
        name: str,
        parent: Registry,
        adapters: dict[str, tuple[str, str]] | None = None,
    ) -> None:
        super().__init__(
            name, parent=parent, scope='mmplugins', locations=SYSTEMS
        )
        self.adapters = adapters or {}

    def get(self, key: str) -> type | None:
        """Class registered under a key.

        Args:
            key (str): Type as written in a config, with or without the
                prefix ``mmplugins.``.

        Returns:
            type | None: The class; None for a scope that is not there.

        Raises:
            ValueError: If the type adapts a host that is not the default
                scope.
            ImportError: If that host does not import.
            KeyError: If there is no such type.
        """
        prefix, name = self.split_scope_key(key)
        if name in self.adapters and prefix in (None, self.scope):
            host, module = self.adapters[name]
            instance = DefaultScope.get_current_instance()
            scope = instance.scope_name if instance else None
            if scope != host:
                raise ValueError(
                    f"type='mmplugins.{name}' extends {host} and builds only "
                    f"in its scope: set default_scope = '{host}', got "
                    f'{scope!r}'
                )
            try:
                import_module(module)
            except Exception as error:
                raise ImportError(
                    f"type='mmplugins.{name}' needs {host}, which does not "
                    f'import: {type(error).__name__}: {error}'
                ) from error
        found = super().get(key)
        if found is None and prefix in (None, self.scope):
            raise KeyError(
                f'mmplugins has no {self.name} {name!r}, it has '
                f'{sorted({*self.module_dict, *self.adapters})}'
            )
        return found


MODELS = HostedRegistry('model', MMENGINE_MODELS, ADAPTERS)
TRANSFORMS = HostedRegistry('transform', MMENGINE_TRANSFORMS)
DATASETS = HostedRegistry('dataset', MMENGINE_DATASETS)
METRICS = HostedRegistry('metric', MMENGINE_METRICS, METRIC_ADAPTERS)
HOOKS = HostedRegistry('hook', MMENGINE_HOOKS)
OPTIM_WRAPPERS = Registry(
    'optim_wrapper',
    parent=MMENGINE_OPTIM_WRAPPERS,
    scope='mmplugins',
    locations=['mmplugins.optim'],
)
