"""Recall and memory: the tasks whose answer was shown before, by conformance and by what each rule promises."""

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from hashlib import sha256
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from specreg.tasks.adding import Adding
from specreg.tasks.associative_recall import AssociativeRecall
from specreg.tasks.copying import Copying
from specreg.tasks.delay import Delay
from specreg.tasks.induction_heads import InductionHeads
from specreg.tasks.lagged_copying import LaggedCopying
from specreg.tasks.mqar import MQAR
from specreg.tasks.selective_copying import SelectiveCopying
from specreg.tasks.task import Batch, Task
from specreg.testing.tasks import BatchLike, TaskConformance, TaskLike, assert_workers_agree

SMALL_RECALL = AssociativeRecall(length=18, vocab_size=6, train_examples=4000)


def within(measured: float, expected: float, count: int, deviation: float | None = None) -> bool:
    """Whether a mean of `count` draws, of shares where no deviation is given, is within five standard errors."""
    deviation = math.sqrt(expected * (1 - expected)) if deviation is None else deviation
    return abs(measured - expected) <= 5 * deviation / math.sqrt(count)


class TestRepeatedMQARConformance(TaskConformance):
    """Multi-query recall of pairs that are shown twice."""

    @cached_property
    def task(self) -> TaskLike:
        return replace(MQAR.tiny(), passes=2, validation_examples=1000)

    def reference(self, task: Any, batch: BatchLike) -> Tensor:
        return recall(task, batch)


class TestForgettingMQARConformance(TestRepeatedMQARConformance):
    """Multi-query recall of the last value of each key."""

    @cached_property
    def task(self) -> TaskLike:
        return replace(MQAR.tiny(), variant="forgetting", updates=3, validation_examples=1000)


class TestFaithfulMQARConformance(TestRepeatedMQARConformance):
    """Multi-query recall of the last value, which may be the first again."""

    @cached_property
    def task(self) -> TaskLike:
        return replace(MQAR.tiny(), variant="forgetting", updates=4, faithful=True, validation_examples=1000)


class TestCompositionalMQARConformance(TestRepeatedMQARConformance):
    """Multi-query recall by two keys, where a slot of three tokens does not divide the rest."""

    @cached_property
    def task(self) -> TaskLike:
        return MQAR(length=32, pairs=4, vocab_size=65, variant="compositional", validation_examples=1000)


class TestMixedMQARConformance(TestRepeatedMQARConformance):
    """Multi-query recall of the sizes of the Based paper at once."""

    @cached_property
    def task(self) -> TaskLike:
        return MQAR(length=256, pairs=64, vocab_size=258, mix="based", validation_examples=200, test_examples=200)


class TestCopyingConformance(TaskConformance):
    """Copying."""

    @cached_property
    def task(self) -> TaskLike:
        return replace(Copying.tiny(), validation_examples=1000)

    def reference(self, task: Any, batch: BatchLike) -> Tensor:
        answers = torch.zeros_like(batch.targets)
        for row, sequence in enumerate(batch.inputs.tolist()):
            data, rest = sequence[: task.tokens], sequence[task.tokens :]
            assert rest == [0] * task.blanks + [task.alphabet - 1] * task.tokens
            answers[row, -task.tokens :] = torch.tensor(data[::-1] if task.reverse else data)
        return answers


class TestReversedCopyingConformance(TestCopyingConformance):
    """Copying from the last token to the first."""

    @cached_property
    def task(self) -> TaskLike:
        return Copying(blanks=3, tokens=11, alphabet=9, reverse=True)


class TestLaggedCopyingConformance(TaskConformance):
    """Lagged copying."""

    @cached_property
    def task(self) -> TaskLike:
        return replace(LaggedCopying.tiny(), validation_examples=1000)

    def reference(self, task: Any, batch: BatchLike) -> Tensor:
        late = [[0] * task.lag + sequence[: -task.lag] for sequence in batch.inputs.tolist()]
        return torch.tensor(late)


