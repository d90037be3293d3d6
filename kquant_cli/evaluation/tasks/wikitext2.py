"""`wikitext2`: perplexity on WikiText-2's test split, rows joined by blank lines."""

from kquant_cli.evaluation.options import EvalOptions
from kquant_cli.evaluation.tasks.task import TEXT_OPTIONS, perplexity_task
from kquant_cli.evaluation.texts import Text, wikitext2


def read(options: EvalOptions) -> Text:
    """WikiText-2's test split, from `options.data` or the hub."""
    return wikitext2(options.data, options.data_format)


WIKITEXT2 = perplexity_task("wikitext2", read, reads=TEXT_OPTIONS | {"data_format"})
