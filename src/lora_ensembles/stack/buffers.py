"""The adapters of all members in flat buffers, of which every stacked layer holds views.

Shapes: M members, B rows of a member, D features, R rank, P parameters of one member.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import AdapterError
from .context import ALL_MEMBERS, ForwardContext
from .head_layers import HeadStack
from .lora import StackedLoraLinear
from .quantised import chooses_by_batch, per_member
from .sharding.flats import Described, member_weights, norms, own_flat, whole_flat
from .sharding.layout import sharding_of
from .sites import AdapterSite, MemberWeights, adapter_sites, device_of, grown, replace_module

NOT_REACHED = "a pass over text runs through none of the target modules; choose others"


class AdapterStack:
    """The adapters of all members, as two flat buffers (M, P_a) and (M, P_b) of which every layer holds
    views; `heads` beside them.

    `a` and `b` are fp32 masters. Where the base computes in another dtype, `refresh` casts them once a step
    into working copies, which are the leaves of autograd; in fp32 master and working copy are the same
    memory. Per member: 16 bytes a parameter in training (weight, gradient, two moments), and the working
    copy.

    On a base that lies over several ranks (`sharding`) the buffers are this rank's part: some of the members,
    or of each member the parts of the layers that the rank computes.
    """

    def __init__(self, base: nn.Module, members: Sequence[MemberWeights], *, dtype: torch.dtype):
        self.context = ForwardContext()
        self.dtype = dtype
        self.sharding = sharding_of(base)
        modules = dict(base.named_modules())
        self.sites: list[AdapterSite] = adapter_sites(modules, members, sharding=self.sharding)
        self.layers = [
            StackedLoraLinear(
                modules[site.name], name=site.name, index=index, context=self.context, cut=site.cut
            )
            for index, site in enumerate(self.sites)
        ]
        for site, layer in zip(self.sites, self.layers, strict=True):
            replace_module(base, site.name, layer)
        self.heads = HeadStack(base, members, context=self.context, dtype=dtype)
        self._detached = False
        self._reached: set[int] = set()  # leaves of autograd that had a gradient in this step
        self._apart = [module for module in base.modules() if chooses_by_batch(module)]
        for module in self._apart:
            module.forward = per_member(module.forward, lambda: self.context.groups)
        self.working_a: Tensor
        self.working_b: Tensor
        self.set_members(members)

    @property
    def num_members(self) -> int:
        return self.a.shape[0]

    @property
    def by_batch(self) -> bool:
        """Whether what the base makes of a row depends on the member's other rows in a pass, as 8-bit layers
        with a threshold do.
        """
        return bool(self._apart)

    @property
    def buffers(self) -> tuple[Tensor, ...]:
        """All that is trained, flat and fp32: A (M, P_a), B (M, P_b) and, where members have heads, these (M,
        P_head).
        """
        return (self.a, self.b, self.heads.flat) if self.heads.sites else (self.a, self.b)

    def set_members(self, members: Sequence[MemberWeights]) -> None:
        """Replace all members; smaller ranks are padded with zeros, which changes nothing that
        is computed. Where each rank holds some of the members, these are its own.

        Raises:
            AdapterError: they adapt other layers, or layers of another size.
        """
        modules = {layer.name: layer.base_layer for layer in self.layers}
        self.sites = adapter_sites(modules, members, sharding=self.sharding)
        self.heads.set_members(members)
        device = device_of(self.layers[0].base_layer)
        count_a = sum(site.rank * site.in_features for site in self.sites)
        count_b = sum(site.rank * site.out_features for site in self.sites)
        self.a = torch.zeros(len(members), count_a, device=device)
        self.b = torch.zeros(len(members), count_b, device=device)
        self.ranks = [
            {site.name: weights.a[site.name].shape[0] for site in self.sites} for weights in members
        ]
        self.scaling = [[weights.scaling[site.name] for weights in members] for site in self.sites]
        self._fill(0, members)
        self._bind()

    def add_members(self, members: Sequence[MemberWeights]) -> None:
        """Put members behind those that are there, whose weights stay where they are unless one of the new
        has a larger rank.

        Raises:
            AdapterError: they adapt other layers, or layers of another size.
            ConfigError: each rank holds some of the members.
        """
        self.sharding.check_all_here("adding members")
        modules = {layer.name: layer.base_layer for layer in self.layers}
        if any(set(weights.a) != set(modules) for weights in members):
            raise AdapterError(
                "the members adapt different layers; an ensemble needs the same target modules "
                "in every member"
            )
        self.heads.check(members)
        sites, first = adapter_sites(modules, members, sharding=self.sharding), self.num_members
        if any(new.rank > old.rank for new, old in zip(sites, self.sites, strict=True)):
            self.set_members([*(self.member(index) for index in range(first)), *members])
            return
        self.ranks += [
            {site.name: weights.a[site.name].shape[0] for site in self.sites} for weights in members
        ]
        self.scaling = [
            [*old, *(weights.scaling[site.name] for weights in members)]
            for site, old in zip(self.sites, self.scaling, strict=True)
        ]
        self.heads.add_members(members)
        same, count = self.working_a is self.a, len(members)
        self.a, self.b = grown(self.a, count), grown(self.b, count)
        self._fill(first, members)
        self.working_a, self.working_b = (
            (self.a, self.b) if same else (grown(self.working_a, count), grown(self.working_b, count))
        )
        for working, master in ((self.working_a, self.a), (self.working_b, self.b)):
            if working is not master:
                working[first:] = master[first:]
        self._bind_layers()

    def _fill(self, first: int, members: Sequence[MemberWeights]) -> None:
        for site in self.sites:
            view_a, view_b = site.view_a(self.a), site.view_b(self.b)
            for m, weights in enumerate(members, first):
                a, b = weights.a[site.name], weights.b[site.name]
                if site.cut is not None:
                    a, b = site.cut.own_a(a), site.cut.own_b(b)
                view_a[m, : len(a)] = a.to(self.a.device)
                view_b[m, :, : len(a)] = b.to(self.b.device)

    def _bind(self) -> None:
        same = self.dtype == torch.float32
        self.working_a = self.a if same else self.a.to(self.dtype)
        self.working_b = self.b if same else self.b.to(self.dtype)
        self._bind_layers()

    def _bind_layers(self) -> None:
        for site, layer, scaling in zip(self.sites, self.layers, self.scaling, strict=True):
            layer.bind(site.view_a(self.working_a), site.view_b(self.working_b), scaling)

    def refresh(self) -> None:
        """Make the working copies equal to the masters again, after the masters changed."""
        if self.working_a is not self.a:
            self.working_a.copy_(self.a)
            self.working_b.copy_(self.b)
            self.heads.refresh()

    def zero_gradients(self) -> tuple[Tensor, ...]:
        """Zeroed flat fp32 gradients, as `buffers`."""
        return tuple(torch.zeros_like(buffer) for buffer in self.buffers)

    def add_gradients(self, loss: Tensor, totals: tuple[Tensor, ...]) -> None:
        """Add the gradients of `loss` to flat fp32 ones: parts of a split step are summed in fp32, whatever
        the base computes in.

        Raises:
            AdapterError: the loss depends on no parameter.
        """
        if not loss.requires_grad:
            raise AdapterError(f"the loss depends on no adapter: {NOT_REACHED}")
        parameters = [parameter for layer in self.layers for parameter in (layer.lora_a, layer.lora_b)]
        perturbed = [layer.perturbation for layer in self.layers if layer.perturbation is not None]
        parameters += [*self.heads.parameters, *perturbed]
        with self.sharding.lockstep(nullcontext()):
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        views = [view for site in self.sites for view in (site.view_a(totals[0]), site.view_b(totals[1]))]
        views += self.heads.views(totals[-1])
        views += [site.view_a(self.context.sign_gradient) for site in self.sites if perturbed]
        for leaf, (view, gradient) in enumerate(zip(views, gradients, strict=True)):
            if gradient is not None:  # None: the pass did not reach this layer
                view.add_(gradient)
                self._reached.add(leaf)
        if not self._reached:
            raise AdapterError(f"the loss depends on no adapter: {NOT_REACHED}")

    def begin_step(self, gradients: Sequence[Tensor]) -> None:
        """Zero the gradients; from here on it counts which parameters a pass reaches."""
        for gradient in gradients:
            gradient.zero_()
        self._reached.clear()

    def unreached(self) -> list[list[slice]]:
        """The columns of each buffer that no pass reached since the step began: a vision tower's, where there
        are no images.
        """
        places = [
            (buffer, slice(start, start + count))
            for site in self.sites
            for buffer, start, count in (
                (0, site.start_a, site.rank * site.in_features),
                (1, site.start_b, site.rank * site.out_features),
            )
        ]
        places += [(2, slice(site.start, site.start + site.shape.numel())) for site in self.heads.sites]
        missed = [place for leaf, place in enumerate(places) if leaf not in self._reached]
        return [
            [columns for buffer, columns in missed if buffer == number] for number in range(len(self.buffers))
        ]

    def gradient_norms(self, gradients: Sequence[Tensor]) -> Tensor:
        """Each member's own gradient norm (M,) over all its parameters, wherever they lie."""
        return norms(self.sharding, self.sites, gradients)

    def whole(self, buffer: int, flat: Tensor) -> Tensor:
        """The flat parameters (M, P) of all members as one process has them, from what this rank has of the
        buffer of that number, or of something shaped like it.
        """
        return whole_flat(self.sharding, self.sites, buffer, flat)

    def own(self, buffer: int, whole: Tensor) -> Tensor:
        """This rank's part of flat parameters (M, P) of all members."""
        return own_flat(self.sharding, self.sites, buffer, whole)

    def member(self, index: int) -> MemberWeights:
        """A copy of one member's adapter and head, in fp32 on the CPU, at the member's own rank; of a layer
        that lies over several ranks, the whole, for which all of them call this.
        """
        one = slice(index, index + 1)
        a, b = self.a[one], self.b[one]
        if not self.sharding.splits_members:
            a, b = self.whole(0, a), self.whole(1, b)
        return self.weights_of(a[0], b[0], self.heads.flat[index], self.described(index))

    def every_member(self) -> Iterable[MemberWeights]:
        """Copies of all members on the first rank, those of the others included; none on the others, which
        all call this.
        """
        ranks, here = self.sharding.ranks, range(self.num_members)
        if ranks.size == 1:
            return (self.member(index) for index in here)
        flats = [self.whole(number, flat) for number, flat in enumerate((self.a, self.b, self.heads.flat))]
        described = [self.described(index) for index in here]
        if self.sharding.splits_members:
            described = [own for part in ranks.told_by_each(described) for own in part]
        if not ranks.first:
            return []
        return [self.weights_of(*rows) for rows in zip(*flats, described, strict=True)]

    def weights_of(self, a: Tensor, b: Tensor, head: Tensor, described: Described) -> MemberWeights:
        """A copy of a member's weights, from its flat A, B and head (P,)."""
        return member_weights(self.sites, a, b, self.heads.weights(head), described)

    def ranks_and_scalings(self) -> dict[str, list[float]]:
        """The ranks and the scalings that occur in any member, those of other ranks of the base included."""
        here = [self.described(index) for index in range(self.num_members)]
        every = [own for part in self.sharding.ranks.told_by_each(here) for own in part]
        return {
            name: sorted({value for own in every for value in own[place]})
            for place, name in enumerate(("ranks", "scalings"))
        }

    def described(self, index: int) -> Described:
        """A member's rank and scaling in each layer."""
        ranks = [self.ranks[index][site.name] for site in self.sites]
        return ranks, [scalings[index] for scalings in self.scaling]

    def detach(self, base: nn.Module) -> None:
        """Give the base its own layers back; the stack cannot run any more."""
        self._detached = True
        for site, layer in zip(self.sites, self.layers, strict=True):
            replace_module(base, site.name, layer.base_layer)
        self.heads.detach(base)
        for module in self._apart:
            del module.forward

    def running(
        self,
        *,
        rows: int,
        tokens: int,
        members: slice = ALL_MEMBERS,
        row_numbers: Tensor | None = None,
    ) -> AbstractContextManager[None]:
        """Context in which a forward pass over `rows` rows of `tokens` tokens in all, those of `members`,
        runs; `row_numbers` (M, rows of a member) say where they stand in the members' batches.
        """
        if self._detached:  # the plain base would answer for every member
            raise AdapterError(
                "this ensemble was unloaded: the base has its own layers back; "
                "make or load the ensemble again"
            )
        groups = len(range(self.num_members)[members])
        running = self.context.running(
            rows=rows,
            tokens=tokens,
            groups=groups,
            members=members,
            row_numbers=row_numbers,
        )
        return self.sharding.lockstep(running)

    def remembered(self) -> AbstractContextManager[None]:
        """Context in which a part of the pass that runs now runs once more, later."""
        return self.context.remembered()

    def dropout(self, probability: Tensor, keys: Sequence[int]) -> AbstractContextManager[None]:
        """Context in which features of the adapters' inputs are dropped, with a probability (M,) and a random
        stream for each member.
        """
        return self.context.dropping(probability, keys)

    @contextmanager
    def repeated(self, member: int, copies: int) -> Iterator[None]:
        """Context in which every layer computes with one member in the place of `copies` members, without a
        copy of its weights.
        """
        before = [(layer.lora_a.data, layer.lora_b.data) for layer in self.layers]
        heads = [
            (layer.head_weight.data, None if layer.head_bias is None else layer.head_bias.data)
            for layer in self.heads.layers
        ]
        try:
            for head, (weight, bias) in zip(self.heads.layers, heads, strict=True):
                head.bind(
                    weight[member].expand(copies, -1, -1),
                    None if bias is None else bias[member].expand(copies, -1),
                )
            for layer, (a, b), scaling in zip(self.layers, before, self.scaling, strict=True):
                layer.bind(
                    a[member].expand(copies, -1, -1),
                    b[member].expand(copies, -1, -1),
                    [scaling[member]] * copies,
                )
            yield
        finally:
            for head, (weight, bias) in zip(self.heads.layers, heads, strict=True):
                head.bind(weight, bias)
            for layer, (a, b), scaling in zip(self.layers, before, self.scaling, strict=True):
                layer.bind(a, b, scaling)

    @contextmanager
    def learning_rows(self) -> Iterator[None]:
        """Context in which a pass tells each layer whether it sees rows in front, or all tokens in
        one axis.
        """

        def learn(layer: Any, arguments: tuple[Tensor, ...]) -> None:
            layer.by_row = arguments[0].shape[0] == self.context.rows

        def refuse(layer: nn.Module, _arguments: tuple[Tensor, ...], result: object) -> None:
            if not isinstance(result, Tensor):  # some routers are linear layers that return more
                name = next(stacked.name for stacked in self.layers if stacked.base_layer is layer)
                raise AdapterError(
                    f"layer {name!r} is a {type(layer).__name__} that returns a {type(result).__name__} "
                    f"in place of a tensor; leave it out by exclude_modules=[{name.rpartition('.')[2]!r}]"
                )

        handles = [layer.register_forward_pre_hook(learn) for layer in self.layers]
        handles += [layer.base_layer.register_forward_hook(refuse) for layer in self.layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def random_b(self, members: int) -> Iterator[None]:
        """Context in which the first members have random B matrices, which make an adapter's update about as
        large as its input.
        """
        kept = self.working_b[:members].clone()
        generator = torch.Generator().manual_seed(0)
        for site, scaling in zip(self.sites, self.scaling, strict=True):
            view = site.view_b(self.working_b)
            for member in range(members):
                size = 1 / (abs(scaling[member]) * site.rank**0.5 or 1.0)
                view[member] = (size * torch.randn(view.shape[1:], generator=generator)).to(view)
        try:
            yield
        finally:
            self.working_b[:members] = kept

    def disabled(self) -> AbstractContextManager[None]:
        """Context in which the base computes as if there were no adapters."""
        return self.sharding.lockstep(self.context.disabled())
