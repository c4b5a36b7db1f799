"""The pages of docs/results against the files beside them: every figure of a table, and the command of every run."""

import json
import re
import runpy
import shlex
import statistics
from functools import cache
from pathlib import Path

import pytest
from rounding import is_rounded

from ide_ref.cli import parser, sweep
from ide_ref.presets import Preset
from ide_ref.training import evaluation, loop

RESULTS = Path(__file__).parent.parent / "docs/results"
PAGES = {page.name: page.read_text() for page in sorted(RESULTS.glob("*.md"))}
TIME = RESULTS.parent / "backpropagation-through-time.md"


def sections(text: str) -> list[str]:
    return re.split(r"^## ", text, flags=re.M)


def plain(text: str) -> str:
    """With single spaces and without links and emphasis."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    return re.sub(r"\s+", " ", re.sub(r"\*\*|`", "", text))


def table(text: str, first: str) -> list[list[str]]:
    """The rows below a header whose first cell is this one, that header first."""
    rows = re.search(rf"^\| {re.escape(first)} \|(?:.*\n\|)+.*$", text, re.M)[0].splitlines()
    cells = [[cell.strip() for cell in row.strip().strip("|").split("|")] for row in rows]
    assert set("".join(cells[1])) <= set("-:")
    return [cells[0], *cells[2:]]


@cache
def metrics(run: str) -> list[dict]:
    return [json.loads(line) for line in (RESULTS / run / "metrics.jsonl").read_text().splitlines()]


@cache
def columns(file: str) -> dict[int, list[float]]:
    """A text of numbers by the first of each line."""
    lines = [line.split() for line in (RESULTS / file).read_text().splitlines()]
    return {int(line[0]): [float(word) for word in line[1:]] for line in lines if line[0].isdigit()}


@cache
def preset_of(run: str) -> Preset:
    return Preset.from_dict(json.loads((RESULTS / run / "run.json").read_text())["preset"])


def accuracies(run: str) -> list[float]:
    return [100 * epoch["test_accuracy"] for epoch in metrics(run)]


def mean_of(runs: list[str], which=max) -> str:
    found = [which(accuracies(run)) for run in runs]
    return f"{statistics.mean(found):.2f} ± {statistics.stdev(found):.2f} %"


def last(values: list[float]) -> float:
    return values[-1]


RUNS = sorted(str(file.parent.relative_to(RESULTS)) for file in RESULTS.rglob("run.json"))


@pytest.mark.parametrize("run", RUNS)
def test_a_command_beside_each_run_has_its_recipe(run, monkeypatch):
    """Given to the command line as it is today, it trains the very preset that the run's own file notes."""
    texts = [*PAGES.values(), TIME.read_text()]
    name = run.removeprefix("backpropagation-through-time/")
    named = rf"[(`/]({re.escape(name)}|{re.escape(name.split('/')[0])})[/`]"
    beside = [one for text in texts for one in sections(text) if re.search(named, one)]
    assert beside, "no page has this run"
    given = [preset for one in beside for words in commands(one) for preset in presets_of(words, monkeypatch)]
    assert preset_of(run) in given


def commands(text: str) -> list[list[str]]:
    """Those that train, indented or within a sentence, with 0 for a seed S."""
    text = text.replace("\\\n", " ")
    found = re.findall(r"^    (ide-ref (?:train|sweep) .*)$", text, re.M)
    found += re.findall(r"`(ide-ref (?:train|sweep) [^`]*)`", text)
    return [["0" if word == "S" else word for word in shlex.split(one)[1:]] for one in found]


def presets_of(words: list[str], monkeypatch) -> list[Preset]:
    """What a command would train."""
    args = parser().parse_args(words)
    args.words = words
    if words[0] == "sweep":
        return [job.preset for job in sweep._jobs(args)]
    taken = []

    def train(preset, *_, **__):
        taken.append(preset)
        raise InterruptedError

    monkeypatch.setattr(evaluation, "load_data", lambda *_, **__: None)
    monkeypatch.setattr(loop, "train", train)
    with pytest.raises(InterruptedError):
        args.run(args)
    return taken