class TestScoredStartConformance(TestLaggedCopyingConformance):
    """Lagged copying, the start scored, where 0 is the commonest answer."""

    @cached_property
    def task(self) -> TaskLike:
        return replace(LaggedCopying.tiny(), score_start=True)


class TestDelayConformance(TaskConformance):
    """Delay."""

    @cached_property
    def task(self) -> TaskLike:
        return replace(Delay.tiny(), validation_examples=1000)

    def reference(self, task: Any, batch: BatchLike) -> Tensor:
        late = torch.zeros_like(batch.targets)
        for step in range(task.lag, task.length):
            late[:, step] = batch.inputs[:, step - task.lag]
        return late


class TestPublishedDelayConformance(TestDelayConformance):
    """Delay with four outputs and the start scored, of odd length."""

    @cached_property
    def task(self) -> TaskLike:
        return Delay(length=41, lag=30, frequency=20, score_start=True, faithful=True)


class TestAddingConformance(TaskConformance):
    """Adding."""

    @cached_property
    def task(self) -> TaskLike:
        return replace(Adding.tiny(), length=33, validation_examples=1000)

    def reference(self, task: Any, batch: BatchLike) -> Tensor:
        sums = []
        for sequence in batch.inputs.tolist():
            marked = [step for step, (_, mark) in enumerate(sequence) if mark == 1]
            assert sum(mark for _, mark in sequence) == 2
            assert marked[0] < task.length // 2 <= marked[1]
            sums.append([sum(sequence[step][0] for step in marked)])
        return torch.tensor(sums)


class TestInductionHeadsConformance(TaskConformance):
    """Induction heads."""

    @cached_property
    def task(self) -> TaskLike:
        return replace(InductionHeads.tiny(), validation_examples=1000)

    def reference(self, task: Any, batch: BatchLike) -> Tensor:
        answers = next_tokens(batch)
        for row, sequence in enumerate(batch.inputs.tolist()):
            copied = task.copied
            assert sequence[task.length] == task.prefix
            body = sequence[: task.length]
            triggers = [place for place, token in enumerate(body) if token == task.prefix]
            assert 1 <= len(triggers) <= task.triggers
            repeated = {tuple(body[place + 1 : place + 1 + copied]) for place in triggers}
            assert len(repeated) == 1, "every trigger is followed by the same symbols"
            answers[row, -copied:] = torch.tensor(repeated.pop())
        return answers


class TestManyTriggersConformance(TestInductionHeadsConformance):
    """Induction heads with three triggers, two symbols repeated, all next tokens trained on."""

    @cached_property
    def task(self) -> TaskLike:
        return InductionHeads(length=20, vocab_size=7, copied=2, triggers=3, scored="all")


class TestFewSequencesConformance(TestInductionHeadsConformance):
    """Induction heads of 9,216 sequences, which content splits."""

    @cached_property
    def task(self) -> TaskLike:
        return InductionHeads(length=11, vocab_size=4, train_examples=1000, validation_examples=300, test_examples=300)


class TestAssociativeRecallConformance(TaskConformance):
    """Associative recall."""

    @cached_property
    def task(self) -> TaskLike:
        return replace(AssociativeRecall.tiny(), validation_examples=1000)

    def reference(self, task: Any, batch: BatchLike) -> Tensor:
        answers = next_tokens(batch)
        for row, sequence in enumerate(batch.inputs.tolist()):
            value: dict[int, int] = {}
            for key, shown in zip(sequence[: 2 * task.pairs : 2], sequence[1 : 2 * task.pairs : 2], strict=True):
                assert 1 <= key <= task.keys < shown <= task.keys + task.values
                assert value.setdefault(key, shown) == shown, "a key has one value"
            assert sequence[-2] == task.prefix
            assert task.allow_absent or sequence[-1] in value
            answers[row, -1] = value.get(sequence[-1], 0)
        return answers


class TestAbsentKeysConformance(TestAssociativeRecallConformance):
    """Associative recall where keys may be absent, all next tokens trained on, of odd length."""

    @cached_property
    def task(self) -> TaskLike:
        return AssociativeRecall(length=13, vocab_size=13, allow_absent=True, scored="all")


