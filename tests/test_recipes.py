"""Optimizers, schedules, augmentation and label smoothing: PyTorch's, by rule, and the same bits however they are computed."""

from __future__ import annotations

import copy
import math
import os
import subprocess
import sys
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipeline import numerics, params
from pipeline.exact import augmentation, loss, optimizers, schedules, self_test, transcendental
from pipeline.exact.augmentation import Augmentation
from pipeline.exact.tape import Tape
from pipeline.machine.records import OLDEST_INSTRUCTIONS
from pipeline.params import Augment, Optimizer, Schedule, Train
from pipeline.system.errors import UserError
from pipeline.training import updates
from pipeline.training.trainer import Trainer
from pipeline.workers import ALONE, Group
from tests import goldens_recipes
from tests import reference_recipes as reference
from tests.conftest import ROOT
from tests.goldens_recipes import GOLDEN, IMAGES, RECIPES, TUTORIAL
from tests.simulated import Exchange, together
from tests.steps import CPU, drawn_set, ints, run_steps

DATA = drawn_set(IMAGES)


def trainer(recipe: str, name: str = "exact", group: Group = ALONE) -> Trainer:
    return Trainer(DATA, CPU, 3, numerics.select(name, CPU), RECIPES[recipe], group)


def trained(given: Trainer, steps: int = 9) -> tuple[list[float], dict[str, bytes]]:
    """The losses, and all state by name."""
    losses: list[float] = []
    run_steps(given, steps, lambda _, loss: losses.append(loss))
    return losses, {name: array.tobytes() for name, array in given.state().items()}


