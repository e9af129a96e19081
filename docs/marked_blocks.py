"""Shows readers what a block of commands needs: the marks after ```` ```sh ```` as a caption.

MyST drops what follows the language of a fence. With `myst_fence_as_directive = ["sh"]` it hands
those words to the directive here, in these pages and in those that they include.
"""

from __future__ import annotations

from typing import Any

from docutils import nodes
from sphinx.directives.code import container_wrapper
from sphinx.util.docutils import SphinxDirective

CAPTIONS = {
    "gpu": "needs an NVIDIA GPU",
    "cluster": "needs a Slurm cluster",
    "container": "needs Docker, Apptainer or Enroot",
    "imagenet": "needs ImageNet",
    "cifar-10": "needs CIFAR-10",
    "tracker": "needs W&B or MLflow",
    "own": "needs your images and weights to begin with",
    "minutes": "takes minutes",
    "server": "runs until Ctrl-C",
}
"""What each mark is to a reader; tests/pages.py has what it is to a test."""


def caption(marks: list[str]) -> str:
    """The words of several marks, those that need something first: "needs a GPU and ImageNet"."""
    words = [CAPTIONS[mark] for mark in marks]
    needed = [word.removeprefix("needs ") for word in words if word.startswith("needs ")]
    others = [word for word in words if not word.startswith("needs ")]
    return ", ".join([f"needs {' and '.join(needed)}"] * bool(needed) + others)


class Commands(SphinxDirective):
    """A block of shell commands; its arguments are marks of `CAPTIONS`."""

    has_content = True
    optional_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """The block, below its caption if it has marks."""
        text = "\n".join(self.content)
        block = nodes.literal_block(text, text, language="sh")
        self.set_source_info(block)
        if not self.arguments:
            return [block]
        try:
            words = caption(self.arguments[0].split())
        except KeyError as error:
            raise self.error(f"the mark {error} is none of {', '.join(CAPTIONS)}") from error
        return [container_wrapper(self, block, words)]


def setup(app: Any) -> dict[str, bool]:
    """Registers the directive with Sphinx."""
    app.add_directive("sh", Commands)
    return {"parallel_read_safe": True}