class TestSmallRecallConformance(TestAssociativeRecallConformance):
    """Associative recall of so few sequences that streams alone would share them: content splits them."""

    @cached_property
    def task(self) -> TaskLike:
        return replace(SMALL_RECALL, validation_examples=300, test_examples=300)


def recall(task: Any, batch: BatchLike) -> Tensor:
    """Answer each scored position by reading the context from left to right, later values replacing earlier ones."""
    answers = torch.zeros_like(batch.targets)
    several = 2 if task.variant == "compositional" else 1
    for row, (sequence, wanted) in enumerate(zip(batch.inputs.tolist(), (batch.targets == 0).tolist(), strict=True)):
        asked = [place for place, scored in enumerate(wanted) if scored]
        groups = len(asked) * task.passes + (task.updates if task.variant == "forgetting" else 0)
        start, value = groups * (several + 1), {}
        for first in range(0, start, several + 1):
            value[tuple(sequence[first : first + several])] = sequence[first + several]
        questions = [tuple(sequence[place - several + 1 : place + 1]) for place in asked]
        assert sorted(questions) == sorted(value), "each key is asked once"
        assert all(place >= start and (place + 1 - several - start) % (several + 1) == 0 for place in asked)
        for place, question in zip(asked, questions, strict=True):
            answers[row, place] = value[question]
    return answers


def next_tokens(batch: BatchLike) -> Tensor:
    """The token after each step, 0 at the last."""
    return torch.cat([batch.inputs[:, 1:], torch.zeros_like(batch.inputs[:, :1])], dim=1)


def test_workers_draw_the_same_bytes() -> None:
    assert_workers_agree(MQAR.tiny())


class TestBytes:
    """The bytes themselves, which may never change: published numbers refer to them."""

    @pytest.mark.parametrize(
        ("task", "expected"),
        [
            (MQAR(length=128, pairs=16, passes=2), "36bdc81f3acdfdd1"),
            (MQAR(variant="forgetting"), "b4b69df820054582"),
            (MQAR(variant="compositional", pairs=9), "8f7dbe8248be23c5"),
            (MQAR.presets()["based"], "c1c03b06c365afc1"),
            (Copying(), "4f83a8248ca3f687"),
            (LaggedCopying(), "703247484b932885"),
            (Adding(), "5efa0b64a79a0cd1"),
            (InductionHeads(triggers=2), "f019960345f630aa"),
            (AssociativeRecall(length=20, vocab_size=10), "3d29754e295f9948"),
        ],
    )
    def test_of_generated_examples(self, task: Task, expected: str) -> None:
        state = sha256()
        for split in ("train", "validation", "test"):
            batch = task.batch(split, np.arange(50))
            state.update(batch.inputs.numpy().tobytes() + batch.targets.numpy().tobytes())
        assert state.hexdigest()[:16] == expected


