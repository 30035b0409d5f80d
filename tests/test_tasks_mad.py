"""The six tasks of mechanistic architecture design: conformance, the reference's defects, accuracy and score."""

import math
import re
from abc import ABC
from collections import Counter
from dataclasses import replace
from functools import cached_property
from hashlib import sha256

import numpy as np
import pytest
import torch
from torch import Tensor

from specreg.tasks.compression import Compression
from specreg.tasks.fuzzy_recall import FuzzyRecall
from specreg.tasks.in_context_recall import InContextRecall
from specreg.tasks.mad import SETTINGS, MADTask, macro_accuracy, mad_score, previous_places
from specreg.tasks.mad_selective_copying import MADSelectiveCopying
from specreg.tasks.memorization import Memorization
from specreg.tasks.noisy_recall import NoisyRecall
from specreg.tasks.task import Batch
from specreg.testing.tasks import BatchLike, TaskConformance, TaskLike

TASKS = (InContextRecall, NoisyRecall, FuzzyRecall, Memorization, Compression, MADSelectiveCopying)


class Faithful(TaskConformance, ABC):
    """Training scores every next token, so that its commonest answer is not that of the held-out splits."""

    def test_chance_is_the_best_constant_answer(self) -> None:
        """The best constant answer of the held-out split scores `chance`, within five standard errors."""
        batch = self.task.batch("validation", np.arange(1000))
        counts = batch.targets[batch.targets >= 0].bincount()
        chance = self.task.chance
        typical = float((counts / counts.sum())[counts > 0].median())
        assert abs(typical - chance) <= 5 * math.sqrt(chance * (1 - chance) / int(counts.sum()))


def recalled(task: TaskLike, batch: BatchLike, noise: int = 0) -> Tensor:
    """Answer by walking through the pairs; where all next tokens are scored, also with those."""
    answers = torch.zeros_like(batch.targets)
    first_value = (task.vocab_size - noise) // 2
    for row, sequence in enumerate(batch.inputs.tolist()):
        known: dict[int, int] = {}
        for place in range(len(sequence)):
            if place + 1 < len(sequence):
                answers[row, place] = sequence[place + 1]
            elif sequence[place] < first_value:
                answers[row, place] = known[sequence[place]]  # the last value is not fed
            if place % 2 == 1 and sequence[place - 1] < first_value:
                key, value = sequence[place - 1], sequence[place]
                assert first_value <= value < task.vocab_size - noise
                assert known.setdefault(key, value) == value, "a key has one value"
    return answers


class TestInContextRecallConformance(TaskConformance):
    """In-context recall."""

    @cached_property
    def task(self) -> TaskLike:
        return replace(InContextRecall.tiny(), validation_examples=1000)

    def reference(self, task: TaskLike, batch: BatchLike) -> Tensor:
        return recalled(task, batch)


class TestOddInContextRecallConformance(TestInContextRecallConformance):
    """One value more than there are keys, and a training set."""

    @cached_property
    def task(self) -> TaskLike:
        return InContextRecall(vocab_size=33, length=128, train_examples=300, validation_examples=500)


class TestFaithfulInContextRecallConformance(Faithful, TestInContextRecallConformance):
    """With the reference's defects."""

    @cached_property
    def task(self) -> TaskLike:
        return replace(InContextRecall.tiny(), faithful=True, validation_examples=1000)


class TestNoisyRecallConformance(TaskConformance):
    """Recall with noise."""

    @cached_property
    def task(self) -> TaskLike:
        return replace(NoisyRecall.tiny(), validation_examples=1000)

    def reference(self, task: TaskLike, batch: BatchLike) -> Tensor:
        return recalled(task, batch, noise=task.noise_tokens)


class TestMostlyNoiseConformance(TestNoisyRecallConformance):
    """Four slots of five hold noise."""

    @cached_property
    def task(self) -> TaskLike:
        return replace(NoisyRecall.tiny(), noise=0.8, validation_examples=1000)


class TestFaithfulNoisyRecallConformance(Faithful, TestNoisyRecallConformance):
    """With the reference's defects."""

    @cached_property
    def task(self) -> TaskLike:
        return replace(NoisyRecall.tiny(), faithful=True, validation_examples=1000)


