"""The adaptive hierarchy: one draft tree, grown best-first over all databases at once.

To be read in this order: `drafter`, `growth` (how the tree grows), `mixing` (how matches become probabilities),
`matching` and `lookups` (where they come from), `recycling` (what the target's candidates say), `budget` (how much to
draft), `experience` (what a new drafter knows).
"""

from hdraft.drafting.hierarchy.drafter import HierarchyDrafter, HierarchySession

__all__ = ["HierarchyDrafter", "HierarchySession"]