def test_accuracies_in_rows_of_runs():
    """A row that links a run has its best and last epoch, or all of them."""
    n_rows = 0
    for name, text in PAGES.items():
        for found in re.findall(r"^\|.* files \|\n(?:\|.*\n)+", text, re.M):
            header, _, *rows = found.splitlines()
            cells = [cell.strip() for cell in header.strip("|").split("|")]
            for row in rows:
                values = dict(zip(cells, (cell.strip() for cell in row.strip("|").split("|")), strict=True))
                run = re.search(r"\((.*)/run\.json\)", values["files"])[1]
                right = accuracies(run)
                if "best" in values:
                    assert values["best"] == f"{max(right):.2f} %", (name, row)
                    assert values["last"] == f"{right[-1]:.2f} %", (name, row)
                else:
                    assert values["after each epoch"] == ", ".join(f"{a:.2f}" for a in right) + " %", (name, row)
                for field, key in (("firing rates", "firing_rate"), ("products", "solver_iterations")):
                    if field in values:
                        written = values[field].split(", ")
                        numbers = zip(written, metrics(run), strict=True)
                        assert all(is_rounded(w, m[key]) for w, m in numbers), (name, row)
                n_rows += 1
    assert n_rows >= 41


@pytest.mark.parametrize("group", ["fashion-mnist-400-fast", "mnist-64c5-minutes"])
def test_times_to_an_accuracy(group):
    found = json.loads((RESULTS / group / "sweep.json").read_text())
    page = PAGES["fashion-mnist.md" if "fashion" in group else "mnist.md"]
    for one in found["trainings"]:
        row = re.search(rf"^\|.*{group}/lif-s{one['seed']}/run.json.*$", page, re.M)[0]
        seconds = [float(cell) for cell in re.findall(r"\| (\d+\.\d) (?=\|)", row)]
        assert seconds[0] == round(one["seconds_to_target"], 1)
        assert seconds[1] == pytest.approx(
            sum(m["seconds"] + m["test_seconds"] for m in metrics(f"{group}/lif-s{one['seed']}")), abs=0.1
        )
    median = statistics.median(one["seconds_to_target"] for one in found["trainings"])
    assert found["sweep"][0]["seconds_to_target"] == median
    assert f"{median:.1f} s" in page


def runs_of(group: str, start: str = "") -> list[str]:
    return [run for run in RUNS if run.startswith(f"{group}/{start}")]


def test_means_of_seeds():
    fashion = plain(PAGES["fashion-mnist.md"])
    own, other = runs_of("fashion-mnist-400-free", "512-"), runs_of("fashion-mnist-400-free", "lif-")
    for runs in (own, other):
        assert len(runs) == 5
        assert f"Mean and deviation of the best {mean_of(runs)}, of the last {mean_of(runs, last)}" in fashion
    for neuron in ("if", "lif"):
        runs = runs_of("fashion-mnist-400", f"{neuron}-")
        best = max(max(accuracies(run)) for run in runs)
        assert f"| IDE, {neuron.upper()}, ours | 400 (F400) | 5 | {mean_of(runs)} | {best:.2f} % |" in fashion
        assert f"Mean of the last epochs: {mean_of(runs, last).split(' ')[0]} % of either" in fashion
    shorter = runs_of("fashion-mnist-400-fast", "16-epochs-")
    assert f"(best {', '.join(f'{max(accuracies(run)):.2f}' for run in shorter)} %)" in fashion
    clipped = runs_of("mnist-64c5-fast-kernel-clip", "lif-")
    assert f"The mean of three is {mean_of(clipped)}" in plain(PAGES["mnist.md"])

    overview = plain(PAGES["README.md"])
    for runs in (own, runs_of("fashion-mnist-400-fast", "lif-"), clipped, runs_of("mnist-64c5-minutes")):
        assert f"| {mean_of(runs)}" in overview
    for neuron in ("if", "lif"):
        assert f"| {mean_of(runs_of('fashion-mnist-400', f'{neuron}-'))} |" in overview


