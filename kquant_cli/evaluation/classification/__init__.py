"""Sequence classification as GLUE measures it: examples, the model's order of labels, its outputs and the metrics."""

from kquant_cli.evaluation.classification.classify import ClassificationResult, classify
from kquant_cli.evaluation.classification.examples import Examples, read_examples
from kquant_cli.evaluation.classification.spec import Spec, Tsv

__all__ = ["ClassificationResult", "Examples", "Spec", "Tsv", "classify", "read_examples"]
