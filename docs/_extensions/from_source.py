"""Sphinx: pages generated from the code, links to its source, and a check of all local links."""

from __future__ import annotations

import os
import posixpath
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import typer
from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

REDIRECT = '<!doctype html><meta http-equiv="refresh" content="0; url=docs/index.html">\n'


def table(head: list[str], rows: list[list[list[nodes.Node]]], widths: list[int]) -> nodes.table:
    group = nodes.tgroup(cols=len(head))
    group += [nodes.colspec(colwidth=width) for width in widths]
    cells = [[[nodes.Text(text)] for text in head], *rows]
    lines = [
        nodes.row("", *(nodes.entry("", nodes.paragraph("", "", *cell)) for cell in row))
        for row in cells
    ]
    group += [nodes.thead("", lines[0]), nodes.tbody("", *lines[1:])]
    return nodes.table("", group)


def inline(text: str) -> list[nodes.Node]:
    """Plain text with `code` in it."""
    pieces = enumerate(text.split("`"))
    return [nodes.literal("", piece) if i % 2 else nodes.Text(piece) for i, piece in pieces]


class RecipeFields(SphinxDirective):
    """A table of the fields of `resnetkit.training.recipe.Recipe`."""

    def run(self) -> list[nodes.Node]:
        from resnetkit.training.recipe import Recipe

        rows = []
        for name, field in Recipe.model_fields.items():
            default = field.get_default(call_default_factory=True)
            shown = [] if default is None else [nodes.literal("", repr(default))]
            rows.append([[nodes.literal("", name)], shown, inline(field.description or "")])
        return [table(["field", "default", "meaning"], rows, [20, 20, 60])]


class Builders(SphinxDirective):
    """An entry for each function of `resnetkit.models` that builds a network."""

    def run(self) -> list[nodes.Node]:
        from resnetkit.models import builders

        names = [*builders.__all__, "darknet53"]
        text = "\n".join(f".. autofunction:: resnetkit.models.{name}" for name in names)
        return self.parse_text_to_nodes(text)


class PublishedWeights(SphinxDirective):
    """A table of the published weights, with the accuracies that their publishers state."""

    def run(self) -> list[nodes.Node]:
        from resnetkit import models

        rows = []
        for name in models.weights.__all__:
            for member in getattr(models, name):
                ((images, accuracy),) = member.meta["_metrics"].items()
                cells = [images, f"{accuracy['acc@1']}%", f"{accuracy['acc@5']}%"]
                cells.append(f"{member.meta['num_params']:,}")
                rows.append([[nodes.literal("", str(member))], *([nodes.Text(c)] for c in cells)])
        return [
            table(["weights", "images", "top-1", "top-5", "parameters"], rows, [44, 16, 12, 12, 16])
        ]


class Commands(SphinxDirective):
    """A section for each command of `resnet`: what its ``--help`` says."""

    def run(self) -> list[nodes.Node]:
        from resnetkit.cli.commands import app

        return self._sections("resnet", typer.main.get_command(app))

    def _sections(self, prefix: str, group: Any) -> list[nodes.Node]:
        found: list[nodes.Node] = []
        for name, command in group.commands.items():
            title = f"{prefix} {name}"
            section = nodes.section(ids=[nodes.make_id(title)], names=[title])
            section += nodes.title("", title)
            paragraphs = (command.help or "").replace("\b", "").split("\n\n")
            section += [nodes.paragraph("", "", *inline(" ".join(p.split()))) for p in paragraphs]
            if hasattr(command, "commands"):
                section += self._sections(title, command)
            else:
                section += nodes.literal_block("", self._usage(title, command), language="text")
                section += self._options(command)
            found.append(section)
        return found

    @staticmethod
    def _usage(title: str, command: Any) -> str:
        with command.make_context(title, [], resilient_parsing=True) as context:
            return " ".join([title, *command.collect_usage_pieces(context)])

    @staticmethod
    def _options(command: Any) -> nodes.table:
        rows = []
        for parameter in command.params:
            is_option = parameter.param_type_name == "option"
            metavar = parameter.metavar or ""
            if is_option:
                with_value = metavar and not parameter.is_flag
                names = ", ".join(parameter.opts) + (f" {metavar}" if with_value else "")
            else:
                names = metavar or parameter.name
            text = parameter.help or ""
            default = getattr(parameter.default, "value", parameter.default)
            if is_option and not parameter.is_flag and default not in (None, "", []):
                text += f" Default: {default}."
            rows.append([[nodes.literal("", names)], inline(text)])
        return table(["argument", "meaning"], rows, [35, 65])


def prepare_docstring(
    app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]
) -> None:
    """Turn our heading ``Args (those of X, and):`` into one that napoleon knows, and keep the
    docstring of a property as text.
    """
    if what == "property":
        lines.insert(0, "")  # or napoleon mistakes the words before a colon for a type
    for number, line in enumerate(lines):
        if said := re.fullmatch(r"Args \((.*), and\):", line):
            lines[number : number + 1] = [f"Takes {said[1]}, and:", "", "Args:"]


def link_source(app: Sphinx, doctree: nodes.document, name: str) -> None:
    """Make links to our Python files lead to the page of their highlighted source, if there is one,
    instead of a download.
    """
    shown = {module for module, entry in app.env._viewcode_modules.items() if entry}  # type: ignore[attr-defined]
    for node in list(doctree.findall(addnodes.download_reference)):
        path = Path(str(node["reftarget"]))
        if "src" not in path.parts or path.suffix != ".py":
            continue
        dotted = ".".join(path.parts[path.parts.index("src") + 1 :]).removesuffix(".py")
        if dotted not in shown:
            continue
        uri = posixpath.relpath(
            f"_modules/{dotted.replace('.', '/')}.html", posixpath.dirname(name)
        )
        link = nodes.reference("", "", internal=True, refuri=uri)
        link += node.children
        node.replace_self(link)


class _Page(HTMLParser):
    """The links in a page, and the anchors that links can point to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.links.add(value)
            elif name in ("id", "name") and value:
                self.anchors.add(value)


def check_links(out: Path) -> list[str]:
    """Return every link to a file or an anchor that does not exist."""
    pages = {path: _Page(path) for path in out.rglob("*.html")}
    broken = []
    for path, page in pages.items():
        for link in sorted(page.links):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or link.startswith(("{", "data:")):
                continue
            there = (
                Path(os.path.normpath(path.parent / unquote(parts.path))) if parts.path else path
            )
            anchor = unquote(parts.fragment)
            missing = not there.exists()
            lost = anchor and there in pages and anchor not in pages[there].anchors
            if missing or lost:
                broken.append(f"{path.relative_to(out)}: {link}")
    return broken


def finish(app: Sphinx, error: Exception | None) -> None:
    if error is not None or app.builder.format != "html":
        return
    out = Path(app.outdir)
    (out / "index.html").write_text(REDIRECT, encoding="utf-8")
    for broken in check_links(out):
        logging.getLogger(__name__).error("broken link in %s", broken)
        app.statuscode = 1


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("builders", Builders)
    app.add_directive("published-weights", PublishedWeights)
    app.add_directive("recipe-fields", RecipeFields)
    app.add_directive("resnet-commands", Commands)
    app.connect("autodoc-process-docstring", prepare_docstring, priority=400)  # before napoleon
    app.connect("doctree-resolved", link_source)
    app.connect("build-finished", finish)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