class TestMQAR:
    """Multi-query recall: repeated passes, variants and mixes."""

    def test_passes_repeat_the_context(self) -> None:
        batch = MQAR(length=40, pairs=4, passes=3).train_batch(0, 100)
        assert torch.equal(batch.inputs[:, :8], batch.inputs[:, 8:16])
        assert torch.equal(batch.inputs[:, :8], batch.inputs[:, 16:24])
        assert not bool(batch.scored[:, :24].any())

    def test_every_slot_of_the_smallest_length_is_taken(self) -> None:
        for task in (
            MQAR(length=32, pairs=4, passes=3),
            MQAR(length=24, pairs=4, variant="forgetting"),
            MQAR(length=24, pairs=4, variant="compositional"),
        ):
            scored = task.train_batch(0, 20).scored
            assert torch.equal(scored, scored[:1].expand_as(scored))
            assert int(scored[0].sum()) == task.slots == 4

    def test_rewritten_keys_take_another_value(self) -> None:
        """Each key is rewritten equally often; its new value is uniform over the others."""
        task = MQAR(length=32, pairs=4, vocab_size=40, variant="forgetting", updates=2, random_non_queries=False)
        which, old, new = rewritten(task, 20_000)
        assert not bool((old == new).any())
        assert all(within((which == key).double().mean().item(), 1 / 4, 20_000) for key in range(4))
        distance = (new - old) % 20  # 1 … 19, each equally often
        assert all(within((distance == step).double().mean().item(), 1 / 19, 40_000) for step in range(1, 20))

    def test_published_defect_of_forgetting(self) -> None:
        """The value left out is that of key j, so update j of another key keeps its value one time in 19."""
        task = MQAR(length=32, pairs=4, vocab_size=40, variant="forgetting", updates=2, faithful=True)
        which, old, new = rewritten(task, 20_000)
        other = which != torch.arange(2)
        assert not bool((old == new)[~other].any())
        assert within((old == new)[other].double().mean().item(), 1 / 19, int(other.sum()))

    def test_neither_key_alone_tells_the_value(self) -> None:
        """Nine pairs on a grid of three by three keys, in an order of their own, with nine values, all in range."""
        task = MQAR(length=64, pairs=9, vocab_size=65, variant="compositional", random_non_queries=False)
        batch = task.train_batch(0, 500)
        orders = set()
        for sequence in batch.inputs[:, :27].tolist():
            first, second, values = sequence[0::3], sequence[1::3], sequence[2::3]
            assert sorted(map(first.count, first)) == sorted(map(second.count, second)) == [3] * 9
            assert len(set(zip(first, second, strict=True))) == len(set(values)) == 9
            assert (min(first) >= 1, max(first) <= 20, min(second) >= 21, max(second) <= 41) == (True,) * 4
            assert min(values) >= 42
            orders.add(tuple(map(first.index, first)))
        assert len(orders) > 200
        assert batch.targets[batch.scored].unique().tolist() == list(range(42, 65))
        assert task.chance == 1 / 23

    def test_mix_has_the_published_sizes(self) -> None:
        """100,000 of 180,000 examples have length 64 and 4 pairs; each of four other sizes has 20,000."""
        task = MQAR.presets()["based"]
        assert task.size("train") == 180_000
        batch = task.batch("train", np.arange(900))
        sizes = list(zip(batch.lengths.tolist(), batch.scored.sum(dim=1).tolist(), strict=True))
        expected = {(64, 4): 500, (128, 8): 100, (256, 16): 100, (256, 32): 100, (256, 64): 100}
        assert {size: sizes.count(size) for size in set(sizes)} == expected
        assert not bool(batch.inputs[~batch.mask].any())

    def test_mixes_are_tested_at_the_published_sizes(self) -> None:
        tested = {name: [*MQAR.presets()[name].extrapolations()] for name in ("based", "forgetting", "compositional")}
        assert tested["based"][0] == "length-64-pairs-4"
        assert tested["based"][-1] == "length-1024-pairs-256"
        assert tested["forgetting"] == tested["compositional"]
        assert tested["forgetting"][-1] == "length-2048-pairs-256"
        for name in tested:
            for task in MQAR.presets()[name].extrapolations().values():
                assert task.size("test") == 1000
                assert int(task.batch("test", [0]).scored.sum()) == task.pairs
        assert MQAR.tiny().extrapolations() == {}

    @pytest.mark.parametrize(
        "task",
        [
            MQAR.tiny(),
            MQAR(length=64, pairs=4, passes=3),
            MQAR(variant="forgetting"),
            MQAR(variant="compositional", pairs=9),
            MQAR.presets()["forgetting"],
        ],
    )
    def test_slices(self, task: MQAR) -> None:
        """The lag reaches back to the last value of the key in the context."""
        batch = task.train_batch(0, 60)
        slices = task.slices(batch)
        group = 3 if task.variant == "compositional" else 2
        for row, place in batch.scored.nonzero().tolist():
            pairs = int(batch.scored[row].sum())
            shown = pairs * task.passes + (task.updates if task.variant == "forgetting" else 0)
            sequence = batch.inputs[row].tolist()
            asked = sequence[place - group + 2 : place + 1]
            starts = [n for n in range(0, shown * group, group) if sequence[n : n + group - 1] == asked]
            assert slices["lag"][row, place] == place - (starts[-1] + group - 1)
            assert slices["pairs"][row, place] == pairs
            if task.variant == "forgetting":
                assert slices["rewritten"][row, place] == len(starts) - 1

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            (
                {"pairs": 4, "passes": 8},
                "2·pairs·passes + 2·pairs ≤ length allows 1 … 3 (this many pairs need a length of 72 or more)",
            ),
            ({"passes": 0}, "passes is 0; give 1 or more"),
            ({"passes": 2, "variant": "forgetting"}, "1 where the variant is not plain"),
            ({"variant": "forget"}, "there are plain, forgetting, compositional"),
            ({"variant": "forgetting", "updates": 5}, "of 4 pairs, 1 … 4 can be rewritten"),
            ({"variant": "forgetting", "updates": 0}, "1 … 4 can be rewritten"),
            ({"variant": "forgetting", "pairs": 15}, "4·pairs + 2·updates ≤ length allows 1 … 14"),
            ({"variant": "compositional", "pairs": 8}, "give 1, 4, 9, 16"),
            ({"variant": "compositional", "pairs": 16}, "6·pairs ≤ length allows 1 … 10"),
            ({"faithful": True}, "a defect of the forgetting variant"),
            ({"mix": "zoology"}, "there are none, based, squares"),
            ({"mix": "based"}, "give length=256 and pairs=64"),
            ({"mix": "based", "length": 256, "pairs": 64, "passes": 2}, "allows 1 … 42"),
            ({"mix": "based", "length": 256, "pairs": 64, "variant": "compositional"}, "make a square"),
            ({"mix": "squares", "length": 256, "pairs": 36, "vocab_size": 256}, "give 257 or more"),
        ],
    )
    def test_impossible_settings(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=re.escape(message)):
            MQAR(**settings)


