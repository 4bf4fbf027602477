"""Mutation testing: changes one place of the code at a time and counts the changes that the tests notice.

  python -m tests.reliability.mutation [MODULE ...] [--sample 150] [--seed 0] [--again FILE]

cosmic-ray makes the mutants (pip install 'smalle[reliability]'), of the bodies of functions, without those that cannot
matter: annotations, and `is` for `==`. Each runs its module's tests in a fork of this process, which has imported them,
with the code of one function replaced. Prints the survivors; exits with 1 where less than 90 % are killed.
"""

import argparse
import ast
import contextlib
import importlib
import os
import random
import re
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple

import hypothesis
import pytest
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

ROOT = Path(__file__).parents[2]
LEFT_OUT = "Variable", "Is", "Decorator", "Exception"  # operators whose mutants are mostly the same program, or none
RECURRENCE = (
    "recurrence naive recurrent_step chunk _chunk_segment forward backward _run_forward _chunk_forward _chunk_backward "
    "split_chunks _join_chunks running_sum scan _pairs _exponents _join_halves _join_pairs _split_pairs segment "
    "chunk_size decay_sums _head_scores _channel_scores _exact_scan zero_state upcast _by_segments"
)
SAMPLING = "delay undelay undelay_steps sampling_settings penalise_repetition warp draw guide force_tails"
TESTS = {  # module: its functions (none: all) and the tests that have to notice, as arguments of pytest
    "alignment_smalle": (
        "",
        "test_long_texts.py -k 'by_itself or says_how or score or than_its_text or watched'",
        "test_timestamps.py -k 'path or steady or audio or end or words or skipped or cost'",
    ),
    "audio_smalle": (
        "",
        "test_sound_files.py",
        "test_processing.py -k 'clone or channels or long_recording or refused or form'",
        "test_recordings.py",
    ),
    "cache_smalle": (
        "",
        "test_initial_state.py -k 'not lowers and not guidance'",
        "test_runtime.py -k 'pending or states_are_values'",
        "test_generation.py -k without_the_others",
    ),
    "generation_smalle": (SAMPLING, "test_generation.py"),
    "linear_attention_smalle": (RECURRENCE, "test_recurrence.py"),
    "saving_smalle": (
        "",
        "test_saving.py test_damaged_checkpoint.py",
        "test_modeling.py -k impossible",
        "test_baselines.py -k unknown",
        "test_speaker.py -k no_sense",
    ),
    "text_tables_smalle": ("spell_digits _words spell_number", "test_text.py -k 'not proportional and not second'"),
    "validation_smalle": (
        "",
        "test_wrong_input.py",
        "test_modeling.py -k wrong_inputs",
        "test_speaker.py -k mask_without",
        "test_damaged_checkpoint.py -k numbers_alone",
    ),
    "voices_smalle": (
        "",
        "test_wrong_input.py -k 'voice_file or parts_of_a_voice or another_codec'",
        "test_speaker.py -k joined",
        "test_initial_state.py -k voice_may",
        "test_processing.py -k voice",
    ),
}
SURVIVOR = re.compile(r"(\w+)\.py:\d+: ([^\r\n]*)  ->  ([^\r\n]*)")  # as it is printed: module, line, changed line
PATIENCE = 5  # times as long as the tests of the code as it is: what takes longer is killed


class Mutant(NamedTuple):
    line: int
    column: int
    operator: str
    occurrence: int


def computing(source: str, functions: Sequence[str]) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Where the bodies of functions begin and end: of these, or of all."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and (not functions or node.name in functions):
            yield (node.body[0].lineno, 0), (node.end_lineno or 0, node.end_col_offset or 0)


def mutants(source: str, functions: Sequence[str]) -> list[list[Mutant]]:
    """The mutants of each place of a module."""
    bodies, places, nodes = list(computing(source, functions)), {}, list(ast_nodes(get_ast(source)))
    for name in operator_names():
        if any(word in name.partition("/")[2] for word in LEFT_OUT):
            continue
        operator, occurrence = get_operator(name)(), 0
        for node in nodes:
            for start, _ in operator.mutation_positions(node):
                if any(first <= start <= last for first, last in bodies):
                    places.setdefault(start, []).append(Mutant(*start, name, occurrence))
                occurrence += 1
    return [places[place] for place in sorted(places)]


def mutate(source: str, mutant: Mutant) -> str:
    """The source with one change."""
    return mutate_code(source, get_operator(mutant.operator)(), mutant.occurrence)


def changed_line(source: str, changed: str, mutant: Mutant) -> tuple[str, str]:
    """The line of a mutant before and after."""
    before, after = (text.splitlines()[mutant.line - 1].strip() for text in (source, changed))
    return before, after


def with_changes(source: str, places: Sequence[Sequence[Mutant]], lines: set[tuple[str, str]]) -> list[Mutant]:
    """Those mutants that change a line as one of `lines` does, wherever it stands."""
    before = {line for line, _ in lines}
    there = [x for place in places for x in place if source.splitlines()[x.line - 1].strip() in before]
    return [x for x in there if changed_line(source, mutate(source, x), x) in lines]


