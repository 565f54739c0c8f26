"""ZeRO-3: every process reads its own part of every parameter, and nobody gathers or sends any.

DeepSpeed cuts a flattened parameter into as many equal parts as there are processes, the last one
padded. A part is a range of bytes in a safetensors file.
"""

from __future__ import annotations

from typing import Any

import deepspeed
import torch
from deepspeed import comm
from torch import nn

from latticeforge_trainer.models.headers import StoredTensor
from latticeforge_trainer.models.placing import Placement
from latticeforge_trainer.models.skeleton import mark_loaded, owner
from latticeforge_trainer.models.streaming import Group, Loaded


class PartitionedPlacement(Placement):
    """Gives every parameter that will be loaded its partition, and fills it.

    Args:
        model: The model, on the meta device.
        groups: What there is to load.
        ds_config: DeepSpeed's configuration.

    Attributes:
        groups: This process's part of what there is to load.
    """

    def __init__(self, model: Any, groups: list[Group], ds_config: dict[str, Any]) -> None:
        super().__init__(model)
        cut = _Unfilled(module=nn.Module(), config_dict_or_path=ds_config)
        for group in groups:
            for leaf in group.tensors:
                module = model.get_submodule(group.module)
                if leaf in module._parameters:  # noqa: SLF001  (nn.Module has no public look-up)
                    setattr(module, leaf, cut.empty(getattr(module, leaf)))
        self.groups = [self._own(group) for group in groups]

    def place(self, name: str, tensors: Loaded) -> None:
        """Fill a module's partitions, and its buffers."""
        module = self.model.get_submodule(name)
        for leaf in [leaf for leaf in tensors if leaf in module._parameters]:  # noqa: SLF001  (above)
            parameter, part = getattr(module, leaf), tensors.pop(leaf)
            parameter.ds_tensor[: len(part)].copy_(part)
            parameter.ds_tensor[len(part) :].zero_()
            mark_loaded(parameter)
        super().place(name, tensors)

    def _own(self, group: Group) -> Group:
        return Group(
            group.module,
            {
                leaf: self._part(tensor, *owner(self.model, f"{group.module}.{leaf}"))
                for leaf, tensor in group.tensors.items()
            },
        )

    def _part(self, stored: StoredTensor, module: nn.Module, leaf: str) -> StoredTensor:
        parameter: Any = getattr(module, leaf)
        if leaf not in module._parameters:  # noqa: SLF001  (as above)
            return stored
        size = parameter.ds_tensor.ds_numel
        first = min(parameter.ds_numel, size * comm.get_rank(parameter.ds_process_group))
        return stored.part(first, min(parameter.ds_numel, first + size))


class _Unfilled(deepspeed.zero.Init):  # type: ignore[misc]  # deepspeed is untyped
    """DeepSpeed's partitioning, of parameters that hold nothing yet.

    Its own sends what a parameter happens to hold from the first process to the others: once over
    the network for the whole model, for nothing.
    """

    def empty(self, meta: nn.Parameter) -> nn.Parameter:
        """A parameter like `meta`, with room for this process's part alone."""
        whole = torch.empty_like(meta, device=self.local_device)  # freed at once
        parameter = nn.Parameter(whole, requires_grad=meta.requires_grad)
        self._convert_to_zero_parameters([parameter])
        return parameter

    def _zero_init_param(self, param: nn.Parameter) -> None:
        self._convert_to_deepspeed_param(param)
        param.partition()  # type: ignore[attr-defined]  # just given to it
