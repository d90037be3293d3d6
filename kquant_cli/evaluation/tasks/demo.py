"""`demo`: perplexity on the text that the package brings."""

from kquant_cli import demo
from kquant_cli.evaluation.options import EvalOptions
from kquant_cli.evaluation.tasks.task import TEXT_OPTIONS, perplexity_task
from kquant_cli.evaluation.texts import Text, text_file


def read(options: EvalOptions) -> Text:
    """The text that the package brings."""
    return Text(text_file(demo.demo_text_path(), "text").content, "the demo text of kquant_cli, verbatim")


DEMO = perplexity_task("demo", read, reads=TEXT_OPTIONS - {"data"})