@pytest.mark.parametrize(
    ("page", "run"),
    [
        ("n-mnist.md", "nmnist-64c5-ten-epochs-synthetic"),
        ("n-mnist.md", "nmnist-64c5-readout-rate-synthetic"),
        ("n-mnist.md", "nmnist-64c5-kernel-lif-synthetic"),
    ],
)
def test_epochs_in_a_sentence(page, run):
    found = [f"{a:.2f}" for a in accuracies(run)]
    text = plain(PAGES[page]).replace(" %, ", ", ")
    others = ", ".join(found[:-1])
    said = rf"{found[-1]} % after the last of its \w+ epochs \({others} % after the others\); firing rates ([\d., ]*\d)"
    rates = re.search(said, text)[1].split(",")
    assert all(is_rounded(rate, epoch["firing_rate"]) for rate, epoch in zip(rates, metrics(run), strict=True))


def test_the_stages_on_cifar_10():
    page = PAGES["cifar-10.md"]
    (header, *rows) = table(page, "epoch")
    assert header[1:] == [
        "T in training",
        "training loss",
        "training images right, as met",
        "test images right, T = 30",
        "firing rate",
        "minutes of training",
        "of testing",
    ]
    for row, m in zip(rows, metrics("cifar10-alexnet-f-5-epochs"), strict=True):
        values = [m["epoch"], m["n_steps"], m["train_loss"], 100 * m["train_accuracy"]]
        values += [100 * m["test_accuracy"], m["firing_rate"], m["seconds"] / 60, m["test_seconds"] / 60]
        assert all(map(is_rounded, row, values)), row


def test_losses_at_batch_128():
    page = PAGES["cifar-10.md"]
    theirs, ours = (re.findall(r"^\| step \|(?:.*\n\|)+.*$", page, re.M)[i].splitlines() for i in (0, 2))
    for (_, _, *rows), files, column in (
        (theirs, ("authors-recipe", "authors-fixed-batches"), 2),
        (ours, ("ours-readout-1-clip-2", "ours-readout-0.02"), 1),
    ):
        for step, rate, *losses in ([cell.strip() for cell in row.strip("|").split("|")] for row in rows):
            for file, loss in zip(files, losses, strict=True):
                found = columns(f"cifar10-batch-128/{file}.txt")
                if loss in ("stopped", ""):
                    assert int(step) not in found
                    continue
                assert is_rounded(rate, found[int(step)][0])
                assert is_rounded(loss, found[int(step)][column]), (file, step)
    (header, *rows) = table(page[page.index("Which share of the rate") :], "step | rate")
    for step, rate, *losses in rows:
        for cell, loss in zip(header[2:], losses, strict=True):
            found = columns(f"cifar10-batch-128/{re.search(r'short-.*txt', cell)[0]}")
            if loss:
                assert is_rounded(rate, found[int(step)][0])
                assert is_rounded(loss, found[int(step)][1]), (cell, step)
            else:
                assert int(step) not in found
    said = re.search(r"learn faster: (.*) at steps 60, 80 and 100, where four had (.*?)\.\s", plain(page))
    for words, file in zip(said.groups(), ("max-iter-10", "readout-0.02"), strict=True):
        found = columns(f"cifar10-batch-128/short-cycle-{file}.txt")
        assert all(map(is_rounded, re.split(", | and ", words), [found[step][1] for step in (60, 80, 100)]))
    ours = [loss[0] for loss in columns("cifar10-batch-128/ours-fixed-batches.txt").values()]
    theirs = [columns("cifar10-batch-128/authors-fixed-batches.txt")[step][2] for step in (110, 120, 230, 240)]
    means = [statistics.mean(part) for part in (ours[100:120], theirs[:2], ours[220:240], theirs[2:])]
    said = r"at ([\d.]+) by step 120 \(theirs: ([\d.]+)\), at ([\d.]+) by 240 \(([\d.]+)\).* at ([\d.]+) in its last"
    assert len(ours) == 251
    assert all(map(is_rounded, re.search(said, plain(page)).groups(), [*means, ours[250]]))
    for text, file in re.findall(r"\[([\d.]+) %\]\((cifar10-batch-128/one-cycle.*?\.txt)\)", page):
        found = float(re.search(r"^accuracy (.*)$", (RESULTS / file).read_text(), re.M)[1])
        assert is_rounded(text, 100 * found)


