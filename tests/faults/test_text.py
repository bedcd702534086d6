"""What others wrote (names, messages) is text in every output and no more. Rows: faults.md, area K and its 16.

Each target is tested twice: its function over any text, with a reader of that format as the judge, and the commands
over a results folder whose every name is hostile.
"""

import csv
import io
import itertools
import json
import os
import re
import string
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from dskd.config import to_mapping
from dskd.methods import get_method
from harness.records import Failure, Results
from harness.spec import BenchSpec, Data, EvaluateSpec, TrainSpec, Weights
from harness.text import as_json, csv_cell, file_name, latex, latex_comment, markdown, markdown_note, one_line, shown
from tests.conftest import write_mvtec
from tests.faults.commands import harness, refusal
from tests.leaderboard.synthetic import AT, DEVICE, publish

HOSTILE = (
    "\x1b]0;title\x07\x1b[31m[bold red]x[/]\x9b31m\u202e\n\r\t=cmd|' /C calc'!A0@SUM(1)\\input{/etc/passwd}$x^2~_{}&%#"
    "<b onload=x></script><script>alert(1)</script>&amp;](javascript:x)**x**`x`|~~x~~\ud800 \udcff\u2028\x00\x7f'\""
)
NAME = HOSTILE.replace("\ud800", "").replace("\udcff", "")  # of a record: halves of pairs are for the gate of records
WORDS = ["=1+1", "@a", "-", "___", "---", "===", "#", ">", "|", ":-:", "a_b", "_a_", "[5/6]", "[5/6](x)", "<b>", "<!--"]
WORDS += ["&lt;", "\\", "\\|", "`a`", "*a*", "~~a~~", "$a$", "%", "{"]
WORDS += ["- a", "+ a", "1. a", "# a", "> a", "[a]: b", "\n", "\r\n", "\t", "    a", "\x1b[0m"]
text = st.one_of(
    st.text(st.characters(), max_size=40),
    st.text(string.punctuation + " \n\t\r-=#01aA\x1b\x9b\u202e", max_size=30),
    st.lists(st.sampled_from(WORDS), max_size=5).map("".join),
)


def hostile_words(test: Callable[[str], None]) -> Callable[[str], None]:
    for word in (*WORDS, HOSTILE):
        test = example(word)(test)
    return settings(derandomize=True, deadline=None, max_examples=200)(test)


def squeezed(line: str) -> str:
    return line.strip(" ")


@hostile_words
@given(text)
def test_terminal(word: str) -> None:
    found = shown(word)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\u2029]", found)
    found.encode()
    assert "\n" not in one_line(word)
    assert shown(found) == found


PLAIN = ("text", "text_special", "softbreak", "hardbreak")
BLOCKS = ("html_block", "fence", "code_block", "hr", "list_item_open", "blockquote_open")


def rendered(source: str, *allowed: str) -> list[str]:
    """The texts of a Markdown document, by table cell, paragraph or heading; fails for anything else than text."""
    found = []
    for token in MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(source):
        assert token.type not in BLOCKS, (source, token)
        if token.type == "inline":
            strange = {child.type for child in token.children} - {*PLAIN, *allowed}
            assert not strange, (source, strange)
            found.append("".join(child.content for child in token.children))
    return found


@hostile_words
@given(text)
def test_markdown(word: str) -> None:
    wanted = squeezed(one_line(word).strip())
    made = markdown(word)
    table = f"| a | b |\n| --- | --- |\n| {made or ' '} | c |\n"
    assert [squeezed(cell) for cell in rendered(table)] == ["a", "b", wanted, "c"]
    if wanted:
        assert [squeezed(part) for part in rendered(f"before  \n\n{made}  \n")] == ["before", wanted]
        assert [squeezed(part) for part in rendered(f"### {made}\n")] == [wanted]
        assert squeezed(rendered(f"a  \n{made}  \n")[0]) == "a" + wanted
        if "`" not in word and "[k/n]" not in word:
            assert markdown_note(word) == made


def test_notes_of_this_package_keep_their_code() -> None:
    assert markdown_note("(`evaluate.at` in the grid) of a|b_") == r"(`evaluate.at` in the grid) of a\|b\_"


def latex_text(source: str) -> str:
    """The text that LaTeX would set, by the signs that it knows; fails for one that would do anything."""
    known = {
        r"\textbackslash{}": "\\",
        r"\textasciicircum{}": "^",
        r"\textasciitilde{}": "~",
        r"\dag ": "†",
        r"$\pm$": "±",
        r"$\times$": "×",
        r"$\uparrow$": "▲",
        r"$\downarrow$": "▼",
        r"$\Delta$": "Δ",
        "$<$": "<",
        "$>$": ">",
        "{}": "",
        **{f"\\{sign}": sign for sign in "_{}$&%#"},
    }
    pattern = re.compile("|".join(map(re.escape, known)) + r"|[^\\{}$&%#^~_\n]")
    found, place = [], 0
    while place < len(source):
        match = pattern.match(source, place)
        assert match, (source, source[place:])
        found.append(known.get(match[0], match[0]))
        place = match.end()
    return "".join(found)


