"""Settings: what they are called, what they may be, and the YAML file they come from.

One flat schema (schema.py), built from the registries of encoders and bases. Command-line flags override the YAML file,
which overrides the defaults (loading.py); everything is validated once, and a mistake is answered with the key's path,
what was expected and the nearest valid spelling (mistakes.py).
"""

from kquant_cli.config.loading import load_config, settings_of_matrix, settings_of_tokens
from kquant_cli.config.schema import DENSE, CompressConfig, EncoderConfig, LayerRule, Setting, all_settings

__all__ = [
    "DENSE",
    "CompressConfig",
    "EncoderConfig",
    "LayerRule",
    "Setting",
    "all_settings",
    "load_config",
    "settings_of_matrix",
    "settings_of_tokens",
]
