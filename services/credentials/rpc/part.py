"""What every part of the service's face has: the use cases."""

from bulkhead.credentials.v1.credentials_service_pb2_grpc import CredentialsServiceServicer

from services.credentials.service import CredentialsService


class Part(CredentialsServiceServicer):
    """Some of the service's methods: read the request, ask the use case, write the answer."""

    def __init__(self, service: CredentialsService) -> None:
        self._service = service