def rewritten(task: MQAR, examples: int) -> tuple[Tensor, Tensor, Tensor]:
    """Which pair each update rewrites, the value it had and the value it gets, (B, U) each."""
    inputs, pairs = task.train_batch(0, examples).inputs, task.pairs
    context, updates = inputs[:, : 2 * pairs], inputs[:, 2 * pairs : 2 * (pairs + task.updates)]
    which = (updates[:, 0::2, None] == context[:, None, 0::2]).int().argmax(dim=2)
    return which, context[:, 1::2].gather(1, which), updates[:, 1::2]


class TestCopying:
    """Copying, selective and lagged copying."""

    @pytest.mark.parametrize("task", [Copying.tiny(), Copying(reverse=True, tokens=5), SelectiveCopying.tiny()])
    def test_slices(self, task: Any) -> None:
        """The place of each answer among the data, and its lag from where it stood."""
        batch = task.train_batch(0, 30)
        slices = task.slices(batch)
        for row, sequence in enumerate(batch.inputs.tolist()):
            held = [step for step in range(task.blanks + task.tokens) if sequence[step]]
            for answer in range(task.tokens):
                place = task.tokens - 1 - answer if getattr(task, "reverse", False) else answer
                step = task.blanks + task.tokens + answer
                assert slices["place"][row, step] == place
                assert slices["lag"][row, step] == step - held[place]
                assert batch.targets[row, step] == sequence[held[place]]

    def test_needs_name_the_delays(self) -> None:
        assert Copying(blanks=7, tokens=3).need.lags == (10,)
        assert Copying(blanks=7, tokens=3, reverse=True).need.lags == (8, 10, 12)
        assert LaggedCopying(lag=4).need.lags == (4,)

    def test_published_sizes(self) -> None:
        assert (Copying().max_length, Copying().chance) == (120, 1 / 8)
        assert LaggedCopying.presets()["s4"].train_batch(0, 2).scored.all()
        assert LaggedCopying(score_start=True, lag=60).chance == 0.6
        assert LaggedCopying.tiny().train_batch(0, 500).inputs.unique().tolist() == [1, 2, 3, 4, 5, 6]

    @pytest.mark.parametrize(
        ("cls", "settings", "message"),
        [
            (Copying, {"blanks": -1}, "0 or more blanks"),
            (Copying, {"tokens": 0}, "1 or more tokens"),
            (Copying, {"alphabet": 3}, "4 or more"),
            (Copying, {"alphabet": 4, "tokens": 1}, "two data cannot be split"),
            (LaggedCopying, {"lag": 0}, "give 1 … length − 1"),
            (LaggedCopying, {"lag": 100}, "lag is 100 at length 100"),
            (LaggedCopying, {"alphabet": 3}, "4 or more"),
        ],
    )
    def test_impossible_settings(self, cls: type[Task], settings: dict[str, int], message: str) -> None:
        with pytest.raises(ValueError, match=re.escape(message)):
            cls(**settings)


