"""The drafter of a model that is given none: made at its first request, kept for the next ones, gone with the model."""

import threading
from weakref import WeakKeyDictionary

from transformers import PreTrainedModel

from hdraft.drafting.drafter import vocabulary_size
from hdraft.drafting.hierarchy.drafter import HierarchyDrafter

_kept: WeakKeyDictionary[PreTrainedModel, HierarchyDrafter] = WeakKeyDictionary()
_lock = threading.Lock()


def kept_drafter(model: PreTrainedModel) -> HierarchyDrafter:
    """The model's drafter, with D_c alone; a new one where the model has another vocabulary than before.

    It learns how much to believe which match, and keeps no text.

    Args:
        model: the one that runs, inside of any wrapper, so that they share a drafter.
    """
    size = vocabulary_size(model)
    with _lock:
        drafter = _kept.get(model)
        if drafter is None or drafter.vocab_size != size:
            drafter = _kept[model] = HierarchyDrafter(size)
        return drafter