# --- one fingerprint -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_gives_the_same_bits_with_any_number_of_workers_and_threads(recipe):
    losses, state = trained(trainer(recipe))
    for count in (2, 3):
        for of_worker in together(Exchange(count), lambda group: trained(trainer(recipe, group=group))):
            assert of_worker == (losses, state), count
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if threads > 1 else 2)
    try:
        assert trained(trainer(recipe)) == (losses, state)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("name", ["exact", "native"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_resumed_after_any_step_ends_in_the_same_bits(recipe, name):
    losses, state = trained(trainer(recipe, name))
    for step in range(1, 9):  # in the middle of the warm-up and of an epoch, and at their ends
        first, second = trainer(recipe, name), trainer(recipe, name)
        trained(first, step)
        second.resume(step, first.state())
        assert trained(second, 9 - step) == (losses[step:], state), step


@pytest.mark.parametrize("device", [CPU, pytest.param("cuda", marks=pytest.mark.cuda)])
def test_recipes_rates_and_augmentations_are_the_goldens(device, request):
    on = request.getfixturevalue("cuda") if device == "cuda" else CPU
    assert goldens_recipes.recipes(goldens_recipes.Pipeline(on)) == GOLDEN.read_text().splitlines()


def test_recipes_are_the_goldens_with_the_oldest_instructions():
    code = "import torch; from tests import goldens_recipes as of; print(*of.recipes(of.Pipeline(torch.device('cpu'))), sep='\\n')"
    environment = {**os.environ, **OLDEST_INSTRUCTIONS}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == GOLDEN.read_text()


def test_the_reference_gives_the_goldens():
    assert goldens_recipes.recipes(goldens_recipes.Reference()) == GOLDEN.read_text().splitlines()


@pytest.mark.parametrize("recipe", RECIPES)
def test_exact_and_native_learn_alike_by_the_same_recipe(recipe):
    exact, native = (trained(trainer(recipe, name))[0] for name in ("exact", "native"))
    assert exact == pytest.approx(native, rel=2e-3)


@pytest.mark.parametrize("first", [0, 1, 3, 6])
def test_the_rates_of_the_first_epochs_are_those_of_the_whole_training(first):
    for schedule in SCHEDULES:
        settings = Train(**TUTORIAL | {"epochs": 6}, schedule=schedule)
        assert updates.rates(settings, 7, first).tobytes() == updates.rates(settings, 7)[: 7 * first].tobytes()


def test_the_rates_of_a_training_without_end_take_the_memory_of_the_steps_that_are_trained():
    for schedule in (*SCHEDULES, Schedule(name="steps", milestones=tuple(range(2, 100_000)))):
        settings = Train(**TUTORIAL | {"epochs": 100_000}, schedule=schedule)
        assert updates.rates(settings, 1_000_000, 0).shape == (0,)
        tracemalloc.start()
        assert len(updates.rates(settings, 1_000, 1)) == 1_000
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2**25, schedule.name


def test_a_reflection_of_more_than_the_image_is_one_line():
    settings = Train(**TUTORIAL, augment=Augment(crop=32, padding="reflect"))
    with pytest.raises(UserError, match=r"train\.augment\.crop is 32, and images of 32 pixels a side reflect at most 31; "):
        Trainer(DATA, CPU, 3, numerics.select("exact", CPU), settings)


def test_the_beginning_of_a_training_has_the_whole_trainings_rates():
    recipe = "sgd with nesterov, cosine with warm-up, flip and crop, smoothing"
    whole, beginning = trainer(recipe), Trainer(DATA, CPU, 3, numerics.select("exact", CPU), RECIPES[recipe], epochs=2)
    assert beginning.total_steps == 6
    assert trained(beginning, 6) == trained(whole, 6)


def augmented_by_place(original: Any, self: Any, images: Any, epoch: Any, numbers: Any) -> Any:
    return original(self, images, epoch, torch.arange(len(numbers)))


def in_one_rounding(self: Any, weights: Any, gradient: Any, state: Any, group: Any) -> None:
    """Nesterov's direction with momentum and gradient contracted."""
    velocity, momentum = state["momentum_buffer"], torch.tensor(group["momentum"])
    gradient = gradient + weights * group["weight_decay"]
    velocity.copy_(F.hardshrink(velocity * momentum + gradient, optimizers.SNAP))
    direction = (velocity.double() * momentum.double() + gradient.double()).float()
    weights.copy_(F.hardshrink(weights - direction * group["lr"], optimizers.SNAP))


NEIGHBOURS: dict[str, tuple[Any, str, Any]] = {
    "an image is augmented by its number, not its place in the batch": (
        Augmentation, "__call__", lambda self, *given: augmented_by_place(augment, self, *given),
    ),
    "an image's hash takes this factor": (augmentation, "_FACTOR", 0x45D9F3D),
    "nesterov's product is rounded before the gradient is added": (optimizers.SGD, "_update", in_one_rounding),
    "roots are IEEE's, not a last bit more": (optimizers, "square_root", lambda x: x.double().sqrt().to(x.dtype) * (1 + 2.0**-23)),
    "the cosine is taken on the nearer side of a half": (schedules, "_COSINE", schedules._COSINE[6:]),
    "one_cycle begins at a twenty-fifth": (schedules, "DIVISOR", 24.0),
    "norms and biases do not decay where so set": (updates, "_decays", lambda parameter, settings: True),
    "the shared part of a target is s / C": (loss, "_targets", lambda s, like: [torch.tensor(x).double() for x in (1 - s, s / 9)]),
}  # fmt: skip
"""A rule of the definition, and its neighbour."""
augment = Augmentation.__call__


@pytest.mark.parametrize("rule", NEIGHBOURS)
def test_a_rule_replaced_by_its_neighbour_changes_the_golden(rule, monkeypatch):
    monkeypatch.setattr(self_test, "check", lambda on: None)  # it would find some of them
    monkeypatch.setattr(*NEIGHBOURS[rule])
    assert goldens_recipes.recipes(goldens_recipes.Pipeline(CPU)) != GOLDEN.read_text().splitlines()


# --- optimizers ------------------------------------------------------------------------------------------------------

OPTIMIZERS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "sgd": (optimizers.SGD, torch.optim.SGD, {}),
    "sgd with momentum": (optimizers.SGD, torch.optim.SGD, {"momentum": 0.9}),
    "sgd with weight decay": (optimizers.SGD, torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.01}),
    "sgd with nesterov": (optimizers.SGD, torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.01, "nesterov": True}),
    "adam": (optimizers.Adam, torch.optim.Adam, {}),
    "adam with weight decay": (optimizers.Adam, torch.optim.Adam, {"weight_decay": 0.1, "betas": (0.8, 0.95), "eps": 1e-3}),
    "adamw": (optimizers.AdamW, torch.optim.AdamW, {}),
    "adamw with weight decay": (optimizers.AdamW, torch.optim.AdamW, {"weight_decay": 0.3, "betas": (0.5, 0.99)}),
}


