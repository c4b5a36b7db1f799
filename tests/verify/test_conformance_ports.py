"""Ports that are programs: the line protocol, what a bad program is told, and the worked ports to C and JavaScript."""

import base64
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from packs import ONE

from ide_ref.cli import main
from ide_ref.verify import conformance
from ide_ref.verify.conformance import run_command, selected

MIDDLE = "mnist-64c5-if-static-float64-bn"
PORTS = Path(__file__).parents[2] / "docs/examples/ports"

# A right port in Python, of one stage, in each form; what it does wrong is put at its mark.
PORT = """
import base64, json, sys
number = 0
for line in sys.stdin:
    number += 1
    asked = json.loads(line)
    name = asked["case"]
    x = asked["arrays"]["input/x"]
    answer = {"case": name, "arrays": {"x_mean": x}}
    WRONG
    print(json.dumps(answer), flush=True)
"""


def program(wrong="pass"):
    return [sys.executable, "-c", PORT.replace("WRONG", wrong)]


@pytest.fixture
def static(cases):
    """Three cases whose average input is the input: the middle one is where programs go wrong."""
    return tuple(conformance.cases(["fashion-mnist-400-if-static-float64-bn", MIDDLE, ONE]))


def test_a_program_answers_a_line_for_a_line(static):
    report = run_command(program(), static, stages=["x_mean"])
    assert report.passed
    assert [result.compared for result in report.results] == [("x_mean",)] * 3


AT_TWO = "if number == 2: "
BAD_PROGRAMS = [
    ("hangs", AT_TWO + "import time; time.sleep(60)", "no answer within 0.7 s; the port was ended (an answer "),
    ("rubbish", AT_TWO + "print('loading weights ...')", "the answer is no JSON: 'loading weights ...'"),
    ("dies", AT_TWO + "sys.exit('gone')", "the port ended with status 1 before it answered; its last words: gone"),
    ("half", AT_TWO + "print(1, end=''); sys.exit('gone')", "with status 1 in the middle of its answer; its last"),
    ("another", AT_TWO + "answer['case'] = 'other'", "it answered case 'other'"),
    ("no case", AT_TWO + "answer = [1]", "the answer names no case: '[1]'"),
    ("no arrays", AT_TWO + "answer.pop('arrays')", "the answer has no object 'arrays', and no 'skip' with a reason"),
    ("no array", AT_TWO + "answer['arrays']['x_mean'] = 3", "array 'x_mean' is no object with a dtype of float64"),
    ("a shape", AT_TWO + "x['shape'] = [-1]", "array 'x_mean' has the shape [-1]; expected up to 8 sizes"),
    ("base64", AT_TWO + "x['data'] = '?'", "array 'x_mean': 'data' is no base64"),
    ("too short", AT_TWO + "x['data'] = x['data'][4:]", "bytes for shape ("),
    ("twice", AT_TWO + "print(json.dumps(answer)[:-1] + ', \"case\": 1}'); continue", "'case' is there twice"),
    ("no reason", AT_TWO + "answer = {'case': name, 'skip': 1}", "'skip' is '1'; expected why the case is left out"),
]  # fmt: skip


@pytest.mark.parametrize(("wrong", "told"), [row[1:] for row in BAD_PROGRAMS], ids=[row[0] for row in BAD_PROGRAMS])
def test_a_bad_answer_is_told_in_a_line_and_the_other_cases_go_on(wrong, told, static):
    # What it counts begins anew with each start, so that only its second answer is wrong.
    report = run_command(program(wrong), static, timeout=0.7 if "sleep" in wrong else 20, stages=["x_mean"])
    assert [result.passed for result in report.results] == [True, False, True]
    (line,) = [line for line in report.table().splitlines() if line.startswith("FAILED")]
    assert line.startswith(f"FAILED  case {MIDDLE}: ")
    assert told in line
    json.dumps(report.to_dict(), allow_nan=False)


def test_a_program_that_prints_without_end_is_ended(static, monkeypatch):
    monkeypatch.setattr(sys.modules["ide_ref.verify.conformance.protocol"], "_LONGEST", 1000)
    report = run_command(program("while True: sys.stdout.write('x' * 999)"), static[:1])
    assert "an answer of more than 1000 bytes" in report.table()
    report = run_command(program("while True: print('x')"), static[:1])
    assert "the answer is no JSON: 'x'" in report.table()