def test_recipes_tried_on_cifar_10():
    page = PAGES["cifar-10.md"]
    text = (RESULTS / "cifar10-recipes/trainings.txt").read_text()
    told = re.findall(r"^(\S+) epoch (\d+)/\2 .*? loss (\S+) .*? held (\S+) .* (\S+) s$", text, re.M)
    last_line = {name: [float(value) for value in values] for name, *values in told}
    (_, *rows) = table(page, "name")
    assert {row[0].strip("`") for row in rows} == last_line.keys() - {"smoke", "base5-full"}
    for name, _, epochs, loss, held, seconds in rows:
        n, *values = last_line[name.strip("`")]
        assert int(epochs) == n
        assert all(map(is_rounded, (loss, held, seconds), (values[0], 100 * values[1], values[2]))), name
    said = re.search(r"`base5-full`.*?: ([\d.]+) % of the test images, where ours above has ([\d.]+) %", page)
    theirs, ours = 100 * last_line["base5-full"][2], last(accuracies("cifar10-alexnet-f-5-epochs"))
    assert all(map(is_rounded, said.groups(), (theirs, ours)))


def test_the_program_that_tried_them_has_our_gradients():
    pytest.importorskip("torch")
    program = runpy.run_path(str(RESULTS / "cifar10-recipes/gpu_trainings.py"))
    assert max(program["distances"]().values()) <= 1e-4


def test_the_readouts_curvature():
    (_, *rows) = table(
        PAGES["cifar-10.md"], "step | rate | loss | curvature | share | a fiftieth: loss | curvature | share"
    )
    assert len(rows) == 9
    both = [columns(f"cifar10-batch-128/curvature-readout-{name}.txt") for name in ("1-clip-2", "0.02-clip-10")]
    for step, rate, *cells in rows:
        assert is_rounded(rate, both[0][int(step)][0])
        for found, (loss, curvature, share) in zip(both, (cells[:3], cells[3:]), strict=True):
            # The columns: rate, readout's share of it, loss, right, firing rate, curvature, share of what is borne.
            assert all(map(is_rounded, (loss, curvature, share), [found[int(step)][i] for i in (2, 5, 6)])), step