def functions_of(module: ModuleType) -> Iterator[FunctionType]:
    """The functions of a module and of its classes, without what wraps them. Caches are cleared."""
    waiting: list[Any] = list(vars(module).values())
    while waiting:
        one = waiting.pop()
        if hasattr(one, "cache_clear"):
            one.cache_clear()
        if isinstance(one, type) and one.__module__ == module.__name__:
            waiting += vars(one).values()
        elif isinstance(one, FunctionType) and one.__code__.co_filename == module.__file__:
            yield one
        waiting += [x for x in (getattr(one, name, None) for name in ("__wrapped__", "__func__", "fget")) if x]


def codes_of(code: CodeType) -> dict[str, CodeType]:
    """The code of the functions in a module's code, by qualified name."""
    codes = {}
    for one in code.co_consts:
        if isinstance(one, CodeType):
            codes |= {one.co_qualname: one, **codes_of(one)}
    return codes


def replace_functions(module: ModuleType, source: str) -> None:
    """Gives the functions of a module the code that they have in a source, wherever they have been imported."""
    codes = codes_of(compile(source, module.__file__ or "", "exec"))
    for function in functions_of(module):
        if function.__qualname__ in codes:
            function.__code__ = codes[function.__qualname__]


def run_tests(groups: Sequence[str], *options: str) -> int:
    """The exit code of pytest: of the first group with an error."""
    for group in groups:
        words = (f"tests/smalle/{x}" if x.endswith(".py") else x for x in shlex.split(group))
        if code := pytest.main(["-x", "-p", "no:cacheprovider", "--hypothesis-profile=few", *options, *words]):
            return code
    return 0


def tests_fail(groups: Sequence[str], seconds: float, module: ModuleType, source: str) -> tuple[bool, float]:
    """Whether tests fail, or compute for longer, in a forked process; and the seconds that they compute. The module has
    the functions of a source there."""
    child = os.fork()
    if child:
        _, status, usage = os.wait4(child, 0)
        return status != 0, usage.ru_utime + usage.ru_stime
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, 50 * seconds)  # of what waits for ever; other work may slow this down
    code = 1
    try:
        silent = os.open(os.devnull, os.O_RDWR)
        os.dup2(silent, 1), os.dup2(silent, 2)
        replace_functions(module, source)
        code = run_tests(groups)
    finally:
        os._exit(code)


def check(name: str, sample: int, seed: int, again: set[tuple[str, str]]) -> tuple[int, list[str]]:
    """Tests mutants of a module: `sample` places, or with `again` those that change a line so. Returns how many there
    were, and the survivors in words."""
    functions, *tests = TESTS[name]
    with open(os.devnull, "w") as silent, contextlib.redirect_stdout(silent):
        run_tests(tests, "--collect-only")  # which imports the tests, and what they import
    module, random_ = importlib.import_module(f"smalle.{name}"), random.Random(seed)
    source, survivors = Path(module.__file__ or "").read_text(), []
    fail, seconds = tests_fail(tests, 3600, module, source)
    if fail:
        raise SystemExit(f"{tests}: these fail without a mutant; expected tests that pass.")
    print(f"{name}: its tests compute for {seconds:.1f} s", flush=True)
    places = mutants(source, functions.split())
    if again:
        chosen = with_changes(source, places, again)
        print(f"{name}: {len(again)} survivors, {len(chosen)} places that change a line so", flush=True)
    else:
        chosen = [random_.choice(each) for each in random_.sample(places, min(sample, len(places)))]
    for number, mutant in enumerate(sorted(chosen), 1):
        changed = mutate(source, mutant)
        if not tests_fail(tests, PATIENCE * seconds + 5, module, changed)[0]:
            survivors.append(f"{name}.py:{mutant.line}: {'  ->  '.join(changed_line(source, changed, mutant))}")
            print(survivors[-1], flush=True)
        print(f"{name}: {number} of {len(chosen)}, {len(survivors)} survive", end="\r", file=sys.stderr)
    return len(chosen), survivors


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=f"some of {', '.join(TESTS)} (default: all)")
    parser.add_argument("--sample", type=int, default=150, help="places of each module, at random (default: 150)")
    parser.add_argument("--seed", type=int, default=0, help="of that choice (default: 0)")
    parser.add_argument("--again", metavar="FILE", help="try only the survivors that a run printed into this file")
    arguments = parser.parse_args()
    lived: dict[str, set[tuple[str, str]]] = {}
    for name, *line in SURVIVOR.findall(Path(arguments.again).read_text() if arguments.again else ""):
        lived.setdefault(name, set()).add((line[0], line[1]))
    hypothesis.settings.register_profile("few", derandomize=True, max_examples=20)
    os.chdir(ROOT)
    count, alive = 0, 0
    for name in arguments.modules or lived or TESTS:
        tested, survivors = check(name, arguments.sample, arguments.seed, lived.get(name, set()))
        count, alive = count + tested, alive + len(survivors)
        print(f"{name}: {tested - len(survivors)} of {tested} killed", flush=True)
    print(f"{count - alive} of {count} killed: {100 * (count - alive) / max(1, count):.0f} %")
    return int(alive > 0.1 * count)


if __name__ == "__main__":
    sys.exit(main())