class TestDelay:
    """Delay."""

    def test_noise_is_band_limited_white_and_gaussian(self) -> None:
        """Equal power 0.25/8 at each of 8 frequencies and none above; Gaussian fourth moments."""
        noise = Delay.tiny().train_batch(0, 20_000).inputs[:, :, 0].double()
        spectrum = torch.fft.rfft(noise) / 64
        assert float(spectrum[:, 9:].abs().max()) < 1e-6
        power = 2 * spectrum[:, 1:9].abs().square()  # exponential, so its deviation is its mean
        assert all(within(each, 0.25 / 8, 20_000, 0.25 / 8) for each in power.mean(dim=0).tolist())
        part = spectrum[:, 1:9].real.flatten()
        kurtosis = float(part.pow(4).mean() / part.square().mean() ** 2)
        assert within(kurtosis, 3, part.numel(), math.sqrt(24))
        assert not bool(noise[:, 0].any())

    def test_rule_of_the_published_code(self) -> None:
        """At the highest frequency there is, its last coefficient is one real number, of a quarter of the power."""
        noise = Delay(length=16, lag=4, frequency=8).train_batch(0, 20_000).inputs[:, :, 0].double()
        power = (torch.fft.rfft(noise) / 16).abs().square().mean(dim=0)[1:].tolist()
        each = 0.25 / 16  # of a complex coefficient, half of the frequency's power
        assert all(within(measured, each, 20_000, each) for measured in power[:7])
        assert within(power[7], each / 2, 20_000, math.sqrt(2) * each / 2)

    def test_published_setting(self) -> None:
        task = Delay.presets()["s4"]
        batch = task.train_batch(0, 64)
        assert batch.inputs.shape == batch.targets.shape == (64, 4000, 1)
        assert torch.equal(batch.targets[:, 1000:], batch.inputs[:, :3000])
        assert not bool(batch.targets[:, :1000].any())
        # a start that is taken off doubles the mean square of 0.25, but for what neighbours share
        assert within(float(batch.inputs.square().mean()), 0.5, 64, 0.5)

    def test_published_defect_of_four_outputs(self) -> None:
        """Four equal answers: the loss of four outputs is the mean of theirs."""
        one, four = Delay.tiny(), replace(Delay.tiny(), faithful=True)
        batch = four.train_batch(0, 5)
        torch.testing.assert_close(
            batch.targets, one.train_batch(0, 5).targets.expand(-1, -1, 4), equal_nan=True, rtol=0, atol=0
        )
        assert (four.num_classes, four.chance) == (4, one.chance)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"length": 3}, "4 or more"),
            ({"lag": 0}, "1 … length − 1"),
            ({"lag": 4000}, "lag is 4000 at length 4000"),
            ({"frequency": 0}, "1 … 2000, half the length"),
            ({"frequency": 2001}, "frequency is 2001"),
            ({"tolerance": 0.0}, "give a positive number"),
        ],
    )
    def test_impossible_settings(self, settings: dict[str, float], message: str) -> None:
        with pytest.raises(ValueError, match=re.escape(message)):
            Delay(**settings)


