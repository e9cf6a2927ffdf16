"""The command line, its presets and the checks that need no file and no device."""

import dataclasses
import re
import subprocess
import sys

import pytest

from examples.finetune.command import config, options
from examples.finetune.command.errors import InputError
from examples.finetune.running import checks
from tests.finetune import small

RATES = options.LEARNING_RATES


def test_without_options_the_default_preset() -> None:
    assert config.parse([]) == config.PRESETS["default"] == config.Config()


def test_options_override_the_preset_wherever_they_stand() -> None:
    smoke = config.PRESETS["smoke"]
    expected = dataclasses.replace(smoke, steps=7, pack=False)
    for words in ("--steps 7 --no-pack --preset smoke", "--preset=smoke --steps 7"):
        parsed = config.parse(words.split())
        assert dataclasses.replace(parsed, pack=False) == expected


def test_presets_pass_the_checks() -> None:
    for preset in config.PRESETS.values():
        checks.check_options(preset)


def test_help_names_every_option_and_imports_no_jax() -> None:
    code = (
        "import sys; from examples.finetune.__main__ import main\n"
        "try: main(['--help'])\n"
        "finally: print('jax' in sys.modules, 'numpy' in sys.modules)"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code],
        cwd=small.ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout.splitlines()[-1] == "False False"
    for field in dataclasses.fields(config.Config):
        assert config.option(field.name) in shown.stdout
    # Each with its default, but for the one that may be repeated.
    assert shown.stdout.count("(default:") == len(dataclasses.fields(config.Config)) - 1
    # In groups, the options that matter first at the top.
    titles = [line for line in shown.stdout.splitlines() if line.startswith("╭─")]
    assert len(titles) == len(options.GROUPS) + 1, titles
    assert shown.stdout.index("--model") < shown.stdout.index("--b2")


@pytest.mark.parametrize(
    ("words", "rates"),
    [
        ("--learning-rate 1e-3", dict.fromkeys(options.OPTIMIZERS, 1e-3)),
        (
            "--optimizer adamw mofo --learning-rate adamw=1e-4 mofo=2e-4",
            {"adamw": 1e-4, "mofo": 2e-4},
        ),
        (
            "--optimizer adamw mofo --learning-rate 1e-3 mofo=2e-4",
            {"adamw": 1e-3, "mofo": 2e-4},
        ),
        ("--optimizer mofo --learning-rate 1", {"mofo": 1.0}),
        (
            "--optimizer mofo --learning-rate 1 2",
            {"mofo@1": 1.0, "mofo@2": 2.0},
        ),
        ("--optimizer padam mofo", {"padam": 1e-4, "mofo": RATES["mofo"]}),
    ],
)
def test_learning_rates(words: str, rates: dict[str, float]) -> None:
    found = config.arms(config.parse(words.split()))
    assert {arm.name: arm.peak for arm in found} == rates


def test_replay_is_for_the_named_optimizers_or_for_all() -> None:
    def replayed(*names: str) -> dict[str, bool]:
        given = config.Config(optimizer=names, replay=4)
        return {arm.name: arm.replay for arm in config.arms(given)}

    assert replayed("adamw", "mofo") == {"adamw": True, "mofo": True}
    assert replayed("adamw", "adamw+replay") == {"adamw": False, "adamw+replay": True}


