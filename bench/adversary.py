"""What adversaries hold and learn: marked samples, other users' copies, the model; and the attacks that use it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, cast

import torch

from ..attacks.base import Access, Attack, ModelAttack
from ..core.errors import ContractError
from ..core.identity import identity
from ..core.images import Images
from ..core.seeds import Seed
from ..core.weights import load_state, save_state
from .keys import colluders, key_word
from .methods.base import Changed, Pair, Watermark

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from ..core.autoencoders import Autoencoder
    from ..core.latent_diffusion import LatentDiffusion
    from .plan import Plan

Timed = Callable[[str, str, int], AbstractContextManager[None]]
"""Records what a stage took: its name, the component, and how many images."""


class Adversary:
    """Gives each attack the handles that it declares, for one target: a method and a key of it.

    What takes long to learn (a fine-tuned model) is kept on disk beside the run's results, once for all workers; what
    is cheap is kept in memory.

    Args:
        plan: the plan.
        folder: where what was learnt is kept; None keeps it in memory.
    """

    def __init__(self, plan: Plan, folder: Path | None) -> None:
        self.plan = plan
        self.folder = folder
        self._samples: dict[tuple[int, str], Pair] = {}
        self._prepared: dict[tuple[int, int, str], Attack] = {}
        self._decoders: dict[tuple[int, int, str | None], Autoencoder] = {}
        self._diffusions: dict[tuple[int, int], LatentDiffusion] = {}
        self._copies: dict[tuple[object, ...], Images] = {}
        self._made: dict[tuple[object, ...], Pair] = {}
        self._failed: dict[tuple[int, int, str], Exception] = {}
        self._held: Images | None = None

    def attack(self, index: int, target: int, given: Images, pair: Pair, arm: str, seed: Seed, timed: Timed) -> Images:
        """Attacks the images of one arm.

        Args:
            index: of the attack in the plan.
            target: index of the method whose mark it is after.
            given: the dataset's images.
            pair: what is attacked.
            arm: ``marked`` or ``unmarked``.
            seed: of the attack at this setting.
            timed: records the time of what is learnt.
        """
        attack, method = self.plan.attacks[index], self._method(target)
        images = pair.marked if arm == "marked" else pair.unmarked
        own = seed.child("target", method.name)
        keys = self._keys(method, images)
        if isinstance(attack, ModelAttack):
            made = self._remade(index, target, given, keys, own, timed)
            return made.marked if arm == "marked" else made.unmarked
        words = [key_word(key) for key in keys.tolist()]
        done: dict[int, Images] = {}
        for word in dict.fromkeys(words):
            places = [i for i, one in enumerate(words) if one == word]
            part = images.take(places)
            copies = partial(self._copies_of, target, given.take(places), part, word, arm)
            prepared = self._prepare(index, target, word, copies, timed)
            attacked = prepared.apply(part, own)
            if attacked.ids != part.ids:
                raise ContractError(f"{attack.label}: returned {len(attacked)} images for {len(part)}, or their order")
            done |= {place: attacked.take([i]) for i, place in enumerate(places)}
        return Images(torch.cat([done[i].pixels for i in range(len(images))]), images.records)

    def forget_images(self) -> None:
        """Drops what was made of the last shard's images."""
        self._copies.clear()
        self._made.clear()

    def _remade(self, index: int, target: int, given: Images, keys: torch.Tensor, seed: Seed, timed: Timed) -> Pair:
        """The images of an attacked model, both arms at once, because they share their latents."""
        key = (index, target, given.ids)
        if key not in self._made:
            method = self._method(target)
            changed = self._changed(index, target, seed, timed)
            self._made[key] = method.remake(given, keys, self._embed_seed(method), changed)
        return self._made[key]

    def _method(self, target: int) -> Watermark:
        return cast("Watermark", self.plan.methods[target])

    def _keys(self, method: Watermark, images: Images) -> torch.Tensor:
        """The payload of each image, as in :func:`.shard.keys_for`."""
        from .shard import keys_for

        return keys_for(self.plan, method, images)

    def _embed_seed(self, method: Watermark) -> Seed:
        return Seed.root(self.plan.benchmark.seed).child("embed", self.plan.dataset.name, method.name)

    def _prepare(
        self, index: int, target: int, word: str, copies: Callable[[int], Sequence[Images]], timed: Timed
    ) -> Attack:
        """An attack on images that was given what it must know; once for each key, unless it wants copies of them."""
        access = Access(
            samples=lambda count: self._seen(target, word, count).marked,
            counterparts=lambda count: self._seen(target, word, count).unmarked,
            clean=self._clean,
            copies=copies,
        )
        attack, key = self.plan.attacks[index], (index, target, word)
        if "copies" in attack.knowledge:
            return attack.prepare(access.only_for(attack))
        if key not in self._prepared:
            if attack.learns:
                self._prepared[key] = attack.equipped(self._learnt(index, target, word, access, timed))
            else:
                self._prepared[key] = attack.prepare(access.only_for(attack))
        return self._prepared[key]

    def _learnt(self, index: int, target: int, word: str, access: Access, timed: Timed) -> dict[str, torch.Tensor]:
        """What an attack learns from marked samples; whoever makes these learns for every attack that wants them."""

        def learn(number: int) -> dict[str, torch.Tensor]:
            attack = self.plan.attacks[number]
            with timed("learn", attack.label, attack.holdings):
                return attack.learn(access.only_for(attack))

        if self.folder is None:
            return learn(index)
        failed = self._failed.get((index, target, word))
        if failed is not None:
            raise failed
        # One lock for the method and the key, not for the attack: the samples are what takes long.
        who = {"target": self.plan.methods[target].spec().id, "key": word}
        with _alone(self.folder / f"{identity('samples', who)}.lock"):
            for number in self._sampling(target):
                path = self._path(number, target, word)
                if path.is_file():
                    continue
                try:
                    save_state(learn(number), path)
                except Exception as error:
                    # The others' turn comes, and with it their error.
                    self._failed[(number, target, word)] = error
                    if number == index:
                        raise
        self._samples.clear()
        return load_state(self._path(index, target, word))

    def _sampling(self, target: int) -> list[int]:
        """The attacks of the plan that learn from marked samples of a method."""
        found = {cell.attack for cell in self.plan.cells if cell.target == target and cell.skipped is None}
        return [i for i in sorted(found) if self.plan.attacks[i].learns and self._wants_samples(i)]

    def _wants_samples(self, index: int) -> bool:
        return "marked-samples" in self.plan.attacks[index].knowledge

    def _seen(self, target: int, word: str, count: int) -> Pair:
        """The first images that adversaries have seen marked with one key, and their counterparts."""
        key, method = (target, word), self._method(target)
        before = self._samples.get(key)
        have = 0 if before is None else len(before.marked)
        if have < count:
            images = self._clean(count).take(range(have, count))
            keys = torch.tensor([[bit == "1" for bit in word]] * len(images), dtype=torch.bool)
            seed = Seed.root(self.plan.benchmark.seed).child("adversary", method.name)
            # One by one: nobody needs them all as floats at once.
            more = [method.mark(images.take([i]), keys[i : i + 1], seed) for i in range(len(images))]
            pairs = [*([before] if before is not None else []), *more]
            self._samples = {key: Pair(_joined([p.marked for p in pairs]), _joined([p.unmarked for p in pairs]))}
        pair = self._samples[key]
        return Pair(pair.marked.take(range(count)), pair.unmarked.take(range(count)))

    def _clean(self, count: int) -> Images:
        """The first images of the adversary's dataset.

        Raises:
            ContractError: there are fewer, some cannot be read, or they differ in size.
        """
        if self.plan.adversary is None:
            raise ContractError("the benchmark names no adversary's dataset")
        if self._held is not None and len(self._held) >= count:
            return self._held.take(range(count))
        # Once for all attacks, because making images takes long; those that need fewer do not suffer from the rest.
        asked = [
            self.plan.attacks[c.attack].holdings for c in self.plan.cells if c.target is not None and not c.skipped
        ]
        for wanted in sorted({count, max([count, *asked])}, reverse=True):
            groups, rejected = self.plan.adversary[0].load(self.plan.adversary[1].records[:wanted])
            if not rejected and len(groups) == 1 and len(groups[0]) == wanted:
                self._held = groups[0]
                return self._held.take(range(count))
        reason = f"{rejected[0].id}: {rejected[0].reason}" if rejected else "different sizes, or too few of them"
        raise ContractError(f"the adversary's dataset cannot give {count} images of one size: {reason}")

    def _copies_of(self, target: int, given: Images, own: Images, word: str, arm: str, count: int) -> Sequence[Images]:
        """The same images as ``count`` users got them, the user of ``word`` first."""
        if arm == "unmarked":
            return [own] * count
        method = self._method(target)
        return [own, *(self._copy(method, given, other) for other in self._others(method, word, count - 1))]

    def _copy(self, method: Watermark, given: Images, word: str) -> Images:
        key = (method.label, given.ids, word)
        if key not in self._copies:
            keys = torch.tensor([[bit == "1" for bit in word]] * len(given), dtype=torch.bool)
            self._copies[key] = method.mark(given, keys, self._embed_seed(method)).marked
        return self._copies[key]

    def _others(self, method: Watermark, word: str, count: int) -> list[str]:
        return colluders(self.plan.benchmark.seed, word, count, method.users)

    def _changed(self, index: int, target: int, seed: Seed, timed: Timed) -> Changed:
        """The attacked model of a method: decoders by key, and the diffusion model."""

        def decoder(word: str | None) -> Autoencoder:
            key = (index, target, word)
            if key not in self._decoders:
                # A run goes through its attacks one after another: those of the last attack are not needed again.
                self._decoders = {k: v for k, v in self._decoders.items() if k[:2] == key[:2]}
                self._decoders[key] = self._change_decoder(index, target, word, seed, timed)
            return self._decoders[key]

        def diffusion(model: LatentDiffusion) -> LatentDiffusion:
            key = (index, target)
            if key not in self._diffusions:
                self._diffusions = {key: self._change_diffusion(index, target, model, seed, timed)}
            return self._diffusions[key]

        return Changed(decoder, diffusion)

    def _change_decoder(self, index: int, target: int, word: str | None, seed: Seed, timed: Timed) -> Autoencoder:
        attack, method = cast("ModelAttack", self.plan.attacks[index]), self._method(target)
        model = method.decoder_of(word)

        def others(count: int) -> list[Autoencoder]:
            if word is None or method.users is None:
                return [model] * count
            return [method.decoder_of(other) for other in self._others(method, word, count)]

        access = Access(model=model, original=method.decoder_of(None), others=others, clean=self._clean).only_for(
            attack
        )
        who = "nobody" if word is None else word
        if attack.part != "decoder" or not attack.learns:
            return attack.change_decoder(access, seed.child(who))

        def learn() -> dict[str, torch.Tensor]:
            with timed("learn", attack.label, attack.holdings):
                return _state(attack.change_decoder(access, seed.child(who)).model)

        changed = copy.deepcopy(model)
        changed.model.load_state_dict(self._kept(index, target, who, learn))
        return changed

    def _change_diffusion(
        self, index: int, target: int, model: LatentDiffusion, seed: Seed, timed: Timed
    ) -> LatentDiffusion:
        attack = cast("ModelAttack", self.plan.attacks[index])
        if attack.part != "diffusion":
            return model
        access = Access(model=model.autoencoder, clean=self._clean).only_for(attack)

        def learn() -> dict[str, torch.Tensor]:
            with timed("learn", attack.label, attack.holdings):
                return _state(attack.change_diffusion(model, access, seed).unet)

        state = self._kept(index, target, "", learn)
        return model.with_weights(state, identity("attacked-model", {"model": model.digest, "by": attack.spec().id}))

    def _kept(
        self, index: int, target: int, who: str, learn: Callable[[], dict[str, torch.Tensor]]
    ) -> dict[str, torch.Tensor]:
        """What an attack learnt of a target: read where it is kept, else learnt and kept."""
        if self.folder is None:
            return learn()
        path = self._path(index, target, who)
        with _alone(path.with_suffix(".lock")):
            if not path.is_file():
                save_state(learn(), path)
        return load_state(path)

    def _path(self, index: int, target: int, who: str) -> Path:
        """Where it is kept what an attack learnt of a method and a key."""
        if self.folder is None:
            raise ContractError("nothing is kept: there is no folder")
        about = {
            "attack": self.plan.attacks[index].spec().id,
            "target": self.plan.methods[target].spec().id,
            "who": who,
            "seed": self.plan.benchmark.seed,
            "held": None if self.plan.adversary is None else self.plan.adversary[1].digest,
        }
        return self.folder / f"{identity('learnt', about)}.safetensors"


def _joined(parts: Sequence[Images]) -> Images:
    records = tuple(record for part in parts for record in part.records)
    return Images(torch.cat([part.pixels for part in parts]), records)


def _state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach() for name, tensor in module.state_dict().items()}


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Waits until no other process is inside; the lock dies with its owner."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        except ImportError:
            pass
        yield
