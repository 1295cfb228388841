"""From when on a change holds everywhere."""

from bulkhead.auth.v1 import auth_service_pb2 as pb

from cli.rendering import time_text


def effect_lines(effect: pb.Effect) -> list[str]:
    """Returns what to tell of the effect, a line each; nothing when the answer said nothing."""
    if not effect.HasField("effective_at"):
        return []
    told = f"{effect.watchers_acknowledged} replicas said so"
    fenced = f", {effect.watchers_fenced} silent ones trust nothing they remember"
    return [
        f"in effect everywhere since {time_text(effect.effective_at)}: "
        + told
        + (fenced if effect.watchers_fenced else "")
    ]
