"""From when on a change holds everywhere."""

from bulkhead.auth.v1 import auth_service_pb2 as pb

from cli.rendering import time_text


def effect_lines(effect: pb.Effect) -> list[str]:
    """Returns what to tell of the effect, a line each; nothing when the answer said nothing."""
    if not effect.HasField("effective_at"):
        return []
    return [
        f"in effect everywhere since {time_text(effect.effective_at)}:"
        f" {effect.watchers_acknowledged} replicas acknowledged, {effect.watchers_fenced} fenced"
    ]