def float64_parameters() -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(ints(f"w{size}", 19, size) / 2**18) for size in (7, 30)]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_exact_optimizer_is_torch_optims_in_float64_step_by_step(name):
    exact, native, settings = OPTIMIZERS[name]
    ours, theirs = float64_parameters(), float64_parameters()
    one, other = exact(ours, lr=0.05, **settings), native(theirs, lr=0.05, **settings)
    rates = [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40) for optimizer in (one, other)]
    for step in range(40):
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            a.grad = ints(f"g{step}/{i}", 19, len(a)) / 2**20 if (step + i) % 5 else None  # sometimes it has none
            b.grad = a.grad
        for each in (one, other, *rates):
            each.step()
        for a, b in zip(ours, theirs, strict=True):
            assert float((a - b).detach().abs().amax()) <= 1e-12


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_exact_optimizers_state_goes_through_its_state_dict(name):
    exact, _, settings = OPTIMIZERS[name]
    ours, theirs = ([p.float().detach().requires_grad_() for p in float64_parameters()] for _ in range(2))
    one, other = exact(ours, **settings), exact(theirs, **settings)
    for step in range(6):
        if step == 3:
            other.load_state_dict(copy.deepcopy(one.state_dict()))
            for a, b in zip(ours, theirs, strict=True):
                b.data = a.detach().clone()
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            a.grad = b.grad = ints(f"g{step}/{i}", 19, len(a)).float() / 2**20
        one.step()
        if step >= 3:
            other.step()
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_weights_without_a_gradient_stay_and_so_does_their_state():
    weights = [torch.full((3,), 2.0**-70, requires_grad=True), torch.ones(3, requires_grad=True)]
    optimizer = optimizers.AdamW(weights)
    weights[1].grad = torch.ones(3)
    optimizer.step()
    assert weights[0].tolist() == [2.0**-70] * 3
    assert not optimizer.state[weights[0]]["exp_avg"].any()
    assert (weights[1] < 1).all()


def test_the_trainer_does_not_decay_weights_that_take_no_part():
    settings = Train(**TUTORIAL, optimizer=Optimizer(weight_decay=0.5))
    for kind in (updates.ExactUpdates, updates.NativeUpdates):
        parameters = {name: torch.nn.Parameter(torch.ones(2, 2)) for name in ("used", "unused")}
        given = kind(parameters, settings, 3)
        given.step([torch.ones(2, 2), None], torch.zeros(1, dtype=torch.int64))
        assert parameters["unused"].tolist() == [[1, 1], [1, 1]]
        assert (parameters["used"] < 1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_square_roots_are_ieees(dtype):
    x = torch.cat((torch.arange(2**16), ints("roots", 40, 200_000).abs() * 2.0**-50, torch.tensor([math.inf, math.nan, -1.0]))).to(dtype)
    x = torch.cat((x, x * x, x[:-3] * x[:-3] * (1 + 3 * torch.finfo(dtype).eps)))
    with np.errstate(invalid="ignore"):
        assert np.array_equal(transcendental.square_root(x).numpy(), np.sqrt(x.numpy()), equal_nan=True)


@pytest.mark.parametrize("settings", [{"momentum": -1}, {"lr": math.nan}, {"weight_decay": -0.1}, {"nesterov": True}])
def test_hyperparameters_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match=r"Invalid|Nesterov"):
        optimizers.SGD([torch.ones(1)], **settings)


# --- schedules -------------------------------------------------------------------------------------------------------

SCHEDULES = [
    Schedule(), Schedule(warmup_epochs=2), Schedule(name="cosine"), Schedule(name="cosine", warmup_epochs=1.5),
    Schedule(name="steps", milestones=(3, 5), factor=0.3), Schedule(name="steps", milestones=(2, 4), warmup_epochs=2),
    Schedule(name="one_cycle"), Schedule(name="one_cycle", warmup_epochs=1),
]  # fmt: skip


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_the_table_of_rates_is_that_of_torchs_schedulers(schedule):
    settings = Train(**TUTORIAL | {"epochs": 6}, schedule=schedule)
    native = updates.NativeUpdates({"w": torch.nn.Parameter(torch.ones(1))}, settings, 7)
    theirs = []
    for step in range(42):
        theirs.append(native.optimizer.param_groups[0]["lr"])
        native.step([torch.zeros(1)], torch.tensor([step]))
    table = updates.rates(settings, 7)
    assert table.dtype == np.float32
    np.testing.assert_allclose(table, theirs, rtol=2e-7, atol=1e-15)


