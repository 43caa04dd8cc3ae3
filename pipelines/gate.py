"""A candidate at the gate: against the additive baseline, and against who is champion now."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines import rematch
from pipelines.bundle import Evaluated, open_bundle
from pipelines.contest import Rival, Verdict, baseline, judge
from pipelines.evaluation_record import read_scores
from pipelines.tracking.logged_model import INSIDE
from pipelines.tracking.registry import CHAMPION
from sedd.errors import StorageError

if TYPE_CHECKING:
    from pipelines.tracking.registry import Registry, Version


def judge_against(
    candidate: Evaluated, champion: "Version | None", registry: "Registry"
) -> Verdict:
    """The gate's verdict; a champion of another evaluation set is judged again on this one."""
    methods = read_scores(candidate.evaluation)
    own = methods.get(candidate.record.mode, {})
    if champion is None:
        return judge(own, [baseline(methods)])
    with tempfile.TemporaryDirectory(prefix=".rematch-", dir=candidate.folder) as work:
        try:
            there = registry.download(champion, INSIDE, Path(work) / "champion")
            holder = open_bundle(there, champion.tags.get("sedd.model_digest"))
        except StorageError as error:
            reason = f"version {champion.number}, the champion, cannot be judged: {error}"
            return judge(own, [baseline(methods)], objection=reason.rstrip("."))
        if _same_evaluation_set(candidate, holder):
            theirs = read_scores(holder.evaluation)[holder.record.mode]
            return judge(
                own, [baseline(methods), Rival(CHAMPION, CHAMPION, theirs, incumbent=True)]
            )
        try:
            again = rematch.play(candidate, holder, Path(work) / "drawn")
        except rematch.CannotJudgeError as error:
            reason = (
                f"version {champion.number}, the champion, was evaluated on other cells and "
                f"cannot be judged on these: {error}"
            )
            return judge(own, [baseline(methods)], objection=reason)
    rival = Rival(CHAMPION, CHAMPION, again.scores[rematch.CHAMPION], incumbent=True)
    rivals = [baseline(again.scores), rival]
    return judge(again.scores[rematch.CANDIDATE], rivals, note=again.note)


def _same_evaluation_set(one: Evaluated, other: Evaluated) -> bool:
    """Whether scores may be compared: the same cells held out, looked at over the same genes."""
    digests = [(each.record.data_digest, each.record.split_digest) for each in (one, other)]
    return digests[0] == digests[1] and one.vocabulary.genes == other.vocabulary.genes