def test_what_was_held_out_of_fashion_mnist():
    def lines(file):
        return [json.loads(line) for line in (RESULTS / file).read_text().splitlines()]

    (_, *rows) = table(PAGES["fashion-mnist.md"], "the fast recipe, and")
    found = lines("fashion-mnist-400-free/held-out-512.jsonl")
    for name, epochs, *written in rows:
        dropout = float((re.search(r"dropout ([\d.]+)", name) or [0, 0])[1])
        statistics_of = 0.1307 if "MNIST's statistics" in name else pytest.approx(0.286, abs=1e-3)
        wanted = {"epochs": int(epochs), "dropout": dropout, "flip": "mirrored" in name, "mean": [statistics_of]}
        pair = [one for one in found if all(one[k] == v for k, v in wanted.items()) and one["weight_decay"] == 1e-4]
        assert [one["seed"] for one in pair] == [0, 1], name
        assert written == [", ".join(f"{100 * one[k]:.2f}" for one in pair) + " %" for k in ("last", "best")]

    (_, *rows) = table(PAGES["fashion-mnist.md"], "recipe, one cycle throughout")
    found = lines("fashion-mnist-400-fast/held-out.jsonl")
    recipe = {"batch_size": 128, "lr": 0.1, "weight_decay": 4e-4, "dropout": 0.05, "label_smoothing": 0}
    recipe |= {"first_steps": None, "flip": False}
    changes = [
        {},
        {"weight_decay": 1e-4},
        {"batch_size": 256, "lr": 0.2},
        {"first_steps": 2},
        {"first_steps": None, "dropout": 0},
        {"label_smoothing": 0.1},
        {"batch_size": 512, "lr": 0.4},
        {},
        {"flip": True},
        {"batch_size": 1024, "flip": False},
    ]
    for (name, epochs, written, clock), change in zip(rows, changes, strict=True):
        recipe |= change
        for value in ("batch_size", "weight_decay"):
            if value in change:
                assert str(change[value]).replace("0.0001", "1e-4") in name
        (one,) = (o for o in found if o["epochs"] == int(epochs) and all(o[k] == v for k, v in recipe.items()))
        assert written == f"{100 * one['last']:.2f} %", name
        if clock:
            seconds, threads = clock.split(", ")
            same = [o for o in found if o["batch_size"] == recipe["batch_size"] and o.get("threads") == int(threads)]
            same = [o for o in same if all(o[k] == recipe[k] for k in ("first_steps", "flip"))]
            assert any(is_rounded(seconds, o["seconds_per_epoch"]) for o in same), name


def test_the_tolerance_of_beta():
    (_, *rows) = table(PAGES["beta-tolerance.md"], "tolerance | Fashion-MNIST")
    assert len(rows) == 6
    for tol, *cells in rows:
        for preset, (right, products) in (("fashion-mnist-400", cells[:2]), ("mnist-64c5", cells[2:])):
            runs = runs_of("beta-tolerance", f"{preset}-{tol.split()[0]}-s")
            recipes = [preset_of(run).recipe for run in runs]
            assert all(r.dtype == ("float64" if "float64" in tol else "float32") for r in recipes)
            assert all(r.tol == float(tol.split()[0]) for r in recipes)
            assert right == ", ".join(f"{last(accuracies(run)):.2f} %" for run in runs)
            if runs:
                assert is_rounded(products, statistics.mean(last(metrics(run))["solver_iterations"] for run in runs))


def test_the_tolerance_of_beta_on_cifar_10():
    (_, *rows) = table(PAGES["beta-tolerance.md"], "tolerance | training loss after each epoch")
    for (tol, losses, right, loss, products), end in zip(rows, ("-1e-1", ""), strict=True):
        run = f"cifar10-alexnet-f-5000-images{end}"
        found = metrics(run)
        assert float(tol) == preset_of(run).recipe.tol
        assert losses == ", ".join(f"{m['train_loss']:.3f}" for m in found)
        assert right == ", ".join(f"{100 * m['test_accuracy']:.2f} %" for m in found)
        assert is_rounded(loss, found[-1]["test_loss"])
        assert is_rounded(products, found[-1]["solver_iterations"])


def test_activity_and_angles_of_both_gradients():
    (_, *rows) = table(TIME.read_text(), "gradient, neuron")
    for (name, right, rate, feedback, products, synapses, neurons, dense), end in zip(
        rows, ("ide-if", "ide-lif", "stbp-rectangle"), strict=True
    ):
        found = json.loads((RESULTS / f"backpropagation-through-time/activity-{end}.json").read_text())
        assert end in name
        assert plain(right) == f"{accuracies(f'backpropagation-through-time/{end}')[-1]:.2f}%"
        assert is_rounded(rate, found["firing_rate"])
        assert is_rounded(feedback, found["operations"]["feedback"])
        assert int(products) == sum(found["multiplications"].values())
        for cell, part in ((synapses, "synapses"), (neurons, "neurons"), (dense, "dense")):
            assert is_rounded(cell, found["energy"][part] / 1e6)

    (header, *rows) = table(TIME.read_text(), "batches")
    file = RESULTS / "backpropagation-through-time/angles-fashion-mnist-400.json"
    for (batches, *cells), found in zip(rows, json.loads(file.read_text())["angles"], strict=True):
        assert int(batches) == found["batches"]
        for pair, cell in zip(header[1:], cells, strict=True):
            one, other = pair.split(", ")
            assert is_rounded(cell, found["degrees"][one][other]), pair