def test_the_cosine_is_good_to_float64s_rounding_and_exact_at_its_ends():
    x = np.linspace(0, 1, 10_001)
    assert np.abs(schedules.cosine_of_half_turns(x) - np.cos(np.pi * x)).max() < 5e-16
    assert schedules.cosine_of_half_turns(np.array([0.0, 1.0])).tolist() == [1, -1]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_the_reference_has_the_same_table_of_rates(schedule):
    settings = Train(**TUTORIAL | {"epochs": 6}, schedule=schedule)
    assert updates.rates(settings, 7).tobytes() == reference.rates(settings, 7).tobytes()


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (Schedule(warmup_epochs=4), "train.schedule.warmup_epochs is 4, longer than the training; train.epochs is 3"),
        (Schedule(name="steps", milestones=(1,), warmup_epochs=2), "train.schedule.milestones has 1, which is within the warm-up"),
        (Schedule(name="one_cycle", warmup_epochs=1), "train.schedule.name is one_cycle, but of 3 steps 1 rise"),
    ],
)
def test_a_schedule_that_does_not_fit_the_training_is_refused(schedule, message):
    for kind in (updates.ExactUpdates, updates.NativeUpdates):
        with pytest.raises(UserError, match=message):
            kind({"w": torch.nn.Parameter(torch.ones(1))}, Train(**TUTORIAL, schedule=schedule), 1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"optimizer": {"name": "adamw", "nesterov": True}}, "'train.optimizer': nesterov is for sgd, and the name is adamw; leave it out"),
        ({"optimizer": {"name": "lion"}}, "'train.optimizer.name' is 'lion'; allowed: sgd | adam | adamw"),
        ({"optimizer": {"betas": [0.9, 1]}}, "'train.optimizer.betas[1]' is 1; allowed: a number from 0 to below 1"),
        ({"momentum": 0, "optimizer": {"nesterov": True}}, "'train': optimizer.nesterov needs a momentum above 0"),
        ({"schedule": {"name": "steps"}}, "'train.schedule': milestones are for the schedule steps, which needs one or more"),
        ({"schedule": {"name": "steps", "milestones": [3, 2]}}, "'train.schedule': milestones must rise"),
        ({"augment": {"flip": "yes"}}, "'train.augment.flip' is 'yes'; allowed: true | false"),
        ({"label_smoothing": 1}, "'train.label_smoothing' is 1; allowed: a number from 0 to below 1"),
    ],
)
def test_a_wrong_recipe_is_refused_with_key_value_and_what_is_allowed(given, message):
    with pytest.raises(UserError) as refused:
        params.section(Train, TUTORIAL | given, "params.yaml")
    assert str(refused.value).startswith(f"params.yaml: {message}")


# --- augmentation ----------------------------------------------------------------------------------------------------

AUGMENTS = [{"flip": True}, {"crop": 4}, {"crop": 3, "padding": "reflect"}, {"cutout": 8}, {"flip": True, "crop": 2, "cutout": 5}]
PIXELS = torch.from_numpy(drawn_set(40).train_images)
NUMBERS = torch.arange(1000, 1040)


@pytest.mark.parametrize("settings", AUGMENTS, ids=str)
def test_an_image_is_augmented_by_its_number_and_the_epoch_whatever_the_batch(settings):
    augment, epochs = Augmentation(5, **settings), [torch.tensor([epoch]) for epoch in (0, 1)]
    whole = augment(PIXELS, epochs[0], NUMBERS)
    assert whole.dtype == torch.uint8
    assert torch.equal(torch.cat([augment(PIXELS[i : i + 1], epochs[0], NUMBERS[i : i + 1]) for i in range(40)]), whole)
    assert not torch.equal(augment(PIXELS, epochs[1], NUMBERS), whole)
    assert not torch.equal(Augmentation(5 + 2**40, **settings)(PIXELS, epochs[0], NUMBERS), whole)
    assert np.array_equal(reference.augmented(PIXELS.numpy(), NUMBERS.numpy(), 5, 0, Augment(**settings)), whole.numpy())


def test_draws_are_even_and_independent():
    drawn = Augmentation(0).draws(torch.tensor([7]), torch.arange(100_000)).double() / 2**32
    assert (drawn.mean(1) - 0.5).abs().amax() < 0.005
    assert (torch.corrcoef(torch.cat((drawn[:, 1:], drawn[:, :-1]))) - torch.eye(10)).abs().amax() < 0.02
    counts = torch.histc(drawn[1], 9, 0, 1)
    assert (counts / 100_000 - 1 / 9).abs().amax() < 0.005


def test_a_reflected_crop_has_no_black_and_a_padded_one_has_it_at_the_edge_alone():
    white = torch.full((200, 1, 8, 8), 255, dtype=torch.uint8)
    first = torch.tensor([0])
    assert (Augmentation(0, crop=3, padding="reflect")(white, first, torch.arange(200)) == 255).all()
    zeros = Augmentation(0, crop=3)(white, first, torch.arange(200))
    assert (zeros[:, :, 3:5, 3:5] == 255).all()
    assert (zeros == 0).any()


# --- label smoothing -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
def test_the_smoothed_loss_is_cross_entropys_and_its_gradient_autograds(smoothing):
    logits, labels = (ints("logits", 19, 33, 7) / 2**17).float(), torch.arange(33) % 7
    of_pytorch = logits.double().requires_grad_()
    wanted = F.cross_entropy(of_pytorch, labels, label_smoothing=smoothing)
    wanted.backward()
    tape = Tape(logits, {}, 33)
    mean, gradient = loss.cross_entropy(tape, logits, labels, smoothing)
    tape.add_up()
    assert float(mean.value) == pytest.approx(wanted.item(), rel=1e-9)
    assert of_pytorch.grad is not None
    assert float((gradient - of_pytorch.grad).abs().amax()) < 1e-8
