"""Bundles: a compressed model as a folder that is itself a Hugging Face checkpoint."""

from kquant_cli.bundle.decompress import write_dense
from kquant_cli.bundle.format import FORMAT_VERSION, QUANT_METHOD, is_bundle
from kquant_cli.bundle.reader import Bundle, newest_bundle, open_bundle, read_bundle_config
from kquant_cli.bundle.results import keep_result, kept_results
from kquant_cli.bundle.validation import read_layouts, require_tensors, require_version

__all__ = [
    "FORMAT_VERSION",
    "QUANT_METHOD",
    "Bundle",
    "is_bundle",
    "keep_result",
    "kept_results",
    "newest_bundle",
    "open_bundle",
    "read_bundle_config",
    "read_layouts",
    "require_tensors",
    "require_version",
    "write_dense",
]
