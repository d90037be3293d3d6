"""`text`: perplexity on any text file."""

from kquant_cli.errors import KQuantError
from kquant_cli.evaluation.options import EvalOptions
from kquant_cli.evaluation.tasks.task import TEXT_OPTIONS, perplexity_task
from kquant_cli.evaluation.texts import Text, text_file


def read(options: EvalOptions) -> Text:
    """The file `options.data`, as it stands unless its format says otherwise."""
    if options.data is None:
        raise KQuantError("task 'text' measures a text of yours: name its file with --data FILE")
    return text_file(options.data, options.data_format or "text")


TEXT = perplexity_task("text", read, reads=TEXT_OPTIONS | {"data_format"})
