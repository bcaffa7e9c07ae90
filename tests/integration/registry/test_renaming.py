"""Names change and identity does not; a bare name means what is in use."""

from __future__ import annotations

import pytest

from affinery.merge_recipe import Merge, Weight, recipe_of
from registry import adapters, backbones, compositions, errors, invariants, refs, renaming, retirement
from registry.session import Sessions
from tests import registry_world as world


def test_a_new_name_holds_everywhere_and_the_old_one_tells_it(ledger: Sessions) -> None:
    with ledger.begin() as session:
        before = world.learnt_on_new_backbone(session)
        made = compositions.register(
            session, name="all", backbone="dit", mode="routed", recipe={}, members=["digits"]
        )
        renaming.rename(session, "backbone:dit", "sit")
        renaming.rename(session, "task:digits", "numbers")
        after = adapters.get(session, "numbers@1")
        assert (after.digest, after.backbone, after.block) == (before.digest, "sit@1", before.block)
        with pytest.raises(errors.Renamed, match="Write 'backbone:sit@1' now"):
            refs.resolve(session, "backbone:dit@1")
        with pytest.raises(errors.Renamed, match="'numbers@1'"):
            adapters.get(session, "digits@1")
        same = compositions.register(
            session, name="all", backbone="sit", mode="routed", recipe={}, members=["numbers"]
        )
        assert same.node_id == made.node_id
        with pytest.raises(errors.NameTaken):
            world.task(session, "digits", on="sit")
        assert backbones.get(session, "sit").name == "sit"
    with ledger.read() as session:
        found = {finding.check for finding in invariants.broken(session)}
        assert found <= {"certificates"}


def test_a_bare_name_means_the_latest_that_is_not_retired(ledger: Sessions) -> None:
    with ledger.begin() as session:
        world.learnt_on_new_backbone(session)
        world.learnt(session, "digits", 2)
        retirement.retire(session, "digits@2", "blurred")
        assert adapters.get(session, "digits").ref == "digits@1"
        assert adapters.get(session, "digits@2").ref == "digits@2"
        retirement.retire(session, "digits@1", "blurred too")
        with pytest.raises(errors.AllRetired, match="digits@1, digits@2"):
            adapters.get(session, "digits")
        assert refs.resolve(session, "digits", prefer=("task",)).kind == "task"
        retirement.restore(session, "digits@2")
        assert adapters.get(session, "digits").ref == "digits@2"


def test_a_task_never_has_the_name_of_a_sum_that_it_is_shipped_with(ledger: Sessions) -> None:
    sums = recipe_of([Merge("ink", ((0, Weight(0.5)), (1, Weight(0.5))))])
    with ledger.begin() as session:
        world.backbone(session)
        for name in ("digits", "faces", "birds"):
            world.learnt(session, name)
        compositions.register(
            session, name="all", backbone="dit", mode="merged", recipe=sums, members=["digits", "faces"]
        )
        with pytest.raises(
            errors.RecordInvalid, match="all@1 has a sum of that name beside the task 'digits'"
        ):
            renaming.rename(session, "task:digits", "ink")
        renaming.rename(session, "task:birds", "ink")