def motifs(task: FuzzyRecall, tokens: list[int]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Return a sequence as pairs of a key and a value, the last value cut where the input ends."""
    first_value = (task.vocab_size - 1) // 2
    pairs: list[tuple[list[int], list[int]]] = []
    for place, token in enumerate(tokens):
        if token < first_value:
            if place == 0 or tokens[place - 1] >= first_value:
                pairs.append(([], []))
            pairs[-1][0].append(token)
        else:
            pairs[-1][1].append(token)
    return [(tuple(key), tuple(value)) for key, value in pairs]


class TestFuzzyRecallConformance(TaskConformance):
    """Fuzzy recall: the reference reads keys and values as runs of their kinds of tokens."""

    @cached_property
    def task(self) -> TaskLike:
        return replace(FuzzyRecall.tiny(), validation_examples=1000)

    def reference(self, task: TaskLike, batch: BatchLike) -> Tensor:
        answers = torch.zeros_like(batch.targets)
        answers[:, :-1] = batch.inputs[:, 1:]
        for row, length in enumerate(batch.mask.sum(dim=1).tolist()):
            *shown, (key, part) = motifs(task, batch.inputs[row, :length].tolist())
            known: dict[tuple[int, ...], tuple[int, ...]] = {}
            for name, value in shown:
                assert known.setdefault(name, value) == value, "a key has one value"
                assert len(set(name)) == len(name) <= task.motif
                assert len(set(value)) == len(value) <= task.motif
            if key in known:  # it always is, without the defect
                assert known[key][:-1] == part
                answers[row, length - 1] = known[key][-1]
            else:
                assert task.faithful
                answers[row, length - 1] = self.unanswerable(row)
        return answers

    def unanswerable(self, row: int) -> int:
        raise AssertionError(f"the question of example {row} was never shown")


class TestPublishedFuzzyRecallConformance(TestFuzzyRecallConformance):
    """Motifs of up to three tokens."""

    @cached_property
    def task(self) -> TaskLike:
        return FuzzyRecall(length=64, vocab_size=16, train_examples=500)


class TestLongMotifsConformance(TestFuzzyRecallConformance):
    """Motifs of up to four tokens, which for keys is all of them."""

    @cached_property
    def task(self) -> TaskLike:
        return FuzzyRecall(length=56, vocab_size=9, motif=4, train_examples=None)


class TestMemorizationConformance(TaskConformance):
    """Memorization: the reference learns the map from another draw of the training set. The map is shared by all
    splits, as published; no sequence is.
    """

    @cached_property
    def task(self) -> TaskLike:
        return replace(Memorization.tiny(), validation_examples=1000)

    def reference(self, task: TaskLike, batch: BatchLike) -> Tensor:
        train = task.batch("train", np.arange(256))
        keys, values = train.inputs[:, 0::2].flatten(), train.targets[:, 1::2].flatten()
        known = dict(zip(keys.tolist(), values.tolist(), strict=True))
        answers = torch.zeros_like(batch.targets)
        for row, sequence in enumerate(batch.inputs.tolist()):
            for place in range(1, len(sequence), 2):
                assert sequence[place] == task.vocab_size - 1
                answers[row, place] = known[sequence[place - 1]]
        return answers


class TestCompressionConformance(TaskConformance):
    """Compression, answered in steps of their own."""

    @cached_property
    def task(self) -> TaskLike:
        return replace(Compression.tiny(), validation_examples=1000)

    def reference(self, task: TaskLike, batch: BatchLike) -> Tensor:
        answers = torch.zeros_like(batch.targets)
        for row, sequence in enumerate(batch.inputs.tolist()):
            mark = sequence.index(task.vocab_size - 1)
            assert sequence[mark:] == [task.vocab_size - 1] * mark
            answers[row, mark:] = torch.tensor(sequence[:mark])
        return answers


class TestNoisyCompressionConformance(TestCompressionConformance):
    """Half of the tokens are noise."""

    @cached_property
    def task(self) -> TaskLike:
        return replace(Compression.tiny(), vocab_size=12, noise_tokens=4, noise=0.5, validation_examples=1000)


class TestLastStateCompressionConformance(TestCompressionConformance):
    """Answered from the last state, as published: the targets stand where the tokens do."""

    @cached_property
    def task(self) -> TaskLike:
        return replace(Compression.tiny(), readout="last", validation_examples=1000)

    def reference(self, task: TaskLike, batch: BatchLike) -> Tensor:
        return batch.inputs.clone()


class TestFaithfulCompressionConformance(TestLastStateCompressionConformance):
    """With the reference's defects, and noise."""

    @cached_property
    def task(self) -> TaskLike:
        return Compression(
            vocab_size=12, noise_tokens=4, noise=0.4, length=16, readout="last", faithful=True, train_examples=None
        )


class TestSelectiveCopyingConformance(TaskConformance):
    """Selective copying by MAD's rule."""

    @cached_property
    def task(self) -> TaskLike:
        return replace(MADSelectiveCopying.tiny(), validation_examples=1000)

    def reference(self, task: TaskLike, batch: BatchLike) -> Tensor:
        answers = torch.zeros_like(batch.targets)
        blank, mark = task.vocab_size - 2, task.vocab_size - 1
        for row, sequence in enumerate(batch.inputs.tolist()):
            data = [token for token in sequence if token < blank]
            assert sequence[-len(data) - 1 :] == [mark] + [blank] * len(data)
            assert sequence.count(mark) == 1
            answers[row, -len(data) :] = torch.tensor(data)
        return answers


class TestFaithfulSelectiveCopyingConformance(TestSelectiveCopyingConformance):
    """With the reference's defects."""

    @cached_property
    def task(self) -> TaskLike:
        return MADSelectiveCopying(vocab_size=8, length=48, tokens=3, faithful=True, validation_examples=400)


class TestBytes:
    """The bytes themselves, which may never change: published numbers refer to them."""

    @pytest.mark.parametrize(
        ("task", "expected"),
        [
            (InContextRecall(), "327bb2f6d180f062"),
            (NoisyRecall(faithful=True, seed=2**63), "1ee772db3f4b5714"),
            (FuzzyRecall(), "57595104df865bb4"),
            (FuzzyRecall(vocab_size=64, faithful=True, seed=7), "44e9c9141f8d1971"),
            (Memorization(), "d0d0ffa2e9bffe05"),
            (Compression(), "242df6d4e8ee3268"),
            (Compression(noise=0.3, noise_tokens=3, readout="last"), "56f6514fdc351b55"),
            (MADSelectiveCopying(), "087c7bfaca61ebb1"),
            (MADSelectiveCopying(faithful=True, seed=7), "c15ad9068780c9ce"),
        ],
    )
    def test_of_generated_examples(self, task: MADTask, expected: str) -> None:
        state = sha256()
        for split in ("train", "validation", "test"):
            batch = task.batch(split, np.arange(50))
            state.update(batch.inputs.numpy().tobytes())
            state.update(batch.targets.numpy().tobytes())
        assert state.hexdigest()[:16] == expected


class TestRecall:
    """In-context and noisy recall."""

    def test_published_layout(self) -> None:
        """Eight keys and eight values at the baseline; the last pair's key was shown; 55 of 64 pairs are asked for."""
        task = InContextRecall()
        batch = task.batch("test", np.arange(1280))
        assert (task.max_length, task.keys, task.values, task.chance) == (128, 8, 8, 1 / 8)
        assert batch.inputs[:, 0::2].unique().tolist() == list(range(8))
        assert batch.inputs[:, 1::2].unique().tolist() == list(range(8, 16))
        assert bool(batch.scored[:, -2].all())
        assert not bool(batch.scored[:, 1::2].any())
        asked = batch.scored.sum(dim=1).double()  # 63 keys less the distinct ones among them, and the last
        expected = 64 - 8 * (1 - (7 / 8) ** 63)
        assert abs(float(asked.mean()) - expected) < 5 * float(asked.std()) / math.sqrt(1280)

    def test_the_last_key_is_uniform_over_those_shown(self) -> None:
        """Not over pairs: in "a a a b" the question is a and b equally often."""
        task = InContextRecall(length=10, vocab_size=4, train_examples=None)
        keys = task.batch("train", np.arange(40_000)).inputs[:, 0::2]
        ones = keys[:, :4].sum(dim=1)
        last = keys[ones == 1][:, 4]
        assert abs(float(last.double().mean()) - 0.5) < 5 * 0.5 / math.sqrt(last.numel())

    def test_values_may_be_shared(self) -> None:
        """A random map, not a permutation: with two keys and two values both have the same value half of the time."""
        table = InContextRecall(length=40, vocab_size=4, train_examples=None).batch("train", np.arange(10_000)).inputs
        same = (table[:, 1::2] == table[:, 1:2]).all(dim=1).double().mean()
        assert abs(float(same) - 0.5) < 5 * 0.5 / 100

    def test_faithful_training_scores_every_next_token(self) -> None:
        """And the last value is not fed, so that T = L − 1; held-out targets are those of the corrected task."""
        right, faithful = (replace(InContextRecall(), faithful=flag) for flag in (False, True))
        for split in ("train", "test"):
            expected, kept = (task.batch(split, np.arange(64)) for task in (right, faithful))
            assert torch.equal(kept.inputs, expected.inputs[:, :-1])
            if split == "test":
                assert torch.equal(kept.targets, expected.targets[:, :-1])
            else:
                assert torch.equal(kept.targets, expected.inputs[:, 1:])
        assert (right.max_length, faithful.max_length) == (128, 127)

    def test_share_of_noise(self) -> None:
        """Each slot but the protected one and the last is noise with the given probability."""
        for noise in (0.2, 0.8):
            task = replace(NoisyRecall(), noise=noise)
            first = task.batch("test", np.arange(1280)).inputs[:, 0:-2:2]
            share = float((first >= 16).double().mean())
            expected = noise * 62 / 63
            assert abs(share - expected) < 5 * math.sqrt(expected * (1 - expected) / first.numel())
        noisy = task.batch("test", np.arange(1280)).inputs
        assert torch.equal(noisy[:, 0:-2:2] >= 16, noisy[:, 1:-2:2] >= 16)
        assert noisy[noisy >= 16].unique().tolist() == list(range(16, 32))

    def test_faithful_protection_may_be_lost(self) -> None:
        """With two slots and the last, the reference protects the last a third of the time. Where one of the two is
        noise at 1 − 10⁻⁶, one pair is shown; here the first slot stands in where the reference would raise.
        """
        shown = {}
        for faithful in (False, True):
            task = NoisyRecall(
                vocab_size=20, noise_tokens=4, length=6, noise=1 - 1e-6, faithful=faithful, train_examples=None
            )
            pairs = task.batch("train", np.arange(30_000)).inputs[:, 0:4:2] < 16
            assert pairs.sum(dim=1).unique().tolist() == [1]
            shown[faithful] = float(pairs[:, 0].double().mean())
        assert abs(shown[False] - 1 / 2) < 5 * 0.5 / math.sqrt(30_000)
        assert abs(shown[True] - 2 / 3) < 5 * 0.5 / math.sqrt(30_000)

    def test_lag(self) -> None:
        """Steps from where the value was last shown to the key."""
        task = NoisyRecall(vocab_size=8, noise_tokens=2, length=12)
        inputs = torch.tensor([[0, 3, 1, 4, 6, 7, 0, 3, 0, 3, 1, 4]])
        targets = torch.full_like(inputs, -100)
        targets[0, [6, 8, 10]] = torch.tensor([3, 3, 4])
        lag = task.slices(Batch(inputs, targets))["lag"]
        assert lag.tolist() == [[-1] * 6 + [5, -1, 1, -1, 7, -1]]

    def test_previous_places(self) -> None:
        assert previous_places(np.array([[2, 5, 2, 2, 5], [1, 2, 3, 4, 0]])).tolist() == [[-1, -1, 0, 2, 1], [-1] * 5]

    def test_names(self) -> None:
        task = NoisyRecall()
        assert [task.token_name(token) for token in (0, 7, 8, 15, 16, 31)] == ["k0", "k7", "v0", "v7", "n0", "n15"]
        assert task.class_name(9) == "v1"


class TestFuzzyRecall:
    """Fuzzy recall."""

    def test_lengths_of_keys_and_values(self) -> None:
        """Held-out keys have three tokens, those of training one to three; values one to three everywhere."""
        task = FuzzyRecall()
        for split, expected in (("train", {1, 2, 3}), ("test", {3})):
            batch = task.batch(split, np.arange(400))
            pairs = [
                pair
                for row, length in enumerate(batch.lengths.tolist())
                for pair in motifs(task, batch.inputs[row, :length].tolist())[:-1]
            ]
            counts = Counter(len(value) for _, value in pairs)
            assert {len(key) for key, _ in pairs} == expected
            for size in (1, 2, 3):
                assert abs(counts[size] / len(pairs) - 1 / 3) < 6 * math.sqrt(2 / 9 / len(pairs))

    def test_lengths_of_sequences(self) -> None:
        """No more pair may fit, and the question has its place: the reference always pads, by two tokens or more."""
        task = FuzzyRecall()
        lengths = task.batch("test", np.arange(1280)).lengths
        assert 128 - 6 - 2 - 4 <= int(lengths.min()) <= int(lengths.max()) <= 126

    def test_all_motifs_are_equally_likely(self) -> None:
        """Keys of two of five tokens: twenty, each as often as any other."""
        task = FuzzyRecall.tiny()
        keys: Counter[tuple[int, ...]] = Counter()
        batch = task.batch("test", np.arange(200))
        for row, length in enumerate(batch.lengths.tolist()):
            keys.update(key for key, _ in motifs(task, batch.inputs[row, :length].tolist())[:2])
        mean = keys.total() / 20
        assert len(keys) == 20
        assert sum((count - mean) ** 2 / mean for count in keys.values()) < 19 + 5 * math.sqrt(38)

    def test_the_question_is_shown_at_a_uniform_place(self) -> None:
        """With 512 possible keys nearly every question is shown once, by insertion: its place is uniform."""
        task = FuzzyRecall(vocab_size=64, length=128)
        batch = task.batch("test", np.arange(1280))
        places = []
        for row, length in enumerate(batch.lengths.tolist()):
            *shown, (key, _) = motifs(task, batch.inputs[row, :length].tolist())
            before = [pair[0] for pair in shown].index(key)
            places.append(sum(len(name) + len(value) for name, value in shown[:before]))
        # uniform on 0 … 128 − question − 12, the boundary found lying up to 5 later
        assert abs(np.mean(places) - (128 - 5 - 12) / 2 - 2) < 5 * 32 / math.sqrt(1280)

    @pytest.mark.parametrize("motif", [1, 2, 3, 4])
    def test_shortest_length(self, motif: int) -> None:
        """Even there the question was shown, and everything fits."""
        task = FuzzyRecall(motif=motif, length=6 * motif)
        for split in ("train", "test"):
            batch = task.batch(split, np.arange(1280))
            for row, length in enumerate(batch.lengths.tolist()):
                *shown, (key, _) = motifs(task, batch.inputs[row, :length].tolist())
                assert key in [name for name, _ in shown]

    def test_faithful_questions_may_never_be_shown(self) -> None:
        """A place drawn after the last boundary is never met: some two in a hundred questions at L = 128."""
        shares = {}
        for faithful in (False, True):
            task = FuzzyRecall(vocab_size=64, faithful=faithful)
            batch = task.batch("test", np.arange(1280))
            unknown = 0
            for row, length in enumerate(batch.lengths.tolist()):
                *shown, (key, _) = motifs(task, batch.inputs[row, :length].tolist())
                unknown += key not in [name for name, _ in shown]
            shares[faithful] = unknown / 1280
        assert shares[False] == 0
        assert abs(shares[True] - reference_share(128)) < 5 * math.sqrt(shares[True] / 1280)

    def test_faithful_training_scores_every_next_token(self) -> None:
        task = FuzzyRecall(faithful=True)
        batch = task.batch("train", np.arange(64))
        assert torch.equal(batch.scored, batch.mask)
        inner = batch.mask[:, 1:]
        assert torch.equal(batch.targets[:, :-1][inner], batch.inputs[:, 1:][inner])
        held_out = task.batch("test", np.arange(64))
        assert not torch.equal(held_out.scored, held_out.mask)

    def test_place_in_the_value(self) -> None:
        task = FuzzyRecall.tiny()
        batch = Batch(torch.zeros(1, 9, dtype=torch.int64), torch.tensor([[-100, 7, 8, 9, -100, -100, 7, -100, 8]]))
        assert task.slices(batch)["place"].tolist() == [[-1, 0, 1, 2, -1, -1, 0, -1, 0]]

    def test_names(self) -> None:
        assert [FuzzyRecall().token_name(token) for token in (0, 6, 7, 14, 15)] == ["k0", "k6", "v0", "v7", "."]


def reference_share(length: int) -> float:
    """Return how often a question is never shown, by the published loop with keys that never repeat."""
    generator, missed, trials = np.random.default_rng(0), 0, 20_000
    for _ in range(trials):
        question = 3 + generator.integers(1, 4)
        place, reached, added = generator.integers(length - 2 * question), 0, False
        while reached < length - question - 6:
            if reached >= place and not added:
                reached, added = reached + question, True
                continue
            reached += 3 + generator.integers(1, 4)
        missed += not added
    return missed / trials


class TestMemorization:
    """Memorization."""

    def test_the_map_is_one_to_one_and_that_of_every_split(self) -> None:
        task = Memorization()
        known: dict[int, set[int]] = {}
        for split, size in (("train", 256), ("validation", 1280), ("test", 1280)):
            batch = task.batch(split, np.arange(size))
            keys, answers = batch.inputs[:, 0::2].flatten(), batch.targets[:, 1::2].flatten()
            for key, value in zip(keys.tolist(), answers.tolist(), strict=True):
                known.setdefault(key, set()).add(value)
        assert sorted(known) == list(range(127))
        assert all(len(values) == 1 for values in known.values())
        values = {next(iter(values)) for values in known.values()}
        assert len(values) == 127
        assert values <= set(range(127, 255))

    def test_another_seed_has_another_map(self) -> None:
        first, second = (Memorization(seed=seed).values for seed in (0, 1))
        assert (first == second).mean() < 0.1

    def test_names(self) -> None:
        assert [Memorization().token_name(token) for token in (3, 127, 254, 255)] == ["k3", "v0", "v127", "?"]


class TestCompression:
    """Compression."""

    def test_faithful_targets_are_the_inputs(self) -> None:
        """Noise and the compression token are answers too; without the defect neither is."""
        settings = {"vocab_size": 20, "noise_tokens": 4, "noise": 0.3, "readout": "last"}
        faithful, right = (
            Compression(**settings, faithful=flag).batch("test", np.arange(500)) for flag in (True, False)
        )
        assert torch.equal(faithful.targets, faithful.inputs)
        assert torch.equal(right.scored, right.inputs < 15)
        assert torch.equal(right.targets[right.scored], right.inputs[right.scored])

    def test_share_of_noise(self) -> None:
        for faithful, expected in ((True, 0.5), (False, 0.5 * 30 / 31)):
            task = Compression(vocab_size=20, noise_tokens=4, noise=0.5, faithful=faithful)
            inputs = task.batch("test", np.arange(1280)).inputs[:, :31]
            share = float((inputs >= 15).double().mean())
            assert abs(share - expected) < 5 * 0.5 / math.sqrt(inputs.numel())

    def test_noise_never_takes_everything(self) -> None:
        task = Compression(vocab_size=8, noise_tokens=3, noise=0.999, length=4)
        assert bool((task.batch("test", np.arange(1280)).scored.sum(dim=1) >= 1).all())

    def test_chance_of_the_published_form(self) -> None:
        """The compression token is one answer of L: the commonest where the vocabulary is large."""
        settings = {"readout": "last", "faithful": True}
        assert Compression(**settings).chance == pytest.approx(31 / 32 / 15)
        assert Compression(vocab_size=128, **settings).chance == 1 / 32
        assert Compression(vocab_size=128).chance == 1 / 127

    def test_lag_is_the_same_for_every_token(self) -> None:
        task = Compression()
        batch = task.batch("test", np.arange(3))
        assert task.need.lags == (31,)
        assert torch.equal(batch.targets[:, 31:], batch.inputs[:, :31])
        assert task.slices(batch)["place"][0].tolist() == [-1] * 31 + list(range(31))
        assert (task.max_length, Compression(readout="last").max_length) == (62, 32)


class TestSelectiveCopying:
    """Selective copying by MAD's rule."""

    def test_faithful_number_of_tokens_is_always_sixteen(self) -> None:
        """The published settings that vary it are the baseline, example for example."""
        presets = MADSelectiveCopying.presets()
        first = presets["mad"].batch("test", np.arange(50))
        for count in (32, 64, 96):
            task = presets[f"mad-copy-{count}"]
            batch = task.batch("test", np.arange(50))
            assert (task.tokens, task.copied) == (count, 16)
            assert torch.equal(batch.inputs, first.inputs)
            assert torch.equal(batch.targets, first.targets)
            right = replace(task, faithful=False).batch("test", np.arange(50))
            assert right.scored.sum(dim=1).unique().tolist() == [count]

    def test_faithful_blanks_never_follow_the_last_token(self) -> None:
        """The step before the mark always holds data; without the defect a blank, more often than not."""
        for faithful, expected in ((True, 0.0), (False, 1 - (16 / 17) ** 223)):
            task = MADSelectiveCopying(faithful=faithful)
            blank = (task.batch("test", np.arange(1280)).inputs[:, -18] == 14).double()
            assert abs(float(blank.mean()) - expected) < 5 * 0.5 / math.sqrt(1280) * (expected > 0) + 1e-9

    def test_gaps_are_equally_likely(self) -> None:
        """With one token among 7 blanks the number before it is binomial: each blank chooses a side."""
        task = MADSelectiveCopying(vocab_size=8, length=10, tokens=1)
        inputs = task.batch("test", np.arange(1280)).inputs
        before = (inputs[:, :8] < 6).int().argmax(dim=1)
        for count in range(8):
            p = math.comb(7, count) / 128
            assert abs(float((before == count).double().mean()) - p) < 5 * math.sqrt(p * (1 - p) / 1280)

    def test_lag(self) -> None:
        task = MADSelectiveCopying(vocab_size=6, length=9, tokens=2)
        inputs = torch.tensor([[4, 0, 4, 4, 3, 4, 5, 4, 4]])
        targets = torch.tensor([[-100] * 7 + [0, 3]])
        assert task.slices(Batch(inputs, targets))["lag"].tolist() == [[-1] * 7 + [6, 4]]

    def test_names(self) -> None:
        assert [MADSelectiveCopying().token_name(token) for token in (3, 14, 15)] == ["3", "·", "?"]


class TestSettings:
    """The published settings."""

    def test_counts(self) -> None:
        assert {task: len(settings) for task, settings in SETTINGS.items()} == {
            "in-context-recall": 11,
            "noisy-recall": 14,
            "fuzzy-recall": 11,
            "memorization": 6,
            "compression": 11,
            "mad-selective-copying": 13,
        }

    @pytest.mark.parametrize("task", TASKS)
    def test_each_changes_one_field_of_the_baseline(self, task: type[MADTask]) -> None:
        presets = task.presets()
        assert set(presets) == {"tiny", *SETTINGS[task.name]}
        baseline = vars(presets["mad"])
        assert (baseline["test_examples"], presets["tiny"]) == (1280, task.tiny())
        for name, preset in presets.items():
            if name not in ("tiny", "mad"):
                changed = {field for field, value in vars(preset).items() if value != baseline[field]}
                assert len(changed) == 1, name
        for preset in presets.values():
            batch = preset.batch("test", np.arange(3))
            assert batch.inputs.shape[1] <= preset.max_length
            assert preset.slices(batch) == {} or all(
                s.shape == batch.targets.shape for s in preset.slices(batch).values()
            )

    def test_baselines(self) -> None:
        assert InContextRecall() == replace(InContextRecall.presets()["mad"], faithful=False)
        assert NoisyRecall() == replace(NoisyRecall.presets()["mad"], faithful=False)
        assert FuzzyRecall() == replace(FuzzyRecall.presets()["mad"], faithful=False)
        assert Memorization() == Memorization.presets()["mad"]
        assert Compression() == replace(Compression.presets()["mad"], faithful=False, readout="steps")
        assert MADSelectiveCopying() == replace(MADSelectiveCopying.presets()["mad"], faithful=False)

    @pytest.mark.parametrize(
        ("task", "settings", "message"),
        [
            (InContextRecall, {"length": 63}, "even length"),
            (InContextRecall, {"length": 2}, "4 or more"),
            (InContextRecall, {"vocab_size": 3}, "give 4 or more: two keys and two values"),
            (NoisyRecall, {"vocab_size": 19}, "16 of them noise; give 20 or more"),
            (NoisyRecall, {"noise": 1.0}, "[0, 1)"),
            (NoisyRecall, {"noise": math.nan}, "[0, 1)"),
            (NoisyRecall, {"noise_tokens": 0}, "1 or more"),
            (FuzzyRecall, {"motif": 0}, "give 1 … 4"),
            (FuzzyRecall, {"motif": 5}, "give 1 … 4"),
            (FuzzyRecall, {"length": 17}, "6·motif = 18"),
            (FuzzyRecall, {"vocab_size": 6}, "2·motif + 1 = 7 or more"),
            (FuzzyRecall, {"vocab_size": 4000}, "at most 2**32"),
            (Memorization, {"length": 31}, "even length"),
            (Memorization, {"length": 0}, "even length"),
            (Memorization, {"vocab_size": 4}, "5 or more"),
            (Compression, {"length": 2}, "3 or more"),
            (Compression, {"readout": "first"}, "one of steps, last"),
            (Compression, {"noise": 0.5}, "needs 1 or more tokens"),
            (Compression, {"noise": 1.0, "noise_tokens": 3}, "[0, 1)"),
            (Compression, {"noise_tokens": 14}, "give 17 or more"),
            (MADSelectiveCopying, {"vocab_size": 3}, "4 or more"),
            (MADSelectiveCopying, {"tokens": 0}, "1 or more"),
            (MADSelectiveCopying, {"tokens": 128}, "give 258 or more"),
            (MADSelectiveCopying, {"length": 33, "tokens": 4, "faithful": True}, "16 are copied, whatever tokens says"),
            (Memorization, {"train_examples": 0}, "train_examples is 0"),
        ],
    )
    def test_impossible_settings(self, task: type[MADTask], settings: dict[str, float], message: str) -> None:
        with pytest.raises(ValueError, match=re.escape(message)):
            task(**settings)


class TestScore:
    """Macro accuracy, and the aggregate of all settings."""

    def test_macro_accuracy_is_a_mean_over_classes(self) -> None:
        """Class 0: three of four right. Class 1: one of one. Class 2: never asked but answered, 0. Class 3: neither."""
        targets = torch.tensor([[0, 0, 0, -100], [0, 1, -100, -100]])
        answers = torch.tensor([[0, 0, 2, 3], [0, 1, 3, 3]])
        assert macro_accuracy(answers, targets, 4) == pytest.approx((3 / 4 + 1 + 0) / 3)
        assert macro_accuracy(targets, targets, 4) == 1.0
        assert math.isnan(macro_accuracy(answers, torch.full_like(targets, -100), 4))

    def test_macro_accuracy_is_not_plain_accuracy(self) -> None:
        """The commonest answer of an uneven task is worth one class of many."""
        targets = torch.tensor([0] * 90 + [1] * 10)
        assert macro_accuracy(torch.zeros_like(targets), targets, 2) == 0.5

    def test_score_is_the_mean_of_the_best_runs(self) -> None:
        """Over settings, then over tasks: tasks with more settings weigh no more."""
        accuracies = {
            (task, name): [0.1, position / len(settings), math.nan]
            for task, settings in SETTINGS.items()
            for position, name in enumerate(settings)
        }
        score = mad_score(accuracies)
        expected = {
            task: np.mean([max(0.1, position / len(settings)) for position in range(len(settings))])
            for task, settings in SETTINGS.items()
        }
        assert score.tasks == pytest.approx(expected)
        assert score.mean == pytest.approx(np.mean(list(expected.values())))

    def test_missing_and_unknown_settings(self) -> None:
        accuracies = {(task, name): [0.5] for task, settings in SETTINGS.items() for name in settings}
        with pytest.raises(ValueError, match=re.escape("('compression', 'mad-vocab-16') is no setting of MAD")):
            mad_score({**accuracies, ("compression", "mad-vocab-16"): [0.5]})
        del accuracies["memorization", "mad"]
        with pytest.raises(ValueError, match=re.escape("1 of 66 settings have no run: ('memorization', 'mad')")):
            mad_score(accuracies)
        with pytest.raises(ValueError, match="66 of 66 settings have no run"):
            mad_score({key: [math.nan] for key in [*accuracies, ("memorization", "mad")]})
