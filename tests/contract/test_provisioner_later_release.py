"""Work that a later release has begun, as an earlier one of a rolling update finds it."""

import asyncio

from bulkhead.provisioner.v1 import provisioner_service_pb2 as pb2

from services.provisioner.domain import Step
from services.provisioner.settings import Settings
from services.shared.postgres import connect
from tests.apps import App, an_app
from tests.mesh import PATIENCE_SECONDS, Mesh


async def looked_at(app: App) -> None:
    """Returns when the provisioner has looked at the deployment, and is to do so again later."""
    settings = app.mesh.settings["provisioner"]
    assert isinstance(settings, Settings)
    connection = await connect(settings)
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not await connection.fetchval(
                "SELECT count(*) FROM pgqueuer WHERE payload = convert_to($1, 'UTF8')"
                " AND execute_after > created + interval '1 second'",
                app.deployment_id,
            ):
                await asyncio.sleep(0.02)
    finally:
        await connection.close()


async def test_a_step_that_only_a_later_release_knows_is_shown_and_left_to_it(mesh: Mesh) -> None:
    app = await an_app(mesh, database=False)
    await app.rewrite(
        "UPDATE operations SET step = 'hovering', state = 'running', ended_at = NULL,"
        " sealed_key = 'x', next_try_at = now() WHERE deployment_id = $1"
    )
    await looked_at(app)
    left = (await app.get()).last_operation
    assert (left.step, left.state) == ("hovering", pb2.OPERATION_STATE_RUNNING)
    assert (left.retries, left.message) == (0, "")


def test_a_step_that_is_not_known_is_itself_and_no_other() -> None:
    step = Step("hovering")
    assert (step, str(step), step.name) == ("hovering", "hovering", "hovering")
    assert not step.is_known
    assert step not in set(Step)
    assert step == Step("hovering")
    assert all(each.is_known for each in Step)
    assert "hovering" not in Step.__members__
