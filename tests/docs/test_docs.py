"""What the pages name exists: links, files, modules, options.  docs/cli.md says what --help says."""

import importlib
import re
from pathlib import Path

import cli_page
import pytest
import typer

from gpuhmm.cli import app

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {page: page.read_text() for page in PAGES}
#: Code of a page that may hold command lines, and such a line, perhaps behind a prompt.
CODE = re.compile(r"^```(?:sh|console|text)\n(.*?)^```|^    ([^\n]*\n)", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"^(?:\$ )?gpuhmm (?!-)(\S+)(.*)$", re.MULTILINE)
OPTION = re.compile(r"(?<![\w-])--?[a-z][a-z0-9-]*")


def anchors(text):
    """Return the names under which the headings of a page can be linked to."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)]*)\)", TEXTS[page]):
        if not target.startswith("https://"):
            path, _, anchor = target.partition("#")
            found = page.parent / path if path else page
            assert found.exists(), target
            assert not anchor or anchor in anchors(found.read_text()), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_file_that_is_named_exists(page):
    for path in re.findall(r"\b(?:gpuhmm|tests|docs|benchmarks)/[\w./-]*\w/?", TEXTS[page]):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_module_or_object_that_is_named_exists(page):
    for name in set(re.findall(r"`(gpuhmm(?:\.\w+)+)", TEXTS[page])):
        parts = name.split(".")
        found = importlib.import_module("gpuhmm")
        for i, part in enumerate(parts[1:], 2):
            if not hasattr(found, part):
                importlib.import_module(".".join(parts[:i]))
            found = getattr(found, part)


def test_every_page_is_in_the_index():
    linked = set(re.findall(r"\]\((\w[\w-]*\.md)\)", TEXTS[ROOT / "docs/index.md"]))
    assert linked == {page.name for page in PAGES if page.parent.name == "docs"} - {"index.md"}


def test_commands_and_options_that_the_pages_use_exist():
    known = {
        name: {one for parameter in cli_page.parameters(function) for one in names_of(parameter)}
        for name, function in cli_page.commands().items()
    }
    code = {page: "".join(map("".join, CODE.findall(TEXTS[page]))) for page in PAGES}
    used = [(page, *found) for page in PAGES for found in COMMAND.findall(code[page])]
    assert len(used) > 40
    for page, command, rest in used:
        assert command in known, (page.name, command)
        unknown = set(OPTION.findall(rest.partition("#")[0])) - known[command]
        assert not unknown, (page.name, command, unknown)


def names_of(parameter):
    return [one for name in parameter.names for one in name.split("/")]


def test_the_page_of_the_command_line_is_what_the_commands_say():
    assert TEXTS[ROOT / "docs/cli.md"] == cli_page.page()


@pytest.mark.parametrize("command", cli_page.commands())
def test_the_page_has_the_options_that_help_has(command):
    """The page reads signatures: what typer makes of them must come to the same."""
    made = typer.main.get_command(app).commands[command].params
    options = [({*one.opts, *one.secondary_opts}, one.help) for one in made if one.opts[0].startswith("-")]
    page = [one for one in cli_page.parameters(cli_page.commands()[command]) if one.names]
    assert [names for names, _ in options if names != {"--help"}] == [set(names_of(one)) for one in page]
    for (_, words), one in zip(options, page, strict=False):
        assert one.help.startswith(words)