class TestAdding:
    """Adding."""

    def test_answering_one_costs_a_sixth(self) -> None:
        """Error squared has mean 1/6 and, the error being triangular, deviation √(1/15 − 1/36)."""
        task = Adding()
        batch = task.batch("train", np.arange(5000))
        cost = float(task.loss(torch.ones_like(batch.targets), batch))
        assert within(cost, 1 / 6, 5000, math.sqrt(1 / 15 - 1 / 36))

    def test_values_and_marks_are_uniform(self) -> None:
        inputs = replace(Adding.tiny(), length=9).train_batch(0, 20_000).inputs.double()
        assert within(float(inputs[..., 0].mean()), 0.5, 180_000, math.sqrt(1 / 12))
        assert 0 <= float(inputs[..., 0].min()) < float(inputs[..., 0].max()) < 1
        shares = [1 / 4] * 4 + [1 / 5] * 5
        measured = inputs[..., 1].mean(dim=0).tolist()
        assert all(within(each, share, 20_000) for each, share in zip(measured, shares, strict=True))

    def test_slices_and_sizes(self) -> None:
        task = Adding.presets()["s4"]
        batch = task.batch("test", np.arange(40))
        slices = task.slices(batch)
        for row, marks in enumerate(batch.inputs[:, :, 1].tolist()):
            first, second = (step for step, mark in enumerate(marks) if mark)
            assert (slices["lag"][row, 0], slices["gap"][row, 0]) == (999 - first, second - first)
        assert (task.size("train"), task.size("validation"), batch.inputs.shape[1:]) == (45_000, 5000, (1000, 2))

    @pytest.mark.parametrize(
        ("settings", "message"), [({"length": 1}, "2 or more"), ({"tolerance": 1.0}, "every answer 1 is right")]
    )
    def test_impossible_settings(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Adding(**settings)


class TestInductionHeads:
    """Induction heads."""

    def test_first_trigger_is_uniform(self) -> None:
        """With one trigger, on 0 … N − 2 − c; the symbol after it is uniform."""
        batch = InductionHeads(length=12, vocab_size=6).train_batch(0, 20_000)
        places = (batch.inputs == 5).int().argmax(dim=1).bincount(minlength=12) / 20_000
        assert all(within(each, 0.1, 20_000) for each in places[:10].tolist())
        assert not bool(places[10:].any())
        answers = batch.targets[:, -1].bincount(minlength=6) / 20_000
        assert all(within(each, 0.25, 20_000) for each in answers[1:5].tolist())

    def test_half_the_sequences_have_more_triggers(self) -> None:
        """Two places at least c + 1 = 2 apart, of ten: 72 of 100 pairs, in half of the sequences."""
        task = InductionHeads(length=12, vocab_size=6, triggers=2)
        batch = task.train_batch(0, 20_000)
        triggers = task.slices(batch)["triggers"][:, -1]
        assert within(float((triggers == 2).double().mean()), 0.36, 20_000)

    def test_what_is_scored(self) -> None:
        """All next tokens in training alone, and the answer in every case."""
        task = replace(InductionHeads.tiny(), scored="all")
        for split, count in (("train", 16), ("validation", 1), ("test", 1)):
            assert task.batch(split, np.arange(5)).scored.sum(dim=1).tolist() == [count] * 5
        last = replace(task, scored="last")
        assert torch.equal(last.train_batch(0, 9).inputs, task.train_batch(0, 9).inputs)
        assert int(last.train_batch(0, 9).scored.sum()) == 9

    def test_lag(self) -> None:
        task = InductionHeads(length=20, vocab_size=7, copied=2, triggers=2)
        batch = task.train_batch(0, 50)
        for sequence, lag in zip(batch.inputs.tolist(), task.slices(batch)["lag"].tolist(), strict=True):
            assert lag == [-1] * 20 + [20 - (sequence.index(6) + 1)] * 2

    def test_extrapolates_to_a_million_steps(self) -> None:
        task = InductionHeads.presets()["mamba"]
        assert (task.max_length, task.vocab_size, task.scored) == (256, 16, "last")
        tested = task.extrapolations()
        assert [*tested] == [f"length-{2**power}" for power in range(6, 21)]
        assert [each.max_length for each in tested.values()] == [2**power for power in range(6, 21)]
        longest = tested["length-1048576"]
        assert (longest.size("test"), longest.batch("test", [3]).inputs.shape) == (16, (1, 2**20))
        assert InductionHeads.tiny().extrapolations() == {}

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"vocab_size": 3}, "give 4 or more"),
            ({"copied": 0}, "copied is 0; give 1 or more"),
            ({"triggers": 0}, "triggers is 0"),
            ({"length": 2}, "length is 2; give 3 or more"),
            ({"scored": "answer"}, "there are last, all"),
            ({"vocab_size": 4, "length": 7}, "too few for three splits"),
        ],
    )
    def test_impossible_settings(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            InductionHeads(**settings)


class TestAssociativeRecall:
    """Associative recall."""

    def test_published_defect_of_shared_sequences(self) -> None:
        """Drawn as published, most held-out sequences of a small space occur in training; split by content, none."""
        for faithful in (False, True):
            task = replace(SMALL_RECALL, faithful=faithful)
            train, test = (rows(task.batch(split, np.arange(task.size(split)))) for split in ("train", "test"))
            shared = sum(row in set(train) for row in test) / len(test)
            assert shared > 0.5 if faithful else shared == 0

    def test_shown_keys_are_asked_equally_often(self) -> None:
        """Of three keys, one that was shown twice is asked no more often than one that was shown once."""
        task = AssociativeRecall(length=14, vocab_size=8)
        inputs = task.train_batch(0, 30_000).inputs
        shown = torch.stack([(inputs[:, 0:14:2] == key).sum(dim=1) for key in (1, 2, 3)], dim=1)
        asked = shown.gather(1, inputs[:, -1:] - 1)[:, 0]
        uneven = ((shown == 1).sum(dim=1) == 1) & ((shown > 1).sum(dim=1) == 2)
        once = (asked == 1)[uneven].double()
        assert within(float(once.mean()), 1 / 3, once.numel())

    def test_maps_are_uniform_and_absent_keys_have_their_share(self) -> None:
        task = AssociativeRecall(length=8, vocab_size=12, allow_absent=True)
        batch = task.train_batch(0, 20_000)
        answers = batch.targets[:, -1]
        absent = (4 / 5) ** 4
        assert within(float((answers == 0).double().mean()), absent, 20_000)
        assert task.chance == absent
        present = answers[answers > 0].bincount(minlength=11)[6:]
        assert all(within(each, 1 / 5, int(present.sum())) for each in (present / present.sum()).tolist())

    def test_slices(self) -> None:
        task = AssociativeRecall(length=9, vocab_size=9, allow_absent=True)
        batch = task.train_batch(0, 200)
        slices: Mapping[str, Tensor] = task.slices(batch)
        for row, sequence in enumerate(batch.inputs.tolist()):
            places = [step for step in range(0, 8, 2) if sequence[step] == sequence[-1]]
            lag = 9 - (places[-1] + 1) if places else -1
            assert (slices["lag"][row, -1], slices["showings"][row, -1]) == (lag, len(places))

    def test_published_sizes(self) -> None:
        task = AssociativeRecall.presets()["safari-20"]
        assert (task.keys, task.values, task.max_length, task.chance) == (9, 9, 42, 1 / 9)
        assert task.train_batch(0, 3).scored.all()
        assert AssociativeRecall.presets()["hyena-131k"].train_batch(0, 1).inputs.shape == (1, 131_074)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"vocab_size": 5}, "give 6 or more"),
            ({"length": 1}, "give 2 or more"),
            ({"vocab_size": 6, "length": 8}, "too few for three splits"),
        ],
    )
    def test_impossible_settings(self, settings: dict[str, int], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            AssociativeRecall(**settings)


def rows(batch: Batch) -> list[bytes]:
    return [row.numpy().tobytes() for row in batch.inputs]