def test_memory_of_both_gradients():
    """And of implicit differentiation nothing grows with T; of backpropagation through time what is recorded does."""
    for name in ("mnist-64c5", "cifar10-alexnet-f"):
        file = f"results/backpropagation-through-time/memory-{name}.json"
        found = json.loads((TIME.parent / file).read_text())["memory"]
        (_, *rows) = table(TIME.read_text().split(f"({file})")[1], "gradient")
        for (gradient, n_steps, *cells), m in zip(rows, found, strict=True):
            assert (gradient, int(n_steps)) == (m["method"], m["n_steps"])
            values = [m[k] / 2**20 for k in ("resident", "idle", "arrays", "recording")]
            assert all(map(is_rounded, cells, values)), (name, gradient, n_steps)
        ide, stbp = ([m for m in found if m["method"] == method] for method in ("ide", "stbp"))
        for what in ("resident", "arrays"):
            assert abs(ide[1][what] / ide[0][what] - 1) < 0.02
            assert stbp[1][what] > 1.4 * stbp[0][what]
        assert stbp[1]["recording"] == 100 / 30 * stbp[0]["recording"]


def test_step_times_of_the_performance_page():
    (_, *rows) = table((RESULTS.parent / "performance.md").read_text(), "preset | (BETA) to")
    assert len(rows) == 7
    files = {("fashion-mnist-400", "1e-1"): "two-presets", ("mnist-64c5", "1e-1"): "two-presets"}
    files |= {("fashion-mnist-400", "1e-6"): "two-presets-1e-6", ("mnist-64c5", "1e-6"): "two-presets-1e-6"}
    files[("cifar10-alexnet-f", "1e-1")] = "cifar10-alexnet-f"
    for preset, tol, threads, *cells in rows:
        timings = json.loads((RESULTS / f"bench/{files[preset, tol]}.json").read_text())["timings"]
        (t,) = (one for one in timings if one["preset"] == preset and one["threads"] == int(threads))
        unit = {"ms": 1e3, "s": 1}
        values = [t[k] * unit[c.split()[1]] for k, c in zip(("step", "dense_equivalent"), cells, strict=False)]
        values += [t["ratio"], t["samples_per_second"], t["forward"] * unit[cells[4].split()[1]], t["forward_ratio"]]
        values += [t["blas_ratio"], t["events_per_second"] / 1e9, t["sent_per_second"] / 1e9, t["firing_rate"]]
        for cell, value in zip(cells, values, strict=True):
            assert cell == "" if value is None else is_rounded(cell, value), (preset, tol, threads, cell, value)


def test_accuracies_of_the_overview_and_the_log():
    overview = plain(PAGES["README.md"])
    nmnist, cifar = (
        last(accuracies(run)) for run in ("nmnist-64c5-ten-epochs-synthetic", "cifar10-alexnet-f-5-epochs")
    )
    assert f"| {nmnist:.2f} % on synthetic recordings |" in overview
    assert f"| {cifar:.1f} % after five epochs, two hours |" in overview
    n_runs = 0
    for name, written in re.findall(r"finished: ([\w-]+), ([\d.]+) % \|$", PAGES["LOG.md"], re.M):
        assert is_rounded(written, accuracies(name)[-1]), name
        n_runs += 1
    assert n_runs == 4
    for run in ("cifar10-alexnet-f-10-epochs", "cifar10-alexnet-f-14-epochs"):
        for form, key, unit in (("{:.2f}", "test_accuracy", 100), ("{:.2f}", "train_loss", 1)):
            assert ", ".join(form.format(unit * m[key]) for m in metrics(run)) in PAGES["LOG.md"], run