def test_a_program_that_leaves_cases_out_or_is_not_there(static):
    report = run_command(program("answer = {'case': name, 'skip': 'no  time'}"), static)
    assert [result.declined for result in report.results] == ["no time"] * 3
    assert not report.passed
    assert "left    case fashion-mnist-400-if-static-float64-bn and 2 more: no time" in report.table()
    part = run_command(program("if number > 1: answer = {'case': name, 'skip': 'no'}"), static, stages=["x_mean"])
    assert part.passed
    assert part.coverage() == (
        "required    1 of 3 cases agree, 0 whole, 0 wrong, 2 not answered; stages: weight 0, x_mean 1, drive-new 0"
    )
    with pytest.raises(ValueError, match="command 'no-such-program' cannot be started"):
        run_command(["no-such-program"], static)


def test_a_refusal_names_the_command_not_the_program(whole_pack, capsys):
    assert main(["conformance", "run", "--pack", str(whole_pack), "--", "no-such-program"]) == 2
    assert capsys.readouterr().err.startswith("ide-ref conformance: command 'no-such-program' cannot be started: ")


def test_what_goes_out_is_what_was_drawn(cases):
    """In JSON and in words, to the last bit, and of it nothing that is expected."""
    protocol = sys.modules["ide_ref.verify.conformance.protocol"]
    for case in cases.values():
        arrays = json.loads(protocol._write_json(case, None))["arrays"]
        assert list(arrays) == [name for name in case.arrays if name.startswith(("input/", "param/"))]
        words = protocol._write_words(case, None).decode().split()
        for name, sent in arrays.items():
            right = case.arrays[name]
            found = np.frombuffer(base64.b64decode(sent["data"]), sent["dtype"]).reshape(sent["shape"])
            np.testing.assert_array_equal(found, right)
            at = words.index(name)
            assert [int(word) for word in words[at + 1 : at + 2 + right.ndim]] == [right.ndim, *right.shape]
            first = at + 2 + right.ndim
            numbers = np.array(words[first : first + right.size], np.float64).astype(right.dtype)
            np.testing.assert_array_equal(numbers, right.ravel())


FILES = """
import json, sys
for line in sys.stdin:
    asked = json.loads(line)
    from safetensors.numpy import load_file, save_file
    given = load_file(asked["file"])
    assert not any(name.startswith("expected") for name in given)
    save_file({"x_mean": given["input/x"]}, asked["answer"])
    print(json.dumps({"case": asked["case"], "file": FILE}), flush=True)
"""


@pytest.mark.parametrize(
    ("file", "told"),
    [
        ('asked["answer"]', None),
        ('asked["case"] + ".safetensors"', None),
        ('"../other.safetensors"', "'file' is '../other.safetensors'; expected "),
        ("asked['file']", "given.safetensors'; expected "),
        ("None", "'file' is 'None'; expected "),
    ],
)
def test_answers_in_files_stay_in_the_folder(file, told, static):
    report = run_command(
        [sys.executable, "-c", FILES.replace("FILE", file)], static[:1], form="files", stages=["x_mean"]
    )
    assert report.passed is (told is None)
    assert told is None or told in report.table()


WORDS = """
import sys
for line in sys.stdin:
    name = line.split()[1]
    print("ANSWER".replace("NAME", name), flush=True)
"""


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ("case NAME skip not yet", None),
        ("hello", "the answer does not begin with 'case NAME': 'hello'"),
        ("case other end", "it answered case 'other'"),
        ("case NAME u 1 2 0.5 0.5", "the answer does not close with 'end' but with '0.5'"),
        ("case NAME u 1 2 0.5 end", "array 'u': expected its number of axes, sizes and numbers"),
        ("case NAME u 1 -2 end", "array 'u': expected its number of axes, sizes and numbers"),
        ("case NAME u 2 99999999 99999999 1 end", "array 'u': expected its number of axes, sizes and numbers"),
        ("case NAME u x end", "array 'u': expected its number of axes, sizes and numbers"),
        ("case NAME u 0 1 u 0 2 end", "array 'u' is there twice"),
        ("case NAME end u 0 1 end", "the answer goes on after 'end'"),
    ],
)
def test_bad_words_are_told(answer, told, static):
    report = run_command([sys.executable, "-c", WORDS.replace("ANSWER", answer)], static[:1], form="words")
    assert report.results[0].declined == ("not yet" if told is None else "")
    assert told is None or told in report.table()


def test_cases_are_chosen_by_name_tag_and_group(whole_pack):
    pack = conformance.load(whole_pack)
    names = {case.name for case in selected(pack, ["threshold"])}
    assert names == {"threshold-if-static", "threshold-lif-spikes", "mask-ends"}
    assert {case.group for case in selected(pack, ["required", "acceptable"])} == {"required", "acceptable"}
    assert len(selected(pack, exclude=["*-conv", "optional"])) == 44
    with pytest.raises(ValueError, match="no case has a name, tag or group like 'luck'; tags are reset, leak-order"):
        selected(pack, exclude=["luck"])
    with pytest.raises(ValueError, match=r"no case is left by include \['required'\] and exclude \['\*'\]"):
        selected(pack, ["required"], ["*"])


