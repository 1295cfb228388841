"""Webhooks over the wire."""

from typing import Any

from bulkhead.credentials.v1 import credentials_service_pb2 as pb2

from services.credentials.rpc.part import Part
from services.shared.principal import current_principal


class WebhooksRpc(Part):
    """Where a tenant is told of connections that broke."""

    async def SetWebhook(
        self, request: pb2.SetWebhookRequest, context: Any
    ) -> pb2.SetWebhookResponse:
        secret = await self._service.webhooks.set(current_principal().tenant, request.url)
        return pb2.SetWebhookResponse(url=request.url, secret=secret)

    async def GetWebhook(
        self, request: pb2.GetWebhookRequest, context: Any
    ) -> pb2.GetWebhookResponse:
        webhook = await self._service.webhooks.get(current_principal().tenant)
        if webhook is None:
            return pb2.GetWebhookResponse()
        answer = pb2.GetWebhookResponse(
            url=webhook.url, undelivered=webhook.undelivered, last_failure=webhook.last_failure
        )
        answer.create_time.FromDatetime(webhook.created_at)
        if webhook.last_delivery_at is not None:
            answer.last_delivery_time.FromDatetime(webhook.last_delivery_at)
        return answer

    async def DeleteWebhook(
        self, request: pb2.DeleteWebhookRequest, context: Any
    ) -> pb2.DeleteWebhookResponse:
        await self._service.webhooks.delete(current_principal().tenant)
        return pb2.DeleteWebhookResponse()