@hostile_words
@given(text)
def test_latex(word: str) -> None:
    assert latex_text(latex(word)) == one_line(word)
    assert not latex(word).startswith(("[", "*"))
    assert re.fullmatch(r"% [^\n\r]*", latex_comment(word))


@hostile_words
@given(text)
def test_csv(word: str) -> None:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerow([csv_cell(word), csv_cell(-0.5), csv_cell(None)])
    (row,) = csv.reader(io.StringIO(stream.getvalue()))
    assert row[0].removeprefix("'") == one_line(word).removeprefix("'")
    assert row[1:] == ["-0.5", ""]
    assert row[0][:1] not in tuple("=+-@\t\r＝＋－＠") or re.fullmatch(r"[-+][0-9.e+-]+", row[0])


@hostile_words
@given(text)
def test_json(word: str) -> None:
    found = as_json({word: [word, float("nan"), float("inf"), 1.5]})
    assert not re.search("[\x00-\x1f\x7f-\x9f]", found)
    found.encode()

    def never(constant: str) -> None:
        raise AssertionError(constant)

    word = word.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")  # two halves are one sign
    assert json.loads(found, parse_constant=never) == {word: [word, None, None, 1.5]}


@hostile_words
@given(text)
def test_names_of_files(word: str) -> None:
    name = file_name(word)
    assert "/" not in name
    assert "\0" not in name
    assert not name.startswith(".")
    assert 0 < len(f"{name}.svg".encode()) < 200
    assert file_name("mvtec_ad") == "mvtec_ad"
    assert len({file_name(name) for name in ("a/b", "a_b", "a:b")}) == 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results whose data set, category, weights, device and failure are hostile; of two methods and seeds each."""
    results = Results(tmp_path_factory.mktemp("hostile") / "runs")
    for method in ("stfpm", "dskd"):
        config = get_method(method)
        for seed, category in itertools.product((0, 1), (NAME, "=1+1", "[5/6]")):
            spec = TrainSpec(config, "resnet18", Weights(NAME, "1" * 64), Data("../x" + NAME, category, "m"), seed, 64)
            train = {"epochs": 2, "train_s": 1.0, "images_per_s": 1.0, "peak_host_memory_mib": 1.0}
            publish(results, spec, {**train, **DEVICE, "parameters_students": 1})
            values = {"image_auroc": 0.7 + 0.1 * seed, "pixel_auroc": 0.8, "aupro_0.30": 0.5, "degenerate": False}
            publish(results, EvaluateSpec(spec, spec.method.map), {**values, **DEVICE, "device": NAME})
        bench = BenchSpec(config, "resnet18", 64, "auto", NAME, 2)
        publish(results, bench, {"images_per_s": 50.0, "best_batch_size": 8, **DEVICE, "device": NAME})
    failed = TrainSpec(get_method("stfpm"), "resnet18", Weights(), Data("set", HOSTILE, "m"), 99, 64)
    results.fail(Failure("train", failed.id, to_mapping(failed), "error", HOSTILE, HOSTILE, AT, {"commit": HOSTILE}))
    return results.folder


def leaderboard(folder: Path, form: str, table: str) -> str:
    options = ["--by", "method,category", "--allow-mixed", "--format", form, "--table", table]
    done = harness("leaderboard", folder, *options)
    assert done.code == 0, done.err
    return done.out + done.err


def shows(folder: Path) -> str:
    (failed,) = {path.parent.name for path in folder.glob("*/attempts")}
    return harness("show", folder / failed).out


def lists(folder: Path) -> str:
    """Of a plan whose category is hostile, as far as a file system takes it."""
    tree, grid = folder.parent / "data", folder.parent / "grid.yaml"
    category = NAME.replace("/", "").replace("\0", "")[:200]
    if not tree.exists():
        write_mvtec(tree, category, 2, 2, 2)
    axes = {"method": ["stfpm"], "backbone": ["resnet18"], "dataset": [{"name": "folder", "root": str(tree)}]}
    grid.write_text(yaml.safe_dump({"name": "tiny", "axes": axes, "defaults": {"weights": "random"}}))
    done = harness("plan", "--grid", grid, "--out", folder.parent, "--list")
    assert "[bold red]x" in done.out
    return done.out + done.err


PRINTED = [
    *(
        pytest.param(lambda folder, form=form, table=table: leaderboard(folder, form, table), id=f"{form}-{table}")
        for form in ("table", "markdown", "csv", "latex", "json")
        for table in ("scores", "all")
        if (form, table) != ("csv", "all")
    ),
    pytest.param(shows, id="show"),
    pytest.param(lambda folder: harness("status", folder).out, id="status"),
    pytest.param(lists, id="plan-list"),
]


@pytest.mark.parametrize("printed", PRINTED)
def test_no_control_character_reaches_a_terminal_or_a_file(printed: Callable[[Path], str], folder: Path) -> None:
    out = printed(folder)
    assert "31m" in out  # what is shown instead
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", out)
    out.encode()


@pytest.mark.parametrize("name", [pytest.param(NAME, id="html-and-newline"), pytest.param("=1+1", id="plain")])
def test_names_in_markdown(name: str, folder: Path) -> None:
    """Raw HTML was HTML; a newline broke its row, which lost its other cells."""
    out = leaderboard(folder, "markdown", "all")
    cells = [squeezed(cell) for cell in rendered(out, "strong_open", "strong_close", "code_inline")]
    assert one_line(name) in cells
    header, *rows = [line for line in out.splitlines() if line.startswith("| ")][:7]
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in (header, *rows)}) == 1


@pytest.mark.parametrize("part", ["cells", "comments"])
def test_names_in_latex(part: str, folder: Path) -> None:
    r"""`\input{/etc/passwd}` was a command; what followed a newline in a comment was no comment."""
    lines = leaderboard(folder, "latex", "all").splitlines()
    structure = r"\\(begin|end)\{tabular\}.*|\\(top|mid|bottom)rule"
    rows = [line for line in lines if not re.fullmatch(f"%.*|{structure}", line)]
    if part == "comments":
        assert [line for line in rows if not line.endswith(r" \\")] == []
        return
    for row in rows:
        cells = re.sub(r"\\textbf\{((?:[^{}]|\\[{}]|\{\})*)\}", r"\1", row.removesuffix(r" \\"))
        for cell in re.split(r"(?<!\\) & ", cells):
            latex_text(cell)


def test_csv_of_hostile_results(folder: Path) -> None:
    """Row: cells that begin with = or +."""
    rows = list(csv.reader(io.StringIO(leaderboard(folder, "csv", "scores"))))
    assert len({len(row) for row in rows}) == 1
    assert "'=1+1" in {cell for row in rows for cell in row}
    assert not [cell for row in rows for cell in row if cell[:1] in tuple("=+@\t\r")]


def test_json_of_hostile_results(folder: Path) -> None:
    document = json.loads(leaderboard(folder, "json", "all"))
    (table,) = [table for table in document["sections"][0]["tables"] if table["name"] == "scores"]
    assert NAME in {row["category"] for row in table["rows"]}


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.handlers: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.handlers |= {key for key, _ in attrs if key.startswith("on")}


def test_page_and_figures_of_hostile_results(folder: Path, tmp_path: Path) -> None:
    """Row: the page could not be written (surrogates); figures of a data set named ../x left their folder."""
    figures = tmp_path / "deep" / "figures"
    done = harness("report", folder, "--out", tmp_path / "page.html", "--title", HOSTILE, "--figures", figures)
    assert done.code == 0, done.err
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    body = page.partition('<script type="application/json"')[0]
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]", body)
    reader = Reader()
    reader.feed(body)
    assert "script" not in reader.tags
    assert not reader.handlers
    assert len(list(figures.iterdir())) >= 4
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["figures"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "page.html"]


@pytest.fixture(params=["fifo", "folder", "link-to-nothing", "link-loop", "device"])
def no_file(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "target"
    match request.param:
        case "fifo":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "link-to-nothing":
            path.symlink_to(tmp_path / "gone" / "file")
        case "link-loop":
            path.symlink_to(path)
        case "device":
            path = tmp_path / "null"
            try:
                os.mknod(path, 0o600 | 0o020000, os.makedev(1, 3))
            except PermissionError:
                pytest.skip("only root makes device nodes")
    before = os.lstat(path).st_mode
    yield path
    assert os.lstat(path).st_mode == before


def test_report_goes_to_regular_files_only(no_file: Path, folder: Path) -> None:
    """Row: `report -o /dev/null` put a file in the place of the device."""
    assert "--out: " in refusal("report", folder, "--out", no_file)


def test_trace_goes_to_regular_files_only(no_file: Path) -> None:
    assert "--trace: " in refusal("profile", "--grid", "gone.yaml", "--trace", no_file)


@pytest.mark.parametrize("kind", ["fifo", "file"])
def test_init_replaces_nothing(kind: str, tmp_path: Path) -> None:
    target = tmp_path / "slurm"
    if kind == "fifo":
        target.mkdir()
        os.mkfifo(target / "sweep.sh")
        done = harness("init", tmp_path)
        assert done.code == 0, done.err
        assert "kept slurm/sweep.sh" in done.out
        assert (target / "sweep.sh").is_fifo()
    else:
        target.write_text("mine")
        assert "cannot be written (File exists)" in refusal("init", tmp_path)
        assert target.read_text() == "mine"
