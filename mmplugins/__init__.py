"""Research systems as plug-in modules for the OpenMMLab zoo.

Nothing is imported here: a config that names ``type='mmplugins.FeatUpNeck'``
makes mmengine load :mod:`mmplugins.registry`, which finds the module.
"""

__version__ = '0.1.0'
