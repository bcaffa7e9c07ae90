"""Draw samples of published adapters, judge them, and record what was measured under its protocol.

payload: chores.Evaluation.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar

from sqlalchemy.orm import Session

from orchestration import chores, datasets, publishing
from orchestration.kinds.contract import Attempt
from orchestration.ray_train import ProgressLine
from registry import adapters, backbones, evaluations, tasks
from registry import datasets as recorded
from registry.records import AdapterRecord

if TYPE_CHECKING:
    from affinery.diffusion.sampling import SamplerSettings
    from trainers.evaluation import Judgement

EXTRACTOR = "affinery recogniser 1"


class Evaluate:
    """Adapters, one after the other; all figures are recorded together."""

    needs_ray: ClassVar[bool] = False

    def run(self, attempt: Attempt) -> None:
        asked = chores.read(chores.Evaluation, attempt.job.payload)
        samples, found = asked.samples or publishing.JUDGED_SAMPLES, []
        for done, ref in enumerate(asked.adapters):
            attempt.tell.progress(ProgressLine(done, len(asked.adapters), {}, time.time()))
            found.append(self._judged(attempt, ref, samples, asked.seed))

        def write(session: Session) -> None:
            for record, protocol, results in found:
                evaluations.record(
                    session,
                    adapter=record.ref,
                    reference=record.dataset,
                    protocol=protocol,
                    results=results,
                    job_id=attempt.job.id,
                    fence=attempt.held.fence,
                )

        attempt.complete({record.ref: results for record, _, results in found}, write)

    def _judged(
        self, attempt: Attempt, ref: str, samples: int, seed: int
    ) -> tuple[AdapterRecord, dict[str, Any], dict[str, Any]]:
        from affinery.adapters.files import read_adapter
        from affinery.diffusion.sampling import default_settings
        from trainers.evaluation import judge
        from trainers.plan import PlannedTask
        from trainers.session import load_task

        services = attempt.services
        with services.sessions.read() as session:
            record = adapters.get(session, ref)
            task = tasks.by_id(session, record.task_id)
            source = recorded.get(session, record.dataset)
            backbone = backbones.by_id(session, record.backbone_id)
        attempt.stage(f"drawing and judging {samples} samples of {record.ref}")
        services.store.verify(backbone.blob_digest)
        services.store.verify(record.blob_digest)
        adapter = read_adapter(services.store.path(record.blob_digest)).named(task.name)
        model = publishing.compose(services, publishing.Stage(backbone, ()), [adapter])
        planned = PlannedTask(
            task.name,
            record.kind,
            task.config,
            str(datasets.ensure(services.data, source.dvc_path, source.digest)),
            source.digest,
            record.block,
            task.classes,
            task.condition,
            task.image_size,
        )
        split = load_task(planned, model.backbone, str(services.cache))
        settings = default_settings(model)
        judgement = judge(model, task.name, split, settings, samples, seed)
        protocol = _protocol(source.digest, model.image_size(task.name), settings, samples, seed)
        return record, protocol, _results(judgement)


def _protocol(
    reference: str, size: int, settings: SamplerSettings, samples: int, seed: int
) -> dict[str, Any]:
    return {
        "measure": "recognition",
        "extractor": EXTRACTOR,
        "reference": reference,
        "size": size,
        "samples": samples,
        "seed": seed,
        "sampler": asdict(settings),
    }


def _results(judgement: Judgement) -> dict[str, Any]:
    seen = judgement.recognition
    if seen is None:  # one class only, or no image was kept back: there is nothing to recognise it by
        return {"samples": len(judgement.images)}
    return {
        "recognition": {"share": seen.share, "real_accuracy": seen.real_accuracy},
        "samples": seen.samples,
    }


KIND = Evaluate()
