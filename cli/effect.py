"""From when on a change holds everywhere."""

from bulkhead.auth.v1 import auth_service_pb2 as pb

from cli.rendering import time_text


def effect_lines(effect: pb.Effect) -> list[str]:
    """Returns what to tell of the effect, a line each; nothing when the answer said nothing."""
    if not effect.HasField("effective_at"):
        return []
    since = time_text(effect.effective_at)
    acknowledged, fenced = effect.watchers_acknowledged, effect.watchers_fenced
    return [
        f"in effect everywhere since {since}: {acknowledged} replicas acknowledged, {fenced} fenced"
    ]