@pytest.fixture(scope="module")
def c_port(tmp_path_factory):
    """Compiles the text of a C port to a command."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler here")

    def compiled(text):
        folder = tmp_path_factory.mktemp("c")
        (folder / "port.c").write_text(text)
        words = [compiler, "-O1", "-std=c99", "-Wall", "-Wextra", "-Werror", "-o", "port", "port.c", "-lm"]
        subprocess.run(words, cwd=folder, check=True)
        return [str(folder / "port")]

    return compiled


@pytest.fixture(scope="module")
def js_port(tmp_path_factory):
    """Writes the text of a JavaScript port to a file, as a command."""
    if shutil.which("node") is None:
        pytest.skip("no Node here")

    def written(text):
        file = tmp_path_factory.mktemp("js") / "port.js"
        file.write_text(text)
        return ["node", str(file)]

    return written


def test_the_c_port_passes_every_case(c_port, whole_pack, tmp_path, capsys):
    text = (PORTS / "port.c").read_text()
    badge = tmp_path / "badge.svg"
    words = ["conformance", "run", "--pack", str(whole_pack), "--form", "words", "--badge", str(badge), "--"]
    assert main([*words, *c_port(text)]) == 0
    out = capsys.readouterr().out
    assert "87 of 87 cases agree, 87 of them through every stage" in out
    assert "required    42 of 42 cases agree, 42 whole, 0 wrong, 0 not answered; stages: weight-new 42" in out
    said = "".join(ElementTree.parse(badge).getroot().itertext()).split("\n")
    assert "conformance v1: 42 of 42 required" in said
    assert "#1a7f37" in badge.read_text()


def test_the_javascript_port_passes_every_required_case(js_port, whole_pack):
    cases = selected(conformance.load(whole_pack), ["required", "acceptable"])
    report = run_command(js_port((PORTS / "port.js").read_text()), cases)
    assert report.passed, report.table()
    assert [report.whole(group) for group in ("required", "acceptable")] == [(42, 42), (3, 3)]


# In C and in JavaScript: what is replaced, by what, and the tag and the stage that name it.
PLANTED = [
    ("threshold", "spikes", ("p->u[i] >= v_th", "p->u[i] > v_th"), ("v >= vTh ? 1", "v > vTh ? 1")),
    ("mask", "mask", ("p[i] >= 0 && p[i] <= v_th", "p[i] >= 0"), ("v >= 0 && v <= vTh", "v >= 0")),
    ("batch-statistics", "grad", ("- hat[i] * along[k]", ""), ("- (hat[i] * g[k]) / count", "")),
    ("reset", "spikes", ("-= v_th * p->s[i]", "*= 1 - p->s[i]"), ("v - vTh * p.s[at]", "v * (1 - p.s[at])")),
    (
        "population-order",
        "spikes",
        ("conn[c].source < l ? pop[conn[c].source].s : ", "conn[c].source < 1 ? pop[0].s : "),
        ("c.source < l ? ", "c.source < 1 ? "),
    ),
]


@pytest.mark.parametrize(("tag", "stage", "in_c", "in_js"), PLANTED, ids=[row[0] for row in PLANTED])
def test_a_planted_mistake_is_caught_at_its_stage(tag, stage, in_c, in_js, c_port, js_port, whole_pack):
    cases = selected(conformance.load(whole_pack), [tag])
    required = [case for case in cases if case.group == "required"][:2]
    for port, name, (right, wrong), form in ((c_port, "port.c", in_c, "words"), (js_port, "port.js", in_js, "json")):
        text = (PORTS / name).read_text()
        assert text.count(right) == 1, right
        report = run_command(port(text.replace(right, wrong)), required, form=form)
        assert [result.divergence.stage for result in report.results] == [stage] * len(required), report.table()
        assert 'fill="#b3261e"' in report.badge()


def test_badges_tell_what_was_reached(static):
    part = run_command(program("if number > 1: answer = {'case': name, 'skip': 'no'}"), static, stages=["x_mean"])
    assert "conformance v1: 0 of 3 required<" in part.badge()
    whole = conformance.run_port(lambda case: case.expected, names=[ONE, "mask-ends"])
    assert "conformance v1: 1 of 1 required<" in whole.badge()
    assert 'fill="#1a7f37"' in whole.badge()
    wrong = conformance.run_port(lambda case: case.expected if case.name == ONE else {}, names=[ONE, "mask-ends"])
    assert "conformance v1: 1 of 1 required, 1 wrong<" in wrong.badge()
    # The words of both halves have room, beside each other and within the picture.
    for report in (part, whole, wrong):
        width, left, right = (int(w) for w in re.findall(r' width="(\d+)"', report.badge()))
        texts = re.findall(r'x="(\d+)" y="14" textLength="(\d+)">([^<]*)<', report.badge())
        places = [(int(x), int(x) + int(length), len(words)) for x, length, words in texts]
        assert left + right == width
        for (first, last, n), lo, hi in zip(places, (0, left), (left, width), strict=True):
            assert first == lo + 6
            assert last == hi - 6
            assert abs(last - first - 6.6 * n) <= 0.5


pytest_plugins = ["pytester"]


@pytest.fixture
def suite(pytester, pack):
    """A port's suite, wrong in one case; runs it with options."""
    pytester.makeconftest('pytest_plugins = ["ide_ref.verify.pytest_plugin"]')
    pytester.makepyfile(
        f"""
        def test_port(conformance_case, check_conformance):
            outputs = dict(conformance_case.expected)
            if conformance_case.name == {ONE!r}:
                outputs["beta/a4"] = 2 * outputs["beta/a4"]
            check_conformance(outputs)
        """
    )
    return lambda *options: pytester.runpytest_inprocess(
        f"--conformance-pack={pack}", "-p", "no:cacheprovider", "-rx", *options
    )