def test_retention_file_may_be_repeated() -> None:
    parsed = config.parse(["--retention-file", "a=x", "--retention-file", "b=y=z"])
    files = checks.retention_files(parsed)
    assert {name: str(path) for name, path in files.items()} == {"a": "x", "b": "y=z"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--stepz 4", "Unrecognized options: --stepz"),
        ("--steps four", "--steps.*four"),
        ("--steps", "--steps"),
        ("--schedule linear", "linear.*--schedule.*cosine.*constant"),
        ("--preset tiny", "tiny.*--preset.*default.*smoke"),
        ("--compute-dtype float16", "float16.*--compute-dtype.*float32"),
        ("stray", "stray"),
    ],
)
def test_a_word_that_is_not_understood_is_named(
    words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        config.parse(words.split())
    assert caught.value.code == 2
    assert re.search(message, " ".join(capsys.readouterr().err.split()))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--steps 0", "--steps must be >= 1, got 0"),
        ("--batch-size 0", "--batch-size must be >= 1, got 0"),
        ("--accumulation-steps 0", "--accumulation-steps must be >= 1, got 0"),
        ("--sequence-length 1", "--sequence-length must be >= 2, got 1"),
        ("--max-new-tokens -1", "--max-new-tokens must be >= 0, got -1"),
        ("--checkpoint-every 0", "--checkpoint-every must be >= 1, got 0"),
        ("--steps 3 --warmup-steps 3", "--warmup-steps must be below --steps, 3"),
        ("--seed -1", "--seed must be >= 0, got -1"),
        ("--seed 4294967296", "--seed must be below"),
        ("--update-fraction 0", r"--update-fraction must be in \(0, 1\], got 0"),
        ("--update-fraction nan", r"--update-fraction must be in \(0, 1\], got nan"),
        ("--b1 1", r"--b1 must be in \[0, 1\), got 1"),
        ("--b2 -0.1", r"--b2 must be in \[0, 1\), got -0.1"),
        ("--eps 0", "--eps must be positive, got 0"),
        ("--clip-norm -1", "--clip-norm must be >= 0, got -1"),
        ("--weight-decay inf", "--weight-decay must be >= 0, got inf"),
        ("--optimizer", "--optimizer needs at least one of adamw, mofo"),
        ("--optimizer adam", "ewc, projection, got 'adam'"),
        ("--optimizer mofo mofo", "--optimizer names mofo twice"),
        ("--learning-rate fast", "--learning-rate must be a number.*'fast'"),
        ("--learning-rate 0", "--learning-rate must be positive, got '0'"),
        ("--learning-rate inf", "--learning-rate must be positive, got 'inf'"),
        ("--learning-rate mofo=1", "--learning-rate gives no rate for adamw"),
        ("--learning-rate 1 sgd=1", "--learning-rate names 'sgd'"),
        ("--train-file x", "--train-file needs --task-eval-file"),
        ("--training-rows 100001", "--training-rows must be at most 100000 for --task"),
        (
            "--task mathematics --evaluation-rows 9000",
            "--evaluation-rows must be at most 7878 for --task mathematics, got 9000",
        ),
        ("--lora -1", "--lora must be >= 0, got -1"),
        ("--lora 4 --lora-alpha 0", "--lora-alpha must be positive, got 0"),
        ("--lora 4 --lora-alpha nan", "--lora-alpha must be positive, got nan"),
        ("--lora-alpha 16", "--lora-alpha needs --lora"),
    ],
)
def test_a_value_out_of_range_is_named(words: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        checks.check_options(config.parse(words.split()))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--retention-file x", "--retention-file must be NAME=PATH, got 'x'"),
        ("--retention-file =x", "--retention-file must be NAME=PATH"),
        ("--retention-file prose=x", "the name 'prose', which is taken"),
        ("--retention-file a=x --retention-file a=y", "the name 'a', which is taken"),
    ],
)
def test_retention_files_have_names_of_their_own(words: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        checks.retention_files(config.parse(words.split()))


def test_a_batch_that_the_mesh_cannot_deal_out_is_refused() -> None:
    checks.check_rows(config.Config(batch_size=16), 8)
    with pytest.raises(
        InputError, match=r"--batch-size must be a multiple of 8, .* 4$"
    ):
        checks.check_rows(config.Config(batch_size=4), 8)
    with pytest.raises(InputError, match=r"--own-texts must be a multiple of 8, .* 4$"):
        checks.check_rows(
            config.Config(batch_size=8, optimizer=("ewc",), own_texts=4), 8
        )