def test_the_plugin_includes_and_excludes(suite):
    suite("--conformance-include=population-order").assert_outcomes(failed=1)
    suite("--conformance-exclude=required").assert_outcomes(passed=2)
    suite("--conformance-include=*-dropout", "--conformance-include=*spikes*").assert_outcomes(passed=2)
    result = suite("--conformance-include=luck")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*no case has a name, tag or group like 'luck'*"])


def test_expected_failures_are_strict(suite, pytester):
    known = pytester.path / "known.txt"
    known.write_text(f"# of ours\n\n{ONE}  beta is doubled there\n")
    result = suite(f"--conformance-expected-failures={known}")
    result.assert_outcomes(passed=2, xfailed=1)
    result.stdout.fnmatch_lines(["*beta is doubled there*"])
    known.write_text("required\n*dropout\n")
    suite(f"--conformance-expected-failures={known}").assert_outcomes(passed=1, xfailed=1, failed=1)
    known.write_text("gone\n")
    suite(f"--conformance-expected-failures={known}").assert_outcomes(errors=1)
    suite("--conformance-expected-failures=nowhere").assert_outcomes(errors=1)
    pytester.makeini(f"[pytest]\nconformance_expected_failures =\n    {ONE} known\n")
    suite().assert_outcomes(passed=2, xfailed=1)


def test_the_walk_in_c_as_written(c_port, tmp_path, monkeypatch, capsys):
    """From an empty folder to a badge: the page's commands and its C, and what it says that they print."""
    page = (PORTS.parents[1] / "conformance.md").read_text().split("## From an empty folder to a badge, in C")[1]
    commands = [line for block in re.findall(r"```sh\n(.*?)```", page, re.S) for line in block.splitlines()]
    printed = re.findall(r"```text\n(.*?)```", page, re.S)
    (text,) = re.findall(r"```c\n(.*?)```", page, re.S)
    monkeypatch.chdir(tmp_path)
    found = []
    for line in commands:
        words = line.split()
        if words[0] == "cc":
            Path("port.c").write_text(text if not found else (PORTS / "port.c").read_text())
            subprocess.run([shutil.which("cc") or "gcc", *words[1:]], check=True)
            continue
        assert words[0] == "ide-ref"
        assert main(words[1:]) == 0
        if "run" in words:
            found.append((capsys.readouterr().out, Path("badge.svg").read_text()))
    for (out, _), lines in zip(found, printed, strict=True):
        assert lines in out
    assert ["0 of 42 required" in found[0][1], "42 of 42 required" in found[1][1]] == [True, True]
    # And the last sentence.
    right = (PORTS / "port.c").read_text()
    wrong = right.replace("p->u[i] >= v_th", "p->u[i] > v_th")
    report = run_command(c_port(wrong), conformance.taken("pack", None), form="words")
    assert {result.case for result in report.results if not result.passed} == {
        "threshold-if-static", "threshold-lif-spikes", "mask-ends",
    }  # fmt: skip


def test_the_c_port_is_one_short_file():
    lines = (PORTS / "port.c").read_text().splitlines()
    assert len(lines) < 300
    assert {line for line in lines if line.startswith("#include")} == {
        f"#include <{name}.h>" for name in ("math", "stdio", "stdlib", "string")
    }
